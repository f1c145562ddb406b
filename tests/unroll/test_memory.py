"""What every mode would take, as predicted, beside what XLA states of its programs and what lives while they run."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from reversals import make

import hyprax as hx
from hyprax.unroll import _drivers, _estimate, _reversal
from hyprax.unroll._checkpointed import tree_bytes
from hyprax.unroll._estimate import estimate, scratch
from hyprax.unroll._exact_run import ExactRun
from hyprax.unroll._step import Program, movable
from trainings import Problem, make_problem

pytestmark = pytest.mark.optimised  # what the programs of users take


def live() -> int:
    """The bytes of all arrays that there are."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def measured(
    monkeypatch: pytest.MonkeyPatch,
    problem: Problem,
    mode: Any,
    owner: Any,
    sweep: str,
    program: Any,
    used_up: tuple[int, ...] = (),
) -> int:
    """Arrays that live at calls of `owner.sweep`, the most, less those before, and what XLA allocates for `program`.

    `program` is a function of the arguments of that call, which returns the compiled function and its arguments, of
    which those in `used_up` are.
    """
    found, needed, true = [], [], getattr(owner, sweep)

    def watched(*arguments: Any) -> Any:
        found.append(live())
        if not needed:
            needed.append(scratch(*program(*arguments), used_up=used_up))
        return true(*arguments)

    objective = problem.objective(mode)
    state, before = objective.init(problem.hyper), live()
    monkeypatch.setattr(owner, sweep, watched)
    objective.value_and_grad(problem.hyper, state)
    return max(found) - before + needed[0]


def with_few(problem: Problem, names: tuple[str, ...]) -> Problem:
    """The same training with these hyperparameters alone, few enough for forward mode."""
    training, rest = problem.training, problem.hyper
    fewer = hx.Training(
        lambda params, hyper, batch: training.loss(params, rest | hyper, batch),
        lambda hyper, key: training.init(rest | hyper, key),
        lambda hyper: training.optimizer(rest | hyper),
        training.batches,
        training.steps,
    )

    def outer_loss(params: Any, hyper: Any, data: Any) -> Any:
        return problem.outer_loss(params, rest | hyper, data)

    return Problem(fewer, outer_loss, problem.outer_data, {name: rest[name] for name in names}, problem.key)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "steps"), [("mlp", 60), ("attention", 300)])
def test_storing_and_checkpointing_take_what_is_predicted(model, steps):
    """Within 20 % of what XLA allocates for the programs of the reverse sweep: store, temporaries and results."""
    problem = make_problem(model, "adamw", seed=0, steps=steps, dtype=jnp.float32, dropout=True)
    costs = estimate(problem.training, problem.hyper, key=problem.key, driver="loop").costs
    assert {type(cost.mode) for cost in costs} == {hx.unroll.StoreAll, hx.unroll.Checkpointed}
    program = Program(problem.training, problem.hyper, problem.key)
    carry = _drivers.start(program)
    adjoint, dhyper = (jax.tree.map(jnp.zeros_like, movable(tree)) for tree in (carry, problem.hyper))
    zero = _drivers.index(0)
    for cost in costs:
        plan = cost.mode.plan(steps, 1) if isinstance(cost.mode, hx.unroll.Checkpointed) else None
        places, slots = (steps, 0) if plan is None else (plan.length, plan.slots)
        store = _drivers.LoopDriver().empty(carry, places)
        used = scratch(_drivers.loop_reverse, program, store, zero, zero, zero, adjoint, dhyper)
        held = tree_bytes(store) + slots * tree_bytes(carry)
        assert abs(cost.memory / (held + used) - 1) <= 0.2


@pytest.mark.parametrize(
    ("name", "model", "steps"),
    [
        pytest.param("paper", "mlp", 60, marks=pytest.mark.slow),
        pytest.param("paper", "mlp", 2000, marks=pytest.mark.slow),
        pytest.param("adamw", "mlp", 400, marks=pytest.mark.slow),
        pytest.param("polyak", "attention", 300, marks=pytest.mark.slow),
    ],
)
def test_reversal_takes_what_is_predicted(monkeypatch, name, model, steps):
    """Few words put away and many; the schedules weigh as much as the weights of these small networks."""
    problem = make(name, model, steps=steps, dtype=jnp.float32, dropout=True)

    put_away = []

    def program(run: ExactRun, carry: Any, lo: int, hi: int) -> Any:
        shapes = [run.setup.layout.packing.vectors[i].shape for i, _ in run._which]
        lows = [jnp.zeros((run.together, *shape), jnp.uint8) for shape in shapes]
        put_away.append(sum(low.nbytes for low in lows))
        return _reversal.loop_pieces_back, (run.setup, run._pieces(lo, [hi], lows)), carry

    used = measured(monkeypatch, problem, hx.unroll.Reversible("loop"), ExactRun, "backward", program, used_up=(1,))
    used += put_away[0]
    whole = Program(problem.training, problem.hyper, problem.key)
    cost = _estimate._reversible(whole, _drivers.LoopDriver(), "loop", 0.0)
    assert abs(cost.memory / used - 1) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp", "attention"])
def test_forward_mode_takes_what_is_predicted(monkeypatch, model):
    problem = with_few(make_problem(model, "adamw", seed=0, steps=8, dtype=jnp.float32), ("lr", "scale"))

    def program(driver: Any, program: Any, carry: Any, tangents: Any, directions: Any, lo: int, hi: int) -> Any:
        bounds = _drivers.index(lo), _drivers.index(hi)
        return _drivers.loop_push, program, carry, tangents, directions, *bounds

    used = measured(monkeypatch, problem, hx.unroll.ForwardMode("loop"), _drivers.LoopDriver, "push", program)
    costs = estimate(problem.training, problem.hyper, key=problem.key, driver="loop").costs
    (predicted,) = [cost.memory for cost in costs if isinstance(cost.mode, hx.unroll.ForwardMode)]
    assert abs(predicted / used - 1) <= 0.2


def test_a_platform_that_states_no_memory_is_named(monkeypatch):
    class Silent:
        def lower(self, *arrays):
            return self

        def compile(self):
            return self

        def memory_analysis(self):
            return None

    monkeypatch.setattr(_estimate.jax, "jit", lambda call, **settings: Silent())
    with pytest.raises(ValueError, match=r"platform 'cpu'.*JAX_PLATFORMS=cpu"):
        scratch(lambda x: x, jnp.ones(3))
