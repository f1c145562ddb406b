"""Generalised linear models with diagonal l2 penalties and example weights: a loss with what its certificates need."""

import math
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, PyTree

from ..._hyper import as_floating
from ..._products import product
from ..._trees import tree_add, tree_cast, tree_norm
from .._constants import Constants, Rounding
from .._inner_loss import AbstractInnerLoss, Point, Product
from ._chunked import Chunked
from ._design import (
    Design,
    as_offset,
    backward,
    backward_squared,
    common_dtype,
    forward,
    is_dense,
    woven,
)
from ._free import FreeColumns, as_columns, free_columns
from ._losses import AbstractPointLoss
from ._mean_loss import MeanLoss, over, per_feature, prediction_rounding, shifted, slope_rounding, underflow
from ._norms import DesignNorms, measured
from ._selection import Selection, Selector, selection

FORM_BELOW = 512

Terms: TypeAlias = tuple[Selector, Any, Selector | None, Any]
"""`penalty`, `penalty_groups`, `weights` and `weight_groups`, as every family is given them."""


class GeneralisedLinear(AbstractInnerLoss):
    """g(w, λ, ω) = (1/n) Σ_i ω_i ℓ(x_iᵀw + o_i; y_i) + ½ Σ_j λ_j w_j²: what the families share.

    λ = penalty(hyper) spread over the shape of w, ω = weights(hyper) spread over the examples (1 where not given), o
    the offset (0 where not given). For λ > 0 and ω >= 0 it is strongly convex with the constant min λ_j, which is what
    makes certificates possible: no constant is asked of the user, and the rounding of every product is bounded. λ is
    exactly 0 in the free columns: there the data must determine the weights, see `FreeColumns`. Inputs, targets and
    offset are kept in the widest of their dtypes.
    """

    inputs: Design
    targets: Array
    loss: AbstractPointLoss
    penalty: Selection
    weights: Selection | None
    gram: Array
    norms: DesignNorms
    free: FreeColumns | None
    offset: Array | None

    def __init__(
        self,
        data: tuple[Design, Array],
        loss: AbstractPointLoss,
        outputs: int | None,
        terms: Terms,
        free: Any = None,
        offset: Any = None,
    ):
        name = type(self).__name__
        penalty, penalty_groups, weights, weight_groups = terms
        inputs, targets = data
        n, d = inputs.shape
        columns = as_columns(free, d, name)
        added = as_offset(offset, (n,) if outputs is None else (n, outputs), f"{name}: offset")
        numbers = (inputs, *(() if loss.labels else (targets,)), *(() if added is None else (added,)))
        dtype = common_dtype(*numbers)
        self.inputs, self.targets = inputs.astype(dtype), targets if loss.labels else targets.astype(dtype)
        self.offset = None if added is None else added.astype(dtype)
        self.loss = loss
        shape = (d,) if outputs is None else (d, outputs)
        self.penalty = selection(penalty, shape, penalty_groups, "penalty", dtype, columns)
        self.free = None if columns is None else free_columns(columns, loss, self.inputs, self.targets, outputs)
        if weights is None and weight_groups is not None:
            raise ValueError("weight_groups requires weights.")
        self.weights = None if weights is None else selection(weights, (n,), weight_groups, "weights", dtype)
        self.norms, products = measured(self.inputs)
        # The Gram matrix where it is small enough to factorise, its diagonal where not: for preconditioning alone.
        gram = products if d <= FORM_BELOW else jnp.square(self.norms.columns)
        self.gram = jnp.asarray(gram, dtype=dtype) / n

    @property
    def system(self) -> str:
        return ""

    @property
    def dtype(self) -> Any:
        """That of the data, and so of the weights."""
        return self.inputs.dtype

    def astype(self, dtype: Any) -> "GeneralisedLinear":
        """The same problem in a wider arithmetic."""
        where = (lambda f: f.penalty) if self.weights is None else (lambda f: (f.penalty, f.weights))
        selections = jax.tree.map(lambda s: s.astype(dtype), where(self), is_leaf=lambda s: isinstance(s, Selection))
        return tree_cast(eqx.tree_at(where, self, selections), dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of w."""
        return self.penalty.shape

    @property
    def mean_loss(self) -> MeanLoss:
        """The same loss without penalty, for use on validation data: `outer_loss=family.mean_loss`."""
        return MeanLoss(self.loss)

    def begin(self, params0: PyTree | None) -> tuple["GeneralisedLinear", Array]:
        if params0 is None:
            return self, self.start()
        start = as_floating(params0, "params0")
        if start.shape != self.shape:
            raise ValueError(f"Optimum: params0 must have the shape {self.shape}; got {start.shape}.")
        dtype = common_dtype(start, self)
        return (self if dtype == self.dtype else self.astype(dtype)), start.astype(dtype)

    def predict(self, params: Array) -> Float[Array, "n *C"]:
        """X w + o."""
        return shifted(forward(self.inputs, params), self.offset)

    def centre(self, shape: tuple[int, ...]) -> Float[Array, "n *C"]:
        """The X w of a constant prediction near the middle of the targets, offset aside."""
        added = jnp.zeros((), self.dtype) if self.offset is None else self.offset
        return jnp.broadcast_to(self.loss.centre(self.targets, added), shape).astype(self.dtype)

    def start(self) -> Float[Array, "d *C"]:
        """w = 0; for counts and robust losses the w whose predictions are nearest to the centre of the targets.

        Least squares on XᵀX/n (at most 512 features), with a ridge of 10⁻⁸ of its trace.
        """
        zero = jnp.zeros(self.shape, self.dtype)
        if not self.loss.starts_at_centre or self.gram.ndim == 1:
            return zero
        n, d = self.inputs.shape
        right = backward(self.inputs, self.centre((n,))) / n
        ridge = self.gram + 1e-8 * jnp.trace(self.gram) * jnp.eye(d, dtype=self.dtype)
        found = jsl.cho_solve((jnp.linalg.cholesky(ridge), True), right)
        return jnp.where(jnp.all(jnp.isfinite(found)), found, zero)

    def scale(self, params0: Array, hyper: PyTree) -> Float[Array, ""]:
        """min_j ‖X_j‖ ‖ω∇ℓ‖/n over the columns that are not 0, at most 10⁶ below their maximum; ∇ℓ at the centre of y.

        By the smallest column, so that the weights of features in small units are found to as many digits. Of ∇ℓ at 0,
        an offset of the targets included, 100√ε is added: rounding is of that size.
        """
        eps = float(jnp.finfo(self.dtype).eps)
        n, shape = self.inputs.shape[0], (self.inputs.shape[0], *self.shape[1:])

        def slope(u: Array) -> Array:
            return jnp.abs(self.loss.slope(self.loss.statistic(u, self.targets), self.targets))

        centre, zero = (shifted(x, self.offset) for x in (self.centre(shape), jnp.zeros(shape, self.dtype)))
        rows = slope(centre) + 100 * eps**0.5 * slope(zero) + eps
        columns = self.norms.columns.astype(self.dtype) * tree_norm(self.weighted(rows, hyper)) / n
        largest = jnp.max(columns)
        return jnp.maximum(jnp.min(jnp.where(columns > 0, columns, largest)), 1e-6 * largest)

    def strengths(self, hyper: PyTree) -> Float[Array, "d *C"]:
        """λ, in the shape of w."""
        return self.penalty.values(hyper)

    def weighted(self, rows: Float[Array, "n *C"], hyper: PyTree) -> Float[Array, "n *C"]:
        """ω_i rows_i."""
        return _times(self.omega(hyper), rows)

    def omega(self, hyper: PyTree) -> Float[Array, " n"] | None:
        """The example weights."""
        return None if self.weights is None else self.weights.values(hyper)

    def resolved(self, hyper: PyTree, dtype: Any) -> "GeneralisedLinear":
        """The same loss at these hyperparameters alone, its arrays converted to `dtype`: exact for a wider one.

        The natural values are those that the narrower arithmetic gives: they define the problem.
        """
        where = (lambda f: f.penalty) if self.weights is None else (lambda f: (f.penalty, f.weights))
        fixed = jax.tree.map(lambda s: s.resolved(hyper), where(self), is_leaf=lambda s: isinstance(s, Selection))
        return tree_cast(eqx.tree_at(where, self, fixed), dtype)

    def pull(self, strengths: Array, v: Array) -> Float[Array, "d *C"]:
        """Λ v, and the gauge of free columns of several classes."""
        pulled = strengths * v
        return pulled if self.free is None or self.free.gauge is None else pulled + self.free.gauged(v)

    def pull_diagonal(self, strengths: Array) -> Float[Array, "d *C"]:
        """The diagonal of `pull`."""
        if self.free is None or self.free.gauge is None:
            return strengths
        return strengths + self.free.gauged(jnp.ones_like(strengths)) / strengths.shape[-1]

    def pull_rounding(self, strengths: Array, v: Array, unit: float) -> Float[Array, "d *C"]:
        """A bound of the rounding of `pull`, and of adding it to something of the size of the result."""
        rounded = 4 * unit * strengths * jnp.abs(v)
        if self.free is None or self.free.gauge is None:
            return rounded
        return rounded + (v.shape[-1] + 8) * unit * self.free.gauged(jnp.abs(v))

    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        losses = self.weighted(self.loss.value(self.predict(params), self.targets), hyper)
        return jnp.mean(losses) + 0.5 * jnp.sum(params * self.pull(self.strengths(hyper), params))

    def at(self, params: PyTree, hyper: PyTree) -> Point:
        def row(u: Array, rows: PyTree) -> tuple[Array, tuple[Array, Array]]:
            targets, offset, omega = rows
            u = shifted(u, offset)
            statistic = self.loss.statistic(u, targets)
            slope = _times(omega, self.loss.slope(statistic, targets))
            return slope, (statistic, _times(omega, self.loss.value(u, targets)))

        rows = (self.targets, self.offset, self.omega(hyper))
        slope, (statistic, losses) = woven(self.inputs, row, params, rows)
        pulled = self.pull(self.strengths(hyper), params)
        value = jnp.mean(losses) + 0.5 * jnp.sum(params * pulled)
        return Point(params, value, slope / self.inputs.shape[0] + pulled, statistic)

    def product(self, point: Point, hyper: PyTree) -> Product:
        """v ↦ Xᵀ(ω D Xv)/n + Λv, D = ∇²ℓ from the statistic that the point has kept."""
        strengths, n = self.strengths(hyper), self.inputs.shape[0]

        def row(u: Array, rows: PyTree) -> tuple[Array, None]:
            statistic, omega = rows
            return _times(omega, self.loss.curve(statistic, u)), None

        def apply(v: Array) -> Array:
            curved, _ = woven(self.inputs, row, v, (point.memory, self.omega(hyper)))
            return curved / n + self.pull(strengths, v)

        return apply

    def preconditioner(self, point: Point, hyper: PyTree) -> Product:
        """The inverse of diag_c(s_c XᵀX/n + Λ_c), s_c the mean over examples of ω times the c-th diagonal entry of D.

        A is close to block diagonal over outputs. The blocks are factorised where XᵀX is at hand (at most 512
        features), and replaced by their diagonals beyond. Free weights get some units of rounding in place of λ.
        """
        strengths = self.strengths(hyper)
        scale = jnp.mean(self.weighted(self.loss.curve_diagonal(point.memory), hyper), axis=0)
        squares = self.gram if self.gram.ndim == 1 else jnp.diagonal(self.gram)
        size = squares * scale if strengths.ndim == 1 else jnp.outer(squares, scale)
        if self.free is not None:
            least = 4 * self.shape[0] * float(jnp.finfo(self.dtype).eps) * (size + jnp.mean(size))
            strengths = self.pull_diagonal(strengths) + jnp.where(self.free.mask(self.shape), least, 0)
        if self.gram.ndim == 1:
            inverse = 1 / (size + strengths)
            return lambda v: inverse * v
        if strengths.ndim == 1:
            factor = jnp.linalg.cholesky(self.gram * scale + jnp.diag(strengths))
            return lambda v: jsl.cho_solve((factor, True), v)
        blocks = self.gram[None] * scale[:, None, None] + jax.vmap(jnp.diag)(strengths.T)
        factors = jnp.linalg.cholesky(blocks)

        def solve(v: Array) -> Array:
            return jax.vmap(lambda c, b: jsl.cho_solve((c, True), b))(factors, v.T).T

        return solve

    def mixed(self, point: Point, hyper: PyTree, adjoint: PyTree) -> PyTree:
        """Σ_j w_j q_j dλ_j + (1/n) Σ_i ∇ℓ_iᵀ(x_iᵀq) dω_i, in the structure of `hyper`."""
        along = point.params * adjoint
        weights = self.weights
        rows = jnp.zeros(()) if weights is None else self.weight_derivatives(point, adjoint)

        def linear(h: PyTree) -> Float[Array, ""]:
            total = jnp.sum(self.strengths(h) * along)
            return total if weights is None else total + jnp.sum(weights.values(h) * rows)

        return jax.grad(linear)(hyper)

    def mixed_parts(self, point: Point, hyper: PyTree, adjoint: Array) -> tuple[Array, Array | None]:
        """Bᵀq for each entry of the leaf of strengths, and of that of weights: what certified bounds speak of.

        **Raises:** `ValueError` where one leaf is both, or is not a leaf: the slope of a leaf must be known.
        """
        slope = self.penalty.slope(hyper)
        strengths = slope * self.penalty.summed(point.params * adjoint, slope)
        if self.weights is None:
            return strengths, None
        if self.penalty.fixed is None and self.penalty.node(hyper) is self.weights.node(hyper):
            raise ValueError("weights and penalty must be two leaves of the hyperparameters; got one for both.")
        slope = self.weights.slope(hyper)
        return strengths, slope * self.weights.summed(self.weight_derivatives(point, adjoint), slope)

    def placed(self, hyper: PyTree, strengths: Array, weights: Array | None) -> PyTree:
        """A tree like `hyper` with these at the leaf of strengths and that of weights, and zeros elsewhere."""
        tree = tree_cast(self.penalty.placed(hyper, strengths), strengths.dtype)
        if self.weights is None or weights is None:
            return tree
        return tree_add(tree, tree_cast(self.weights.placed(hyper, weights), weights.dtype))

    def weight_derivatives(self, point: Point, adjoint: Array) -> Float[Array, " n"]:
        """∇ℓ_iᵀ(x_iᵀq)/n: what Bᵀq is for each example weight, before the slope of its leaf."""
        slope = self.loss.slope(point.memory, self.targets)
        reach = forward(self.inputs, adjoint)
        return jnp.sum(slope * reach, axis=tuple(range(1, slope.ndim))) / self.inputs.shape[0]

    def strong_convexity(self, hyper: PyTree) -> Float[Array, ""]:
        """min_j λ_j, free columns aside; -infinite where an example weight is negative: nothing is known then."""
        smallest = self.penalty.least(hyper)
        if self.weights is None:
            return smallest
        return jnp.where(jnp.min(self.weights.leaf(hyper)) >= 0, smallest, -jnp.inf)

    def spectrum(self, hyper: PyTree) -> tuple[Array, Array] | None:
        """μ = min λ_j, L = max ω_i sup ∇²ℓ ‖XᵀX‖₂/n + max λ_j; `None` for free columns, and where ∇²ℓ has no bound."""
        if not math.isfinite(self.loss.curvature) or self.free is not None:
            return None
        strengths = self.strengths(hyper)
        fit = self.loss.curvature * self.norms.gram.astype(strengths.dtype) / self.inputs.shape[0]
        if self.weights is not None:
            fit = fit * jnp.max(self.weights.leaf(hyper))
        return jnp.min(strengths), fit + jnp.max(strengths)

    def _curves(self, point: Point, hyper: PyTree) -> Float[Array, "n *C"]:
        """ω_i D_icc/n."""
        return self.weighted(self.loss.curve_diagonal(point.memory), hyper) / self.inputs.shape[0]

    def diagonal(self, point: Point, hyper: PyTree) -> Float[Array, "d *C"]:
        """Σ_i ω_i D_icc x_ij²/n + λ_jc."""
        return backward_squared(self.inputs, self._curves(point, hyper)) + self.pull_diagonal(self.strengths(hyper))

    def hessian(self, point: Point, hyper: PyTree) -> Float[Array, "d d"] | None:
        """Xᵀ ω D X/n + Λ for one output, dense data and at most 512 features: about d/10 products."""
        if len(self.shape) != 1 or self.shape[0] > FORM_BELOW:
            return None
        curves, pulled = self._curves(point, hyper), jnp.diag(self.strengths(hyper))
        if isinstance(self.inputs, Chunked):
            return self.inputs.gram(curves) + pulled
        return product((self.inputs * curves[:, None]).T, self.inputs) + pulled if is_dense(self.inputs) else None

    def certifiable(self, hyper: PyTree) -> bool:
        """Whether strengths and weights are leaves of the hyperparameters, as certified bounds need them."""
        return self.penalty.is_leaf(hyper) and (self.weights is None or self.weights.is_leaf(hyper))

    def constants(self, point: Point, hyper: PyTree) -> Constants:
        """μ, L_A, ‖B‖ and L_B at a point, in closed form.

        With s_k = |dλ_k/d(raw_k)| and t_k = |dω_k/d(raw_k)| the slopes of the leaves, Ω = max_i ω_i:

        - μ = min_j λ_j;
        - L_A = c₃ Ω max_i‖x_i‖ ‖XᵀX‖₂/n, c₃ = sup |D³ℓ|;
        - the columns of B for strengths, (s_k w_j)_{j in group k}, have disjoint supports: their norm is
          max_k s_k (Σ_{j in k} w_j²)^½, exactly. Those for weights are t_k Σ_{i in k} x_i ∇ℓ_iᵀ/n, of norm at most
          √G max_i t_i‖∇ℓ_i‖ ‖X‖₂/n with G the largest group; ‖B‖ is at most the root of the sum of squares;
        - L_B = (max_k s_k² + G (max_i t_i c ‖x_i‖ ‖X‖₂/n)²)^½, c = sup ‖∇²ℓ‖.
        """
        norms, n = self.norms, self.inputs.shape[0]
        slope = self.penalty.slope(hyper)
        column = jnp.sqrt(self.penalty.summed(jnp.square(point.params), slope))
        mixed, lipschitz, heaviest = jnp.max(slope * column), jnp.max(slope), jnp.ones(())
        spectral, widest = jnp.sqrt(norms.gram), jnp.max(norms.rows)
        if self.weights is not None:
            heaviest = jnp.max(self.weights.leaf(hyper))
            leaf_slope = self.weights.slope(hyper)
            rate = self.weights.spread(leaf_slope)
            root = self.weights.count(leaf_slope) ** 0.5
            slopes = jnp.square(self.loss.slope(point.memory, self.targets))
            steepest = jnp.sqrt(jnp.sum(slopes, axis=tuple(range(1, slopes.ndim))))
            mixed = jnp.hypot(mixed, root * jnp.max(rate * steepest) * spectral / n)
            lipschitz = jnp.hypot(lipschitz, root * jnp.max(rate * norms.rows) * self.loss.curvature * spectral / n)
        return Constants(
            strong_convexity=self.strong_convexity(hyper),
            lipschitz_hessian=self.loss.third * heaviest * widest * norms.gram / n,
            mixed_norm=mixed,
            lipschitz_mixed=lipschitz,
        )

    def rounding(self, point: Point, hyper: PyTree, adjoint: PyTree, unit: float) -> Rounding:
        """Bounds, entry by entry, on the rounding errors of ∇g, A q and Bᵀq in arithmetic of unit roundoff `unit`.

        Standard a priori bounds (Higham 2002, chapter 3), γ_k = (k + 12) u for k u/(1 - k u):
        |δ∇g| <= |X|ᵀω(|δ∇ℓ| + γ_n|∇ℓ|)/n + 4u|λw|;
        |δ(Aq)| <= |X|ᵀω((γ_n + γ_d + 16u)|D||X||q| + |δD| |X||q|)/n + 4u|λq|, where
        |δD| <= (e^{4M max du} - 1 + 32u)|D| entry by entry; |δ(Bᵀq)| <= γ_d Σ s|w q| for a strength, and
        Σ t (|δ∇ℓ||Xq| + |∇ℓ||δ(Xq)| + 8u|∇ℓ||Xq|)/n for a weight, s and t the slopes of the leaves. Products with |X|
        are bounded by norms of its rows and columns (Cauchy-Schwarz), so no pass over the data is made. `underflow` is
        added to each.
        """
        params, statistic, norms, targets = point.params, point.memory, self.norms, self.targets
        n, d = self.inputs.shape
        strengths, slope = self.strengths(hyper), self.penalty.slope(hyper)
        rows = slope_rounding(self.loss, statistic, targets, params, norms, unit, self.offset)
        gradient = per_feature(norms, self.weighted(rows, hyper)) / n + self.pull_rounding(strengths, params, unit)
        _, du = prediction_rounding(params, norms, unit, self.offset)
        relative = jnp.expm1(4 * self.loss.self_concordance * du) + (n + 2 * d + 60) * unit
        reach, reach_error = prediction_rounding(adjoint, norms, unit)
        reach = jnp.broadcast_to(reach, statistic.shape)
        curved = relative * self.loss.curve_abs(statistic, reach)
        curved = self.weighted(curved + unit * self.loss.curve_cancellation(statistic) * reach, hyper)
        of_product = per_feature(norms, curved) / n + self.pull_rounding(strengths, adjoint, unit)
        summed = self.penalty.summed(jnp.abs(params * adjoint), slope)
        strengths_error = (params.size + 22) * unit * slope * summed
        weights_error = None
        if self.weights is not None:
            rate, parts = self.weights.slope(hyper), tuple(range(1, statistic.ndim))
            steep = jnp.abs(self.loss.slope(statistic, targets))
            count = self.weights.count(rate)
            error = rows * reach + steep * (reach_error + (count + 20) * unit * reach)
            weights_error = rate * self.weights.summed(jnp.sum(error, axis=parts), rate) / n
        lost = underflow(params)
        weights_error = None if weights_error is None else weights_error + lost
        return Rounding(gradient + lost, of_product + lost, strengths_error + lost, weights_error)


def _times(omega: Array | None, rows: Array) -> Array:
    return rows if omega is None else over(omega, rows) * rows
