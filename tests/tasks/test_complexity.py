"""Counts of labellings against brute force, and pseudo-dimensions worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from hyprax.tasks import gap
from hyprax.tasks._cells import log_cells
from hyprax.tasks.complexity import (
    Bounded,
    ElasticNetPenalties,
    Intervals,
    Lipschitz,
    Oscillations,
    Pieces,
    PseudoDimension,
    RidgePenalties,
)


def cells_by_integers(s, k, d):
    return d * (2 * d - 1) ** (k - 1) * sum(math.comb(s, j) * 4**j for j in range(k + 1))


def labellings_of_intervals(rng, n, count):
    """Distinct labellings of n unions of at most `count` intervals whose ends, open or closed, come from few places."""
    places = np.arange(6 * count)
    points = np.sort(np.concatenate([places, places + 0.5]))
    sets = np.zeros((n, points.size), dtype=bool)
    for i, _ in itertools.product(range(n), range(count)):
        a, b = np.sort(rng.choice(places, 2))
        left = points >= a if rng.random() < 0.5 else points > a
        right = points <= b if rng.random() < 0.5 else points < b
        sets[i] |= left & right
    return len({tuple(column) for column in sets.T})


@pytest.mark.parametrize("count", [1, 2, 4])
def test_unions_of_intervals_have_no_more_labellings_than_counted(count):
    rng = np.random.default_rng(count)
    for n in (1, 2, 3, 5, 9):
        most = max(labellings_of_intervals(rng, n, count) for _ in range(300))
        assert most <= round(math.exp(Intervals(count).log_labellings(n)))


def test_the_count_of_labellings_is_attained():
    # n disjoint intervals with gaps between: n of them, and the outside, and each overlap of neighbours.
    ends = [(2 * i, 2 * i + 3) for i in range(5)]
    points = np.arange(-1, 15) + 0.5
    seen = {tuple(a < p < b for a, b in ends) for p in points}
    assert len(seen) == 10  # 2 n + 1 = 11 less one: the outside is met at both ends
    assert math.exp(Intervals(1).log_labellings(5)) == pytest.approx(11)


@pytest.mark.parametrize(
    ("structure", "dimension"),
    [
        (Intervals(1), 2),  # 2^2 <= 5, 2^3 > 7
        (Intervals(2), 4),  # 2^4 <= 17, 2^5 > 21
        (Oscillations(0), 0),
        (Oscillations(1), 2),
        (Pieces(1), 0),
        (Pieces(2), 1),  # thresholds: 2 <= 2, 4 > 3
        (Intervals.ridge(1), 4),
        (Intervals.lasso(0), 2),  # one convex quadratic
        (Intervals.rational(0), 2),
        (Intervals.rational(2), 4),
        (PseudoDimension(7), 7),
        (PseudoDimension(300), 300),
        (Bounded(), math.inf),
        (Lipschitz(1.0, (0, 1)), math.inf),
    ],
)
def test_pseudo_dimension_by_hand(structure, dimension):
    assert structure.pseudo_dimension() == dimension


@pytest.mark.parametrize("count", [1, 3, 10, 1000, 10**9])
def test_pseudo_dimension_is_the_last_n_that_fits(count):
    n = int(Intervals(count).pseudo_dimension())
    assert 2**n <= 2 * n * count + 1
    assert 2 ** (n + 1) > 2 * (n + 1) * count + 1


def test_cells_by_exact_integers():
    for s, k, d in itertools.product((0, 1, 3, 7, 40), (1, 2, 5), (1, 2, 4)):
        assert log_cells(s, k, d) == pytest.approx(math.log(cells_by_integers(s, k, d)), rel=1e-12)


def test_cells_bound_the_cells_of_polynomials_on_the_line():
    rng = np.random.default_rng(0)
    for _ in range(200):
        s, d = rng.integers(1, 5), rng.integers(1, 5)
        roots = np.concatenate([np.roots(rng.normal(size=d + 1)) for _ in range(s)])
        real = np.unique(roots[np.abs(roots.imag) < 1e-9].real)
        assert 2 * real.size + 1 <= math.exp(log_cells(int(s), 1, int(d))) * (1 + 1e-12)


def test_level_sets_of_ridge_losses_have_no_more_intervals_than_rank_plus_one():
    rng = np.random.default_rng(1)
    penalties = np.geomspace(1e-6, 1e6, 4000)
    most = 0
    for _ in range(200):
        rank = int(rng.integers(1, 4))
        s, c = 10 ** rng.uniform(-3, 3, rank), rng.normal(size=(5, rank)) * 10 ** rng.uniform(-2, 2, rank)
        loss = np.mean((rng.normal(size=(5, 1)) - (c / s) @ (s[:, None] / (s[:, None] + penalties))) ** 2, axis=0)
        for z in np.quantile(loss, np.linspace(0.02, 0.98, 30)):
            below = np.concatenate([[False], loss < z])
            count = np.sum(below[1:] & ~below[:-1])
            most = max(most, count)
            assert count <= rank + 1
    assert most >= 2  # the search does meet losses that are not unimodal


def test_counts_of_several_penalties_by_exact_integers():
    assert RidgePenalties(5, 1).log_labellings(7) == pytest.approx(math.log(cells_by_integers(7, 1, 10)))
    assert RidgePenalties(4, 3, splits=5).log_labellings(9) == pytest.approx(math.log(cells_by_integers(9, 3, 40)))
    n, k, d = 6, 2, 3
    most = d * (2 * d - 1) * sum((4 * 2 * n * k * d * 3**d) ** j // math.factorial(j) for j in range(3))
    expected = math.log(most) + math.log(cells_by_integers(n, 2, 2 * d * k))
    assert ElasticNetPenalties(d, splits=k).log_labellings(n) == pytest.approx(expected)
    assert ElasticNetPenalties(d, splits=k).log_labellings(n) >= math.log(
        cells_by_integers(2 * n * k * d * 3**d, 2, d) * cells_by_integers(n, 2, 2 * d * k)
    )
    # Linear in the features for the elastic net, a logarithm for ridge: features and hyperparameters are kept apart.
    few, many = (ElasticNetPenalties(d).pseudo_dimension() for d in (100, 1000))
    assert 8 < many / few < 10
    assert RidgePenalties(1000, 2).pseudo_dimension() < 2 * RidgePenalties(100, 2).pseudo_dimension()
    assert RidgePenalties(100, 6).pseudo_dimension() > 2.5 * RidgePenalties(100, 2).pseudo_dimension()


def test_losses_of_two_ridge_penalties_have_no_more_labellings_than_counted():
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(np.geomspace(1e-4, 1e4, 60), np.geomspace(1e-4, 1e4, 60)), axis=-1).reshape(-1, 2)
    for n in (1, 2, 3):
        labels = []
        for _ in range(n):
            X, y = rng.normal(size=(3, 2)), rng.normal(size=3) * 3
            A = X.T @ X + grid[:, :, None] * np.eye(2)
            w = np.linalg.solve(A, (X.T @ y)[:, None])[..., 0]
            V, u = rng.normal(size=(4, 2)), rng.normal(size=4)
            loss = np.sum((u - w @ V.T) ** 2, axis=1)
            labels.append(loss < np.quantile(loss, rng.uniform(0.1, 0.9)))
        seen = len({tuple(x) for x in np.array(labels).T})
        assert n < seen <= math.exp(RidgePenalties(2, 2).log_labellings(n))


def test_a_choice_made_before_is_paid_for():
    structure = ElasticNetPenalties(20, splits=5)
    one, five = gap(structure, 10_000, 0.05), gap(structure, 10_000, 0.05, choices=5)
    assert five.value == pytest.approx(gap(structure, 10_000, 0.01).value)
    assert (five.delta, five.reference) == (0.05, one.reference)
    assert any("5 choices" in words for words in five.assumptions)
    with pytest.raises(ValueError, match="choices must be an integer"):
        gap(structure, 10, 0.05, choices=0)


def test_neural_network_counts_by_exact_integers():
    # widths (1, 1, 1), no biases, 2 examples, ReLU against identity: hidden 2 polynomials of degree 1 in 2 variables;
    # then those and one loss of degree 2 * 3 in 3 variables.
    net = Intervals.network((1, 1, 1), examples=2, biases=False)
    b0 = cells_by_integers(2, 2, 1) * cells_by_integers(3, 3, 6)
    assert net.log_labellings(10) == pytest.approx(math.log(20 * b0 + 1))
    deep = Intervals.network((3, 4, 2, 3), examples=5, breakpoints=2, degree=2, loss="zero-one")
    b0 = cells_by_integers(40, 17, 1) * cells_by_integers(20, 27, 4) * cells_by_integers(40 + 20 + 15, 36, 10)
    assert deep.log_labellings(1) == pytest.approx(math.log(2 * b0 + 1))
    graph = Intervals.graph_kernel(nodes=6, features=3, hidden=2, classes=3, degree=2)
    b0 = cells_by_integers(12, 7, 3) * cells_by_integers(12 + 18, 13, 6)
    assert graph.log_labellings(4) == pytest.approx(math.log(8 * b0 + 1))
    assert Intervals.training_optimum(weights=4, degree=2, pieces=3, boundaries=5).log_labellings(2) == pytest.approx(
        math.log(4 * 3 * cells_by_integers(6, 5, 2) + 1)
    )
    optimum = Intervals.validation_optimum(weights=2, degree=2, pieces=3, boundaries=4, validation_pieces=2)
    assert optimum.log_labellings(2) == pytest.approx(math.log(4 * 6 * cells_by_integers(4 + 2 + 1, 3, 2) + 1))


def test_networks_of_real_size_stay_finite():
    net = Intervals.network((784, 128, 64, 10), examples=1000, degree=2, breakpoints=2)
    assert math.isfinite(net.pseudo_dimension())
    assert net.pseudo_dimension() > Intervals.network((784, 128, 10), examples=1000).pseudo_dimension()
    cora = Intervals.graph_kernel(nodes=2708, features=1433, hidden=16, classes=7, degree=3)
    assert math.isfinite(cora.pseudo_dimension())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Intervals(0), "count must be an integer >= 1"),
        (
            lambda: Intervals(1.5),  # pyright: ignore[reportArgumentType]  # to be refused
            "count must be an integer",
        ),
        (lambda: Intervals(1, range=0.0), "range must be a finite number > 0"),
        (lambda: Intervals(1, range=math.nan), "range must be a finite number > 0"),
        (lambda: Lipschitz(1.0, (1, 0)), "finite a < b"),
        (lambda: Lipschitz(-1.0, (0, 1)), "constant must be"),
        (lambda: Intervals.network((3, 4), examples=2), "at least three"),
        (
            lambda: Intervals.network((3, 4, 1), examples=2, loss="hinge"),  # pyright: ignore[reportArgumentType]  # as above
            "'squared' or 'zero-one'",
        ),
        (
            lambda: Intervals.graph_kernel(nodes=0, features=1, hidden=1, classes=2, degree=1),
            "nodes must be an integer >= 1",
        ),
        (lambda: Intervals.lasso(-1), "Intervals.lasso: kinks must be an integer >= 0"),
        (lambda: Intervals.ridge(3, range=0.0), "range must be a finite number > 0"),
    ],
)
@pytest.mark.usefixtures("unchecked")  # as for a user, whose arguments nobody checks
def test_bad_sizes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()
