"""What a recipe may say: every key with its type, its default and what is allowed."""

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ._errors import RecipeError, line_of

SKLEARN_SETS = ("breast_cancer", "diabetes", "digits", "iris", "wine")
NAMED_SETS = ("fashion-mnist", "mnist")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Data(_Table):
    scale: Literal["none", "standard", "unit"] = Field(
        default="none",
        description="standard: mean 0, deviation 1; unit: divided by the largest entry; of the training part",
    )
    intercept: bool = Field(default=False, description="add a column of ones, penalised like any feature")
    rows: Annotated[int, Field(ge=1)] | None = Field(default=None, description="use so many rows, drawn at random")


class SklearnData(_Data):
    """A set that ships with scikit-learn."""

    source: Literal["sklearn"]
    name: Literal["breast_cancer", "diabetes", "digits", "iris", "wine"]


class CsvData(_Data):
    """A table with a header line; numbers everywhere but in the target."""

    source: Literal["csv"]
    path: str
    target: str = Field(description="the column to predict")
    features: list[str] | None = Field(default=None, description="the columns to predict from; default all others")


class NpzData(_Data):
    """NumPy arrays; nothing is unpickled."""

    source: Literal["npz"]
    path: str
    inputs: str = "X"
    targets: str = "y"


class IdxData(_Data):
    """Two IDX files, plain or .gz, as of MNIST."""

    source: Literal["idx"]
    inputs: str
    targets: str


class OpenmlData(_Data):
    """A set fetched from OpenML by name."""

    source: Literal["openml"]
    name: str
    version: int | Literal["active"] = "active"


class NamedData(_Data):
    """MNIST or Fashion-MNIST: from the folder HYPRAX_DATA where it is set, otherwise from OpenML."""

    source: Literal["named"]
    name: Literal["fashion-mnist", "mnist"]


DataSource = Annotated[
    SklearnData | CsvData | NpzData | IdxData | OpenmlData | NamedData, Field(discriminator="source")
]


