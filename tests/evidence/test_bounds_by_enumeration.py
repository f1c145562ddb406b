"""The chain bound by exact expectation over all samples of small random problems, and designs that break it."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyprax.evidence import _chain
from hyprax.evidence._chain import LogDeterminant, chain, chain_of_rows, log_determinant

PROBLEMS = 1000
ROUNDING = 1e-10
"""The most that rounding moves an expectation of a few hundred terms of size up to 100."""


def random_kernels(rng: np.random.Generator, rows: int, problems: int = PROBLEMS) -> np.ndarray:
    """K = Φ Φᵀ of ranks 1 to `rows` + 2, scales 1e-2 to 1e3 in all and 0.1 to 10 a row, some rows doubled or zero."""
    out = np.empty((problems, rows, rows))
    for k in out:
        phi = rng.normal(size=(rows, rng.integers(1, rows + 3))) * np.exp(rng.uniform(-2, 2, (rows, 1)))
        if rng.random() < 0.2:
            phi[1] = phi[0]
        if rng.random() < 0.1:
            phi[2] = 0.0
        k[:] = phi @ phi.T * 10 ** rng.uniform(-2, 3)
    return out


def truths(kernels: np.ndarray) -> np.ndarray:
    return np.linalg.slogdet(np.eye(kernels.shape[1]) + kernels)[1]


Samples = list[tuple[float, list[int], list[float]]]
"""(probability, rows in their order, their weights)."""


def uniform(rows: int, size: int) -> Samples:
    subsets = list(itertools.combinations(range(rows), size))
    return [(1 / len(subsets), list(s), [rows / size] * size) for s in subsets]


def poisson(pi: np.ndarray) -> Samples:
    out = []
    for mask in itertools.product([0, 1], repeat=len(pi)):
        taken = [i for i, m in enumerate(mask) if m]
        out.append((float(np.prod(np.where(mask, pi, 1 - pi))), taken, [1 / pi[i] for i in taken]))
    return out


def duels(pi: np.ndarray) -> dict[tuple[int, ...], float]:
    """Sequential pivotal sampling as Deville and Tillé state it: the distribution of the set taken, exactly."""
    # State: (unit still fighting, its probability, units taken).
    states: dict[tuple[int, float, tuple[int, ...]], float] = {(0, float(pi[0]), ()): 1.0}
    for unit in range(1, len(pi)):
        after: dict[tuple[int, float, tuple[int, ...]], float] = {}

        def add(state: tuple[int, float, tuple[int, ...]], p: float, after: dict = after) -> None:
            if p > 0:
                after[state] = after.get(state, 0.0) + p

        for (old, a, taken), p in states.items():
            b = float(pi[unit])
            if max(a, b) > 1 - 1e-12:  # one is certain: taken, and the other goes on
                first, on, rest = (old, unit, b) if a >= b else (unit, old, a)
                add((on, rest, (*taken, first)), p)
            elif a + b <= 1:
                add((old, a + b, taken), p * a / (a + b))
                add((unit, a + b, taken), p * b / (a + b))
            else:
                # One is taken, the other goes on with a + b - 1.
                add((unit, a + b - 1, (*taken, old)), p * (1 - b) / (2 - a - b))
                add((old, a + b - 1, (*taken, unit)), p * (1 - a) / (2 - a - b))
        states = after
    out: dict[tuple[int, ...], float] = {}
    for (last, a, taken), p in states.items():
        assert min(abs(a), abs(1 - a)) < 1e-9  # the probabilities sum to a whole number
        chosen = tuple(sorted((*taken, last) if a > 0.5 else taken))
        out[chosen] = out.get(chosen, 0.0) + p
    return out


def pivotal(pi: np.ndarray) -> Samples:
    return [(p, list(s), [1 / pi[i] for i in s]) for s, p in duels(pi).items()]


def rows_of_data(data: Samples, shares: np.ndarray) -> Samples:
    """One row of each datum of a sample of data: row k of datum n with probability shares[n, k]."""
    per = shares.shape[1]
    out = []
    for p, taken, weights in data:
        for ks in itertools.product(range(per), repeat=len(taken)):
            share = [shares[n, k] for n, k in zip(taken, ks, strict=True)]
            rows = [n * per + k for n, k in zip(taken, ks, strict=True)]
            out.append((p * float(np.prod(share)), rows, [w / s for w, s in zip(weights, share, strict=True)]))
    return out


def two_phase(scores: np.ndarray, first: int, size: int, shares: np.ndarray) -> Samples:
    n = len(scores)
    out = []
    subsets = list(itertools.combinations(range(n), first))
    for subset in subsets:
        places = list(subset)
        pi = inclusion(scores[places], size)
        for p, taken, weights in pivotal(pi):
            data = [(p / len(subsets), [places[i] for i in taken], [w * n / first for w in weights])]
            out += rows_of_data(data, shares)
    return out


def inclusion(scores: np.ndarray, size: int) -> np.ndarray:
    """min(1, κ s) with the sum `size`, by bisection."""
    low, high = 0.0, size / scores.min()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * scores).sum() < size else (low, middle)
    return np.minimum(1, high * scores)


def padded(samples: Samples, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, rows (-1 for none) and weights (1 for none), of one length."""
    rows = np.full((len(samples), length), -1)
    weights = np.ones((len(samples), length))
    for s, (_, taken, w) in enumerate(samples):
        rows[s, : len(taken)], weights[s, : len(taken)] = taken, w
    return np.array([p for p, _, _ in samples]), rows, weights


