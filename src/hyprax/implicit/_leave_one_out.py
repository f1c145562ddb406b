"""Leave-one-out as an objective: every row judged by the fit on all others, with the loss enclosed."""

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._certificate import Certificate, Kind
from .._keys import checked_key
from .._noise import Noise
from .._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from .._stats import AbstractStats, Accuracy, Effort
from .._trees import tree_all_finite, tree_cast, tree_norm
from . import _left_out, _left_out_classes, _left_out_rounds, _left_out_sums, _one_step
from ._answers import RESULTS
from ._bounds import HYPERGRADIENT, VALUE
from ._cholesky_bound import LARGEST
from ._constants import INFLATION
from ._family_bounds import NARROWING
from ._left_out import Centre, LeftOut, Rows
from ._left_out_classes import ClassRows
from ._left_out_rounds import ROUNDS, all_left_out
from ._left_out_sums import Gradient, Judged, corrected, gradient
from ._objective import promoted
from ._one_step import one_step
from ._optimum import Optimum, Refit, family_of, undetermined
from .families._design import is_dense
from .families._generalised_linear import GeneralisedLinear
from .families._losses import SoftmaxLoss, SquaredLoss
from .families._norms import DesignNorms

OVER = "examples left out, given the others (their dependence through shared rows is not in it)"
MOST_ROWS = 10_000
STEP_BLOCK = 1024  # rows left out at once where one step is taken, whose cost is that of p² numbers each
ENCLOSED = 1e-2  # of the mean loss: a row whose own loss is known no better is reported


class LeaveOneOutStats(AbstractStats):
    """What leaving out one row at a time took, and how well each fit is enclosed.

    - `inner_gradient_norm`: ‖∇g‖ at the fit on all rows.
    - `refitted_rows`: how many rows needed a Newton method of their own.
    - `loose_rows`: how many losses are not enclosed to 1 % of the mean, and `loosest_row` the number of the worst.
    - `radii`: bounds of |x_iᵀ(w̃ - w_(-i))|, for each row that is left out.
    """

    inner_gradient_norm: Float[Array, ""]
    refitted_rows: Int[Array, ""]
    loose_rows: Int[Array, ""]
    loosest_row: Int[Array, ""]
    radii: Float[Array, " N"]

    def effort(self) -> Effort:
        return Effort()


class LeaveOneOutState(eqx.Module):
    """The fit on all rows, from which the next one starts."""

    params: Float[Array, "d *C"]


