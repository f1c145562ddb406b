"""Rows that are read in chunks give the answers, and the certificates, of rows in memory."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit._double_double import lifted
from hyprax.implicit.families._design import backward, backward_squared, forward, forward_squared
from hyprax.implicit.families._exact_products import exact_backward, exact_forward

N, D = 50, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, D)).astype(np.float32)
LABELS = (X[:, 0] + RNG.normal(size=N) > 0).astype(int)
V, LABELS_V = RNG.normal(size=(20, D)).astype(np.float32), RNG.integers(2, size=20)


class Loader:
    """Rows of no array: made when they are asked for."""

    shape, dtype = (N, D), np.dtype(np.float32)

    def __init__(self):
        self.most = 0

    def __getitem__(self, rows):
        found = X[rows]
        self.most = max(self.most, len(found))
        return found


def on_disk(folder: Path, x: np.ndarray = X) -> np.memmap:
    np.save(folder / "rows.npy", x)
    return np.load(folder / "rows.npy", mmap_mode="r")


@pytest.mark.parametrize("size", [16, pytest.param(50, marks=pytest.mark.slow)])
def test_products_are_those_of_the_matrix(tmp_path, size):
    x = hx.families.Chunked(on_disk(tmp_path), size=size).astype(jnp.float64)
    dense = X.astype(float)
    v, r = RNG.normal(size=(D, 2)), RNG.normal(size=(N, 2))

    @jax.jit
    def all_of_them(x, v, r):
        exact = exact_forward(x, lifted(v)), exact_backward(x, lifted(r))
        return forward(x, v), backward(x, r), forward_squared(x, v), backward_squared(x, r), x.gram(r[:, 0]), exact

    *plain, exact = all_of_them(x, jnp.asarray(v), jnp.asarray(r))
    truths = dense @ v, dense.T @ r, dense**2 @ v, (dense**2).T @ r, (dense * r[:, :1]).T @ dense
    for found, truth in zip(plain, truths, strict=True):
        np.testing.assert_allclose(found, truth, rtol=1e-12, atol=1e-12)
    for found, truth in zip(exact, truths, strict=False):
        rest = np.asarray(found.hi, np.longdouble) + np.asarray(found.lo, np.longdouble)
        long = np.asarray(dense, np.longdouble)
        truth = long @ np.asarray(v, np.longdouble) if truth.shape == (N, 2) else long.T @ np.asarray(r, np.longdouble)
        assert np.max(np.abs(rest - truth)) <= 1e-17  # what long doubles say


def objective(inputs, outer_inputs, certifier=None):
    family = hx.families.Logistic(inputs, LABELS, penalty="penalty")
    outer_data = (outer_inputs, LABELS_V)
    return hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer_data, certifier=certifier)


START = {"penalty": hx.Positive(jnp.full(D, 0.1, jnp.float32))}


def outer_loss(moved):
    """The validation loss with the raw strengths moved, by a Newton method of NumPy's."""
    raw = np.asarray(START["penalty"].raw, float) + moved
    penalty = np.asarray(hx.natural(jax.tree.map(lambda _: jnp.asarray(raw), START))["penalty"])
    weights = np.zeros(D)
    for _ in range(20):
        p = 1 / (1 + np.exp(-X @ weights))
        slope = X.T @ (p - LABELS) / N + penalty * weights
        weights -= np.linalg.solve((X.T * (p * (1 - p))) @ X / N + np.diag(penalty), slope)
    return np.mean(np.logaddexp(0, V @ weights) - LABELS_V * (V @ weights))


@pytest.mark.slow
def test_hypergradients_are_certified_and_those_of_the_matrix_in_memory(tmp_path):
    read = hx.families.Chunked(on_disk(tmp_path), size=16)
    chunked, whole = (hx.hypergradient(objective(x, v), START)[0] for x, v in (
        (read, hx.families.Chunked(V, size=7)), (jnp.asarray(X), jnp.asarray(V))
    ))  # fmt: skip
    assert chunked.certificate.kind == whole.certificate.kind == "certified"
    difference = np.linalg.norm(np.asarray(chunked.grad["penalty"].raw) - np.asarray(whole.grad["penalty"].raw))
    assert difference <= chunked.certificate.bound + whole.certificate.bound
    assert chunked.certificate.bound <= 2 * whole.certificate.bound + 1e-9
    assert bool(chunked.result == hx.implicit.RESULTS.successful)


