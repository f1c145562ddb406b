"""One evaluation on the host: segments of a run given to a driver, metrics recorded, answers put together."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, NoCertificate
from .._result import Result
from .._trees import is_traced, tree_all_finite, tree_norm
from ._drivers import DriverName, LoopDriver, choose_driver, index, start
from ._mode import RESULTS, Outer, UnrollReport, UnrollStats
from ._step import Program, first, movable, moved, outer_and_grads, start_back
from ._training import Training


class Runner:
    """The steps of one evaluation, forwards and backwards, with the metrics of each step recorded once."""

    def __init__(self, training: Training, outer: Outer, hyper: PyTree, key: Array, driver: DriverName):
        self.program, self.outer = Program(training, hyper, key), outer
        self.driver = choose_driver(driver, self.program)
        self.gradients = 0
        self.products = 0
        self._rows: list[PyTree] = []
        self._seen = 0

    def position(self) -> list[int]:
        """What was counted so far, as integers."""
        return [self.gradients, self.products, self._seen, len(self._rows)]

    def rows(self) -> list[PyTree]:
        """The metrics recorded so far."""
        return list(self._rows)

    def restore(self, position: list[int], rows: list[PyTree]) -> None:
        """Go on from such a position, with these rows."""
        self.gradients, self.products, self._seen, _ = position
        self._rows = list(rows)

    @property
    def in_one(self) -> bool:
        """Whether the whole evaluation can be one program: there is nothing that the host does along the way."""
        return isinstance(self.driver, LoopDriver) and self.program.training.metrics is None

    @property
    def steps(self) -> int:
        """T."""
        return self.program.training.steps

    def start(self) -> PyTree:
        """(w_0, s_0, m_0)."""
        return start(self.program)

    def advance(self, carry: PyTree, lo: int, hi: int) -> PyTree:
        """The carry before step `hi`, from that before step `lo`."""
        for a, b in self._pieces(lo, hi):
            self._look(carry, a)
            carry = self.driver.advance(self.program, carry, a, b)
        return carry

    def record(self, store: Any, carry: PyTree, lo: int, hi: int) -> tuple[Any, PyTree]:
        """As `advance`, with the carry before step t put into place t - lo of the store, which is used up."""
        for a, b in self._pieces(lo, hi):
            self._look(carry, a)
            store, carry = self.driver.record(self.program, store, carry, a, b, lo)
        return store, carry

    def reverse(self, store: Any, lo: int, hi: int, adjoint: PyTree, dhyper: PyTree) -> tuple[PyTree, PyTree]:
        """The adjoint before step `lo` from that before step `hi`, over recorded steps, and dλ added up."""
        self.gradients += hi - lo
        self.products += hi - lo
        return self.driver.reverse(self.program, store, lo, hi, lo, adjoint, dhyper)

    def push(self, carry: PyTree, tangents: PyTree, directions: PyTree) -> tuple[PyTree, PyTree]:
        """All steps, with the derivatives along each direction carried along."""
        for a, b in self._pieces(0, self.steps):
            self._look(carry, a)
            carry, tangents = self.driver.push(self.program, carry, tangents, directions, a, b)
        return carry, tangents

    def end(self, carry: PyTree) -> tuple[Float[Array, ""], PyTree, PyTree]:
        """f, the adjoint of (w_T, s_T, m_T), and the part of dλ that acts on f directly."""
        params, state, model = carry
        value, dparams, dmodel, dhyper = end(self.outer, params, model, self.program.hyper)
        return value, (dparams, jax.tree.map(jnp.zeros_like, movable(state)), dmodel), dhyper

    def chain(self, adjoint: PyTree, dhyper: PyTree) -> PyTree:
        """dλ with the part that acts through (w_0, s_0, m_0) added."""
        return chain(self.program, adjoint, dhyper)

    def stats(self) -> UnrollStats:
        """What was counted."""
        steps, gradients, products = (jnp.asarray(count) for count in (self.steps, self.gradients, self.products))
        return UnrollStats(steps=steps, gradients=gradients, products=products)

    def with_adjoint(self, at_start: PyTree, at_end: PyTree) -> UnrollStats:
        """What was counted, and the adjoints of (w, s) at both ends."""
        return dataclasses.replace(self.stats(), **growth(at_start[::2], at_end[::2], self.steps))

    def report(
        self,
        carry: PyTree,
        certificate: AbstractCertificate,
        value: Float[Array, ""],
        grads: PyTree = None,
        stats: UnrollStats | None = None,
    ) -> UnrollReport:
        """The report of an evaluation that ended with `carry`; where it is not finite, with where that began."""
        stats = self.stats() if stats is None else stats
        result, stats = judged(self.program, value, grads, stats)
        metrics = jax.tree.map(lambda *rows: jnp.stack(rows), *self._rows) if self._rows else None
        return UnrollReport(carry[0], certificate, result, stats, metrics, carry[2])

    def _pieces(self, lo: int, hi: int) -> Iterator[tuple[int, int]]:
        """The range cut where metrics are due that were not yet recorded."""
        self.gradients += hi - lo
        every = self.program.training.every if self.program.training.metrics is not None else None
        while lo < hi:
            after = hi if every is None or hi <= self._seen else min(hi, (lo // every + 1) * every)
            yield lo, after
            self._seen = max(self._seen, after)
            lo = after

    def _look(self, carry: PyTree, t: int) -> None:
        """Record the metrics of step `t`, if they are due and new."""
        training = self.program.training
        if training.metrics is not None and t % training.every == 0 and t >= self._seen:
            self._rows.append(measure(self.program, carry[0], carry[2], index(t)))


@eqx.filter_jit
def growth(at_start: PyTree, at_end: PyTree, steps: int) -> dict[str, Array]:
    """‖d(w, m)_0‖, ‖d(w, m)_T‖, their ratio and its T-th root, for the statistics."""
    start, end = tree_norm(at_start), tree_norm(at_end)
    ratio = start / end
    rate = ratio ** jnp.asarray(1 / steps, ratio.dtype)
    return {"adjoint_start": start, "adjoint_end": end, "amplification": ratio, "growth": rate}


def judged(program: Program, value: Array, grads: PyTree, stats: UnrollStats) -> tuple[Result, UnrollStats]:
    """How an evaluation ended. Where it is not finite the run is made once more, in search of where that began."""
    finite = _all_finite((value, grads))
    if is_traced(finite):  # there is no number yet: what was not finite first is not looked for
        failed = RESULTS.where(jnp.isfinite(value), RESULTS.derivative_not_finite, RESULTS.outer_loss_not_finite)
        return RESULTS.where(finite, RESULTS.successful, failed), stats
    if bool(finite):
        return RESULTS.successful, stats
    what, t = (int(x) for x in jax.device_get(_first_not_finite(program)))
    if what:
        stats = dataclasses.replace(stats, failed_step=jnp.asarray(t))
        return PLACES[what], stats
    return (RESULTS.derivative_not_finite if bool(jnp.isfinite(value)) else RESULTS.outer_loss_not_finite), stats


_all_finite = jax.jit(tree_all_finite)

PLACES = (
    RESULTS.successful,
    RESULTS.initial_weights_not_finite,
    RESULTS.training_loss_not_finite,
    RESULTS.training_gradient_not_finite,
    RESULTS.weights_not_finite,
    RESULTS.state_not_finite,
)


@eqx.filter_jit
def _first_not_finite(program: Program) -> tuple[Array, Array]:
    """What was not finite first, as a place in `PLACES`, and at which step; (0, T) where all was."""
    carry = first(program)
    starts = jnp.where(tree_all_finite(carry[0]), 0, 1)

    def going(state: tuple[Array, Array, PyTree]) -> Array:
        what, t, _ = state
        return (what == 0) & (t < program.training.steps)

    def step(state: tuple[Array, Array, PyTree]) -> tuple[Array, Array, PyTree]:
        _, t, (params, moments, model) = state
        loss, _ = program.training.step_loss(params, model, program.hyper, t, program.key)
        grads, onward = program.gradient(params, model, t)
        after = *moved(program, program.hyper, grads, moments, params, model, t), onward
        fine = [jnp.isfinite(loss), *(tree_all_finite(movable(x)) for x in (grads, after[0], onward))]
        what = jnp.select([~ok for ok in fine], [jnp.asarray(place) for place in (2, 3, 4, 5)], jnp.asarray(0))
        return what.astype(starts.dtype), jnp.where(what == 0, t + 1, t), after

    what, t, _ = jax.lax.while_loop(going, step, (starts, jnp.asarray(0, jnp.int32), carry))
    return what, t


end = eqx.filter_jit(outer_and_grads)
chain = eqx.filter_jit(start_back)


@eqx.filter_jit
def judge(outer: Outer, params: PyTree, model: PyTree, hyper: PyTree) -> Float[Array, ""]:
    """f(w, m, λ)."""
    return outer(params, model, hyper)


def blank_rows(program: Program, params: PyTree, model: PyTree, rows: int) -> list[PyTree]:
    """So many rows of metrics, zeros."""
    if not rows:
        return []
    row = eqx.filter_eval_shape(measure, program, params, model, index(0))
    return [jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), row)] * rows


@eqx.filter_jit
def measure(program: Program, params: PyTree, model: PyTree, t: Any) -> PyTree:
    """The metrics of step t."""
    return jax.tree.map(jnp.asarray, program.training.measured(params, model, program.hyper, t))


def _run(runner: Runner) -> tuple[PyTree, Float[Array, ""]]:
    carry = runner.advance(runner.start(), 0, runner.steps)
    return carry, judge(runner.outer, carry[0], carry[2], runner.program.hyper)


@eqx.filter_jit
def _run_in_one(program: Program, outer: Outer) -> tuple[PyTree, Float[Array, ""]]:
    return _run(Runner(program.training, outer, program.hyper, program.key, "loop"))


def run_value(
    training: Training, outer: Outer, hyper: PyTree, key: Array, driver: DriverName
) -> tuple[Float[Array, ""], UnrollReport]:
    """F alone, by running the training forwards."""
    runner = Runner(training, outer, hyper, key, driver)
    carry, value = _run_in_one(runner.program, outer) if runner.in_one else _run(runner)
    certificate = NoCertificate("the run is made in floating point, and its rounding is not bounded", value.dtype)
    return value, runner.report(carry, certificate, value)
