"""The noise of a hypergradient through a run over its validation examples, by random signs on them at the end."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._noise import AbstractNoise, Noise, NoNoise
from .._trees import is_traced
from ._mode import Outer, UnrollReport

OVER = "validation examples, given the training run"
NO_MEAN = NoNoise(
    "the outer loss is not the mean of its values on the single examples along the first axis of outer_data", OVER
)
AGREEMENT = 1e3  # units in the last place, between the outer loss and the mean over single examples


def checked_probes(noise: Any, data: PyTree) -> int:
    """The number of probes.

    **Raises:** `ValueError` for what is no number of probes, or data without a common first axis of at least 2.
    """
    if isinstance(noise, bool) or not isinstance(noise, int) or noise < 0:
        raise ValueError(f"UnrolledObjective: noise must be a number of probes, an integer >= 0; got {noise!r}.")
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if noise and (len(lengths) != 1 or lengths in ({()}, {(0,)}, {(1,)})):
        raise ValueError(
            "UnrolledObjective: noise must be 0 where outer_data is not at least two examples along the first axis of "
            f"every array; got first axes {sorted(lengths)}."
        )
    return noise


class _Signed(eqx.Module):
    """Σ_i v_i f(w, λ, example i), a loss like any other; its data are (v, examples)."""

    loss: Callable[..., Float[Array, ""]]

    def each(self, params: PyTree, hyper: PyTree, data: PyTree, *model: PyTree) -> Float[Array, " m"]:
        single = jax.tree.map(lambda leaf: leaf[:, None], data)
        return jax.vmap(lambda one: self.loss(params, hyper, one, *model))(single)

    def __call__(self, params: PyTree, hyper: PyTree, data: tuple[Array, PyTree], *model: PyTree) -> Float[Array, ""]:
        factors, examples = data
        losses = self.each(params, hyper, examples, *model)
        return jnp.sum(factors.astype(losses.dtype) * losses)


@eqx.filter_jit
def _losses(outer: Outer, params: PyTree, model: PyTree, hyper: PyTree) -> Float[Array, " m"]:
    whole = params if outer.static is None else eqx.combine(params, outer.static)
    return _Signed(outer.loss).each(whole, hyper, outer.data, *(() if model is None else (model,)))


def _means(outer: Outer, hyper: PyTree, value: Array, end: UnrollReport) -> Array | None:
    """The losses of the examples, where the outer loss is their mean."""
    losses = _losses(outer, end.params, end.state, hyper)
    if is_traced(losses):
        raise ValueError("UnrolledObjective: noise must be 0 under jax.jit and jax.vmap; got a number of probes.")
    close = AGREEMENT * float(jnp.finfo(losses.dtype).eps) * (1 + float(jnp.max(jnp.abs(losses))))
    return losses if abs(float(jnp.mean(losses)) - float(value)) <= close else None


def of_gradient(
    outer: Outer,
    hyper: PyTree,
    value: Array,
    end: UnrollReport,
    derivative: Callable[[Outer], PyTree],
    key: Array,
    probes: int,
) -> AbstractNoise:
    """Standard errors by `probes` random signs; `derivative` is that of the run with another outer loss."""
    losses = _means(outer, hyper, value, end)
    if losses is None:
        return NO_MEAN
    count = losses.shape[0]
    signs = jax.random.rademacher(jax.random.fold_in(key, probes), (probes, count), losses.dtype)
    total = None
    for sign in signs:
        factors = (sign - jnp.mean(sign)) / count
        found = derivative(Outer(_Signed(outer.loss), (factors, outer.data), outer.static))
        squares = jax.tree.map(jnp.square, found)
        total = squares if total is None else jax.tree.map(jnp.add, total, squares)
    scale = count / (count - 1) / probes
    return Noise(jax.tree.map(lambda x: jnp.sqrt(scale * x), total), probes, OVER)


def of_value(outer: Outer, hyper: PyTree, value: Array, end: UnrollReport) -> AbstractNoise:
    """The standard error of the mean over the examples."""
    losses = _means(outer, hyper, value, end)
    if losses is None:
        return NO_MEAN
    count = losses.shape[0]
    return Noise(jnp.std(losses, ddof=1) / count**0.5, count - 1, OVER)
