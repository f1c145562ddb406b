"""Stationary iterations on the adjoint system: one true residual a step, so nothing can drift."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._trees import tree_axpy, tree_norm, tree_sub
from .._heavy_ball import heavy_ball_step
from ._solver import AdjointSystem, LinearSolution, unmeasured


class _Carry(eqx.Module):
    value: PyTree
    before: PyTree
    residual: PyTree
    steps: Int[Array, ""]


def iterate(
    system: AdjointSystem, step: Float[Array, ""], momentum: Float[Array, ""] | None, max_steps: int, spent: int
) -> LinearSolution:
    """q₊ = q - step (A q - rhs) + momentum (q - q₋), to the true residual at q, from q₋ = q = start."""

    def unfinished(carry: _Carry) -> Bool[Array, ""]:
        norm = tree_norm(carry.residual)
        return (norm > system.residual) & jnp.isfinite(norm) & (carry.steps < max_steps)

    def advance(carry: _Carry) -> _Carry:
        if momentum is None:
            new = tree_axpy(-step, carry.residual, carry.value)
        else:
            new = heavy_ball_step(carry.value, carry.before, carry.residual, step, momentum)
        return _Carry(new, carry.value, tree_sub(system.product(new), system.rhs), carry.steps + 1)

    begun = tree_sub(system.product(system.start), system.rhs)
    last = jax.lax.while_loop(unfinished, advance, _Carry(system.start, system.start, begun, jnp.asarray(0)))
    return LinearSolution(last.value, last.steps, last.steps + 1 + spent, unmeasured(system.rhs))
