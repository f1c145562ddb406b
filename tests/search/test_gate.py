"""The gate: noise and bounds in one rule, closed entries at rest, and an end of its own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.search import LBFGS, Gate, GatedLBFGS, Optax
from hyprax.search._gate import gate


class Noisy(hx.core.AbstractObjective):
    """F(u) = ½ ‖u - target‖², its hypergradient told with noise of a known spread."""

    target: jax.Array
    spread: jax.Array
    bound: jax.Array
    noisy: bool = eqx.field(static=True, default=True)
    adaptive: bool = eqx.field(static=True, default=False)
    measures_noise: bool = eqx.field(static=True, default=True)
    value_name: str = eqx.field(static=True, default="value")

    def init(self, hyper):
        return jax.random.key_data(jax.random.key(0))

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        key, own = jax.random.split(jax.random.wrap_key_data(state))
        grad = hyper - self.target + self.spread * jax.random.normal(own, hyper.shape)
        noise = hx.Noise(self.spread, jnp.inf, "draws")
        certificate = hx.Certificate(self.bound, "certified", "‖h - dF‖", "by design")
        value = 0.5 * jnp.sum((hyper - self.target) ** 2)
        answer = hx.Hypergradient(value, grad, certificate, noise, hx.RESULTS.successful, hx.core.NamedStats())
        return answer, jax.random.key_data(key)

    def value(self, hyper, state, accuracy=None):
        value = 0.5 * jnp.sum((hyper - self.target) ** 2)
        certificate = hx.NoCertificate("by design")
        noise = hx.NoNoise("by design")
        return hx.core.Value(value, certificate, noise, hx.RESULTS.successful, hx.core.NamedStats()), state

    def params(self, state):
        return None

    def final(self, hyper, state):
        return self.value(hyper, state)


def test_the_rule_is_soft_thresholding_by_noise_and_bound():
    grad, errors = {"a": jnp.asarray([3.0, -3.0, 0.5])}, {"a": jnp.asarray([1.0, 1.0, 0.1])}
    gated, opened = gate(grad, errors, {"a": jnp.asarray([0.5, 0.5, 0.5])}, jnp.asarray(2.0))
    np.testing.assert_allclose(gated["a"], [0.5, -0.5, 0.0])
    assert int(opened) == 2


def test_entries_below_noise_rest_and_the_run_ends_when_none_is_open():
    count = 50
    target = jnp.zeros(count).at[:5].set(3.0)
    objective = Noisy(target=target, spread=jnp.full(count, 0.05), bound=jnp.asarray(0.01))
    search = Gate(3.0, optax.adam(0.1))
    found = hx.tune(objective, jnp.zeros(count), search=search, steps=400)
    assert bool(found.result == hx.search.RESULTS.below_noise)
    assert "above its noise" in found.message or "rises above" in found.message
    np.testing.assert_allclose(found.best[:5], 3.0, atol=0.6)
    # In 400 steps some of the 45 null entries open by chance, for a step; free, all of them wander.
    free = hx.tune(objective, jnp.zeros(count), search=Optax(optax.adam(0.1)), steps=len(found.history))
    assert np.mean(np.abs(found.best[5:]) > 0) <= 0.5 < np.mean(np.abs(free.best[5:]) > 0)
    assert np.abs(found.best[5:]).sum() < np.abs(free.best[5:]).sum()


def test_a_bound_closes_entries_as_noise_does():
    objective = Noisy(target=jnp.ones(3), spread=jnp.full(3, 1e-3), bound=jnp.asarray(10.0))
    found = hx.tune(objective, jnp.zeros(3), search=Gate(), steps=5)
    assert bool(found.result == hx.search.RESULTS.below_noise)
    assert len(found.history) == 1


def test_an_objective_without_noise_is_refused():
    with pytest.raises(ValueError, match="must measure the noise"):
        hx.tune(lambda x: jnp.sum(x**2), jnp.ones(2), search=Gate(), steps=1)
    with pytest.raises(ValueError, match="z must be a finite number"):
        Gate(-1.0)


SCALES = jnp.linspace(1.0, 5.0, 20)


class Bowl(hx.core.AbstractObjective):
    """F(u) = ½ Σ_j a_j (u_j - target_j)², exact, with standard errors that are given."""

    target: jax.Array
    spread: jax.Array
    noisy: bool = eqx.field(static=True, default=False)
    adaptive: bool = eqx.field(static=True, default=False)
    measures_noise: bool = eqx.field(static=True, default=True)
    value_name: str = eqx.field(static=True, default="value")

    def init(self, hyper):
        return ()

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        off = hyper["u"] - self.target
        noise = hx.Noise({"u": self.spread}, jnp.inf, "rows held out")
        nothing = hx.NoCertificate("by design")
        answer = (0.5 * jnp.sum(SCALES * off**2), {"u": SCALES * off}, nothing, noise)
        return hx.Hypergradient(*answer, hx.RESULTS.successful, hx.core.NamedStats()), state

    @eqx.filter_jit
    def value(self, hyper, state, accuracy=None):
        value = 0.5 * jnp.sum(SCALES * (hyper["u"] - self.target) ** 2)
        nothing = (hx.NoCertificate("by design"), hx.NoNoise("by design"))
        return hx.core.Value(value, *nothing, hx.RESULTS.successful, hx.core.NamedStats()), state

    def params(self, state):
        return None

    def final(self, hyper, state):
        return self.value(hyper, state)


def test_quasi_newton_steps_arrive_where_every_entry_equals_its_price():
    target = jnp.asarray(np.random.default_rng(0).normal(size=20))
    spread = jnp.full(20, 0.5).at[3].set(jnp.inf)
    start = {"u": jnp.zeros(20)}
    found = hx.tune(Bowl(target=target, spread=spread), start, search=GatedLBFGS(2.0), steps=60, progress=False)
    assert bool(found.result == hx.search.RESULTS.below_noise), found.message
    prices = 2 * np.asarray(spread) / np.asarray(SCALES)  # a_j |u_j - target_j| = t_j where u_j moved
    expected = np.sign(target) * np.maximum(np.abs(target) - prices, 0)
    np.testing.assert_allclose(found.last["u"], expected, atol=0.02)
    assert found.last["u"][3] == 0  # nothing is known of an entry whose error is infinite
    assert found.column("moved_entries")[-1] == np.sum(expected != 0)
    with pytest.raises(ValueError, match="z must be a finite number"):
        GatedLBFGS(0.0)


def test_many_hyperparameters_are_held_back_by_default_where_noise_is_measured_and_few_are_not():
    target, spread = jnp.full(20, 0.1), jnp.full(20, 1.0)  # all below two standard errors
    start = {"u": jnp.zeros(20)}
    held = hx.tune(Bowl(target=target, spread=spread), start, steps=20, progress=False)
    assert bool(held.result == hx.search.RESULTS.below_noise)
    np.testing.assert_array_equal(held.best["u"], 0.0)
    free = hx.tune(Bowl(target=target, spread=spread, measures_noise=False), start, steps=20, progress=False)
    np.testing.assert_allclose(free.best["u"], target, atol=1e-3)
    drawn = Noisy(target=jnp.full(20, 0.1), spread=spread, bound=jnp.asarray(0.0))
    assert "open_entries" in hx.tune(drawn, jnp.zeros(20), steps=2, progress=False).history[0]
    assert "open_entries" not in hx.tune(drawn, jnp.zeros(20), search=Optax(optax.adam(0.05)), steps=2).history[0]


def rows_of_ridge(kind: str):
    """80 rows to fit on, 60 to judge on, and the expected loss of weights on new rows."""
    rng = np.random.default_rng(7)
    weights = {"few": np.r_[np.full(4, 1.0), np.zeros(36)], "alike": np.full(40, 0.15)}[kind]
    X = rng.normal(size=(140, 40))
    y = X @ weights + rng.normal(size=140)
    optimum = hx.Optimum(hx.families.Squared(X[:80], y[:80], penalty="penalty"))
    family = optimum.loss
    assert isinstance(family, hx.families.Squared)
    objective = hx.ImplicitObjective(optimum, family.mean_loss, (X[80:], y[80:]), certifier=hx.implicit.NoCertifier())
    return objective, lambda w: 0.5 + 0.5 * float(np.sum((np.asarray(w) - weights) ** 2))


@pytest.mark.parametrize(("kind", "strength"), [("few", 1.0), ("alike", 0.3)])
def test_the_default_ends_no_worse_on_new_rows_than_it_began_and_finds_what_is_there(kind, strength):
    objective, loss_on_new_rows = rows_of_ridge(kind)
    assert not objective.measures_noise
    start = {"penalty": hx.Positive(np.full(40, strength))}

    def judged(hyper):
        return loss_on_new_rows(objective.params(objective.value(hyper, objective.init(hyper))[1]))

    began = judged(start)
    found = hx.tune(objective, start, steps=30, progress=False)
    ended = judged(found.best)
    if kind == "few":
        assert ended - 0.5 < 0.5 * (began - 0.5)  # half of what a fit can lose is gone
        strengths = np.asarray(hx.natural(found.best)["penalty"])
        assert strengths[:4].max() < 0.5 * strength <= np.median(strengths[4:])
    else:
        assert ended <= began * (1 + 1e-3)
        assert ended < judged(hx.tune(objective, start, search=LBFGS(), steps=30, progress=False).best)
