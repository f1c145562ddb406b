"""Inner and outer losses as finite sums over blocks of examples, and what each block adds to the directions.

The contribution of block k is kept as a *code*, from which it is decoded linearly: for any function the derivatives
themselves; for a linear predictor a few numbers an example, since the derivatives are Xᵀ times those.
"""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PyTree

from ..._hyper import natural
from ..._products import product
from ..._trees import tree_dtype, tree_scale
from .._inner_loss import AbstractInnerLoss, AutodiffLoss
from ..families._design import is_dense
from ..families._generalised_linear import GeneralisedLinear
from ..families._mean_loss import MeanLoss
from ._blocks import Blocks, common_length

if TYPE_CHECKING:
    from typing import ClassVar as AbstractClassVar
else:
    from equinox import AbstractClassVar

Loss = Callable[[PyTree, PyTree, Any], Float[Array, ""]]


class Terms(eqx.Module):
    """What directions are made of. Of the inner loss: ∇_w g, A v and Bᵀv; of the outer: ∇_w f, f itself and ∂_λ f."""

    gradient: PyTree
    second: PyTree
    hyper: PyTree


class AbstractSum(eqx.Module):
    """(1/N) Σ_k code_k, decoded, plus what is known without sampling."""

    blocks: Blocks
    passes: AbstractClassVar[int]
    """Derivatives of one example's loss that one example of a block takes: gradient, Hessian and mixed product."""

    @property
    def passes_of_a_block(self) -> int:
        """The same for a whole block."""
        return self.passes * self.blocks.rows_of_a_block

    @abc.abstractmethod
    def code(self, block: Integer[Array, ""], params: PyTree, hyper: PyTree, adjoint: PyTree) -> PyTree:
        """What block k contributes, encoded; its expectation over uniform k is the whole sampled part."""

    @abc.abstractmethod
    def decode(self, block: Integer[Array, ""], code: PyTree, params: PyTree, hyper: PyTree) -> Terms:
        """The contribution itself: linear in the code; the other arguments give shapes alone."""

    @abc.abstractmethod
    def exact(self, params: PyTree, hyper: PyTree, adjoint: PyTree) -> Terms:
        """The part that takes no data."""


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, tree)


