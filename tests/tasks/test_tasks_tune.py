"""The global optimum over tasks: sweep against brute force, branch and bound against the sweep."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import PiecewiseFunction, Task, elastic_net_dual, erm, ridge_dual
from hyprax.tasks._extrema import minimise_all
from thoroughness import examples

DOMAIN = (0.01, 2.0)


def duals(rng, n):
    """Duals of small random tasks: elastic net, ridge, 0-1 loss."""
    found = []
    for _ in range(n):
        X = rng.normal(size=(16, 4))
        y = X @ (rng.normal(size=4) * rng.integers(0, 2, size=4)) + rng.normal(size=16)
        kind = rng.integers(3)
        if kind == 0:
            found.append(elastic_net_dual(Task.k_fold(X, y, np.arange(16) % 2), DOMAIN, penalty2=0.1))
        elif kind == 1:
            found.append(ridge_dual(Task.k_fold(X, y, np.arange(16) % 2), DOMAIN))
        else:
            found.append(
                ridge_dual(Task.k_fold(X, np.where(y > 0, 1.0, -1.0), np.arange(16) % 2), DOMAIN, loss="zero-one")
            )
    return found


@given(seed=st.integers(0, 2**32))
@examples(6, 25)
def test_sweep_is_below_every_value_of_the_mean(seed):
    rng = np.random.default_rng(seed)
    found = duals(rng, int(rng.integers(1, 7)))
    best = erm(found, epsilon=0.05)
    x = np.union1d(np.geomspace(*DOMAIN, 300).clip(*DOMAIN), np.concatenate([f.breakpoints for f in found]))
    lo = np.mean([f.enclose(x)[0] for f in found], axis=0)
    hi = np.mean([f.enclose(x)[1] for f in found], axis=0)
    assert best.lower <= np.min(hi) + 1e-12
    assert best.upper <= np.min(hi) + 1e-9
    inside = np.any((x[:, None] >= best.epsilon_set[:, 0]) & (x[:, None] <= best.epsilon_set[:, 1]), axis=1)
    assert np.all(inside[hi <= best.lower + 0.05])
    # Its ends may be one-sided limits at jumps; strictly inside, only αs that may be epsilon-optimal.
    within = np.any((x[:, None] > best.epsilon_set[:, 0]) & (x[:, None] < best.epsilon_set[:, 1]), axis=1)
    assert not np.any(within[lo > best.upper + 0.05 + 1e-9])
    assert best.certificate.kind == "certified"
    assert best.upper - best.lower <= float(best.certificate.bound)
    low, high = best.regrets()
    assert np.all((low >= 0) & (low <= high))


def test_the_minima_of_many_functions_are_those_of_each():
    rng = np.random.default_rng(5)
    found = duals(rng, 8)
    found += [PiecewiseFunction.from_rationals([0.01, 1, 2.0], [[1, k, 1]] * 2, [[1, 0.5, k]] * 2) for k in range(3)]
    found = [found[i] for i in rng.permutation(len(found))]
    assert list(minimise_all(found)) == [f.minimise() for f in found]


@pytest.mark.slow
@given(seed=st.integers(0, 2**32))
@examples(8, 25)
def test_branch_and_bound_agrees_with_the_sweep(seed):
    rng = np.random.default_rng(seed)
    found = duals(rng, 3)
    sweep, branch = erm(found, epsilon=0.02), erm(found, method="branch", gap=1e-4, epsilon=0.02)
    assert branch.lower <= sweep.upper
    assert sweep.lower <= branch.upper
    assert branch.upper - branch.lower <= 1e-4 + 1e-12
    assert branch.certificate.kind == "certified"
    # Its epsilon-optimal set contains the true one.
    for a, b in sweep.epsilon_set:
        middle = 0.5 * (a + b)
        if sweep.mean.enclose(middle)[1] <= sweep.lower + 0.02:
            assert np.any((branch.epsilon_set[:, 0] <= middle) & (middle <= branch.epsilon_set[:, 1]))


def test_known_optimum_of_two_parabolas():
    # (x - 1)^2 and 3 (x - 2)^2 on [0, 4]: the mean is least at 7/4, with value 3/8.
    f = PiecewiseFunction.from_polynomials([0.0, 4.0], [[1.0, -8.0, 16.0]])
    g = PiecewiseFunction.from_polynomials([0.0, 4.0], [[12.0, -48.0, 48.0]])
    best = erm([f, g], epsilon=0.5)
    np.testing.assert_allclose([best.hyper, best.value], [1.75, 0.375], rtol=1e-14)
    np.testing.assert_allclose(best.epsilon_set, [[1.25, 2.25]], rtol=1e-12)
    np.testing.assert_allclose([e.hyper for e in best.task_optima], [1.0, 2.0])
    np.testing.assert_allclose(best.regrets(), [[0.75**2, 3 * 0.25**2]] * 2)


def test_one_sided_limit_at_a_jump_is_found():
    f = PiecewiseFunction.from_polynomials([0.0, 1.0, 2.0], [[1.0, -1.0], [5.0, 0.0]])
    best = erm([f])
    assert best.hyper == np.nextafter(1.0, 0.0)  # at 1 the function has jumped to 5
    assert float(f(best.hyper)) <= best.upper < 1e-13
    assert best.regrets()[1] < 1e-13


def test_enclosures_give_a_certified_gap_and_unproved_radii_an_estimate():
    f = PiecewiseFunction.from_enclosures([0.0, 1.0, 2.0], [0.0, 0.5], [0.2, 0.6])
    best = erm([f, f])
    assert float(best.certificate.bound) >= 0.2
    assert best.certificate.kind == "certified"
    guess = PiecewiseFunction.from_enclosures([0.0, 1.0, 2.0], [0.0, 0.5], [0.2, 0.6], certified=False)
    assert erm([f, guess]).certificate.kind == "estimated"
    assert erm([f, guess], method="branch", gap=0.3).certificate.kind == "estimated"


def test_picture_has_every_part():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    best = erm(duals(np.random.default_rng(0), 6))
    ax = best.plot(xlabel="penalty")
    legend = ax.get_legend()
    assert legend is not None
    words = [text.get_text() for text in legend.get_texts()]
    plt.close("all")
    assert len(words) == 4
    assert "6 tasks" in words
    assert ax.get_xlabel() == "penalty"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, g: erm([]), "at least one"),
        (lambda f, g: erm([f, g]), "one domain"),
        (lambda f, g: erm([f], gap=0.0), "gap"),
        (lambda f, g: erm([f], epsilon=-1.0), "epsilon"),
    ],
)
def test_bad_input_says_what_is_allowed(call, words):
    f, g = PiecewiseFunction.constant((0.0, 1.0), 1.0), PiecewiseFunction.constant((0.0, 2.0), 1.0)
    with pytest.raises(ValueError, match=words):
        call(f, g)


def test_ranges_of_pieces_are_as_wide_as_their_enclosures():
    flat = PiecewiseFunction.from_enclosures([0.0, 1.0, 2.0], [0.125, 0.5], [0.1875, 0.5])
    bowl = PiecewiseFunction.from_polynomials([0.0, 2.0], [[1.0, -4.0, 4.0]])
    bowl = dataclasses.replace(bowl, radius=np.array([0.25]))
    for f, least, most in ((flat, [0.125, 0.5], [0.1875, 0.5]), (bowl, [-0.25], [1.25])):
        low, high = f.ranges()
        assert np.all(low <= least)
        assert np.all(high >= most)
        np.testing.assert_allclose([low, high], [least, most], rtol=1e-12)
    best = erm([flat, bowl], method="branch", gap=1e-9)
    np.testing.assert_allclose(best.lower, 0.5 * (0.125 - 0.25), rtol=1e-8)
