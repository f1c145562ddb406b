"""Generalised linear models with diagonal l2 penalties: a loss together with what its certificates need."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..._hyper import AbstractConstrained, AbstractElementwise, is_constrained, natural
from .._constants import Constants, Rounding
from .._inner_loss import AbstractInnerLoss, Point, Product
from ._losses import AbstractPointLoss, LogisticLoss, SoftmaxLoss, SquaredLoss
from ._norms import DesignNorms

FACTORISE_BELOW = 512


class MeanLoss(eqx.Module):
    """f(w) = (1/m) Σ_i ℓ(v_iᵀw; y_i): the unpenalised mean loss on given data, as an outer loss.

    Called as `outer_loss(params, hyper, data)` with `data = (V, y)`; `hyper` is not used.
    """

    loss: AbstractPointLoss

    def __call__(self, params: PyTree, hyper: PyTree, data: tuple[Array, Array]) -> Float[Array, ""]:
        inputs, targets = data
        return jnp.mean(self.loss.value(inputs @ params, targets))

    def gradient_rounding(self, params: PyTree, data: tuple[Array, Array], norms: DesignNorms) -> Float[Array, "d *C"]:
        """A bound, entry by entry, on the rounding error of the computed ∇f."""
        inputs, targets = data
        return _gradient_rounding(self.loss, params, self.loss.mean(inputs @ params), targets, norms)

    def value_rounding(self, params: PyTree, data: tuple[Array, Array], norms: DesignNorms) -> Float[Array, ""]:
        """A bound on the rounding error of the computed f: the mean of (Σ_c|p - t|_c + du) du + γ_m (|ℓ| + |u|)."""
        inputs, targets = data
        unit = jnp.finfo(params.dtype).eps / 2
        u = inputs @ params
        parts = tuple(range(1, u.ndim))
        slope = jnp.sum(jnp.abs(self.loss.mean(u) - self.loss.target(u, targets)), axis=parts)
        size, du = (jnp.max(x, axis=parts) for x in _prediction_rounding(params, norms))
        relative = (inputs.shape[0] + 12 + 8 * u.shape[-1] ** (u.ndim - 1)) * unit
        return jnp.mean((slope + du) * du + relative * (jnp.abs(self.loss.value(u, targets)) + size))


def _prediction_rounding(params: Array, norms: DesignNorms) -> tuple[Array, Array]:
    """|Xw| <= size and |fl(Xw) - Xw| <= γ_d size, row by row: size_i = ‖x_i‖ max_c‖w_c‖, γ_k = (k + 12) u."""
    unit = jnp.finfo(params.dtype).eps / 2
    largest = jnp.max(jnp.sqrt(jnp.sum(jnp.square(params), axis=0)))
    size = jnp.expand_dims(norms.rows, tuple(range(1, params.ndim))) * largest
    return size, (norms.columns.size + 12) * unit * size


def _per_feature(norms: DesignNorms, rows: Float[Array, "n *C"]) -> Float[Array, "d *C"]:
    """A bound of |X|ᵀ rows, entry by entry, for rows >= 0."""
    columns = jnp.expand_dims(norms.columns, tuple(range(1, rows.ndim)))
    return columns * jnp.sqrt(jnp.sum(jnp.square(rows), axis=0, keepdims=rows.ndim > 1))


def _gradient_rounding(
    loss: AbstractPointLoss, params: Array, mean: Array, targets: Array, norms: DesignNorms
) -> Array:
    """|fl(Xᵀ(p - t)/n) - Xᵀ(p - t)/n| <= |X|ᵀ(|δp| + γ_n |p - t|)/n, entry by entry."""
    unit = jnp.finfo(params.dtype).eps / 2
    n = norms.rows.size
    error = loss.mean_rounding(mean, *_prediction_rounding(params, norms))
    slope = jnp.abs(mean - loss.target(mean, targets))
    return _per_feature(norms, error + (n + 12) * unit * slope) / n


class GeneralisedLinear(AbstractInnerLoss):
    """g(w, λ) = (1/n) Σ_i ℓ(x_iᵀw; y_i) + ½ Σ_j λ_j w_j², with λ = penalty(hyper) broadcast to the shape of w.

    Made by [`hyprax.families.Softmax`][], [`hyprax.families.Logistic`][] and [`hyprax.families.Squared`][].
    It is strongly convex with the constant min λ_j, which is what makes certificates possible: no constant is asked of
    the user, and the rounding of every product is bounded.
    """

    inputs: Float[Array, "n d"]
    targets: Array
    loss: AbstractPointLoss
    penalty: Callable[[PyTree], Any]
    shape: tuple[int, ...] = eqx.field(static=True)
    gram: Array
    norms: DesignNorms

    def __init__(
        self, inputs: Any, targets: Any, loss: AbstractPointLoss, penalty: Callable[[PyTree], Any], outputs: int | None
    ):
        self.inputs, self.targets, self.loss, self.penalty = inputs, targets, loss, penalty
        n, d = inputs.shape
        self.shape = (d,) if outputs is None else (d, outputs)
        host = np.asarray(inputs, dtype=np.float64)
        # The Gram matrix where it is small enough to factorise, its diagonal where not: for preconditioning alone.
        gram = host.T @ host / n if d <= FACTORISE_BELOW else np.mean(np.square(host), axis=0)
        self.gram = jnp.asarray(gram, dtype=inputs.dtype)
        self.norms = DesignNorms(inputs)

    @property
    def mean_loss(self) -> MeanLoss:
        """The same loss without penalty, for use on validation data: `outer_loss=family.mean_loss`."""
        return MeanLoss(self.loss)

    def init(self) -> Float[Array, "d *C"]:
        """w = 0."""
        return jnp.zeros(self.shape, self.inputs.dtype)

    def strengths(self, hyper: PyTree) -> Float[Array, "d *C"]:
        """λ, in the shape of w."""
        return jnp.broadcast_to(self._selected(natural(hyper)), self.shape)

    def _selected(self, hyper: PyTree) -> Array:
        leaf = self.penalty(hyper)
        if not isinstance(leaf, jax.Array):
            leaf = jnp.asarray(leaf, self.inputs.dtype)
        try:
            fits = np.broadcast_shapes(leaf.shape, self.shape) == self.shape
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"penalty: given an array of shape {leaf.shape}, allowed are shapes that broadcast to that of the "
                f"weights, {self.shape}: () for one strength"
                + (
                    f", ({self.shape[1]},) a class, ({self.shape[0]}, 1) a feature, {self.shape} a weight."
                    if len(self.shape) == 2
                    else f", {self.shape} one a feature."
                )
            )
        return leaf

    def value(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        fit = jnp.mean(self.loss.value(self.inputs @ params, self.targets))
        return fit + 0.5 * jnp.sum(self.strengths(hyper) * jnp.square(params))

    def at(self, params: PyTree, hyper: PyTree) -> Point:
        strengths = self.strengths(hyper)
        u = self.inputs @ params
        mean = self.loss.mean(u)
        value = jnp.mean(self.loss.value(u, self.targets)) + 0.5 * jnp.sum(strengths * jnp.square(params))
        slope = mean - self.loss.target(u, self.targets)
        grad = self.inputs.T @ slope / self.inputs.shape[0] + strengths * params
        return Point(params, value, grad, mean)

    def product(self, point: Point, hyper: PyTree) -> Product:
        """v ↦ Xᵀ(D Xv)/n + Λv, D = ∇²ℓ from the predicted means that the point has kept."""
        strengths, mean = self.strengths(hyper), point.memory
        n = self.inputs.shape[0]
        return lambda v: self.inputs.T @ self.loss.curve(mean, self.inputs @ v) / n + strengths * v

    def preconditioner(self, point: Point, hyper: PyTree) -> Product:
        """The inverse of diag_c(s_c XᵀX/n + Λ_c), s_c the mean over examples of the c-th diagonal entry of D.

        A is close to block diagonal over outputs. The blocks are factorised where XᵀX is at hand (at most 512
        features), and replaced by their diagonals beyond.
        """
        strengths = self.strengths(hyper)
        scale = jnp.mean(self.loss.curve_diagonal(point.memory), axis=0)
        if self.gram.ndim == 1:
            column = jnp.expand_dims(self.gram, tuple(range(1, strengths.ndim)))
            inverse = 1 / (column * scale + strengths)
            return lambda v: inverse * v
        if strengths.ndim == 1:
            factor = jnp.linalg.cholesky(self.gram * scale + jnp.diag(strengths))
            return lambda v: jsl.cho_solve((factor, True), v)
        blocks = self.gram[None] * scale[:, None, None] + jax.vmap(jnp.diag)(strengths.T)
        factors = jnp.linalg.cholesky(blocks)

        def solve(v: Array) -> Array:
            return jax.vmap(lambda c, b: jsl.cho_solve((c, True), b))(factors, v.T).T

        return solve

    def mixed(self, params: PyTree, hyper: PyTree, adjoint: PyTree) -> PyTree:
        product = params * adjoint
        return jax.grad(lambda h: jnp.sum(self.strengths(h) * product))(hyper)

    def slope(self, hyper: PyTree) -> Array:
        """|dλ_k/d raw_k| for each strength k, in the shape of the selected leaf; 0 for a constant.

        **Raises:** `ValueError` where strengths are computed from the hyperparameters in any other way than one by one:
        certificates would not know how they depend on them.
        """
        node = self.penalty(hyper)
        if not isinstance(node, AbstractConstrained | jax.Array):
            return jnp.zeros(np.shape(node), self.inputs.dtype)
        if not any(node is leaf for leaf in jax.tree.leaves(hyper, is_leaf=is_constrained)):
            raise ValueError(
                "penalty: given strengths computed from the hyperparameters, allowed for certified bounds is a leaf as "
                "it is, such as `lambda hyper: hyper['penalty']` (or certificate=hx.NoBound())."
            )
        if isinstance(node, AbstractElementwise):
            return jnp.abs(node.slope)
        if isinstance(node, AbstractConstrained):
            raise ValueError(
                f"penalty: given a {type(node).__name__} leaf, allowed for certified bounds are Positive, Interval, "
                "LogInterval and plain leaves, one coordinate a strength."
            )
        return jnp.ones_like(node)

    def grouped_strengths(self, hyper: PyTree) -> Array:
        """λ_k for each strength k, in the shape of the selected leaf."""
        return self._selected(natural(hyper))

    def grouped(self, x: Float[Array, "d *C"], leaf: Array) -> Array:
        """Σ_{j in group k} x_j, for each entry k of the leaf that the strengths are broadcast from."""
        padded = (1,) * (x.ndim - leaf.ndim) + leaf.shape
        axes = tuple(i for i, (whole, part) in enumerate(zip(x.shape, padded, strict=True)) if part == 1 and whole != 1)
        return jnp.sum(x, axis=axes, keepdims=True).reshape(leaf.shape)

    def constants(self, params: PyTree, hyper: PyTree) -> Constants:
        """μ, L_A, ‖B‖ and L_B at `params`, in closed form.

        With s_k = dλ_k/d(raw_k) the slope of the k-th strength (s = λ where the leaf is `Positive`):

        - μ = min_j λ_j;
        - L_A = c₃ max_i‖x_i‖ ‖XᵀX‖₂/n, c₃ = sup |D³ℓ|;
        - B has the column (s_k w_j)_{j in group k} for each k; the columns have disjoint supports, so
          ‖B‖₂ = max_k s_k (Σ_{j in k} w_j²)^½, exactly;
        - L_B = max_k s_k.
        """
        strengths, slope = self.strengths(hyper), self.slope(hyper)
        column = jnp.sqrt(self.grouped(jnp.square(params), slope))
        n = self.inputs.shape[0]
        return Constants(
            strong_convexity=jnp.min(strengths),
            lipschitz_hessian=self.loss.third * jnp.max(self.norms.rows) * self.norms.gram / n,
            mixed_norm=jnp.max(slope * column),
            lipschitz_mixed=jnp.max(slope),
        )

    def rounding(self, point: Point, hyper: PyTree, adjoint: PyTree) -> Rounding:
        """Bounds, entry by entry, on the rounding errors of the computed ∇g, A q and Bᵀq.

        Standard a priori bounds (Higham 2002, chapter 3), γ_k = (k + 12) u for k u/(1 - k u):
        |δ∇g| <= |X|ᵀ(|δp| + γ_n|p - t|)/n + 4u|λw|;
        |δ(Aq)| <= |X|ᵀ((γ_n + γ_d + 16u)|D||X||q| + |δD| |X||q|)/n + 4u|λq|,
        where |δD| <= (e^{2 max du} - 1 + 32u)|D| entry by entry; |δ(Bᵀq)| <= γ_d Σ|λ w q|. Products with |X| are
        bounded by norms of its rows and columns (Cauchy-Schwarz), so no pass over the data is made.
        """
        params, mean, norms = point.params, point.memory, self.norms
        unit = jnp.finfo(params.dtype).eps / 2
        n, d = self.inputs.shape
        strengths, slope = self.strengths(hyper), self.slope(hyper)
        gradient = _gradient_rounding(self.loss, params, mean, self.targets, norms)
        gradient = gradient + 4 * unit * strengths * jnp.abs(params)
        _, du = _prediction_rounding(params, norms)
        relative = jnp.expm1(4 * du) + (n + 2 * d + 60) * unit
        reach = jnp.broadcast_to(_prediction_rounding(adjoint, norms)[0], mean.shape)
        product = _per_feature(norms, relative * self.loss.curve_abs(mean, reach)) / n
        product = product + 4 * unit * strengths * jnp.abs(adjoint)
        assembly = (params.size + 22) * unit * slope * self.grouped(jnp.abs(params * adjoint), slope)
        return Rounding(gradient, product, assembly)


def _checked(name: str, inputs: Any, targets: Any) -> tuple[Array, Any]:
    inputs = jnp.asarray(inputs)
    if not jnp.issubdtype(inputs.dtype, jnp.floating):
        inputs = inputs.astype(jnp.result_type(float))
    if inputs.ndim != 2 or 0 in inputs.shape:
        raise ValueError(f"{name}: given inputs of shape {inputs.shape}, allowed is (examples, features), neither 0.")
    targets = np.asarray(targets)
    if targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"{name}: given {inputs.shape[0]} inputs and {targets.shape[:1]} targets, allowed are as many."
        )
    if not np.all(np.isfinite(np.asarray(inputs))):
        raise ValueError(f"{name}: given inputs with NaN or infinite entries, allowed are finite numbers.")
    if targets.dtype.kind == "f" and not np.all(np.isfinite(targets)):
        raise ValueError(f"{name}: given targets with NaN or infinite entries, allowed are finite numbers.")
    return inputs, targets


def Softmax(
    inputs: Any, targets: Any, *, penalty: Callable[[PyTree], Any], classes: int | None = None
) -> GeneralisedLinear:
    """g(W, λ) = -(1/n) Σ_i log softmax(Wᵀx_i)_{y_i} + ½ Σ_jc λ_jc W_jc²: multinomial logistic regression.

    **Arguments:**

    - `inputs`: X, `(n, d)`, finite. A column of ones makes an intercept; it is penalised like any feature.
    - `targets`: y, `(n,)`, integers 0..C-1, at least two classes.
    - `penalty`: a selector of the strengths from the hyperparameters, e.g. `lambda hyper: hyper["penalty"]`. It is
        applied to natural values and to the constrained tree alike, and must return a leaf, of a shape that
        broadcasts to `(d, C)`: `()` one, `(C,)` a class, `(d, 1)` a feature, `(d, C)` a weight. Strengths must be >
        0.
    - `classes`: C; default the largest label plus one.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d, C)`.

    **Raises:** `ValueError` for data of other shapes, non-finite entries, labels out of range, or a single class.
    """
    inputs, targets = _checked("Softmax", inputs, targets)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise ValueError(f"Softmax: given targets {targets.dtype}{targets.shape}, allowed are integer labels (n,).")
    found = int(targets.max()) + 1
    classes = found if classes is None else classes
    if targets.min() < 0 or found > classes:
        raise ValueError(f"Softmax: given labels {targets.min()} to {targets.max()}, allowed are 0 to {classes - 1}.")
    if classes < 2 or np.all(targets == targets[0]):
        raise ValueError("Softmax: given a single class, allowed are two or more.")
    return GeneralisedLinear(inputs, jnp.asarray(targets), SoftmaxLoss(), penalty, classes)


def Logistic(inputs: Any, targets: Any, *, penalty: Callable[[PyTree], Any]) -> GeneralisedLinear:
    """g(w, λ) = (1/n) Σ_i [log(1 + e^{u_i}) - y_i u_i] + ½ Σ_j λ_j w_j², u = Xw: binary logistic regression.

    **Arguments:**

    - `inputs`: X, `(n, d)`, finite.
    - `targets`: y, `(n,)`, each 0 or 1, both present.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)`.
    """
    inputs, targets = _checked("Logistic", inputs, targets)
    if targets.ndim != 1 or not np.all((targets == 0) | (targets == 1)):
        raise ValueError("Logistic: given targets other than 0 and 1, allowed are 0 and 1, of shape (n,).")
    if np.all(targets == targets[0]):
        raise ValueError("Logistic: given a single class, allowed are both.")
    return GeneralisedLinear(inputs, jnp.asarray(targets, inputs.dtype), LogisticLoss(), penalty, None)


def Squared(inputs: Any, targets: Any, *, penalty: Callable[[PyTree], Any]) -> GeneralisedLinear:
    """g(w, λ) = (1/2n) ‖Xw - y‖² + ½ Σ_j λ_j w_j²: ridge regression.

    **Arguments:**

    - `inputs`: X, `(n, d)`, finite.
    - `targets`: y, `(n,)` or `(n, C)`, finite.
    - `penalty`: as in [`hyprax.families.Softmax`][].

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)` or `(d, C)`.
    """
    inputs, targets = _checked("Squared", inputs, targets)
    if targets.ndim not in (1, 2) or targets.dtype.kind not in "fiu":
        raise ValueError(f"Squared: given targets {targets.dtype}{targets.shape}, allowed are numbers (n,) or (n, C).")
    outputs = None if targets.ndim == 1 else targets.shape[1]
    return GeneralisedLinear(inputs, jnp.asarray(targets, inputs.dtype), SquaredLoss(), penalty, outputs)
