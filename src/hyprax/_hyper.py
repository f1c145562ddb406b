"""Hyperparameters: a pytree whose leaves may be constrained.

A constrained leaf stores its *unconstrained* coordinates and shows its value in natural units. Searches add to the
stored arrays; user functions receive natural values, by [`hyprax.natural`][].
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree


def as_floating(x: Any, name: str) -> Array:
    """`x` as an array of the default floating dtype (or its own, if it is floating already).

    Never weakly typed: a weak type does not survive the first update of a search, and would have it compile twice.
    """
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.asarray(x, dtype=x.dtype)
    array = np.asarray(x)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be real numbers; got an array of {array.dtype}.")
    if array.dtype.kind == "f" and isinstance(x, np.ndarray | np.floating):
        return jnp.asarray(array)
    return jnp.asarray(array, dtype=jnp.result_type(float))


def _check(name: str, x: Array, met: Array, text: str) -> None:
    """Refuse concrete values outside the allowed set; abstract values cannot be looked at."""
    try:
        bad = ~np.asarray(met)
        values = np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return
    if np.any(bad):
        first, count = np.broadcast_to(values, bad.shape)[bad].ravel()[0], int(bad.sum())
        more = f" (one of {count} such entries)" if count > 1 else ""
        raise ValueError(f"{name} must be {text}; got {first}{more}.")


class AbstractConstrained(eqx.Module):
    """A hyperparameter leaf whose natural value lives in a subset of R^n.

    The only trainable array is `raw`, the unconstrained coordinates; so a hypergradient has the same structure as the
    hyperparameters, and its arrays are derivatives with respect to `raw`.
    """

    raw: eqx.AbstractVar[Float[Array, "..."]]

    @property
    @abc.abstractmethod
    def value(self) -> Float[Array, "..."]:
        """The value in natural units."""

    def __repr__(self) -> str:
        try:
            numbers = (np.array2string(np.asarray(x), precision=4, threshold=8) for x in (self.value, self.raw))
            inner = ", raw=".join(numbers)  # of a hypergradient `raw` is what counts
        except (jax.errors.TracerArrayConversionError, TypeError, AttributeError):  # abstract, or not an array at all
            inner = f"raw={self.raw}"
        return f"{type(self).__name__}({inner})"


class AbstractElementwise(AbstractConstrained):
    """A constrained leaf in which every entry has its own coordinate: value_j = phi(raw_j)."""

    @property
    @abc.abstractmethod
    def slope(self) -> Float[Array, "..."]:
        """d value_j / d raw_j, in closed form."""


class Positive(AbstractElementwise):
    """x = exp(u), u in R: a strength, a rate, a scale. Coordinates are logarithms.

    dx/du = x, so a hypergradient is the derivative with respect to log x.

    **Arguments:**

    - `x`: array-like of any shape, every entry > 0 and finite. Subnormal numbers count as 0, since XLA flushes them.

    **Raises:** `ValueError` for an entry that is not positive and finite.

    `Positive(x).value` returns x up to rounding: a relative error of at most about (1 + |log x|) eps.
    """

    raw: Float[Array, "..."]

    def __init__(self, x: Any):
        x = as_floating(x, "Positive")
        _check("Positive", x, (x > 0) & jnp.isfinite(x), "finite numbers > 0")
        self.raw = jnp.log(x)

    @property
    def value(self) -> Float[Array, "..."]:
        return jnp.exp(self.raw)

    @property
    def slope(self) -> Float[Array, "..."]:
        return jnp.exp(self.raw)


class Interval(AbstractElementwise):
    """x = lo + (hi - lo) sigmoid(u), u in R: a momentum, a probability, a bounded range.

    dx/du = (x - lo)(hi - x)/(hi - lo).

    **Arguments:**

    - `x`: array-like of any shape, lo < x < hi in every entry.
    - `lo`, `hi`: Python numbers, lo < hi, both finite and so is hi - lo. They are settings, not tuned.

    **Raises:** `ValueError` for a bound that is not finite, bounds in the wrong order, or an entry not strictly inside.
    """

    raw: Float[Array, "..."]
    lo: float = eqx.field(static=True)
    hi: float = eqx.field(static=True)

    def __init__(self, x: Any, lo: float, hi: float):
        lo, hi = float(lo), float(hi)
        if not (lo < hi and np.isfinite(hi - lo)):
            raise ValueError(f"Interval: lo must be below hi, with hi - lo finite; got lo = {lo} and hi = {hi}.")
        x = as_floating(x, "Interval")
        _check("Interval", x, (x > lo) & (x < hi), f"numbers strictly between {lo} and {hi}")
        self.lo, self.hi = lo, hi
        # A difference of logarithms keeps its digits at both ends, where log(t/(1 - t)) would cancel.
        self.raw = jnp.log(x - lo) - jnp.log(hi - x)

    @property
    def value(self) -> Float[Array, "..."]:
        # Each half from the end that it is near to, so that a value close to `hi` is as exact as one close to `lo`.
        width = self.hi - self.lo
        below = self.lo + width * jax.nn.sigmoid(self.raw)
        above = self.hi - width * jax.nn.sigmoid(-self.raw)
        return jnp.where(self.raw < 0, below, above)

    @property
    def slope(self) -> Float[Array, "..."]:
        return (self.hi - self.lo) * jax.nn.sigmoid(self.raw) * jax.nn.sigmoid(-self.raw)


class LogInterval(AbstractElementwise):
    """x = lo (hi/lo)^sigmoid(u), u in R: a strength or a rate known to within orders of magnitude.

    `Interval` for log x: dx/du = x log(hi/lo) sigmoid(u) sigmoid(-u).

    **Arguments:**

    - `x`: array-like of any shape, lo < x < hi in every entry.
    - `lo`, `hi`: Python numbers, 0 < lo < hi, with hi / lo finite. They are settings, not tuned.

    **Raises:** `ValueError` for bounds that are not positive and in order, or an entry not strictly inside.
    """

    raw: Float[Array, "..."]
    lo: float = eqx.field(static=True)
    hi: float = eqx.field(static=True)

    def __init__(self, x: Any, lo: float, hi: float):
        lo, hi = float(lo), float(hi)
        if not (0 < lo < hi and np.isfinite(hi / lo)):
            raise ValueError(
                f"LogInterval: lo and hi must satisfy 0 < lo < hi, with hi / lo finite; got lo = {lo} and hi = {hi}."
            )
        x = as_floating(x, "LogInterval")
        _check("LogInterval", x, (x > lo) & (x < hi), f"numbers strictly between {lo} and {hi}")
        self.lo, self.hi = lo, hi
        # log1p, since x / lo may round to 1 where x > lo.
        self.raw = jnp.log(jnp.log1p((x - lo) / lo)) - jnp.log(jnp.log1p((hi - x) / x))

    @property
    def value(self) -> Float[Array, "..."]:
        # Each half from the end that it is near to, as for Interval.
        width = np.log(self.hi / self.lo).item()
        below = self.lo * jnp.exp(width * jax.nn.sigmoid(self.raw))
        above = self.hi * jnp.exp(-width * jax.nn.sigmoid(-self.raw))
        return jnp.where(self.raw < 0, below, above)

    @property
    def slope(self) -> Float[Array, "..."]:
        width = np.log(self.hi / self.lo).item()
        return self.value * width * jax.nn.sigmoid(self.raw) * jax.nn.sigmoid(-self.raw)


class Simplex(AbstractConstrained):
    """x = softmax(V u), u in R^(K-1): K weights >= 0 with sum 1 along the last axis.

    V is the K x (K-1) Helmert basis of the vectors with sum 0 (VᵀV = I), the isometric log-ratio of Egozcue et al.
    (Mathematical Geology 35, 2003): u = Vᵀ log x. It is a bijection, so no direction of search is wasted on a redundant
    coordinate; V is applied by cumulative sums, in O(K).

    **Arguments:**

    - `x`: array-like `(..., K)`, every entry > 0, K >= 2. It is divided by its sum when that is within 1e-3 of 1.

    **Raises:** `ValueError` for fewer than two entries, an entry <= 0, or a sum that is not 1.
    """

    raw: Float[Array, "..."]

    def __init__(self, x: Any):
        x = as_floating(x, "Simplex")
        if x.ndim == 0 or x.shape[-1] < 2:
            raise ValueError(f"Simplex must have at least 2 entries on the last axis; got an array of shape {x.shape}.")
        _check("Simplex", x, (x > 0) & jnp.isfinite(x), "finite numbers > 0 (start near 0, not at it)")
        total = jnp.sum(x, axis=-1, keepdims=True)
        _check("Simplex", total, jnp.abs(total - 1) <= 1e-3, "entries whose sum is 1")
        logs = jnp.log(x)
        k = jnp.arange(1, x.shape[-1], dtype=x.dtype)
        k = jnp.expand_dims(k, tuple(range(x.ndim - 1)))
        self.raw = (jnp.cumsum(logs, axis=-1)[..., :-1] - k * logs[..., 1:]) / jnp.sqrt(k * (k + 1))

    @property
    def value(self) -> Float[Array, "..."]:
        u = self.raw
        k = jnp.arange(1, u.shape[-1] + 1, dtype=u.dtype)
        k = jnp.expand_dims(k, tuple(range(u.ndim - 1)))
        w = u / jnp.sqrt(k * (k + 1))
        tails = jnp.flip(jnp.cumsum(jnp.flip(w, -1), axis=-1), -1)
        zero = jnp.zeros_like(u[..., :1])
        logits = jnp.concatenate([tails, zero], axis=-1) - jnp.concatenate([zero, k * w], axis=-1)
        return jax.nn.softmax(logits, axis=-1)


def is_constrained(x: Any) -> bool:
    """Whether `x` is a constrained leaf."""
    return isinstance(x, AbstractConstrained)


def natural(hyper: PyTree) -> PyTree:
    """The same pytree with every constrained leaf replaced by its value in natural units: what user functions see."""
    return jax.tree.map(lambda leaf: leaf.value if is_constrained(leaf) else leaf, hyper, is_leaf=is_constrained)


def validated(hyper: PyTree) -> PyTree:
    """`hyper` with plain Python numbers as arrays; an error for leaves that cannot be tuned.

    **Raises:** `ValueError` naming the place of a leaf that is not real and floating, or not finite, or for a pytree
    without leaves.
    """

    def convert(path: Any, leaf: Any) -> Any:
        name = "hyper" + jax.tree_util.keystr(path)
        if is_constrained(leaf):
            _check(name, leaf.raw, jnp.isfinite(leaf.raw), "finite numbers")
            return leaf
        leaf = as_floating(leaf, name)
        _check(name, leaf, jnp.isfinite(leaf), "finite numbers")
        return leaf

    if not jax.tree.leaves(hyper):
        raise ValueError("hyper must hold at least one hyperparameter; got a pytree without leaves.")
    return jax.tree_util.tree_map_with_path(convert, hyper, is_leaf=is_constrained)
