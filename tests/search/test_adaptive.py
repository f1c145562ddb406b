"""MAID, HOAG and fixed tolerances: proved decrease against the truth, optima of a dense reference, cost, bad input."""

import functools
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, cast

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import hyprax as hx
import oracles
from hyprax.search import HOAG, MAID, FixedTolerance, Stopping
from problems import random_problem

TO_THE_END = Stopping(gradient=1e-5, patience=None)


NOISE = hx.NoNoise("by design")


class Products(hx.core.AbstractStats):
    """One product, and the accuracy that was asked for reached."""

    reached: hx.Accuracy

    def effort(self):
        return hx.core.Effort(1, self.reached)


class Uncertain(hx.core.AbstractObjective):
    """F(u) = ½ Σ s_j (u_j - 1)², told with errors as large as the bounds allow, in random directions.

    |value - F| <= bound and ‖grad - ∇F‖ <= bound, bounds of `looseness` times the accuracy, and never below `floor`.
    """

    scales: jax.Array
    looseness: jax.Array | float = 1.0
    floor: jax.Array | float = 0.0
    kind: str = eqx.field(static=True, default="certified")
    noisy: bool = eqx.field(static=True, default=False)
    adaptive: bool = eqx.field(static=True, default=True)
    measures_noise: bool = eqx.field(static=True, default=False)
    value_name: str = eqx.field(static=True, default="value")

    def init(self, hyper):
        return jax.random.key_data(jax.random.key(7))

    def truth(self, u):
        return 0.5 * jnp.sum(self.scales * (u - 1) ** 2)

    def _drawn(self, state):
        key, one, two = jax.random.split(jax.random.wrap_key_data(state), 3)
        sign = jnp.sign(jax.random.normal(one))
        direction = jax.random.normal(two, self.scales.shape)
        return sign, direction / jnp.linalg.norm(direction), jax.random.key_data(key)

    def _certificate(self, bound):
        if self.kind == "none":
            return hx.NoCertificate("by design")
        return hx.Certificate(bound, cast(Any, self.kind), "error", "by design")

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        assert accuracy is not None
        sign, direction, state = self._drawn(state)
        bound = jnp.maximum(self.looseness * jnp.maximum(accuracy.inner, accuracy.adjoint), self.floor)
        value = self.truth(hyper) + sign * bound
        grad = self.scales * (hyper - 1) + 0.999 * bound * direction
        certificate = self._certificate(bound)
        return hx.Hypergradient(value, grad, certificate, NOISE, hx.RESULTS.successful, Products(accuracy)), state

    @eqx.filter_jit
    def value(self, hyper, state, accuracy=None):
        assert accuracy is not None
        sign, _, state = self._drawn(state)
        bound = jnp.maximum(self.looseness * accuracy.inner, self.floor)
        value = self.truth(hyper) + 0.999 * sign * bound
        return hx.core.Value(value, self._certificate(bound), NOISE, hx.RESULTS.successful, Products(accuracy)), state

    def params(self, state):
        return None

    def final(self, hyper, state):
        return self.value(hyper, state)


def evaluated(objective, hyper, search, steps, stop=TO_THE_END):
    points = []
    tuned = hx.tune(
        objective, hyper, search=search, steps=steps, stop=stop, callbacks=[lambda s: points.append(s.hyper)]
    )
    return tuned, points


@hypothesis.given(
    seed=st.integers(0, 2**16), spread=st.floats(0, 4), looseness=st.sampled_from([1e-6, 1e-2, 1.0, 1e3, 1e6])
)
@hypothesis.settings(max_examples=8)
def test_maid_descends_whatever_the_errors_within_the_bounds(seed, spread, looseness):
    rng = np.random.default_rng(seed)
    objective = Uncertain(
        scales=jnp.asarray(10.0 ** rng.uniform(-spread / 2, spread / 2, 4)), looseness=jnp.asarray(looseness)
    )
    search = MAID()
    tuned, points = evaluated(objective, jnp.asarray(rng.normal(size=4)), search, 40)
    truths = [float(objective.truth(point)) for point in points]
    proved = tuned.column("proved_decrease")
    asked = search.armijo * tuned.column("step_size") * tuned.column("gradient_norm") ** 2
    for before, after, fall, least in zip(truths[:-1], truths[1:], proved[:-1], asked[:-1], strict=True):
        assert fall >= least > 0
        assert before - after >= fall * (1 - 1e-12) - 1e-15
    assert not bool(tuned.result == hx.search.RESULTS.no_certified_descent)
    assert truths[-1] <= 0.1 * truths[0]


