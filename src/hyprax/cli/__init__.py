"""The command line: `hyprax tune`, `show`, `report`, `tasks`; in a plain install, a line that says how to get it."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: bad input is one line and exit status 2, never a traceback."""
    try:
        from ._commands import run

        run(arguments)
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name not in ("jinja2", "matplotlib", "pydantic", "rich", "sklearn", "typer"):
            raise
        print(
            f'hyprax: the command line needs {name}, which is not installed: pip install "hyprax[cli]"', file=sys.stderr
        )
        raise SystemExit(2) from None
