"""Hypergradients by running the training backwards, bit for bit."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Kind, NoCertificate, show
from .._result import Result
from ._draft import Draft, Pair, close, draft, kept_bits, on_device, pull_tables
from ._drivers import DriverName, HostDriver, check_driver, choose_driver
from ._exact_run import ExactRun, Ranges, Sweep, headroom, ranges
from ._fixed_point import as_user, wide
from ._long_run import BACKWARDS, Journal, LongRun
from ._mode import RESULTS, AbstractMode, Outer, UnrollReport, UnrollStats
from ._reversal import Backward, Setup
from ._reversible_optimizer import Coefficients
from ._runner import end, growth, judge, judged
from ._scales import PLACES, Place
from ._step import Program
from ._training import Training

BLURRED = 1e-4
"""The change of derivatives by a unit in the states above which an answer is not a successful one."""


class ReversalCertificate(AbstractCertificate):
    """The run was undone, and w_0 and all states came back as the integers that they were.

    So the adjoint passed through the very states of the run that was made. That run is the one asked for but for the
    rounding of its numbers to the units of their words: no hyperparameter is rounded. What is said is how far that
    moves the value, to first order; neither it nor the rounding of the adjoint is bounded: `kind` is "none", `bound`
    infinite.

    - `exact`: always true; there is no other such certificate.
    - `moved`: the standard deviation of what the rounding of the run adds to the value, to first order.
    - `blurred`: how far the same rounding moves the derivatives of the steps, relative to their size: by a unit more in
        the states, at about 16 of the steps.
    - `bits`: bits put away a parameter and step.
    - `theory`: the mean of log2(1/γ), of which up to 8 bits a parameter stay in the words.
    """

    bound: Float[Array, "..."]
    moved: Float[Array, ""]
    blurred: Float[Array, ""]
    bits: float = eqx.field(static=True)
    theory: float = eqx.field(static=True)
    kind: Kind = eqx.field(static=True, default="none")
    quantity: str = eqx.field(static=True, default="nothing")
    exact: bool = eqx.field(static=True, default=True)

    def meaning(self) -> str:
        return (
            "The training run that was made was undone step by step, and its start came back bit for bit: the adjoint "
            "passed through the very states of that run. It is the run that was asked for, with every hyperparameter "
            "as given, but for rounding to the resolution of its numbers, which moves the value by about "
            f"{show(self.moved)} (one standard deviation, to first order), and the derivatives of its steps by about "
            f"{show(self.blurred)} of their size. Neither that nor the rounding of the adjoint is bounded."
        )

    def __repr__(self) -> str:
        return (
            f"<none: the run that was made was undone bit for bit, {self.bits:.4g} bits a parameter and step kept; its "
            f"rounding moves the value by about {show(self.moved)}, derivatives by {show(self.blurred)} of their size>"
        )


class Reversible(AbstractMode):
    """Reverse mode that stores no states: the run is made in fixed point and undone step by step.

    Memory log2(1/γ) bits a parameter and step, and words: 24 bytes a parameter, of Adam 48. Weights and states are
    integers in units that shrink by the factors of the optimizer, so that every step is an addition of integers that
    the gradient determines; bits that words have no room for are put away (Maclaurin, Duvenaud, Adams 2015, arXiv
    1502.03492, with units in the place of rational factors: no hyperparameter is rounded). Time T (c + h) + the forward
    T c: c a gradient, h the gradient and its transposed derivative together, about 2 c; for Adam about one c more.

    The gradient must come back bit for bit, which no compiler promises: it is checked, never assumed. Both sweeps use
    the same kind of loop; if the start does not come back, the run is made again with one compiled gradient for both
    sweeps, and if that does not either, the answer ends as `RESULTS.not_reversible`. An objective's next evaluation
    begins with what succeeded in the last. Numbers that do not fit end it as `RESULTS.fixed_point_overflow`, and its
    gradient is then nan.

    **Arguments:**

    - `driver`: `"loop"` for compiled loops, `"host"` for loops on the host, `"auto"` to choose.
    - `buffers`: `"device"` or `"host"`, where bits are put away.
    - `long`: for hours, a [`hyprax.unroll.LongRun`][]: a bar, stopping and going on.

    The optimizer must be [`hyprax.unroll.MomentumSGD`][], [`hyprax.unroll.Adam`][], [`hyprax.unroll.AdamW`][],
    [`hyprax.unroll.Lion`][] or [`hyprax.unroll.Muon`][]. A state of the training is kept for every step where the way
    back looks at it; averages of weights and the statistics of a batch norm that trains are only passed on, and not.

    **Raises:** `ValueError` for an unknown driver or place; in an evaluation, for an optimizer that cannot be undone.
    """

    driver: DriverName = eqx.field(static=True, default="auto")
    buffers: Place = eqx.field(static=True, default="device")
    long: LongRun | None = eqx.field(default=None, metadata={"bits": False})

    def __check_init__(self) -> None:
        check_driver("Reversible", self.driver)
        if self.buffers not in PLACES:
            raise ValueError(f"Reversible: buffers must be 'device' or 'host'; got {self.buffers!r}.")

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        program = Program(training, hyper, key)
        planned = draft(program)
        pairs = planned.pairs(self._host(program))
        same, work = (training, training.steps, "Reversible"), (1 + BACKWARDS) * planned.steps
        with Journal(self.long, same, (program, pairs), work) as journal:
            begun = min(attempt, len(pairs)) if journal.position is None else journal.position[0]
            for tried, pair in enumerate(pairs[begun - 1 :], begun):
                answer, returned = self._attempt(planned, outer, pair, tried, journal)
                if returned or tried == len(pairs):
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
        params, model = run.weights(last, planned.steps), jax.tree.map(jnp.copy, last.model)
        del last
        value, dparams, dmodel, dhyper = end(outer, params, model, hyper)
        stats = _stats(run, found, attempt)
        if not (found.finite and found.fits):
            certificate = NoCertificate("the run left its range", value.dtype)
            result, stats = _left(run, found, stats)
            report = UnrollReport(params, certificate, result, stats, metrics, model, attempt)
            return (value, jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), hyper), report), True
        carry = sweep.backward(dparams, dmodel, dhyper)
        with wide():
            returned = run.returned(carry)
            left = dataclasses.replace(carry, words=[], kept=None)
            grads, ends = _assemble(planned.setup, planned.chosen, planned.raw, left, (dparams, dmodel))
        counts = on_device({"gradients": 2 * planned.steps, "products": planned.steps})
        stats = dataclasses.replace(stats, **counts, **ends)
        if returned:
            bits, theory = kept_bits(planned)
            moved, blurred = float(carry.variance) ** 0.5, _blurred(np.asarray(carry.blur))
            numbers = on_device([np.asarray(x, value.dtype) for x in (np.inf, moved, blurred)])
            certificate = ReversalCertificate(*numbers, bits=bits, theory=theory)
            result, stats = judged(run.setup.program, value, grads, stats)
            if not blurred <= BLURRED and bool(result == RESULTS.successful):
                result = RESULTS.unresolved
        else:
            certificate = NoCertificate("the run did not come back to its start", value.dtype)
            result = RESULTS.not_reversible
        return (value, grads, UnrollReport(params, certificate, result, stats, metrics, model, attempt)), returned

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        program = Program(training, hyper, key)
        planned = draft(program)
        pairs = planned.pairs(self._host(program))
        attempt = min(attempt, len(pairs))
        run = ExactRun(planned, pairs[attempt - 1], self.buffers)
        with Journal(None, None, None, 0) as journal:
            sweep = Sweep(run, attempt, journal)
            last = sweep.forward()
        found, params = ranges(planned, last), run.weights(last, planned.steps)
        value, stats = judge(outer, params, last.model, hyper), _stats(run, found, attempt)
        if found.finite and found.fits:
            result, stats = judged(program, value, None, stats)
        else:
            result, stats = _left(run, found, stats)
        certificate = NoCertificate("a run forwards alone is not undone", value.dtype)
        return value, UnrollReport(params, certificate, result, stats, sweep.metrics(), last.model, attempt)

    def _host(self, program: Program) -> bool:
        return isinstance(choose_driver(self.driver, program), HostDriver)


@eqx.filter_jit
def _assemble(
    setup: Setup, chosen: dict[str, list[int]], raw: Coefficients, carry: Backward, at_end: PyTree
) -> tuple[PyTree, dict[str, Array]]:
    """dF/dλ, and the sizes of the adjoints of (w, m) at both ends; compiled where 64-bit types are on."""
    layout, steps = setup.layout, setup.program.training.steps
    wider = pull_tables(
        layout.rule, {name: value.astype(jnp.float64) for name, value in raw.items()}, steps, carry.dtables
    )
    draw = {name: value.astype(raw[name].dtype) for name, value in wider.items()}
    drates = None if carry.drates is None else layout.packing.split(carry.drates)
    at_start = layout.packing.split(carry.dweights), carry.dmodel
    closed = as_user(layout.user_x64, close)(setup.program, chosen, draw, drates, at_start, carry.dhyper)
    return closed, as_user(layout.user_x64, growth)(at_start, at_end, steps)


def _blurred(squares: np.ndarray) -> float:
    """The larger of the two changes, each relative to what was changed."""
    changes, sizes = squares[::2], squares[1::2]
    return float(np.sqrt(np.max(np.divide(changes, sizes, out=np.zeros(2), where=sizes > 0))))


def _left(run: ExactRun, found: Ranges, stats: UnrollStats) -> tuple[Result, UnrollStats]:
    """How a run ended that left its range: in floating point too, or by an overflow of fixed point alone."""
    if not found.finite:
        result, stats = judged(run.setup.program, jnp.asarray(jnp.nan), None, stats)
        if stats.failed_step is not None:
            return result, stats
    return RESULTS.training_gradient_not_finite if found.fits else RESULTS.fixed_point_overflow, stats


def _stats(run: ExactRun, found: Ranges, attempt: int) -> UnrollStats:
    bits, theory = kept_bits(run.draft)

    def named(name: str, numbers: dict[str, Any]) -> dict[str, Any]:
        return {f"{name}_{kind}": number for kind, number in numbers.items()}

    numbers = {
        "steps": run.draft.steps,
        "attempt": attempt,
        "bits_per_parameter_step": bits,
        "theory_bits": theory,
        "stored_bytes": float(run.store.bytes),
        "headroom_bits": headroom(found),
        "used_bits": named("used_bits", found.bits),
        "limit_bits": named("limit_bits", found.limits),
        "resolution": named("resolution", {name: float(run.draft.scales[name].units.max()) for name in found.limits}),
    }
    return UnrollStats(**on_device(numbers))
