"""Adam and AdamW, in floating point and exactly in fixed point."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from ._fixed_point import as_wide, to_word
from ._momentum_sgd import positive
from ._optimizer import per_leaf
from ._rational import Factor, complement, least_gap, nearest
from ._reversible_optimizer import (
    WEIGHTS,
    AbstractReversibleOptimizer,
    Coefficients,
    StepFactors,
    Words,
    at_step,
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
    denominator_bits: int = eqx.field(static=True)

    states: ClassVar[tuple[str, ...]] = (MEAN, VARIANCE)
    pullback_needs_gradient: ClassVar[bool] = True

    def _set(
        self,
        learning_rate: Any,
        beta1: Any,
        beta2: Any,
        eps: Any,
        fraction_bits: int,
        variance_bits: int,
        denominator_bits: int,
    ) -> None:
        if not (16 <= fraction_bits <= 58 and 16 <= variance_bits <= 60 and 4 <= denominator_bits <= 20):
            raise ValueError(
                f"{type(self).__name__}: given fraction_bits {fraction_bits}, variance_bits {variance_bits}, "
                f"denominator_bits {denominator_bits}, allowed are 16 to 58, 16 to 60 and 4 to 20."
            )
        self.learning_rate, self.beta1, self.beta2, self.eps = learning_rate, beta1, beta2, eps
        self.bits, self.variance_bits, self.denominator_bits = fraction_bits, variance_bits, denominator_bits

    def fraction_bits(self) -> dict[str, int]:
        return {WEIGHTS: self.bits, MEAN: self.bits, VARIANCE: self.variance_bits}

    def targets(self, hyper: Coefficients) -> Coefficients:
        return {MEAN: hyper["beta1"], VARIANCE: hyper["beta2"]}

    def rationals(self, targets: dict[str, np.ndarray]) -> dict[str, Factor]:
        bits = self.denominator_bits
        for name, state in (("beta1", MEAN), ("beta2", VARIANCE)):
            if not np.all(targets[state] < 1 - least_gap(bits)):
                raise ValueError(
                    f"{name}: given {np.max(targets[state]):.10g} with Reversible, allowed are numbers below "
                    f"1 - {least_gap(bits):.2g}."
                )
        return {
            MEAN: nearest(positive("beta1", targets[MEAN], bits), bits),
            VARIANCE: nearest(positive("beta2", targets[VARIANCE], bits), bits),
        }

    def tables(self, hyper: Coefficients, targets: Coefficients, steps: int) -> Coefficients:
        first, second = _products(targets[MEAN], steps), _products(targets[VARIANCE], steps)
        return {
            MEAN: targets[MEAN],
            VARIANCE: targets[VARIANCE],
            "mean_gain": 1 - targets[MEAN],
            "variance_gain": 1 - targets[VARIANCE],
            "rate": hyper["learning_rate"] * jnp.sqrt(1 - second) / (1 - first),
            "eps": hyper["eps"] * jnp.sqrt(1 - second),
        }

    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        mean = c[MEAN] * states[MEAN] + c["mean_gain"] * gradient
        variance = c[VARIANCE] * states[VARIANCE] + c["variance_gain"] * gradient * gradient
        moved = weights - c["rate"] * _ratio(mean, _root(variance) + c["eps"])
        return {MEAN: mean, VARIANCE: variance}, moved - c["decay"] * weights if "decay" in c else moved

    def init(self, params: PyTree) -> PyTree:
        """The moments, and the running products of β1 and β2, by which they are corrected for their start at 0."""
        dtype = jnp.result_type(*jax.tree.leaves(params))
        ones = {
            name: jax.tree.map(lambda _: jnp.ones((), dtype), beta)
            for name, beta in (("beta1", self.beta1), ("beta2", self.beta2))
        }
        return {**super().init(params), "products": ones}

    def update(self, grads: PyTree, state: PyTree, params: PyTree, t: Integer[ArrayLike, ""]) -> tuple[PyTree, PyTree]:
        beta1, beta2 = at_step(self.beta1, t), at_step(self.beta2, t)
        products = {
            name: jax.tree.map(lambda p, b: p * b.astype(p.dtype), state["products"][name], beta)
            for name, beta in (("beta1", beta1), ("beta2", beta2))
        }
        spread = {
            name: per_leaf(value, params)
            for name, value in {
                "first": products["beta1"],
                "second": products["beta2"],
                "learning_rate": at_step(self.learning_rate, t),
                "eps": at_step(self.eps, t),
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

    def _kicks(self, c: Coefficients, gradient: Array) -> tuple[Array, Array]:
        g = gradient.astype(jnp.float64)
        return (
            to_word(g * (c["mean_gain"] * 2.0**self.bits)),
            to_word((g * g) * (c["variance_gain"] * 2.0**self.variance_bits)),
        )

    def _move(self, c: Coefficients, words: Words) -> Array:
        """rint(α m / (√s + ε)), in units of the weights, whose F the mean shares. No product here enters a sum."""
        root = jnp.sqrt(as_wide(words.values[VARIANCE]) * 2.0**-self.variance_bits)
        return to_word(_ratio(as_wide(words.values[MEAN]) * c["rate"], root + c["eps"]))

    def forward(
        self, c: Coefficients, factors: StepFactors, gradient: Array, words: Words
    ) -> tuple[Words, dict[str, list[Array]]]:
        mean, variance = self._kicks(c, gradient)
        words = factors.multiply(MEAN, words).add(MEAN, mean)
        words = factors.multiply(VARIANCE, words).add(VARIANCE, variance)
        if WEIGHTS in factors.pairs:
            words = factors.multiply(WEIGHTS, words)
        move = self._move(c, words)
        return words.add(WEIGHTS, -move), {MEAN: [mean], VARIANCE: [variance], WEIGHTS: [move]}

    def undo_weights(self, c: Coefficients, factors: StepFactors, words: Words) -> Words:
        words = words.add(WEIGHTS, self._move(c, words))
        return factors.divide(WEIGHTS, words) if WEIGHTS in factors.pairs else words

    def undo_states(self, c: Coefficients, factors: StepFactors, gradient: Array, words: Words) -> Words:
        mean, variance = self._kicks(c, gradient)
        words = factors.divide(VARIANCE, words.add(VARIANCE, -variance))
        return factors.divide(MEAN, words.add(MEAN, -mean))


class Adam(_Moments):
    r"""m ← β1 m + (1 - β1) g, s ← β2 s + (1 - β2) g², w ← w - α (m / c1) / (√(s / c2) + ε).

    c1 = 1 - ∏ β1 and c2 = 1 - ∏ β2 over the steps so far, so that β1 and β2 may be schedules (Kingma and Ba 2015, arXiv
    1412.6980); with constants it is `optax.adam`. Where a gradient has always been 0, s = 0 and so are all derivatives.

    **Arguments:**

    - `learning_rate`, `beta1`, `beta2`, `eps`: each a scalar, a schedule of shape [T], or a prefix of the tree of
        weights with such leaves; all are differentiated.
    - `fraction_bits`: F, for reversal: weights and m are multiples of 2^-F, of magnitude below 2^(62 - F).
    - `variance_bits`: the same for s, which is small: the default holds s < 16 in steps of 2^-58.
    - `denominator_bits`: k, for reversal: β1 and β2 become the nearest fractions with denominators up to 2^k (.9 and
        .999 exactly), or up to 1/(1 - β) where that is larger. m carries noise of up to the denominator times 2^-F, s
        times 2^-variance_bits.

    **Raises:** `ValueError` for bits out of range.
    """

    def __init__(
        self,
        learning_rate: Any,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        *,
        fraction_bits: int = 48,
        variance_bits: int = 58,
        denominator_bits: int = 10,
    ):
        self._set(learning_rate, beta1, beta2, eps, fraction_bits, variance_bits, denominator_bits)

    def hyperparameters(self) -> dict[str, PyTree]:
        return {"learning_rate": self.learning_rate, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps}


class AdamW(_Moments):
    r"""[`hyprax.unroll.Adam`][] with decoupled decay: w ← (1 - α λ) w - α (m / c1) / (√(s / c2) + ε).

    Loshchilov and Hutter 2019 (arXiv 1711.05101), as `optax.adamw`: the decay is multiplied by the learning rate. For
    reversal 1 - α λ is one more rational: (d - 1)/d with the integer d nearest to 1/(α λ), so that a decay of 10^-6 a
    step keeps six digits.

    **Arguments:** those of [`hyprax.unroll.Adam`][], and

    - `weight_decay`: λ, a scalar, a schedule of shape [T], or a prefix of the tree of weights; 0 <= α λ < 1.
    - `decay_bits`: for reversal; α λ below 2^-(decay_bits + 1) counts as 0, and weights carry noise of at most
        2^(decay_bits - F), in fact of 1 / (α λ 2^F).
    """

    weight_decay: PyTree
    decay_bits: int = eqx.field(static=True)

    def __init__(
        self,
        learning_rate: Any,
        beta1: Any = 0.9,
        beta2: Any = 0.999,
        eps: Any = 1e-8,
        weight_decay: Any = 1e-4,
        *,
        fraction_bits: int = 48,
        variance_bits: int = 58,
        denominator_bits: int = 10,
        decay_bits: int = 24,
    ):
        if not 8 <= decay_bits <= 30:
            raise ValueError(f"AdamW: given decay_bits {decay_bits}, allowed are 8 to 30.")
        self._set(learning_rate, beta1, beta2, eps, fraction_bits, variance_bits, denominator_bits)
        self.weight_decay, self.decay_bits = weight_decay, decay_bits

    def hyperparameters(self) -> dict[str, PyTree]:
        return {
            "learning_rate": self.learning_rate,
            "beta1": self.beta1,
            "beta2": self.beta2,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }

    def targets(self, hyper: Coefficients) -> Coefficients:
        return {**super().targets(hyper), WEIGHTS: hyper["learning_rate"] * hyper["weight_decay"]}

    def rationals(self, targets: dict[str, np.ndarray]) -> dict[str, Factor]:
        decay = targets[WEIGHTS]
        if not np.all((decay >= 0) & (decay < 1 - 2.0**-12)):
            raise ValueError(
                f"AdamW: given a learning rate times weight decay of {decay.min():.6g} to {decay.max():.6g} with "
                "Reversible, allowed are numbers from 0 to below 1."
            )
        return {**super().rationals(targets), WEIGHTS: complement(decay, self.decay_bits)}

    def represented(self, name: str, factor: Factor) -> np.ndarray:
        return (factor.d - factor.n) / factor.d if name == WEIGHTS else factor.value

    def tables(self, hyper: Coefficients, targets: Coefficients, steps: int) -> Coefficients:
        return {**super().tables(hyper, targets, steps), "decay": targets[WEIGHTS]}

    def _decay(self, learning_rate: PyTree, t: Any, params: PyTree) -> dict[str, PyTree]:
        return {"decay": jax.tree.map(jnp.multiply, learning_rate, per_leaf(at_step(self.weight_decay, t), params))}


def _products(beta: Array, steps: int) -> Array:
    """∏_{i <= t} β_i, (T, groups)."""
    if beta.shape[0] == 1:
        return beta ** jnp.arange(1, steps + 1, dtype=beta.dtype)[:, None]
    return jnp.cumprod(beta, axis=0)


def _root(x: Array) -> Array:
    """√x, with derivative 0 where x = 0."""
    positive_x = x > 0
    return jnp.where(positive_x, jnp.sqrt(jnp.where(positive_x, x, jnp.ones_like(x))), jnp.zeros_like(x))


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b = 0."""
    known = b > 0
    return jnp.where(known, a / jnp.where(known, b, jnp.ones_like(b)), jnp.zeros_like(a))
