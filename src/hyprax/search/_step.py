"""One step of a tuning run, as numbers for people, records and callbacks."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._objective import Hypergradient
from .._result import Result, result_name
from .._stats import scalars
from ._search import Move


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step measured, at the hyperparameters that it evaluated. The scalars of `COLUMNS` are in every history.

    - `step`: its number, from 0.
    - `value`, `gradient_norm`: of the outer objective, and ‖dF/d hyper‖₂.
    - `certificate_kind`, `certificate_bound`: of the hypergradient; the bound is infinite where nothing is known.
    - `noise`: √(Σ_j se_j²) of the hypergradient's standard errors; NaN where they are not known.
    - `work`: products with the inner Hessian, or what costs as much; 0 where that has no meaning.
    - `result`: the name of the result, `successful` or what went wrong.
    - `stats`: what the objective and the search measured, scalars by name.
    - `seconds`: the time of this step (the first includes compilation).
    - `hyper`: the hyperparameters evaluated.
    - `hypergradient`: the whole answer.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = (
        "step",
        "value",
        "gradient_norm",
        "certificate_kind",
        "certificate_bound",
        "noise",
        "work",
        "result",
        "seconds",
    )
    """The columns that every row of a history has, in order; statistics stand beside them."""

    step: int
    value: float
    gradient_norm: float
    certificate_kind: str
    certificate_bound: float
    noise: float
    work: float
    result: str
    stats: Mapping[str, float | int]
    seconds: float
    hyper: PyTree
    hypergradient: Hypergradient

    def row(self) -> dict[str, Any]:
        """The scalars by name, statistics beside the rest: one row of a history."""
        return {name: getattr(self, name) for name in self.COLUMNS} | dict(self.stats)


@eqx.filter_jit
def _numbers(hypergradient: Hypergradient) -> tuple[Array, Array, Array, Array, Array, Result, dict[str, Array]]:
    h = hypergradient
    return h.value, h.norm, h.certificate.bound, h.noise.norm, h.stats.effort().work, h.result, scalars(h.stats)


def measure(number: int, hyper: PyTree, move: Move, seconds: float) -> Step:
    """Bring the numbers of a step to the host, in one transfer."""
    answer = move.hypergradient
    (value, norm, bound, noise, work, result, stats), known, found = jax.device_get(
        (_numbers(answer), move.value, dict(move.numbers))
    )
    return Step(
        step=number,
        value=float(value if known is None else known),
        gradient_norm=float(norm),
        certificate_kind=answer.certificate.kind,
        certificate_bound=float(bound),
        noise=float(noise),
        work=float(work),
        result="successful" if move.sufficient else result_name(result),
        stats={name: np.asarray(x).item() for name, x in (stats | found).items()},
        seconds=seconds,
        hyper=hyper,
        hypergradient=answer,
    )


def step_text(step: Step) -> str:
    """Value, gradient norm, certificate, and what went wrong."""
    known = "none" if step.certificate_kind == "none" else f"±{step.certificate_bound:.1e} {step.certificate_kind}"
    spread = "" if math.isnan(step.noise) else f", noise {step.noise:.1e}"
    warning = "" if step.result == "successful" else f"  {step.result}"
    return f"F={step.value:.6g}  |h|={step.gradient_norm:.2e} ({known}{spread}){warning}"
