"""Fits without one row each: rounds with a shared factor for all, and a Newton method for those that need one."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Bool, Float, Int

from .._products import product
from ._constants import INFLATION
from ._left_out import Centre, LeftOut, Rows, norms_at, record
from ._self_concordance import finite_or_infinite

ROUNDS = 10  # with the shared factor; what is left then gets a Newton method of its own
NEAR = 1e-9  # Mρν at which a row counts as found: its relative errors are of that size
NEWTON_STEPS = 60


class _Block(eqx.Module):
    """A few rows left out, as columns: `z` = H⁻¹x_i, `room` = 1 - s_i x_iᵀz_i, `kept` the weights without each row."""

    left: Int[Array, " B"]
    z: Float[Array, "p B"]
    room: Float[Array, " B"]
    kept: Float[Array, "n B"]

    def solve(self, centre: Centre, v: Float[Array, "p B"]) -> Float[Array, "p B"]:
        """H_i⁻¹v, column by column, as computed (Sherman and Morrison)."""
        along = centre.curves[self.left] / self.room * jnp.sum(self.z * v, axis=0)
        return centre.solve(v) + self.z * along[None]


class Residual(eqx.Module):
    """Vectors as columns, and what rounding has done to them: Xᵀe with ‖e‖₂ <= `off`, and `more`, entry by entry."""

    vector: Float[Array, "p B"]
    off: Float[Array, " B"]
    more: Float[Array, "p B"]

    def penalty_norm(self, rows: Any, centre: Centre) -> Float[Array, " B"]:
        """An upper bound of the norm of Λ⁻¹."""
        size = jnp.square(jnp.abs(self.vector) + self.more) * rows.inverse[:, None]
        total = jnp.sqrt(jnp.sum(size, axis=0)) + centre.spread_penalty * self.off
        return finite_or_infinite(INFLATION * total)

    def rounding(self, centre: Centre) -> Float[Array, " B"]:
        return INFLATION * (centre.spread * self.off + product(centre.axes, self.more))

    def norm(self, rows: Any, centre: Centre) -> Float[Array, " B"]:
        """An upper bound of the norm of H⁻¹."""
        energy = centre.factor.energies(self.vector) + self.rounding(centre)
        return jnp.minimum(finite_or_infinite(energy), self.penalty_norm(rows, centre))


def _block(rows: Rows, centre: Centre, left: Int[Array, " B"]) -> _Block:
    x = rows.inputs[left].T
    z = centre.solve(x)
    room = 1 - centre.curves[left] * jnp.sum(x * z, axis=0)
    kept = jnp.where(jnp.arange(rows.count)[:, None] != left[None], rows.weights[:, None], 0)
    return _Block(left, z, room, kept)


def _gradients(rows: Rows, block: _Block, params: Float[Array, "p B"]) -> tuple[Array, Array]:
    """Predictions, and the residual of every column's own problem."""
    u = rows.predict(params)
    y = rows.targets[:, None]
    slope = block.kept * rows.loss.slope(rows.loss.statistic(u, y), y)
    return u, product(rows.inputs.T, slope) / rows.count + rows.strengths[:, None] * params


def _gradient_rounding(rows: Rows, block: _Block, params: Array, u: Array) -> tuple[Array, Array]:
    y = rows.targets[:, None]
    size, du = rows.prediction_error(params)
    statistic = rows.loss.statistic(u, y)
    error = rows.loss.slope_rounding(statistic, y, size, du, rows.unit)
    error = block.kept * (error + (rows.count + 12) * rows.unit * jnp.abs(rows.loss.slope(statistic, y)))
    off = jnp.sqrt(jnp.sum(jnp.square(error), axis=0)) / rows.count
    return off, 4 * rows.unit * rows.strengths[:, None] * jnp.abs(params)


def _curved(rows: Rows, block: _Block, curve: Array, adjoint: Array) -> Array:
    """H̃ã - x_i, H̃ the Hessian at w̃ without row i; `curve` is ω_k ℓ_k''/n there."""
    v = curve * product(rows.inputs, adjoint)
    return product(rows.inputs.T, v) + rows.strengths[:, None] * adjoint - rows.inputs[block.left].T


def _curved_rounding(rows: Rows, block: _Block, params: Array, u: Array, adjoint: Array) -> tuple[Array, Array]:
    statistic = rows.loss.statistic(u, rows.targets[:, None])
    _, du = rows.prediction_error(params)
    size, dv = rows.product_error(adjoint)
    reach = jnp.minimum(jnp.abs(product(rows.inputs, adjoint)) + dv, size)
    error = rows.curve_error(statistic, du) * reach + rows.loss.curve_diagonal(statistic) * dv
    off = jnp.sqrt(jnp.sum(jnp.square(block.kept * error), axis=0)) / rows.count
    more = rows.strengths[:, None] * jnp.abs(adjoint) + jnp.abs(rows.inputs[block.left].T)
    return off, 4 * rows.unit * more


