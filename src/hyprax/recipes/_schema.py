"""What a recipe may say: every key with its type, its default and what is allowed."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ._data_tables import DataSource, Split, Table
from ._engine_tables import IMAGE_NETWORKS, LINEAR, NETWORKS, Evidence, Model, Objective, Training
from ._errors import RecipeError
from ._hyper_tables import Hyper, Leaf, Penalty, Strength

# Which optimizers take which keys of the table [search]; the others are for all.
TAKEN_BY = {
    "learning_rate": ("adam", "sgd", "momentum", "rmsprop"),
    "schedule": ("hoag",),
    "inner": ("fixed",),
    "adjoint": ("fixed",),
    "step_size": ("fixed",),
}

SINGLE_LOOPS = ("soba", "saba", "amigo")
OF_SOLVERS = ("solver", "adjoint", "preconditioner", "terms", "rank", "adjoint_tolerance", "certificate")

# Which methods take which keys and tables; the others are for all.
TAKEN_BY_METHODS = {
    "objective.batch_size": SINGLE_LOOPS,
    "objective.rate": SINGLE_LOOPS,
    "objective.seed": SINGLE_LOOPS,
    **{f"objective.{key}": ("implicit",) for key in OF_SOLVERS if key != "solver"},
    "objective.solver": ("implicit", *SINGLE_LOOPS),
    "objective.inner_tolerance": ("implicit", *SINGLE_LOOPS),
    "training": ("unroll", "evidence"),
    "training.mode": ("unroll",),
    "training.resample": ("unroll",),
    "evidence": ("evidence",),
    "baseline": ("implicit", *SINGLE_LOOPS),
}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


class Search(Table):
    """How the hyperparameters move, in unconstrained coordinates.

    `maid` finds accuracies and step sizes by the certificates; `hoag` has the accuracies of a schedule; `fixed` those
    given.
    """

    optimizer: Literal["adam", "sgd", "momentum", "rmsprop", "maid", "hoag", "fixed"] = "adam"
    learning_rate: float = Field(default=0.05, gt=0, description="of adam, sgd, momentum and rmsprop")
    schedule: Literal["exponential", "quadratic", "cubic"] = Field(default="exponential", description="of hoag")
    inner: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: gradient norm")
    adjoint: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: residual norm")
    step_size: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of fixed; backtracking where not given"
    )
    steps: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _keys_of_the_optimizer(self) -> "Search":
        for key, takers in TAKEN_BY.items():
            given = key in self.model_fields_set and getattr(self, key) is not None
            if given and self.optimizer not in takers:
                allowed = ", ".join(f'"{name}"' for name in takers)
                raise RecipeError(
                    f'given for optimizer = "{self.optimizer}", allowed for {allowed}', key=f"search.{key}"
                )
        for key in ("inner", "adjoint"):
            if self.optimizer == "fixed" and getattr(self, key) is None:
                raise RecipeError('missing, and optimizer = "fixed" asks for it', key=f"search.{key}")
        return self


class Stop(Table):
    """When to stop early."""

    gradient: float = Field(default=1e-6, ge=0)
    patience: Annotated[int, Field(ge=1)] | None = 50
    improvement: float = Field(default=1e-7, ge=0)


class Baseline(Table):
    """The best single strength of a grid, log-spaced from `lo` to `hi`: what the tuned ones are compared with."""

    lo: Strength = 1e-6
    hi: Strength = 1.0
    points: Annotated[int, Field(ge=2)] = 25

    @model_validator(mode="after")
    def _ordered(self) -> "Baseline":
        if not self.lo < self.hi:
            raise RecipeError(f"given {self.lo:g}, allowed is below hi = {self.hi:g}", key="baseline.lo")
        return self


class Recipe(Table):
    """A whole job: data, split, model, what is tuned, how."""

    data: DataSource | None = None
    split: Split = Split()
    model: Model
    hyper: Hyper = Hyper()
    objective: Objective = Objective()
    training: Training = Training()
    evidence: Evidence = Evidence()
    search: Search = Search()
    stop: Stop = Stop()
    baseline: Baseline | None = None

    @property
    def method(self) -> str:
        """The method of the objective, resolved."""
        if self.objective.method != "auto":
            return self.objective.method
        return "unroll" if self.model.kind in NETWORKS else "implicit"

    @property
    def penalty(self) -> Penalty | None:
        """The penalty asked for; a linear model has one in any case."""
        return Penalty() if self.hyper.penalty is None and self.model.kind in LINEAR else self.hyper.penalty

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        kind = self.model.kind
        if self.data is not None and self.data.corrupt and not self.model.classifies:
            raise RecipeError(f"given {self.data.corrupt:g}, allowed where targets are classes", key="data.corrupt")
        if kind == "custom":
            for table in ("hyper", "objective", "training", "evidence", "baseline"):
                if table in self.model_fields_set:
                    raise RecipeError(
                        'given for kind = "custom", allowed for every other: the function decides', key=table
                    )
            return self
        if self.data is None and kind != "loss":
            raise RecipeError(f'missing, and kind = "{kind}" asks for it', key="data")
        self._method_of_the_kind()
        self._keys_of_the_method()
        self._hyper_of_the_model()
        self._shapes()
        if self.data is not None and self.data.intercept and kind in IMAGE_NETWORKS:
            raise RecipeError(
                f'given true, allowed for kind = "{kind}" is false: inputs are images', key="data.intercept"
            )
        if self.data is not None and self.data.scale_targets and (self.model.classifies or kind == "poisson"):
            raise RecipeError("given true, allowed where targets are numbers", key="data.scale_targets")
        if self.split.validation == 0 and self.method != "evidence":
            raise RecipeError("given 0.0, allowed are numbers > 0", key="split.validation")
        return self

    def _method_of_the_kind(self) -> None:
        kind = self.model.kind
        full = ("implicit", *SINGLE_LOOPS)
        allowed = full if kind in LINEAR else ("unroll", "evidence") if kind in NETWORKS else (*full, "unroll")
        if self.method not in allowed:
            raise RecipeError(
                f'given "{self.method}", allowed for kind = "{kind}" are {_quoted(allowed)}', key="objective.method"
            )

    def _keys_of_the_method(self) -> None:
        """Stochastic directions have no accuracy to be asked for; full-batch ones no batches."""
        for dotted, methods in TAKEN_BY_METHODS.items():
            table, _, key = dotted.partition(".")
            given = (getattr(self, table) if key else self) is not None
            given = given and (key or table) in (getattr(self, table) if key else self).model_fields_set
            if given and self.method not in methods:
                raise RecipeError(f'given for method = "{self.method}", allowed for {_quoted(methods)}', key=dotted)
        if self.method != "implicit" and self.search.optimizer in ("maid", "hoag", "fixed"):
            raise RecipeError(
                f'given "{self.search.optimizer}", which asks for accuracies, allowed for method = "{self.method}" are '
                '"adam", "sgd", "momentum", "rmsprop"',
                key="search.optimizer",
            )
        if self.search.optimizer == "maid" and self.objective.certificate == "none":
            raise RecipeError('given "maid", allowed with a certificate other than "none"', key="search.optimizer")
        if self.model.kind == "loss" and self.baseline is not None:
            raise RecipeError('given for kind = "loss", allowed for linear models', key="baseline")

    def _hyper_of_the_model(self) -> None:
        """Which tables of [hyper] there may be, and that one of them moves."""
        kind = self.model.kind
        rates = ("learning_rate", "momentum")
        if self.method == "evidence":
            allowed = ("precision", "noise")
        elif kind == "loss":
            allowed = ("own", *rates) if self.method == "unroll" else ("own",)
        elif kind in LINEAR:
            allowed = ("penalty", "weights")
        else:
            allowed = ("penalty", "weights", *rates, "initial_scale", "inputs", "augmentation")
        given = [name for name in Hyper.model_fields if getattr(self.hyper, name) is not None]
        for name in given:
            if name not in allowed:
                raise RecipeError(
                    f'given for kind = "{kind}" with method = "{self.method}", allowed are {", ".join(allowed)}',
                    key=f"hyper.{name}",
                )
        if kind in LINEAR and "penalty" not in given:
            given.append("penalty")
        if self.method == "evidence" and "precision" not in given:
            given.append("precision")
        fixed = [name for name in given if isinstance(leaf := getattr(self.hyper, name), Leaf) and not leaf.tuned]
        if len(fixed) == len(given):
            raise RecipeError(
                f"nothing is tuned, allowed are tables of {', '.join(allowed)}, one of them not fixed", key="hyper"
            )
        for name in set(rates).intersection(self.hyper.own or {}):
            raise RecipeError(f"given the name of a table of its own, [hyper.{name}]", key=f"hyper.own.{name}")
        for name in rates:
            asked = getattr(self.hyper, name)
            if asked is not None:
                asked.check_start(getattr(self.training, name), f"training.{name}")
        precision = self.hyper.precision
        if precision is not None and precision.shape == "parameter" and self.evidence.estimator == "kfac":
            raise RecipeError(
                'given "parameter", allowed with estimator = "kfac" are "global", "layer"', key="hyper.precision.shape"
            )
        if self.hyper.noise is not None and self.model.classifies:
            raise RecipeError("given for classes, allowed where targets are numbers", key="hyper.noise")

    def _shapes(self) -> None:
        kind, penalty, weights = self.model.kind, self.penalty, self.hyper.weights
        if penalty is not None:
            shapes = (
                ("global", "layer", "weight") if kind in NETWORKS
                else ("global", "class", "feature", "weight", "group") if kind == "softmax"
                else ("global", "feature", "group")
            )  # fmt: skip
            if penalty.shape not in shapes:
                raise RecipeError(
                    f'given "{penalty.shape}", allowed for kind = "{kind}" are {_quoted(shapes)}',
                    key="hyper.penalty.shape",
                )
            if penalty.start == "grid" and self.baseline is None:
                raise RecipeError('given "grid", allowed with a table [baseline]', key="hyper.penalty.start")
            if self.baseline is not None and not penalty.tuned:
                raise RecipeError("given where the penalty is fixed, allowed where it is tuned", key="baseline")
        if weights is not None:
            if weights.shape == "group" and getattr(self.data, "groups", None) is None:
                raise RecipeError('given "group", allowed with data.groups', key="hyper.weights.shape")
            if weights.shape == "class" and not self.model.classifies:
                raise RecipeError('given "class", allowed where targets are classes', key="hyper.weights.shape")
        if self.hyper.inputs is not None:
            if not self.model.classifies:
                raise RecipeError("given for numbers, allowed where targets are classes", key="hyper.inputs")
            for key, clash in (("hyper.weights", weights), ("training.batch_size", self.training.batch_size)):
                if clash is not None:
                    raise RecipeError("given beside [hyper.inputs], allowed is one of them", key=key)