def test_maid_stops_at_the_floor_of_the_certificates():
    objective = Uncertain(scales=jnp.asarray([1.0, 3.0]), looseness=jnp.asarray(1.0), floor=jnp.asarray(1e-4))
    tuned, points = evaluated(objective, jnp.asarray([3.0, -2.0]), MAID(), 500)
    assert bool(tuned.result == hx.search.RESULTS.no_certified_descent)
    assert "could be proved" in tuned.message
    assert float(objective.truth(points[-1])) <= 10 * 1e-4
    rows = tuned.history
    assert rows[-1]["proved_decrease"] == 0.0
    assert sum(row["gradients"] + row["values"] for row in rows) < 40 * len(rows)


def dense_value(kind, data, shape, raw):
    x, y, xv, yv = data
    columns = int(y.max()) + 1 if kind == "softmax" else 1
    strengths = np.exp(np.asarray(raw)).reshape(shape)
    wide = strengths if kind == "softmax" or strengths.ndim == 0 else strengths[:, None]
    truth = oracles.reference(kind, x, y, xv, yv, np.array(np.broadcast_to(wide, (x.shape[1], columns))))
    padded = shape if kind == "softmax" or shape == () else (*shape, 1)
    return float(truth.value), oracles.sum_to(truth.per_weight, padded).astype(float).ravel()


def data_of(problem):
    loss = problem.objective.optimum.loss
    arrays = (loss.inputs, loss.targets, *problem.objective.outer_data)
    return tuple(np.asarray(array) for array in arrays)


# Compiling takes most of the time: so one kind for each certificate in the ordinary run, and one shape throughout.
@pytest.mark.parametrize(
    ("certificate", "kind"),
    [
        pytest.param(certificate, kind, id=f"{name}-{kind}", marks=() if kind == ordinary else pytest.mark.slow)
        for name, certificate, ordinary in (
            ("look-ahead", hx.implicit.LookAhead(), None),
            ("Ehrhardt-Roberts", hx.implicit.EhrhardtRoberts(), "logistic"),
        )
        for kind in ("squared", "logistic", "softmax")
    ],
)
def test_maid_proves_decrease_and_finds_the_optimum_of_a_dense_reference(kind, certificate):
    for seed in range(2):
        problem = random_problem(np.random.default_rng(seed), kind, -1, n=60, d=6, smallest=1e-2, certifier=certificate)
        dense = functools.partial(dense_value, kind, data_of(problem), problem.hyper["penalty"].raw.shape)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            tuned, points = evaluated(problem.objective, problem.hyper, MAID(), 120)
        truths = [dense(point["penalty"].raw)[0] for point in points]
        for before, after, proved in zip(truths[:-1], truths[1:], tuned.column("proved_decrease")[:-1], strict=True):
            assert before - after >= proved > 0
        assert np.all(np.diff(tuned.column("value")) < 0)
        if bool(
            tuned.result == hx.search.RESULTS.no_certified_descent
        ):  # a strength vanishes, and with it what can be proved
            assert tuned.history[-1]["strong_convexity"] < 1e-4
            continue
        assert not warned  # only that end may have asked for more than the inner solver reaches
        end = np.ravel(tuned.best["penalty"].raw)
        value, slope = dense(end)
        assert np.linalg.norm(slope) <= 2e-5 or len(points) == 120
        # Strengths may have their optimum at infinity, so the reference looks for a better one within a factor of 20.
        box = list(zip(end - 3, end + 3, strict=True))
        better = scipy.optimize.minimize(dense, end, jac=True, method="L-BFGS-B", bounds=box)
        assert value <= better.fun + 1e-2 * (truths[0] - better.fun)


def products_to_reach(objective, hyper, search, target):
    with warnings.catch_warnings():  # a pair of fixed tolerances may be out of reach
        warnings.simplefilter("ignore", hx.search.TuningWarning)
        tuned = hx.tune(objective, hyper, search=search, steps=100, stop=Stopping(gradient=0.0, patience=None))
    reached = np.flatnonzero(tuned.column("value") <= target)
    return np.inf if reached.size == 0 else float(np.sum(tuned.column("search_products")[: reached[0] + 1]))


