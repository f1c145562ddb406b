"""Parts of the Hessian that a family can write down: its diagonal, and the whole where that is small."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._inner_loss import AbstractInnerLoss, Point
from .families import GeneralisedLinear

FORM_BELOW = 512


def forms_hessian(loss: AbstractInnerLoss) -> bool:
    """Whether A is small and cheap: one output, at most 512 features, so that it costs about d/10 products."""
    return isinstance(loss, GeneralisedLinear) and len(loss.shape) == 1 and loss.shape[0] <= FORM_BELOW


def formed_hessian(loss: AbstractInnerLoss, point: Point, hyper: PyTree) -> Float[Array, "d d"]:
    """A = Xᵀ D X/n + Λ, for a loss that [`forms_hessian`][] allows."""
    assert isinstance(loss, GeneralisedLinear)
    curve = loss.loss.curve_diagonal(point.memory) / loss.inputs.shape[0]
    return (loss.inputs * curve[:, None]).T @ loss.inputs + jnp.diag(loss.strengths(hyper))


def hessian_diagonal(loss: AbstractInnerLoss, point: Point, hyper: PyTree) -> PyTree | None:
    """diag A = Σ_i D_icc x_ij²/n + λ_jc for a family; `None` for a loss of unknown structure."""
    if not isinstance(loss, GeneralisedLinear):
        return None
    curve = loss.loss.curve_diagonal(point.memory) / loss.inputs.shape[0]
    return jnp.square(loss.inputs).T @ curve + loss.strengths(hyper)
