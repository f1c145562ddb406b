"""The reference of recipes in the documentation says what the schema says: every key, with its default."""

import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from hyprax.recipes import Recipe
from hyprax.recipes._read import tables

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def schema(table: type[BaseModel], name: str = "") -> dict[str, dict[str, object]]:
    """The keys of every table with their defaults, by the heading that a table should have."""
    found: dict[str, dict[str, object]] = {}
    keys = {}
    for key, field in table.model_fields.items():
        below = list(tables(field.annotation))
        for part in below:
            dotted = f"{name}.{key}".lstrip(".")
            if len(below) == 1:
                found |= schema(part, dotted)
            else:
                (source,) = get_args(part.model_fields["source"].annotation)
                found[f'`[{dotted}]`, `source = "{source}"`'] = schema(part, dotted)[f"`[{dotted}]`"]
        if not below:
            keys[key] = ... if field.is_required() else field.default
    return found | ({f"`[{name}]`": keys} if keys else {})


def documented() -> dict[str, dict[str, object]]:
    found = {}
    for section in re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        heading, body = re.split(r"\n", section, maxsplit=1)
        rows = re.findall(r"^\| `(\w+)` \|([^|]*)\|", body.split("\n## ")[0], flags=re.MULTILINE)
        found[heading.strip()] = {key: default(text.strip()) for key, text in rows}
    return found


def default(text: str) -> object:
    if text in ("", "none"):
        return None if text else ...
    return tomllib.loads(f"x = {text.strip('`')}")["x"]


def expected() -> dict[str, dict[str, object]]:
    sections = schema(Recipe)
    # The keys that every source of data has stand once, above the sources.
    sources = [keys for heading, keys in sections.items() if "source =" in heading]
    common = {key: sources[0][key] for key in sources[0] if all(key in keys for keys in sources) and key != "name"}
    for keys in sources:
        for key in common:
            del keys[key]
    return sections | {"`[data]`": common}


@pytest.mark.parametrize("heading", expected())
def test_a_table_is_documented_key_by_key(heading):
    assert documented()[heading] == expected()[heading]


def test_no_other_table_is_documented():
    assert documented().keys() == expected().keys()