@pytest.mark.slow
def test_maid_costs_little_more_than_the_best_pair_of_fixed_tolerances():
    ratios = []
    for seed, kind in [(1, "logistic"), (2, "logistic"), (3, "logistic"), (2, "softmax")]:
        problem = random_problem(np.random.default_rng(seed), kind, -1, n=60, d=6, smallest=1e-3)
        tuned = hx.tune(problem.objective, problem.hyper, search=MAID(), steps=100, stop=TO_THE_END)
        target = tuned.best_value + 1e-3 * (tuned.history[0]["value"] - tuned.best_value)
        pairs = [(a, b) for a in (1e-1, 1e-3, 1e-5) for b in (1e-1, 1e-5)]
        fixed = [products_to_reach(problem.objective, problem.hyper, FixedTolerance(a, b), target) for a, b in pairs]
        ratios.append(products_to_reach(problem.objective, problem.hyper, MAID(), target) / min(fixed))
    assert np.median(ratios) <= 1.5, ratios
    assert max(ratios) <= 3, ratios


TRACES: list[int] = []


def quadratic_inner(params, hyper, data):
    """½ Σ_j (a_j + e^u) w_j² - w·b, u the one hyperparameter."""
    TRACES.append(1)
    return 0.5 * jnp.sum((data[0] + hyper["shift"]) * params**2) - jnp.sum(data[1] * params)


def quadratic_outer(params, hyper, data):
    return 0.5 * jnp.sum((params - data) ** 2)


def own_loss(strong_convexity: float = 0.5) -> tuple[hx.ImplicitObjective, dict]:
    """A user's inner loss, with the user's constants: A = a + e^u, B = e^u w, so L_B = e^u, here for e^u <= 10."""
    data = (jnp.asarray([0.5, 1.0, 4.0]), jnp.asarray([1.0, -2.0, 0.5]))

    def constants(params, hyper):
        shift = hyper["shift"]
        mixed = shift * jnp.sqrt(jnp.sum(params**2))
        return hx.implicit.Constants(jnp.asarray(strong_convexity), jnp.zeros(()), mixed, shift)

    optimum = hx.Optimum(quadratic_inner, jnp.zeros(3), data=data)
    bound = hx.implicit.EhrhardtRoberts(constants, lipschitz_outer=1.0, lipschitz_direct=0.0)
    objective = hx.ImplicitObjective(optimum, quadratic_outer, jnp.asarray([0.3, -0.7, 0.1]), certifier=bound)
    return objective, {"shift": hx.Positive(5.0)}


def test_maid_rests_on_a_users_constants_as_well():
    objective, start = own_loss()
    tuned, points = evaluated(objective, start, MAID(), 100)

    def truth(raw):
        w = np.array([1.0, -2.0, 0.5]) / (np.array([0.5, 1.0, 4.0]) + np.exp(raw))
        return 0.5 * np.sum((w - np.array([0.3, -0.7, 0.1])) ** 2)

    truths = [truth(float(point["shift"].raw)) for point in points]
    assert all(
        a - b >= c > 0 for a, b, c in zip(truths[:-1], truths[1:], tuned.column("proved_decrease"), strict=False)
    )
    grid = min(truth(raw) for raw in np.linspace(-3, 5, 4001))
    np.testing.assert_allclose(truths[-1], grid, rtol=1e-5)


def test_maid_gives_up_where_a_constant_is_disproved():
    objective, start = own_loss(strong_convexity=50.0)
    with pytest.warns(hx.search.TuningWarning, match="mu"):
        tuned = hx.tune(objective, start, search=MAID(), steps=20)
    assert bool(tuned.result == hx.search.RESULTS.evaluation_failed)
    assert hx.implicit.RESULTS[hx.implicit.RESULTS.strong_convexity_disproved] in tuned.message
    assert len(tuned.history) == 1


SEARCHES = {"maid": MAID(), "hoag": HOAG("quadratic"), "fixed": FixedTolerance(1e-6, 1e-6)}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_nothing_is_traced_again_as_tolerances_change(search):
    objective, start = own_loss()
    counts = []
    never = Stopping(gradient=0.0, patience=None)
    hx.tune(objective, start, search=search, steps=12, stop=never, callbacks=[lambda _: counts.append(len(TRACES))])
    assert counts[-1] == counts[0]


