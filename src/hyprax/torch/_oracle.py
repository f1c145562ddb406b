"""A loss that torch computes, in trainings of hyprax: values, gradients and products by calls to the host."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._objective import described
from ._tensors import torch_for


def oracle(loss: Callable[..., Any]) -> Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]:
    """A loss written in torch as a function of JAX with derivatives of the first two orders in reverse.

    For a model that [`hyprax.from_torch`][] refuses: the weights, the optimizer and the sweeps are hyprax's, and each
    step asks torch for ∇_w L(w, λ, batch), each step backwards for the product of its transposed derivative with p.
    Nothing of a step is kept in torch. It must be deterministic, or nothing here is exact: set
    `torch.use_deterministic_algorithms(True)`, draw nothing, and [`hyprax.unroll.Reversible`][] says whether the run
    came back to the bits from which it started.

    **Arguments:**

    - `loss`: `loss(params, hyper, batch)` to a scalar tensor, of pytrees of tensors on the CPU (int32 arrives as int64,
        torch's own); twice differentiable by torch's autograd (attention in its MATH form).

    **Returns:** `loss(params, hyper, batch)` of pytrees of arrays, for [`hyprax.Training`][] or an outer loss. Its
    derivative in the batch is taken to be zero. Not for [`hyprax.unroll.ForwardMode`][], nor under third derivatives.

    **Raises:** `ValueError` for what is no function; `ModuleNotFoundError` without torch.
    """
    torch = torch_for("hyprax.torch.oracle")
    if not callable(loss):
        raise ValueError(f"oracle: loss must be a function; got {described(loss)}.")

    def one(x: Any) -> Any:
        x = torch.from_numpy(np.array(x))
        return x.long() if x.dtype == torch.int32 else x  # the integers of torch's indices and classes

    def tensors(tree: PyTree) -> PyTree:
        return jax.tree.map(one, tree)

    def leaves(moving: PyTree) -> tuple[PyTree, list[Any]]:
        """The tree as tensors, and those of them that are differentiated."""
        tree = tensors(moving)
        wanted = [x.requires_grad_() for x in jax.tree.leaves(tree) if x.is_floating_point()]
        return tree, wanted

    def gradient(moving: PyTree, batch: PyTree, create_graph: bool) -> tuple[Any, list[Any], list[Any]]:
        tree, wanted = leaves(moving)
        value = loss(*tree, tensors(batch))
        if not value.requires_grad:
            return value, wanted, [torch.zeros_like(x) for x in wanted]
        found = torch.autograd.grad(value, wanted, create_graph=create_graph, allow_unused=True)
        return value, wanted, [torch.zeros_like(x) if d is None else d for d, x in zip(found, wanted, strict=True)]

    def host_value(moving: PyTree, batch: PyTree) -> np.ndarray:
        with torch.no_grad():
            return loss(*tensors(moving), tensors(batch)).numpy()

    def host_gradient(moving: PyTree, batch: PyTree) -> list[np.ndarray]:
        with torch.enable_grad():
            return [x.detach().numpy() for x in gradient(moving, batch, create_graph=False)[2]]

    def host_product(moving: PyTree, batch: PyTree, direction: list[Any]) -> list[np.ndarray]:
        with torch.enable_grad():
            _, wanted, grads = gradient(moving, batch, create_graph=True)
            pairs = [(g, d) for g, d in zip(grads, tensors(direction), strict=True) if g.requires_grad]
            found = [None] * len(wanted)
            if pairs:
                found = torch.autograd.grad([g for g, _ in pairs], wanted, [d for _, d in pairs], allow_unused=True)
            return [(torch.zeros_like(x) if d is None else d).numpy() for d, x in zip(found, wanted, strict=True)]

    def floating(tree: PyTree) -> list[Array]:
        return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]

    def like(xs: list[Array]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs]

    def in_place(moving: PyTree, values: list[Array]) -> PyTree:
        """The values at the floating leaves, none at the others."""
        left = iter(values)
        return jax.tree.map(lambda x: next(left) if jnp.issubdtype(x.dtype, jnp.floating) else None, moving)

    @jax.custom_vjp
    def grads_of(moving: PyTree, batch: PyTree) -> list[Array]:
        shapes = like(floating(moving))
        return jax.pure_callback(host_gradient, shapes, moving, batch, vmap_method="sequential")

    def product_of(kept: tuple[PyTree, PyTree], direction: list[Array]) -> tuple[PyTree, None]:
        shapes = like(floating(kept[0]))
        found = jax.pure_callback(host_product, shapes, *kept, direction, vmap_method="sequential")
        return in_place(kept[0], found), None

    grads_of.defvjp(lambda moving, batch: (grads_of(moving, batch), (moving, batch)), product_of)

    @jax.custom_vjp
    def value_of(moving: PyTree, batch: PyTree) -> Array:
        shape = jax.ShapeDtypeStruct((), floating(moving)[0].dtype)
        return jax.pure_callback(host_value, shape, moving, batch, vmap_method="sequential")

    def slope_of(kept: tuple[PyTree, PyTree], up: Array) -> tuple[PyTree, None]:
        return in_place(kept[0], [up.astype(g.dtype) * g for g in grads_of(*kept)]), None

    value_of.defvjp(lambda moving, batch: (value_of(moving, batch), (moving, batch)), slope_of)

    def of_jax(params: PyTree, hyper: PyTree, batch: PyTree) -> Float[Array, ""]:
        moving, batch = jax.tree.map(jnp.asarray, ((params, hyper), batch))
        return value_of(moving, batch)

    return of_jax
