"""Gains: coverage of the limits on skewed data, harms never clipped, paired cross-fits; three types kept apart."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import hyprax as hx
from hyprax.search import Gain, Improvement, honest, improvement, rows_needed
from hyprax.search._gain import AbstractGain
from hyprax.search._student import quantile, widened

METHODS = ("betting", "empirical Bernstein")


def test_certificate_noise_and_gain_are_three_types_with_words_of_their_own():
    certificate = hx.Certificate(jnp.asarray(0.1), "certified", "error", "by design")
    noise = hx.Noise(jnp.asarray(0.1), 9, "validation examples")
    gain = Gain(0.1, 0.02, 4, "the tuned model", "one strength", 100)
    proved = improvement(np.ones(500), np.zeros(500), largest_harm=1.0)
    kinds = (hx.core.AbstractCertificate, hx.core.AbstractNoise, AbstractGain)
    for thing, kind in ((certificate, kinds[0]), (noise, kinds[1]), (gain, kinds[2]), (proved, kinds[2])):
        assert [isinstance(thing, other) for other in kinds] == [other is kind for other in kinds]
    words = [thing.meaning() for thing in (certificate, noise, gain, proved)]
    assert len(set(words)) == 4
    assert "new data" in words[0]
    assert "says nothing of new data" in words[0]
    assert "no bound" in words[1]
    assert "held-out rows" in words[2]
    assert "not of a refit" in words[3]
    for kind in kinds:
        assert inspect.isabstract(kind)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("harmful", [True, False], ids=("rare harms", "rare gains"))
def test_the_limit_fails_seldom_on_skewed_gains(method, harmful):
    rng, delta, draws, failed = np.random.default_rng(0), 0.1, 300, 0
    # Means of 0: small gains nearly always and rare large harms, or the other way round.
    for _ in range(draws):
        rare = rng.random(200) < 0.02
        gains = np.where(rare, -0.98, 0.02) * (1 if harmful else -1)
        failed += improvement(gains, np.zeros(200), delta=delta, largest_harm=1.0, method=method).lower > 0
    assert failed <= draws * delta + 2 * np.sqrt(draws * delta * (1 - delta))


@pytest.mark.parametrize("method", METHODS)
def test_the_limit_has_power(method):
    rng = np.random.default_rng(1)
    gains = np.clip(0.2 + 0.2 * rng.normal(size=1000), -1, 1)
    found = improvement(gains, np.zeros(1000), largest_harm=1.0, method=method)
    assert 0.1 < found.lower < gains.mean()
    assert found.established
    assert "at least 0.95" in found.meaning()
    betting = improvement(gains, np.zeros(1000), largest_harm=1.0)
    assert betting.lower >= improvement(gains, np.zeros(1000), largest_harm=1.0, method="empirical Bernstein").lower


def test_harms_are_never_clipped_and_gains_may_be():
    with pytest.raises(ValueError, match="Harms are never clipped"):
        improvement([0.0, 0.0], [0.5, 2.0], largest_harm=1.0)
    wide, narrow = (
        improvement(np.r_[np.full(400, 0.1), 30.0], np.zeros(401), largest_harm=0.5, largest_gain=top)
        for top in (30.0, 0.5)
    )
    assert narrow.clipped
    assert not wide.clipped
    assert narrow.lower > wide.lower  # one outlier no longer sets the range
    assert not improvement(np.zeros(50), np.zeros(50), largest_harm=1.0).established


def test_groups_count_once():
    gains, groups = np.repeat([0.5, -0.1, 0.4, 0.3], 25), np.repeat(np.arange(4), 25)
    found = improvement(gains, np.zeros(100), largest_harm=1.0, groups=groups)
    assert (found.rows, found.unit) == (4, "groups")
    assert found.lower < improvement(gains, np.zeros(100), largest_harm=1.0).lower


def test_the_rows_that_a_claim_needs_are_enough():
    rows = rows_needed(0.1, 0.3, width=2.0)
    slack = np.sqrt(2 * 0.09 * np.log(40) / rows) + 14 * np.log(40) / (3 * (rows - 1))
    assert 0.095 <= slack <= 0.1
    assert isinstance(improvement([1.0, 1.0], [0.0, 0.0], largest_harm=1.0), Improvement)


def test_quantiles_are_those_of_students_t():
    for freedom in (2, 4.5, 30, np.inf):
        np.testing.assert_allclose(quantile(0.05, freedom), scipy.stats.t.ppf(0.975, freedom), rtol=1e-6)
    np.testing.assert_allclose(widened(2.0, 4), scipy.stats.t.isf(scipy.stats.norm.sf(2.0), 4), rtol=1e-6)
    noise = hx.Noise(jnp.ones(640), np.inf, "validation examples")
    found, entries, chance = noise.above(jnp.linspace(-4, 4, 640))
    assert (found, entries, round(chance)) == (320, 640, 29)
    assert round(hx.Noise(jnp.ones(640), 4, "probes").above(jnp.zeros(640))[2]) == 74


def test_an_answer_says_how_many_entries_are_above_noise():
    answer = hx.hypergradient(lambda x: jnp.sum(x**2), jnp.asarray([1.0, 0.0, 3.0]))[0]
    assert "above noise" not in repr(answer)
    noise = hx.Noise(jnp.asarray([0.1, 0.1, 0.1]), np.inf, "examples")
    answer = hx.Hypergradient(answer.value, answer.grad, answer.certificate, noise, answer.result, answer.stats)
    assert "2 of 3 entries above noise, 0 by chance" in repr(answer)


def test_a_cross_fit_is_paired_and_corrected():
    rng = np.random.default_rng(0)
    losses = rng.normal(size=50)

    def baseline(fit, judge):
        return losses[judge]

    def procedure(fit, judge):
        assert not set(fit) & set(judge)
        assert len(fit) + len(judge) == 50
        return losses[judge] - 0.1 - 0.01 * (judge % 5), [1.0, 0.4, 0.5]

    found = honest(procedure, baseline, 50, folds=5, key=jax.random.key(0))
    np.testing.assert_allclose(found.gain.value, 0.12, atol=1e-12)
    naive = found.gains.std(ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.gain.standard_error, naive * np.sqrt(1 + 5 * 10 / 40))
    assert found.overtuning is not None
    np.testing.assert_allclose(found.overtuning, np.full(5, 0.1))
    np.testing.assert_allclose(found.baseline_loss - found.loss, 0.12, atol=1e-12)
    assert found.gain.established
    assert "40 rows" in found.gain.meaning()
    with pytest.raises(ValueError, match="losses of the held-out rows"):
        honest(lambda fit, judge: np.zeros(3), baseline, 50, key=jax.random.key(0))


def test_loops_over_folds_show_one_bar_and_close_it(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total, done=0):
            shown.append(("of", total))

        def show(self, done, text):
            shown.append((done, text))

        def close(self):
            shown.append(("closed", text_of(shown)))

    def text_of(told):
        return told[-1][1]

    monkeypatch.setattr("hyprax._progress.ProgressBar", Bar)
    losses = lambda fit, judge: np.ones(len(judge))  # noqa: E731
    honest(losses, losses, 30, folds=3, key=jax.random.key(0))
    assert shown == [("of", 3), (1, "outer folds"), (2, "outer folds"), (3, "outer folds"), ("closed", "outer folds")]
    shown.clear()
    honest(losses, losses, 30, folds=3, key=jax.random.key(0), progress=False)
    assert shown == []
