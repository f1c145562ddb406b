"""Going on with the run of a recipe from its own record; recipes are imported when it is asked for."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def resume(
    folder: str | Path,
    settings: Iterable[str] = (),
    *,
    progress: bool = True,
    say: Callable[[str], None] = print,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Go on with the run of a recipe, from its own record, to the bits of a run that was never interrupted.

    **Arguments:**

    - `folder`: the folder of the run; its data must be where they were.
    - `settings`: `key=value`: more steps, or another `stop`.
    - `progress`, `say`: a bar on a terminal, and where to say what is found on the way.
    - `callbacks`: who watches the steps, as in [`hyprax.tune`][].

    **Returns:** an [`hyprax.recipes.Outcome`][].

    A recipe that names a `"module:function"` is a program: resume the runs of others with care.

    **Raises:** [`hyprax.runs.RunError`][] for a folder without the run of a recipe, or one of other data.
    """
    from ..recipes._build import resume as resumed

    return resumed(folder, settings, progress=progress, say=say, callbacks=callbacks)
