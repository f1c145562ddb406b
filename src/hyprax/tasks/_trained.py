"""Duals of trained networks: many starts, continuation in α, slopes by the implicit function theorem. Estimated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from ._bernstein import Array, from_monomial
from ._piecewise import PiecewiseFunction

_CG_STEPS = 200
_CG_TOLERANCE = 1e-6
_STATIONARY = 1e-4
"""The largest norm of the training gradient at which the implicit function theorem is used."""


@dataclass(frozen=True, eq=False)
class TrainedDual:
    """What was found at each α, and the curve through it. Nothing here is proved: a better optimum may exist."""

    dual: PiecewiseFunction
    """The validation loss of the best training optimum found: cubic between the αs (Hermite, from values and
    slopes), constant radius 0, `certified = False`."""
    hypers: Array
    """(G,)."""
    training: Array
    """(G,): the smallest training objective found."""
    validation: Array
    """(G,): the validation loss there."""
    slopes: Array
    """(G,): its derivative in α along the optimum; nan where the point found is not stationary (a minimum on a kink
    of a ReLU, or training cut short) or the Hessian was not positive definite to CG."""
    stationarity: Array
    """(G,): the norm of the training gradient at the point found."""
    start: Array
    """(G,): which start, or which neighbour (-1 from the left, -2 from the right), gave the best optimum."""
    params: list[Any]
    """The parameters of each."""


def trained_dual(
    inner_loss: Callable[[Any, Any], Any],
    outer_loss: Callable[[Any, Any], Any],
    starts: Sequence[Any],
    hypers: Any,
    *,
    sweeps: int = 1,
    steps: int = 500,
) -> TrainedDual:
    r"""`α -> g(w*(α), α)`, `w*(α)` the best local minimum of `f(., α)` that a search finds.

    At every α f is minimised by L-BFGS from each of `starts`, and the lowest optimum is kept (the training dual is
    the lower envelope of the branches). Then it is followed: a sweep from left to right and one back restart each α
    from its neighbour's optimum, moved along `dw/dα = -H^-1 f_(w α)`, and keep whatever is lower. The slope of
    the validation loss is the hypergradient `g_α - g_w^T H^-1 f_(w α)`, its solve by conjugate gradients on
    Hessian-vector products. Between the αs runs the cubic with these values and slopes, a slope no steeper than
    three times the rise of its piece (the limit of Fritsch and Carlson, 1980), so that the cubic does not shoot far
    past the values.

    **Estimated**: the function may have lower branches that no start found, and jumps between the αs.

    **Arguments:**

    - `inner_loss`, `outer_loss`: `(params, α) -> scalar`, JAX functions; the inner one smooth with an l2 penalty,
        so that its minima are isolated.
    - `starts`: parameter pytrees to train from (one at least).
    - `αs`: (G,) strictly ascending, at least two.
    - `sweeps`: how often to go through the αs and back; 0 for starts alone.
    - `steps`: of L-BFGS, for each training.

    Source: Balcan, Nguyen, Sharma (2025), arXiv 2501.13734, for the dual; the search is ours.
    """
    grid = np.asarray(hypers, dtype=np.float64)
    if grid.ndim != 1 or grid.size < 2 or not np.all(np.isfinite(grid)) or not np.all(np.diff(grid) > 0):
        raise ValueError(f"trained_dual: hypers must be at least two finite numbers in ascending order; got {grid}.")
    if not starts:
        raise ValueError("trained_dual needs at least one start.")
    flat, unravel = ravel_pytree(starts[0])
    search = _Search(inner_loss, outer_loss, unravel, flat.dtype, steps)
    begun = [ravel_pytree(start)[0] for start in starts]
    best = [_lowest(search, a, begun) for a in grid.tolist()]
    for _ in range(sweeps):
        for order, label in ((range(1, grid.size), -1), (range(grid.size - 2, -1, -1), -2)):
            for i in order:
                j = i - 1 if label == -1 else i + 1
                moved = search.predict(best[j][1], float(grid[j]), float(grid[i]))
                value, w = search.minimise(moved, float(grid[i]))
                if value < best[i][0] - 1e-12 * (1 + abs(best[i][0])):
                    best[i] = (value, w, label)
    rows = [search.outer(w, a) for (_, w, _), a in zip(best, grid.tolist(), strict=True)]
    values, slopes, norms = (np.array(column) for column in zip(*rows, strict=True))
    return TrainedDual(
        _hermite(grid, values, slopes),
        grid,
        np.array([v for v, _, _ in best]),
        values,
        slopes,
        norms,
        np.array([s for _, _, s in best]),
        [unravel(jnp.asarray(w, flat.dtype)) for _, w, _ in best],
    )


def _lowest(search: "_Search", hyper: float, starts: list[Any]) -> tuple[float, Array, int]:
    found = [(*search.minimise(np.asarray(w, np.float64), hyper), i) for i, w in enumerate(starts)]
    finite = [x for x in found if np.isfinite(x[0])]
    if not finite:
        raise ValueError(f"the inner loss was not finite from any start at hyper = {hyper:.6g}.")
    return min(finite, key=lambda x: x[0])


class _Search:
    """The compiled pieces: objective with gradient, tangent, hypergradient."""

    def __init__(self, inner: Any, outer: Any, unravel: Any, dtype: Any, steps: int):
        self.dtype, self.steps = dtype, steps

        def f(w: Any, hyper: Any) -> Any:
            return inner(unravel(w), hyper)

        def g(w: Any, hyper: Any) -> Any:
            return outer(unravel(w), hyper)

        def pull(w: Any, hyper: Any, right: Any) -> tuple[Any, Any, Any]:
            """`q = H^-1 right`, its relative residual, and the smallest curvature met (of q)."""

            def hvp(v: Any) -> Any:
                return jax.jvp(lambda u: jax.grad(f)(u, hyper), (w,), (v,))[1]

            q, _ = jax.scipy.sparse.linalg.cg(hvp, right, tol=_CG_TOLERANCE, maxiter=_CG_STEPS)
            size = jnp.linalg.norm(right)
            return q, jnp.linalg.norm(hvp(q) - right) / jnp.where(size > 0, size, 1.0), q @ hvp(q)

        def mixed(w: Any, hyper: Any) -> Any:
            return jax.jvp(lambda a: jax.grad(f)(w, a), (hyper,), (jnp.ones_like(hyper),))[1]

        def tangent(w: Any, hyper: Any) -> tuple[Any, Any, Any]:
            q, residual, curvature = pull(w, hyper, mixed(w, hyper))
            return -q, residual, curvature

        def hypergradient(w: Any, hyper: Any) -> tuple[Any, Any, Any, Any]:
            value, (slope_w, slope_a) = jax.value_and_grad(g, argnums=(0, 1))(w, hyper)
            q, residual, curvature = pull(w, hyper, slope_w)
            return value, slope_a - q @ mixed(w, hyper), residual, curvature

        self.objective = jax.jit(jax.value_and_grad(f))
        self.tangent, self.hypergradient = jax.jit(tangent), jax.jit(hypergradient)

    def _at(self, w: Array, hyper: float) -> tuple[Any, Any]:
        return jnp.asarray(w, self.dtype), jnp.asarray(hyper, self.dtype)

    def minimise(self, start: Array, hyper: float) -> tuple[float, Array]:
        from scipy.optimize import minimize

        def both(w: Array) -> tuple[float, Array]:
            value, slope = self.objective(*self._at(w, hyper))
            return float(value), np.asarray(slope, np.float64)

        options = {"maxiter": self.steps, "ftol": 0.0, "gtol": 1e-9}
        found = minimize(both, np.asarray(start, np.float64), jac=True, method="L-BFGS-B", options=options)
        return float(found.fun), np.asarray(found.x)

    def predict(self, w: Array, here: float, there: float) -> Array:
        step, residual, curvature = self.tangent(*self._at(w, here))
        trusted = np.isfinite(float(residual)) and float(residual) < 1e-2 and float(curvature) >= 0
        return w + (there - here) * np.asarray(step, np.float64) if trusted else w

    def outer(self, w: Array, hyper: float) -> tuple[float, float, float]:
        value, slope, residual, curvature = self.hypergradient(*self._at(w, hyper))
        norm = float(jnp.linalg.norm(self.objective(*self._at(w, hyper))[1]))
        good = np.isfinite(float(slope)) and float(residual) < 1e-2 and float(curvature) >= 0 and norm < _STATIONARY
        return float(value), float(slope) if good else float("nan"), norm


def _hermite(hypers: Array, values: Array, slopes: Array) -> PiecewiseFunction:
    """The cubic through values and slopes, limited as `trained_dual` says; a slope that is nan becomes the mean
    secant."""
    width = np.diff(hypers)
    secant = np.diff(values) / width
    left, right = np.append(secant[0], secant), np.append(secant, secant[-1])
    slope = np.where(np.isfinite(slopes), slopes, 0.5 * (left + right))
    start, end = slope[:-1] * width, slope[1:] * width
    rise = np.diff(values)
    limit = 3 * np.abs(rise)
    start, end = np.clip(start, -limit, limit), np.clip(end, -limit, limit)
    rows = np.stack([values[:-1], start, 3 * rise - 2 * start - end, start + end - 2 * rise], axis=1)
    return PiecewiseFunction(hypers, from_monomial(rows), None, np.zeros(len(rows)), False)
