"""What a recipe may say: every key with its type, its default and its range."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ._data_tables import Count, DataSource, Split, Table
from ._engine_tables import IMAGE_NETWORKS, LINEAR, NETWORKS, Evidence, Model, Objective, Training
from ._errors import RecipeError, left_out, quoted
from ._hyper_tables import Hyper, Leaf, Penalty, Strength

# Which optimizers take which keys of the table [search]; the others are for all.
TAKEN_BY = {
    "learning_rate": ("auto", "adam", "sgd", "momentum", "rmsprop"),
    "schedule": ("hoag",),
    "inner": ("fixed",),
    "adjoint": ("fixed",),
    "step_size": ("fixed",),
}

# Below so many rows, of so many columns, folds are the criterion of linear models.
FOLDS_BELOW, FOLDS_COLUMNS = 5000, 1000
USUAL_STRENGTH = 1e-3

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


class Search(Table):
    """How the hyperparameters move, in unconstrained coordinates.

    `lbfgs` takes quasi-Newton steps and needs no rate; `gated` moves only what rises above its noise; `maid` finds
    accuracies and step sizes by the certificates; `hoag` has the accuracies of a schedule; `fixed` those given.
    """

    optimizer: Literal["auto", "lbfgs", "gated", "adam", "sgd", "momentum", "rmsprop", "maid", "hoag", "fixed"] = Field(
        default="auto",
        description="auto: lbfgs; adam where values are noisy or a learning rate is given; gated where there are more "
        "than ten hyperparameters, and their noise is measured or can be for little",
    )
    learning_rate: float = Field(default=0.05, gt=0, description="of adam, sgd, momentum and rmsprop")
    schedule: Literal["exponential", "quadratic", "cubic"] = Field(default="exponential", description="of hoag")
    inner: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: gradient norm")
    adjoint: Annotated[float, Field(gt=0)] | None = Field(default=None, description="of fixed: residual norm")
    step_size: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of fixed; backtracking where not given"
    )
    steps: Count = 100
    hold_back: Literal["auto", "path", "none"] = Field(
        default="auto",
        description="path: a prior holds penalties together, its strength chosen on nested folds; auto: where folds "
        "judge more than a handful",
    )

    @model_validator(mode="after")
    def _keys_of_the_optimizer(self) -> "Search":
        for key, takers in TAKEN_BY.items():
            given = key in self.model_fields_set and getattr(self, key) is not None
            if given and self.optimizer not in takers:
                shown = quoted(name for name in takers if name != "auto")
                raise left_out(f"search.{key}", f'optimizer = "{self.optimizer}"', shown)
        for key in ("inner", "adjoint"):
            if self.optimizer == "fixed" and getattr(self, key) is None:
                raise RecipeError('must be given with optimizer = "fixed"', key=f"search.{key}")
        return self


class Stop(Table):
    """When to stop early."""

    gradient: float = Field(default=1e-6, ge=0)
    patience: Count | None = 50
    improvement: float = Field(default=1e-7, ge=0)


class Baseline(Table):
    """The best single strength of a grid, log-spaced from `lo` to `hi`: what the tuned ones are compared with."""

    lo: Strength = 1e-6
    hi: Strength = 10.0
    points: Annotated[int, Field(ge=2, lt=2**20)] = 25

    @model_validator(mode="after")
    def _ordered(self) -> "Baseline":
        if not self.lo < self.hi:
            raise RecipeError(f"must be below hi = {self.hi:g}; got {self.lo:g}", key="baseline.lo")
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
    def grid(self) -> Baseline | None:
        """The grid of single penalties that the tuned ones are compared with: that asked for, or the usual one."""
        penalty = self.penalty
        usual = self.model.kind in LINEAR and self.method == "implicit" and self.hyper.weights is None
        return (
            Baseline() if self.baseline is None and usual and penalty is not None and penalty.tuned else self.baseline
        )

    def folds(self, rows: int, columns: int) -> bool:
        """Whether hyperparameters are tuned for the loss on folds of so many rows."""
        asked, outputs = self.split.criterion, 1 if self.model.kind != "softmax" else 2
        able = self.model.kind in LINEAR and self.method == "implicit" and self.hyper.weights is None
        if asked != "auto" or not able or self.data is None or self.data.corrupt:
            return asked == "folds"
        plain = "validation" not in self.split.model_fields_set
        return plain and rows < FOLDS_BELOW and columns * outputs <= FOLDS_COLUMNS

    @property
    def start(self) -> float | None:
        """Where penalties start; `None` for the best single one of the grid."""
        penalty = self.penalty
        assert penalty is not None  # of models with a penalty
        if penalty.start is None:
            return USUAL_STRENGTH if self.grid is None else None
        return None if penalty.start == "grid" else penalty.start

    @property
    def penalty(self) -> Penalty | None:
        """The penalty asked for; a linear model has one in any case."""
        return Penalty() if self.hyper.penalty is None and self.model.kind in LINEAR else self.hyper.penalty

    @model_validator(mode="after")
    def _complete(self) -> "Recipe":
        kind = self.model.kind
        if self.data is not None and self.data.corrupt and not self.model.classifies:
            raise RecipeError(f"must be 0 where targets are numbers; got {self.data.corrupt:g}", key="data.corrupt")
        judged = kind in LINEAR and self.method == "implicit" and self.hyper.weights is None and self.grid is not None
        if getattr(self.data, "segments", None) is not None and not judged:
            raise RecipeError(
                'must be left out here: the test losses are those of linear models with method = "implicit", a penalty '
                "that is tuned, and no [hyper.weights]",
                key="data.segments",
            )
        if kind == "custom":
            for table in ("hyper", "objective", "training", "evidence", "baseline"):
                if table in self.model_fields_set:
                    raise RecipeError('must be left out for kind = "custom": the function decides', key=table)
            if self.data is not None and self.data.class_weight is not None:
                raise left_out("data.class_weight", 'kind = "custom"', '"softmax" and "logistic"')
            return self
        if self.data is None and kind != "loss":
            raise RecipeError(f'must be given for kind = "{kind}"', key="data")
        self._method_of_the_kind()
        self._keys_of_the_method()
        self._hyper_of_the_model()
        self._shapes()
        if self.data is not None and self.data.intercept and kind in IMAGE_NETWORKS:
            raise RecipeError(f'must be false for kind = "{kind}": inputs are images', key="data.intercept")
        if self.data is not None and self.data.class_weight is not None and kind not in ("softmax", "logistic"):
            raise left_out("data.class_weight", f'kind = "{kind}"', '"softmax" and "logistic"')
        if self.data is not None and self.data.scale_targets and (self.model.classifies or kind == "poisson"):
            raise RecipeError("must be false where targets are classes or counts", key="data.scale_targets")
        exposure = getattr(self.data, "exposure", None)
        if exposure is not None and (kind != "poisson" or self.method != "implicit"):
            there = f'kind = "{kind}"' if kind != "poisson" else f'method = "{self.method}"'
            raise left_out("data.exposure", there, 'kind = "poisson" with method = "implicit"')
        if self.split.criterion == "folds":
            able = kind in LINEAR and self.method == "implicit"
            if not able or self.hyper.weights is not None or (self.data is not None and self.data.corrupt):
                raise RecipeError(
                    'must be "hold-out" or "auto": folds are for linear models with method = "implicit", without '
                    "[hyper.weights] and data.corrupt",
                    key="split.criterion",
                )
        if self.search.hold_back == "path" and self.split.criterion != "folds":
            raise RecipeError('must be "auto" or "none" without split.criterion = "folds"', key="search.hold_back")
        if self.split.validation == 0 and self.method != "evidence" and self.split.criterion != "folds":
            raise RecipeError(f'must be above 0 with method = "{self.method}"; got 0.0', key="split.validation")
        return self

    def _method_of_the_kind(self) -> None:
        kind = self.model.kind
        full = ("implicit", *SINGLE_LOOPS)
        allowed = full if kind in LINEAR else ("unroll", "evidence") if kind in NETWORKS else (*full, "unroll")
        if self.method not in allowed:
            raise RecipeError(
                f'must be {quoted(allowed)} for kind = "{kind}"; got "{self.method}"', key="objective.method"
            )

    def _keys_of_the_method(self) -> None:
        """Stochastic directions have no accuracy to be asked for; full-batch ones no batches."""
        for dotted, methods in TAKEN_BY_METHODS.items():
            table, _, key = dotted.partition(".")
            given = (getattr(self, table) if key else self) is not None
            given = given and (key or table) in (getattr(self, table) if key else self).model_fields_set
            if given and self.method not in methods:
                raise left_out(dotted, f'method = "{self.method}"', quoted(methods))
        if self.method != "implicit" and self.search.optimizer in ("maid", "hoag", "fixed"):
            raise RecipeError(
                f'must be "adam", "sgd", "momentum" or "rmsprop" with method = "{self.method}", which has no accuracy '
                f'to choose; got "{self.search.optimizer}"',
                key="search.optimizer",
            )
        if self.search.optimizer == "maid" and self.objective.certificate == "none":
            raise RecipeError(
                'must not be "maid" with certificate = "none": it goes by certificates', key="search.optimizer"
            )
        if self.model.kind == "loss" and self.baseline is not None:
            raise left_out("baseline", 'kind = "loss"', "linear models")

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
                    f'must be left out for kind = "{kind}" with method = "{self.method}", which has '
                    f"{', '.join(allowed)}",
                    key=f"hyper.{name}",
                )
        if kind in LINEAR and "penalty" not in given:
            given.append("penalty")
        if self.method == "evidence" and "precision" not in given:
            given.append("precision")
        fixed = [name for name in given if isinstance(leaf := getattr(self.hyper, name), Leaf) and not leaf.tuned]
        if len(fixed) == len(given):
            raise RecipeError(f"must have a table of what is tuned, not fixed: {', '.join(allowed)}", key="hyper")
        for name in set(rates).intersection(self.hyper.own or {}):
            raise RecipeError(f"must have another name: [hyper.{name}] is a table of its own", key=f"hyper.own.{name}")
        for name in rates:
            asked = getattr(self.hyper, name)
            if asked is not None:
                asked.check_start(getattr(self.training, name), f"training.{name}")
        precision = self.hyper.precision
        if precision is not None and precision.shape == "parameter" and self.evidence.estimator == "kfac":
            raise RecipeError(
                'must be "global" or "layer" with estimator = "kfac"; got "parameter"', key="hyper.precision.shape"
            )
        if self.hyper.noise is not None and self.model.classifies:
            raise left_out("hyper.noise", "classes", "targets that are numbers")

    def _shapes(self) -> None:
        kind, penalty, weights = self.model.kind, self.penalty, self.hyper.weights
        if penalty is not None:
            shapes = (
                ("global", "layer", "weight") if kind in NETWORKS
                else ("global", "class", "feature", "weight", "group", "column", "kind") if kind == "softmax"
                else ("global", "feature", "group", "column", "kind")
            )  # fmt: skip
            if penalty.shape not in shapes:
                raise RecipeError(
                    f'must be {quoted(shapes)} for kind = "{kind}"; got "{penalty.shape}"',
                    key="hyper.penalty.shape",
                )
            if penalty.start == "grid" and self.grid is None:
                raise RecipeError('must be a number without a table [baseline]; got "grid"', key="hyper.penalty.start")
            if penalty.shape == "kind" and (self.data is None or self.data.expand == "none"):
                raise RecipeError('must not be "kind" with data.expand = "none"', key="hyper.penalty.shape")
            if self.baseline is not None and not penalty.tuned:
                raise left_out("baseline", "a penalty that is fixed", "one that is tuned")
        if self.split.by == "groups" and getattr(self.data, "groups", None) is None:
            raise RecipeError('must be "rows" or "time" without data.groups; got "groups"', key="split.by")
        if weights is not None:
            if weights.shape == "group" and getattr(self.data, "groups", None) is None:
                raise RecipeError(
                    'must be "example" or "class" without data.groups; got "group"', key="hyper.weights.shape"
                )
            if weights.shape == "class" and not self.model.classifies:
                raise RecipeError(
                    'must be "example" or "group" where targets are numbers; got "class"', key="hyper.weights.shape"
                )
        if self.hyper.inputs is not None:
            if not self.model.classifies:
                raise left_out("hyper.inputs", "numbers", "targets that are classes")
            for key, clash in (("hyper.weights", weights), ("training.batch_size", self.training.batch_size)):
                if clash is not None:
                    raise RecipeError("must be left out beside [hyper.inputs]", key=key)
