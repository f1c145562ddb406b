"""Reading a recipe: TOML and settings, checked against the schema, mistakes told in one line."""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pydantic
from pydantic import BaseModel

from ._data_tables import DataSource
from ._errors import SETTINGS, RecipeError, Source
from ._hyper_tables import Own
from ._schema import Recipe

MOST_LEVELS = 10
MOST_CHARACTERS = 2**20


def read_recipe(path: Path, settings: Iterable[str] = ()) -> tuple[Recipe, Source]:
    """The recipe in a TOML file, with `key=value` settings over it, and where its keys stand.

    **Raises:** `RecipeError`.
    """
    try:
        if path.stat().st_size > MOST_CHARACTERS:
            raise RecipeError(f"must have at most {MOST_CHARACTERS} bytes", file=path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError("there is no such file", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot be read ({getattr(error, 'strerror', None) or error})", file=str(path)[:200]
        ) from None
    return parse_recipe(text, path, settings)


def parse_recipe(text: str, path: Path, settings: Iterable[str] = (), *, made: bool = False) -> tuple[Recipe, Source]:
    """The recipe in a text; `path` is the file that it stands for, beside which its data are found.

    `made`: whether the text was made for the file, a table, which does not hold it.

    **Raises:** `RecipeError`.
    """
    settings = tuple(settings)
    try:
        tree = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # beside its own, of numbers that are too long and of depth
        found = re.fullmatch(r"(.*) \(at line (\d+), (column \d+)\)", str(error))
        message, line = (f"{found[1]} ({found[3]})", int(found[2])) if found else (str(error).split(";")[0], None)
        raise RecipeError(f"not TOML: {message}", file=path, line=line) from None
    if _deep(tree):
        raise RecipeError(f"not a recipe: tables within tables, more than {MOST_LEVELS} deep", file=path)
    given = tuple(_set(tree, *_setting(setting)) for setting in settings)
    source = Source(path, text, given, settings, made)
    try:
        return Recipe.model_validate(tree), source
    except pydantic.ValidationError as error:
        raise source.located(_explain(error)) from None


def _deep(tree: Any) -> bool:
    """Whether lists and tables go deeper than any recipe's."""
    level = [tree]
    for _ in range(MOST_LEVELS):
        level = [x for table in level for x in (table.values() if isinstance(table, dict) else table)]
        level = [x for x in level if isinstance(x, dict | list)]
    return bool(level)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"must be key=value, such as search.steps=200; got {text!r}", file=SETTINGS)
    return key.strip(), value.strip()


def _set(tree: dict[str, Any], key: str, value: str) -> str:
    """Set a dotted key; the value is TOML, or a string where it is not. The key is returned."""
    *tables, last = key.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"must not be below {table}, which is a value and no table", key=key, file=SETTINGS)
    try:
        tree[last] = tomllib.loads(f"x = {value}")["x"]
    except (ValueError, RecursionError):
        tree[last] = value
    if _deep(tree):
        raise RecipeError("must not hold tables within tables", key=key, file=SETTINGS)
    return key


def tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that an annotation allows: one, or several sources of data, or none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from tables(part)


def _walk(location: tuple[str | int, ...]) -> tuple[str, list[str]]:
    """The dotted key at a location of pydantic's, and the keys allowed beside it.

    A location holds more than keys: the tag of a source of data, and the alternative of a value that failed.
    """
    keys: list[str] = []
    beside: list[str] = []
    allowed: list[type[BaseModel]] = [Recipe]
    names = False  # whether the next part is a name that the user gives, of a table of tables
    for part in location:
        if names:
            keys.append(str(part))
            names = False
        elif len(allowed) > 1:
            allowed = [table for table in allowed if part in get_args(table.model_fields["source"].annotation)]
        elif allowed:
            fields = allowed[0].model_fields
            keys.append(str(part))
            beside = list(fields)
            allowed = list(tables(fields[str(part)].annotation)) if part in fields else []
            names = bool(allowed) and _is_dictionary(fields[str(part)].annotation)
    return ".".join(keys), beside


def _is_dictionary(annotation: Any) -> bool:
    """Whether an annotation is a dictionary, or one alternative is."""
    return get_origin(annotation) is dict or any(_is_dictionary(part) for part in get_args(annotation))


def _explain(error: pydantic.ValidationError) -> RecipeError:
    """The first mistake, in our words; a key that is not known comes before one that is missing for it."""
    mistakes = error.errors(include_url=False)
    mistakes.sort(key=lambda mistake: mistake["type"] != "extra_forbidden")
    first = mistakes[0]
    key, beside = _walk(first["loc"])
    kind, given = first["type"], first["input"]
    if kind == "value_error":
        inner = first.get("ctx", {})["error"]
        if not isinstance(inner, RecipeError):
            return RecipeError(str(inner), key=key)
        if key.startswith(f"{Own.place}."):  # the table does not know the name that it stands under
            return RecipeError(inner.message, key=key + inner.key.removeprefix(Own.place))
        return inner
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key.rpartition(".")[2], beside, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        return RecipeError(f"unknown key, {hint}there are {', '.join(beside)}", key=key)
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        key = f"{key}.source"
        given = given.get("source") if isinstance(given, dict) else given
    alternatives = [_wanted(mistake) for mistake in mistakes if _walk(mistake["loc"])[0] == _walk(first["loc"])[0]]
    wanted = " or ".join(dict.fromkeys(alternatives))
    if kind in ("missing", "union_tag_not_found"):
        return RecipeError("must be given" if kind == "missing" else f"must be given: {wanted}", key=key)
    return RecipeError(f"must be {wanted}; got {_show(given)}", key=key)


def _wanted(mistake: Any) -> str:
    """What pydantic would have taken, in words."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    bounds = {"greater_than": ("gt", ">"), "greater_than_equal": ("ge", ">="), "less_than": ("lt", "<")}
    bounds["less_than_equal"] = ("le", "<=")
    if kind in bounds:
        name, sign = bounds[kind]
        bound = context[name]
        return f"a number {sign} {bound if isinstance(bound, int) and bound < 2**53 else format(bound, 'g')}"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        sources = (get_args(table.model_fields["source"].annotation) for table in tables(DataSource))
        return _choice([_show(name) for names in sources for name in names])
    words = {
        "int_type": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a text in quotes",
        "string_pattern_mismatch": '"module:function"',
        "list_type": "a list",
        "dict_type": "a table",
        "too_short": "a list with an entry",
        "model_type": "a table",
        "model_attributes_type": "a table",
    }
    if kind == "literal_error":
        return context["expected"].replace("'", '"')
    return words.get(kind) or mistake["msg"]


def _choice(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _show(value: Any) -> str:
    """A value as TOML has it, cut short."""
    text = repr(value) if isinstance(value, float) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
