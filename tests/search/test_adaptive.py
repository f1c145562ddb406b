"""MAID, HOAG and fixed tolerances: proved decrease against the truth, optima of a dense reference, cost, bad input."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import hyprax as hx
import oracles
from hyprax.search import HOAG, MAID, FixedTolerance, Stopping
from problems import random_problem

TO_THE_END = Stopping(gradient=1e-5, patience=None)


class Uncertain(hx.AbstractObjective):
    """F(u) = ½ Σ s_j (u_j - 1)², told with errors as large as the bounds allow, in random directions.

    |value - F| <= bound and ‖grad - ∇F‖ <= bound, bounds of `looseness` times the accuracy, and never below `floor`.
    """

    scales: jax.Array
    looseness: float = 1.0
    floor: float = 0.0
    kind: str = eqx.field(static=True, default="certified")

    def init(self, hyper):
        return jax.random.key_data(jax.random.key(7))

    def truth(self, u):
        return 0.5 * jnp.sum(self.scales * (u - 1) ** 2)

    def _drawn(self, state):
        key, one, two = jax.random.split(jax.random.wrap_key_data(state), 3)
        sign = jnp.sign(jax.random.normal(one))
        direction = jax.random.normal(two, self.scales.shape)
        return sign, direction / jnp.linalg.norm(direction), jax.random.key_data(key)

    def _certificate(self, bound):
        if self.kind == "none":
            return hx.NoCertificate("by design")
        return hx.ErrorBound(bound, self.kind, "error", "by design")

    @eqx.filter_jit
    def value_and_grad(self, hyper, state, accuracy=None):
        assert accuracy is not None
        sign, direction, state = self._drawn(state)
        bound = jnp.maximum(self.looseness * jnp.maximum(accuracy.inner, accuracy.adjoint), self.floor)
        value = self.truth(hyper) + sign * bound
        grad = self.scales * (hyper - 1) + 0.999 * bound * direction
        certificate = self._certificate(bound)
        return hx.Hypergradient(value, grad, certificate, hx.RESULTS.successful, {"products": jnp.asarray(1)}), state

    @eqx.filter_jit
    def value(self, hyper, state, accuracy=None):
        assert accuracy is not None
        sign, _, state = self._drawn(state)
        bound = jnp.maximum(self.looseness * accuracy.inner, self.floor)
        value = self.truth(hyper) + 0.999 * sign * bound
        return hx.Value(value, self._certificate(bound), hx.RESULTS.successful, {"products": jnp.asarray(1)}), state


def evaluated(objective, hyper, search, steps, stop=TO_THE_END):
    points = []
    tuned = hx.tune(
        objective, hyper, search=search, steps=steps, stop=stop, callbacks=[lambda s: points.append(s.hyper)]
    )
    return tuned, points


@hypothesis.given(
    seed=st.integers(0, 2**16), spread=st.floats(0, 4), looseness=st.sampled_from([1e-6, 1e-2, 1.0, 1e3, 1e6])
)
@hypothesis.settings(max_examples=30)
def test_maid_descends_whatever_the_errors_within_the_bounds(seed, spread, looseness):
    rng = np.random.default_rng(seed)
    objective = Uncertain(jnp.asarray(10.0 ** rng.uniform(-spread / 2, spread / 2, 4)), jnp.asarray(looseness))
    search = MAID()
    tuned, points = evaluated(objective, jnp.asarray(rng.normal(size=4)), search, 60)
    truths = [float(objective.truth(point)) for point in points]
    proved = tuned.column("proved_decrease")
    asked = search.armijo * tuned.column("step_size") * tuned.column("gradient_norm") ** 2
    for before, after, fall, least in zip(truths[:-1], truths[1:], proved[:-1], asked[:-1], strict=True):
        assert fall >= least > 0
        assert before - after >= fall * (1 - 1e-12) - 1e-15
    assert len(truths) == 60 or tuned.result != hx.RESULTS.no_certified_descent
    assert truths[-1] <= 0.1 * truths[0]


def test_maid_stops_at_the_floor_of_the_certificates():
    objective = Uncertain(jnp.asarray([1.0, 3.0]), jnp.asarray(1.0), jnp.asarray(1e-4))
    tuned, points = evaluated(objective, jnp.asarray([3.0, -2.0]), MAID(), 500)
    assert bool(tuned.result == hx.RESULTS.no_certified_descent)
    assert "could be proved" in tuned.message
    assert float(objective.truth(points[-1])) <= 10 * 1e-4
    rows = tuned.history
    assert rows[-1]["proved_decrease"] == 0.0
    assert sum(row["gradients"] + row["values"] for row in rows) < 40 * len(rows)


def dense_value(kind, data, shape, raw):
    x, y, xv, yv = data
    columns = int(y.max()) + 1 if kind == "softmax" else 1
    strengths = np.exp(np.asarray(raw)).reshape(shape)
    wide = strengths if kind == "softmax" or strengths.ndim == 0 else strengths[:, None]
    truth = oracles.reference(kind, x, y, xv, yv, np.array(np.broadcast_to(wide, (x.shape[1], columns))))
    padded = shape if kind == "softmax" or shape == () else (*shape, 1)
    return float(truth.value), oracles.sum_to(truth.per_weight, padded).astype(float).ravel()


def data_of(problem):
    loss = problem.objective.optimum.loss
    arrays = (loss.inputs, loss.targets, *problem.objective.outer_data)
    return tuple(np.asarray(array) for array in arrays)


@pytest.mark.parametrize("kind", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("certificate", [hx.LookAhead(), hx.EhrhardtRoberts()], ids=("look-ahead", "Ehrhardt-Roberts"))
def test_maid_proves_decrease_and_finds_the_optimum_of_a_dense_reference(kind, certificate):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        problem = random_problem(rng, kind, -1, n=60, d=4, smallest=1e-2, certificate=certificate)
        shape, data = problem.hyper["penalty"].raw.shape, data_of(problem)
        tuned, points = evaluated(problem.objective, problem.hyper, MAID(), 150, Stopping(gradient=1e-4, patience=None))
        truths = [dense_value(kind, data, shape, point["penalty"].raw)[0] for point in points]
        proved = tuned.column("proved_decrease")
        for before, after, fall in zip(truths[:-1], truths[1:], proved[:-1], strict=True):
            assert before - after >= fall > 0
        value, slope = dense_value(kind, data, shape, tuned.best["penalty"].raw)
        assert np.linalg.norm(slope) <= 2e-4 or len(points) == 150
        polished = scipy.optimize.minimize(
            functools.partial(dense_value, kind, data, shape),
            np.ravel(tuned.best["penalty"].raw),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 40},
        )
        assert value <= polished.fun + 2e-3 * (truths[0] - polished.fun) + 1e-6


def products_to_reach(objective, hyper, search, target, steps=150):
    tuned = hx.tune(objective, hyper, search=search, steps=steps, stop=Stopping(gradient=0.0, patience=None))
    reached = np.flatnonzero(tuned.column("value") <= target)
    return np.inf if reached.size == 0 else float(np.sum(tuned.column("search_products")[: reached[0] + 1]))


def test_maid_costs_little_more_than_the_best_pair_of_fixed_tolerances():
    ratios = []
    for seed, kind in [(1, "logistic"), (6, "squared"), (7, "logistic"), (2, "softmax")]:
        problem = random_problem(np.random.default_rng(seed), kind, -1, n=60, d=6, smallest=1e-3)
        best = hx.tune(problem.objective, problem.hyper, search=MAID(), steps=150, stop=TO_THE_END).best_value
        first = float(hx.hypergradient(problem.objective, problem.hyper).value)
        target = best + 1e-3 * (first - best)
        pairs = [(a, b) for a in (1e-1, 1e-3, 1e-5) for b in (1e-1, 1e-3, 1e-5)]
        fixed = [products_to_reach(problem.objective, problem.hyper, FixedTolerance(a, b), target) for a, b in pairs]
        ratios.append(products_to_reach(problem.objective, problem.hyper, MAID(), target) / min(fixed))
    assert np.median(ratios) <= 1.5, ratios
    assert max(ratios) <= 3, ratios
