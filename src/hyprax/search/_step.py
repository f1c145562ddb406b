"""One step of a tuning run, as numbers for people, records and callbacks."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PyTree

from .._objective import Hypergradient
from .._result import RESULTS, result_name


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step measured, at the hyperparameters that it evaluated.

    - `step`: its number, from 0.
    - `value`, `gradient_norm`: of the outer objective, and ‖dF/d hyper‖₂.
    - `certificate_kind`, `certificate_bound`: of the hypergradient; the bound is infinite where nothing is known.
    - `result`: the name of the result, `successful` or what went wrong.
    - `stats`: the objective's own statistics, scalars by name.
    - `seconds`: the time of this step (the first includes compilation).
    - `hyper`: the hyperparameters evaluated.
    - `hypergradient`: the whole answer.
    """

    step: int
    value: float
    gradient_norm: float
    certificate_kind: str
    certificate_bound: float
    result: str
    stats: Mapping[str, float | int]
    seconds: float
    hyper: PyTree
    hypergradient: Hypergradient

    def row(self) -> dict[str, Any]:
        """The scalars by name, statistics beside the rest: one row of a history."""
        fields = ("step", "value", "gradient_norm", "certificate_kind", "certificate_bound", "result", "seconds")
        return {name: getattr(self, name) for name in fields} | dict(self.stats)


@eqx.filter_jit
def _numbers(hypergradient: Hypergradient) -> tuple[Array, Array, Array, RESULTS, dict[str, Array]]:
    scalars = {name: number for name, number in hypergradient.stats.items() if number.size == 1}
    return hypergradient.value, hypergradient.norm, hypergradient.certificate.bound, hypergradient.result, scalars


def measure(number: int, hyper: PyTree, hypergradient: Hypergradient, seconds: float) -> Step:
    """Bring the numbers of a hypergradient to the host, in one transfer."""
    value, norm, bound, result, stats = jax.device_get(_numbers(hypergradient))
    return Step(
        step=number,
        value=float(value),
        gradient_norm=float(norm),
        certificate_kind=hypergradient.certificate.kind,
        certificate_bound=float(bound),
        result=result_name(result),
        stats={name: x.item() for name, x in stats.items()},
        seconds=seconds,
        hyper=hyper,
        hypergradient=hypergradient,
    )


def step_text(step: Step) -> str:
    """Value, gradient norm, certificate, and what went wrong."""
    known = "none" if step.certificate_kind == "none" else f"±{step.certificate_bound:.1e} {step.certificate_kind}"
    warning = "" if step.result == "successful" else f"  {step.result}"
    return f"F={step.value:.6g}  |h|={step.gradient_norm:.2e} ({known}){warning}"
