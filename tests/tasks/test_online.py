"""The exponential forecaster against quadrature, brute force, and its regret bounds, which must always hold."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import integrate, stats

from hyprax.tasks import ExponentialForecaster, PiecewiseFunction, dispersion, play
from hyprax.tasks._online import Density, _estimate

KEY = jax.random.key(0)


def random_loss(rng, kind):
    """A random loss in [0, 1] on [0, 1]."""
    edges = np.concatenate([[0], np.sort(rng.random(rng.integers(0, 4))), [1]])
    rows = edges.size - 1
    if kind == "steps":
        return PiecewiseFunction.from_polynomials(edges, rng.random((rows, 1)))
    if kind == "lines":  # with jumps
        first, last = rng.random(rows), rng.random(rows)
        return PiecewiseFunction.from_polynomials(edges, np.stack([first, last - first], axis=1))
    c = rng.random()
    return PiecewiseFunction.from_polynomials([0, 1], [[c * c, -2 * c, 1.0]])


KINDS = ["steps", "lines", "parabola"]


def sum_of(functions):
    return PiecewiseFunction.mean(functions) * float(len(functions))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 3.0, 80.0])
def test_density_against_adaptive_quadrature(kind, rate):
    rng = np.random.default_rng(1)
    for _ in range(5):
        total = sum_of([random_loss(rng, kind) for _ in range(4)])
        loss = random_loss(rng, kind)
        density = Density.of(total, rate)
        cuts = np.union1d(total.breakpoints, loss.breakpoints)
        least = total.minimise().value

        def integral(weight, cuts=cuts, total=total, least=least):
            def f(x):
                return math.exp(-rate * (float(total(x)) - least)) * weight(x)

            return sum(integrate.quad(f, a, b, limit=200, epsabs=1e-13)[0] for a, b in itertools.pairwise(cuts))

        whole = integral(lambda x: 1.0)
        assert density.log_integral == pytest.approx(math.log(whole) - rate * least, abs=1e-8)
        assert np.sum(density.mass) == pytest.approx(1.0, abs=1e-12)
        assert density.expectation(loss) == pytest.approx(integral(loss) / whole, abs=1e-8)
        assert density.probability(0.0, 1.0) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_density(kind):
    """Kolmogorov and Smirnov, against the distribution function of the density on a fine grid."""
    rng = np.random.default_rng(2)
    density = Density.of(sum_of([random_loss(rng, kind) for _ in range(5)]), 4.0)
    x = np.linspace(0, 1, 301)
    steps = [density.probability(a, b) for a, b in itertools.pairwise(x)]
    distribution = np.concatenate([[0.0], np.cumsum(steps)])
    sample = [density.sample(key) for key in jax.random.split(KEY, 500)]
    assert stats.kstest(sample, lambda s: np.interp(s, x, distribution)).pvalue > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_expected_regret_is_always_below_its_bounds(kind):
    for seed in range(7):
        rng = np.random.default_rng(seed)
        duals = [random_loss(rng, kind) for _ in range(rng.integers(1, 30))]
        rate = float(10 ** rng.uniform(-1, 1.5))
        run = play(duals, rate=rate, key=jax.random.key(seed))
        assert run.expected_regret <= run.integral_bound + 1e-9
        assert run.integral_bound <= run.bound + 1e-9


def test_an_adversary_does_not_break_the_bound():
    """Each task punishes where the forecaster would go: alternating steps."""
    left = PiecewiseFunction.from_polynomials([0, 0.5, 1], [[1.0], [0.0]])
    right = PiecewiseFunction.from_polynomials([0, 0.5, 1], [[0.0], [1.0]])
    run = play([left, right] * 100, key=KEY)
    assert 0 < run.expected_regret <= run.integral_bound <= run.bound
    assert run.k == 0 or run.rho > 0


def test_regret_with_many_tasks_is_small_beside_them():
    rng = np.random.default_rng(5)
    run = play([random_loss(rng, "parabola") for _ in range(300)], key=jax.random.key(1))
    assert run.expected_regret <= run.bound < 300
    confidence = math.sqrt(300 * math.log(1 / 1e-6) / 2)  # Azuma
    assert run.regret <= run.integral_bound + confidence


@pytest.mark.parametrize("kind", ["steps", "lines"])
def test_semi_bandit_mean_regret_is_below_its_bound(kind):
    rng = np.random.default_rng(6)
    duals = [random_loss(rng, kind) for _ in range(15)]
    runs = [play(duals, feedback="semi-bandit", key=jax.random.key(seed)) for seed in range(10)]
    regrets = np.array([run.expected_regret for run in runs])
    assert np.mean(regrets) <= runs[0].integral_bound <= runs[0].bound + 1e-9


def test_semi_bandit_estimates_are_unbiased():
    rng = np.random.default_rng(7)
    loss, density = random_loss(rng, "lines"), Density.of(sum_of([random_loss(rng, "parabola")] * 3), 2.0)
    x = np.linspace(0.001, 0.999, 50)
    edges = loss.breakpoints
    middles = 0.5 * (edges[1:] + edges[:-1])
    chances = [density.probability(a, b) for a, b in itertools.pairwise(edges)]
    mean = sum(p * _estimate(loss, m, density)(x) for p, m in zip(chances, middles, strict=True))
    np.testing.assert_allclose(mean, loss(x), atol=1e-12)


def test_dispersion_by_brute_force():
    rng = np.random.default_rng(8)
    for _ in range(50):
        duals = [random_loss(rng, "steps") for _ in range(rng.integers(1, 12))]
        places = [d.jumps() for d in duals]
        for rho in (1e-6, 0.05, 0.3, 1.0):
            starts = np.append(np.concatenate(places)[:, 0], 0.0)
            brute = max(sum(bool(np.any((p[:, 1] >= s) & (p[:, 0] <= s + rho))) for p in places) for s in starts)
            assert dispersion(duals, rho) == brute


def test_step_by_step_is_the_same_game():
    rng = np.random.default_rng(9)
    duals = [random_loss(rng, "lines") for _ in range(12)]
    run = play(duals, key=KEY)
    forecaster = ExponentialForecaster.for_rounds((0.0, 1.0), 12)
    state, hypers = forecaster.init(), []
    for dual, own in zip(duals, jax.random.split(KEY, 12), strict=True):
        hypers.append(forecaster.sample(state, own))
        state = forecaster.update(state, dual, hypers[-1])
    np.testing.assert_array_equal(hypers, run.hypers)
    assert state.rounds == 12


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: play([], key=KEY), "got none"),
        (lambda: play([PiecewiseFunction.constant((0, 1), 2.0)], key=KEY), r"must lie in \[0, 1\]"),
        (lambda: ExponentialForecaster((0, 1), 0.0), "rate must be"),
        (
            lambda: ExponentialForecaster((0, 1), 1.0, feedback="bandit"),  # pyright: ignore[reportArgumentType]  # to be refused
            "'full' or 'semi-bandit'",
        ),
        (lambda: dispersion([PiecewiseFunction.constant((0, 1), 0.5)], 0.0), "rho must be > 0"),
        (lambda: ExponentialForecaster.for_rounds((0, 1), 0), "must be >= 1"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # as for a user, whose arguments nobody checks
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