@functools.partial(jax.jit, static_argnames="block")
def sides(kernel: jax.Array, rows: jax.Array, weights: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """U and Lo for every sample [S, B] of one problem."""

    def one(taken: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        there = (taken >= 0)[:, None] & (taken >= 0)[None, :]
        found = chain(jnp.where(there, kernel[taken[:, None], taken[None, :]], 0.0), w, block)
        assert found.lower is not None
        return found.upper, found.lower

    return jax.vmap(one)(rows, weights)


def expectations(
    kernels: np.ndarray, draw: "Iterator[Samples]", length: int, block: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """E U and E Lo of every problem, each with its own design."""
    out = []
    for kernel, samples in zip(kernels, draw, strict=False):
        assert abs(sum(p for p, _, _ in samples) - 1) < 1e-9
        most = max(64, 2 ** int(np.ceil(np.log2(len(samples)))))  # few shapes, few compilations
        p, rows, weights = padded(samples, length)
        fill = most - len(p)
        p, rows = np.pad(p, (0, fill)), np.pad(rows, ((0, fill), (0, 0)), constant_values=-1)
        weights = np.pad(weights, ((0, fill), (0, 0)), constant_values=1.0)
        weights = weights[:, ::block]
        u, lo = sides(jnp.asarray(kernel), jnp.asarray(rows), jnp.asarray(weights), block)
        out.append((p @ np.asarray(u), p @ np.asarray(lo)))
    u, lo = np.array(out).T
    return u, lo


def forever(make) -> "Iterator[Samples]":
    while True:
        yield make()


def design(name: str, rng: np.random.Generator) -> tuple[int, int, int, "Iterator[Samples]"]:
    """(rows, longest sample, block, an endless supply of designs of this kind)."""
    if name == "uniform":
        return 5, 3, 1, forever(lambda: uniform(5, 3))
    if name == "uniform, all but one":
        return 4, 3, 1, forever(lambda: uniform(4, 3))
    if name == "poisson":
        return 5, 5, 1, forever(lambda: poisson(rng.uniform(0.05, 1, 5)))
    if name == "poisson, falling":
        return 5, 5, 1, forever(lambda: poisson(-np.sort(-rng.uniform(0.05, 1, 5))))
    if name == "pivotal":
        return 6, 3, 1, forever(lambda: pivotal(inclusion(np.exp(rng.normal(size=6)), 3)))
    if name == "one row, uniform data":
        return 6, 2, 1, forever(lambda: rows_of_data(uniform(3, 2), rng.dirichlet([1, 1], 3)))
    if name == "one row, scored data":
        return (
            8,
            2,
            1,
            forever(lambda: rows_of_data(pivotal(inclusion(np.exp(rng.normal(size=4)), 2)), rng.dirichlet([1, 1], 4))),
        )
    if name == "two-phase":
        return 8, 2, 1, forever(lambda: two_phase(np.exp(rng.normal(size=4)), 3, 2, rng.dirichlet([1, 1], 4)))
    assert name == "blocks"
    blocks = [(p, [2 * n + k for n in s for k in range(2)], list(np.repeat(w, 2))) for p, s, w in uniform(4, 2)]
    return 8, 4, 2, forever(lambda: blocks)


DESIGNS = [
    "uniform",
    "uniform, all but one",
    "poisson",
    "poisson, falling",
    "pivotal",
    "one row, uniform data",
    "one row, scored data",
    "two-phase",
    "blocks",
]


@pytest.mark.parametrize("name", DESIGNS)
def test_both_sides_hold_in_expectation(name: str):
    rng = np.random.default_rng(DESIGNS.index(name))
    rows, length, block, supply = design(name, rng)
    kernels = random_kernels(rng, rows)
    truth = truths(kernels)
    upper, lower = expectations(kernels, supply, length, block)
    allowed = ROUNDING * (1 + truth)
    assert np.sum(upper < truth - allowed) == 0
    assert np.sum(lower > truth + allowed) == 0
    assert np.median(upper / truth) < 3  # the bound says something


def violations(upper: np.ndarray, truth: np.ndarray) -> int:
    """How many expectations are below the truth by more than rounding could explain."""
    return int(np.sum(upper < truth * (1 - 1e-6)))


def test_sampling_with_replacement_breaks_the_bound():
    rng = np.random.default_rng(20)
    kernels = random_kernels(rng, 4)
    draws = [(4.0**-3, sorted(s), [4 / 3] * 3) for s in itertools.product(range(4), repeat=3)]
    upper, _ = expectations(kernels, forever(lambda: draws), 3)
    assert violations(upper, truths(kernels)) > 50


def test_single_pivots_of_whole_data_break_the_bound():
    rng = np.random.default_rng(21)
    kernels = random_kernels(rng, 6)
    whole = [(p, [2 * n + k for n in s for k in range(2)], list(np.repeat(w, 2))) for p, s, w in uniform(3, 1)]
    upper, _ = expectations(kernels, forever(lambda: whole), 2)
    assert violations(upper, truths(kernels)) > 20


def test_the_pairs_of_every_design_are_negatively_correlated():
    rng = np.random.default_rng(23)
    for name in DESIGNS[:-1]:
        rows, _, _, supply = design(name, rng)
        for samples in itertools.islice(supply, 50):
            pair = np.zeros((rows, rows))
            weight: dict[int, set[float]] = {}
            for p, taken, weights in samples:
                pair[np.ix_(taken, taken)] += p
                for i, w in zip(taken, weights, strict=True):
                    weight.setdefault(i, set()).add(round(w, 9))
            pi = np.diag(pair)
            off = pair - np.diag(pi)
            assert np.all(off <= np.outer(pi, pi) + 1e-12)
            if name != "two-phase":  # there the weight of a row varies with the first phase
                assert all(abs(w * pi[i] - 1) < 1e-6 for i, ws in weight.items() for w in ws)


def test_the_pathwise_order_of_the_estimates():
    """Lo <= U <= (n/B) log|I + K_AA| for every sample, and equality of all with all rows."""
    both = jax.jit(lambda kernel, weights: (chain(kernel, weights).upper, chain(kernel, weights).lower))
    alone = jax.jit(lambda kernel: log_determinant(kernel).upper)
    rng = np.random.default_rng(24)
    kernels = random_kernels(rng, 6, 300)
    for kernel, truth in zip(kernels, truths(kernels), strict=True):
        taken = np.sort(rng.choice(6, 3, replace=False))
        part = jnp.asarray(kernel[np.ix_(taken, taken)])
        upper, lower = both(part, jnp.full(3, 2.0))
        subset = 2 * alone(part)
        assert lower <= upper * (1 + 1e-12)
        assert upper <= subset * (1 + 1e-12)
        for side in both(jnp.asarray(kernel), jnp.ones(6)):
            np.testing.assert_allclose(side, truth, rtol=1e-10, atol=1e-12)


def test_the_expected_bound_falls_with_the_size_of_the_sample():
    kernels = random_kernels(np.random.default_rng(25), 5, 100)
    uppers = [expectations(kernels, forever(lambda b=b: uniform(5, b)), b)[0] for b in (1, 2, 3, 4, 5)]
    for smaller, larger in itertools.pairwise(uppers):
        assert np.all(larger <= smaller * (1 + 1e-10))


@pytest.mark.parametrize(("block", "size", "whole"), [(1, 8, 128), (1, 7, 2), (2, 8, 128), (2, 10, 3), (4, 8, 128)])
def test_the_derivative_of_the_chain_is_that_of_the_cholesky_factor(
    block: int, size: int, whole: int, monkeypatch: pytest.MonkeyPatch
):
    """Against automatic differentiation of the definition, through a dense factorisation; triangles up to the side
    `whole` taken whole, larger ones by halves.

    Beside fractions the worst of these errors are 2e-11 of the largest entry (dense), 2e-12 (chain), 4e-13 (rows)."""
    monkeypatch.setattr(_chain, "_WHOLE", whole)

    def dense(kernel: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        half = jnp.repeat(jnp.sqrt(weights), block)
        root = jnp.linalg.cholesky(jnp.eye(size) + half[:, None] * kernel * half[None])
        upper, lower = 0.0, 2 * jnp.sum(jnp.log(jnp.diagonal(root)))
        for b in range(size // block):
            pivot = root[b * block : (b + 1) * block, b * block : (b + 1) * block]
            s = pivot @ pivot.T - jnp.eye(block)
            upper = upper + weights[b] * jnp.linalg.slogdet(jnp.eye(block) + s / weights[b])[1]
        return jnp.asarray(upper), lower

    def sides(of: LogDeterminant) -> tuple[Any, Any]:
        return of.upper, of.lower

    def slopes(f: jax.Array, w: jax.Array) -> list[tuple[jax.Array, ...]]:
        """Of both sides, by the definition, by the chain and by the chain of rows."""
        ways = (
            lambda f: dense(f @ f.T, w),
            lambda f: sides(chain(f @ f.T, w, block)),
            lambda f: sides(chain_of_rows(f, w, block)),
        )
        return [jax.jacrev(way)(f) for way in ways]

    compiled = jax.jit(slopes)  # made here, since `_WHOLE` is read as it is traced
    rng = np.random.default_rng(26)
    for kernel in random_kernels(rng, size, 20):
        weights = jnp.asarray(rng.uniform(1, 20, size // block))
        phi = jnp.asarray(np.linalg.cholesky(kernel + 1e-9 * np.eye(size) * np.trace(kernel)))
        wanted, *others = compiled(phi, weights)
        for got in others:
            for got_side, want in zip(got, wanted, strict=True):
                np.testing.assert_allclose(got_side, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())