@pytest.mark.parametrize("schedule", ["exponential", "quadratic", "cubic"])
def test_hoag_follows_the_published_schedule(schedule):
    objective, start = own_loss()
    tuned = hx.tune(objective, start, search=HOAG(schedule), steps=20, stop=Stopping(gradient=0.0, patience=None))
    k = np.arange(1, 21)
    published = 0.1 * {"exponential": 0.9**k, "quadratic": 1 / k**2, "cubic": 1 / k**3}[schedule]
    np.testing.assert_allclose(tuned.column("inner_tolerance"), published, rtol=1e-12)
    np.testing.assert_allclose(tuned.column("adjoint_tolerance"), published, rtol=1e-12)
    assert np.all(tuned.column("inner_gradient_norm") <= published)
    assert np.all(np.diff(np.minimum.accumulate(tuned.column("value"))) <= 0)
    np.testing.assert_allclose(tuned.column("step_size")[0] * tuned.column("gradient_norm")[0], 1.0)


@pytest.mark.parametrize("start", [1e-3, 10.0])
def test_hoag_compares_values_of_one_accuracy_and_takes_back_what_raised_them(start):
    """A ridge with one strength: from where F is flat, where L says nothing of where F is steep."""
    rng = np.random.default_rng(0)
    x, v = rng.standard_normal((2, 40, 5))
    w = rng.standard_normal(5)
    y, u = (a @ w + 2.0 * rng.standard_normal(40) for a in (x, v))
    family = hx.families.Squared(x, y, penalty="penalty")
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (v, u), certifier=hx.implicit.NoCertifier())
    tuned = hx.tune(objective, {"penalty": hx.Positive(start)}, search=HOAG(), steps=60, progress=False)

    def exact(strength):
        solved = np.linalg.solve(x.T @ x / 40 + strength * np.eye(5), x.T @ y / 40)
        return 0.5 * np.mean((v @ solved - u) ** 2)

    assert tuned.best_value == pytest.approx(exact(float(tuned.best["penalty"].value)), rel=1e-8)
    least = min(exact(s) for s in np.logspace(-4, 3, 400))
    assert tuned.best_value <= least * (1 + 1e-3)  # flat beyond
    assert tuned.best_value <= min(exact(np.exp(float(tuned.last["penalty"].raw))), exact(start)) * (1 + 1e-8)


def test_hoag_stops_its_schedule_at_the_floor():
    assert HOAG("cubic").accuracy(10**6, 1e-8) == 1e-8


def test_fixed_tolerances_take_fixed_steps_or_backtrack():
    objective, start = own_loss()
    fixed = hx.tune(objective, start, search=FixedTolerance(1e-8, 1e-8, 0.5), steps=4)
    assert np.all(fixed.column("step_size") == 0.5)
    moved = start["shift"].raw - 0.5 * hx.hypergradient(objective, start)[0].grad["shift"].raw
    second = hx.hypergradient(objective, {"shift": hx.Positive(jnp.exp(moved))})[0]
    np.testing.assert_allclose(fixed.history[1]["value"], second.value)
    search = FixedTolerance(1e-8, 1e-8)
    tuned = hx.tune(objective, start, search=search, steps=60, stop=Stopping(gradient=1e-6))
    values = tuned.column("value")
    least = search.armijo * tuned.column("step_size") * tuned.column("gradient_norm") ** 2
    assert np.all(values[:-1] - values[1:] >= least[:-1] * (1 - 1e-9))
    assert tuned.history[-1]["gradient_norm"] <= 1e-6


def test_backtracking_ends_where_nothing_is_lower():
    objective = Uncertain(scales=jnp.asarray([1.0, 3.0]), looseness=jnp.asarray(1.0))
    tuned = hx.tune(
        objective, jnp.asarray([3.0, 2.0]), search=FixedTolerance(0.5, 0.5), steps=200, stop=Stopping(0.0, None)
    )
    assert bool(tuned.result == hx.search.RESULTS.no_descent)
    assert "fixed tolerances" in tuned.message