def test_only_chunks_are_asked_of_a_loader_and_other_data_have_another_checksum():
    loader = Loader()
    x = hx.families.Chunked(loader, size=16)
    answer, _ = hx.hypergradient(objective(x, jnp.asarray(V), hx.implicit.ResidualCertifier()), START)
    assert answer.certificate.kind == "certified"
    grad = np.asarray(answer.grad["penalty"].raw, float)
    fall = outer_loss(1e-4 * np.sign(grad)) - outer_loss(-1e-4 * np.sign(grad))
    assert abs(fall / 2e-4 - np.abs(grad).sum()) <= 1e-3 * np.abs(grad).sum()
    assert loader.most == 16
    assert int(x.checksum) == int(hx.families.Chunked(X, size=50).checksum)
    assert int(x.checksum) != int(hx.families.Chunked(X + 1, size=16).checksum)


def test_integers_are_widened_and_parts_of_a_map_are_read_as_such(tmp_path):
    counts = RNG.integers(-3, 4, size=(N, D)).astype(np.int8)
    part = hx.families.Chunked(on_disk(tmp_path, counts)[3:40], size=10)
    assert part.dtype == jnp.float64
    np.testing.assert_array_equal(forward(part, jnp.ones(D)), counts[3:40].sum(axis=1))


def test_row_groups_of_parquet_are_read_one_by_one(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": ["a"] * N, **{f"x{j}": X[:, j] for j in range(D)}, "gap": [None] + [1.0] * (N - 1)})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=13)
    x = hx.families.Chunked.parquet(tmp_path / "rows.parquet", [f"x{j}" for j in range(D)])
    assert x.size == 13
    assert int(x.checksum) == int(hx.families.Chunked(X).checksum)
    with pytest.raises(ValueError, match=r"'text' .* must hold numbers"):
        hx.families.Chunked.parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=r"'gap' .* must have no empty cells"):
        hx.families.Chunked.parquet(tmp_path / "rows.parquet", ["gap"])
    with pytest.raises(ValueError, match="must hold at least one row and one column; got 50 rows of 0"):
        hx.families.Chunked.parquet(tmp_path / "rows.parquet", [])
    parquet.write_table(table.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match="must hold at least one row and one column; got 0 rows"):
        hx.families.Chunked.parquet(tmp_path / "none.parquet", ["x0"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (X[0], r"must have the shape \(examples, features\)"),
        (np.where(np.arange(N)[:, None] == 33, np.nan, X), r"rows from 30 on must be finite numbers; got nan in row 3"),
        (X.astype(complex), "must be real numbers"),
    ],
)
def test_bad_rows_are_refused(rows, words):
    with pytest.raises(ValueError, match=words):
        hx.families.Chunked(rows, size=10)


def test_what_needs_the_matrix_says_so():
    family = hx.families.Logistic(hx.families.Chunked(X), LABELS, penalty="penalty")
    with pytest.raises(ValueError, match="dense"):
        hx.implicit.LeaveOneOut(hx.Optimum(family))
    with pytest.raises(ValueError, match="dense"):
        hx.implicit.SOBA(hx.Optimum(family), family.mean_loss, (V, LABELS_V), key=jax.random.key(0))


@pytest.mark.slow
def test_an_intercept_without_penalty_and_example_weights():
    ones = np.hstack([X, np.ones((N, 1))])  # float64
    hyper = {"penalty": hx.Positive(jnp.asarray(0.1)), "weights": hx.Interval(jnp.full(N, 0.7), 0, 1)}

    def found(place):
        family = hx.families.Logistic(place(ones), LABELS, penalty="penalty", weights="weights", free=[-1])
        outer = jnp.asarray(np.hstack([V, np.ones((20, 1))]))
        problem = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (outer, LABELS_V))
        return hx.hypergradient(problem, hyper)[0]

    chunked, whole = found(lambda x: hx.families.Chunked(x, size=16)), found(jnp.asarray)
    assert chunked.certificate.kind == whole.certificate.kind == "certified"
    for a, b in zip(jax.tree.leaves(chunked.grad), jax.tree.leaves(whole.grad), strict=True):
        np.testing.assert_allclose(a, b, atol=float(chunked.certificate.bound + whole.certificate.bound))


def test_it_is_a_static_part_of_a_problem():
    x = hx.families.Chunked(X)
    assert [leaf.shape for leaf in jax.tree.leaves(eqx.filter(x, eqx.is_array))] == [(), ()]
