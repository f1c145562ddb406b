"""The noise of a hypergradient over validation examples, given the fit: dense, or by random signs."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

from .._keys import checked_key
from .._noise import AbstractNoise, Noise, NoNoise
from .._trees import tree_norm
from ._adjoint_solvers._cg import conjugate_gradients
from ._inner_loss import AbstractInnerLoss
from .families._design import backward, is_dense
from .families._mean_loss import MeanLoss, over

OVER = "validation examples, given the fit"
DENSE_BELOW = 1500
LITTLE = 10**9  # products of the solves for all examples, at one step
RELATIVE = 1e-2


def costs_little(outer: Any, data: Any, params: PyTree) -> bool:
    """Whether the dense spread can be had at every step for next to nothing."""
    if not isinstance(outer, MeanLoss) or not is_dense(data[0]):
        return False
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    return size <= DENSE_BELOW and data[0].shape[0] * size**2 <= LITTLE


class ExampleNoise(eqx.Module):
    """How the spread of a hypergradient over its validation examples is found.

    With h = (1/m) Σ_i h_i, h_i = -Bᵀ A⁻¹ ∇f_i, the variance of entry j is Σ_i (h_ij - h_j)²/(m (m - 1)). It is that of
    the validation sample alone: the fit, and so the training rows, are as they are.

    - `probes = 0`: every h_i, by a Cholesky factor of A (at most 1,500 weights): m - 1 degrees of freedom.
    - `probes = k > 0`: k random signs s_i = ±1 and one more adjoint solve each, to a hundredth, for the right-hand side
        (1/m) Σ_i s_i (∇f_i - ∇f): the square of the hypergradient of that has the variance as its mean. k degrees of
        freedom; `key` is then required.

    For the mean loss of a family as outer loss.
    """

    probes: int = eqx.field(static=True)
    key: Array | None

    def __init__(self, probes: int = 0, *, key: Array | None = None):
        if isinstance(probes, bool) or not isinstance(probes, int) or probes < 0:
            raise ValueError(f"ExampleNoise: probes must be an integer >= 0; got {probes!r}.")
        self.probes = probes
        self.key = checked_key("ExampleNoise", key) if probes else None

    def check(self, outer: Any, data: PyTree) -> None:
        """Refuse a problem whose examples cannot be told apart.

        **Raises:** `ValueError`.
        """
        if not isinstance(outer, MeanLoss):
            raise ValueError(
                "ExampleNoise: outer_loss must be the mean loss of a family (`family.mean_loss`), whose examples are "
                f"known one by one; got a {type(outer).__name__}."
            )
        if self.probes == 0 and not is_dense(data[0]):
            raise ValueError(
                "ExampleNoise: probes must be at least 1 for validation inputs that are sparse or in chunks; got 0."
            )

    def serves(self, params: PyTree) -> bool:
        """Whether there are few enough weights for the form that was asked for."""
        return self.probes > 0 or sum(leaf.size for leaf in jax.tree.leaves(params)) <= DENSE_BELOW

    def of(
        self,
        loss: AbstractInnerLoss,
        outer: Any,
        data: Any,
        hyper: PyTree,
        params: PyTree,
        held: Float[Array, " m"] | None = None,
    ) -> AbstractNoise:
        """The spread at `params`; over the rows where `held` is 1 alone, for a mean over those."""
        inputs = data[0]
        point = loss.at(params, hyper)
        product = loss.product(point, hyper)
        rows = outer.slopes(params, data)
        held = jnp.ones(rows.shape[0], rows.dtype) if held is None else held
        rows, count = over(held, rows) * rows, jnp.sum(held)
        mean = backward(inputs, rows) / count
        correction = count / jnp.maximum(count - 1, 1)

        def hypergradient(adjoint: Array) -> PyTree:
            return jax.tree.map(jnp.negative, loss.mixed(point, hyper, adjoint))

        if self.probes:
            assert self.key is not None
            signs = jax.random.rademacher(self.key, (self.probes, rows.shape[0]), rows.dtype) * held[None]

            def probe(sign: Array) -> PyTree:
                right = backward(inputs, over(sign, rows) * rows) / count - jnp.sum(sign) / count * mean
                solved = conjugate_gradients(
                    product,
                    right,
                    RELATIVE * tree_norm(right),
                    preconditioner=loss.preconditioner(point, hyper),
                    max_steps=2 * right.size + 20,
                )
                return hypergradient(solved.value)

            found = jax.lax.map(probe, signs)
            errors = jax.tree.map(lambda v: jnp.sqrt(correction * jnp.mean(jnp.square(v), axis=0)), found)
            return Noise(errors, self.probes, OVER)
        size = math.prod(params.shape)
        if size > DENSE_BELOW:
            return NoNoise(
                f"the dense form is for at most {DENSE_BELOW} weights, and there are {size}: give ExampleNoise probes",
                OVER,
            )
        basis = jnp.eye(size, dtype=params.dtype).reshape(size, *params.shape)
        hessian = jax.lax.map(lambda v: product(v).ravel(), basis, batch_size=64)
        factor = jnp.linalg.cholesky(hessian)

        def example(one: tuple[Array, Array]) -> PyTree:
            x, slope = one
            grad = x * slope if slope.ndim == 0 else x[:, None] * slope[None]
            solved = jsl.cho_solve((factor, True), (grad - mean).ravel()).reshape(params.shape)
            return hypergradient(solved)

        each = jax.lax.map(example, (inputs, rows), batch_size=64)
        errors = jax.tree.map(
            lambda v: jnp.sqrt(correction * jnp.sum(over(held, v) * jnp.square(v), axis=0)) / count, each
        )
        return Noise(errors, count - 1, OVER)
