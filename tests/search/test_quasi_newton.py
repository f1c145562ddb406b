"""Quasi-Newton steps: as few evaluations as SciPy's, proved decrease, bounds, resumption; how runs say they ended."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
from test_adaptive import Uncertain
from test_tune import Memory, bowl, start

import hyprax as hx
from hyprax.search import LBFGS, Optax, Stopping, TrustRegion
from hyprax.search._progress_words import progress_words
from hyprax.search._trust_region import _displaced

TO_THE_END = Stopping(gradient=1e-6, patience=None)
RULES = pytest.mark.parametrize("rule", [LBFGS, TrustRegion])


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def badly_scaled(x):
    scales = jnp.asarray([1e-2, 1.0, 30.0, 1e3])
    return jnp.sum(scales * (x - 1.0) ** 2) + jnp.sum(x**4) / 10


@pytest.mark.parametrize(
    ("fn", "rule", "most"),  # the last: hypergradients, of those of SciPy
    [
        (rosenbrock, LBFGS, 1.2),
        (badly_scaled, LBFGS, 1.2),
        (badly_scaled, TrustRegion, 1.2),
        (rosenbrock, TrustRegion, 2),
    ],
)
def test_few_hypergradients_beside_scipy(fn, rule, most):
    begin = jnp.asarray([-1.2, 1.0, 0.5, 2.0])
    found = hx.tune(fn, begin, search=rule(), steps=200, stop=Stopping(gradient=1e-6))
    slope = jax.jit(jax.value_and_grad(fn))
    peer = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(part) for part in slope(jnp.asarray(x))),
        begin,
        jac=True,
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-6},
    )
    assert found.history[-1]["gradient_norm"] <= 1e-6
    if fn is badly_scaled:  # the other has several minima
        np.testing.assert_allclose(found.best_value, peer.fun, rtol=1e-9)
    assert len(found.history) <= most * peer.nfev


@RULES
def test_proved_decrease_is_true_whatever_the_errors_within_the_bounds(rule):
    objective = Uncertain(scales=jnp.asarray([0.1, 1.0, 3.0, 20.0]), looseness=jnp.asarray(3.0))
    points = []
    found = hx.tune(
        objective, jnp.asarray([3.0, -2.0, 0.0, 2.0]), search=rule(), steps=30, stop=TO_THE_END,
        callbacks=[lambda step: points.append(step.hyper)],
    )  # fmt: skip
    truths = [float(objective.truth(point)) for point in points]
    proved = found.column("proved_decrease")
    assert np.all(proved[:-1] > 0)
    for before, after, fall in zip(truths[:-1], truths[1:], proved[:-1], strict=True):
        assert before - after >= fall * (1 - 1e-12)
    assert truths[-1] <= 1e-6 * truths[0]
    # No tighter than was needed: the hypergradient is known to a few hundredths, and no better.
    assert np.all(found.column("certificate_bound") <= 0.03 * found.column("gradient_norm"))
    assert np.median(found.column("certificate_bound") / found.column("gradient_norm")) >= 1e-4


@RULES
def test_a_run_ends_where_the_certificates_can_tell_no_more(rule):
    objective = Uncertain(scales=jnp.asarray([1.0, 3.0]), looseness=jnp.asarray(1.0), floor=jnp.asarray(1e-4))
    found = hx.tune(objective, jnp.asarray([3.0, -2.0]), search=rule(), steps=200, stop=Stopping(0.0, None))
    assert bool(found.result == hx.search.RESULTS.precision_reached)
    assert float(objective.truth(found.last)) <= 1e-3
    assert len(found.history) < 40


@RULES
def test_a_strength_rests_at_its_bound_and_this_is_said(rule):
    def drops(hyper):  # falls with the first strength for ever, and has an optimum at 3 in the second
        return 1 / (1 + hyper["penalty"][0]) + jnp.log(hyper["penalty"][1] / 3.0) ** 2

    found = hx.tune(drops, {"penalty": hx.Positive([1.0, 1.0])}, search=rule(strengths=(1e-3, 1e3)), steps=100)
    np.testing.assert_allclose(found.best["penalty"].value, [1e3, 3.0], rtol=1e-3)
    assert "1 at the upper one" in found.message


@RULES
def test_a_resumed_run_has_the_same_bits(rule):
    begin = jnp.asarray([-1.2, 1.0, 0.5, 2.0])
    whole = hx.tune(rosenbrock, begin, search=rule(), steps=12)
    record = Memory()
    hx.tune(rosenbrock, begin, search=rule(), steps=5, run=record)
    resumed = hx.tune(rosenbrock, begin, search=rule(), steps=12, run=record)
    for a, b in zip(jax.tree.leaves(whole.state), jax.tree.leaves(resumed.state), strict=True):
        assert np.array_equal(a, b)


def test_negative_curvature_is_used():
    """Between two minima the gradient is next to nothing: the model bends downwards there, and is followed."""

    def saddle(x):
        return 0.25 * x[0] ** 4 - 0.5 * x[0] ** 2 + 0.5 * x[1] ** 2

    found = hx.tune(saddle, jnp.asarray([1e-3, 1.0]), search=TrustRegion(), steps=30, stop=TO_THE_END)
    np.testing.assert_allclose(found.best_value, -0.25, rtol=1e-9)
    np.testing.assert_allclose(np.abs(found.best), [1.0, 0.0], atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_the_model_is_that_of_dense_rank_one_updates(seed):
    """B from the compact form against B ← B + r rᵀ/(rᵀs), r = y - Bs, one pair after the other, on a bent quadratic."""
    rng = np.random.default_rng(seed)
    n, m = 6, 4
    true = rng.normal(size=(n, n))
    true = true + true.T
    moves = rng.normal(size=(m, n))  # oldest first
    turns = moves @ true
    rule, start = TrustRegion(memory=m), jnp.zeros(n)
    state = rule.init(start)
    state = eqx.tree_at(
        lambda s: (s.moves, s.turns, s.stored),
        state,
        (jnp.asarray(moves[::-1]), jnp.asarray(turns[::-1]), jnp.asarray(m)),
    )
    grad = jnp.asarray(rng.normal(size=n))
    _, _, (model, _) = rule._planned(state, start, grad)
    dense = float(model.sigma) * np.eye(n)
    for s, y in zip(moves, turns, strict=True):
        r = y - dense @ s
        dense = dense + np.outer(r, r) / (r @ s)
    curved = np.stack([np.asarray(model.curved(jnp.asarray(e))) for e in np.eye(n)])
    np.testing.assert_allclose(curved, dense, rtol=1e-6, atol=1e-8)
    for radius in (0.1, 1.0, 100.0):
        moved, predicted, length = _displaced(*rule._planned(state, start, grad)[:2], model, jnp.asarray(radius))
        assert float(length) <= radius * (1 + 1e-12)
        move = np.asarray(moved)
        np.testing.assert_allclose(predicted, -(np.asarray(grad) @ move + 0.5 * move @ dense @ move), rtol=1e-6)
        along = -np.asarray(grad) / np.linalg.norm(grad)  # at least as good as any step along -h
        lengths = np.linspace(0, radius, 50)
        falls = lengths * np.linalg.norm(grad) - 0.5 * lengths**2 * (along @ dense @ along)
        assert float(predicted) >= falls.max() * (1 - 1e-6)


def test_noisy_objectives_are_refused_and_keep_adam():
    with pytest.raises(ValueError, match="must be deterministic"):
        hx.tune(bowl(noisy=True), start(), search=LBFGS(), steps=2)
    for bad, words in (({"memory": 0}, "memory must be an integer >= 1; got 0"), ({"longest": 0.0}, "longest must be")):
        for rule in (LBFGS, TrustRegion):
            with pytest.raises(ValueError, match=f"{rule.__name__}: {words}"):
                rule(**bad)  # pyright: ignore[reportArgumentType]  # to be refused
    with pytest.raises(ValueError, match=r"acceptance must lie between 0 and 0\.25; got 0\.5"):
        TrustRegion(acceptance=0.5)
    with pytest.raises(ValueError, match=r"armijo must lie between 0 and 0\.5; got 0\.9"):
        LBFGS(armijo=0.9)
    with pytest.raises(AssertionError, match="no value alone"):  # Adam, and then what `final` gives
        hx.tune(bowl(noisy=True), start(), steps=2)


def rows(values):
    return [{"value": value} for value in values]


def test_messages_speak_of_progress():
    flat = progress_words(rows([3.0, 2.0, 1.0] + [1.0] * 40), noisy=False)
    assert flat == "the value had been flat for 40"
    falling = progress_words(rows(0.98 ** np.arange(100)), noisy=False)
    assert falling == "the value was still falling by 2.2 % a step"
    assert "noisy" in progress_words(rows([1.0, 2.0]), noisy=True)
    tuned = hx.tune(bowl(), start(), search=Optax(optax.sgd(1e-3)), steps=7)
    assert tuned.message.startswith("Stopped after 7 steps (the limit); the value was still falling by ")


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("rule", [LBFGS, TrustRegion, hx.search.MAID])
def test_nothing_below_rounding_is_asked_of_solvers_where_the_criterion_is_flat(rule, folds, recwarn):
    """Few weights: conjugate gradients end exactly, and the penalty hardly matters from 1e-6 down."""
    rng = np.random.default_rng(3)
    X, V = rng.normal(size=(2, 60, 2))
    rates = lambda z: np.exp(0.4 * z[:, 0])  # noqa: E731
    family = hx.families.Poisson(X, rng.poisson(rates(X)).astype(float), penalty="penalty")
    validation = (V, rng.poisson(rates(V)).astype(float))
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, validation)
    if folds:
        objective = hx.CrossValidated(hx.Optimum(family), 3, key=jax.random.key(1))
    found = hx.tune(objective, {"penalty": hx.Positive(1e-6)}, search=rule(), steps=6, stop=TO_THE_END)
    assert not [str(each.message) for each in recwarn if issubclass(each.category, hx.search.TuningWarning)]
    assert {row["result"] for row in found.history} <= {"successful"}
    if not folds:
        assert min(row["adjoint_tolerance"] for row in found.history) > 1e-22


def test_a_run_that_ends_where_it_began_says_so():
    flat = hx.tune(lambda h: 1e-9 * jnp.sum((h - 3.0) ** 2), jnp.zeros(2), search=LBFGS(), steps=9)
    assert len(flat.history) == 1
    assert "where the run began, so nothing moved" in flat.message
    moved = hx.tune(lambda h: jnp.sum((h - 3.0) ** 2), jnp.zeros(2), search=LBFGS(), steps=9)
    assert "where the run began" not in moved.message
