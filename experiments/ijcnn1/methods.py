"""The contestants: each gives the log-strengths it had, and the examples it had visited, as it went along."""

import dataclasses
import time
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax.search import AbstractSearch, Move, Stopping

from .problem import Ijcnn1


@dataclasses.dataclass
class Track:
    """Log-strengths, examples visited and seconds, at points along the way; and what else is worth saying."""

    passes: list[float] = dataclasses.field(default_factory=list)
    raw: list[np.ndarray] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    certificate: str = "none"

    def add(self, passes: float, raw: np.ndarray, seconds: float) -> None:
        self.passes.append(passes)
        self.raw.append(np.asarray(raw, dtype=float))
        self.seconds.append(seconds)


def stochastic(method: type, problem: Ijcnn1, budget: float, rate: float, *, decreasing: bool = False):
    """Adam along the directions of a single-loop method; `decreasing`: its rate falls like 1/sqrt(1 + t/1000)."""
    search = optax.adam((lambda t: rate / jnp.sqrt(1 + t / 1000)) if decreasing else rate)
    objective = method(*problem.parts, batch_size=64, key=jax.random.key(0))

    @eqx.filter_jit
    def run(objective, carry):
        def step(carry, _):
            hyper, state, moments = carry
            answer, state = objective.value_and_grad(hyper, state)
            updates, moments = search.update(answer.grad, moments)
            return (optax.apply_updates(hyper, updates), state, moments), answer.stats.example_passes

        carry, passes = jax.lax.scan(step, carry, length=chunk)
        return carry, jnp.sum(passes.astype(float))

    chunk = 100
    hyper, track, spent = problem.start, Track(), 0.0
    carry = (hyper, objective.init(hyper), search.init(hyper))
    if method is hx.implicit.SABA:
        spent += problem.passes(2, 1)  # its memory is filled in one pass
    track.add(spent, hyper["penalty"].raw, 0.0)
    run(objective, carry)  # compilation apart
    began, following = time.perf_counter(), 0.0
    while spent < budget:
        carry, passes = run(objective, carry)
        hyper = carry[0]
        spent += float(passes)
        if spent >= following:
            track.add(spent, hyper["penalty"].raw, time.perf_counter() - began)
            following = 1.08 * spent
    if track.passes[-1] != spent:
        track.add(spent, hyper["penalty"].raw, time.perf_counter() - began)
    return track


def full_batch(problem: Ijcnn1, budget: float, search, *, steps: int) -> Track:
    """`hx.tune` on the full-batch objective with its certificate; every product counted, those of certificates too."""
    objective = hx.ImplicitObjective(*problem.parts)
    track, spent, began = Track(), 0.0, time.perf_counter()
    track.add(0.0, problem.start["penalty"].raw, 0.0)
    worst = 0.0

    def look(step) -> bool:
        nonlocal spent, worst
        outer = 1 + step.stats.get("gradients", 1) + step.stats.get("values", 0)
        # The hyperparameters are those that were evaluated: what was spent before this step led to them.
        if spent > 0:
            track.add(spent, step.hyper["penalty"].raw, time.perf_counter() - began)
        spent += problem.passes(step.stats.get("search_products", step.stats.products), outer)
        worst = max(worst, step.certificate_bound / step.gradient_norm)
        track.certificate = f"{step.certificate_kind}, relative bound at most {worst:.1e}"
        return spent > budget

    tuned = hx.tune(
        objective,
        problem.start,
        search=search,
        steps=steps,
        stop=Stopping(gradient=1e-9, patience=None),
        callbacks=[look],
        progress=False,
    )
    track.add(spent, tuned.state.hyper["penalty"].raw, time.perf_counter() - began)
    return track


def jaxopt_implicit(problem: Ijcnn1, budget: float, rate: float) -> Track:
    """jaxopt: L-BFGS at its default tolerance, warm-started, and CG for the derivative; Adam on the log-strengths."""
    import jaxopt
    from jaxopt.linear_solve import solve_cg

    x, y = map(jnp.asarray, problem.train)
    v, t = map(jnp.asarray, problem.validation)
    products = 0

    def count(_) -> None:
        nonlocal products
        products += 1

    def solve(matvec: Callable, b):
        def counted(a):
            jax.debug.callback(count, a[0])
            return matvec(a)

        return solve_cg(counted, b)

    def inner(w, raw):
        u = x @ w
        return jnp.mean(jax.nn.softplus(u) - y * u) + 0.5 * jnp.sum(jnp.exp(raw) * w**2)

    solver = jaxopt.LBFGS(inner, maxiter=500, implicit_diff_solve=solve)

    def outer(raw, start):
        found = solver.run(start, raw)
        u = v @ found.params
        return jnp.mean(jax.nn.softplus(u) - t * u), (found.params, found.state.num_grad_eval)

    evaluate = jax.jit(jax.value_and_grad(outer, has_aux=True))
    adam = optax.adam(rate)
    raw, w = problem.start["penalty"].raw, jnp.zeros(x.shape[1])
    state, track, spent = adam.init(raw), Track(), 0.0
    jax.block_until_ready(evaluate(raw, w))
    began, products = time.perf_counter(), 0
    track.add(0.0, raw, 0.0)
    while spent < budget:
        before = products
        (_, (w, gradients)), grad = evaluate(raw, w)
        jax.effects_barrier()
        spent += problem.passes(int(gradients) + products - before, 1)
        updates, state = adam.update(grad, state)
        raw = optax.apply_updates(raw, updates)
        track.add(spent, raw, time.perf_counter() - began)
    return track


def optuna_tpe(problem: Ijcnn1, budget: float, seed: int) -> Track:
    """Optuna's TPE on the log-strengths between 1e-6 and 10: each trial one warm-started solve; the best so far."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    objective = hx.ImplicitObjective(*problem.parts, certifier=hx.implicit.NoCertifier())
    size = problem.train[0].shape[1]
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
    study.enqueue_trial({f"x{i}": 0.0 for i in range(size)})
    accuracy = hx.Accuracy(jnp.asarray(1e-4), jnp.asarray(1e-4))
    state, track, spent = objective.init(problem.start), Track(), 0.0
    track.add(0.0, problem.start["penalty"].raw, 0.0)
    began, best = time.perf_counter(), np.inf
    while spent < budget:
        trial = study.ask()
        raw = np.array([trial.suggest_float(f"x{i}", np.log(1e-6), np.log(10.0)) for i in range(size)])
        value, state = objective.value({"penalty": hx.Positive(np.exp(raw))}, state, accuracy)
        study.tell(trial, float(value.value))
        spent += problem.passes(int(value.stats.products), 1)
        if float(value.value) < best:
            best = float(value.value)
            track.add(spent, raw, time.perf_counter() - began)
    track.add(spent, track.raw[-1], time.perf_counter() - began)
    return track


class FollowingAdam(AbstractSearch):
    """Adam, each hypergradient asked for to tolerances of `share` of the norm of the last one."""

    transformation: optax.GradientTransformation
    share: float = 0.1

    def init(self, hyper):
        return self.transformation.init(hyper), jnp.asarray(1e-3)

    def step(self, objective, hyper, search_state, objective_state):
        moments, tolerance = search_state
        answer, objective_state = objective.value_and_grad(hyper, objective_state, hx.Accuracy(tolerance, tolerance))
        hyper, moments = _moved(self.transformation, answer.grad, moments, hyper)
        return Move(answer, hyper, (moments, self.share * answer.norm), objective_state)


@eqx.filter_jit
def _moved(transformation, grad, moments, hyper):
    updates, moments = transformation.update(grad, moments)
    return optax.apply_updates(hyper, updates), moments
