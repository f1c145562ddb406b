"""Elastic nets fitted from moments: coordinate descent for the signs, solves on the support for the weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array

from .._products import product
from ._constants import INFLATION

SWEEPS, ROUNDS = 10, 200


class Moments(NamedTuple):
    """Centred moments of the training rows, and bounds of their errors: entries that end in `_error`."""

    gram: Array
    gram_error: Array
    cross: Array
    cross_error: Array
    centre: Array
    centre_error: Array
    level: Array
    level_error: Array
    curvature: Array
    """A lower bound of the least eigenvalue of the exact Gram matrix."""


def moments_of(x: np.ndarray, y: np.ndarray, omega: np.ndarray, training: np.ndarray, intercept: bool) -> Moments:
    """Of the training rows, which count by ω, centred on them where there is an intercept."""
    n, total, unit = len(y), np.sum(omega), np.finfo(x.dtype).eps
    rows = np.asarray(training, x.dtype) * omega
    root, counted = np.sqrt(rows), np.sum(rows)
    centre, level = (np.dot(rows, z) / counted * intercept for z in (x, y))
    off, shift = (unit * (2 * n + 6) * np.dot(rows, np.abs(z)) / counted * intercept for z in (x, y))
    left, right = root[:, None] * (x - centre), root * (y - level)
    slip = root[:, None] * (off + 4 * unit * (np.abs(x) + np.abs(centre)))
    miss = root * (shift + 4 * unit * (np.abs(y) + np.abs(level)))

    def error(other: np.ndarray, its: np.ndarray) -> np.ndarray:
        """Of the sums of products with `other`, whose entries are off by `its`."""
        rounding = (2 * n + 16) * unit * np.dot(np.abs(left).T, np.abs(other))
        moved = np.dot(slip.T, np.abs(other)) + np.dot(np.abs(left).T, its) + np.dot(slip.T, its)
        return INFLATION * (rounding + moved) / total

    gram, cross = np.dot(left.T, left) / total, np.dot(left.T, right) / total
    gram_error = error(left, slip)
    least = _least(gram, gram_error)
    parts = gram, gram_error, cross, error(right, miss), centre, off, level, shift, least
    return Moments(*(jnp.asarray(part, x.dtype) for part in parts))


def _least(gram: np.ndarray, error: np.ndarray) -> float:
    """A proved lower bound of the least eigenvalue of the exact Gram matrix: by a Cholesky factor, or 0."""
    unit, count = np.finfo(gram.dtype).eps, len(gram)
    guess = 0.95 * float(np.linalg.eigvalsh(gram)[0])
    try:
        factor = np.linalg.cholesky(gram - guess * np.eye(count, dtype=gram.dtype))
    except np.linalg.LinAlgError:
        return 0.0
    lost = (count + 16) * unit * np.sum(factor**2) + 4 * unit * abs(guess) + np.linalg.norm(error)
    return max((guess - INFLATION * float(lost)) / INFLATION, 0.0)


class Solved(NamedTuple):
    """Weights, whether they are the optimum up to rounding, and the distance of 0 from the subdifferential."""

    params: Array
    converged: Array
    residual: Array
    rounds: Array
    slope: Array
    rounding: Array


def conditions(moments: Moments, l1: Array, l2: Array, w: Array) -> tuple[Array, Array, Array]:
    """∇ of the smooth part; what is missing to an optimum, by column; the rounding of both."""
    slope = product(moments.gram, w) + l2 * w - moments.cross
    inactive = jnp.sign(slope) * jnp.maximum(jnp.abs(slope) - l1, 0)
    missing = jnp.where(w != 0, slope + l1 * jnp.sign(w), inactive)
    error = rounded(moments, l2, w, jnp.abs(moments.cross) + l1) + moments.cross_error
    return slope, missing, error


def rounded(moments: Moments, l2: Array, v: Array, more: Array) -> Array:
    """How far (XᵀX/n + Λ)v and a sum with terms of the size `more` may be off."""
    size, unit = jnp.abs(v), (v.size + 16) * jnp.finfo(v.dtype).eps
    own = unit * (product(jnp.abs(moments.gram), size) + l2 * size + more)
    return INFLATION * (own + product(moments.gram_error, size))


def on_support(moments: Moments, l2: Array, active: Array, right: Array) -> Array:
    """(XᵀX/n + Λ)_SS v = right_S, zeros elsewhere; refined once."""
    pairs = active[:, None] & active[None, :]
    matrix = jnp.where(pairs, moments.gram, 0) + jnp.diag(jnp.where(active, l2, 1))
    factor, right = (jnp.linalg.cholesky(matrix), True), jnp.where(active, right, 0)
    found = jsl.cho_solve(factor, right)
    left = right - product(matrix, found)
    return found + jsl.cho_solve(factor, left)


@jax.jit
def solved(moments: Moments, l1: Array, l2: Array, start: Array) -> Solved:
    """Sweeps of coordinate descent change the signs, solves on the support find the minimum with these signs, by turns.

    Every step lowers the objective, and the minimum with given signs is met at most once: it ends, however badly
    conditioned the columns are, where sweeps alone would take as many rounds as the condition number.
    """
    curvature = jnp.diagonal(moments.gram) + l2

    def coordinate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        w, fitted = carry  # fitted = XᵀX/n w
        pull = moments.cross[j] - fitted[j] + moments.gram[j, j] * w[j]
        new = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - l1[j], 0) / curvature[j]
        return w.at[j].set(new), fitted + moments.gram[:, j] * (new - w[j])

    def sweep(_: Array, w: Array) -> Array:
        return jax.lax.fori_loop(0, w.size, coordinate, (w, product(moments.gram, w)))[0]

    def met(w: Array) -> Array:
        _, missing, rounding = conditions(moments, l1, l2, w)
        return jnp.all(jnp.abs(missing) <= rounding)

    def lowers(w: Array, new: Array) -> Array:
        """Whether the objective falls, by its difference, where values would cancel."""
        move = new - w
        slope = product(moments.gram, w) + l2 * w - moments.cross
        curved = product(moments.gram, move) + l2 * move
        return jnp.sum(move * (slope + 0.5 * curved) + l1 * (jnp.abs(new) - jnp.abs(w))) < 0

    def towards(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        """To the minimum with these signs; where others change on the way, they are dropped, all or else the first."""
        w, _ = carry
        active = w != 0
        found = on_support(moments, l2, active, moments.cross - l1 * jnp.sign(w))
        changed = active & (jnp.sign(found) != jnp.sign(w))
        all_dropped = jnp.where(changed, 0, found)
        share = jnp.where(changed, w / jnp.where(changed, w - found, 1), jnp.inf)
        first = jnp.min(share)
        first_dropped = jnp.where(share <= first, 0, w + first * (found - w))
        new = jnp.where(lowers(w, all_dropped), all_dropped, first_dropped)
        usable = jnp.all(jnp.isfinite(found))
        return jnp.where(usable, jnp.where(jnp.any(changed), new, found), w), jnp.any(changed) & usable

    def with_signs(w: Array) -> Array:
        return jax.lax.while_loop(lambda c: c[1], towards, (w, jnp.asarray(True)))[0]

    def step(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        w, _, rounds = carry
        w = with_signs(jax.lax.fori_loop(0, SWEEPS, sweep, w))
        return w, met(w), rounds + 1

    first = with_signs(start)
    begin = first, met(first), jnp.asarray(0)
    w, converged, rounds = jax.lax.while_loop(lambda c: ~c[1] & (c[2] < ROUNDS), step, begin)
    slope, missing, rounding = conditions(moments, l1, l2, w)
    residual = jnp.linalg.norm(jnp.abs(missing) + rounding)
    return Solved(w, converged | met(w), residual, rounds, slope, rounding)
