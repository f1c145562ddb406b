"""What every mode would cost on a given training: memory counted and asked of XLA, time measured on a few steps."""

import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._hyper import natural, validated
from .._trees import tree_size
from ._checkpointed import Checkpointed, make_plan, tree_bytes
from ._draft import draft, kept_bits
from ._drivers import AbstractDriver, DriverName, HostDriver, choose_driver, index
from ._exact_run import ExactRun, untouched
from ._fixed_point import wide
from ._mode import AbstractMode
from ._modes import ForwardMode, StoreAll
from ._reversal import step_back as step_back_exactly
from ._reversible import Reversible
from ._reversible_optimizer import AbstractReversibleOptimizer
from ._step import Program, basis, check_program, first, movable, start_forward, step_back, step_forward
from ._training import Training

SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class ModeCost:
    """One mode on one training: `memory` in bytes beside the data, `seconds` a hypergradient, both estimates."""

    mode: AbstractMode
    memory: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The cost of every mode that differentiates all steps, and the one to take.

    - `costs`: a [`hyprax.unroll.ModeCost`][] a mode.
    - `recommended`: the fastest mode whose memory is within the budget, or the smallest where none is.
    - `budget`: the memory that was allowed, in bytes.
    - `step_seconds`: a step forwards; `reverse_seconds`: a step backwards, its gradient included.
    """

    costs: tuple[ModeCost, ...]
    recommended: AbstractMode
    budget: int
    step_seconds: float
    reverse_seconds: float

    def __str__(self) -> str:
        rows = [f"{'mode':<34}{'memory':>12}{'seconds':>12}"]
        for cost in self.costs:
            mark = "  <- recommended" if cost.mode is self.recommended else ""
            rows.append(f"{cost.mode!r:<34}{_bytes(cost.memory):>12}{cost.seconds:>12.3g}{mark}")
        return "\n".join(rows)


def estimate(
    training: Training, hyper: PyTree, *, key: Array, memory: int | None = None, driver: DriverName = "auto"
) -> Estimate:
    """Memory and time of a hypergradient by every mode that leaves nothing out, without computing one.

    With S P the bytes of a state (weights and optimiser), A those that XLA needs for one step backwards, c and h the
    seconds of a step forwards and backwards:

    | mode | memory | time |
    | --- | --- | --- |
    | `StoreAll` | T S P + A | T (c + h) |
    | `Checkpointed` | N S P + A | (T + recomputed) c + T h |
    | `Reversible` | 64-bit words, adjoint, tables, stored words + A | T (2 c + h) |
    | `ForwardMode` | (1 + H) S P + A_H | T times one step with its H tangents |

    Memory is that beside the data and hyperparameters. A is XLA's own figure for the compiled step; c and h are
    measured for a fraction of a second each. The `ForwardMode` is left out above 32 hyperparameters.

    **Arguments:**

    - `training`, `hyper`, `key`: as for [`hyprax.UnrolledObjective`][].
    - `memory`: the bytes that may be used; half of the device's memory, or of the machine's, if `None`.
    - `driver`: as for the modes.

    **Returns:** an `Estimate`; `print` it for a table.

    **Raises:** `ValueError` where XLA does not say how much memory its programs need.
    """
    plain = natural(validated(hyper))
    training = training.prepared(plain, key)
    program = Program(training, plain, key)
    check_program(program)
    budget = _half_of_memory() if memory is None else memory
    runs = choose_driver(driver, program)
    carry = eqx.filter_jit(first)(program)
    state = tree_bytes(carry)
    adjoint, dhyper = (jax.tree.map(jnp.zeros_like, movable(tree)) for tree in (carry, plain))
    step = index(0)
    reverse_bytes = scratch(step_back, program, carry, step, adjoint, dhyper)
    forward_seconds = _seconds(lambda n: runs.advance(program, carry, 0, n), training.steps)
    reverse_seconds = _seconds(_backwards(runs, program, carry, adjoint, dhyper, training.steps), training.steps)

    steps = training.steps
    costs = [ModeCost(StoreAll(driver), steps * state + reverse_bytes, steps * (forward_seconds + reverse_seconds))]
    for states in _some_states(steps, budget, state):
        plan = make_plan(steps, states)
        again = (steps + plan.recomputed) * forward_seconds + steps * reverse_seconds
        costs.append(ModeCost(Checkpointed(states, driver=driver), plan.states * state + reverse_bytes, again))
    if isinstance(training.optimizer(plain), AbstractReversibleOptimizer):
        costs.append(_reversible(program, runs, driver, steps * (2 * forward_seconds + reverse_seconds)))
    if (size := tree_size(plain)) <= 32:
        directions = basis(plain)
        tangents = eqx.filter_jit(start_forward)(program, directions)
        needed = state * (1 + size) + scratch(step_forward, program, carry, tangents, step, directions)
        seconds = _seconds(lambda n: runs.push(program, carry, tangents, directions, 0, n), steps)
        costs.append(ModeCost(ForwardMode(driver), needed, steps * seconds))
    fitting = [cost for cost in costs if cost.memory <= budget]
    best = min(fitting, key=lambda cost: cost.seconds) if fitting else min(costs, key=lambda cost: cost.memory)
    return Estimate(tuple(costs), best.mode, budget, forward_seconds, reverse_seconds)


def _reversible(program: Program, runs: AbstractDriver, driver: DriverName, seconds: float) -> ModeCost:
    """The words of the step that is undone, with its adjoint; w_0, tables of coefficients, stored words, and A."""
    planned = draft(program)
    run = ExactRun(planned, planned.pairs(isinstance(runs, HostDriver))[0], "device")
    carry = untouched(run, planned.start())
    held = tree_bytes((carry, planned.weights, planned.raw, run.setup.tables, run.setup.increments, run.setup.units))
    kept = kept_bits(planned)[0] * tree_size(planned.weights) * planned.steps / 8
    with wide():
        needed = scratch(step_back_exactly, run.setup, carry, index(0), used_up=() if run.pair == "one" else (1,))
    return ModeCost(Reversible(driver), round(held + kept) + run.lows_bytes + needed, seconds)


def scratch(fn: Callable[..., Any], *arguments: Any, used_up: tuple[int, ...] = ()) -> int:
    """The bytes that XLA allocates for a call: temporaries, and results that replace none of what it may use up."""
    arrays, rest = eqx.partition(arguments, eqx.is_array)

    def call(*arrays: Any) -> Any:
        return eqx.filter(fn(*eqx.combine(arrays, rest)), eqx.is_array)

    analysis = jax.jit(call, donate_argnums=used_up).lower(*arrays).compile().memory_analysis()
    if analysis is None:
        raise ValueError(
            f"estimate: XLA must state how much memory its programs need; got nothing for the platform "
            f"{jax.default_backend()!r}. Set JAX_PLATFORMS=cpu for an estimate there."
        )
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes


def _backwards(
    runs: AbstractDriver, program: Program, carry: PyTree, adjoint: PyTree, dhyper: PyTree, steps: int
) -> Callable[[int], Any]:
    """n steps backwards over a store of few places, used again and again."""
    places = min(steps, 8)
    store = runs.record(program, runs.empty(carry, places), carry, 0, places, 0)[0]

    def run(n: int) -> Any:
        both = (adjoint, dhyper)
        for _ in range(-(-n // places)):
            both = runs.reverse(program, list(store) if isinstance(store, list) else store, 0, places, 0, *both)
        return both

    return run


def _seconds(run: Callable[[int], Any], most: int) -> float:
    """Seconds a step: twice as many steps until they take long enough to be measured, the first call left out."""
    jax.block_until_ready(run(1))
    n = min(8, most)
    while True:
        began = time.perf_counter()
        jax.block_until_ready(run(n))
        elapsed = time.perf_counter() - began
        if elapsed >= SECONDS or 2 * n > most:
            return elapsed / n
        n *= 2


def _some_states(steps: int, budget: int, state: int) -> list[int | None]:
    """The default number of states, and as many as fit into the budget, where that is another plan."""
    fitting = min(steps, budget // max(state, 1))
    usual = make_plan(steps, None).states
    return [None, fitting] if usual < fitting < steps else [None]


def _half_of_memory() -> int:
    """Half of what the device has, or, where it does not say, of what the machine has."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"