def refined(
    solve: Callable[[Array], Array],
    residual: Callable[[Array], Array],
    weigh: Callable[[Array], Array],
    start: Float[Array, "p B"],
    rounds: int,
) -> tuple[Array, Array]:
    """x <- x - M⁻¹r(x), at most so often, column by column as long as ‖r‖ falls by half; and r at the best x."""

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        *_, going, taken = carry
        return jnp.any(going) & (taken <= rounds)

    def step(carry: tuple) -> tuple:
        x, r, norm, candidate, going, taken = carry
        found = residual(candidate)
        there = weigh(found)
        better = going & (there < norm)
        x, r = jnp.where(better[None], candidate, x), jnp.where(better[None], found, r)
        going = better & (there < 0.5 * norm)
        return x, r, jnp.where(better, there, norm), x - solve(r), going, taken + 1

    every = jnp.ones(start.shape[1], bool)
    infinite = jnp.full(start.shape[1], jnp.inf, start.dtype)
    carry = (start, jnp.full_like(start, jnp.inf), infinite, start, every, jnp.asarray(0))
    x, r, *_ = jax.lax.while_loop(unfinished, step, carry)
    return x, r


def enclosed(rows: Rows, centre: Centre, left: Int[Array, " B"], *, rounds: int = ROUNDS) -> LeftOut:
    """The fits without the rows `left`, one each, by one step and `rounds` more with the shared factor."""
    block = _block(rows, centre, left)
    scale = centre.slopes[left] / (rows.count * block.room)
    start = centre.params[:, None] + block.z * scale[None]

    def weigh(r: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(product(centre.factor.inverse.T, r)), axis=0))

    def gradient(w: Array) -> Array:
        return _gradients(rows, block, w)[1]

    def solve(r: Array) -> Array:
        return block.solve(centre, r)

    params, r = refined(solve, gradient, weigh, start, rounds)
    u = rows.predict(params)
    residual = Residual(r, *_gradient_rounding(rows, block, params, u))
    at_centre = rows.prediction_error(centre.params[:, None])[1]
    apart = jnp.abs(u - centre.predictions[:, None]) + at_centre + rows.prediction_error(params)[1]
    moved = jnp.max(jnp.where(block.kept > 0, apart, 0), axis=0)
    norms = norms_at(rows, centre, left, moved)
    nu = finite_or_infinite(norms.wider * residual.norm(rows, centre))
    nu_penalty = residual.penalty_norm(rows, centre)
    nu = jnp.minimum(nu, nu_penalty)
    settled_already = nu <= 20 * norms.wider * residual.rounding(centre)

    curve = block.kept * rows.loss.curve_diagonal(rows.loss.statistic(u, rows.targets[:, None])) / rows.count

    def curved(a: Array) -> Array:
        return _curved(rows, block, curve, a)

    adjoint, r = refined(solve, curved, weigh, block.z / block.room[None], rounds)
    off = Residual(r, *_curved_rounding(rows, block, params, u, adjoint))
    of_adjoint = jnp.minimum(finite_or_infinite(norms.wider * off.norm(rows, centre)), off.penalty_norm(rows, centre))
    close = (of_adjoint <= NEAR * norms.own) | (of_adjoint <= 20 * norms.wider * off.rounding(centre))
    near = rows.loss.self_concordance * norms.rho * nu
    found = close & ((near <= NEAR) | ((near < 1) & settled_already))
    return record(rows, centre, left, params, adjoint, norms, nu, nu_penalty, of_adjoint, found)


def minimised(rows: Any, start: Float[Array, " p"]) -> Float[Array, " p"]:
    """The optimum by damped Newton steps, until the decrement no longer falls by half."""
    n = rows.count

    def value(w: Array) -> Array:
        losses = rows.weights * rows.loss.value(rows.predict(w), rows.targets)
        return jnp.sum(losses) / n + 0.5 * jnp.sum(rows.strengths * jnp.square(w))

    def direction(w: Array) -> tuple[Array, Array]:
        statistic, grad = rows.gradient(w)
        step = jsl.cho_solve((jnp.linalg.cholesky(rows.hessian(statistic)), True), grad)
        return step, jnp.sum(grad * step)

    def unfinished(carry: tuple) -> Bool[Array, ""]:
        _, _, going, steps = carry
        return going & (steps < NEWTON_STEPS)

    def move(carry: tuple) -> tuple:
        w, before, _, steps = carry
        step, square = direction(w)
        old = value(w)
        slack = 16 * rows.unit * jnp.abs(old)

        def too_high(t: Array) -> Array:
            fine = value(w - t * step) <= old - 1e-4 * t * square + slack
            return jnp.logical_not(fine) & (t > 1e-9)

        t = jax.lax.while_loop(too_high, lambda t: 0.5 * t, jnp.ones_like(square))
        # At the floor of rounding the decrement no longer falls.
        going = (square > 1e-30) & ((square < 0.25 * before) | (square > 1e-6))
        return jnp.where(going, w - t * step, w), square, going, steps + 1

    carry = (start, jnp.asarray(jnp.inf, start.dtype), jnp.asarray(True), jnp.asarray(0))
    return jax.lax.while_loop(unfinished, move, carry)[0]


