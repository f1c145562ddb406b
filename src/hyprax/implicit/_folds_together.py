"""Folds of a dense family, all of them in one program: batched Newton steps, with factors that serve the gradient."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from .._products import einsum, product
from ._inner_loss import AbstractInnerLoss
from .families._design import is_dense
from .families._generalised_linear import GeneralisedLinear
from .families._losses import SquaredLoss

LARGEST = 60_000_000
"""Entries of all factors together, and of all designs weighted for them: beyond, folds are fitted one by one."""
MOST_STEPS = 40
COARSE, FINE = 1e-10, 1e-16

Masks = Sequence[tuple[np.ndarray, np.ndarray]]
"""Pairs of weights of rows: for the fit, and for the held-out loss."""


class FoldsTogether(eqx.Module):
    """F_b(λ) = Σ_k Σ_i v_bki ℓ(x_iᵀw_bk(λ); y_i) for B sets of K folds of one family, each set at a λ of its own.

        w_bk(λ) = argmin_w (1/n) Σ_i s_bki ℓ(x_iᵀw; y_i) + ½ Σ_j λ_j w_j²

    All B K fits take their Newton steps together, on factors of dense Hessians; folds of squared losses are their Gram
    matrices. No certificate: this is for choosing among many fits, and what was chosen is then looked at again.

    - `fitting`, `judging`: s and v, `(B, K, n)`.
    - `decrement`: squared Newton decrement, beside 1 + |value|, at which a step is the last.
    - `like`: hyperparameters of the structure that `raw` is read as.
    """

    family: GeneralisedLinear
    like: PyTree
    fitting: Float[Array, "B K n"]
    judging: Float[Array, "B K n"]
    grams: tuple[Array, ...] | None
    decrement: Float[Array, ""]

    def __init__(self, family: GeneralisedLinear, like: PyTree, fitting: Any, judging: Any, fine: bool):
        self.family, self.like = family, like
        self.fitting, self.judging = (jnp.asarray(x, family.dtype) for x in (fitting, judging))
        self.decrement = jnp.asarray(FINE if fine else COARSE, family.dtype)
        exact = isinstance(family.loss, SquaredLoss) and len(family.shape) == 1
        self.grams = _grams(family, self.fitting, self.judging) if exact else None

    def start(self) -> Float[Array, "B K P"]:
        """Weights to begin with."""
        first = jnp.ravel(self.family.start())
        return jnp.broadcast_to(first, (*self.fitting.shape[:2], first.size))

    def value_and_grad(
        self, raw: Float[Array, "B N"], start: Float[Array, "B K P"]
    ) -> tuple[Float[Array, " B"], Float[Array, "B N"], Float[Array, "B K P"]]:
        """F_b and its gradient in the raw coordinates, and the weights; infinite where a fit has not arrived."""
        sets, folds, count = start.shape
        restore = ravel_pytree(self.like)[1]

        def strengths(raw: Array) -> Array:
            return jax.vmap(lambda row: jnp.ravel(self.family.strengths(restore(row))))(raw)

        lam, pull = jax.vjp(strengths, raw)
        each = jnp.repeat(lam, folds, axis=0)
        weights, factors, arrived = self._fits(each, start.reshape(-1, count))
        losses, slopes = self._held(weights)
        adjoints = _solved(factors, slopes)
        along = jnp.sum((weights * adjoints).reshape(sets, folds, count), axis=1)
        (grad,) = pull(-along)
        value = jnp.sum(losses.reshape(sets, folds), axis=1)
        sound = jnp.all(arrived.reshape(sets, folds), axis=1) & jnp.isfinite(value)
        value = jnp.where(sound, value, jnp.inf)
        return value, grad, jnp.where(sound[:, None, None], weights.reshape(start.shape), start)

    def _fits(
        self, lam: Float[Array, "Q P"], start: Float[Array, "Q P"]
    ) -> tuple[Float[Array, "Q P"], Float[Array, "Q P P"], Bool[Array, " Q"]]:
        """The optima by damped Newton steps, factors of their Hessians, and where a step was the last of its kind."""
        q, p = start.shape
        unit = jnp.maximum(self.decrement, float(jnp.finfo(start.dtype).eps))
        slack = 1e3 * float(jnp.finfo(start.dtype).eps)

        def again(state: tuple) -> Array:
            return (state[-1] < MOST_STEPS) & ~jnp.all(state[-2])

        def newton(state: tuple) -> tuple:
            weights, value, step, length, factor, done, count = state
            trial = weights + length[:, None] * step
            found, grad, hessian = self._fit(trial, lam)
            better = (found <= value + slack * (1 + jnp.abs(found))) & ~done
            new = jnp.linalg.cholesky(hessian)
            move = -_solved(new, grad)
            decrement = -jnp.sum(grad * move, axis=1)
            near = better & (decrement <= unit * (1 + jnp.abs(found)))
            # A step that is as short as this one leaves an error of its square: it is taken, and the last.
            weights = jnp.where(better[:, None], jnp.where(near[:, None], trial + move, trial), weights)
            return (
                weights,
                jnp.where(better, found, value),
                jnp.where(better[:, None], move, step),
                jnp.where(better, 1.0, length / 4).astype(length.dtype),
                jnp.where(better[:, None, None], new, factor),
                done | near,
                count + 1,
            )

        infinite, ones = jnp.full(q, jnp.inf, start.dtype), jnp.ones(q, start.dtype)
        factors = jnp.broadcast_to(jnp.eye(p, dtype=start.dtype), (q, p, p))
        begun = (start, infinite, jnp.zeros_like(start), ones, factors, jnp.zeros(q, bool), jnp.asarray(0))
        weights, _, _, _, factors, done, _ = jax.lax.while_loop(again, newton, begun)
        return weights, factors, done

    def _fit(self, w: Float[Array, "Q P"], lam: Float[Array, "Q P"]) -> tuple[Array, Array, Array]:
        """Value, gradient and Hessian of each fold's problem."""
        p = w.shape[1]
        pulled = jax.vmap(lambda each, v: jnp.ravel(self.family.pull(self._shaped(each), self._shaped(v))))
        penalty = pulled(lam, w)
        if self.grams is not None:
            gram, right, square = self.grams[:3]
            mapped = einsum("qij,qj->qi", gram, w)
            value = 0.5 * jnp.sum(w * (mapped + penalty), axis=1) - jnp.sum(w * right, axis=1) + square
            return value, mapped - right + penalty, gram + jax.vmap(jnp.diag)(lam)
        inputs = dense(self.family)
        n = inputs.shape[0]
        shares = self.fitting.reshape(-1, n) / n
        losses, slopes, curves = self._rows(w)
        value = jnp.sum(shares * losses, axis=1) + 0.5 * jnp.sum(w * penalty, axis=1)
        grad = self._back(_over(shares, slopes) * slopes) + penalty
        weighted = _over(shares, curves) * curves
        if curves.ndim == 2:
            hessian = product(jnp.swapaxes(inputs[None] * weighted[:, :, None], 1, 2), inputs)
        else:
            blocks = einsum("ni,qncd,nj->qicjd", inputs, weighted, inputs)
            hessian = blocks.reshape(-1, p, p)
        free = self.family.free
        if free is not None and free.gauge is not None:
            basis = jnp.eye(p, dtype=w.dtype)
            hessian = hessian + jax.vmap(lambda e: jnp.ravel(free.gauged(self._shaped(e))))(basis)[None]
        return value, grad, hessian + jax.vmap(jnp.diag)(lam)

    def _held(self, w: Float[Array, "Q P"]) -> tuple[Array, Array]:
        """The held-out loss of each fold, and its gradient."""
        if self.grams is not None:
            gram, right, square = self.grams[3:]
            mapped = einsum("qij,qj->qi", gram, w)
            value = 0.5 * jnp.sum(w * mapped, axis=1) - jnp.sum(w * right, axis=1) + square
            return jnp.maximum(value, 0), mapped - right  # a sum of squares, which rounding may take below 0
        shares = self.judging.reshape(-1, self.judging.shape[-1])
        losses, slopes, _ = self._rows(w)
        return jnp.sum(shares * losses, axis=1), self._back(_over(shares, slopes) * slopes)

    def _shaped(self, w: Array) -> Array:
        return w.reshape(self.family.shape)

    def _rows(self, w: Float[Array, "Q P"]) -> tuple[Array, Array, Array]:
        """ℓ_i, ∇ℓ_i and ∇²ℓ_i of each fold's weights."""
        loss, targets = self.family.loss, self.family.targets
        u = einsum("np,qp...->qn...", dense(self.family), w.reshape(-1, *self.family.shape))
        if self.family.offset is not None:
            u = u + self.family.offset[None]

        def each(u: Array) -> tuple[Array, Array, Array]:
            s = loss.statistic(u, targets)
            if u.ndim == 1:
                curves = loss.curve_diagonal(s)
            else:
                basis = jnp.eye(u.shape[1], dtype=u.dtype)
                curves = jax.vmap(lambda e: loss.curve(s, jnp.broadcast_to(e, u.shape)), out_axes=-1)(basis)
            return loss.value(u, targets), loss.slope(s, targets), curves

        return jax.vmap(each)(u)

    def _back(self, rows: Array) -> Float[Array, "Q P"]:
        found = einsum("np,qn...->qp...", dense(self.family), rows)
        return found.reshape(len(rows), -1)


