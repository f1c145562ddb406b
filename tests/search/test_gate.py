"""The gate: noise and bounds in one rule, closed entries at rest, and an end of its own."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.search import Gate, Optax
from hyprax.search._gate import gate


class Noisy(hx.core.AbstractObjective):
    """F(u) = ½ ‖u - target‖², its hypergradient told with noise of a known spread."""

    target: jax.Array
    spread: jax.Array
    bound: jax.Array
    noisy: bool = eqx.field(static=True, default=True)
    adaptive: bool = eqx.field(static=True, default=False)
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
