"""A loss that torch computes, in trainings of hyprax: what `unroll.oracle` asks of a framework, by torch's autograd."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._objective import described
from ..unroll._oracle import Host, host_loss, start_check
from ._tensors import torch_for


def oracle(
    loss: Callable[..., Any], example: tuple[PyTree, PyTree, PyTree] | None = None
) -> Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]:
    """A loss written in torch as a function of JAX with derivatives of the first two orders in reverse.

    For a model that [`hyprax.from_torch`][] refuses: the weights, the optimizer and the sweeps are hyprax's, and each
    step asks torch for ∇_w L(w, λ, batch), each step backwards for the product of its transposed derivative with p.
    Nothing of a step is kept in torch. It must be deterministic, or nothing here is exact: set
    `torch.use_deterministic_algorithms(True)`, draw nothing, and [`hyprax.unroll.Reversible`][] says whether the run
    came back to the bits from which it started.

    **Arguments:**

    - `loss`: `loss(params, hyper, batch)` to a scalar tensor, of pytrees of tensors on the CPU (int32 arrives as int64,
        torch's own); twice differentiable by torch's autograd (attention in its MATH form).
    - `example`: weights, hyperparameters in natural units and a batch, as a training gives them. With one, torch is
        asked twice at once, and its answers must be the same bits and derivatives of one another.

    **Returns:** `loss(params, hyper, batch)` of pytrees of arrays, for [`hyprax.Training`][] or an outer loss. Its
    derivative in the batch is taken to be zero. Not for [`hyprax.unroll.ForwardMode`][], nor under third derivatives.

    **Raises:** `ValueError` for what is no function, and for what the example shows; `ModuleNotFoundError` without
    torch.

    Other frameworks come in by [`hyprax.unroll.oracle`][].
    """
    torch = torch_for("hyprax.torch.oracle")
    if not callable(loss):
        raise ValueError(f"oracle: loss must be a function; got {described(loss)}.")

    def one(x: Any) -> Any:
        x = torch.from_numpy(np.array(x))
        return x.long() if x.dtype == torch.int32 else x  # the integers of torch's indices and classes

    def tensors(tree: PyTree) -> PyTree:
        return jax.tree.map(one, tree)

    def gradient(moving: PyTree, batch: PyTree, create_graph: bool) -> tuple[list[Any], list[Any]]:
        """The tensors that are differentiated, and the derivatives in them."""
        tree = tensors(moving)
        wanted = [x.requires_grad_() for x in jax.tree.leaves(tree) if x.is_floating_point()]
        value = loss(*tree, tensors(batch))
        if not value.requires_grad:
            return wanted, [torch.zeros_like(x) for x in wanted]
        found = torch.autograd.grad(value, wanted, create_graph=create_graph, allow_unused=True)
        return wanted, [torch.zeros_like(x) if d is None else d for d, x in zip(found, wanted, strict=True)]

    def host_value(moving: PyTree, batch: PyTree) -> np.ndarray:
        with torch.no_grad():
            return loss(*tensors(moving), tensors(batch)).numpy()

    def host_gradient(moving: PyTree, batch: PyTree) -> list[np.ndarray]:
        with torch.enable_grad():
            return [x.detach().numpy() for x in gradient(moving, batch, create_graph=False)[1]]

    def host_product(moving: PyTree, batch: PyTree, direction: list[Any]) -> list[np.ndarray]:
        with torch.enable_grad():
            wanted, grads = gradient(moving, batch, create_graph=True)
            pairs = [(g, d) for g, d in zip(grads, tensors(direction), strict=True) if g.requires_grad]
            found = [None] * len(wanted)
            if pairs:
                found = torch.autograd.grad([g for g, _ in pairs], wanted, [d for _, d in pairs], allow_unused=True)
            return [(torch.zeros_like(x) if d is None else d).numpy() for d, x in zip(found, wanted, strict=True)]

    host = Host(host_value, host_gradient, host_product)
    if example is not None:
        start_check("oracle", host, example)
    return host_loss(host)
