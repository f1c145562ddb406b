"""What holds of every objective: noise, plain functions, keys, refusals, and what a noisy run keeps."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax._certificate import details
from hyprax._keys import checked_key
from hyprax._result import explain
from hyprax.search import MAID, Optax

START = {"x": hx.Positive(jnp.asarray([0.5, 3.0]))}


def distance(hyper: Any) -> jax.Array:
    """½ Σ (x - 2)², x in natural units."""
    return 0.5 * jnp.sum((hyper["x"] - 2.0) ** 2)


class Coin(hx.core.AbstractObjective):
    """½(u - 1)² plus a draw of ±1 at every call: the mean is known, and the lowest value seen is luck."""

    noisy: bool = eqx.field(static=True, default=True)
    adaptive: bool = eqx.field(static=True, default=False)
    measures_noise: bool = eqx.field(static=True, default=True)
    value_name: str = eqx.field(static=True, default="value")
    ends: bool = eqx.field(static=True, default=True)

    def init(self, hyper):
        return jnp.asarray(0)

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        hx.core.refuse_accuracy(self, accuracy)
        heads = jax.random.bernoulli(jax.random.fold_in(jax.random.key(3), state))
        sign = jnp.where(heads, 1.0, -1.0)
        value = 0.5 * jnp.sum((hyper - 1) ** 2) + sign
        noise = hx.Noise(jnp.ones(()), 10, "draws of a coin")
        nothing = hx.NoCertificate("drawn")
        return hx.Hypergradient(
            value, hyper - 1, nothing, noise, hx.RESULTS.successful, hx.core.NamedStats()
        ), state + 1

    def value(self, hyper, state, accuracy=None):
        raise AssertionError("a noisy objective is not asked for a value alone")

    def params(self, state):
        return None

    def final(self, hyper, state):
        value = 0.5 * jnp.sum((hyper - 1) ** 2)
        result = hx.RESULTS.successful if self.ends else hx.RESULTS.diverged
        noise = hx.Noise(jnp.asarray(0.1), 99, "100 draws of a coin")
        return hx.core.Value(value, hx.NoCertificate("drawn"), noise, result, hx.core.NamedStats()), state


def test_a_plain_function_is_differentiated_and_tuned():
    answer, state = hx.hypergradient(distance, START)
    x = np.array([0.5, 3.0])
    np.testing.assert_allclose(answer.value, 0.5 * np.sum((x - 2) ** 2))
    np.testing.assert_allclose(answer.grad["x"].raw, (x - 2) * x, rtol=1e-12)
    assert answer.certificate.kind == "none"
    assert isinstance(answer.noise, hx.NoNoise)
    again, _ = hx.hypergradient(distance, START, state)
    assert float(again.value) == float(answer.value)
    found = hx.tune(distance, START, search=Optax(optax.adam(0.1)), steps=200, progress=False)
    np.testing.assert_allclose(hx.natural(found.best)["x"], 2.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda hyper: hyper["x"], "must return one real number"),
        (3.0, "got a float"),
        (hx.Positive, "got the class Positive"),
        (hx.Positive(1.0), "got a Positive"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_no_objective_is_refused_in_words(objective, words):
    with pytest.raises(ValueError, match=words):
        hx.hypergradient(objective, START)
    with pytest.raises(ValueError, match=words):
        hx.tune(objective, START, steps=1)


def test_an_accuracy_is_refused_by_an_objective_that_cannot_honour_it():
    with pytest.raises(ValueError, match=r"FunctionObjective: accuracy must be None"):
        hx.hypergradient(distance, START, accuracy=hx.Accuracy(1e-3))


def test_searches_refuse_objectives_that_cannot_give_what_they_need():
    with pytest.raises(ValueError, match=r"MAID chooses how accurately .* got a FunctionObjective"):
        hx.tune(distance, START, search=MAID(), steps=3)
    adaptive = Coin(adaptive=True)
    with pytest.raises(ValueError, match=r"MAID compares values .* must be deterministic; got a Coin"):
        hx.tune(adaptive, jnp.asarray(3.0), search=MAID(), steps=3)


def test_a_noisy_run_keeps_its_last_hyperparameters_makes_all_its_steps_and_reports_the_final_value():
    steps = 80
    found = hx.tune(Coin(), jnp.asarray(3.0), search=Optax(optax.sgd(0.1)), steps=steps, progress=False)
    assert len(found.history) == steps  # neither patience nor a small gradient ends it
    lowest = int(np.argmin(found.column("value")))
    assert lowest != steps - 1
    assert found.best_step == steps - 1
    assert float(found.best) == float(found.last)
    assert found.final is not None
    np.testing.assert_allclose(found.best_value, 0.5 * (float(found.best) - 1) ** 2)
    np.testing.assert_allclose(found.final.noise.norm, 0.1)
    np.testing.assert_allclose(found.column("noise"), 1.0)


def test_a_final_evaluation_that_fails_is_the_result_of_the_run():
    found = hx.tune(Coin(ends=False), jnp.asarray(3.0), search=Optax(optax.sgd(0.1)), steps=3, progress=False)
    assert bool(found.result == hx.search.RESULTS.diverged)
    assert "non-finite" in found.message


@pytest.mark.parametrize(
    ("count", "noise", "said"),
    [
        (640, hx.NoNoise("not asked for", "validation examples"), True),
        (3, hx.NoNoise("not asked for", "validation examples"), False),  # a sample tells a few apart
        (640, hx.NoNoise("nothing is drawn"), False),
        (640, hx.Noise(jnp.ones(640), np.inf, "validation examples"), False),
    ],
)
def test_many_hyperparameters_on_a_sample_of_unknown_noise_are_not_left_without_a_word(count, noise, said):
    class Sampled(Coin):
        def value_and_grad(self, hyper, state, accuracy=None):
            answer, state = super().value_and_grad(hyper, state, accuracy)
            grad = jnp.ones_like(hyper)
            return hx.Hypergradient(answer.value, grad, answer.certificate, noise, answer.result, answer.stats), state

    found = hx.tune(Sampled(), jnp.ones(count), search=Optax(optax.sgd(0.1)), steps=1, progress=False)
    assert (f"{count} hyperparameters were fitted to one sample (validation examples)" in found.message) == said


def test_noise_is_a_spread_in_the_structure_of_the_answer_and_no_certificate():
    noise = hx.Noise({"a": jnp.asarray([3.0, 4.0])}, np.inf, "validation examples")
    np.testing.assert_allclose(noise.norm, 5.0)
    assert not isinstance(noise, hx.core.AbstractCertificate)
    assert "validation examples" in repr(noise)
    assert "no bound" in noise.meaning()
    none = hx.NoNoise("asked for none")
    assert np.isnan(none.norm)
    assert "asked for none" in none.meaning()


def test_a_certificate_says_what_it_means_in_records_too():
    certificate = hx.Certificate(jnp.asarray(0.5), "certified", "‖h - ∇F‖₂", "some theorem")
    found = details(certificate)
    assert found["meaning"] == certificate.meaning()
    assert "proved" in certificate.meaning()
    assert "new data" in certificate.meaning()
    assert "the loss" in hx.NoCertificate("the loss is unknown").meaning()


def test_accuracies_are_numbers():
    accuracy = hx.Accuracy(1e-3)
    assert float(accuracy.inner) == float(accuracy.adjoint) == 1e-3
    assert not accuracy.inner.weak_type
    assert hx.Accuracy(np.float32(1.0)).inner.dtype == np.float64
    assert hx.Accuracy(jnp.float32(1.0)).inner.dtype == np.float32
    assert float(hx.Accuracy(1, 2).adjoint) == 2.0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [-1, np.nan, [1, 2], "a", 1j, None, True, jnp.ones(2)])
def test_an_accuracy_that_is_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match="Accuracy: inner must be a number >= 0 or a scalar array; got"):
        hx.Accuracy(wrong)
    if wrong is not None:
        with pytest.raises(ValueError, match="Accuracy: adjoint must be a number"):
            hx.Accuracy(1e-3, wrong)


@pytest.mark.parametrize(
    "key", [0, None, "key", np.zeros(2, np.uint32), jnp.zeros(2), jax.random.split(jax.random.key(0))]
)
def test_a_key_that_is_none_is_refused_in_words(key):
    with pytest.raises(ValueError, match=r"Owner: key must be one JAX random key, such as jax.random.key\(0\); got"):
        checked_key("Owner", key)


def test_keys_of_both_styles_are_taken():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        assert checked_key("Owner", key) is key


def test_results_of_every_layer_have_a_name_a_text_and_a_success():
    for layer in (hx.RESULTS, hx.search.RESULTS):
        assert hx.core.result_name(layer.successful) == "successful"
        assert bool(hx.core.succeeded(layer.successful))
        assert not bool(hx.core.succeeded(layer.diverged))
    assert hx.core.result_name(hx.search.RESULTS.no_progress) == "no_progress"
    assert "patience" in explain(hx.search.RESULTS.no_progress, {})
