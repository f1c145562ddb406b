"""How good probabilities are: calibration, and telling strange inputs from known ones."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


def _probabilities(name: str, p: Array) -> Array:
    values = np.asarray(p)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"{name}: given probabilities of shape {values.shape}, allowed is (m, C) with m, C >= 1.")
    if not np.all(np.isfinite(values)) or np.any(values < 0) or np.any(np.abs(values.sum(1) - 1) > 1e-3):
        raise ValueError(f"{name}: given rows that are not probabilities, allowed are entries >= 0 with sum 1.")
    return jnp.asarray(p)


def calibration_error(
    probabilities: Float[Array, "m c"], labels: Int[Array, " m"] | Sequence[int], bins: int = 15
) -> Float[Array, ""]:
    """ECE = Σ_b (m_b/m) |accuracy_b - confidence_b| over `bins` equal bins of the largest probability in (0, 1].

    **Arguments:**

    - `probabilities`: (m, C), rows with sum 1.
    - `labels`: (m,), from 0 to C - 1.
    - `bins`: their number.

    **Raises:** `ValueError` for rows that are not probabilities, labels out of range, and for no bins.

    Source: Naeini, Cooper and Hauskrecht 2015; Guo et al. 2017 (arXiv 1706.04599).
    """
    p = _probabilities("calibration_error", probabilities)
    if bins < 1:
        raise ValueError(f"calibration_error: given bins {bins}, allowed are integers >= 1.")
    known = np.asarray(labels)
    if known.shape != p.shape[:1]:
        raise ValueError(f"calibration_error: given labels of shape {known.shape}, allowed is {p.shape[:1]}.")
    if not np.all(np.isin(known, np.arange(p.shape[1]))):
        raise ValueError(
            f"calibration_error: given labels from {known.min()} to {known.max()}, allowed are the whole "
            f"numbers 0 to {p.shape[1] - 1}."
        )
    confidence = jnp.max(p, axis=1)
    right = (jnp.argmax(p, axis=1) == known).astype(p.dtype)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    gaps = jax.ops.segment_sum(right - confidence, place, bins)  # m_b (accuracy_b - confidence_b)
    return jnp.sum(jnp.abs(gaps)) / p.shape[0]


def area_under_curve(low: Shaped[Array, " m"], high: Shaped[Array, " k"]) -> Float[Array, ""]:
    """P(high > low) + ½ P(high = low) over all pairs: the area under the ROC curve of a score that should be `high`."""
    if low.size == 0 or high.size == 0:
        raise ValueError("area_under_curve: given no scores on one side, allowed is at least one on each.")
    ordered = jnp.sort(low)
    below = jnp.searchsorted(ordered, high, side="left")
    at_most = jnp.searchsorted(ordered, high, side="right")
    return jnp.mean(0.5 * (below + at_most).astype(jnp.result_type(float))) / low.size


def strangeness(
    probabilities: Float[Array, "m c"], score: Literal["entropy", "max_probability"] = "entropy"
) -> Float[Array, " m"]:
    """-Σ_c p_c log p_c, or 1 - max_c p_c: how unlike the training data an input seems, by its prediction alone.

    **Raises:** `ValueError` for rows that are not probabilities, or an unknown score.
    """
    p = _probabilities("strangeness", probabilities)
    if score not in ("entropy", "max_probability"):
        raise ValueError(f"strangeness: given score {score!r}, allowed are 'entropy' and 'max_probability'.")
    if score == "entropy":
        return -jnp.sum(jax.scipy.special.xlogy(p, p), axis=1)
    return 1 - jnp.max(p, axis=1)


def out_of_distribution(
    known: Float[Array, "m c"], strange: Float[Array, "k c"], score: Literal["entropy", "max_probability"] = "entropy"
) -> Float[Array, ""]:
    """The area under the ROC curve with which a score of the prediction tells `strange` inputs from `known` ones.

    **Arguments:**

    - `known`, `strange`: predicted probabilities for inputs like those of the training data, and for others.
    - `score`: "entropy" or "max_probability" ([`hyprax.evidence.strangeness`][]).

    **Returns:** 1 for a perfect separation, ½ for none.
    """
    return area_under_curve(strangeness(known, score), strangeness(strange, score))