class LeaveOneOut(AbstractObjective[LeaveOneOutState]):
    """F(λ) = Σ_i ω_i ℓ(x_iᵀw_(-i); y_i)/Σ_i ω_i, w_(-i) the optimum of a family on all rows but the i-th.

        w_(-i) = argmin_w (1/n) Σ_{k != i} ω_k ℓ(x_kᵀw; y_k) + ½ Σ_j λ_j w_j²,    n = all rows
        dF/dλ_j = -Σ_i (ω_i/Σω) ℓ_i' [H_i⁻¹x_i]_j w_(-i),j;    of softmax -Σ_i (ω_i/Σω) [H_i⁻¹(x_i ⊗ ∇ℓ_i)]_jc W_(-i),jc

    so that λ means the same with a row and without it, and `refit(hyper)` fits all rows with the tuned λ as it is.
    The n fits share one factor of the Hessian: one Newton step each, further ones as products of matrices for all rows
    at once, and a Newton method of their own for the few rows that need it. For squared loss the first step is exact.

    **Arguments:**

    - `optimum`: an [`hyprax.Optimum`][] of a family with one output, or of softmax regression (whose rows are left out
        by downdates of as many columns as there are classes), with dense data and at most 2,000 weights. Rows whose
        example weight is 0 take no part. Where all strengths are > 0 every w_(-i) exists, also where leaving out a row
        leaves a single class; with columns without penalty one need not, which is the result `no_optimum`.
    - `subset`: how many rows to leave out in turn, drawn by `key`, or their numbers; the others are always fitted on.
        Default all; required for more than 10,000 rows, since the work grows with rows times rows left out.
    - `key`: a JAX random key, for a number in `subset`.
    - `approximate`: take the one Newton step alone, for a work that grows with the number of rows. Value and gradient
        are then those of the one-step criterion, and the certificate bounds their distance to the exact ones. (Of
        softmax that bound takes rows times rows left out all the same.)

    The certificate holds an enclosure of the exact leave-one-out loss, and of its hypergradient, rounding included:
    with `Mρ‖r‖ < 1` (‖r‖ the residual of row i's own problem and ρ = max_k ‖x_k‖, both in the norm of the inverse
    Hessian there, M the self-concordance constant of the loss) |x_iᵀ(w_(-i) - w̃)| <= ‖x_i‖ (-log(1 - Mρ‖r‖))/(Mρ); of
    several classes max - min stands for the absolute value. It is `certified` in 64-bit arithmetic where strengths and
    weights are leaves of the hyperparameters or numbers, and `estimated` otherwise. Rows whose loss is not enclosed to
    1 % of the mean are counted in the statistics, and are a result.

    **Noise:** every row left out has a hypergradient of its own, and the standard errors are those of their mean. The
    fits share rows, and that dependence is not in it.

    **Raises:** `ValueError` for another inner loss, several outputs, sparse data, too many rows or weights, or a subset
    that is out of range.

    Source: one step and its factor: Rad and Maleki, arXiv 1801.10243; Wilson, Kasy and Mackey, arXiv 2003.00617. The
    enclosure is our own; its self-concordance calculus is that of Bach (2010) and Sun and Tran-Dinh (2019).
    """

    optimum: Optimum
    left: Int[Array, " N"]
    approximate: bool = eqx.field(static=True)
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{rad2020scalable, author = {Rahnama Rad, Kamiar and Maleki, Arian},
  title = {A scalable estimate of the out-of-sample prediction error via approximate leave-one-out cross-validation},
  journal = {Journal of the Royal Statistical Society B}, volume = {82}, pages = {965--996}, year = {2020},
  note = {arXiv:1801.10243}}""",
    )

    def __init__(self, optimum: Optimum, *, subset: Any = None, key: Array | None = None, approximate: bool = False):
        family = checked_family("LeaveOneOut", optimum, classes=True)
        self.optimum = optimum
        self.left = jnp.asarray(_subset(family.inputs.shape[0], subset, key, approximate and not _of_classes(family)))
        self.approximate = approximate
        self.noisy, self.adaptive, self.measures_noise = False, False, True
        self.value_name = "one-step leave-one-out loss" if approximate else "leave-one-out loss"

    def init(self, hyper: PyTree) -> LeaveOneOutState:
        return LeaveOneOutState(self.optimum.params0)

    def value_and_grad(
        self, hyper: PyTree, state: LeaveOneOutState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, LeaveOneOutState]:
        refuse_accuracy(self, accuracy)
        _, answer, after, _ = self._evaluated(hyper, state)
        return answer, after

    def value(
        self, hyper: PyTree, state: LeaveOneOutState, accuracy: Accuracy | None = None
    ) -> tuple[Value, LeaveOneOutState]:
        refuse_accuracy(self, accuracy)
        value, _, after, _ = self._evaluated(hyper, state)
        return value, after

    def losses(self, hyper: PyTree, state: LeaveOneOutState) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
        """ℓ(x_iᵀw_(-i); y_i) for each row left out, and bounds of their errors.

        Of the one step where `approximate`, with the distance to the exact loss as the bound.
        """
        return self._evaluated(hyper, state)[3]

    @eqx.filter_jit
    def _evaluated(
        self, hyper: PyTree, state: LeaveOneOutState
    ) -> tuple[Value, Hypergradient, LeaveOneOutState, tuple[Array, Array]]:
        """Value, hypergradient, next state and single losses in one program: a second would take longer to compile
        than it saves."""
        family = family_of(self.optimum)
        hyper = promoted(hyper, self.optimum.params0)
        dtype = self.optimum.params0.dtype
        rows, scale = _rows(family, hyper)
        centre, fits, refitted = self._fits(rows, state.params.astype(scale.dtype).ravel() * scale)
        formulas = _formulas(family)
        seen = formulas.judged(rows, self.left, fits)
        plain, sure = _pull(family, hyper, rows.inputs.dtype)

        def pull(of_strengths: Array, of_weights: Array | None) -> PyTree:
            return plain((of_strengths / jnp.square(scale)).reshape(family.shape), of_weights)

        terms_of = None if family.weights is None or family.weights.constant else formulas.weight_terms
        slopes = gradient(rows, self.left, fits, seen, pull, terms_of)
        strengths, weights = slopes.strengths, slopes.weights
        bounds = (slopes.strengths_error, slopes.weights_error)
        if self._by_steps:
            first = formulas.one_step_slopes(rows, centre.params, self.left)
            bounds = (bounds[0] + jnp.abs(first.strengths - strengths), bounds[1])
            strengths = first.strengths
            if weights is not None and bounds[1] is not None:
                bounds = (bounds[0], bounds[1] + jnp.abs(first.weights - weights))
                weights = first.weights
        grad = pull(strengths, weights)
        summed = pull(jnp.abs(strengths), None if weights is None else jnp.abs(weights))
        size = (rows.strengths.size + rows.count + 22) * rows.unit
        entries = jax.tree.map(
            lambda b, s: INFLATION * jnp.abs(b) + (size * jnp.abs(s)).astype(b.dtype), pull(*bounds), summed
        )
        noise = _noise(slopes, grad, seen, hyper)
        grad, entries = _as_given(grad, entries, hyper)

        positive = family.strong_convexity(hyper) > 0
        entries = jax.tree.map(lambda x: jnp.where(positive & jnp.isfinite(x), x, jnp.inf), entries)
        bound = INFLATION * tree_norm(entries)
        bound = jnp.where(jnp.isfinite(bound), bound, jnp.inf).astype(dtype)
        off = seen.mean_error
        if dtype != seen.mean.dtype:
            off = off + NARROWING * jnp.abs(seen.mean)
        off = jnp.where(positive & jnp.isfinite(off), INFLATION * off, jnp.inf).astype(dtype)
        kind: Kind = "certified" if _wide() else "estimated"
        terms = {"largest_radius": jnp.max(fits.radius).astype(dtype)}
        of_value = Certificate(off, kind, VALUE, self._method, terms)
        of_grad = Certificate(bound, kind if sure else "estimated", HYPERGRADIENT, self._method, terms, entries)

        stats = self._stats(rows, centre.params, scale, fits, seen, refitted)
        params = (centre.params / scale).astype(dtype).reshape(family.shape)
        value = seen.mean.astype(dtype)
        missed = (stats.loose_rows > 0) & (not self._by_steps)
        result = RESULTS.where(missed, RESULTS.rows_not_enclosed, RESULTS.successful)
        result = RESULTS.where(jnp.isfinite(value) & tree_all_finite((params, grad)), result, RESULTS.diverged)
        if family.free is not None:  # a decrement below 1 proves that there is an optimum
            lost = jnp.logical_not(fits.nearness < 1) & (seen.shares > 0) & (not self._by_steps)
            result = RESULTS.where(jnp.any(lost) | undetermined(family), RESULTS.no_optimum, result)
        result = RESULTS.where(positive, result, RESULTS.unpenalised)
        after = LeaveOneOutState(jnp.where(jnp.all(jnp.isfinite(params)), params, state.params))
        spread = Noise(seen.standard_error().astype(dtype), seen.used - 1, OVER)
        return (
            Value(value, of_value, spread, result, stats),
            Hypergradient(value, grad, of_grad, noise, result, stats),
            after,
            _losses(seen, dtype),
        )

    def _fits(self, rows: Rows | ClassRows, start: Array) -> tuple[Centre, LeftOut, Int[Array, ""]]:
        formulas, exact_step = _formulas(family_of(self.optimum)), isinstance(rows.loss, SquaredLoss)
        several = isinstance(rows, ClassRows)
        if exact_step or (self.approximate and rows.count > MOST_ROWS and not several):
            return all_left_out(rows, start, self.left, formulas.centre_at, one_step, STEP_BLOCK, alone=exact_step)
        enclose = functools.partial(formulas.enclosed, rounds=0 if self.approximate else ROUNDS)
        alone = not self.approximate
        return all_left_out(rows, start, self.left, formulas.centre_at, enclose, rows.block, alone=alone)

    @property
    def _by_steps(self) -> bool:
        """Whether value and gradient are those of the one-step criterion, and not those of exact fits."""
        return self.approximate and not isinstance(family_of(self.optimum).loss, SquaredLoss)

    @property
    def _method(self) -> str:
        how = "one Newton step, distance to exact fits" if self._by_steps else "fits without one row each"
        return f"{how}, self-concordance in the norm of the Hessian, rounding included"

    def _stats(
        self, rows: Rows | ClassRows, params: Array, scale: Array, fits: LeftOut, seen: Judged, refitted: Int[Array, ""]
    ) -> LeaveOneOutStats:
        used = seen.shares > 0
        own = jnp.where(used, seen.losses_error, 0)
        missed = jnp.logical_not((own <= ENCLOSED * jnp.abs(seen.mean)) & jnp.isfinite(fits.adjoint_distance))
        missed = missed & used
        dtype = self.optimum.params0.dtype
        return LeaveOneOutStats(
            inner_gradient_norm=tree_norm(rows.gradient(params)[1] * scale).astype(dtype),
            refitted_rows=refitted,
            loose_rows=jnp.sum(missed),
            loosest_row=self.left[jnp.argmax(jnp.where(missed, jnp.inf, own))],
            radii=fits.radius.astype(dtype),
        )

    def params(self, state: LeaveOneOutState) -> PyTree:
        """The fit on all rows."""
        return state.params

    def final(self, hyper: PyTree, state: LeaveOneOutState) -> tuple[Value, LeaveOneOutState]:
        return self.value(hyper, state)

    def refit(self, hyper: PyTree) -> Refit:
        """The fit on all rows at `hyper`: the prior is kept, so that strengths are as they were tuned."""
        return self.optimum.refit(hyper)


class _Formulas(NamedTuple):
    """What differs between families with one output and softmax regression."""

    centre_at: Callable[..., Centre]
    enclosed: Callable[..., LeftOut]
    judged: Callable[..., Judged]
    weight_terms: Callable[..., tuple[Array, Array]]
    one_step_slopes: Callable[..., _one_step.Slopes]


_ONE = _Formulas(
    _left_out.centre_at,
    _left_out_rounds.enclosed,
    _left_out_sums.judged,
    _left_out_sums.weight_terms,
    _one_step.one_step_slopes,
)
_CLASSES = _Formulas(
    _left_out_classes.centre_at,
    _left_out_classes.enclosed,
    _left_out_classes.judged,
    _left_out_classes.weight_terms,
    _left_out_classes.one_step_slopes,
)


def _of_classes(family: GeneralisedLinear) -> bool:
    return len(family.shape) == 2


def _formulas(family: GeneralisedLinear) -> _Formulas:
    return _CLASSES if _of_classes(family) else _ONE


def checked_family(name: str, optimum: Any, *, classes: bool = False) -> GeneralisedLinear:
    """The family of an optimum that has one output, or `classes`, dense data and few enough weights for a factor."""
    if not isinstance(optimum, Optimum):
        raise ValueError(f"{name}: optimum must be hx.Optimum(family); got a {type(optimum).__name__}.")
    family = family_of(optimum)
    if len(family.shape) != 1 and not (classes and isinstance(family.loss, SoftmaxLoss)):
        allowed = "one output or be hx.families.Softmax" if classes else "one output"
        raise ValueError(
            f"{name}: the family must have {allowed}; got weights of shape {family.shape}. Use hx.CrossValidated."
        )
    if not is_dense(family.inputs) or math.prod(family.shape) > LARGEST:
        raise ValueError(
            f"{name}: inputs must be dense, for at most {LARGEST} weights; got {type(family.inputs).__name__} of "
            f"shape {tuple(family.inputs.shape)}. Use hx.CrossValidated."
        )
    if family.inputs.shape[0] < 2:
        raise ValueError(f"{name}: the family must have two rows or more; got {family.inputs.shape[0]}.")
    return family


def _subset(count: int, subset: Any, key: Array | None, approximate: bool) -> np.ndarray:
    if subset is None:
        if count > MOST_ROWS and not approximate:
            raise ValueError(
                f"LeaveOneOut: subset must be given for more than {MOST_ROWS:,} rows; got {count:,}. Leave out a "
                "random subset in turn (subset=1000, key=jax.random.key(0)), or use approximate=True."
            )
        return np.arange(count)
    if isinstance(subset, int) and not isinstance(subset, bool):
        if not 1 <= subset <= count:
            raise ValueError(f"LeaveOneOut: subset must be from 1 to {count}, the number of rows; got {subset}.")
        chosen = jax.random.choice(checked_key("LeaveOneOut", key), count, (subset,), replace=False)
        return np.sort(np.asarray(chosen))
    rows = np.asarray(subset)
    fits = rows.ndim == 1 and rows.size > 0 and rows.dtype.kind in "iu"
    if not fits or rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) != rows.size:
        raise ValueError(f"LeaveOneOut: subset must be a number, or different row numbers from 0 to {count - 1}.")
    return rows


def _wide() -> bool:
    return bool(jax.config.read("jax_enable_x64"))


def _rows(family: GeneralisedLinear, hyper: PyTree) -> tuple[Rows | ClassRows, Float[Array, " d"]]:
    """The problem at these hyperparameters, in float64 where there is one: their values in its own dtype define it.

    Columns are divided by powers of two, which is exact, so that bounds do not feel their units: w is multiplied by
    them, and λ divided by their squares.
    """
    dtype = jnp.float64 if _wide() else family.dtype
    count = family.inputs.shape[0]
    ones = jnp.ones(count, family.dtype)
    weights = ones if family.weights is None else family.weights.values(hyper)
    shape = (count, *family.shape[1:])
    offset = jnp.zeros(shape, family.dtype) if family.offset is None else family.offset
    numbers = (family.inputs, family.strengths(hyper), weights, offset, family.norms)
    inputs, strengths, weights, offset, norms = tree_cast(numbers, dtype)
    scale = jnp.where(norms.columns > 0, jnp.ldexp(jnp.ones_like(norms.columns), jnp.frexp(norms.columns)[1]), 1)
    inputs, columns = inputs / scale[None], norms.columns / scale
    lengths = INFLATION * jnp.sqrt(jnp.sum(jnp.square(inputs), axis=1))
    norms = DesignNorms(norms.gram, lengths, columns)
    if isinstance(family.loss, SoftmaxLoss):
        gauge = jnp.zeros_like(scale)
        if family.free is not None and family.free.gauge is not None:
            gauge = gauge.at[family.free.columns].set(family.free.gauge.astype(dtype)) / jnp.square(scale)
        whole = jnp.repeat(scale, shape[1])
        strengths = strengths.ravel() / jnp.square(whole)
        return ClassRows(inputs, family.targets, strengths, weights, offset, gauge, norms, family.loss), whole
    targets = tree_cast(family.targets, dtype)
    return Rows(inputs, targets, strengths / jnp.square(scale), weights, offset, norms, family.loss), scale


def _pull(family: GeneralisedLinear, hyper: PyTree, dtype: Any) -> tuple[Callable[..., PyTree], bool]:
    """(dF/dλ, dF/dω) ↦ dF/d hyper; and whether that is known to rounding: where λ and ω are leaves of their own."""
    penalty, weights = family.penalty, family.weights
    apart = weights is None or penalty.node(hyper) is not weights.node(hyper)
    if family.certifiable(hyper) and apart:
        slope = penalty.slope(hyper).astype(dtype)
        rate = None if weights is None else weights.slope(hyper).astype(dtype)

        def placed(strengths: Array, of_weights: Array | None) -> PyTree:
            known = None
            if weights is not None and rate is not None and of_weights is not None:
                known = rate * weights.summed(of_weights, rate)
            return family.placed(hyper, slope * penalty.summed(strengths, slope), known)

        return placed, True

    def found(h: PyTree) -> tuple[Array, Array | None]:
        return family.strengths(h), None if weights is None else weights.values(h)

    _, back = jax.vjp(found, hyper)

    def pulled(strengths: Array, of_weights: Array | None) -> PyTree:
        given = None if of_weights is None else of_weights.astype(family.dtype)
        return back((strengths.astype(family.dtype), given))[0]

    return pulled, False


def _losses(seen: Judged, dtype: Any) -> tuple[Array, Array]:
    error = seen.losses_error
    if dtype != error.dtype:
        error = INFLATION * (error + NARROWING * jnp.abs(seen.losses))
    return seen.losses.astype(dtype), error.astype(dtype)


def _as_given(grad: PyTree, entries: PyTree, hyper: PyTree) -> tuple[PyTree, PyTree]:
    """In the dtypes of the hyperparameters, what narrowing may cost in the bounds."""

    def narrowed(b: Array, g: Array, like: Array) -> Array:
        lost = 0.0 if g.dtype == like.dtype and like.dtype == jnp.float64 else NARROWING
        return (INFLATION * (b + lost * jnp.abs(g).astype(b.dtype))).astype(like.dtype)

    entries = jax.tree.map(narrowed, entries, grad, hyper)
    return jax.tree.map(lambda g, like: g.astype(like.dtype), grad, hyper), entries


def _noise(slopes: Gradient, grad: PyTree, seen: Judged, hyper: PyTree) -> Noise:
    """se² = m/(m - 1) Σ_i (h_i - c_i h)² for the terms h_i of h = Σ_i h_i."""
    squares = jnp.sum(jnp.square(seen.shares))

    def error(square: Array, each: Array, h: Array, like: Array) -> Array:
        total = square - 2 * h * each.astype(h.dtype) + jnp.square(h) * squares.astype(h.dtype)
        return jnp.sqrt(corrected(seen.used).astype(h.dtype) * jnp.maximum(total, 0)).astype(like.dtype)

    return Noise(jax.tree.map(error, slopes.square, slopes.each, grad, hyper), seen.used - 1, OVER)
