"""Adam and AdamW, in floating point and exactly in fixed point."""

from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from ._at_zero import smooth_ratio, smooth_root
from ._fixed_point import Long, as_wide, to_long, to_word
from ._optimizer import lookup, per_leaf
from ._reversible_optimizer import (
    FINER,
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    Words,
    decay_factors,
    positive_factors,
)

MEAN, VARIANCE = "mean", "variance"


class _Moments(AbstractReversibleOptimizer):
    """What Adam and AdamW share: everything but the decay."""

    learning_rate: PyTree
    beta1: PyTree
    beta2: PyTree
    eps: PyTree
    bits: int = eqx.field(static=True)
    variance_bits: int = eqx.field(static=True)

    states: ClassVar[Mapping[str, int]] = {MEAN: 2, VARIANCE: 3}
    pullback_needs_gradient: ClassVar[bool] = True

    def _set(
        self,
        learning_rate: Any,
        beta1: Any,
        beta2: Any,
        eps: Any,
        fraction_bits: int,
        variance_bits: int,
    ) -> None:
        if not (16 <= fraction_bits <= 58 and 16 <= variance_bits <= 150):
            raise ValueError(
                f"{type(self).__name__}: fraction_bits must be between 16 and 58 and variance_bits between 16 and 150; "
                f"got {fraction_bits} and {variance_bits}."
            )
        self.learning_rate, self.beta1, self.beta2, self.eps = learning_rate, beta1, beta2, eps
        self.bits, self.variance_bits = fraction_bits, variance_bits

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, MEAN: self.bits + FINER, VARIANCE: self.variance_bits}

    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        beta1, beta2 = hyper["beta1"], hyper["beta2"]
        first, second = _products(beta1, steps), _products(beta2, steps)
        return {
            MEAN: beta1,
            VARIANCE: beta2,
            "mean_gain": 1 - beta1,
            "variance_gain": 1 - beta2,
            "rate": hyper["learning_rate"] * jnp.sqrt(1 - second) / (1 - first),
            "eps": hyper["eps"] * jnp.sqrt(1 - second),
        }

    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, state in (("beta1", MEAN), ("beta2", VARIANCE)):
            if not np.all(tables[state] < 1):
                raise ValueError(f"{name} must be below 1; got {np.max(tables[state]):.10g}.")
        return {
            MEAN: positive_factors("beta1", tables[MEAN]),
            VARIANCE: positive_factors("beta2", tables[VARIANCE]),
        }

    def increments(self, tables: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            MEAN: tables["mean_gain"] / units[MEAN],
            VARIANCE: tables["variance_gain"] / units[VARIANCE],
            "unit": units[VARIANCE],
            "move": tables["rate"] * units[MEAN] / units[WEIGHTS],
            "eps": tables["eps"],
        }

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        mean = c[MEAN] * states[MEAN] + c["mean_gain"] * gradient
        variance = c[VARIANCE] * states[VARIANCE] + c["variance_gain"] * gradient * gradient
        root = smooth_root(variance) + c["eps"]
        root = jnp.where((mean == 0) & (root == 0), jnp.ones_like(root), root)  # without a gradient nothing moves
        moved = weights - c["rate"] * smooth_ratio(mean, root)
        return {MEAN: mean, VARIANCE: variance}, moved - c["decay"] * weights if "decay" in c else moved

    def init(self, params: PyTree) -> PyTree:
        """The moments, and the running products of β1 and β2, by which they are corrected for their start at 0."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        ones = {
            name: jax.tree.map(lambda x: jnp.ones(x.shape, dtype), lookup(beta, 0))
            for name, beta in (("beta1", self.beta1), ("beta2", self.beta2))
        }
        return {**super().init(params), "products": ones}

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        beta1, beta2 = lookup(self.beta1, t), lookup(self.beta2, t)
        products = {
            name: jax.tree.map(lambda p, b: p * b.astype(p.dtype), state["products"][name], beta)
            for name, beta in (("beta1", beta1), ("beta2", beta2))
        }
        spread = {
            name: per_leaf(value, params)
            for name, value in {
                "first": products["beta1"],
                "second": products["beta2"],
                "learning_rate": lookup(self.learning_rate, t),
                "eps": lookup(self.eps, t),
            }.items()
        }
        correction = jax.tree.map(lambda second: jnp.sqrt(1 - second), spread["second"])
        coefficients = {
            MEAN: beta1,
            VARIANCE: beta2,
            "mean_gain": jax.tree.map(lambda b: 1 - b, beta1),
            "variance_gain": jax.tree.map(lambda b: 1 - b, beta2),
            "rate": jax.tree.map(lambda a, r, p: a * r / (1 - p), spread["learning_rate"], correction, spread["first"]),
            "eps": jax.tree.map(jnp.multiply, spread["eps"], correction),
            **self._decay(spread["learning_rate"], t, params),
        }
        params, moments = self._update_leaves(coefficients, grads, state, params)
        return params, {**moments, "products": products}

    def _decay(self, learning_rate: PyTree, t: Any, params: PyTree) -> dict[str, PyTree]:
        """α λ, one scalar a leaf, where there is a decay."""
        return {}

    def forward(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        mean, variance = _kicks(k, gradient)
        words = {**words, MEAN: words[MEAN] + mean, VARIANCE: words[VARIANCE] + variance}
        return {**words, WEIGHTS: words[WEIGHTS] - _move(k, words)}

    def undo_weights(self, k: Coefficients, words: Words) -> Words:
        return {**words, WEIGHTS: words[WEIGHTS] + _move(k, words)}

    def undo_states(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        mean, variance = _kicks(k, gradient)
        return {**words, MEAN: words[MEAN] - mean, VARIANCE: words[VARIANCE] - variance}


class Adam(_Moments):
    r"""m ← β1 m + (1 - β1) g, s ← β2 s + (1 - β2) g², w ← w - α (m / c1) / (√(s / c2) + ε).

    c1 = 1 - ∏ β1 and c2 = 1 - ∏ β2 over the steps so far, so that β1 and β2 may be schedules (Kingma and Ba 2015, arXiv
    1412.6980); with constants it is `optax.adam`. Where a gradient has always been 0 the weight does not move, and
    neither does the derivative of its step: m / √s is a sign there, whose derivative counts as 0 while ε is below the
    square root of the dtype's precision.

    **Arguments:**

    - `learning_rate`, `beta1`, `beta2`, `eps`: each a number, a [`hyprax.unroll.Schedule`][], a
        [`hyprax.unroll.PerWeight`][], or a prefix of the tree of weights with such leaves; all are differentiated.
    - `fraction_bits`: F, for reversal: weights are multiples of units between 2^-F and 2^(8 - F), of magnitude below
        2^(62 - F); m of units 2^34 times as fine, of magnitude below 2^(70 - F).
    - `variance_bits`: the same for s, V: multiples of units between 2^-V and 2^(8 - V), below 2^(156 - V). What it
        cannot tell apart, the certificate says (`blurred`).

    **Raises:** `ValueError` for bits out of range.
    """

    def __init__(
        self,
        learning_rate: Any,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        *,
        fraction_bits: int = 50,
        variance_bits: int = 130,
    ):
        self._set(learning_rate, beta1, beta2, eps, fraction_bits, variance_bits)

    def hyperparameters(self) -> dict[str, PyTree]:
        return {"learning_rate": self.learning_rate, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}


class AdamW(_Moments):
    r"""[`hyprax.unroll.Adam`][] with decoupled decay: w ← (1 - α λ) w - α (m / c1) / (√(s / c2) + ε).

    Loshchilov and Hutter 2019 (arXiv 1711.05101), as `optax.adamw`: the decay is multiplied by the learning rate. For
    reversal, 1 - α λ is one more factor.

    **Arguments:** those of [`hyprax.unroll.Adam`][], and

    - `weight_decay`: λ, the same; 0 <= α λ < 1.
    """

    weight_decay: PyTree

    def __init__(
        self,
        learning_rate: Any,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        weight_decay: Any = 1e-4,
        *,
        fraction_bits: int = 50,
        variance_bits: int = 130,
    ):
        self._set(learning_rate, beta1, beta2, eps, fraction_bits, variance_bits)
        self.weight_decay = weight_decay

    def hyperparameters(self) -> dict[str, PyTree]:
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        return {**super().tables(hyper, steps), "decay": hyper["learning_rate"] * hyper["weight_decay"]}

    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**super().factors(tables), WEIGHTS: decay_factors(tables["decay"])}

    def _decay(self, learning_rate: PyTree, t: Any, params: PyTree) -> dict[str, PyTree]:
        return {"decay": jax.tree.map(jnp.multiply, learning_rate, per_leaf(lookup(self.weight_decay, t), params))}


def _kicks(k: Coefficients, gradient: Array) -> tuple[Long, Long]:
    g = gradient.astype(jnp.float64)
    return to_long(g * k[MEAN], 2), to_long((g * g) * k[VARIANCE], 3)


def _move(k: Coefficients, words: Words) -> Array:
    """rint(α m / (√s + ε)), in units of the weights. No product here enters a sum."""
    root = jnp.sqrt(as_wide(words[VARIANCE]) * k["unit"])
    return to_word(_ratio(as_wide(words[MEAN]) * k["move"], root + k["eps"]))


def _products(beta: Array, steps: int) -> Array:
    """∏_{i <= t} β_i, (T, groups)."""
    if beta.shape[0] == 1:
        return beta ** jnp.arange(1, steps + 1, dtype=beta.dtype)[:, None]
    return jnp.cumprod(beta, axis=0)


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b = 0."""
    known = b > 0
    return jnp.where(known, a / jnp.where(known, b, jnp.ones_like(b)), jnp.zeros_like(a))
