"""Bounds against exact coverage, brute force and simulation: they must hold with probability at least 1 - delta."""

import itertools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from hyprax.tasks import PiecewiseFunction, gap, tasks_needed
from hyprax.tasks._bounds import (
    crossing_bound,
    empirical_bernstein_bound,
    hoeffding_bound,
    lipschitz_bound,
    wealth_bound,
)
from hyprax.tasks._brackets import Complexity, cell_ranges
from hyprax.tasks._split import split_excess_bound, split_risk_bound
from hyprax.tasks.complexity import (
    Bounded,
    Intervals,
    Lipschitz,
    rademacher_complexity,
)

KEY = jax.random.key(0)


def threshold(x, height=1.0):
    """loss_α(x) = height 1[α < x]."""
    if not 0 < x < 1:
        return PiecewiseFunction.constant((0.0, 1.0), height * (x >= 1))
    return PiecewiseFunction.from_polynomials([0, x, 1], [[height], [0.0]])


def parabola(x):
    """loss_α(x) = (α - x)^2."""
    return PiecewiseFunction.from_polynomials([0, 1], [[x * x, -2 * x, 1.0]])


def random_function(rng, kind):
    edges = np.concatenate([[0], np.sort(rng.random(rng.integers(0, 5))), [1]])
    rows = edges.size - 1
    if kind == "enclosure":
        middle, radius = rng.random(rows), 0.1 * rng.random(rows)
        return PiecewiseFunction.from_enclosures(edges, middle - radius, middle + radius)
    if kind == "rational":
        return PiecewiseFunction.from_rationals(edges, rng.normal(size=(rows, 4)), 0.5 + rng.random((rows, 3)))
    return PiecewiseFunction.from_polynomials(edges, rng.normal(size=(rows, 1 + int(kind))))


KINDS = ["0", "1", "2", "5", "rational", "enclosure"]


# -- bounds of one mean


@pytest.mark.parametrize("bets", [None, [0.3], [0.05, 0.9, 0.99]])
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_wealth_bound_covers_bernoulli_means_exactly(n, bets):
    """The probability of a failure, summed over all outcomes, is at most delta for every p."""
    for delta in (0.2, 0.05):
        outcome = [wealth_bound(np.repeat([1.0, 0.0], [k, n - k]), delta, 1.0, bets) for k in range(n + 1)]
        for p in np.linspace(0.01, 0.99, 60):
            missed = stats.binom.pmf(np.arange(n + 1), n, p) @ (np.array(outcome) < p)
            assert missed <= delta


def test_wealth_bound_covers_signed_means_exactly():
    """Three outcomes, -1, 0 and 1, with every count enumerated."""
    n, delta = 12, 0.1
    counts = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    bounds = np.array([wealth_bound(np.repeat([-1.0, 0.0, 1.0], c), delta, 1.0) for c in counts])
    for p in itertools.product((0.02, 0.1, 0.4, 0.7), (0.02, 0.1, 0.25)):
        probability = stats.multinomial(n, [*p, 1 - sum(p)])
        missed = sum(probability.pmf(c) for c, b in zip(counts, bounds, strict=True) if b < (1 - sum(p)) - p[0])
        assert missed <= delta


def test_wealth_bound_by_hand():
    # all values 0, one bet λ = c / h: (1 + λ m)^n = 1/delta
    m = wealth_bound(np.zeros(50), 0.05, 2.0, [0.8])
    assert m == pytest.approx((0.05 ** (-1 / 50) - 1) / 0.4, abs=1e-8)
    assert m >= (0.05 ** (-1 / 50) - 1) / 0.4
    assert wealth_bound(np.full(50, 2.0), 0.05, 2.0) == 2.0  # never above what is always true
    # within 1/λ of what no method can beat: an event of probability 1 - delta^(1/n) may have been missed
    assert 1 - 0.05 ** (1 / 139) < wealth_bound(np.zeros(139), 0.05, 1.0, [0.99]) < 1.05 * (1 - 0.05 ** (1 / 139))


