"""The loop of the first-order methods: one gradient a step, stopped where it was measured."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._trees import tree_norm, tree_sub
from .._constants import Spectrum
from .._inner_loss import AbstractInnerLoss, Point
from .._spectrum import resolve
from ._solver import Minimum

Advance = Callable[[Point, PyTree, Spectrum], tuple[PyTree, PyTree]]
"""(point, memory, μ and L) ↦ (where the next gradient is taken, memory)."""


class _Carry(eqx.Module):
    point: Point
    memory: PyTree
    smoothness: Float[Array, ""]
    moved: Bool[Array, ""]
    steps: Int[Array, ""]


def descend(
    loss: AbstractInnerLoss,
    hyper: PyTree,
    params: PyTree,
    tolerance: Float[Array, ""],
    max_steps: int,
    constants: tuple[float | Array | None, float | Array | None],
    advance: Advance,
) -> Minimum:
    """Steps of `advance` from `params` until ‖∇g‖₂ <= `tolerance`, nothing moves any more, or `max_steps` are made.

    `constants` are μ and L as the user gave them. Where L is an estimate, every step measures it again for nothing: a
    step along which the gradient changes by more than L times its length is taken back, L doubled (or raised to what
    was measured), and the momentum dropped. An accepted step of gradient descent then lowers a convex g.
    """
    start = loss.at(params, hyper)
    known = loss.spectrum(hyper)
    spectrum, guessed, spent = resolve(*constants, known, loss.product(start, hyper), params)
    noise = 1000 * jnp.finfo(start.value.dtype).eps

    def unfinished(carry: _Carry) -> Bool[Array, ""]:
        norm = tree_norm(carry.point.grad)
        return (norm > tolerance) & jnp.isfinite(norm) & carry.moved & (carry.steps < max_steps)

    def step(carry: _Carry) -> _Carry:
        point = carry.point
        target, memory = advance(point, carry.memory, Spectrum(spectrum.lower, carry.smoothness))
        new = loss.at(target, hyper)
        length = tree_norm(tree_sub(new.params, point.params))
        smoothness = carry.smoothness
        if guessed:
            change = tree_norm(tree_sub(new.grad, point.grad))
            too_long = (change > smoothness * length) & (length > noise * tree_norm(point.params))
            too_long = too_long | jnp.logical_not(jnp.isfinite(change))
            measured = jnp.where(jnp.isfinite(change), change / jnp.where(length > 0, length, 1), 0)
            smoothness = jnp.where(too_long, jnp.maximum(2 * smoothness, measured), smoothness)
            back = (point, point.params)
            new, memory = jax.tree.map(lambda a, b: jnp.where(too_long, a, b), back, (new, memory))
            length = jnp.where(too_long, 1, length)  # nothing has moved, and the next step will be another
        return _Carry(new, memory, smoothness, length > 0, carry.steps + 1)

    first = _Carry(start, params, spectrum.upper, jnp.asarray(True), jnp.asarray(0))
    last = jax.lax.while_loop(unfinished, step, first)
    return Minimum(last.point, last.steps, last.steps + 1 + spent)
