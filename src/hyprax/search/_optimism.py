"""Running optimism: by how much a tuned criterion flatters, estimated from the noise of the hypergradients."""

import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import PyTree

from .._noise import Noise
from ._step import Step


@dataclasses.dataclass
class Optimism:
    """A callback of [`hyprax.tune`][] that estimates how far the criterion has been fitted to its sample.

    A step along h = h* + e, e the noise of the sample, lowers the criterion by more than it lowers the expected loss on
    new data, on average by -E<e, step>. Summed over the steps,

        signs:     Σ_t Σ_j |step_tj| 2 se_tj φ(h_tj/se_tj)        (Adam, signs: |step| does not depend on the size of h)
        gradient:  Σ_t p_t Σ_j se_tj²                             (step = -p h: plain gradient steps)

    with φ the density of the standard normal distribution. The kind is `estimated`: e is taken to be normal and drawn
    anew at each step, which it is where folds or batches are; on a fixed sample the sum is too large once the criterion
    has been fitted. It is no bound, and no statement about the computation.

    **Arguments:**

    - `steps`: `"signs"` or `"gradient"`, what the steps of the search are like.

    **Attributes:** `path`, the sum before each step, at the hyperparameters that it evaluated; `values`, the criterion
    there; `corrected`, their sum; `total`, the last of `path`.

    The objective must have noise (`noise=hx.implicit.ExampleNoise()`); a step without it makes the sum NaN.

    **Raises:** `ValueError` for other steps.

    Source: the optimism of Efron, JASA 99 (2004), for steps in place of predictions.
    """

    steps: Literal["signs", "gradient"] = "signs"
    path: list[float] = dataclasses.field(default_factory=list, init=False)
    values: list[float] = dataclasses.field(default_factory=list, init=False)
    kind: str = dataclasses.field(default="estimated", init=False)
    _last: Any = dataclasses.field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.steps not in ("signs", "gradient"):
            raise ValueError(f"Optimism: steps must be 'signs' or 'gradient'; got {self.steps!r}.")

    def __call__(self, step: Step) -> None:
        here = _flat(step.hyper)
        if self._last is None or step.step == 0:
            self.path, self.values = [0.0], []
        else:
            self.path.append(self.path[-1] + self._of(here - self._last[0], *self._last[1:]))
        self.values.append(step.value)
        noise = step.hypergradient.noise
        errors = _flat(noise.standard_errors) if isinstance(noise, Noise) else np.full(here.size, math.nan)
        self._last = here, _flat(step.hypergradient.grad), errors

    def _of(self, move: np.ndarray, grad: np.ndarray, errors: np.ndarray) -> float:
        if self.steps == "gradient":
            size = float(np.sum(grad**2))
            return -float(np.vdot(move, grad)) / size * float(np.sum(errors**2)) if size > 0 else 0.0
        known = np.asarray(errors > 0)
        ratio: Any = grad[known] / errors[known]
        density = np.exp(-0.5 * ratio**2) / math.sqrt(2 * math.pi)
        unknown = math.nan if np.any(np.isnan(errors)) else 0.0
        return float(np.sum(np.abs(move[known]) * 2 * errors[known] * density)) + unknown

    @property
    def total(self) -> float:
        """The optimism at the hyperparameters evaluated last."""
        return self.path[-1] if self.path else 0.0

    @property
    def corrected(self) -> np.ndarray:
        """The criterion with the optimism added: what it would be on new data, as far as this can tell."""
        return np.asarray(self.values) + np.asarray(self.path)

    def meaning(self) -> str:
        """What the sum says, in plain sentences."""
        if not self.path:
            return "No step was made, so nothing is known of the optimism of the criterion."
        if math.isnan(self.total):
            return (
                "The optimism of the criterion is not known: the hypergradients came without noise "
                "(noise=hx.implicit.ExampleNoise())."
            )
        return (
            f"By an estimate from the noise of {len(self.path) - 1} steps, the criterion at the end, "
            f"{self.values[-1]:.4g}, is lower than the loss on new data by {self.total:.2g}. It is neither a bound nor "
            "a gain: hx.honest judges on rows that the tuning has not seen."
        )


def _flat(tree: PyTree) -> np.ndarray:
    leaves = jax.device_get(jax.tree.leaves(tree))
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(float)
