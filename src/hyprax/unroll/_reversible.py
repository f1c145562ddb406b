"""Hypergradients by running the training backwards, bit for bit."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Kind, NoCertificate
from .._result import RESULTS
from .._trees import tree_all_finite, tree_norm
from ._drivers import DriverName, HostDriver, check_driver, choose_driver
from ._exact_run import (
    Draft,
    ExactRun,
    Pair,
    Ranges,
    as_float64,
    close,
    draft,
    headroom,
    kept_bits,
    largest_change,
    pull_tables,
    ranges,
)
from ._fixed_point import wide
from ._long_run import BACKWARDS, Journal, LongRun
from ._mode import AbstractMode, Outer, UnrollReport
from ._reversal import Backward
from ._runner import end, judge
from ._spill import PLACES, Place
from ._step import Program
from ._sweep import Sweep
from ._training import Training


class ExactReversal(AbstractCertificate):
    """The run was undone, and w_0, all states and all buffers came back as the integers that they were.

    So the adjoint passed through the very states of the run: nothing was approximated, and only the rounding of the
    adjoint itself separates the answer from the truth. That is not bounded: `kind` is "none", `bound` infinite.

    - `exact`: always true; there is no other such certificate.
    - `bits`: bits kept a parameter and step.
    - `theory`: the least possible, the mean of log2(1/γ).
    """

    bound: Float[Array, "..."]
    bits: float = eqx.field(static=True)
    theory: float = eqx.field(static=True)
    kind: Kind = eqx.field(static=True, default="none")
    quantity: str = eqx.field(static=True, default="nothing")
    exact: bool = eqx.field(static=True, default=True)

    def meaning(self) -> str:
        return (
            "The training run was undone step by step, and its start came back bit for bit: the adjoint passed through "
            "the very states of that run. Only the rounding of the adjoint separates the hypergradient from "
            "that of the "
            "run, and that rounding is not bounded."
        )

    def __repr__(self) -> str:
        return f"<exact: every step undone bit for bit, {self.bits:.4g} bits a parameter and step kept>"


class Reversible(AbstractMode):
    """dF/dλ by making the run in fixed point and undoing it step by step: memory log2(1/γ) bits a parameter and step.

    Weights and states are 64-bit integers in which every step of the optimiser is a bijection, given the gradient; what
    a multiplication by γ < 1 cuts off is kept (Maclaurin, Duvenaud, Adams 2015, arXiv 1502.03492). Time T (c + h) + the
    forward T c: c a gradient, h gradient and second-order product together, about 2 c; for Adam about one c more.

    The gradient must come back bit for bit, which no compiler promises: it is checked, never assumed. Both sweeps use
    the same kind of loop; if the start does not come back, the run is made again with one compiled gradient for both
    sweeps, and if that does not either, the answer ends as `RESULTS.not_reversible`. An objective's next evaluation
    begins with what succeeded in the last. Numbers that do not fit end it as `RESULTS.fixed_point_overflow`, those that
    are not finite as `RESULTS.diverged`, and its gradient is then nan.

    **Arguments:**

    - `driver`: `"loop"` for compiled loops, `"host"` for loops on the host, `"auto"` to choose.
    - `buffers`: `"device"` or `"host"`, where full buffers wait.
    - `long`: for hours, a [`hyprax.unroll.LongRun`][]: a bar, stopping and going on.
    - `begin`: the attempt to begin with: 1 the fastest pair of sweeps, a number above those there are the last.

    The optimiser must be [`hyprax.unroll.MomentumSGD`][], [`hyprax.unroll.Adam`][] or [`hyprax.unroll.AdamW`][].
    `stats` hold
    `bits_per_parameter_step` and `theory_bits`, `stored_bytes` (buffers put away), `headroom_bits` (doublings left in
    the fullest format), `used_bits_*` against `limit_bits_*` of each kind of number, `rounding_*` (how far what was
    used is from the momentum, β or decay asked for), and `attempts`, the number of the one that this is the answer of.

    **Raises:** `ValueError` for an unknown driver or place, or `begin` below 1; in an evaluation, for an optimiser that
    cannot be undone.
    """

    driver: DriverName = eqx.field(static=True, default="auto")
    buffers: Place = eqx.field(static=True, default="device")
    long: LongRun | None = None
    begin: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        check_driver("Reversible", self.driver)
        if self.begin < 1:
            raise ValueError(f"Reversible: given begin {self.begin}, allowed are integers >= 1.")
        if self.buffers not in PLACES:
            raise ValueError(f"Reversible: given buffers {self.buffers!r}, allowed are 'device' and 'host'.")

    def after(self, attempts: int) -> "Reversible":
        return self if attempts <= self.begin else dataclasses.replace(self, begin=attempts)

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        program = Program(training, hyper, key)
        planned = draft(program)
        pairs = planned.pairs(self._host(program))
        with Journal(self.long, (program, "Reversible", pairs), (1 + BACKWARDS) * planned.steps) as journal:
            begun = self._first(pairs) if journal.position is None else journal.position[0]
            for attempt, pair in enumerate(pairs[begun - 1 :], begun):
                answer, returned = self._attempt(planned, outer, pair, attempt, journal)
                if returned or attempt == len(pairs):
                    return answer
        raise AssertionError("there is always a pair to try")

    def _attempt(
        self, planned: Draft, outer: Outer, pair: Pair, attempt: int, journal: Journal
    ) -> tuple[tuple[Float[Array, ""], PyTree, UnrollReport], bool]:
        """The answer by one pair of sweeps, and whether to leave it at that."""
        run, hyper = ExactRun(planned, pair, self.buffers), planned.setup.program.hyper
        sweep = Sweep(run, attempt, journal)
        last = sweep.forward()
        metrics = sweep.metrics()
        found = ranges(planned, last)
        params = run.weights(last)
        del last
        value, dparams, dhyper = end(outer, params, hyper)
        stats = _stats(run, found, attempt)
        if not (found.finite and found.fits):
            result = RESULTS.fixed_point_overflow if found.finite else RESULTS.diverged
            certificate = _unknown(value, "the run left its range")
            return (value, _nan(hyper), UnrollReport(params, certificate, result, stats, metrics)), True
        carry = sweep.backward(dparams, dhyper)
        with wide():
            returned = run.returned(carry)
        grads, dweights = _assemble(planned, carry)
        stats |= {"adjoint_start": tree_norm(dweights), "adjoint_end": tree_norm(dparams)}
        if returned:
            bits, theory = kept_bits(planned)
            certificate = ExactReversal(bound=jnp.full_like(value, jnp.inf), bits=bits, theory=theory)
            finite = jnp.isfinite(value) & tree_all_finite(grads)
            result = RESULTS.where(finite, RESULTS.successful, RESULTS.diverged)
        else:
            certificate, result = _unknown(value, "the run did not come back to its start"), RESULTS.not_reversible
        return (value, grads, UnrollReport(params, certificate, result, stats, metrics)), returned

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], UnrollReport]:
        program = Program(training, hyper, key)
        planned = draft(program)
        pairs = planned.pairs(self._host(program))
        attempt = self._first(pairs)
        run = ExactRun(planned, pairs[attempt - 1], self.buffers)
        with Journal(None, None, 0) as journal:
            sweep = Sweep(run, attempt, journal)
            last = sweep.forward()
        metrics = sweep.metrics()
        found, params = ranges(planned, last), run.weights(last)
        value = judge(outer, params, hyper)
        result = RESULTS.where(jnp.isfinite(value) & found.finite, RESULTS.successful, RESULTS.diverged)
        if found.finite and not found.fits:
            result = RESULTS.fixed_point_overflow
        certificate = _unknown(value, "a run forwards alone is not undone")
        return value, UnrollReport(params, certificate, result, _stats(run, found, attempt), metrics)

    def _first(self, pairs: tuple[Pair, ...]) -> int:
        return min(self.begin, len(pairs))

    def _host(self, program: Program) -> bool:
        return isinstance(choose_driver(self.driver, program), HostDriver)


def _assemble(planned: Draft, carry: Backward) -> tuple[PyTree, PyTree]:
    """dF/dλ, and the adjoint of w_0."""
    layout = planned.setup.layout
    dweights = layout.packing.split(carry.dweights)
    with wide():
        wider = pull_tables(
            layout.rule, as_float64(planned.raw), as_float64(planned.used), planned.steps, carry.dtables
        )
        draw = {name: value.astype(planned.raw[name].dtype) for name, value in wider.items()}
    return close(planned.setup.program, planned.chosen, draw, dweights, carry.dhyper), dweights


def _stats(run: ExactRun, found: Ranges, attempt: int) -> dict[str, Array]:
    steps = run.draft.steps
    bits, theory = kept_bits(run.draft)
    numbers: dict[str, Any] = {
        "steps": steps,
        "bits_per_parameter_step": bits,
        "theory_bits": theory,
        "stored_bytes": float(run.spill.bytes),
        "headroom_bits": headroom(found),
        "attempts": attempt,
    }
    for name in found.bits:
        numbers[f"used_bits_{name}"], numbers[f"limit_bits_{name}"] = found.bits[name], found.limits[name]
    for name, change in largest_change(run.draft).items():
        numbers[f"rounding_{name}"] = change
    return {name: jnp.asarray(number) for name, number in numbers.items()}


def _unknown(value: Array, reason: str) -> AbstractCertificate:
    return NoCertificate(reason, value.dtype)


def _nan(hyper: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), hyper)
