"""Certified enclosures of dual functions by adaptive bisection, for smooth strongly convex inner problems."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from ._bernstein import UNIT, Array
from ._piecewise import PiecewiseFunction
from ._series import gamma
from ._task import check_domain

THINNEST = 2.0**-44
"""Intervals narrower than this part of their ends are not cut again."""


class Chord(NamedTuple):
    """`start (1 - t) + end t - below <= L(α) <= start (1 - t) + end t + above` for `α = (1 - t) a + t b`."""

    start: float
    end: float
    below: float
    above: float


@runtime_checkable
class InnerProblem(Protocol):
    """What `enclose` needs of a problem: an approximate optimum at one α, and a bound between two."""

    def solve(self, hyper: float, start: Any) -> Any:
        """The solution at α (with whatever `chord` wants to find again), started from another one or from
        `None`."""
        ...

    def between(self, left: Any, right: Any) -> Any:
        """A starting point for the middle of an interval, from the solutions at its ends."""
        ...

    def chord(self, a: float, left: Any, b: float, right: Any) -> Chord:
        """The proved enclosure on [a, b]; infinite where none can be proved yet."""
        ...

    def middle(self, a: float, b: float) -> float:
        """Where to cut [a, b]."""
        ...


def enclose(
    problem: InnerProblem, domain: tuple[float, float], *, tolerance: float, most_solves: int = 2000
) -> PiecewiseFunction:
    r"""`|L(α) - p(α)| <= r_k <= tolerance` on every piece k: a dual function known to a tolerance, everywhere.

    `L(α) = g(w*(α))`, `w*(α) = argmin_w f(w, α)`. The problem is solved (approximately) at the two ends
    of an interval; between them the chord `c(t) = (1 - t) w_a + t w_b` is compared with the path w*. For a strongly
    convex f with modulus mu,

        ‖ c(t) - w*(α(t)) ‖ <= ‖ grad f(c(t), α(t)) ‖ / mu,

    and along the chord the gradient differs from the straight line between its (tiny) values at the ends by at most 1/8
    of the largest second derivative: an error of second order in the width, so the number of solves grows like
    `tolerance^-1/2`. An interval whose bound is above the tolerance is halved.

    **Arguments:**

    - `problem`: a [`SmoothProblem`][hyprax.tasks.SmoothProblem] with its constants, or anything with its methods.
      [`logistic_dual`][hyprax.tasks.logistic_dual] and `huber_dual` prove chords of their own.
    - `domain`: (a, b), the range of α.
    - `tolerance`: the largest radius allowed.
    - `most_solves`: how many inner problems may be solved.

    **Returns:** a [`PiecewiseFunction`][hyprax.tasks.PiecewiseFunction] of linear pieces, certified if the constants
    are right.

    **Raises:** `ValueError` where the tolerance is not reached, with the place and the radius there.
    """
    a, b = check_domain(domain, "enclose", "")
    left = problem.solve(a, None)
    stack, solves = [(a, left, b, problem.solve(b, problem.between(left, left)))], 2
    edges: list[float] = [a]
    chords: list[Chord] = []
    while stack:
        lo, left, hi, right = stack.pop()
        chord = problem.chord(lo, left, hi, right)
        if chord.below + chord.above <= 2 * tolerance:
            edges.append(hi)
            chords.append(chord)
            continue
        middle = problem.middle(lo, hi)
        if solves >= most_solves or not lo < middle < hi or hi - lo <= THINNEST * max(abs(lo), abs(hi)):
            raise ValueError(too_wide(lo, hi, solves))
        state = problem.solve(middle, problem.between(left, right))
        solves += 1
        stack += [(middle, state, hi, right), (lo, left, middle, state)]
    # The enclosure is [line - below, line + above]: centred, a line again.
    shift = np.array([0.5 * (c.above - c.below) for c in chords])
    rows = np.array([[c.start, c.end] for c in chords]) + shift[:, None]
    radius = np.array([0.5 * (c.above + c.below) for c in chords]) + 8 * UNIT * np.max(np.abs(rows), axis=1)
    return PiecewiseFunction(np.array(edges), rows, None, radius)


def too_wide(lo: float, hi: float, solves: int) -> str:
    """The sentence for an interval on which no proof comes within the tolerance."""
    return (
        f"the enclosure on [{lo:.9g}, {hi:.9g}] is still too wide after {solves} solves. Raise `tolerance` or "
        "`most_solves`, or keep the domain away from this place (with a tiny modulus of strong convexity no float64 "
        "gradient is small enough)."
    )


class Solution(NamedTuple):
    """An approximate optimum of a `SmoothProblem`, with what the bounds ask of it."""

    w: Array
    gradient_norm: float
    value: float
    outer_norm: float


@dataclass(frozen=True)
class SmoothProblem:
    r"""A strongly convex inner problem and a smooth outer loss, of one's own, with the constants that prove an
    enclosure.

    With `mu` the modulus of strong convexity of `f(., α)`, `d = w_b - w_a`, `D = b - a`, and gradients at the ends
    of norm g_a, g_b, the gradient along the chord c(t) is bounded in two ways, of which the smaller is used:

    - second order, from `bend = (K, K', K'')` with `|f_www| <= K`, `|f_ww α| <= K'`, `|f_w α α| <= K''`
      (operator norms): `max(g_a, g_b) + (K |d|^2 + 2 K' |D| |d| + K'' D^2) / 8`, by the error of linear interpolation;
    - first order, from `mixed = M`, `|f_w α| <= M`: w* is within `(max(g_a, g_b) + M |D| / 2) / mu` of the nearer
      end, and c(t) within `|d| / 2` of it.

    That gives `|c(t) - w*| <= r`. With g's gradient Lipschitz (`smoothness = B`), `g(c(t))` is within `B |d|^2 / 8` of
    the straight line between its ends, and `|g(w*) - g(c)| <= r (max(|grad g(w_a)|, |grad g(w_b)|) + B |d| / 2) + B r^2
    / 2`.

    The constants must hold wherever the chords and the path run; each may be a number or a function `(a, b) -> number`.
    **They are the user's word: the enclosure is as certain as they are.**
    """

    gradient: Callable[[Array, float], Array]
    """`(w, α) -> grad_w f`, w a flat array."""
    solver: Callable[[float, Array | None], Array]
    """`(α, start) -> w`, an approximate optimum; `start` is a guess or `None`. Its accuracy is measured, not
    trusted."""
    outer: Callable[[Array], float]
    """`w -> g(w)`."""
    outer_gradient: Callable[[Array], Array]
    """`w -> grad g(w)`."""
    strong_convexity: float | Callable[[float, float], float]
    """mu > 0 on [a, b]."""
    smoothness: float | Callable[[float, float], float]
    """B, the Lipschitz constant of `outer_gradient`."""
    rounding: float
    """Bound of the rounding error of `gradient`, `outer` and `outer_gradient` (in norm); 1e-12 times their size is a
    usual guess, but it is part of the proof."""
    bend: Callable[[float, float], tuple[float, float, float]] | tuple[float, float, float] | None = None
    """(K, K', K''), bounds of the third derivatives."""
    mixed: float | Callable[[float, float], float] | None = None
    """M, a bound of the mixed second derivative."""
    logarithmic: bool = False
    """Whether intervals are cut at their geometric middle (for a positive α over decades)."""

    def __post_init__(self):
        if self.bend is None and self.mixed is None:
            raise ValueError(
                "SmoothProblem: `bend` (second order) or `mixed` (first order) must be given, or both; got neither."
            )
        if not self.rounding >= 0:
            raise ValueError(f"SmoothProblem: rounding must be >= 0; got {self.rounding}.")

    def solve(self, hyper: float, start: Array | None) -> Solution:
        """The user's solution at α, with the gradient norm that it really has."""
        w = np.asarray(self.solver(hyper, start), dtype=np.float64)
        slope, outer = np.asarray(self.gradient(w, hyper), np.float64), np.asarray(self.outer_gradient(w), np.float64)
        value = float(self.outer(w))
        if slope.shape != w.shape or outer.shape != w.shape or w.ndim != 1:
            raise ValueError(
                "w, gradient and outer_gradient must be flat arrays of one shape; "
                f"got {w.shape}, {slope.shape}, {outer.shape}."
            )
        if not (np.all(np.isfinite(slope)) and np.all(np.isfinite(outer)) and np.isfinite(value)):
            raise ValueError(f"the gradients and the outer loss must be finite; got nan or inf at {hyper}.")
        size = 1 + gamma(w.size + 8)
        return Solution(
            w,
            float(np.linalg.norm(slope)) * size + self.rounding,
            value,
            float(np.linalg.norm(outer)) * size + self.rounding,
        )

    def between(self, left: Solution, right: Solution) -> Array:
        """The middle of the chord."""
        return 0.5 * (left.w + right.w)

    def middle(self, a: float, b: float) -> float:
        """The arithmetic or the geometric middle."""
        return float(np.sqrt(a) * np.sqrt(b)) if self.logarithmic else 0.5 * (a + b)

    def chord(self, a: float, left: Solution, b: float, right: Solution) -> Chord:
        """See the class."""
        mu, smooth = _at(self.strong_convexity, a, b), _at(self.smoothness, a, b)
        if not mu > 0 or not smooth >= 0:
            raise ValueError(f"on [{a}, {b}] strong_convexity must be > 0 and smoothness >= 0; got {mu} and {smooth}.")
        d = float(np.linalg.norm(right.w - left.w)) * (1 + gamma(left.w.size + 16))
        slope, width = max(left.gradient_norm, right.gradient_norm), b - a
        r = np.inf
        if self.bend is not None:
            k0, k1, k2 = self.bend(a, b) if callable(self.bend) else self.bend
            r = (slope + (k0 * d**2 + 2 * k1 * width * d + k2 * width**2) / 8) / mu
        if self.mixed is not None:
            r = min(r, (slope + 0.5 * _at(self.mixed, a, b) * width) / mu + 0.5 * d)
        bow = smooth * d**2 / 8
        off = r * (max(left.outer_norm, right.outer_norm) + 0.5 * smooth * d) + 0.5 * smooth * r**2
        both = (bow + off + self.rounding) * (1 + gamma(64))
        return Chord(left.value, right.value, both, both)


def _at(constant: float | Callable[[float, float], float], a: float, b: float) -> float:
    return float(constant(a, b)) if callable(constant) else float(constant)
