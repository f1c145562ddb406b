"""Which hyperparameters act where: a leaf of the hyperparameters, spread over the weights or the examples."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from ..._hyper import AbstractConstrained, AbstractElementwise, is_constrained, natural

Selector = Callable[[PyTree], Any]


class Selection(eqx.Module):
    """x_j = leaf[groups_j], or the leaf broadcast to `shape` where there are no groups.

    - `selector`: hyper ↦ the leaf, applied to natural values and to the constrained tree alike; or a number, which is
        then not tuned.
    - `shape`: of what the leaf is spread over.
    - `groups`: for each entry of `shape` the index along the first axis of the leaf; `None` for broadcasting.
    - `name`: for messages.
    - `fixed`: the leaf and its slope, once they have been resolved at given hyperparameters.
    """

    selector: Selector | float
    shape: tuple[int, ...] = eqx.field(static=True)
    groups: Int[Array, "..."] | None
    group_count: int = eqx.field(static=True)
    largest_group: int = eqx.field(static=True)
    name: str = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    fixed: tuple[Array, Array] | None

    def __init__(self, selector: Selector | float, shape: tuple[int, ...], groups: Any, name: str, dtype: Any):
        if not callable(selector) and not (np.ndim(selector) == 0 and float(selector) >= 0):
            raise ValueError(f"{name}: given {selector!r}, allowed are a selector of a leaf, or a number >= 0.")
        self.selector = selector if callable(selector) else float(selector)
        self.shape, self.name, self.dtype, self.fixed = shape, name, dtype, None
        self.groups, self.group_count, self.largest_group = None, 0, 0
        if groups is not None:
            groups = np.asarray(groups)
            if groups.shape != shape[: groups.ndim] or groups.ndim == 0 or groups.dtype.kind not in "iu":
                raise ValueError(
                    f"{name} groups: given {groups.dtype}{groups.shape}, allowed are integers of shape {shape[:1]}"
                    + (f" or {shape}." if len(shape) > 1 else ".")
                )
            self.group_count = int(groups.max()) + 1
            if groups.min() < 0 or len(np.unique(groups)) != self.group_count:
                raise ValueError(f"{name} groups: given indices that leave some out, allowed are 0, 1, ... all used.")
            wide = np.broadcast_to(groups.reshape(groups.shape + (1,) * (len(shape) - groups.ndim)), shape)
            self.groups = jnp.asarray(wide, jnp.int32)
            self.largest_group = int(np.bincount(wide.ravel()).max())

    def resolved(self, hyper: PyTree) -> "Selection":
        """The same selection at these hyperparameters, whatever it is asked for afterwards."""
        return eqx.tree_at(lambda s: s.fixed, self, (self.leaf(hyper), self.slope(hyper)), is_leaf=lambda x: x is None)

    def node(self, hyper: PyTree) -> Any:
        """The leaf, constrained or not, as it stands in the hyperparameters."""
        return self.selector(hyper) if callable(self.selector) else self.selector

    def leaf(self, hyper: PyTree) -> Array:
        """The leaf in natural units, of a shape that has been checked."""
        if self.fixed is not None:
            return self.fixed[0]
        leaf = self.node(natural(hyper))
        if not isinstance(leaf, jax.Array):
            leaf = jnp.asarray(leaf, self.dtype)
        with jax.numpy_dtype_promotion("standard"):  # a question, whatever the user has set
            wider = jnp.promote_types(leaf.dtype, self.dtype)
        if wider != self.dtype:
            raise ValueError(
                f"{self.name}: given {leaf.dtype} for data of {self.dtype}, allowed are hyperparameters of the dtype "
                f"of the data: make them from numpy.{self.dtype} arrays."
            )
        if self.groups is not None and leaf.ndim:
            fits, allowed = leaf.shape == (self.group_count,), f"({self.group_count},), one a group."
        else:
            try:
                fits = np.broadcast_shapes(leaf.shape, self.shape) == self.shape
            except ValueError:
                fits = False
            allowed = f"shapes that broadcast to {self.shape}: () for one"
            allowed += (
                f", ({self.shape[1]},) a class, ({self.shape[0]}, 1) a feature, {self.shape} a weight."
                if len(self.shape) == 2
                else f", {self.shape} one each."
            )
        if not fits:
            raise ValueError(f"{self.name}: given an array of shape {leaf.shape}, allowed are {allowed}")
        return leaf

    def spread(self, leaf: Array) -> Float[Array, "..."]:
        """The leaf over all of `shape`."""
        if self.groups is not None and leaf.ndim:
            return leaf[self.groups]
        return jnp.broadcast_to(leaf, self.shape)

    def values(self, hyper: PyTree) -> Float[Array, "..."]:
        """x, of `shape`."""
        return self.spread(self.leaf(hyper))

    def slope(self, hyper: PyTree) -> Array:
        """|d leaf_k/d raw_k| in the shape of the leaf; 0 for a constant.

        **Raises:** `ValueError` where the leaf is computed from the hyperparameters in any other way than one by one:
        certificates would not know how it depends on them.
        """
        if self.fixed is not None:
            return self.fixed[1]
        node = self.node(hyper)
        if not isinstance(node, AbstractConstrained | jax.Array):
            return jnp.zeros(np.shape(node), self.dtype)
        if not any(node is leaf for leaf in jax.tree.leaves(hyper, is_leaf=is_constrained)):
            raise ValueError(
                f"{self.name}: given strengths computed from the hyperparameters, allowed for certified bounds is a "
                f"leaf as it is, such as `lambda hyper: hyper['{self.name}']` (or certificate=hx.implicit.NoBound())."
            )
        if isinstance(node, AbstractElementwise):
            return jnp.abs(node.slope)
        if isinstance(node, AbstractConstrained):
            raise ValueError(
                f"{self.name}: given a {type(node).__name__} leaf, allowed for certified bounds are Positive, "
                "Interval, LogInterval and plain leaves, one coordinate each."
            )
        return jnp.ones_like(node)

    def summed(self, x: Float[Array, "..."], leaf: Array) -> Array:
        """Σ_{j spread from k} x_j, for each entry k of the leaf."""
        if self.groups is not None and leaf.ndim:
            return jax.ops.segment_sum(x.ravel(), self.groups.ravel(), num_segments=self.group_count)
        return jnp.sum(x, axis=self._axes(leaf), keepdims=True).reshape(leaf.shape)

    def largest(self, x: Float[Array, "..."], leaf: Array) -> Array:
        """max_{j spread from k} x_j, for each entry k of the leaf."""
        if self.groups is not None and leaf.ndim:
            return jax.ops.segment_max(x.ravel(), self.groups.ravel(), num_segments=self.group_count)
        return jnp.max(x, axis=self._axes(leaf), keepdims=True).reshape(leaf.shape)

    def count(self, leaf: Array) -> int:
        """The most entries that one entry of the leaf is spread over."""
        if self.groups is not None and leaf.ndim:
            return self.largest_group
        return int(np.prod(self.shape)) // max(1, leaf.size)

    def _axes(self, leaf: Array) -> tuple[int, ...]:
        padded = (1,) * (len(self.shape) - leaf.ndim) + leaf.shape
        pairs = zip(self.shape, padded, strict=True)
        return tuple(i for i, (whole, part) in enumerate(pairs) if part == 1 and whole != 1)

    def placed(self, hyper: PyTree, value: Array) -> PyTree:
        """A tree like `hyper` that is `value` at this leaf and zero elsewhere."""
        node = self.node(hyper)
        return jax.tree.map(
            lambda leaf: jax.tree.map(lambda array: value if leaf is node else jnp.zeros_like(array), leaf),
            hyper,
            is_leaf=is_constrained,
        )
