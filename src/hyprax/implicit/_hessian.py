"""Parts of the Hessian that a family can write down: its diagonal, and the whole where that is small."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._products import product
from ._inner_loss import AbstractInnerLoss, Point
from .families import GeneralisedLinear, SparseDesign
from .families._design import forward_squared

FORM_BELOW = 512


def forms_hessian(loss: AbstractInnerLoss) -> bool:
    """Whether A is cheap: one output, dense data, at most 512 features, so that it costs about d/10 products."""
    if not isinstance(loss, GeneralisedLinear) or isinstance(loss.inputs, SparseDesign):
        return False
    return len(loss.shape) == 1 and loss.shape[0] <= FORM_BELOW


def _curves(loss: GeneralisedLinear, point: Point, hyper: PyTree) -> Float[Array, "n *C"]:
    """ω_i D_icc/n."""
    return loss.weighted(loss.loss.curve_diagonal(point.memory), hyper) / loss.inputs.shape[0]


def formed_hessian(loss: AbstractInnerLoss, point: Point, hyper: PyTree) -> Float[Array, "d d"]:
    """A = Xᵀ ω D X/n + Λ, for a loss that [`forms_hessian`][] allows."""
    assert isinstance(loss, GeneralisedLinear)
    assert not isinstance(loss.inputs, SparseDesign)
    scaled = loss.inputs * _curves(loss, point, hyper)[:, None]
    return product(scaled.T, loss.inputs) + jnp.diag(loss.strengths(hyper))


def hessian_diagonal(loss: AbstractInnerLoss, point: Point, hyper: PyTree) -> PyTree | None:
    """diag A = Σ_i ω_i D_icc x_ij²/n + λ_jc for a family; `None` for a loss of unknown structure."""
    if not isinstance(loss, GeneralisedLinear):
        return None
    backward_squared = jax.linear_transpose(lambda v: forward_squared(loss.inputs, v), point.params)
    return backward_squared(_curves(loss, point, hyper))[0] + loss.strengths(hyper)