KILLED = """
import sys, time, jax
jax.config.update("jax_enable_x64", True)
sys.path[:0] = {paths!r}
import hyprax as hx
from test_adaptive import SEARCHES, kept_problem
objective, hyper = kept_problem()
def slow(step):
    print(step.step, flush=True)
    time.sleep(0.05)
stop = hx.search.Stopping(gradient=0.0, patience=None)
run = hx.Run({folder!r}, every=0.1)
hx.tune(objective, hyper, search=SEARCHES["maid"], steps=20, stop=stop, run=run, callbacks=[slow])
"""


def kept_problem():
    bound = hx.implicit.EhrhardtRoberts()
    problem = random_problem(np.random.default_rng(2), "logistic", -1, n=60, d=6, smallest=1e-3, certifier=bound)
    return problem.objective, problem.hyper


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    objective, hyper = kept_problem()
    stop = Stopping(gradient=0.0, patience=None)
    whole = hx.tune(objective, hyper, search=MAID(), steps=20, stop=stop)
    folder, here = tmp_path / "run", Path(__file__).parent
    code = KILLED.format(paths=[str(here), str(here.parent)], folder=str(folder))
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) >= 9:
            os.kill(child.pid, signal.SIGKILL)
            break
    child.stdout.close()
    child.wait()
    went_on = hx.tune(objective, hyper, search=MAID(), steps=20, stop=stop, run=hx.Run(folder))
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(went_on.state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [row["value"] for row in whole.history] == [row["value"] for row in went_on.history]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MAID(eta=1.0), "eta must .*; got 1.0"),
        (lambda: MAID(eta=0.5, armijo=0.25), "armijo must .*; got 0.25"),
        (lambda: MAID(inner=0.0), "inner must .*; got 0.0"),
        (lambda: MAID(adjoint=float("nan")), "adjoint must .*; got nan"),
        (lambda: MAID(loosen=0.9), "loosen must .*; got 0.9"),
        (lambda: MAID(lengthen=float("inf")), "lengthen must .*; got inf"),
        (lambda: HOAG(cast(Any, "linear")), "'exponential', 'quadratic', 'cubic'; got 'linear'"),
        (lambda: HOAG(tolerance=-1.0), "got -1.0"),
        (lambda: HOAG(first_move=0.0), "got 0.0"),
        (lambda: HOAG(floor=0.0), "got 0.0"),
        (lambda: FixedTolerance(0.0, 1.0), "inner must .*; got 0.0"),
        (lambda: FixedTolerance(1.0, 1.0, -0.5), "step_size must .*; got -0.5"),
        (lambda: FixedTolerance(1.0, 1.0, armijo=1.0), "armijo must .*; got 1.0"),
    ],
)
def test_bad_settings_are_refused(make, words, unchecked):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_objective_without_bounds_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"without error bounds .* hx\.search\.HOAG"):
        hx.tune(Uncertain(scales=jnp.ones(2), kind="none"), jnp.zeros(2), search=MAID(), steps=3)


def test_estimated_bounds_do():
    tuned = hx.tune(Uncertain(scales=jnp.ones(2), kind="estimated"), jnp.zeros(2), search=MAID(), steps=5)
    assert tuned.history[0]["certificate_kind"] == "estimated"
    assert tuned.best_value < 0.2


def test_a_start_at_the_optimum_moves_nothing():
    with pytest.warns(hx.search.TuningWarning, match="a stationary point"):
        tuned = hx.tune(Uncertain(scales=jnp.ones(2), looseness=0.0), jnp.ones(2), search=MAID(), steps=3)
    assert bool(tuned.result == hx.search.RESULTS.successful)


def test_a_problem_that_cannot_be_solved_ends_the_run_early():
    objective, _ = own_loss()
    with pytest.warns(hx.search.TuningWarning, match="not solved"):
        tuned = hx.tune(objective, {"shift": hx.Positive(1e300)}, search=MAID(), steps=3)
    assert len(tuned.history) == 1
    assert tuned.history[0]["gradients"] <= 4


def test_a_value_that_is_no_number_ends_the_run_as_diverged():
    tuned = hx.tune(Uncertain(scales=jnp.asarray([1.0, jnp.nan])), jnp.zeros(2), search=MAID(), steps=3)
    assert bool(tuned.result == hx.search.RESULTS.diverged)
    assert len(tuned.history) == 1


def test_the_methods_name_their_sources(capsys):
    text = hx.citation(MAID(), HOAG())
    assert "2308.10098" in text
    assert "pedregosa2016" in text
