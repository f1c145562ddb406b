"""Folds in one program: the same losses and gradients as one by one, and the searches in step find minima."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import scipy.special

import hyprax as hx
from hyprax.search._lockstep import Held, Limits, minimised

RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 3))
U = X @ [1.0, -0.5, 0.0]
LABELS = np.arange(24) % 3


GROUPS = np.arange(3)
COUNTS, OFFSET = RNG.poisson(np.exp(0.5 * U)), 0.1 * RNG.normal(size=24)
NUMBERS = U + RNG.normal(size=24)
WITH_ONES = np.c_[X, np.ones(24)]


def squared(w):
    r = X @ w - NUMBERS
    return r**2 / 2, r, X


def counts(w):
    u = X @ w + OFFSET
    return np.exp(u) - COUNTS * u, np.exp(u) - COUNTS, X


def classes(w):
    u = WITH_ONES @ w.reshape(4, 3)
    p = scipy.special.softmax(u, axis=1)
    return -np.log(p[np.arange(24), LABELS]), p - np.eye(3)[LABELS], WITH_ONES


TERMS = {"penalty": "penalty", "penalty_groups": GROUPS}
EACH = np.repeat(np.array([[0], [1], [2], [-1]]), 3, axis=1)
FAMILIES = {
    "squared": (squared, hx.families.Squared(X, NUMBERS, **TERMS), GROUPS),
    "counts": (counts, hx.families.Poisson(X, COUNTS, offset=OFFSET, **TERMS), GROUPS),
    "classes": (
        classes,
        hx.families.Softmax(WITH_ONES, LABELS, classes=3, free=[3], penalty="penalty", penalty_groups=EACH),
        EACH,
    ),
}


def held_out(rows, groups, strengths, masks):
    """The mean loss of the rows left out, by fits of SciPy's."""
    lam, total = np.where(groups >= 0, strengths[groups], 0).ravel(), 0.0
    for fit, judge in masks:

        def penalised(w, fit=fit):
            losses, slopes, x = rows(w)
            grad = x.T @ (fit.reshape(-1, *[1] * (slopes.ndim - 1)) * slopes) / 24
            return np.sum(fit * losses) / 24 + 0.5 * np.sum(lam * w**2), grad.ravel() + lam * w

        found = scipy.optimize.minimize(penalised, np.zeros(lam.size), jac=True, method="BFGS", options={"gtol": 1e-9})
        total += np.sum(judge * rows(found.x)[0])
    return total / np.sum([judge for _, judge in masks])


@pytest.mark.parametrize("name", FAMILIES)
def test_folds_in_one_program_are_those_of_single_fits(name):
    rows, family, groups = FAMILIES[name]
    hyper = {"penalty": hx.Positive(np.array([0.3, 0.05, 0.1]))}
    fold = np.arange(24) // 3 % 4
    masks = [(fold != k, fold == k) for k in range(3)]
    few = [(masks[0][0] & masks[1][0], masks[0][1]), (masks[1][0], masks[1][1])]
    sets = hx.Optimum(family).together(hyper, [masks, few])
    raw = np.stack([hyper["penalty"].raw, hyper["penalty"].raw + 1.0])
    values, grads, _ = eqx.filter_jit(lambda sets, raw: sets.value_and_grad(raw, sets.start()))(sets, jnp.asarray(raw))
    for b, folds in enumerate((masks, few)):

        def of(theta, folds=folds):
            return held_out(rows, groups, np.exp(theta), folds)

        np.testing.assert_allclose(values[b], of(raw[b]), rtol=1e-7)
        steps = 1e-3 * np.eye(3)
        slopes = [(of(raw[b] + step) - of(raw[b] - step)) / 2e-3 for step in steps]
        np.testing.assert_allclose(grads[b], slopes, rtol=1e-4, atol=1e-6)


def test_sparse_and_large_families_have_no_such_program():
    sparse = hx.families.Squared(scipy.sparse.csr_array(X), NUMBERS, penalty="penalty")
    masks = [[(np.arange(24) > 3, np.arange(24) <= 3)]]
    assert hx.Optimum(sparse).together({"penalty": hx.Positive(np.ones(3))}, masks) is None
    assert hx.Optimum(FAMILIES["squared"][1]).together(None, masks * 2_000_000) is None


class Valleys(eqx.Module):
    """log cosh of linear functions of two coordinates, a set its own."""

    centres: jax.Array

    def start(self):
        return jnp.zeros((len(self.centres), 1, 1))

    def value_and_grad(self, raw, start):
        slopes = jnp.asarray([[1.0, 0.3], [0.2, 5.0]])

        def one(x, c):
            return 1 + jnp.sum(jnp.log(jnp.cosh(slopes @ (x - c)))) + 0.05 * jnp.sum((x - c) ** 4)

        value, grad = jax.vmap(jax.value_and_grad(one))(raw, self.centres)
        return value, grad, start


@pytest.mark.parametrize("tied", [False, True])
def test_searches_in_step_find_the_minima_of_all_sets(tied):
    centres = np.array([[1.0, 2.0], [-3.0, 0.5], [0.0, 9.0]])
    sets, tau = Valleys(jnp.asarray(centres)), 0.2
    high = [4.0, 4.0] if tied else [10.0, 4.0]
    held = Held(jnp.asarray(tau), jnp.asarray(tied), jnp.zeros(2, int), jnp.asarray([-10.0, -10.0]), jnp.asarray(high))
    raw, value, _, steps, flat = minimised(sets, jnp.zeros((3, 2)), sets.start(), held, Limits.of(80, progress=1e-9))
    for b in range(3):

        def f(x, b=b):
            x = np.full(2, x[0]) if tied else x
            plain = float(sets.value_and_grad(jnp.asarray([x] * 3), None)[0][b])
            return plain + (0 if tied else tau / 2 * np.sum((x - x.mean()) ** 2))

        bounds = [(-10, 4)] if tied else [(-10, 10), (-10, 4)]
        best = min(
            scipy.optimize.minimize(f, start, bounds=bounds).fun
            for start in (centres[b, : len(bounds)].clip(-10, 4), np.zeros(len(bounds)))
        )
        assert f(np.asarray(raw[b])) <= best + 1e-4 * best
        np.testing.assert_allclose(
            value[b], f(np.asarray(raw[b])) - (0 if tied else tau / 2 * np.var(raw[b]) * 2), rtol=1e-9
        )
    assert np.all(np.asarray(steps) < 80)
    for b in np.flatnonzero(np.asarray(flat)):
        slope = np.asarray(sets.value_and_grad(raw, None)[1][b]) + (0 if tied else tau * (raw[b] - raw[b].mean()))
        slope = np.full(2, slope.mean()) if tied else slope
        inside = (np.asarray(raw[b]) > -10) & (np.asarray(raw[b]) < np.asarray(high))
        assert np.linalg.norm(slope[inside]) < 1e-6
    _, again, _, none, _ = minimised(sets, raw, sets.start(), held, Limits.of(0))
    np.testing.assert_allclose(again, value, rtol=1e-9)
    assert not np.any(np.asarray(none))
