"""The tables of a recipe that say what is trained, and how hypergradients are computed."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ._data_tables import Count, Seed, Table
from ._errors import RecipeError, left_out, quoted
from ._hyper_tables import Numbers

LINEAR = ("softmax", "logistic", "ridge", "poisson", "pseudo-huber")
IMAGE_NETWORKS = ("cnn", "resnet")
NETWORKS = ("mlp", *IMAGE_NETWORKS)
FUNCTION = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"

# Which kinds take which keys of the table [model]; the others are for all.
KEYS_OF_KINDS = {
    "function": ("loss", "custom"),
    "outer": ("loss",),
    "params": ("loss",),
    "targets": (*NETWORKS, "loss", "custom"),
    "delta": ("pseudo-huber",),
    "width": NETWORKS,
    "depth": NETWORKS,
    "activation": NETWORKS,
    "norm": ("resnet",),
}


class Model(Table):
    """What is trained. Functions are `"module:function"`, found beside the recipe."""

    kind: Literal["softmax", "logistic", "ridge", "poisson", "pseudo-huber", "mlp", "cnn", "resnet", "loss", "custom"]
    function: str | None = Field(
        default=None, pattern=FUNCTION, description="of a loss: (params, hyper, batch); of a custom model: (splits)"
    )
    outer: str | None = Field(
        default=None, pattern=FUNCTION, description="of a loss: what is tuned for; left out, the same function"
    )
    params: Annotated[str, Field(pattern=FUNCTION)] | dict[str, Numbers] | None = Field(
        default=None, description="of a loss: where weights start, by name, or a function (splits)"
    )
    targets: Literal["classes", "numbers"] | None = Field(
        default=None, description="classes are numbered from 0 and split in proportion"
    )
    delta: float = Field(default=1.0, gt=0, description="of pseudo-huber: the residual beyond which a loss is linear")
    width: Count = Field(default=32, description="units of a layer, channels of the first stage")
    depth: Count = Field(default=1, description="hidden layers; of a resnet, blocks of a stage")
    activation: Literal["relu", "tanh", "gelu"] = "relu"
    norm: Literal["fixup", "group"] = Field(default="fixup", description="of a resnet")

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        if self.kind in NETWORKS:
            return self.targets != "numbers"
        return self.kind in ("softmax", "logistic") or self.targets == "classes"

    @model_validator(mode="after")
    def _keys_of_the_kind(self) -> "Model":
        for key, kinds in KEYS_OF_KINDS.items():
            if self.kind not in kinds and key in self.model_fields_set and getattr(self, key) is not None:
                raise left_out(f"model.{key}", f'kind = "{self.kind}"', quoted(kinds))
        asked = {"custom": ("function",), "loss": ("function", "params")}.get(self.kind, ())
        for key in asked:
            if getattr(self, key) is None:
                form = '"module:function"' + (" or a table of numbers" if key == "params" else "")
                raise RecipeError(f'must be given for kind = "{self.kind}": {form}', key=f"model.{key}")
        return self


class Objective(Table):
    """How each hypergradient is computed, how accurately, and what certifies it.

    `implicit` solves the training problem on all data; `soba`, `saba` and `amigo` take stochastic steps on minibatches,
    without certificates; `unroll` goes through a training run; `evidence` needs the training part alone.
    """

    method: Literal["auto", "implicit", "soba", "saba", "amigo", "unroll", "evidence"] = Field(
        default="auto", description="auto: unroll for networks, implicit for all others"
    )
    batch_size: Count = Field(default=64, description="of soba, saba and amigo")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="of soba, saba and amigo: the step size of the weights"
    )
    seed: Seed = Field(default=0, description="of soba, saba and amigo")
    solver: Literal["auto", "newton", "lbfgs", "gradient-descent", "heavy-ball", "fista"] = Field(
        default="auto", description="auto: newton, and lbfgs for a loss of one's own"
    )
    adjoint: Literal["cg", "minres", "cholesky", "gradient-descent", "heavy-ball", "neumann", "one-step", "nystrom"] = (
        "cg"
    )
    preconditioner: Literal["auto", "none", "jacobi", "nystrom"] = Field(
        default="auto", description="of cg; auto: that of the model"
    )
    terms: Count = Field(default=20, description="of neumann")
    rank: Count = Field(default=20, description="of nystrom")
    inner_tolerance: float = Field(default=1e-8, gt=0, description="gradient norm of the training loss")
    adjoint_tolerance: float = Field(default=1e-8, gt=0, description="relative residual of the adjoint system")
    certificate: Literal["auto", "look-ahead", "ehrhardt-roberts", "free", "estimate", "none"] = Field(
        default="auto", description="auto: look-ahead, and estimate for a loss of one's own"
    )

    @model_validator(mode="after")
    def _keys_of_the_adjoint(self) -> "Objective":
        rank = self.adjoint == "nystrom" or (self.adjoint == "cg" and self.preconditioner == "nystrom")
        for key, fits, takers in (
            ("terms", self.adjoint == "neumann", '"neumann"'),
            ("preconditioner", self.adjoint == "cg", '"cg"'),
            ("rank", rank, '"nystrom", or "cg" with preconditioner = "nystrom"'),
        ):
            if key in self.model_fields_set and not fits:
                raise left_out(f"objective.{key}", f'adjoint = "{self.adjoint}"', takers)
        return self


class Training(Table):
    """How weights are trained where they are not solved for: from the start by `unroll`, on and on by `evidence`."""

    steps: Count = Field(default=100, description="of a run; with evidence, of each draw")
    batch_size: Count | None = Field(default=None, description="left out, all examples")
    optimizer: Literal["momentum", "nesterov", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, gt=0, lt=1, description="the first β of adam and adamw")
    weight_decay: float = Field(default=0.0, ge=0, description="of adamw")
    mode: Literal["checkpointed", "reversible", "store-all", "forward", "truncated"] = Field(
        default="checkpointed", description="of unroll: how to differentiate"
    )
    truncate: Count | None = Field(default=None, description="of truncated: the last steps")
    resample: bool = Field(default=False, description="of unroll: new weights and batches for every hypergradient")
    seed: Seed = 0

    @model_validator(mode="after")
    def _combinations(self) -> "Training":
        if self.mode == "truncated" and self.truncate is None:
            raise RecipeError('must be given with mode = "truncated"', key="training.truncate")
        if self.mode != "truncated" and self.truncate is not None:
            raise left_out("training.truncate", f'mode = "{self.mode}"', '"truncated"')
        if self.mode == "reversible" and self.optimizer == "nesterov":
            raise RecipeError(
                'must not be "reversible" with optimizer = "nesterov", whose step has no explicit inverse: use '
                '"momentum", "adam" or "adamw"',
                key="training.mode",
            )
        if self.weight_decay and self.optimizer != "adamw":
            raise left_out("training.weight_decay", f'optimizer = "{self.optimizer}"', '"adamw"')
        return self


class Evidence(Table):
    """Which estimate of the Laplace evidence, and from how many data."""

    estimator: Literal[
        "auto", "chain", "midpoint", "partition", "tangent", "choice", "full", "ekfac", "kfac", "diagonal",
        "last-layer", "lanczos"
    ] = Field(default="auto", description="auto: of all data where that is cheap, else chain")  # fmt: skip
    size: Count = Field(default=128, description="data of each draw, at most all")
    temperature: float = Field(default=1.0, gt=0)
    mode_after: Annotated[int, Field(ge=0)] = Field(
        default=80, description="steps of the search after which the weights go to their mode before each"
    )

    @model_validator(mode="after")
    def _size_of_a_draw(self) -> "Evidence":
        drawn = ("auto", "chain", "midpoint", "partition", "tangent", "choice")
        if "size" in self.model_fields_set and self.estimator not in drawn:
            raise left_out("evidence.size", f'estimator = "{self.estimator}"', quoted(drawn))
        return self