def test_empirical_bernstein_by_hand_and_by_exact_coverage():
    values = np.repeat([0.0, 1.0], [60, 40])
    variance = 100 / 99 * 0.24
    log = math.log(2 / 0.05)
    assert empirical_bernstein_bound(values, 0.05, 1.0) == pytest.approx(
        0.4 + math.sqrt(2 * variance * log / 100) + 7 * log / (3 * 99), abs=1e-8
    )
    n = 30
    outcome = np.array([empirical_bernstein_bound(np.repeat([1.0, 0.0], [k, n - k]), 0.1, 1.0) for k in range(n + 1)])
    for p in np.linspace(0.01, 0.99, 50):
        assert stats.binom.pmf(np.arange(n + 1), n, p) @ (outcome < p) <= 0.1


# -- bounds over the class, known beforehand


def test_bounds_by_hand():
    assert hoeffding_bound(185, 0.05) <= 0.1 < hoeffding_bound(184, 0.05)
    one = crossing_bound(Intervals.lasso(3, range=2.0), 100, 0.1, "deviation")
    assert one == pytest.approx(2 * (math.sqrt(2 * math.log(801) / 100) + math.sqrt(math.log(10) / 200)))
    two = crossing_bound(Intervals.lasso(3, range=2.0), 100, 0.1, "excess")
    assert two - one == pytest.approx(2 * math.sqrt(math.log(10) / 200))
    flat = Lipschitz(0.0, (0, 1))
    assert lipschitz_bound(flat, 50, 0.1, "deviation") == pytest.approx(math.sqrt(math.log(10) / 100))
    assert lipschitz_bound(flat, 50, 0.1, "excess") == pytest.approx(2 * math.sqrt(math.log(20) / 100))
    complexity = Complexity(n=139, estimate=0.008, upper=0.01, delta=0.01, draws=100)
    half = math.sqrt(math.log(40) / 278)
    assert complexity.bound(0.06, range=0.5, target="deviation") == pytest.approx(0.02 + 1.5 * half)
    assert complexity.bound(0.06) == pytest.approx(0.02 + 4 * half)


def test_lipschitz_bound_is_the_best_net():
    for slope, n in ((0.3, 10), (2.0, 100), (50.0, 5000)):
        sizes = np.arange(1, 200000)
        dense = np.min(slope / sizes + np.sqrt(np.log(sizes / 0.05) / (2 * n)))
        assert dense <= lipschitz_bound(Lipschitz(slope, (0, 1)), n, 0.05, "deviation") <= 1.001 * dense


@pytest.mark.parametrize("target", ["excess", "deviation"])
@pytest.mark.parametrize(
    "structure", [Intervals.ridge(20), [Intervals(40), Lipschitz(3.0, (0, 1))], Lipschitz(0.1, (0, 1))]
)
def test_tasks_needed_inverts_gap(structure, target):
    for epsilon, delta in ((0.5, 0.3), (0.1, 0.05), (0.01, 1e-6)):
        n = tasks_needed(structure, epsilon, delta, target=target)
        assert gap(structure, n.n, delta, target=target).value <= epsilon
        assert n.n == 1 or gap(structure, n.n - 1, delta, target=target).value > epsilon
        assert n.reference == math.ceil(math.log(2 / delta) / (2 * epsilon**2))


def test_several_structures_take_the_best():
    wide, narrow = Intervals(1000), Intervals(1)
    both = tasks_needed([wide, narrow], 0.1, 0.05)
    assert both.n == tasks_needed(narrow, 0.1, 0.05).n < tasks_needed(wide, 0.1, 0.05).n
    assert "at most 1 interval" in " ".join(both.assumptions)


def test_accuracy_is_paid_for():
    exact, inexact = gap(Intervals(1), 500, 0.05), gap(Intervals(1), 500, 0.05, accuracy=0.01)
    assert inexact.value == pytest.approx(exact.value + 0.02)
    needed = tasks_needed(Intervals(1), 0.12, 0.05, accuracy=0.01).n
    assert needed == tasks_needed(Intervals(1), 0.1, 0.05).n


# -- brackets and Rademacher complexity


