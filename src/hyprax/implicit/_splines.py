"""Smooth terms for families: P-splines as columns whose penalty is diagonal, and what was fitted with them."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.special
from jaxtyping import Array, Float, PyTree

from .._hyper import validated
from .families._design import check_finite, is_dense, real_numbers
from .families._generalised_linear import GeneralisedLinear
from .families._losses import LogisticLoss, PoissonLoss, SquaredLoss


class SplineTerms:
    """Columns of an additive model: y ~ w_0 + f_1(x_1) + ... + f_k(x_k), each f_t a P-spline with its own strength.

    f_t = Σ_j β_j B_j(x) with B-splines over equal segments of the range of x_t, and the penalty ½ (λ_t/s_t)|D β|², D
    the differences of some order. The singular value decomposition D = V S Uᵀ makes that diagonal: β = U S⁻¹b + null
    space, so |Dβ|² = |b|², and the columns for b are B U S⁻¹. The null space of D, the polynomials below the order,
    carries no penalty: its columns are free. All columns of a term are centred, so that Σ_i f_t(x_it) = 0 on these
    rows and the intercept, the first column, is the only constant. Columns with a penalty are scaled by √s_t to a mean
    square of 1 in all, so that strengths compare from term to term.

        terms = hx.implicit.SplineTerms(inputs)
        family = hx.families.Squared(
            terms.columns, targets, penalty="penalty", penalty_groups=terms.groups, free=terms.free
        )
        hyper = {"penalty": hx.Positive(np.ones(terms.count))}

    **Arguments:**

    - `inputs`: x, `(n, k)`, finite: a term for each column; at least two distinct values in each.
    - `segments`: equal parts of the range, a number for all terms or one for each; a term has `segments + degree`
        B-splines.
    - `degree`: of the splines.
    - `order`: of the differences: 2 shrinks a term towards a straight line, 1 towards a constant.

    Beyond the range of the inputs a term goes on as a straight line. Attributes: `columns` `(n, d)`; `groups`, the term
    of each column, -1 for free ones; `free`, booleans; `scales`, s; `count`, k. `columns` may be joined with others of
    yours behind them, `groups` and `free` likewise.

    **Raises:** `ValueError` for other inputs or settings.

    Source: Eilers and Marx (Statistical Science 11, 1996); diagonal form: Wand and Ormerod (Aust. N. Z. J. Stat. 50,
    2008).
    """

    columns: Float[Array, "n d"]
    groups: np.ndarray
    free: np.ndarray
    scales: np.ndarray
    count: int

    def __init__(self, inputs: Any, *, segments: int | list[int] = 20, degree: int = 3, order: int = 2):
        given = real_numbers(inputs, "SplineTerms: inputs")
        if given.ndim != 2 or 0 in given.shape:
            raise ValueError(f"SplineTerms: inputs must have the shape (rows, terms); got {given.shape}.")
        check_finite(given, "SplineTerms: inputs")
        rows = np.asarray(given, float)
        self.count = rows.shape[1]
        each = [segments] * self.count if isinstance(segments, int) else list(segments)
        if len(each) != self.count or any(not isinstance(s, int) or s < 1 for s in each):
            raise ValueError(f"SplineTerms: segments must be an integer >= 1, or one for each term; got {segments}.")
        if not (1 <= order <= degree + 1):
            raise ValueError(
                f"SplineTerms: order must be from 1 to degree + 1, or polynomials below it are no splines; got order "
                f"{order} and degree {degree}."
            )
        self._terms = [_Term(x, each[t], degree, order, t) for t, x in enumerate(rows.T)]
        self.scales = np.array([term.scale[-1] ** 2 for term in self._terms])
        groups, free = [-1], [True]
        for t, term in enumerate(self._terms):
            groups += [-1] * term.plain + [t] * term.wiggly
            free += [True] * term.plain + [False] * term.wiggly
        self.groups, self.free = np.array(groups), np.array(free)
        self._dtype = given.dtype
        self.columns = self.transform(given)

    def places(self, term: int) -> slice:
        """Where the columns of a term are."""
        if not 0 <= term < self.count:
            raise ValueError(f"SplineTerms: term must be from 0 to {self.count - 1}; got {term}.")
        sizes = [1] + [t.plain + t.wiggly for t in self._terms]
        start = sum(sizes[: term + 1])
        return slice(start, start + sizes[term + 1])

    def transform(self, inputs: Any) -> Float[Array, "m d"]:
        """The columns of new rows `(m, k)`: `transform(new) @ params` is the linear predictor."""
        rows = np.asarray(real_numbers(inputs, "SplineTerms: inputs"), float)
        if rows.ndim != 2 or rows.shape[1] != self.count:
            raise ValueError(f"SplineTerms: inputs must have the shape (rows, {self.count}); got {rows.shape}.")
        parts = [np.ones((len(rows), 1))] + [term.columns(x) for term, x in zip(self._terms, rows.T, strict=True)]
        return jnp.asarray(np.concatenate(parts, axis=1), self._dtype)

    def fitted(
        self, family: GeneralisedLinear, hyper: PyTree, params: Any, *, dispersion: float | None = None
    ) -> "SmoothFit":
        """What a family of these columns says of each term at its optimum `params`, given the strengths.

        With A = XᵀΩDX/n + Λ the Hessian at the optimum (D = diag ℓ'', Ω example weights), the weights have a posterior
        of covariance φ A⁻¹/n under the prior that the penalty is, and F = A⁻¹XᵀΩDX/n maps the fit without penalty to
        this one.

        - `dispersion`: φ; default 1 for counts and classes, the residual variance for least squares.

        The answer has `degrees_of_freedom`, of each term the sum of F_jj over its columns, the free ones included;
        `total`, tr F; `dispersion`; and `effect(term, x, level=0.95)`: f_t at the places x with `value`,
        `standard_error`, `lower` and `upper`. Intervals are Bayesian, place by place, given the strengths: that these
        were tuned is not in them. They are statements about the sample, and no certificates.

        **Raises:** `ValueError` for sparse columns, several outputs, other columns than these in front, and where φ
        is not known.

        Source: Wahba (J. R. Stat. Soc. B 45, 1983); Wood, Generalized Additive Models (2017), section 6.10.
        """
        return SmoothFit(self, family, hyper, params, dispersion)


class _Term:
    """One P-spline: knots, coefficients of its diagonal columns, polynomials, and their means over the rows."""

    def __init__(self, x: np.ndarray, segments: int, degree: int, order: int, place: int):
        low, high = float(x.min()), float(x.max())
        if not low < high:
            raise ValueError(
                f"SplineTerms: each column must hold at least two distinct values; got {low:g} alone in column {place}."
            )
        self.low, self.high, self.plain = low, high, order - 1
        knots = low + (high - low) / segments * np.arange(-degree, segments + degree + 1)
        size = segments + degree
        _, values, right = np.linalg.svd(np.diff(np.eye(size), n=order, axis=0))
        coefficients = right[: len(values)].T / values
        self.wiggly = len(values)
        from scipy.interpolate import BSpline  # slow to import

        self.spline = BSpline(knots, coefficients, degree)
        self.slope = self.spline.derivative()
        self.scale = np.ones(self.plain + self.wiggly)
        self.means = np.zeros(self.plain + self.wiggly)
        raw = self.columns(x)
        self.means = raw.mean(axis=0)
        centred = np.square(raw - self.means).mean(axis=0)
        plain, wiggly = centred[: self.plain], centred[self.plain :]
        self.scale = np.concatenate(
            [1 / np.sqrt(np.where(plain > 0, plain, 1)), np.full(self.wiggly, 1 / math.sqrt(wiggly.sum()))]
        )

    def columns(self, x: np.ndarray) -> np.ndarray:
        inside = np.clip(x, self.low, self.high)
        wiggly = self.spline(inside) + self.slope(inside) * (x - inside)[:, None]
        unit = (2 * x - self.low - self.high) / (self.high - self.low)
        near = np.clip(unit, -1, 1)
        plain = [near**power + power * near ** (power - 1) * (unit - near) for power in range(1, self.plain + 1)]
        whole = np.concatenate([np.stack(plain, axis=1), wiggly], axis=1) if plain else wiggly
        return (whole - self.means) * self.scale


class Effect(NamedTuple):
    """A term at some places: its value there, standard error, and interval."""

    value: np.ndarray
    standard_error: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


class SmoothFit(eqx.Module):
    """Effective degrees of freedom and partial effects, as `SplineTerms.fitted` explains them."""

    degrees_of_freedom: np.ndarray
    total: float
    dispersion: float
    _terms: SplineTerms = eqx.field(static=True)
    _params: np.ndarray
    _covariance: np.ndarray

    def __init__(
        self, terms: SplineTerms, family: GeneralisedLinear, hyper: PyTree, params: Any, dispersion: float | None
    ):
        size = terms.groups.size
        if not isinstance(family, GeneralisedLinear) or not is_dense(family.inputs):
            raise ValueError("SplineTerms.fitted: family must be a family of dense columns (hx.families).")
        if len(family.shape) != 1 or family.shape[0] < size:
            raise ValueError(
                f"SplineTerms.fitted: family must have one output and these {size} columns first; got weights of "
                f"shape {family.shape}."
            )
        hyper = validated(hyper)
        weights = jnp.asarray(params, family.dtype)
        point = family.at(weights, hyper)
        n = family.inputs.shape[0]
        curves = np.asarray(family.weighted(family.loss.curve_diagonal(point.memory), hyper), float) / n
        design = np.asarray(family.inputs, float)
        data = design.T @ (curves[:, None] * design)
        factor = scipy.linalg.cho_factor(data + np.diag(np.asarray(family.strengths(hyper), float)))
        share = np.diagonal(scipy.linalg.cho_solve(factor, data))
        self.degrees_of_freedom = np.array([share[terms.places(t)].sum() for t in range(terms.count)])
        self.total = float(share.sum())
        if dispersion is None:
            dispersion = _dispersion(family, point.memory, n, self.total)
        self.dispersion = float(dispersion)
        self._terms, self._params = terms, np.asarray(weights, float)
        self._covariance = self.dispersion / n * scipy.linalg.cho_solve(factor, np.eye(len(data)))

    def effect(self, term: int, x: Any, *, level: float = 0.95) -> Effect:
        """f_t at the places x `(m,)`, with an interval that holds `level` of its posterior, place by place."""
        if not 0 < level < 1:
            raise ValueError(f"SmoothFit.effect: level must be between 0 and 1; got {level}.")
        places = self._terms.places(term)
        columns = self._terms._terms[term].columns(np.atleast_1d(np.asarray(x, float)))
        value = columns @ self._params[places]
        error = np.sqrt(np.sum(columns @ self._covariance[places, places] * columns, axis=1))
        reach = float(scipy.special.ndtri(0.5 + level / 2)) * error
        return Effect(value, error, value - reach, value + reach)


def _dispersion(family: GeneralisedLinear, memory: Array, n: int, total: float) -> float:
    if isinstance(family.loss, LogisticLoss | PoissonLoss):
        return 1.0
    if not isinstance(family.loss, SquaredLoss):
        raise ValueError(
            "SplineTerms.fitted: dispersion must be given for a loss that is no likelihood, as the pseudo-Huber is."
        )
    if not n > total:
        raise ValueError(
            f"SplineTerms.fitted: dispersion must be given where {total:.4g} degrees of freedom leave none of {n} rows."
        )
    return float(np.sum(np.square(np.asarray(memory, float))) / (n - total))
