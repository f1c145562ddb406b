"""Whether an exact hypergradient is of any use: how fast the adjoint grows, how smooth the training is in λ."""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._hyper import validated
from .._trees import tree_norm

if TYPE_CHECKING:
    from ._objective import UnrolledObjective


class ChaosGauge(eqx.Module):
    """growth = (‖dw_0‖/‖dw_T‖)^(1/T), amplification = ‖dw_0‖/‖dw_T‖, of the adjoint of the weights.

    Above a critical learning rate training is chaotic: a small change of the weights grows at every step, F is rugged
    in λ at every scale, and its exact derivative is large and says nothing of where F falls. Then the amplification is
    growth^T. It bounds ‖∂w_T/∂w_0‖ from below, and rounding is amplified alike: at 10^6 that of float32 reaches a tenth
    of the answer. Where training contracts, it is below 1.

    **Arguments:**

    - `limit`: the amplification above which an answer ends as `RESULTS.chaotic`; infinity for never.

    **Raises:** `ValueError` for a limit that is not positive.
    """

    limit: float = eqx.field(static=True, default=1e6)

    def __check_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"ChaosGauge: given limit {self.limit}, allowed are numbers > 0.")

    def read(self, stats: dict[str, Array], steps: int) -> tuple[dict[str, Array], Bool[Array, ""]]:
        """`growth` and `amplification` from `adjoint_start` and `adjoint_end`, and whether the limit is passed.

        Nothing, and no warning, where a mode has no adjoint at both ends.
        """
        if "adjoint_start" not in stats:
            return {}, jnp.asarray(False)
        amplification = stats["adjoint_start"] / stats["adjoint_end"]
        growth = amplification ** jnp.asarray(1 / steps, amplification.dtype)
        return {"growth": growth, "amplification": amplification}, amplification > self.limit


def metasmoothness(
    objective: "UnrolledObjective", hyper: PyTree, direction: PyTree, step: float = 0.01
) -> Float[Array, ""]:
    """S = Σ_j |Δ_j| sign(Δ_j) sign(Δ'_j) / Σ_j |Δ_j|, Δ = w(λ + h v) - w(λ), Δ' = w(λ + 2 h v) - w(λ + h v).

    w(λ) are the weights at the end of training: three short trainings along one direction of λ. S near 1 says that the
    weights move steadily along v, so that a derivative foretells what a step of length h does; near 0, or below it
    (ends that have nothing to do with one another move to and fro), that it does not: lower the learning rate of the
    training, clip its gradients, start from smaller weights, or use `hx.unroll.Truncated`.

    **Arguments:**

    - `objective`: a [`hyprax.UnrolledObjective`][].
    - `hyper`: the hyperparameters, as for [`hyprax.hypergradient`][].
    - `direction`: the structure of `hyper`, in unconstrained coordinates: typically a hypergradient. Its length does
        not matter.
    - `step`: h, the length of a step in unconstrained coordinates.

    **Returns:** S, between -1 and 1. It is a measurement along one direction and carries no certificate; a nan, for
    weights that did not move at all.

    **Raises:** `ValueError` for a step that is not positive, or a direction that is zero or not finite.

    Source: Engstrom et al. 2025, arXiv 2503.13751.
    """
    norm = float(tree_norm(direction))
    if not (step > 0 and 0 < norm < float("inf")):
        raise ValueError(
            f"metasmoothness: given step {step} and a direction of norm {norm}, allowed are numbers > 0 and finite."
        )
    hyper = validated(hyper)
    state = objective.init(hyper)
    ends = []
    for k in range(3):
        moved = jax.tree.map(
            lambda x, v, k=k: x + jnp.asarray(k * step / norm, x.dtype) * v.astype(x.dtype), hyper, direction
        )
        ends.append(objective.report(moved, state).params)
    return _agreement(*ends)


@jax.jit
def _agreement(a: PyTree, b: PyTree, c: PyTree) -> Float[Array, ""]:
    first, second = jax.tree.map(jnp.subtract, b, a), jax.tree.map(jnp.subtract, c, b)
    weights = [jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(first)]
    agree = [jnp.sum(x * jnp.sign(y)) for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)]
    dtype = jnp.result_type(float)
    return sum((x.astype(dtype) for x in agree), jnp.zeros((), dtype)) / sum(
        (x.astype(dtype) for x in weights), jnp.zeros((), dtype)
    )