def folds_together(
    loss: AbstractInnerLoss, like: PyTree, sets: Sequence[Masks], fine: bool = False
) -> FoldsTogether | None:
    """The folds of several sets together; `None` for what is no dense family, or where factors would be too large.

    Masks may be weights of rows. A set's held-out loss is the mean over the rows that its folds judge; a set with fewer
    folds than another gets some that judge nothing.
    """
    if not isinstance(loss, GeneralisedLinear) or not is_dense(loss.inputs) or loss.weights is not None:
        return None
    if loss.free is not None and not bool(loss.free.determined):
        return None
    most, size, classes = max(len(masks) for masks in sets), int(np.prod(loss.shape)), (*loss.shape, 1)[1]
    if most * len(sets) * max(size**2, loss.inputs.shape[0] * size * (classes if classes > 1 else 1)) > LARGEST:
        return None
    fitting, judging = [], []
    for masks in sets:
        pairs = [*masks, *[(masks[0][0], np.zeros_like(masks[0][1]))] * (most - len(masks))]
        fitting.append(np.stack([np.asarray(fit, float) for fit, _ in pairs]))
        held = np.stack([np.asarray(judge, float) for _, judge in pairs])
        judging.append(held / max(held.sum(), 1e-300))
    return FoldsTogether(loss, like, np.stack(fitting), np.stack(judging), fine)


