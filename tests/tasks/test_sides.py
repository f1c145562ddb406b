"""What is counted in an enclosure has a side: brackets hold what is there, bounds hold where a jump may hide."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.tasks import PiecewiseFunction, SVMPath, Task, dispersion, erm, play, svm_dual
from thoroughness import examples

KEY = jax.random.key(0)


def hidden(rng, width):
    """A step function on [0, 1] with values in [0, 1], and an enclosure that leaves `width` around each jump open."""
    jumps = np.sort(rng.uniform(0.05, 0.95, int(rng.integers(1, 6))))
    jumps = jumps[np.append(True, np.diff(jumps) > 3 * width)]
    values = rng.permutation(np.linspace(0, 1, jumps.size + 1))
    exact = PiecewiseFunction.from_polynomials([0, *jumps, 1], values[:, None])
    edges = np.concatenate([[0], np.stack([jumps - width / 3, jumps + width / 2], axis=1).ravel(), [1]])
    low, high = np.repeat(values, 2)[:-1], np.repeat(values, 2)[:-1]
    low[1::2], high[1::2] = 0.0, 1.0
    return jumps, exact, PiecewiseFunction.from_enclosures(edges, low, high)


@pytest.mark.parametrize("width", [1e-10, 1e-6, 1e-3, 0.03])
def test_every_hidden_jump_is_bracketed_and_counted(width):
    rng = np.random.default_rng(0)
    for _ in range(10):
        found = [hidden(rng, width) for _ in range(6)]
        for jumps, exact, f in found:
            brackets = f.jumps()
            assert len(brackets) == jumps.size
            assert np.all((brackets[:, 0] <= jumps) & (jumps <= brackets[:, 1]))
            np.testing.assert_array_equal(brackets, f.undecided())
            assert f.local_maxima().size == exact.local_maxima().size
            assert f.oscillations() == exact.oscillations()
        exact, enclosed = [x for _, x, _ in found], [f for *_, f in found]
        for rho in (1e-7, 0.01, 0.2, 1.0):
            assert dispersion(exact, rho) <= dispersion(enclosed, rho)
        shapes = erm(enclosed).shapes()
        np.testing.assert_array_equal(shapes["undecided"], shapes["jumps"])


@given(seed=st.integers(0, 2**32))
@examples(20, 100)
def test_counts_in_random_enclosures_are_from_below(seed):
    rng = np.random.default_rng(seed)
    _, exact, _ = hidden(rng, 1e-3)
    edges = np.unique(np.concatenate([[0, 1], rng.random(int(rng.integers(1, 30)))]))
    cells = [exact.restrict(a, b) for a, b in itertools.pairwise(edges)]
    f = PiecewiseFunction.from_enclosures(
        edges, [c.minimise().lower - 0.1 * rng.random() for c in cells], [c.maximise().upper for c in cells]
    )
    assert f.local_maxima().size <= exact.local_maxima().size
    assert f.oscillations() <= exact.oscillations()
    assert len(f.jumps()) <= exact.n_pieces - 1
    for place in exact.breakpoints[1:-1]:
        inside = (f.undecided()[:, 0] <= place) & (place <= f.undecided()[:, 1])
        assert inside.any() or np.any(f.jumps()[:, 0] == place)


@pytest.mark.parametrize("width", [1e-9, 1e-5, 1e-2])
@pytest.mark.parametrize("feedback", ["full", "semi-bandit"])
def test_the_regret_bounds_hold_for_needles_that_enclosures_hide(width, feedback):
    """Every task is 1 but 0 on one needle: whoever sees no jump promises a regret that is far too small."""
    needle = PiecewiseFunction.from_polynomials([0, 0.5, 0.52, 1], [[1.0], [0.0], [1.0]])
    edges = [0, 0.5 - width / 3, 0.5 + width / 3, 0.52 - width / 3, 0.52 + width / 3, 1]
    f = PiecewiseFunction.from_enclosures(edges, [1.0, 0, 0, 0, 1], [1.0, 1, 0, 1, 1])
    rounds = 30
    run = play([f] * rounds, key=KEY, feedback=feedback)
    truth = float(np.sum(needle(run.hypers)))  # the least sum of losses is 0
    assert truth <= run.regret + 1e-9
    assert run.expected_regret <= run.integral_bound + 1e-9
    assert run.integral_bound <= run.bound + 1e-9
    assert run.k == rounds or run.rho < 0.02
    exact = play([needle] * rounds, key=KEY, feedback=feedback)
    assert run.bound >= 0.99 * exact.bound
    assert run.doubt <= 1e-6 + 4 * width * rounds * (1 if feedback == "full" else 50)


def test_regrets_of_enclosures_have_two_sides():
    f = PiecewiseFunction.from_enclosures([0.0, 1.0, 2.0], [0.0, 0.5], [0.2, 0.6])
    low, high = erm([f, f]).regrets()
    assert np.all(low == 0)
    assert np.all(high >= 0.2)


def test_every_sign_change_of_a_support_vector_machine_is_a_jump():
    rng = np.random.default_rng(1)
    X, V = rng.normal(size=(30, 3)), rng.normal(size=(40, 3))
    y, v = np.sign(X[:, 0] + rng.normal(size=30)), np.sign(V[:, 0] + rng.normal(size=40))
    domain = (1e-3, 5.0)
    task, path = Task.hold_out(X, y, V, v), SVMPath.of(X, y, domain)
    margins = path.weights @ (np.column_stack([V, np.ones(40)]) * v[:, None]).T  # linear between kinks
    assert len(svm_dual(task, domain, loss="zero-one").jumps()) == np.sum(margins[1:] * margins[:-1] < 0)
    assert np.max(path.weight_error) < 1e-9  # near rounding, not its square root
    hinge = svm_dual(task, domain)
    assert np.max(hinge.radius) < 1e-8


def test_one_task_that_is_not_known_does_not_spoil_the_mean():
    rng = np.random.default_rng(2)
    good = [hidden(rng, 1e-9)[1] + 0.1 for _ in range(5)]
    bad = PiecewiseFunction.from_enclosures([0.0, 1.0], [0.0], [1e12])
    names = ["a", "b", "c", "bad", "e", "f"]
    duals = [*good[:3], bad, *good[3:]]
    spoiled = erm(duals, names=names)
    assert spoiled.loose == ("bad",)
    assert float(spoiled.certificate.bound) > 1e10
    assert "bad" in repr(spoiled)
    clean = erm(duals, names=names, set_aside=1e-3)
    assert clean.set_aside == ("bad",)
    assert clean.names == ("a", "b", "c", "e", "f")
    assert float(clean.certificate.bound) < 1e-9
    assert clean.hyper == erm(good).hyper
    with pytest.raises(ValueError, match="at least one task"):
        erm([bad], set_aside=1.0)