Enclose: TypeAlias = Callable[[Any, Centre, Array], LeftOut]
Centring: TypeAlias = Callable[[Any, Array], Centre]


class _Sofar(eqx.Module):
    """`whole`: the fit on all rows. `closed`: rows that need nothing more, or have had a Newton method of their own."""

    centre: Centre
    whole: Float[Array, " p"]
    fits: LeftOut
    closed: Bool[Array, " K"]
    steps: Int[Array, ""]


def all_left_out(
    rows: Any,
    start: Float[Array, " p"],
    left: Int[Array, " N"],
    centring: Centring,
    enclose: Enclose,
    size: int,
    *,
    alone: bool,
) -> tuple[Centre, LeftOut, Int[Array, ""]]:
    """The fits without the rows `left`: in blocks of `size` with a shared factor; then, if `alone`, one by one.

    **Arguments:**

    - `start`: where the search for the fit on all rows starts.
    - `centring`: the centre of a problem at a point.
    - `enclose`: the fits without the rows of a block, given a centre.

    **Returns:** a centre with the fit on all rows as its `params`; the fits; and how many were made one by one.
    """
    count = left.shape[0]
    size = min(size, count)
    blocks = math.ceil(count / size)
    padded = jnp.concatenate([left, jnp.broadcast_to(left[:1], (blocks * size - count,))])

    def centre_from(problem: Any, guess: Array) -> Centre:
        return centring(problem, minimised(problem, guess))

    def unfinished(sofar: _Sofar) -> Bool[Array, ""]:
        more = jnp.logical_not(jnp.all(sofar.closed)) if alone else jnp.asarray(False)
        return (sofar.steps < blocks) | more

    def step(sofar: _Sofar) -> _Sofar:
        together = sofar.steps < blocks
        place = jnp.argmin(sofar.closed)  # the first that is open
        row = padded[place]
        places = jnp.where(together, sofar.steps * size + jnp.arange(size), place)
        weights = jnp.where(together, rows.weights, rows.weights.at[row].set(0))
        problem = eqx.tree_at(lambda r: r.weights, rows, weights)
        guess = sofar.fits.params[place]
        first = sofar.steps == 0
        guess = jnp.where(first | jnp.logical_not(jnp.all(jnp.isfinite(guess))), sofar.whole, guess)
        centre = jax.lax.cond(
            together & jnp.logical_not(first), lambda: sofar.centre, lambda: centre_from(problem, guess)
        )
        new = enclose(problem, centre, padded[places])
        old = jax.tree.map(lambda x: x[places], sofar.fits)
        better = together | (new.nearness <= old.nearness) | jnp.logical_not(old.nearness < 1)

        def merged(x: Array, a: Array, b: Array) -> Array:
            chosen = jnp.where(jnp.expand_dims(better, tuple(range(1, a.ndim))), a, b)
            return x.at[places].set(chosen)

        fits = jax.tree.map(merged, sofar.fits, new, old)
        closed = sofar.closed.at[places].set(new.found | jnp.logical_not(together))
        closed = closed | (jnp.arange(closed.size) >= count)
        whole = jnp.where(first, centre.params, sofar.whole)
        return _Sofar(centre, whole, fits, closed, sofar.steps + 1)

    shapes = jax.eval_shape(lambda: centring(rows, start))
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    one = jax.eval_shape(lambda: enclose(rows, none, padded[:size]))
    fits = jax.tree.map(lambda x: jnp.zeros((blocks * size, *x.shape[1:]), x.dtype), one)
    sofar = _Sofar(none, start, fits, jnp.zeros(blocks * size, bool), jnp.asarray(0))
    sofar = jax.lax.while_loop(unfinished, step, sofar)
    fits = jax.tree.map(lambda x: x[:count], sofar.fits)
    return eqx.tree_at(lambda c: c.params, sofar.centre, sofar.whole), fits, sofar.steps - blocks
