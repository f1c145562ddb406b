"""Graph kernels with one parameter, as power series with a remainder."""

from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from ._bernstein import Array
from ._series import gamma

Matrix: TypeAlias = Any
"""A dense array, or a SciPy sparse array in CSR form."""


@runtime_checkable
class Kernel(Protocol):
    """Weights `A_ij(α) = k(d_ij, α) >= 0`, analytic in α; `PolynomialKernel` and `GaussianKernel` are
    such."""

    def __call__(self, distances: Array, hyper: float) -> Array:
        """`k(d, α)`, elementwise."""
        ...

    def expand(self, distances: Array, centre: float, half: float, degree: int) -> tuple[Array, Array, Array]:
        """Coefficients (J + 1, *distances.shape) of `k(d, centre + half s)`, and elementwise bounds of what the
        truncated series leaves out on |s| <= 1 and of the rounding of its values there. Raises
        `numpy.linalg.LinAlgError` where the piece is too wide for a bound."""
        ...

    def check(self, distances: Array, a: float, b: float) -> None:
        """Raises `ValueError` where the weights are not all >= 0 on [a, b]."""
        ...


@dataclass(frozen=True)
class PolynomialKernel:
    """`k(d, α) = (d + α)^degree`, `degree >= 1` an integer, on `d + α >= 0`.

    Source: Balcan and Sharma (2021), arXiv 2103.10547, and Balcan, Nguyen, Sharma (2025), arXiv 2501.13734.
    """

    degree: int
    """Δ."""

    def __post_init__(self):
        if self.degree != int(self.degree) or self.degree < 1:
            raise ValueError(f"PolynomialKernel: degree must be a whole number >= 1; got {self.degree}.")

    def __call__(self, distances: Array, hyper: float) -> Array:
        return (distances + hyper) ** self.degree

    def expand(self, distances: Array, centre: float, half: float, degree: int) -> tuple[Array, Array, Array]:
        # All Δ + 1 coefficients are kept, whatever `degree`: nothing is left out but rounding.
        base = distances + centre
        n = self.degree
        series = np.stack([comb(n, j) * half**j * base ** (n - j) for j in range(n + 1)])
        reach = np.abs(distances) + abs(centre)
        size = np.sum([comb(n, j) * half**j * reach ** (n - j) for j in range(n + 1)], axis=0)
        return series, np.zeros_like(size), gamma(4 * n + 16) * size

    def check(self, distances: Array, a: float, b: float) -> None:
        if distances.size and not np.min(distances) + a >= 0:
            raise ValueError(
                f"PolynomialKernel: d + hyper must be >= 0 on the domain; the smallest d is {np.min(distances):.6g} "
                f"and the domain begins at {a:.6g}."
            )


@dataclass(frozen=True)
class GaussianKernel:
    """`k(d, α) = exp(-d^2 / α^2)`, `α > 0`.

    *Remainder.* On the complex disc of radius R = c/2 about c, α has a modulus of at most 1.5 c and an argument of
    at most 30 degrees, so `Re(1 / α^2) >= cos(60 degrees) / (1.5 c)^2 >= 0.2 / c^2` and `|k| <= B = exp(-0.2 d^2 /
    c^2)`. By Cauchy's estimate the coefficient j in s is at most `B q^j`, `q = h / R`, and what follows degree D at
    most `B q^(D + 1) / (1 - q)`.
    """

    def __call__(self, distances: Array, hyper: float) -> Array:
        return np.exp(-((distances / hyper) ** 2))

    def expand(self, distances: Array, centre: float, half: float, degree: int) -> tuple[Array, Array, Array]:
        q = 2 * half / centre
        if q > 0.75:
            raise np.linalg.LinAlgError("the piece is too wide for the Gaussian kernel's series")
        # -d^2 / (c + h s)^2 = -(d/c)^2 sum_j (-1)^j (j + 1) (h/c)^j s^j, and E' = Q' E for E = exp Q.
        ratio = half / centre
        square = (distances / centre) ** 2
        exponent = [-square * (-1.0) ** j * (j + 1) * ratio**j for j in range(degree + 1)]
        series, majorant = [np.exp(exponent[0])], [np.exp(exponent[0])]
        for k in range(1, degree + 1):
            series.append(np.sum([j * exponent[j] * series[k - j] for j in range(1, k + 1)], axis=0) / k)
            majorant.append(np.sum([j * np.abs(exponent[j]) * majorant[k - j] for j in range(1, k + 1)], axis=0) / k)
        # Every product that enters coefficient k holds at most k factors and passes at most k sums of k terms; the
        # error of Q_0, 8 u |Q_0|, multiplies everything.
        rounding = gamma(2 * degree**2 + 16 * degree + 32) * (1 + square) * sum(majorant)
        left_out = np.exp(-0.2 * square) * q ** (degree + 1) / (1 - q)
        # Underflow in exp: entries below 1e-300 are lost altogether.
        return np.stack(series), left_out * (1 + gamma(64)), rounding * (1 + gamma(64)) + 1e-300

    def check(self, distances: Array, a: float, b: float) -> None:
        if not a > 0:
            raise ValueError(f"GaussianKernel: hyper must be positive on the domain; it begins at {a:.6g}.")
        if np.any(distances < 0):
            raise ValueError(f"GaussianKernel: distances must be >= 0; the smallest is {np.min(distances):.6g}.")