@pytest.mark.parametrize("kind", KINDS)
def test_cell_ranges_contain_the_function(kind):
    rng = np.random.default_rng(KINDS.index(kind))
    for _ in range(60):
        f = random_function(rng, kind)
        edges = np.unique(np.concatenate([[0, 1], rng.random(6), rng.choice(f.breakpoints, 2)]))
        lo, hi = cell_ranges([f], edges)
        for g in range(edges.size - 1):
            x = np.linspace(edges[g], edges[g + 1], 400)[:-1]
            low, high = f.enclose(x)
            slack = 4e-15 * (1 + np.max(np.abs(f(x))))
            assert lo[0, g] <= np.min(low) + slack
            assert hi[0, g] >= np.max(high) - slack
            if kind in ("0", "1", "2"):  # exact there
                assert hi[0, g] - lo[0, g] <= np.ptp(f(x)) * 1.05 + 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_clip_is_the_minimum(kind):
    rng = np.random.default_rng(10 + KINDS.index(kind))
    for _ in range(60):
        f = random_function(rng, kind)
        upper = float(rng.normal())
        clipped = f.clip(upper)
        x = np.linspace(0, 1, 700)
        low, high = f.enclose(x)
        lo, hi = clipped.enclose(x)
        assert np.all(lo <= np.minimum(low, upper) + 1e-12)
        assert np.all(hi >= np.minimum(high, upper) - 1e-12)
        if kind != "enclosure":
            assert np.max(np.abs(clipped(x) - np.minimum(f(x), upper))) <= 1e-9
            assert clipped.maximise().upper <= upper + 1e-9


@pytest.mark.parametrize("kind", ["0", "1", "2", "rational"])
def test_rademacher_complexity_by_enumeration(kind):
    """All 2^7 signs, the inner maximum on a dense grid."""
    rng = np.random.default_rng(20 + KINDS.index(kind))
    duals = [random_function(rng, kind) for _ in range(7)]
    breaks = np.unique(np.concatenate([f.breakpoints for f in duals]))
    x = np.union1d(np.linspace(0, 1, 4000), np.concatenate([breaks, np.nextafter(breaks[1:], 0)]))
    values = np.array([f(x) for f in duals])
    truth = np.mean([np.max(np.array(s) @ values) / 7 for s in itertools.product((-1, 1), repeat=7)])
    found = rademacher_complexity(duals, key=KEY, draws=4000, delta=1e-6)
    spread = np.max(np.abs(values))
    assert abs(found.estimate - truth) <= 5 * spread / math.sqrt(4000)
    assert truth <= found.upper + 1e-6 * spread


def test_rademacher_complexity_in_blocks_is_the_same(monkeypatch):
    rng = np.random.default_rng(3)
    duals = [random_function(rng, "2") for _ in range(9)]
    whole = rademacher_complexity(duals, key=KEY, draws=50)
    monkeypatch.setattr("hyprax.tasks._brackets._BLOCK", 700)
    assert rademacher_complexity(duals, key=KEY, draws=50).estimate == pytest.approx(whole.estimate, rel=1e-12)


# -- simulation: the guarantee must fail in at most delta of many draws of the tasks


def worlds():
    """(name, draw a task, true loss, smallest true loss), losses in [0, 1]."""
    return {
        # loss 1[α < x], x uniform: L = 1 - α
        "thresholds": (lambda rng: threshold(rng.random()), lambda a: 1 - a, 0.0),
        # (α - x)^2 with x in {0.2, 0.9}: L = mean square
        "parabolas": (
            lambda rng: parabola(0.2 if rng.random() < 0.5 else 0.9),
            lambda a: 0.5 * ((a - 0.2) ** 2 + (a - 0.9) ** 2),
            0.35**2,
        ),
        # A rare disaster that small samples miss: most tasks lose a little at low α, few lose all at high α.
        "disasters": (
            lambda rng: threshold(0.5) * 0.05 if rng.random() > 0.04 else 1.0 - threshold(0.5),
            lambda a: 0.05 * 0.96 if a < 0.5 else 0.04,
            0.04,
        ),
        "rare": (
            lambda rng: threshold(0.5) * 0.02 if rng.random() > 0.06 else 1.0 - threshold(0.5),
            lambda a: 0.02 * 0.94 if a < 0.5 else 0.06,
            0.0188,
        ),
    }