class _Examples(eqx.Module):
    """A function of batches as a mean over the rows of a block."""

    fn: Loss
    data: PyTree
    blocks: Blocks

    def __call__(self, block: Integer[Array, ""], params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        """(N/n) Σ_{i in B_k} fn of example i, for a function that is a mean over the examples of a batch."""
        rows, base = self.blocks.rows(block), self.blocks.base

        def mean(picked: Array) -> Float[Array, ""]:
            return self.fn(params, natural(hyper), jax.tree.map(lambda leaf: leaf[picked], self.data))

        value = mean(rows[:base])
        if not self.blocks.spare:
            return value
        extra = self.blocks.extra(block, value.dtype) * mean(rows[base:])
        return (self.blocks.count / self.blocks.size) * (base * value + extra)


class FunctionInner(AbstractSum):
    """Any inner loss that is a mean over examples: a code holds ∇_w g_k, A_k v and B_kᵀv, of size 2|w| + |λ|."""

    examples: _Examples
    passes: ClassVar[int] = 3

    def code(self, block, params, hyper, adjoint):
        slope = jax.grad(lambda w, h: self.examples(block, w, h))
        gradient, pull = jax.vjp(slope, params, hyper)
        return Terms(gradient, *pull(adjoint))

    def decode(self, block, code, params, hyper):
        return code

    def exact(self, params, hyper, adjoint):
        return Terms(_zeros(params), _zeros(params), _zeros(hyper))


class FunctionOuter(AbstractSum):
    """Any outer loss that is a mean over examples: a code holds f_k, ∇_w f_k and ∂_λ f_k, of size |w| + |λ| + 1."""

    examples: _Examples
    passes: ClassVar[int] = 1

    def code(self, block, params, hyper, adjoint):
        value, (gradient, direct) = jax.value_and_grad(lambda w, h: self.examples(block, w, h), (0, 1))(params, hyper)
        return Terms(gradient, value, direct)

    def decode(self, block, code, params, hyper):
        return code

    def exact(self, params, hyper, adjoint):
        return Terms(_zeros(params), jnp.zeros((), tree_dtype(params)), _zeros(hyper))


class _LinearCode(eqx.Module):
    """C numbers an example each: ∇ℓ_i, and of the inner loss ∇²ℓ_i x_iᵀv; the mean loss of the block of the outer."""

    slope: Float[Array, "rows *C"]
    second: Array


class LinearInner(AbstractSum):
    """A family: ∇_w g = Xᵀs/n + Λw and A v = Xᵀc/n + Λv, s_i = ∇ℓ_i, c_i = ∇²ℓ_i x_iᵀv: 2C numbers an example.

    The penalty, and with it all of Bᵀv, needs no data, so it is exact at every step.
    """

    family: GeneralisedLinear
    inputs: Float[Array, "n d"]
    passes: ClassVar[int] = 2

    def _slope(self, targets: Array) -> Callable[[Array], Array]:
        # By differentiation of the values alone: all that is asked of a loss here is that it has them.
        return jax.grad(lambda u: jnp.sum(self.family.loss.value(u, targets)))

    def code(self, block, params, hyper, adjoint):
        rows = self.blocks.rows(block)
        inputs = self.inputs[rows]
        slope, curve = jax.jvp(
            self._slope(self.family.targets[rows]), (product(inputs, params),), (product(inputs, adjoint),)
        )
        weights = jnp.expand_dims(self.blocks.weights(block, slope.dtype), tuple(range(1, slope.ndim)))
        return _LinearCode(weights * slope, weights * curve)

    def decode(self, block, code, params, hyper):
        inputs = self.inputs[self.blocks.rows(block)]
        return Terms(product(inputs.T, code.slope), product(inputs.T, code.second), _zeros(hyper))

    def exact(self, params, hyper, adjoint):
        strengths, along, pull = self.family.strengths(hyper), params * adjoint, self.family.pull
        mixed = jax.grad(lambda h: jnp.sum(self.family.strengths(h) * along))(hyper)
        return Terms(pull(strengths, params), pull(strengths, adjoint), mixed)

    def smoothness(self, hyper: PyTree) -> Float[Array, "d *C"]:
        """s_j = 𝓛 + λ_j, with 𝓛 = c [(n(b-1)/(b(n-1))) ‖XᵀX‖₂/n + ((n-b)/(b(n-1))) max_i‖x_i‖²], c = sup ‖∇²ℓ‖.

        𝓛 is an upper bound of the expected smoothness of the mean loss over a batch of b (Gower et al. 2019, b-nice
        sampling); the penalty is diagonal and is not sampled, so each strength is the business of its own weight.
        """
        norms, n, b = self.family.norms, self.blocks.size, self.blocks.base
        share = (n - b) / (b * (n - 1)) if n > 1 else 0.0
        curved = (1 - share) * norms.gram / n + share * jnp.max(jnp.square(norms.rows))
        strengths = self.family.strengths(hyper)
        return (self.family.loss.curvature * curved).astype(strengths.dtype) + strengths


class LinearOuter(AbstractSum):
    """The mean loss of a family: ∇_w f = Vᵀs/m, s_i = ∇ℓ_i: C numbers an example and one a block."""

    loss: MeanLoss
    inputs: Float[Array, "m d"]
    targets: Array
    passes: ClassVar[int] = 1

    def code(self, block, params, hyper, adjoint):
        rows = self.blocks.rows(block)
        predicted, targets = product(self.inputs[rows], params), self.targets[rows]
        weights = self.blocks.weights(block, predicted.dtype)
        if self.loss.weights is not None:
            weights = weights * self.loss.weights[rows].astype(weights.dtype)

        def weighted(u: Array) -> Float[Array, ""]:
            return jnp.sum(weights * self.loss.loss.value(u, targets))

        value, slope = jax.value_and_grad(weighted)(predicted)
        return _LinearCode(slope, value)

    def decode(self, block, code, params, hyper):
        return Terms(product(self.inputs[self.blocks.rows(block)].T, code.slope), code.second, _zeros(hyper))

    def exact(self, params, hyper, adjoint):
        return Terms(_zeros(params), jnp.zeros((), tree_dtype(params)), _zeros(hyper))


def inner_sum(name: str, loss: AbstractInnerLoss, batch_size: SupportsIndex, key: Array) -> FunctionInner | LinearInner:
    """The inner loss as a sum over blocks.

    **Raises:** `ValueError` for a loss that is neither a function of data nor a family, for sparse data, and for bad
    batch sizes.
    """
    if isinstance(loss, GeneralisedLinear):
        inputs = _dense(name, loss.inputs)
        if loss.offset is not None:
            raise ValueError(f"{name}: the family must be without an offset; got one. Use hx.ImplicitObjective.")
        blocks = Blocks(name, inputs.shape[0], batch_size, key)
        if loss.weights is None:
            return LinearInner(blocks, loss, inputs)
        # Weights are hyperparameters of single examples: their part of Bᵀv is sampled too, as that of any function.
        data = (inputs, loss.targets, jnp.arange(inputs.shape[0], dtype=jnp.int32))
        return FunctionInner(blocks, _Examples(_WeightedLoss(loss), data, blocks))
    if not isinstance(loss, AutodiffLoss):
        raise ValueError(
            f"{name}: the inner loss must be a family or a function `inner_loss(params, hyper, data)`, which can be "
            f"taken apart into examples; got {type(loss).__name__}."
        )
    data = jax.tree.map(jnp.asarray, loss.data)
    size = common_length(f"{name}, the optimum's data", data)
    blocks = Blocks(name, size, _fitting(batch_size, data), key)
    return FunctionInner(blocks, _Examples(loss.fn, data, blocks))


def outer_sum(
    name: str, loss: Loss, data: PyTree, batch_size: SupportsIndex, key: Array
) -> FunctionOuter | LinearOuter:
    """The outer loss as a sum over blocks.

    **Raises:** `ValueError` for bad batch sizes.
    """
    if isinstance(loss, MeanLoss):
        _dense(f"{name}, outer_data", data[0])
    size = common_length(f"{name}, outer_data", data)
    blocks = Blocks(f"{name}, outer", size, _fitting(batch_size, data), key)
    if isinstance(loss, MeanLoss):
        return LinearOuter(blocks, loss, data[0], data[1])
    return FunctionOuter(blocks, _Examples(loss, data, blocks))


class _WeightedLoss(eqx.Module):
    """The mean over a batch (x, y, i) of ω_i ℓ(x_iᵀw; y_i), and the penalty."""

    family: GeneralisedLinear

    def __call__(self, params: PyTree, hyper: PyTree, batch: tuple[Array, Array, Array]) -> Float[Array, ""]:
        inputs, targets, places = batch
        assert self.family.weights is not None  # `inner_sum` uses it for no other
        losses = self.family.weights.values(hyper)[places] * self.family.loss.value(product(inputs, params), targets)
        return jnp.mean(losses) + 0.5 * jnp.sum(params * self.family.pull(self.family.strengths(hyper), params))


def _dense(name: str, inputs: Any) -> Array:
    if not is_dense(inputs):
        raise ValueError(
            f"{name}: inputs must be dense, since batches are rows taken at random; got sparse ones, or in chunks."
        )
    return inputs


def _fitting(batch_size: SupportsIndex, data: PyTree) -> SupportsIndex:
    """A loss that sees no data has one term, whatever the batch size."""
    return batch_size if jax.tree.leaves(data) else 1


def check_mean(name: str, part: AbstractSum, params: PyTree, hyper: PyTree) -> None:
    """Refuse a function that is not a mean over the examples of its batch: its blocks would not add up to it.

    Compared on two examples, together and one by one; nothing is checked under a transformation.
    """
    if not isinstance(part, FunctionInner | FunctionOuter) or part.blocks.size < 2:
        return
    fn, data = part.examples.fn, part.examples.data

    def at(rows: slice) -> Array:
        return fn(params, natural(hyper), jax.tree.map(lambda leaf: leaf[rows], data))

    together, first, second = at(slice(0, 2)), at(slice(0, 1)), at(slice(1, 2))
    if jnp.shape(together) != ():
        raise ValueError(f"{name}: a loss must return a scalar; got shape {jnp.shape(together)}.")
    try:
        values = np.asarray([together, first, second])
    except jax.errors.TracerArrayConversionError:
        return
    tolerance = 100 * float(jnp.finfo(together.dtype).eps) ** 0.5
    if abs(values[0] - values[1:].mean()) > tolerance * np.max(np.abs(values)):
        raise ValueError(
            f"{name}: a loss must be a mean over the examples of its batch (jnp.mean, not jnp.sum; no statistics of "
            f"the batch); got {values[0]:.6g} on two examples and {values[1]:.6g}, {values[2]:.6g} on each."
        )


def block_codes(part: AbstractSum, params: PyTree, hyper: PyTree, adjoint: PyTree) -> PyTree:
    """The codes of all blocks, one after another, with a leading axis N."""
    every = jnp.arange(part.blocks.count, dtype=jnp.int32)
    return jax.lax.map(lambda block: part.code(block, params, hyper, adjoint), every)


def mean_terms(part: AbstractSum, codes: PyTree, params: PyTree, hyper: PyTree) -> Terms:
    """(1/N) Σ_k of the decoded codes."""
    every = jnp.arange(part.blocks.count, dtype=jnp.int32)
    shapes = jax.eval_shape(lambda: part.decode(every[0], jax.tree.map(lambda leaf: leaf[0], codes), params, hyper))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def add(total: Terms, item: tuple[Array, PyTree]) -> tuple[Terms, None]:
        return jax.tree.map(jnp.add, total, part.decode(*item, params, hyper)), None

    total, _ = jax.lax.scan(add, start, (every, codes))
    return tree_scale(1 / part.blocks.count, total)
