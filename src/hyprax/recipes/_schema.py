"""What a recipe may say: every key with its type, its default and what is allowed."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ._errors import RecipeError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# Which optimisers take which keys of the table [search]; the others are for all.
TAKEN_BY = {
    "learning_rate": ("adam", "sgd", "momentum", "rmsprop"),
    "schedule": ("hoag",),
    "inner": ("fixed",),
    "adjoint": ("fixed",),
    "step_size": ("fixed",),
}

Strength = Annotated[float, Field(ge=1e-100, le=1e100)]


class _Data(_Table):
    scale: Literal["none", "standard", "minmax", "unit"] = Field(
        default="none",
        description="by the training part: standard, each column to mean 0 and deviation 1; minmax, each column to "
        "[0, 1]; unit, all divided by the largest entry",
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
    features: Annotated[list[str], Field(min_length=1)] | None = Field(
        default=None, description="the columns to predict from; default all others"
    )


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
    """What is trained. `custom`: `function = "module:function"`, found beside the recipe.

    The function is given the `Splits` of the data (`None` without a table `[data]`), and returns an objective and the
    hyperparameters to start from.
    """

    kind: Literal["softmax", "logistic", "ridge", "custom"]
    function: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    targets: Literal["classes", "numbers"] | None = Field(
        default=None, description="of a custom model: classes are numbered from 0 and split in proportion"
    )

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        return self.kind in ("softmax", "logistic") or self.targets == "classes"

    @model_validator(mode="after")
    def _function_for_custom(self) -> "Model":
        if self.kind == "custom" and self.function is None:
            raise RecipeError('missing, and kind = "custom" asks for it: "module:function"', key="model.function")
        for name in ("function", "targets"):
            if self.kind != "custom" and getattr(self, name) is not None:
                raise RecipeError(f'given for kind = "{self.kind}", allowed for "custom" alone', key=f"model.{name}")
        return self


class Penalty(_Table):
    """The strengths of the l2 penalty: how many, where they start, and between what bounds they move."""

    shape: Literal["global", "class", "feature", "weight"] = Field(
        default="global", description="what each strength acts on"
    )
    start: Strength | Literal["grid"] = Field(
        default=1e-3, description='a strength, or "grid" for the best single one of the baseline'
    )
    constraint: Literal["positive", "interval", "log-interval"] = "positive"
    lo: Annotated[float, Field(ge=0, le=1e100)] | None = Field(default=None, description="of an interval")
    hi: Strength | None = Field(default=None, description="of an interval")

    @model_validator(mode="after")
    def _bounds(self) -> "Penalty":
        for name in ("lo", "hi"):
            given = getattr(self, name) is not None
            if given and self.constraint == "positive":
                raise RecipeError(
                    'given without an interval, allowed with constraint = "interval" or "log-interval"',
                    key=f"hyper.penalty.{name}",
                )
            if not given and self.constraint != "positive":
                raise RecipeError(
                    f'missing, and constraint = "{self.constraint}" asks for it', key=f"hyper.penalty.{name}"
                )
        if self.lo is not None and self.hi is not None:
            if not self.lo < self.hi:
                raise RecipeError(f"given {self.lo:g}, allowed is below hi = {self.hi:g}", key="hyper.penalty.lo")
            if self.constraint == "log-interval" and self.lo < 1e-100:
                raise RecipeError(
                    f'given {self.lo:g}, allowed with constraint = "log-interval" are numbers >= 1e-100',
                    key="hyper.penalty.lo",
                )
            if isinstance(self.start, float) and not self.lo < self.start < self.hi:
                raise RecipeError(
                    f"given {self.start:g}, allowed is between lo = {self.lo:g} and hi = {self.hi:g}",
                    key="hyper.penalty.start",
                )
        return self


class Hyper(_Table):
    """What is tuned."""

    penalty: Penalty = Penalty()


class Objective(_Table):
    """How each hypergradient is computed, how accurately, and what certifies it.

    `implicit` solves the training problem on all data; `soba`, `saba` and `amigo` take stochastic steps on minibatches,
    without certificates.
    """

    method: Literal["implicit", "soba", "saba", "amigo"] = "implicit"
    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, description="of the stochastic methods")
    seed: int = Field(default=0, ge=0, description="of the stochastic methods")
    solver: Literal["newton", "lbfgs"] = "newton"
    inner_tolerance: float = Field(default=1e-8, gt=0, description="gradient norm of the training loss")
    adjoint_tolerance: float = Field(default=1e-8, gt=0, description="relative residual of the adjoint system")
    certificate: Literal["look-ahead", "ehrhardt-roberts", "none"] = "look-ahead"


class Search(_Table):
    """How the hyperparameters move, in unconstrained coordinates.

    `maid` finds accuracies and step sizes by the certificates; `hoag` has the accuracies of a schedule; `fixed` those
    given.
    """

    optimiser: Literal["adam", "sgd", "momentum", "rmsprop", "maid", "hoag", "fixed"] = "adam"
    learning_rate: float = Field(default=0.05, gt=0, description="of adam, sgd, momentum and rmsprop")
    schedule: Literal["exponential", "quadratic", "cubic"] = Field(default="exponential", description="of hoag")
    inner: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: gradient norm")
    adjoint: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: residual norm")
    step_size: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of fixed; backtracking where not given"
    )
    steps: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _keys_of_the_optimiser(self) -> "Search":
        for key, takers in TAKEN_BY.items():
            given = key in self.model_fields_set and getattr(self, key) is not None
            if given and self.optimiser not in takers:
                allowed = ", ".join(f'"{name}"' for name in takers)
                raise RecipeError(
                    f'given for optimiser = "{self.optimiser}", allowed for {allowed}', key=f"search.{key}"
                )
        for key in ("inner", "adjoint"):
            if self.optimiser == "fixed" and getattr(self, key) is None:
                raise RecipeError('missing, and optimiser = "fixed" asks for it', key=f"search.{key}")
        return self


class Stop(_Table):
    """When to stop early."""

    gradient: float = Field(default=1e-6, ge=0)
    patience: Annotated[int, Field(ge=1)] | None = 50
    improvement: float = Field(default=1e-7, ge=0)


class Baseline(_Table):
    """The best single strength of a grid, log-spaced from `lo` to `hi`: what the tuned ones are compared with."""

    lo: Strength = 1e-6
    hi: Strength = 1.0
    points: Annotated[int, Field(ge=2)] = 25

    @model_validator(mode="after")
    def _ordered(self) -> "Baseline":
        if not self.lo < self.hi:
            raise RecipeError(f"given {self.lo:g}, allowed is below hi = {self.hi:g}", key="baseline.lo")
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
        kind, shape = self.model.kind, self.hyper.penalty.shape
        if kind == "custom":
            for table in ("hyper", "objective", "baseline"):
                if table in self.model_fields_set:
                    raise RecipeError(
                        'given for kind = "custom", allowed for every other: the function decides', key=table
                    )
            return self
        if self.data is None:
            raise RecipeError(f'missing, and kind = "{kind}" asks for it', key="data")
        if self.hyper.penalty.start == "grid" and self.baseline is None:
            raise RecipeError('given "grid", allowed with a table [baseline]', key="hyper.penalty.start")
        self._keys_of_the_method()
        if kind in ("logistic", "ridge") and shape in ("class", "weight"):
            raise RecipeError(
                f'given "{shape}", allowed for kind = "{kind}" are "global", "feature"', key="hyper.penalty.shape"
            )
        return self

    def _keys_of_the_method(self) -> None:
        """Stochastic directions have no accuracy to be asked for; full-batch ones no batches."""
        method, given = self.objective.method, self.objective.model_fields_set
        for key in ("batch_size", "seed"):
            if method == "implicit" and key in given:
                raise RecipeError(
                    'given for method = "implicit", allowed for "soba", "saba", "amigo"', key=f"objective.{key}"
                )
        if method == "implicit":
            return
        for key in ("certificate", "adjoint_tolerance"):
            if key in given:
                raise RecipeError(f'given for method = "{method}", allowed for "implicit"', key=f"objective.{key}")
        if self.search.optimiser in ("maid", "hoag", "fixed"):
            raise RecipeError(
                f'given "{self.search.optimiser}", which asks for accuracies, allowed for method = "{method}" are '
                '"adam", "sgd", "momentum", "rmsprop"',
                key="search.optimiser",
            )