def failures(name, n, delta, draws, target, **options):
    draw, truth, least = worlds()[name]
    failed = 0
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        duals = [draw(rng) for _ in range(n)]
        found = gap(Bounded(), n, delta, duals, target=target, key=jax.random.key(seed), **options)
        mean = PiecewiseFunction.mean(duals)
        at = truth(found.hyper)
        missed = at - least if target == "excess" else at - float(mean.enclose(found.hyper)[0])
        failed += missed > found.value + 1e-12
    return failed / draws


@pytest.mark.slow
@pytest.mark.parametrize("target", ["excess", "deviation"])
@pytest.mark.parametrize("name", ["thresholds", "parabolas", "disasters", "rare"])
def test_gap_holds_in_simulation(name, target):
    delta = 0.3
    assert failures(name, 12, delta, 120, target) <= delta


@pytest.mark.slow
@pytest.mark.parametrize("target", ["excess", "deviation"])
@pytest.mark.parametrize("name", ["thresholds", "parabolas", "disasters", "rare"])
def test_gap_holds_in_hundreds_of_draws(name, target):
    for n in (6, 30):
        assert failures(name, n, 0.2, 300, target) <= 0.2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["thresholds", "disasters", "rare"])
def test_split_bounds_hold_for_every_alpha_at_once(name):
    draw, truth, least = worlds()[name]
    delta, draws, n = 0.25, 60, 16
    missed = {"excess": 0, "risk": 0}
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        duals = [draw(rng) for _ in range(n)]
        hypers = [0.0, 0.3, 0.49, 0.5, 0.75, 1.0]
        missed["excess"] += any(
            truth(a) - least > split_excess_bound(duals, a, delta, key=KEY).bound + 1e-12 for a in hypers
        )
        missed["risk"] += any(truth(a) > split_risk_bound(duals, a, delta, key=KEY).bound + 1e-12 for a in hypers)
    assert max(missed.values()) / draws <= delta


def test_closed_form_bounds_hold_in_thousands_of_draws():
    """For thresholds the excess and the worst deviation have closed forms, so thousands of draws cost nothing."""
    rng = np.random.default_rng(0)
    n, delta, draws = 25, 0.1, 5000
    x = np.sort(rng.random((draws, n)), axis=1)
    # M, the share of x above α, is least (0) from the largest x on; L - M is worst at an x, from the right.
    grid = np.concatenate([np.zeros((draws, 1)), x], axis=1)
    shares = 1 - np.arange(n + 1) / n
    worst = np.max((1 - grid) - shares, axis=1)
    assert np.mean(worst > crossing_bound(Intervals(1), n, delta, "deviation")) <= delta
    assert np.mean(1 - x[:, -1] > crossing_bound(Intervals(1), n, delta, "excess")) <= delta


