"""Minimal residuals, for symmetric systems that need not be definite."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._trees import tree_axpy, tree_dot, tree_norm, tree_scale, tree_size, tree_sub
from ._solver import (
    AbstractAdjointSolver,
    AdjointSystem,
    LinearSolution,
    check_settings,
    damped,
    damped_system,
    zeros_like,
)


class _Carry(eqx.Module):
    """The Lanczos vectors r₁, r₂ (unnormalised) and the last two directions; names as in Paige and Saunders."""

    value: PyTree
    r1: PyTree
    r2: PyTree
    w: PyTree
    w2: PyTree
    beta: Float[Array, ""]
    oldb: Float[Array, ""]
    cs: Float[Array, ""]
    sn: Float[Array, ""]
    dbar: Float[Array, ""]
    epsln: Float[Array, ""]
    phibar: Float[Array, ""]
    least: Float[Array, ""]
    largest: Float[Array, ""]
    steps: Int[Array, ""]


class MINRES(AbstractAdjointSolver):
    """min ‖A q - ∇f‖₂ over the Krylov space of dimension k, A symmetric: k products; A may be indefinite.

    Lanczos vectors and Givens rotations: seven vectors, one product a step. At an inner point that is stationary and
    not a minimum the hypergradient formula still holds for the branch of stationary points; that the curvature was
    negative is seen in `stats["curvature"]`. No preconditioner.

    **Arguments:**

    - `tolerance`: ‖A q - ∇f‖₂/‖∇f‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: products, at most; default five times the number of parameters, and 20 more.
    - `damping`: ρ; with ρ > 0 the system (A + ρI) q = ∇f is solved instead, which certificates name.

    Source: Paige and Saunders (SIAM J. Numer. Anal. 12, 1975).
    """

    tolerance: float | None = None
    max_steps: int | None = None
    damping: float = eqx.field(static=True, default=0.0)

    solves_indefinite: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@article{paige1975solution, author = {Paige, Christopher C. and Saunders, Michael A.},
  title = {Solution of sparse indefinite systems of linear equations}, journal = {SIAM Journal on Numerical Analysis},
  volume = {12}, pages = {617--629}, year = {1975}}""",
    )

    def __check_init__(self):
        check_settings("MINRES", self.tolerance, self.max_steps, self.damping)

    @property
    def system(self) -> str:
        return damped_system(self.damping)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        product = damped(system.product, self.damping)
        most = 5 * tree_size(system.rhs) + 20 if self.max_steps is None else self.max_steps
        first = tree_sub(system.rhs, product(system.start))
        beta = tree_norm(first)
        zero, one = jnp.zeros_like(beta), jnp.ones_like(beta)
        tiny = jnp.finfo(beta.dtype).tiny

        def unfinished(c: _Carry) -> Bool[Array, ""]:
            return (c.phibar > system.residual) & (c.beta > 0) & (c.steps < most)

        def step(c: _Carry) -> _Carry:
            v = tree_scale(1 / c.beta, c.r2)
            image = product(v)
            image = tree_axpy(jnp.where(c.steps > 0, -c.beta / jnp.where(c.oldb > 0, c.oldb, 1), 0), c.r1, image)
            alpha = tree_dot(v, image)
            image = tree_axpy(-alpha / c.beta, c.r2, image)
            beta = tree_norm(image)
            # The last plane rotation, then the next.
            delta = c.cs * c.dbar + c.sn * alpha
            gbar = c.sn * c.dbar - c.cs * alpha
            gamma = jnp.maximum(jnp.hypot(gbar, beta), tiny)
            cs, sn = gbar / gamma, beta / gamma
            w = jax.tree.map(lambda v, w2, w: (v - c.epsln * w2 - delta * w) / gamma, v, c.w2, c.w)
            return _Carry(
                value=tree_axpy(cs * c.phibar, w, c.value),
                r1=c.r2,
                r2=image,
                w=w,
                w2=c.w,
                beta=beta,
                oldb=c.beta,
                cs=cs,
                sn=sn,
                dbar=-c.cs * beta,
                epsln=c.sn * beta,
                phibar=sn * c.phibar,
                least=jnp.minimum(c.least, alpha),
                largest=jnp.maximum(c.largest, jnp.abs(alpha)),
                steps=c.steps + 1,
            )

        none = zeros_like(system.rhs)
        begin = _Carry(
            value=system.start,
            r1=first,
            r2=first,
            w=none,
            w2=none,
            beta=beta,
            oldb=zero,
            cs=-one,
            sn=zero,
            dbar=zero,
            epsln=zero,
            phibar=beta,
            least=jnp.full_like(beta, jnp.inf),
            largest=zero,
            steps=jnp.asarray(0),
        )
        last = jax.lax.while_loop(unfinished, step, begin)
        rounding = 1000 * jnp.finfo(beta.dtype).eps * last.largest
        return LinearSolution(
            last.value, last.steps, last.steps + 1, last.least + rounding - self.damping, self.damping
        )
