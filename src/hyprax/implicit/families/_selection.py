"""Which hyperparameters act where: a leaf of the hyperparameters, spread over the weights or the examples."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..._hyper import AbstractConstrained, AbstractElementwise, is_constrained, natural
from ..._processes import here

Selector: TypeAlias = str | Callable[[PyTree], Any] | float | np.ndarray | Array
"""A key or attribute of the hyperparameters, a function of them, or numbers, which are then not tuned."""


class Selection(eqx.Module):
    """x_j = leaf[groups_j], or the leaf broadcast to `shape` where there are no groups.

    - `key`: the key or attribute of the hyperparameters; static and compared by value, so that equal problems share a
        compiled program. Empty where there is a function or a number.
    - `selector`: hyper ↦ the leaf, or the numbers of one that is not tuned.
    - `shape`: of what the leaf is spread over.
    - `groups`: for each entry of `shape` the index along the first axis of the leaf; `None` for broadcasting.
    - `name`: for messages.
    - `free`: where `shape` is true nothing is selected: x is 0 there, whatever the leaf is.
    - `fixed`: the leaf and its slope, once they have been resolved at given hyperparameters.
    """

    key: str = eqx.field(static=True)
    selector: Callable[[PyTree], Any] | Array | None
    shape: tuple[int, ...] = eqx.field(static=True)
    groups: Int[Array, "..."] | None
    group_count: int = eqx.field(static=True)
    largest_group: int = eqx.field(static=True)
    name: str = eqx.field(static=True)
    dtype: Any = eqx.field(static=True)
    fixed: tuple[Array, Array] | None = None
    free: Bool[Array, "..."] | None = None

    @property
    def constant(self) -> bool:
        """Whether the leaf is no hyperparameter at all."""
        return not self.key and not callable(self.selector)

    def resolved(self, hyper: PyTree) -> "Selection":
        """The same selection at these hyperparameters, whatever it is asked for afterwards."""
        return dataclasses.replace(self, fixed=(self.leaf(hyper), self.slope(hyper)))

    def astype(self, dtype: Any) -> "Selection":
        """The same selection for data of another dtype."""
        return dataclasses.replace(self, dtype=dtype)

    def node(self, hyper: PyTree) -> Any:
        """The leaf, constrained or not, as it stands in the hyperparameters."""
        if self.key:
            if isinstance(hyper, Mapping):
                if self.key in hyper:
                    return hyper[self.key]
                found = f"the keys {', '.join(map(repr, hyper))}"
            else:
                single = is_constrained(hyper) or isinstance(hyper, jax.Array)
                if not single and hasattr(hyper, self.key):
                    return getattr(hyper, self.key)
                found = "a single leaf" if single else type(hyper).__name__
            raise ValueError(
                f"{self.name}={self.key!r} must be a key or attribute of the hyperparameters; got {found}. Name one, "
                "or give a function of the hyperparameters that returns a leaf."
            )
        return self.selector(hyper) if callable(self.selector) else self.selector

    def is_leaf(self, hyper: PyTree) -> bool:
        """Whether this is a leaf of `hyper` as it is, one coordinate an entry, or numbers: certificates need that."""
        if self.fixed is not None or self.constant:
            return True
        try:
            node = self.node(hyper)
        except Exception:  # a function of natural values, which a constrained leaf is not
            return False
        if not isinstance(node, AbstractConstrained | jax.Array):
            return True
        if isinstance(node, AbstractConstrained) and not isinstance(node, AbstractElementwise):
            return False
        return any(node is leaf for leaf in jax.tree.leaves(hyper, is_leaf=is_constrained))

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
                f"{self.name} must have the dtype of the data, {self.dtype}; got {leaf.dtype}. Make the "
                f"hyperparameters from numpy.{self.dtype} arrays, or give the data in {leaf.dtype}."
            )
        if self.groups is not None and leaf.ndim:
            fits, allowed = leaf.shape == (self.group_count,), f"({self.group_count},), one for each group"
        else:
            try:
                fits = np.broadcast_shapes(leaf.shape, self.shape) == self.shape
            except ValueError:
                fits = False
            allowed = "() for one"
            allowed += (
                f", ({self.shape[1]},) for each class, ({self.shape[0]}, 1) for each feature, or {self.shape} for each "
                "weight"
                if len(self.shape) == 2
                else f", or {self.shape} for each"
            )
        if not fits:
            raise ValueError(f"{self.name} must have the shape {allowed}; got shape {leaf.shape}.")
        return leaf.astype(self.dtype)

    def spread(self, leaf: Array) -> Float[Array, "..."]:
        """The leaf over all of `shape`."""
        if self.groups is not None and leaf.ndim:
            return leaf[self.groups]
        return jnp.broadcast_to(leaf, self.shape)

    def values(self, hyper: PyTree) -> Float[Array, "..."]:
        """x, of `shape`."""
        spread = self.spread(self.leaf(hyper))
        return spread if self.free is None else jnp.where(self.free, 0, spread)

    def least(self, hyper: PyTree) -> Float[Array, ""]:
        """The smallest x that is selected."""
        spread = self.spread(self.leaf(hyper))
        return jnp.min(spread if self.free is None else jnp.where(self.free, jnp.inf, spread))

    def ratio(self, hyper: PyTree) -> Array:
        """|d log leaf_k/d raw_k|; 0 for an entry that is not spread anywhere."""
        slope, leaf = self.slope(hyper), self.leaf(hyper)
        if self.free is None:
            return slope / leaf
        used = self.summed(jnp.ones(self.shape, slope.dtype), slope) > 0
        return jnp.where(used, slope / jnp.where(used, leaf, 1), 0)

    def slope(self, hyper: PyTree) -> Array:
        """|d leaf_k/d raw_k| in the shape of the leaf; 0 for a constant.

        **Raises:** `ValueError` where the leaf is computed from the hyperparameters in any other way than one by one:
        certificates would not know how it depends on them.
        """
        if self.fixed is not None:
            return self.fixed[1]
        if not self.is_leaf(hyper):
            raise ValueError(
                f"{self.name} must be a leaf of the hyperparameters as it is (Positive, Interval, LogInterval or a "
                "plain array) for a certified bound; got one that is computed from them, or a Simplex. Name the leaf "
                f"({self.name}={self.name!r}), or use certifier=hx.implicit.LookAheadEstimate()."
            )
        node = self.node(hyper)
        if isinstance(node, AbstractElementwise):
            return jnp.abs(node.slope)
        constant = self.constant or not isinstance(node, jax.Array)
        return jnp.zeros(np.shape(node), self.dtype) if constant else jnp.ones_like(node)

    def summed(self, x: Float[Array, "..."], leaf: Array) -> Array:
        """Σ_{j spread from k} x_j, for each entry k of the leaf."""
        x = x if self.free is None else jnp.where(self.free, 0, x)
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


def selection(
    selector: Selector,
    shape: tuple[int, ...],
    groups: Any,
    name: str,
    dtype: Any,
    free: np.ndarray | None = None,
) -> Selection:
    """A selection with its groups checked; places along the first axis that are `free` are in no group.

    **Raises:** `ValueError` for another selector, or groups of another shape, or with numbers left out.
    """
    key, chosen = "", selector
    if isinstance(selector, str):
        key, chosen = selector, None
        if not selector:
            raise ValueError(f"{name} must name a key or attribute of the hyperparameters; got an empty name.")
    elif not callable(selector):
        numbers = np.asarray(here(selector))
        if numbers.dtype.kind not in "fiub" or not np.all(np.isfinite(numbers) & (numbers >= 0)):
            got = (
                f"{selector!r}" if numbers.ndim == 0 else f"others in an array of {numbers.dtype}{list(numbers.shape)}"
            )
            raise ValueError(
                f"{name} must be a key or attribute of the hyperparameters, a function of them, or finite numbers >= "
                f"0; got {got}."
            )
        if name == "weights" and numbers.size and not np.any(numbers):
            raise ValueError(f"weights must be above 0 for one row at least; got 0 for all {numbers.size} of them.")
        chosen = jnp.asarray(numbers, dtype)
    wide, count, largest = None, 0, 0
    left = np.ones(shape[0], bool)
    if free is not None:
        left[free] = False
    if groups is not None:
        groups = np.asarray(groups)
        if groups.shape != shape[: groups.ndim] or groups.ndim == 0 or groups.dtype.kind not in "iu":
            allowed = f"{shape[:1]} or {shape}" if len(shape) > 1 else f"{shape}"
            raise ValueError(
                f"{name}_groups must be integers of shape {allowed}; got {groups.dtype}{list(groups.shape)}."
            )
        used = np.unique(groups[left])
        count = int(used[-1]) + 1
        if used[0] < 0 or len(used) != count:
            raise ValueError(f"{name}_groups must be 0, 1, ... with none left out; got {used}.")
        groups = np.where(np.expand_dims(left, tuple(range(1, groups.ndim))), groups, 0)
        spread = np.broadcast_to(groups.reshape(groups.shape + (1,) * (len(shape) - groups.ndim)), shape)
        wide, largest = jnp.asarray(spread, jnp.int32), int(np.bincount(spread.ravel()).max())
    absent = None
    if free is not None:
        absent = jnp.asarray(np.broadcast_to(np.expand_dims(~left, tuple(range(1, len(shape)))), shape))
    kind = np.dtype(dtype)
    return Selection(key, chosen, shape, wide, count, largest, name, kind, free=absent)  # pyright: ignore[reportArgumentType]  # a number is an array by now