def test_the_split_bound_shrinks_like_one_over_n():
    """Tasks that agree on the optimum and differ in level: the bound is a few H ln(1/delta)/n, not one over root n."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 21)
    shape = 0.3 * (x - 0.5) ** 2
    level = rng.random(600) * 0.8
    rows = [np.stack([v[:-1], np.diff(v)], axis=1) for v in shape + level[:, None]]
    duals = [PiecewiseFunction.from_polynomials(x, row) for row in rows]
    small, large = gap(Bounded(), 150, 0.05, duals[:150], key=KEY), gap(Bounded(), 600, 0.05, duals, key=KEY)
    assert small.name == large.name == "split"
    assert small.value < 0.5 * small.reference
    assert large.value < 0.4 * small.value


# -- odd samples and bad input


def test_one_task_and_few_tasks_are_answered():
    for n in (1, 2, 3, 4):
        answer = gap(Intervals(1), n, 0.05, [parabola(0.3)] * n, key=KEY)
        assert answer.vacuous
        assert answer.hyper == pytest.approx(0.3)
        assert (n >= 4) == ("split" in answer.candidates)
        assert "vacuous" in str(answer)


def test_constant_duals_and_duplicates():
    duals = [PiecewiseFunction.constant((0.0, 1.0), 0.4)] * 200
    answer = gap(Bounded(), 200, 0.05, duals, key=KEY)
    assert 0 < answer.value < 0.05
    assert answer.kind == "certified"
    assert gap(Bounded(), 200, 0.05, duals, target="deviation", key=KEY).value < 0.05


def test_uncertified_duals_make_an_estimate():
    duals = [PiecewiseFunction.from_enclosures([0, 1], [0.2], [0.3], certified=False)] * 20
    answer = gap(Bounded(), 20, 0.05, duals, key=KEY)
    assert answer.kind == "estimated"
    assert "not certified" in str(answer)


def test_another_alpha_pays_for_its_distance():
    duals = [parabola(x) for x in np.linspace(0.2, 0.6, 40)]
    best, other = gap(Intervals(1), 40, 0.05, duals, key=KEY), gap(Intervals(1), 40, 0.05, duals, hyper=0.9, key=KEY)
    distance = other.candidates["crossings (Intervals)"] - best.candidates["crossings (Intervals)"]
    assert distance == pytest.approx(0.5**2, abs=1e-6)
    assert other.candidates["split"] > best.candidates["split"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gap(Intervals(1), 0, 0.05), "number of tasks must be an integer >= 1"),
        (lambda: gap(Intervals(1), 10, 0.0), "delta must lie in"),
        (lambda: gap(Intervals(1), 10, math.nan), "delta must lie in"),
        (
            lambda: gap(Intervals(1), 10, 0.05, target="regret"),  # pyright: ignore[reportArgumentType]  # to be refused
            "'excess' or 'deviation'",
        ),
        (lambda: gap(Intervals(1), 10, 0.05, accuracy=-1.0), "accuracy must be"),
        (
            lambda: gap("lasso", 10, 0.05),  # pyright: ignore[reportArgumentType]  # to be refused
            "structure must be a Structure",
        ),
        (lambda: gap([Intervals(1), Intervals(1, range=2.0)], 10, 0.05), "one range"),
        (lambda: gap(Bounded(), 10, 0.05), "duals must be given"),
        (lambda: gap(Bounded(), 3, 0.05, [parabola(0.5)]), "n = 3 tasks; got 1"),
        (lambda: gap(Bounded(), 0, 0.05, []), "number of tasks"),
        (lambda: gap(Bounded(), 1, 0.05, [parabola(0.5) * 9.0]), r"must lie in \[0, 1\]"),
        (lambda: gap(Bounded(), 1, 0.05, [parabola(0.5) - 0.1]), r"must lie in \[0, 1\]"),
        (lambda: gap(Bounded(), 2, 0.05, [parabola(0.5), PiecewiseFunction.constant((0, 2), 0.1)]), "one domain"),
        (
            lambda: gap(Bounded(), 1, 0.05, [lambda a: a]),  # pyright: ignore[reportArgumentType]  # to be refused
            "must be a PiecewiseFunction",
        ),
        (lambda: gap(Bounded(), 5, 0.05, [parabola(0.5)] * 5, hyper=2.0, key=KEY), "must lie in the domain"),
        (lambda: split_excess_bound([parabola(0.5)] * 3, 0.5, 0.05, key=KEY), "integer >= 4"),
        (lambda: split_excess_bound([parabola(0.5)] * 9, 0.5, 0.05, key=KEY, fraction=1.0), "fraction must lie"),
        (lambda: tasks_needed(Intervals(1), 0.0, 0.05), "epsilon must be above 0"),
        (lambda: tasks_needed(Intervals(1), 0.1, 0.05, accuracy=0.05), "above 0.1"),
        (lambda: tasks_needed(Bounded(), 0.1, 0.05), "no bound before tasks are seen"),
        (lambda: wealth_bound([0.5, 2.0], 0.05, 1.0), "at most upper"),
        (lambda: wealth_bound([0.5, math.nan], 0.05, 1.0), "at most upper"),
        (lambda: wealth_bound([0.5], 0.05, 1.0, [1.0]), r"bets must lie in \(0, 1\)"),
        (lambda: rademacher_complexity([], key=KEY), "integer >= 1"),
        (lambda: empirical_bernstein_bound([0.5], 0.05, 1.0), "integer >= 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # as for a user, whose arguments nobody checks
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
