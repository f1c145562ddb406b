"""Activation interpolation `α o1 + (1 - α) o2`: the exact dual of a network with fixed inner weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ._bernstein import Array
from ._dual import ReadoutDuals
from ._margins import classes_of
from ._series import PENALTY, Features, Scores, cover, gamma, ridge_outputs, score
from ._task import Split, Task, check_domain, check_unweighted


@dataclass(frozen=True)
class Activation:
    """A continuous piecewise polynomial: `o(z) = sum_j coefficients[k][j] z^j` on the k-th interval between
    `breakpoints`.

    `breakpoints` (p,) ascending and `coefficients` p + 1 tuples, from the left to the right. The usual ones are here:
    `Activation.RELU`, `IDENTITY`, `RELU2` (max(z, 0)^2), `HARD_TANH` (clip(z, -1, 1)), `ABSOLUTE`, `HARD_SIGMOID`, and
    `Activation.leaky_relu(slope)`.

    **Raises:** `ValueError` where the pieces do not meet: a jump has no ridge read-out that is continuous in α, and
    the rounding of a pre-activation could not be bounded.
    """

    breakpoints: tuple[float, ...]
    """Ascending."""
    coefficients: tuple[tuple[float, ...], ...]
    """One tuple an interval, in ascending powers of z."""
    name: str = "piecewise polynomial"
    """For titles and labels."""
    RELU: ClassVar["Activation"]
    IDENTITY: ClassVar["Activation"]
    RELU2: ClassVar["Activation"]
    HARD_TANH: ClassVar["Activation"]
    HARD_SIGMOID: ClassVar["Activation"]
    ABSOLUTE: ClassVar["Activation"]

    def __post_init__(self):
        b = np.asarray(self.breakpoints, dtype=np.float64)
        if len(self.coefficients) != len(b) + 1 or any(len(c) == 0 for c in self.coefficients):
            raise ValueError(
                f"Activation: coefficients must be {len(b) + 1} non-empty tuples for {len(b)} breakpoints; "
                f"got {len(self.coefficients)}."
            )
        if not np.all(np.isfinite(b)) or not np.all(np.diff(b) > 0):
            raise ValueError(f"Activation: breakpoints must be finite and ascending; got {self.breakpoints}.")
        for z, left, right in zip(b, self.coefficients[:-1], self.coefficients[1:], strict=True):
            x, y = np.polynomial.polynomial.polyval(z, left), np.polynomial.polynomial.polyval(z, right)
            if not abs(x - y) <= 1e-12 * (1 + abs(x)):
                raise ValueError(f"Activation: the pieces must meet; got {x} and {y} at z = {z}.")

    @staticmethod
    def leaky_relu(slope: float) -> "Activation":
        """`max(z, 0) + slope min(z, 0)`: the ReLU interpolated with the identity at `α = 1 - slope`."""
        return Activation((0.0,), ((0.0, float(slope)), (0.0, 1.0)), f"leaky ReLU ({slope:g})")

    @property
    def degree(self) -> int:
        """The largest degree of a piece."""
        return max(len(c) for c in self.coefficients) - 1

    def __call__(self, z: Any) -> Array:
        """`o(z)`, elementwise."""
        z = np.asarray(z, dtype=np.float64)
        return np.sum([c * z**j for j, c in enumerate(self._at(z))], axis=0)

    def _at(self, z: Array) -> Array:
        """(degree + 1, *z.shape): the coefficients that apply at each entry."""
        table = np.zeros((self.degree + 1, len(self.coefficients)))
        for k, c in enumerate(self.coefficients):
            table[: len(c), k] = c
        return table[:, np.searchsorted(np.asarray(self.breakpoints, dtype=np.float64), z, side="right")]

    def error(self, size: Array, slack: Array) -> Array:
        """A bound of `|computed o(z_hat) - o(z)|` where `|z_hat| <= size` and `|z - z_hat| <= slack`.

        The slope of every piece on [-size - slack, size + slack] times `slack`, the rounding of the evaluation, and
        what the pieces miss each other by where they meet.
        """
        reach = size + slack
        slope, total = np.zeros_like(size), np.zeros_like(size)
        for cs in self.coefficients:
            powers = [np.abs(c) * reach**j for j, c in enumerate(cs)]
            total = np.maximum(total, sum(powers, np.zeros_like(size)))
            slope = np.maximum(
                slope, sum((j * np.abs(c) * reach ** (j - 1) for j, c in enumerate(cs) if j), np.zeros_like(size))
            )
        return (slope * slack + gamma(2 * self.degree + 6) * total + self._gap()) * (1 + gamma(8 * self.degree + 16))

    def _gap(self) -> float:
        polyval = np.polynomial.polynomial.polyval
        meet = zip(self.breakpoints, self.coefficients[:-1], self.coefficients[1:], strict=True)
        return sum(abs(float(polyval(z, left)) - float(polyval(z, right))) for z, left, right in meet)

    def beyond(self, z: Array) -> Array:
        """How far `sum_j z_j s^j`, |s| <= 1, affine, leaves the interval of o that `z_0` lies in."""
        ends = np.concatenate([[-np.inf], np.asarray(self.breakpoints, dtype=np.float64), [np.inf]])
        k = np.searchsorted(ends[1:-1], z[0], side="right")
        reach = np.sum(np.abs(z[1:]), axis=0)
        return np.maximum(0.0, np.maximum(ends[k] - (z[0] - reach), z[0] + reach - ends[k + 1]))

    def of_series(self, z: Array, at: Array) -> Array:
        """Coefficients of `o(z(s))` for a series z (J + 1, n, k), with the piece of o chosen at the numbers `at` (n,
        k)."""
        table = self._at(at)
        out = table[-1:]
        for c in table[-2::-1]:
            product = np.zeros((len(out) + len(z) - 1, *z.shape[1:]))
            for j in range(len(z)):
                product[j : j + len(out)] += out * z[j]
            product[0] += c
            out = product
        return out


Activation.RELU = Activation((0.0,), ((0.0,), (0.0, 1.0)), "ReLU")
Activation.IDENTITY = Activation((), ((0.0, 1.0),), "identity")
Activation.RELU2 = Activation((0.0,), ((0.0,), (0.0, 0.0, 1.0)), "squared ReLU")
Activation.HARD_TANH = Activation((-1.0, 1.0), ((-1.0,), (0.0, 1.0), (1.0,)), "hard tanh")
Activation.HARD_SIGMOID = Activation((-1.0, 1.0), ((0.0,), (0.5, 0.5), (1.0,)), "hard sigmoid")
Activation.ABSOLUTE = Activation((0.0,), ((0.0, -1.0), (0.0, 1.0)), "absolute value")


def activation_dual(
    task: Task,
    layers: Sequence[tuple[Any, Any]],
    o1: Activation,
    o2: Activation,
    *,
    penalty: float,
    domain: tuple[float, float] = (0.0, 1.0),
    accuracy: float = 1e-10,
    degree: int = 10,
) -> ReadoutDuals:
    r"""`α -> L_val(w(α))`, `w(α) = argmin_w ‖Phi(α) w - Y‖^2 / n + penalty ‖w‖^2`, exact in α.

    `Phi(α) = sigma_α(X V + b)` for one hidden layer, `sigma_α(sigma_α(X V_1 + b_1) V_2 + b_2)` for two,
    with `sigma_α = α o1 + (1 - α) o2`, a column of ones beside it, and V, b fixed (random features, or
    layers trained before). One layer: the pre-activations do not depend on α, so Phi is affine in α and the
    loss is one rational function of degree up to 4 k. Two layers: the second pre-activations are affine in α (their
    slopes and intercepts are known), they cross a breakpoint of o1 or o2 at known places, and between two of those Phi
    is a polynomial.

    Monomials cannot hold a rational function of such a degree, so it is expanded on pieces in power series whose
    remainder is proved (see `_series`): the answer is a polynomial on each piece, with a radius that holds what was cut
    off (at most `accuracy`) and all rounding, that of the pre-activations too.

    **Arguments:**

    - `task`: with targets -1 and +1 in one column, or one-hot rows, the answer has a 0-1 loss too; any other targets
        are those of a regression.
    - `layers`: one or two pairs `(V, b)`, V (d, k), b (k,).
    - `penalty`: of the read-out, positive.
    - `domain`: the range of α; it may leave [0, 1].
    - `accuracy`: most that the truncation of the series may be worth in the squared loss. Rounding comes on top, in the
        radius of the answer; it grows as the penalty falls (about 1e-16 / penalty).
    - `degree`: of the polynomials.

    **Raises:** `ValueError` for bad input, and where no bound can be proved (a penalty near zero).

    Source: Balcan, Nguyen, Sharma (2025), arXiv 2501.13734, section on activation interpolation.
    """
    a, b = check_domain(domain, "activation_dual", "")
    check_unweighted(task, "activation_dual")
    if not penalty > 0 or not np.isfinite(penalty):
        raise ValueError(f"penalty must be positive and finite; got {penalty}.")
    if len(layers) not in (1, 2):
        raise ValueError(f"layers must hold one or two pairs (V, b) for a dual that is exact; got {len(layers)}.")
    weights: list[tuple[Array, Array]] = []
    for i, pair in enumerate(layers):
        weights.append(checked_layer(task, pair, i, weights[-1][0].shape[1] if weights else None))
    parts = [_split_dual(split, weights, o1, o2, penalty, (a, b), accuracy, degree) for split in task.splits]
    return ReadoutDuals.pooled(parts, [len(split.X_val) / task.n_validation for split in task.splits])


def _split_dual(
    split: Split,
    weights: list[tuple[Array, Array]],
    o1: Activation,
    o2: Activation,
    penalty: float,
    domain: tuple[float, float],
    accuracy: float,
    degree: int,
) -> ReadoutDuals:
    n = len(split.X)
    truth = classes_of(split.y_val) if classes_of(split.y) is not None else None
    first = first_layer(np.concatenate([split.X, split.X_val]), *weights[0], o1, o2)
    cuts = np.array(domain) if len(weights) == 1 else _crossings(first, *weights[1], o1, o2, *domain)

    def expand(lo: float, hi: float) -> Scores:
        hidden = first.on(lo, hi)
        if len(weights) == 2:
            hidden = _second_layer(hidden, *weights[1], o1, o2, lo, hi)
        ones = np.zeros((len(hidden.values), hidden.values.shape[1], 1))
        ones[0] = 1.0
        features = np.concatenate([hidden.values, ones], axis=2)
        radius = np.sqrt(np.sum(hidden.slack**2, axis=1)) * (1 + gamma(features.shape[2] + 8))
        exact = np.zeros(len(radius))  # Phi is a polynomial: nothing is cut off
        train, test = (Features(features[:, i], radius[i], exact[i]) for i in (slice(n), slice(n, None)))
        return score(ridge_outputs(train, split.y, test, penalty, degree), split.y_val, truth, degree)

    pieces = [
        piece for ends in pairwise(cuts.tolist()) for piece in cover(ends, expand, accuracy, "activation_dual", PENALTY)
    ]
    return ReadoutDuals.assemble(pieces, len(split.X_val), truth is not None)


class _Hidden(NamedTuple):
    """Hidden units on a piece, as series in s: within `slack` (rows, k) of `sum_j values[j] s^j`."""

    values: Array
    slack: Array


class _First(NamedTuple):
    """`o1(Z)` and `o2(Z)` of the first layer, which α does not touch, each with its error."""

    v1: Array
    e1: Array
    v2: Array
    e2: Array

    def on(self, lo: float, hi: float) -> _Hidden:
        """`α v1 + (1 - α) v2` on `α = centre + half s`."""
        return _interpolate(self.v1[None], self.e1, self.v2[None], self.e2, lo, hi)


def _interpolate(p1: Array, e1: Array, p2: Array, e2: Array, lo: float, hi: float) -> _Hidden:
    """`α p1(s) + (1 - α) p2(s)`, `α = centre + half s` on [lo, hi]."""
    centre, half = 0.5 * (lo + hi), 0.5 * (hi - lo)
    length = max(len(p1), len(p2))
    p1, p2 = (np.concatenate([p, np.zeros((length - len(p), *p.shape[1:]))]) for p in (p1, p2))
    values = np.zeros((length + 1, *p1.shape[1:]))
    values[:-1] = centre * p1 + (1.0 - centre) * p2
    values[1:] += half * (p1 - p2)
    most, rest = max(abs(lo), abs(hi)), max(abs(1.0 - lo), abs(1.0 - hi))
    slack = most * (e1 + gamma(8) * np.sum(np.abs(p1), axis=0)) + (rest + gamma(4)) * (
        e2 + gamma(8) * np.sum(np.abs(p2), axis=0)
    )
    return _Hidden(values, slack * (1 + gamma(16)))


def first_layer(x: Array, matrix: Array, bias: Array, o1: Activation, o2: Activation) -> _First:
    z = x @ matrix + bias
    slack = gamma(x.shape[1] + 8) * (np.abs(x) @ np.abs(matrix) + np.abs(bias))
    return _First(o1(z), o1.error(np.abs(z), slack), o2(z), o2.error(np.abs(z), slack))


def _second_layer(
    hidden: _Hidden, matrix: Array, bias: Array, o1: Activation, o2: Activation, lo: float, hi: float
) -> _Hidden:
    pre = hidden.values @ matrix
    pre[0] += bias
    size = np.sum(np.abs(hidden.values), axis=0) @ np.abs(matrix) + np.abs(bias)
    slack = (hidden.slack @ np.abs(matrix) + gamma(len(matrix) + 8) * size) * (1 + gamma(len(matrix) + 16))

    def through(o: Activation) -> tuple[Array, Array]:
        # The piece of o is that of the middle. Where rounding put a crossing inside the cell, the series leaves that
        # piece by `beyond`, over which o and the polynomial part by at most twice their Lipschitz constant.
        beyond = o.beyond(pre)
        return o.of_series(pre, pre[0]), o.error(size + beyond, slack + 2 * beyond)

    return _interpolate(*through(o1), *through(o2), lo, hi)


def _crossings(first: _First, matrix: Array, bias: Array, o1: Activation, o2: Activation, a: float, b: float) -> Array:
    """Ends of the cells: where a pre-activation of the second layer, affine in α, meets a breakpoint."""
    at_zero, slope = first.v2 @ matrix + bias, (first.v1 - first.v2) @ matrix
    moving = slope != 0
    places = [
        (z - at_zero[moving]) / slope[moving]
        for z in sorted({*map(float, o1.breakpoints), *map(float, o2.breakpoints)})
    ]
    inside = np.unique(np.concatenate([np.zeros(0), *places]))
    inside = inside[(inside > a) & (inside < b)]
    # Crossings closer than this share a cell end: the cells stay wider than rounding, and `beyond` pays for the shift.
    apart = 1e-10 * max(b - a, abs(a), abs(b))
    ends = [a]
    for place in inside.tolist():
        if place - ends[-1] > apart and b - place > apart:
            ends.append(place)
    return np.array([*ends, b])


def checked_layer(task: Task, pair: tuple[Any, Any], index: int, inputs: int | None = None) -> tuple[Array, Array]:
    """V and b as arrays, for a task's columns or so many inputs.

    **Raises:** `ValueError`.
    """
    rows = task.splits[0].X.shape[1] if inputs is None else inputs
    matrix, bias = np.asarray(pair[0], dtype=np.float64), np.asarray(pair[1], dtype=np.float64)
    if matrix.ndim != 2 or not np.all(np.isfinite(matrix)):
        raise ValueError(f"layers[{index}][0] must be a matrix of finite numbers; got shape {matrix.shape}.")
    if bias.shape != matrix.shape[1:] or not np.all(np.isfinite(bias)):
        raise ValueError(f"layers[{index}][1] must hold {matrix.shape[1]} finite numbers; got shape {bias.shape}.")
    if len(matrix) != rows:
        raise ValueError(f"layers[{index}] must have {rows} rows, one an input; got {len(matrix)}.")
    return matrix, bias