def _over(shares: Array, rows: Array) -> Array:
    return jnp.expand_dims(shares, tuple(range(2, rows.ndim)))


def _solved(factors: Float[Array, "Q P P"], right: Float[Array, "Q P"]) -> Float[Array, "Q P"]:
    return jax.vmap(lambda factor, b: jsl.cho_solve((factor, True), b))(factors, right)


def dense(family: GeneralisedLinear) -> Array:
    """The inputs, which are not sparse here: `together` takes no others."""
    assert is_dense(family.inputs)
    return family.inputs


@eqx.filter_jit
def _grams(family: GeneralisedLinear, fitting: Array, judging: Array) -> tuple[Array, ...]:
    """XᵀX, Xᵀy and ½ yᵀy of the rows that fit and of those that judge, weighted, a fold a row."""
    inputs = dense(family)
    n = inputs.shape[0]
    y = family.targets if family.offset is None else family.targets - family.offset

    def of(shares: Array) -> tuple[Array, Array, Array]:
        gram = product(jnp.swapaxes(inputs[None] * shares[:, :, None], 1, 2), inputs)
        right = einsum("np,qn->qp", inputs, shares * y[None])
        return gram, right, 0.5 * einsum("qn,n->q", shares, jnp.square(y))

    return *of(fitting.reshape(-1, n) / n), *of(judging.reshape(-1, n))
