"""The samplers draw what the designs promise: distributions against exact enumeration, orders, weights, totals."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_oracles import jacobian
from test_bounds_by_enumeration import duels, inclusion

from hyprax import evidence as ev
from hyprax.evidence._designs import inclusion_probabilities, pivotal, subset
from hyprax.evidence._roots import AbstractRoot

N, D, C = 12, 3, 3
DESIGNS = {
    "uniform": ev.designs.Rows(5, "uniform"),
    "one row": ev.designs.OneRow(5),
    "one row, scored": ev.designs.OneRow(5, scored=True),
    "two-phase": ev.designs.OneRow(4, first=8),
    "pivotal": ev.designs.Rows(5),
    "poisson": ev.designs.Rows(5, "poisson"),
    "blocks": ev.designs.Blocks(4),
}


def model(params, hyper, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def small_problem(size: int = N) -> ev.LinearisedModel:
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(D, 4))), "v": jnp.asarray(rng.normal(size=(4, C)))}
    data = (jnp.asarray(rng.normal(size=(size, D))), jnp.asarray(rng.integers(0, C, size)))
    return ev.linearise(model, params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(0.5))


@pytest.mark.parametrize("seed", range(20))
def test_inclusion_probabilities_solve_their_equation(seed: int):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    size = int(rng.integers(1, n + 1))
    scores = np.exp(rng.normal(size=n) * rng.uniform(0, 3))
    got = np.asarray(inclusion_probabilities(jnp.asarray(scores), size))
    np.testing.assert_allclose(got, inclusion(scores, size), rtol=1e-9)
    np.testing.assert_allclose(got.sum(), size, rtol=1e-12)


@pytest.mark.parametrize(
    "pi",
    [[0.5, 0.5, 0.5, 0.5], [0.9, 0.2, 0.4, 0.5], [1.0, 0.3, 0.7], [0.1, 1.0, 0.6, 0.3, 1.0], [0.25] * 8, [1.0, 1.0]],
)
def test_pivotal_samples_are_those_of_the_duels(pi: list[float]):
    size = round(sum(pi))
    order = np.argsort(-np.array(pi), kind="stable")  # the order in which units fight
    exact = {tuple(sorted(int(order[i]) for i in s)): p for s, p in duels(np.array(pi)[order]).items()}
    draws = 40_000
    keys = jax.random.split(jax.random.key(1), draws)
    taken, used = jax.jit(jax.vmap(lambda k: pivotal(jnp.asarray(pi), size, k)))(keys)
    np.testing.assert_allclose(used[0], pi, rtol=1e-12)
    sets, counts = np.unique(np.sort(np.asarray(taken), axis=1), axis=0, return_counts=True)
    seen = {tuple(int(i) for i in s): c / draws for s, c in zip(sets, counts, strict=True)}
    assert set(seen) <= {s for s, p in exact.items() if p > 0}
    for s, p in exact.items():
        assert abs(seen.get(s, 0.0) - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1e-12


@pytest.mark.slow
def test_pivotal_inclusion_in_float32_with_many_units():
    scores = jnp.asarray(np.exp(np.random.default_rng(2).normal(size=20_000)), jnp.float32)
    pi = inclusion_probabilities(scores, 300)
    taken, used = jax.jit(jax.vmap(lambda k: pivotal(pi, 300, k)))(jax.random.split(jax.random.key(0), 50))
    assert all(len(np.unique(t)) == 300 for t in np.asarray(taken))
    np.testing.assert_allclose(np.sum(used[0], dtype=np.float64), 300, rtol=1e-6)
    estimate = np.mean(np.sum(1 / used[0][taken], axis=1, dtype=np.float64))  # Horvitz and Thompson: N
    assert abs(estimate / 20_000 - 1) < 0.05


def test_subsets_are_uniform_and_sorted():
    keys = jax.random.split(jax.random.key(3), 20_000)
    drawn = np.asarray(jax.jit(jax.vmap(lambda k: subset(2, 5, k)))(keys))
    assert np.all(drawn[:, 0] < drawn[:, 1])
    counts = [np.mean(np.all(drawn == pair, axis=1)) for pair in itertools.combinations(range(5), 2)]
    assert np.all(np.abs(np.array(counts) - 0.1) < 5 * np.sqrt(0.09 / 20_000))


@pytest.mark.parametrize(
    ("name", "root"), [*((name, ev.roots.Eigen()) for name in DESIGNS), ("pivotal", ev.roots.Rows())]
)
def test_weighted_rows_are_unbiased_for_the_curvature(name: str, root: AbstractRoot):
    """E Σ_j w_j φ_j φ_jᵀ = H, which holds exactly if weights are the inverse of the probabilities really used."""
    problem = small_problem()
    draws = 6000

    @jax.jit
    @jax.vmap
    def curvature(key):
        sample = DESIGNS[name].draw(problem, root, key)
        f = problem.logits(sample.data)
        rows = jax.vmap(lambda one: root.matrix(problem.likelihood, one))(f) @ sample.directions
        weighted = jnp.einsum("m,mcr,mdr->mcd", sample.weights, rows, rows)
        return jnp.zeros((N, C, C)).at[sample.data].add(weighted)

    seen = np.asarray(curvature(jax.random.split(jax.random.key(4), draws)))
    p = np.asarray(jax.nn.softmax(problem.logits()))
    want = np.einsum("nc,cd->ncd", p, np.eye(C)) - np.einsum("nc,nd->ncd", p, p)
    error = seen.std(axis=0) / np.sqrt(draws)
    assert np.all(np.abs(seen.mean(axis=0) - want) < 5 * error + 1e-12)


@pytest.mark.parametrize("name", [name for name in DESIGNS if name != "poisson"])
def test_the_order_of_rows_does_not_depend_on_the_sample(name: str):
    """Any two rows that meet in several samples stand in the same order in all."""
    problem = small_problem()
    # Pilots differ from draw to draw and are not part of the sample: the order is fixed for each.
    draw = jax.jit(jax.vmap(lambda k: DESIGNS[name].draw(problem, ev.roots.Rows(), k)))
    samples = draw(jax.random.split(jax.random.key(5), 300))
    before: dict[tuple[int, int], bool] = {}
    if name == "blocks":
        rows = np.asarray(samples.data)
    else:
        rows = np.asarray(samples.data) * C + np.argmax(np.asarray(samples.directions)[..., 0], axis=2)
    conflicts = 0
    for sample in rows:
        for i, j in itertools.combinations(sample.tolist(), 2):
            first = before.setdefault((min(i, j), max(i, j)), i < j)
            conflicts += first != (i < j)
    pairs = len(rows) * rows.shape[1] * (rows.shape[1] - 1) / 2
    assert conflicts <= (0 if name in ("uniform", "blocks") else 0.02 * pairs)


@pytest.mark.slow
def test_a_row_never_meets_its_sibling():
    problem = small_problem()
    for name in ("one row", "one row, scored", "two-phase"):
        data = np.asarray(DESIGNS[name].draw(problem, ev.roots.Eigen(), jax.random.key(6)).data)
        assert len(np.unique(data)) == len(data)


def test_the_pilot_measures_kernel_over_cotangent():
    problem = small_problem()
    j = np.asarray(jacobian(problem.apply, problem.params, None, problem.inputs))
    squares = np.einsum("ncp,ncp->nc", j, j) / 0.5
    from hyprax.evidence._designs import pilot_factor

    got = float(pilot_factor(problem, ev.roots.Rows(), N, jax.random.key(0)))
    assert squares.min() / C < got < squares.max() * C
