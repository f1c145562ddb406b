"""What a bound needs to know of the inner problem at a point."""

import equinox as eqx
from jaxtyping import Array, Float

INFLATION = 1 + 1e-6  # for the rounding of the norms and sums in the bounds themselves
UNIT = 2.0**-53  # the unit roundoff of float64


class Constants(eqx.Module):
    """Smoothness of the inner loss g(w, λ), in the Euclidean norm, λ in unconstrained coordinates.

    With A = ∂²_ww g and B = ∂_w ∂_λ g:

    - `strong_convexity` μ: A ⪰ μ I everywhere between the point and the optimum. Too large a μ is the unsafe direction.
    - `lipschitz_hessian` L_A: ‖A(w) - A(w')‖₂ <= L_A ‖w - w'‖.
    - `mixed_norm` ‖B‖: an upper bound of ‖B(w)‖₂ at the point.
    - `lipschitz_mixed` L_B: ‖B(w) - B(w')‖₂ <= L_B ‖w - w'‖.
    """

    strong_convexity: Float[Array, ""]
    lipschitz_hessian: Float[Array, ""]
    mixed_norm: Float[Array, ""]
    lipschitz_mixed: Float[Array, ""]


class Rounding(eqx.Module):
    """Bounds, entry by entry, on the rounding errors of computed vectors.

    - `gradient`: of ∇_w g.
    - `product`: of A q.
    - `strengths`, `weights`: of the final Bᵀq, for each strength and each example weight.
    """

    gradient: Float[Array, "..."]
    product: Float[Array, "..."]
    strengths: Float[Array, "..."]
    weights: Float[Array, "..."] | None


class Spectrum(eqx.Module):
    """`lower` I ⪯ A ⪯ `upper` I: the constants μ and L that fixed steps and momenta are made from."""

    lower: Float[Array, ""]
    upper: Float[Array, ""]