class Split(_Table):
    """Fractions of the rows, drawn at random; classes in proportion."""

    train: float = Field(default=0.5, gt=0, lt=1)
    validation: float = Field(default=0.25, gt=0, lt=1)
    test: float = Field(default=0.25, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _at_most_everything(self) -> "Split":
        total = self.train + self.validation + self.test
        if total > 1 + 1e-9:
            raise ValueError(f"given fractions with the sum {total:g}, allowed is at most 1")
        return self


class Model(_Table):
    """What is trained. `custom`: `function = "module:function"`, found beside the recipe."""

    kind: Literal["softmax", "logistic", "ridge", "custom"]
    function: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")

    @model_validator(mode="after")
    def _function_for_custom(self) -> "Model":
        if (self.kind == "custom") != (self.function is not None):
            raise ValueError('given `function` without kind = "custom" or the reverse, allowed is both or neither')
        return self


class Penalty(_Table):
    """The strengths of the l2 penalty: how many, where they start, and between what bounds they move."""

    shape: Literal["global", "class", "feature", "weight"] = "global"
    start: Annotated[float, Field(gt=0)] | Literal["grid"] = Field(
        default=1e-3, description='a strength, or "grid" for the best single one of the baseline'
    )
    constraint: Literal["positive", "interval", "log-interval"] = "positive"
    lo: float | None = Field(default=None, ge=0)
    hi: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _bounds(self) -> "Penalty":
        bounded = self.constraint != "positive"
        if bounded != (self.lo is not None and self.hi is not None) or (not bounded and (self.lo or self.hi)):
            raise ValueError("given `lo`, `hi` without an interval or the reverse, allowed is both or neither")
        if self.lo is not None and self.hi is not None:
            if not self.lo < self.hi or (self.constraint == "log-interval" and self.lo <= 0):
                raise ValueError(f"given lo = {self.lo:g}, hi = {self.hi:g}, allowed is lo < hi, and lo > 0 for logs")
            if isinstance(self.start, float) and not self.lo < self.start < self.hi:
                raise ValueError(f"given start = {self.start:g}, allowed is between lo and hi")
        return self


class Hyper(_Table):
    """What is tuned."""

    penalty: Penalty = Penalty()


class Objective(_Table):
    """How accurately each hypergradient is computed, and what certifies it."""

    solver: Literal["newton", "lbfgs"] = "newton"
    inner_tolerance: float = Field(default=1e-8, gt=0, description="gradient norm of the training loss")
    adjoint_tolerance: float = Field(default=1e-8, gt=0, description="relative residual of the adjoint system")
    certificate: Literal["look-ahead", "ehrhardt-roberts", "none"] = "look-ahead"


class Search(_Table):
    """How the hyperparameters move, in unconstrained coordinates."""

    optimiser: Literal["adam", "sgd", "momentum", "rmsprop"] = "adam"
    learning_rate: float = Field(default=0.05, gt=0)
    steps: int = Field(default=100, ge=1)


class Stop(_Table):
    """When to stop early."""

    gradient: float = Field(default=1e-6, ge=0)
    patience: Annotated[int, Field(ge=1)] | None = 50
    improvement: float = Field(default=1e-7, ge=0)


class Baseline(_Table):
    """The best single strength of a grid, log-spaced from `lo` to `hi`: what the tuned ones are compared with."""

    lo: float = Field(default=1e-6, gt=0)
    hi: float = Field(default=1.0, gt=0)
    points: int = Field(default=25, ge=2)

    @model_validator(mode="after")
    def _ordered(self) -> "Baseline":
        if not self.lo < self.hi:
            raise ValueError(f"given lo = {self.lo:g}, hi = {self.hi:g}, allowed is lo < hi")
        return self


class Recipe(_Table):
    """A whole job: data, split, model, what is tuned, how."""

    data: DataSource | None = None
    split: Split = Split()
    model: Model
    hyper: Hyper = Hyper()
    objective: Objective = Objective()
    search: Search = Search()
    stop: Stop = Stop()
    baseline: Baseline | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        if self.data is None and self.model.kind != "custom":
            raise ValueError("given no table [data], allowed is one for every model but a custom one")
        if self.hyper.penalty.start == "grid" and self.baseline is None:
            raise ValueError('given hyper.penalty.start = "grid" without a table [baseline], allowed is both')
        if self.model.kind in ("logistic", "ridge") and self.hyper.penalty.shape in ("class", "weight"):
            raise ValueError(
                f'given hyper.penalty.shape = "{self.hyper.penalty.shape}" for kind = "{self.model.kind}", '
                'allowed are "global" and "feature"'
            )
        return self


def read_recipe(path: Path, settings: Iterable[str] = ()) -> tuple[Recipe, str]:
    """The recipe in a TOML file, with `key=value` settings over it, and the text of the file.

    **Raises:** `RecipeError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except FileNotFoundError:
        raise RecipeError("there is no such file", file=path) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"not TOML: {error}", file=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot be read ({error})", file=path) from None
    given = {key: _set(tree, key, value) for key, value in map(_setting, settings)}
    try:
        return Recipe.model_validate(tree), text
    except pydantic.ValidationError as error:
        key, message = _explain(error.errors()[0])
        if any(key == name or key.startswith(name + ".") for name in given):
            raise RecipeError(message, key=key, file="--set") from None
        raise RecipeError(message, key=key, file=path, line=line_of(text, key.split("."))) from None


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"given {text!r}, allowed is key=value, such as search.steps=200", file="--set")
    return key.strip(), value.strip()


def _set(tree: dict[str, Any], key: str, value: str) -> Any:
    """Set a dotted key; the value is TOML, or a string where it is not."""
    *tables, last = key.split(".")
    for table in tables:
        tree = tree.setdefault(table, {})
        if not isinstance(tree, dict):
            raise RecipeError(f"given a key below {table}, which is a value and not a table", key=key, file="--set")
    try:
        tree[last] = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        tree[last] = value
    return tree[last]


def _explain(error: Any) -> tuple[str, str]:
    """The dotted key of a validation error, and the error in our words."""
    location = [str(part) for part in error["loc"] if str(part) not in ("float", "int", "none", "constrained-float")]
    # The tag of a discriminated union stands in the location, and is no key.
    if len(location) > 1 and location[0] == "data":
        location = [location[0], *location[2:]]
    location = [part for part in location if not part.startswith(("literal[", "constrained"))]
    key, kind, message = ".".join(location), error["type"], error["msg"]
    if kind == "extra_forbidden":
        known = _keys_beside(error["loc"])
        close = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return key, f"unknown key; {hint}Allowed are {', '.join(known)}"
    if kind == "missing":
        return key, "missing, and there is no default"
    if kind == "union_tag_not_found":
        return f"{key}.source", "missing; allowed are csv, idx, named, npz, openml, sklearn"
    if kind == "union_tag_invalid":
        return f"{key}.source", f"given {error['ctx']['tag']!r}, allowed are {error['ctx']['expected_tags']}"
    if kind == "value_error":
        return key, str(error["ctx"]["error"])
    if kind == "literal_error":
        return key, f"given {error['input']!r}, allowed are {error['ctx']['expected']}"
    return key, f"given {error['input']!r}: {message[0].lower()}{message[1:]}"


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    """The keys allowed in the table that a location's last part stands in."""
    model: Any = Recipe
    sources = {"sklearn": SklearnData, "csv": CsvData, "npz": NpzData, "idx": IdxData, "openml": OpenmlData}
    sources["named"] = NamedData
    for part in location[:-1]:
        if part in sources and model is None:
            model = sources[part]
        elif part == "data":
            model = None
        else:
            model = model.model_fields[part].annotation
            model = Baseline if part == "baseline" else model
    return sorted(model.model_fields)
