"""The tables of a recipe that say what is tuned: for each hyperparameter how many, their start and their bounds."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from ._data_tables import Count, Table
from ._errors import RecipeError, left_out

Strength = Annotated[float, Field(ge=1e-100, le=1e100)]
Constraint = Literal["positive", "interval", "log-interval", "fixed"]
BOUNDED = ("interval", "log-interval")


class Leaf(Table):
    """How numbers may move: by their logarithms, between bounds, or not at all."""

    place: ClassVar[str] = ""

    constraint: Constraint = "positive"
    lo: Annotated[float, Field(ge=0, le=1e100)] | None = Field(default=None, description="of an interval")
    hi: Strength | None = Field(default=None, description="of an interval")

    @property
    def tuned(self) -> bool:
        """Whether it moves."""
        return self.constraint != "fixed"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """lo and hi, of an interval."""
        if self.constraint not in BOUNDED:
            return None
        assert self.lo is not None  # the validator below
        assert self.hi is not None
        return self.lo, self.hi

    def check_start(self, start: float, key: str) -> None:
        """Refuse a start outside the bounds, or on them.

        **Raises:** `RecipeError` that names `key`.
        """
        if self.bounds is not None and not self.bounds[0] < start < self.bounds[1]:
            raise RecipeError(
                f"must be between lo = {self.bounds[0]:g} and hi = {self.bounds[1]:g}; got {start:g}", key=key
            )

    @model_validator(mode="after")
    def _bounds(self) -> "Leaf":
        bounded = self.constraint in BOUNDED
        for name in ("lo", "hi"):
            if name in self.model_fields_set and getattr(self, name) is not None and not bounded:
                raise left_out(
                    f"{self.place}.{name}", f'constraint = "{self.constraint}"', '"interval" and "log-interval"'
                )
            if getattr(self, name) is None and bounded:
                raise RecipeError(f'must be given with constraint = "{self.constraint}"', key=f"{self.place}.{name}")
        if bounded and self.lo is not None and self.hi is not None:
            if not self.lo < self.hi:
                raise RecipeError(f"must be below hi = {self.hi:g}; got {self.lo:g}", key=f"{self.place}.lo")
            if self.constraint == "log-interval" and self.lo < 1e-100:
                raise RecipeError(
                    f'must be at least 1e-100 with constraint = "log-interval"; got {self.lo:g}',
                    key=f"{self.place}.lo",
                )
            start = getattr(self, "start", None)
            if isinstance(start, float):
                self.check_start(start, f"{self.place}.start")
        return self


class Penalty(Leaf):
    """The strengths of the l2 penalty: how many, where they start, and between what bounds they move."""

    place = "hyper.penalty"

    shape: Literal["global", "class", "feature", "weight", "group", "column", "kind", "layer"] = Field(
        default="global",
        description="what each strength acts on; column: one of a table, with all its categories; kind: columns, "
        "squares and products of data.expand",
    )
    groups: (
        Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
        | Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
        | None
    ) = Field(
        default=None,
        description='of shape "group": lists of features by name, "a..c" for those from a to c, the rest being one '
        "more group; or the number of the group of each feature",
    )
    start: Strength | Literal["grid"] | None = Field(
        default=None,
        description='a strength, or "grid" for the best single one; left out, that where there is a grid',
    )

    @model_validator(mode="after")
    def _groups(self) -> "Penalty":
        if self.shape == "group" and self.groups is None:
            raise RecipeError('must be given with shape = "group"', key="hyper.penalty.groups")
        if self.shape != "group" and self.groups is not None:
            raise left_out("hyper.penalty.groups", f'shape = "{self.shape}"', '"group"')
        if not self.tuned and self.shape != "global":
            raise RecipeError(
                f'must be "global" with constraint = "fixed"; got "{self.shape}"', key="hyper.penalty.shape"
            )
        return self


class Weights(Leaf):
    """How much each training example counts: hyper-cleaning, where labels may be wrong."""

    place = "hyper.weights"

    constraint: Literal["positive", "interval", "log-interval"] = "interval"  # pyright: ignore[reportIncompatibleVariableOverride]  # another choice than other leaves have, in a frozen table
    lo: Annotated[float, Field(ge=0, le=1e100)] | None = Field(default=0.0, description="of an interval")
    hi: Strength | None = Field(default=1.0, description="of an interval")
    shape: Literal["example", "class", "group"] = Field(
        default="example", description="one for each training example, class, or group of data.groups"
    )
    start: Strength = 0.5


class Rate(Leaf):
    """The learning rates of a training run; they start at `training.learning_rate`."""

    place = "hyper.learning_rate"

    shape: Literal["global", "layer", "step", "layer-step"] = "global"


class Momentum(Leaf):
    """The momenta of a training run; they start at `training.momentum`."""

    place = "hyper.momentum"

    constraint: Constraint = "interval"
    lo: Annotated[float, Field(ge=0, le=1e100)] | None = Field(default=0.0, description="of an interval")
    hi: Strength | None = Field(default=1.0, description="of an interval")
    shape: Literal["global", "layer", "step", "layer-step"] = "global"


class InitialScale(Leaf):
    """Factors of the initial weights, biases and gains aside."""

    place = "hyper.initial_scale"

    shape: Literal["global", "layer"] = "global"
    start: Strength = 1.0


class Inputs(Table):
    """Training data that are tuned themselves: the run sees these rows and no others."""

    rows_per_class: Count = 1
    start: Literal["examples", "noise"] = Field(
        default="examples", description="rows of the training part, or normal noise about their mean"
    )


class Augmentation(Leaf):
    """How strongly training inputs are disturbed at random, afresh at every step."""

    place = "hyper.augmentation"

    kind: Literal["noise", "shift"] = Field(
        default="noise", description="normal noise on every entry; or a shift of the image by normal distances"
    )
    shape: Literal["global", "feature"] = "global"
    start: Strength = Field(default=0.1, description="a standard deviation, of shifts in pixels")

    @model_validator(mode="after")
    def _shift_is_global(self) -> "Augmentation":
        if self.kind == "shift" and self.shape == "feature":
            raise RecipeError('must be "global" for kind = "shift"; got "feature"', key="hyper.augmentation.shape")
        return self


class Precision(Leaf):
    """The precisions of the Gaussian prior of the weights, in the evidence."""

    place = "hyper.precision"

    shape: Literal["global", "layer", "parameter"] = "layer"
    start: Strength = 1.0


class Noise(Leaf):
    """The standard deviation of the noise of numbers, in the evidence."""

    place = "hyper.noise"

    start: Strength = Field(default=1.0, description="in units of the targets; left out, their spread")


Numbers = float | list[float] | list[list[float]]


class Own(Leaf):
    """A hyperparameter of a loss of one's own, by its name."""

    place = "hyper.own"

    constraint: Literal["free", "positive", "interval", "log-interval"] = "positive"  # pyright: ignore[reportIncompatibleVariableOverride]  # another choice than other leaves have, in a frozen table
    start: Numbers = Field(default=1e-3, description="a number, or lists of them")
    shape: list[Count] | None = Field(default=None, description="one number is repeated to this shape")


class Hyper(Table):
    """What is tuned: a table for each hyperparameter."""

    penalty: Penalty | None = None
    weights: Weights | None = None
    learning_rate: Rate | None = None
    momentum: Momentum | None = None
    initial_scale: InitialScale | None = None
    inputs: Inputs | None = None
    augmentation: Augmentation | None = None
    precision: Precision | None = None
    noise: Noise | None = None
    own: dict[str, Own] | None = None
