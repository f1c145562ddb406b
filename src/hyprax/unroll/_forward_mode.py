"""Derivatives carried along with the weights: no reverse sweep, one tangent a hyperparameter."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._drivers import DriverName, check_driver
from ._mode import AbstractMode, Outer, UnrollReport
from ._runner import Runner, run_value
from ._step import Program, basis, outer_and_grads, start_forward
from ._store_all import rounding_only
from ._training import Training


class ForwardMode(AbstractMode):
    """(w_t, s_t) and d(w_t, s_t)/dλ_i for i = 1..H, carried forwards together; dF/dλ_i = <∇f, dw_T/dλ_i> + ∂_i f.

    Memory S P (1 + H) + A, whatever T is; time T (c + about H h): best for a few hyperparameters. The H directions
    share each gradient (Franceschi, Donini, Frasconi, Pontil 2017, arXiv 1703.01785). Exact in exact arithmetic.

    **Arguments:**

    - `driver`: `"loop"` for one compiled loop, `"host"` for a loop on the host, `"auto"` to choose.
    """

    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("ForwardMode", self.driver)

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, hyper, key, self.driver)
        directions = basis(hyper)
        carry, tangents = runner.push(runner.start(), begin(runner.program, directions), directions)
        value, grads = collect(outer, carry[0], hyper, tangents[0])
        return value, grads, runner.report(carry[0], rounding_only(value.dtype), value, grads)

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


@eqx.filter_jit
def begin(program: Program, directions: PyTree) -> PyTree:
    """d(w_0, s_0)/dλ."""
    return start_forward(program, directions)


@eqx.filter_jit
def collect(outer: Outer, params: PyTree, hyper: PyTree, tangents: PyTree) -> tuple[Float[Array, ""], PyTree]:
    """f and <∇f, dw/dλ_i> + ∂_i f, in the structure of λ."""
    value, dparams, direct = outer_and_grads(outer, params, hyper)
    parts = [
        jnp.tensordot(tangent.astype(value.dtype), leaf.astype(value.dtype), axes=leaf.ndim)
        for tangent, leaf in zip(jax.tree.leaves(tangents), jax.tree.leaves(dparams), strict=True)
    ]
    through = jnp.sum(jnp.stack(parts), axis=0)
    leaves, structure = jax.tree.flatten(direct)
    grads, start = [], 0
    for leaf in leaves:
        grads.append(leaf + through[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return value, jax.tree.unflatten(structure, grads)
