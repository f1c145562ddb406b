"""A loss that another framework differentiates, in trainings: gradients and products by calls to the host."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._objective import described

STEP = 1e-3
"""Of the central differences of the start check, relative to the size of the arguments."""
AWRY = 0.1
"""How far, relative to its size, a product may be from those differences: what is wrong is wrong by more."""


class Host(NamedTuple):
    """What a framework computes, of pytrees of arrays as JAX hands them over; lists go over the floating leaves.

    - `value(moving, batch)`: the loss; `None` where nobody asks for it.
    - `grad(moving, batch)`: its gradient, a list of arrays.
    - `product(moving, batch, direction)`: the transposed derivative of `grad` times a list of arrays, such a list too.
    """

    value: Callable[[PyTree, PyTree], Any] | None
    grad: Callable[[PyTree, PyTree], list[np.ndarray]]
    product: Callable[[PyTree, PyTree, list[Any]], list[np.ndarray]]


def floating(tree: PyTree) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def host_loss(host: Host) -> Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]:
    """loss(params, hyper, batch) as a function of JAX with derivatives of the first two orders in reverse."""

    def asked(fn: Callable[..., Any], shapes: Any, *args: Any) -> Any:
        return jax.pure_callback(fn, shapes, *args, vmap_method="sequential")

    def like(xs: list[Array]) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in xs]

    def in_place(moving: PyTree, values: list[Array]) -> PyTree:
        """The values at the floating leaves, none at the others."""
        left = iter(values)
        return jax.tree.map(lambda x: next(left) if jnp.issubdtype(x.dtype, jnp.floating) else None, moving)

    @jax.custom_vjp
    def grads_of(moving: PyTree, batch: PyTree) -> list[Array]:
        return asked(host.grad, like(floating(moving)), moving, batch)

    def product_of(kept: tuple[PyTree, PyTree], direction: list[Array]) -> tuple[PyTree, None]:
        return in_place(kept[0], asked(host.product, like(floating(kept[0])), *kept, direction)), None

    grads_of.defvjp(lambda moving, batch: (grads_of(moving, batch), (moving, batch)), product_of)

    @jax.custom_vjp
    def value_of(moving: PyTree, batch: PyTree) -> Array:
        shape = jax.ShapeDtypeStruct((), floating(moving)[0].dtype)
        return jnp.full((), jnp.nan, shape.dtype) if host.value is None else asked(host.value, shape, moving, batch)

    def slope_of(kept: tuple[PyTree, PyTree], up: Array) -> tuple[PyTree, None]:
        return in_place(kept[0], [up.astype(g.dtype) * g for g in grads_of(*kept)]), None

    value_of.defvjp(lambda moving, batch: (value_of(moving, batch), (moving, batch)), slope_of)

    def of_jax(params: PyTree, hyper: PyTree, batch: PyTree) -> Float[Array, ""]:
        moving, batch = jax.tree.map(jnp.asarray, ((params, hyper), batch))
        return value_of(moving, batch)

    return of_jax


def start_check(owner: str, host: Host, example: tuple[PyTree, PyTree, PyTree]) -> None:
    """Ask twice, and compare the product with differences of the gradient.

    **Raises:** `ValueError` for answers that are not the same bits twice, of other shapes or dtypes than the arguments,
    or a product that is none.
    """
    params, hyper, batch = jax.tree.map(jnp.asarray, example)
    moving, wanted = (params, hyper), floating((params, hyper))
    rng = np.random.default_rng(0)

    def drawn() -> list[np.ndarray]:
        return [np.asarray(rng.normal(size=x.shape), x.dtype) for x in wanted]

    direction = drawn()
    # What a training asks for: the gradient in the weights, with nothing for the hyperparameters.
    direction[len(floating(params)) :] = [np.zeros(x.shape, x.dtype) for x in floating(hyper)]

    def twice(what: str, fn: Callable[[], list[np.ndarray]]) -> list[np.ndarray]:
        first, again = ([np.array(x) for x in fn()] for _ in range(2))
        for x, y, z in zip(first, again, wanted, strict=True):
            if (x.shape, x.dtype) != (z.shape, z.dtype):
                raise ValueError(
                    f"{owner}: {what} must have the shapes and dtypes of what it differentiates in, here "
                    f"{z.dtype}{list(z.shape)}; got {x.dtype}{list(x.shape)}."
                )
            if x.tobytes() != y.tobytes():
                raise ValueError(
                    f"{owner}: {what} must give the same bits for the same arguments, since steps are made again and "
                    f"undone; got two answers, {_furthest(x, y):.1e} apart. Draw nothing, and ask the framework for "
                    "deterministic algorithms."
                )
        return first

    grads = twice("grad", lambda: host.grad(moving, batch))
    products = twice("vjp", lambda: host.product(moving, batch, direction))
    size = 1 + np.sqrt(np.mean(np.concatenate([np.square(np.ravel(x)).astype(float) for x in wanted])))
    step = STEP * size

    def moved(shift: float, along: list[np.ndarray]) -> list[np.ndarray]:
        left = iter([x + np.asarray(shift, x.dtype) * d for x, d in zip(wanted, along, strict=True)])
        there = jax.tree.map(lambda x: next(left) if jnp.issubdtype(x.dtype, jnp.floating) else x, moving)
        return host.grad(there, batch)

    def inner(xs: list[Any], ys: list[Any]) -> float:
        return float(sum(np.sum(np.asarray(x, float) * np.asarray(y, float)) for x, y in zip(xs, ys, strict=True)))

    length = np.sqrt(inner(products, products))
    unit = np.sqrt(sum(x.size for x in wanted)) / length if length else 0.0
    rounding = float(np.finfo(wanted[0].dtype).eps) * np.sqrt(inner(grads, grads) * inner(direction, direction)) / step
    # Along the product itself, where a wrong factor shows, and along a random direction, where a missing part does.
    for along in ([np.asarray(unit * x, x.dtype) for x in products], drawn()):
        ahead, behind = (inner(direction, moved(shift, along)) for shift in (step, -step))
        slope, expected = (ahead - behind) / (2 * step), inner(products, along)
        if not abs(slope - expected) <= AWRY * (length + abs(slope)) + 10 * rounding:
            raise ValueError(
                f"{owner}: vjp must be the transposed derivative of grad, as differences of grad show it; got "
                f"{expected:.6g} along a direction in which they give {slope:.6g}."
            )


def _furthest(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.max(np.abs(x.astype(float) - y.astype(float))))


def oracle(
    grad: Callable[[PyTree, PyTree, PyTree], PyTree],
    vjp: Callable[[PyTree, PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    example: tuple[PyTree, PyTree, PyTree],
    *,
    value: Callable[[PyTree, PyTree, PyTree], Any] | None = None,
) -> Callable[[PyTree, PyTree, PyTree], Float[Array, ""]]:
    """A loss that any framework differentiates, as a loss of a training: grad(w, λ, batch) = ∇_w L(w, λ, batch), and
    vjp(w, λ, batch, p) = (∂_w ⟨p, ∇_w L⟩, ∂_λ ⟨p, ∇_w L⟩).

    The optimizer, its arithmetic and the sweeps are hyprax's: each step asks for `grad`, each step backwards for `vjp`,
    and nothing of a step is kept in the framework. Both are given copies in NumPy arrays, and give arrays of NumPy or
    what NumPy can read, by `__array__` or DLPack, in the memory of the host. They must be deterministic: the same bits
    for the same arguments. They are asked twice on the example, and the vjp is compared with differences of the
    gradient; [`hyprax.unroll.Reversible`][] says after a whole run whether they kept their word.

    **Arguments:**

    - `grad`: the gradient in the weights, in their structure, shapes and dtypes.
    - `vjp`: a pair in the structures of the weights and of the hyperparameters, for p in the structure of the weights.
    - `example`: weights, hyperparameters in natural units and a batch, as a training gives them.
    - `value`: `value(w, λ, batch)`, for use as an outer loss; its derivative in λ is then taken to be zero. Without it
        the loss is NaN, of which a training takes no notice.

    **Returns:** `loss(params, hyper, batch)` of pytrees of arrays, for [`hyprax.Training`][]. The derivative in the
    batch is taken to be zero. Not for [`hyprax.unroll.ForwardMode`][], nor under third derivatives.

    **Raises:** `ValueError` for what is no function, and for answers on the example that have other structures, shapes
    or dtypes, are not the same bits twice, or are no derivative of one another.

    PyTorch has a door of its own, [`hyprax.torch.oracle`][].
    """
    for name, fn in (("grad", grad), ("vjp", vjp), *((("value", value),) if value is not None else ())):
        if not callable(fn):
            raise ValueError(f"oracle: {name} must be a function; got {described(fn)}.")
    if not (isinstance(example, tuple) and len(example) == 3):
        raise ValueError(f"oracle: example must be a triple (params, hyper, batch); got {described(example)}.")

    def host_grad(moving: PyTree, batch: PyTree) -> list[np.ndarray]:
        params, hyper, batch = _copies((*moving, batch))
        return [*_read("grad", grad(params, hyper, batch), params), *map(np.zeros_like, floating(hyper))]

    def host_product(moving: PyTree, batch: PyTree, direction: list[Any]) -> list[np.ndarray]:
        params, hyper, batch = _copies((*moving, batch))
        leaves, structure = jax.tree.flatten(params)
        found = vjp(params, hyper, batch, jax.tree.unflatten(structure, _copies(direction[: len(leaves)])))
        return _read("vjp", found, (params, hyper))

    def host_value(moving: PyTree, batch: PyTree) -> np.ndarray:
        assert value is not None
        return _array(value(*_copies((*moving, batch))))

    host = Host(None if value is None else host_value, host_grad, host_product)
    start_check("oracle", host, example)
    return host_loss(host)


def _copies(tree: PyTree) -> PyTree:
    """For the framework to do with as it likes."""
    return jax.tree.map(lambda x: np.array(x), tree)


def _array(x: Any) -> np.ndarray:
    return np.asarray(x) if hasattr(x, "__array__") or not hasattr(x, "__dlpack__") else np.from_dlpack(x)


def _read(what: str, found: PyTree, wanted: PyTree) -> list[np.ndarray]:
    """The leaves of an answer that are derivatives: those where the argument is floating.

    **Raises:** `ValueError` for another structure.
    """
    leaves, structure = jax.tree.flatten(wanted)
    try:
        each = structure.flatten_up_to(found)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"oracle: {what} must answer in the structure {structure}; got {jax.tree.structure(found)}."
        ) from error
    return [_array(x) for x, own in zip(each, leaves, strict=True) if jnp.issubdtype(own.dtype, jnp.floating)]