class WeightSeries(NamedTuple):
    """`A(s)` on a piece: coefficients, and for each row a bound of the sum of the errors of its entries."""

    coefficients: list[Matrix]
    row_radius: Array
    row_truncation: Array
    """The part of `row_radius` that a thinner piece would lessen; the rest is rounding."""


class Graph:
    """Distances (or similarities) on the edges of a graph: dense, or only where `edges` is set.

    `distances` (N, N) symmetric; `edges` (N, N) boolean, symmetric, `None` for all pairs. Where fewer than one pair in
    ten is an edge, the weights are held in a sparse form.
    """

    def __init__(self, distances: Any, edges: Any = None, *, loops: bool):
        d = np.asarray(distances, dtype=np.float64)
        if d.ndim != 2 or d.shape[0] != d.shape[1] or len(d) < 2:
            raise ValueError(f"distances must be a square matrix of at least two nodes; got shape {d.shape}.")
        support = np.ones(d.shape, dtype=bool) if edges is None else np.asarray(edges).astype(bool)
        if support.shape != d.shape:
            raise ValueError(f"edges must have the shape of distances, {d.shape}; got {support.shape}.")
        support = support.copy()
        np.fill_diagonal(support, loops)
        if not np.all(np.isfinite(d[support])):
            raise ValueError("distances must be finite on every edge.")
        if not np.array_equal(support, support.T) or not np.array_equal(d[support], d.T[support]):
            raise ValueError("distances and edges must be symmetric, to the bit.")
        self.n = len(d)
        self.rows, self.columns = np.nonzero(support)
        self.values = d[self.rows, self.columns]
        self.sparse = len(self.values) < 0.1 * self.n**2

    def matrix(self, values: Array) -> Matrix:
        """The (N, N) matrix with `values` on the edges."""
        if self.sparse:
            from scipy.sparse import csr_array

            return csr_array((values, (self.rows, self.columns)), shape=(self.n, self.n))
        out = np.zeros((self.n, self.n))
        out[self.rows, self.columns] = values
        return out

    def expand(self, kernel: Kernel, lo: float, hi: float, degree: int) -> WeightSeries:
        """The weights on [lo, hi]. Entries have few distinct distances in many graphs: each is expanded once."""
        distinct, where = np.unique(self.values, return_inverse=True)
        centre = 0.5 * (lo + hi)
        half = max(hi - centre, centre - lo)
        series, cut, rounding = kernel.expand(distinct, centre, half, degree)
        cuts, roundings = (
            np.bincount(self.rows, weights=x[where], minlength=self.n) * (1 + gamma(self.n + 8))
            for x in (cut, rounding)
        )
        return WeightSeries([self.matrix(c[where]) for c in series], (cuts + roundings) * (1 + gamma(4)), cuts)


def row_sums(matrix: Matrix) -> Array:
    """Sums of the rows, as a flat array, dense or sparse."""
    return np.asarray(matrix.sum(axis=1)).reshape(-1)
