"""Which papers a call rests on."""

import dataclasses
from collections.abc import Iterator
from typing import Any


def _walk(thing: Any) -> Iterator[Any]:
    yield thing
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):  # every `eqx.Module` is one
        for field in dataclasses.fields(thing):
            yield from _walk(getattr(thing, field.name, None))
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from _walk(value)
    elif isinstance(thing, list | tuple):
        for value in thing:
            yield from _walk(value)


def citation(*objects: Any) -> str:
    """Print, and return, the BibTeX entries of the methods that `objects` use.

    **Arguments:**

    - `*objects`: objectives, searches, solvers, bounds: anything of this library. Parts are searched too, so the
        objective and the search of a call name all that it used.

    **Returns:** the entries, each once, in order of appearance. Methods declare theirs as `citations`.
    """
    entries: dict[str, None] = {}
    for thing in objects:
        for part in _walk(thing):
            for entry in getattr(type(part), "citations", ()):
                entries.setdefault(entry.strip(), None)
    text = "\n\n".join(entries)
    print(text)
    return text
