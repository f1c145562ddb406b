"""Piecewise functions against direct evaluation and brute force."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import PiecewiseFunction
from thoroughness import examples

A, B = 0.5, 3.0


def random_function(rng, degree=None, jumps=True):
    """A random piecewise polynomial on [A, B], and its plain evaluation in the local coordinate."""
    k = int(rng.integers(1, 7))
    b = np.concatenate([[A], np.sort(rng.uniform(A, B, k - 1)), [B]])
    c = rng.normal(size=(k, (int(rng.integers(0, 7)) if degree is None else degree) + 1))
    if not jumps:
        for i in range(1, k):
            c[i, 0] = c[i - 1].sum()
    return PiecewiseFunction.from_polynomials(b, c), direct(b, c)


def direct(b, c, d=None):
    def value(x):
        k = np.clip(np.searchsorted(b, x, side="right") - 1, 0, len(b) - 2)
        t = (x - b[k]) / (b[k + 1] - b[k])
        powers = t[:, None] ** np.arange(c.shape[1])
        top = np.sum(c[k] * powers, axis=1)
        return top if d is None else top / np.sum(d[k] * t[:, None] ** np.arange(d.shape[1]), axis=1)

    return value


def random_rational(rng):
    k, n = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    b = np.concatenate([[A], np.sort(rng.uniform(A, B, k - 1)), [B]])
    num, den = rng.normal(size=(k, n + 1)), np.abs(rng.normal(size=(k, n + 1)))
    den[:, 0] += 0.05
    den[:, 1:] *= rng.choice([1, -1], size=(k, 1)) * (0.9 * den[:, :1] / den[:, 1:].sum(axis=1, keepdims=True))
    return PiecewiseFunction.from_rationals(b, num, den), direct(b, num, den)


def sides(f, points=400):
    """A fine grid with both sides of every breakpoint."""
    inner = f.breakpoints[1:-1]
    return np.union1d(np.linspace(A, B, points), np.concatenate([inner, np.nextafter(inner, -np.inf)]))


@pytest.mark.parametrize("make", [random_function, random_rational])
@given(seed=st.integers(0, 2**32))
@examples(25, 150)
def test_value_and_enclosure(make, seed):
    f, plain = make(np.random.default_rng(seed))
    x = np.linspace(A, B, 101)
    truth = plain(x)
    scale = 1 + np.max(np.abs(truth))
    np.testing.assert_allclose(f(x), truth, rtol=0, atol=1e-11 * scale)
    lo, hi = f.enclose(x)
    assert np.all(lo <= truth + 1e-13 * scale)
    assert np.all(truth - 1e-13 * scale <= hi)
    assert f.is_exact


@pytest.mark.parametrize("make", [random_function, random_rational])
@given(seed=st.integers(0, 2**32))
@examples(25, 150)
def test_extrema_bound_every_value_and_are_attained(make, seed):
    f, _ = make(np.random.default_rng(seed))
    x = sides(f)
    values = f(x)
    low, high = f.minimise(), f.maximise()
    noise = 1e-12 * (1 + np.max(np.abs(values)))
    assert low.lower <= np.min(values) + noise
    assert low.upper - low.lower <= 1e-9 * (1 + np.max(np.abs(values)))
    assert np.min(values) - low.value <= 0.02 * (1 + np.ptp(values)) * len(f.breakpoints)  # the grid is that fine
    assert high.upper >= np.max(values) - noise
    # The point named reaches the value, from one side at least, up to the slope times one step of the grid of floats.
    noise += 1e-14 * (1 + np.max(np.abs(values))) / np.min(np.diff(f.breakpoints))
    near = np.array([low.hyper, np.nextafter(low.hyper, A), np.nextafter(low.hyper, B)]).clip(A, B)
    assert np.min(np.abs(f(near) - low.value)) <= noise


@given(seed=st.integers(0, 2**32))
@examples(15, 100)
def test_arithmetic_is_pointwise_and_its_radius_holds(seed):
    rng = np.random.default_rng(seed)
    (f, pf), (g, pg), (r, pr) = random_function(rng), random_function(rng), random_rational(rng)
    x = np.linspace(A, B, 77)
    for function, truth in [
        (f + g, pf(x) + pg(x)),
        (f - g, pf(x) - pg(x)),
        (-f, -pf(x)),
        (f * 3.7, 3.7 * pf(x)),
        (2.0 - f + 1, 3.0 - pf(x)),
        (r + f, pr(x) + pf(x)),
        (PiecewiseFunction.mean([f, g, r]), (pf(x) + pg(x) + pr(x)) / 3),
    ]:
        lo, hi = function.enclose(x)
        noise = 1e-13 * (1 + np.max(np.abs(truth)))
        assert np.all((lo - noise <= truth) & (truth <= hi + noise))
        assert np.max(hi - lo) <= 1e-8 * (1 + np.max(np.abs(truth)))
    part = f.restrict(1.0, 2.0)
    y = np.linspace(1, 2, 33)
    np.testing.assert_allclose(part(y), pf(y), atol=1e-12 * (1 + np.max(np.abs(pf(y)))))
    assert part.domain == (1.0, 2.0)
    lo, hi = f.bounds(1.0, 2.0)
    assert lo <= np.min(pf(y)) + 1e-12
    assert hi >= np.max(pf(y)) - 1e-12


def test_thousands_of_merged_pieces_lose_no_digits():
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(250):
        b = np.union1d(rng.uniform(A, B, 12), [A, B])
        c = rng.normal(size=(len(b) - 1, 3)) * 10.0 ** rng.integers(-3, 4)
        pairs.append((PiecewiseFunction.from_polynomials(b, c), direct(b, c)))
    mean = PiecewiseFunction.mean([f for f, _ in pairs])
    assert mean.n_pieces > 3000
    x = rng.uniform(A, B, 500)
    truth = np.mean(np.array([p(x) for _, p in pairs], dtype=np.longdouble), axis=0)
    size = np.mean([np.abs(p(x)) for _, p in pairs], axis=0)
    assert np.max(np.abs(mean(x) - truth) / size) < 1e-14
    lo, hi = mean.enclose(x)
    assert np.all((lo <= truth) & (truth <= hi))


@given(seed=st.integers(0, 2**32))
@examples(25, 150)
def test_level_set_is_where_the_function_is_below(seed):
    rng = np.random.default_rng(seed)
    f, plain = random_function(rng)
    x = rng.uniform(A, B, 300)
    values = plain(x)
    z = float(rng.choice(values))
    intervals = f.level_set(z + 1e-9)
    inside = np.any((x[:, None] >= intervals[:, 0]) & (x[:, None] <= intervals[:, 1]), axis=1)
    assert np.all(inside[values <= z])
    assert not np.any(inside[values > z + 2e-9 + 1e-9 * np.max(np.abs(f.numerator))])
    assert np.all(intervals[1:, 0] > intervals[:-1, 1])


def test_level_set_of_everything_and_of_nothing():
    f = PiecewiseFunction.from_polynomials([A, 1, B], [[1.0, 1], [0, 2]])
    np.testing.assert_array_equal(f.level_set(10.0), [[A, B]])
    assert f.level_set(-1e-3).shape == (0, 2)
    # A minimum that only touches the threshold is in the set.
    g = PiecewiseFunction.from_polynomials([-1.0, 1.0], [[1.0, -4, 4]])
    (found,) = g.level_set(0.0)
    assert found[0] <= 0 <= found[1]
    assert np.ptp(found) < 1e-5


def test_shape_of_known_functions():
    # |x - 1| up to 2, a jump down to 0 there, a constant to 3.
    f = PiecewiseFunction.from_polynomials([0.0, 1, 2, 3], [[1, -1], [0, 1], [0, 0]])
    np.testing.assert_array_equal(f.kinks(), [1.0])
    np.testing.assert_array_equal(f.jumps(), [[2.0, 2.0]])
    np.testing.assert_allclose(f.local_maxima(), [0.0, 2.0])
    assert f.oscillations() == 3
    assert f(2.0) == 0.0  # the piece to the right
    wave = np.polynomial.chebyshev.Chebyshev.basis(7, domain=[0, 1]).convert(kind=np.polynomial.Polynomial)
    c = np.asarray(wave(np.polynomial.Polynomial([0, 1])).coef)
    g = PiecewiseFunction.from_polynomials([0.0, 1.0], c[None])
    assert g.oscillations() == 7
    turning = 0.5 - 0.5 * np.cos(np.pi * np.arange(8) / 7)
    np.testing.assert_allclose(g.local_maxima(), turning[1::2], atol=1e-7)
    assert PiecewiseFunction.constant((0.0, 1.0), 3.0).oscillations() == 0
    np.testing.assert_allclose(PiecewiseFunction.constant((0.0, 1.0), 3.0).local_maxima(), [0.5])


@given(seed=st.integers(0, 2**32))
@examples(15, 100)
def test_oscillations_against_counting_on_a_grid(seed):
    f, _ = random_function(np.random.default_rng(seed), degree=2)
    values = f(sides(f, 4000))
    most = 0
    for z in np.random.default_rng(1).choice(values, 60):
        sign = np.sign(values - z - 1e-7)
        most = max(most, int(np.sum(sign[1:] != sign[:-1])))
    assert most <= f.oscillations() <= 3 * f.n_pieces


def test_enclosures_add_and_bound():
    f = PiecewiseFunction.from_enclosures([A, 1.0, B], [0.0, 2.0], [1.0, 2.5])
    assert not f.is_exact
    low = f.minimise()
    assert low.lower <= 0.0
    assert low.upper >= 1.0
    assert low.upper <= 1.0 + 1e-12
    lo, hi = (f + f).enclose(0.7)
    assert lo <= 0.0
    assert hi >= 2.0
    np.testing.assert_allclose(f.level_set(0.5), [[A, 1.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: PiecewiseFunction.constant((1.0, 0.0), 1.0), "ascending"),
        (lambda: PiecewiseFunction.from_polynomials([0.0, 1.0], [[np.nan]]), "finite"),
        (lambda: PiecewiseFunction.from_polynomials([0.0, 1.0, 2.0], [[1.0]]), "K = 2"),
        (lambda: PiecewiseFunction.from_rationals([0.0, 1.0], [[1.0, 0]], [[-1.0, 2]]), "positive"),
        (lambda: PiecewiseFunction.from_rationals([0.0, 1.0], [[1.0, 0, 0]], [[1.0, -4, 4]]), "positive"),
        (lambda: PiecewiseFunction.from_enclosures([0.0, 1.0], [1.0], [0.0]), "lo <= hi"),
        (lambda: PiecewiseFunction.constant((0.0, 1.0), 1.0)(2.0), "domain"),
        (lambda: PiecewiseFunction.constant((0.0, 1.0), 1.0)(np.nan), "domain"),
        (lambda: PiecewiseFunction.constant((0.0, 1.0), 1.0).restrict(0.5, 0.5), "restrict"),
        (lambda: PiecewiseFunction.constant((0.0, 1.0), 1.0) + PiecewiseFunction.constant((0.0, 2.0), 1.0), "domain"),
        (lambda: PiecewiseFunction.mean([]), "at least one"),
    ],
)
def test_bad_input_says_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_a_sum_made_in_blocks_is_the_sum(monkeypatch):
    rng = np.random.default_rng(3)
    functions = []
    for _ in range(3):
        edges = np.concatenate([[0.0], np.sort(rng.uniform(size=8)), [1.0]])
        functions.append(PiecewiseFunction.from_polynomials(edges, rng.normal(size=(9, 3))))
    whole = PiecewiseFunction.mean(functions)
    monkeypatch.setattr("hyprax.tasks._piecewise._BLOCK", 5)
    parts = PiecewiseFunction.mean(functions)
    np.testing.assert_array_equal(parts.breakpoints, whole.breakpoints)
    np.testing.assert_allclose(parts.numerator, whole.numerator, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(parts.radius, whole.radius, rtol=1e-10)
