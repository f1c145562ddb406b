"""What the implicit engine says beside a value and a gradient: results, statistics, and a certificate of its own."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .. import _result as core_results
from .._certificate import AbstractCertificate, Kind, right, show
from .._stats import AbstractStats, Accuracy, Effort


class RESULTS(core_results.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]  # an enumeration in layers
    """How a computation at an optimum ended. `RESULTS[result]` is the message: what happened and what to try."""

    if TYPE_CHECKING:  # of the layer below, as members of this one
        successful = ""
        diverged = ""

    inner_not_converged = (
        "The inner problem was not solved to the requested gradient norm, so the hypergradient is that of a point "
        "which is not an optimum. Raise `max_steps` of the inner solver, loosen its tolerance, start from a warm "
        "state, or rescale the data (badly scaled features slow every solver)."
    )
    adjoint_not_converged = (
        "The adjoint system A q = grad f was not solved to the requested residual (the residual is recomputed, not the "
        "solver's own). Raise `max_steps` of the adjoint solver, loosen its tolerance, or strengthen the "
        "regularisation: a larger penalty conditions A better."
    )
    adjoint_truncated = (
        "The truncated adjoint leaves more than half of the adjoint system unsolved (`adjoint_left` is the part left, "
        "1 for an adjoint of zero), so the hypergradient may be wrong by as much. Take more `terms`, scale the "
        "features, or solve the system (`hx.implicit.CG`)."
    )
    indefinite = (
        "The inner Hessian has a direction of non-positive curvature, so the point found is not a strict minimum and "
        "the adjoint by conjugate gradients is meaningless. Add an l2 penalty, or solve the inner problem further."
    )
    strong_convexity_disproved = (
        "A measured curvature is below the strong-convexity constant mu that the certificate was given, so its bound "
        "would not hold. Lower mu, or give the constants of the loss that is really used."
    )
    unpenalised = (
        "A strength of the penalty is not above zero (or an example weight is negative), so the inner loss need not "
        "have a minimum: with separable classes the weights grow without end, and the point found is where the solver "
        "stopped. Give every weight a strength above zero (`hx.Positive` keeps it there)."
    )
    no_freedom = (
        "The fit uses up every row: gamma times its effective number of parameters (`freedom`) is not below the number "
        "of rows, so generalised cross-validation means nothing. Raise the strengths, or lower `gamma`."
    )
    rows_not_enclosed = (
        "The loss of some rows left out is not enclosed to 1 % of the mean, or the hypergradient not at all: "
        "`loose_rows` says how many, `loosest_row` which is the worst. Raise the smallest strengths, scale the "
        "features, look at the row, or use `approximate=False`."
    )
    no_optimum = (
        "The columns without penalty have no single optimum on these rows: they separate the classes (or a fold holds "
        "one class alone, or counts of zero alone), or one of them is zero, or a combination of others. Drop or merge "
        "such columns, give them a strength, or stratify the folds."
    )


class ImplicitStats(AbstractStats):
    """What an evaluation at an optimum took and reached; norms are Euclidean, and recomputed from their definitions.

    - `inner_gradient_norm`, `inner_tolerance`: ‖∇_w g‖ at the point found, and what was asked for.
    - `inner_steps`: of the inner solver.
    - `products`: gradients of the inner loss and products with its Hessian.
    - `adjoint_residual`, `adjoint_tolerance`: ‖A q - ∇f‖, and what was asked for; `None` for a value alone.
    - `adjoint_steps`: of the adjoint solver.
    - `adjoint_left`: for a truncated adjoint the part of the system that is left, ‖M⁻¹(A q - ∇f)‖/‖M⁻¹∇f‖ with the
        preconditioner M of the loss (or the identity): about the relative error of q.
    - `curvature`: the smallest pᵀAp/pᵀp that was measured; `strong_convexity`: the constant that the certifier assumes.
    - `inaccurate`: only the accuracy asked for was missed.
    """

    inner_gradient_norm: Float[Array, ""]
    inner_tolerance: Float[Array, ""]
    inner_steps: Int[Array, ""]
    products: Int[Array, ""]
    adjoint_residual: Float[Array, ""] | None = None
    adjoint_tolerance: Float[Array, ""] | None = None
    adjoint_steps: Int[Array, ""] | None = None
    adjoint_left: Float[Array, ""] | None = None
    curvature: Float[Array, ""] | None = None
    strong_convexity: Float[Array, ""] | None = None
    inaccurate: Bool[Array, ""] | None = None

    def effort(self) -> Effort:
        adjoint = jnp.full_like(self.inner_gradient_norm, jnp.inf)
        adjoint = adjoint if self.adjoint_residual is None else self.adjoint_residual
        reached = Accuracy(self.inner_gradient_norm, adjoint)
        return Effort(self.products, reached, False if self.inaccurate is None else self.inaccurate)


class SingleLoopStats(AbstractStats):
    """What a stochastic step measured.

    - `example_passes`: how many gradients, Hessian products and mixed products of one example's loss it took.
    - `inner_direction_norm`, `adjoint_direction_norm`: ‖D_w‖ and ‖D_v‖; `None` for a value alone.
    - `inner_rate`: the (largest) step size of the inner variable.
    """

    example_passes: Int[Array, ""]
    inner_direction_norm: Float[Array, ""] | None = None
    adjoint_direction_norm: Float[Array, ""] | None = None
    inner_rate: Float[Array, ""] | None = None

    def effort(self) -> Effort:
        return Effort()


class STATUS(eqx.Enumeration):
    """Why a two-sided bound stopped where it did. `STATUS[status]` is the message."""

    effectivity_proved = "effectivity at most 3 proved"
    decision_made = "decision made: the bound is as small as was asked"
    rounding_floor = "rounding floor: more work in this arithmetic would not tighten the bound"
    rounds_spent = "rounds spent"


class TwoSidedCertificate(AbstractCertificate):
    """`|answer - truth| <= bound`, and `lower <= |first - truth| <= upper` for the answer first computed.

    Made by certifiers that answer with an improved value: `shift` is the distance between the two answers.

    - `entries`: bounds of the single entries of the answer, in its structure.
    - `status`: a member of `STATUS`. Where `effectivity_proved`, upper <= 3 |first - truth|.
    - `terms`: the parts of the bound by name.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    shift: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    entries: PyTree
    status: STATUS
    terms: dict[str, Array]

    def meaning(self) -> str:
        return f"{right(self.kind)} The answer is the better of two; why it was improved no further: {self._why()}."

    def _why(self) -> str:
        try:
            return STATUS[self.status]
        except Exception:  # under a transformation, or of several answers at once, there is no one status
            return "see `status`"

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.quantity} <= {show(self.bound)} ({self.method})>"
