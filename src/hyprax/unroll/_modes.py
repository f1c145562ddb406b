"""Modes that store everything, carry derivatives forwards, or cut the reverse sweep short."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._trees import tree_dot, tree_norm, tree_sub
from ._checkpointed import Checkpointed
from ._drivers import DriverName, check_driver
from ._mode import AbstractMode, Outer, UnrollReport, UnrollStats, rounding_only
from ._runner import Runner, run_value
from ._step import Program, basis, outer_and_grads, start_forward
from ._training import Training


class StoreAll(AbstractMode):
    """Reverse mode with every state kept: (w_t, s_t) for every t, activations never.

    Memory T S P + A: S P the words of weights and optimizer state, A the activations of one step, made again in the
    reverse sweep by the derivative of the gradient that they are needed for. Time T (c + h): c a gradient, h the
    gradient and its transposed derivative together, about 2 c. Exact in exact arithmetic.

    **Arguments:**

    - `driver`: `"loop"` for one compiled loop, `"host"` for a loop on the host, `"auto"` to choose.
    """

    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("StoreAll", self.driver)

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, outer, hyper, key, self.driver)
        stored = _stored_in_one(runner.program, outer) if runner.in_one else _stored(runner)
        carry, value, grads, stats = stored
        return value, grads, runner.report(carry, rounding_only(value.dtype), value, grads, stats)

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


def _stored(runner: Runner) -> tuple[PyTree, Float[Array, ""], PyTree, UnrollStats]:
    """What the run ended with, its value, dF/dλ, and statistics."""
    carry, steps = runner.start(), runner.steps
    store, carry = runner.record(runner.driver.empty(carry, steps), carry, 0, steps)
    value, last, dhyper = runner.end(carry)
    adjoint, dhyper = runner.reverse(store, 0, steps, last, dhyper)
    return carry, value, runner.chain(adjoint, dhyper), runner.with_adjoint(adjoint, last)


@eqx.filter_jit
def _stored_in_one(program: Program, outer: Outer) -> tuple[PyTree, Float[Array, ""], PyTree, UnrollStats]:
    """The same as one program: for a short run of a small network the starts of several take as long as the run."""
    return _stored(Runner(program.training, outer, program.hyper, program.key, "loop"))


class ForwardMode(AbstractMode):
    """Derivatives carried forwards with the weights: d(w_t, s_t)/dλ_i for i = 1..H; dF/dλ_i = <∇f, dw_T/dλ_i> + ∂_i f.

    Memory S P (1 + H) + A, whatever T is; time T (c + about H h): best for a few hyperparameters. The H directions
    share each gradient (Franceschi, Donini, Frasconi, Pontil 2017, arXiv 1703.01785). Exact in exact arithmetic. A loss
    with a `jax.custom_vjp`, which has no derivative along a direction, takes about twice as long.

    **Arguments:**

    - `driver`: `"loop"` for one compiled loop, `"host"` for a loop on the host, `"auto"` to choose.
    """

    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("ForwardMode", self.driver)

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, outer, hyper, key, self.driver)
        directions = basis(hyper)
        carry, tangents = runner.push(runner.start(), begin(runner.program, directions), directions)
        value, grads = collect(outer, carry, hyper, tangents)
        return value, grads, runner.report(carry, rounding_only(value.dtype), value, grads)

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


@eqx.filter_jit
def begin(program: Program, directions: PyTree) -> PyTree:
    """d(w_0, s_0, m_0)/dλ."""
    return start_forward(program, directions)


@eqx.filter_jit
def collect(outer: Outer, carry: PyTree, hyper: PyTree, tangents: PyTree) -> tuple[Float[Array, ""], PyTree]:
    """f and <∇f, d(w, m)/dλ_i> + ∂_i f, in the structure of λ."""
    value, dparams, dmodel, direct = outer_and_grads(outer, carry[0], carry[2], hyper)
    through = (tangents[0], tangents[2]), (dparams, dmodel)
    parts = [
        jnp.tensordot(
            tangent.astype(value.dtype), leaf.astype(value.dtype), axes=leaf.ndim, precision=lax.Precision.HIGHEST
        )
        for tangent, leaf in zip(*map(jax.tree.leaves, through), strict=True)
    ]
    total = jnp.sum(jnp.stack(parts), axis=0)
    leaves, structure = jax.tree.flatten(direct)
    grads, start = [], 0
    for leaf in leaves:
        grads.append(leaf + total[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return value, jax.tree.unflatten(structure, grads)


class Truncated(AbstractMode):
    """Reverse mode through the last K steps alone: h_K = ∂_λ f + Σ_{t >= T-K} (∂_λ U_t)ᵀ a_{t+1}.

    It is dF/dλ with w_{T-K} taken as a constant. Memory K S P + A, time T c + K h. It is biased: what λ did before step
    T - K is left out, the initial weights included, and near a sharp minimum little is lost (Shaban, Cheng, Hatch,
    Boots 2019, arXiv 1810.10667). The certificate is `none`, unless the bias is asked for.

    **Arguments:**

    - `steps`: K >= 1; all T steps where K >= T, and then nothing is left out.
    - `bias`: whether to compute the full hypergradient h too, by checkpointing, and to report
        `cosine` = <h_K, h>/(‖h_K‖ ‖h‖) and `norm_ratio` = ‖h_K‖/‖h‖. The certificate is then the distance
        ‖h_K - h‖, of kind `estimated`: the rounding of h is not bounded.
    - `driver`: `"loop"` for compiled loops, `"host"` for loops on the host, `"auto"` to choose.
    """

    steps: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True, default=False)
    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("Truncated", self.driver)
        if self.steps < 1:
            raise ValueError(f"Truncated: steps must be an integer >= 1; got {self.steps}.")

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, outer, hyper, key, self.driver)
        cut = max(0, training.steps - self.steps)
        carry = runner.advance(runner.start(), 0, cut)
        store, carry = runner.record(runner.driver.empty(carry, training.steps - cut), carry, cut, training.steps)
        value, last, dhyper = runner.end(carry)
        adjoint, grads = runner.reverse(store, cut, training.steps, last, dhyper)
        stats = runner.stats()
        if cut == 0:
            grads = runner.chain(adjoint, grads)
            stats = runner.with_adjoint(adjoint, last)
            certificate: AbstractCertificate = rounding_only(value.dtype)
        else:
            certificate = NoCertificate(
                "the steps before the truncation are left out: ask for `bias=True` to see how much they matter",
                value.dtype,
            )
        stats = dataclasses.replace(stats, truncated_steps=jnp.asarray(cut))
        if self.bias and cut > 0:
            del store
            whole = Checkpointed(driver=self.driver).value_and_grad(training, outer, hyper, key)[1]
            distance, cosine, ratio = compare(grads, whole)
            stats = dataclasses.replace(stats, cosine=cosine, norm_ratio=ratio)
            method = "distance to the hypergradient through every step, in floating point"
            certificate = Certificate(distance, "estimated", "the truncation of the hypergradient", method)
        return value, grads, runner.report(carry, certificate, value, grads, stats)

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


@jax.jit
def compare(grads: PyTree, whole: PyTree) -> tuple[Any, Any, Any]:
    """‖h_K - h‖, and cosine and ratio of norms."""
    norm, full = tree_norm(grads), tree_norm(whole)
    return tree_norm(tree_sub(grads, whole)), tree_dot(grads, whole) / (norm * full), norm / full
