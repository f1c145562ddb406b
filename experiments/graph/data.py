"""Cora: graphs, tasks and their duals."""

from functools import lru_cache
from itertools import combinations

import numpy as np
from experiments._common import data_file

from hyprax import tasks

PAIRS = list(combinations(range(7), 2))
SPLIT_CLASSES = (0, 1, 2)
SHARE = 0.1
"""Part of the nodes of each class whose labels are given."""
COMPONENTS, PENALTY = 16, 1e-2
POLYNOMIAL, GAUSSIAN = tasks.PolynomialKernel(3), tasks.GaussianKernel()
DOMAINS = {"label propagation, (s + hyper)^3": (0.01, 2.0), "SGC, exp(-d^2/hyper^2)": (0.4, 4.0)}


@lru_cache(maxsize=1)
def cora() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (2708, 1433) of 0 and 1, classes (2708,), and the edges as a boolean matrix."""
    with np.load(data_file("planetoid/cora.npz")) as d:
        x = np.zeros(tuple(d["shape"]))
        x[np.repeat(np.arange(len(x)), np.diff(d["x_indptr"])), d["x_indices"]] = 1
        edges = np.zeros((len(x), len(x)), dtype=bool)
        edges[d["edges"][:, 0], d["edges"][:, 1]] = True
        return x, d["y"].astype(int), edges | edges.T


def subgraph(classes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The largest connected part of the nodes of some classes.

    **Returns:** cosine similarities of the words (N, N), classes (N,), edges (N, N), and the features' first principal
    components (N, 16), scaled to a largest variance of 1.
    """
    from scipy.sparse.csgraph import connected_components

    x, y, edges = cora()
    nodes = np.flatnonzero(np.isin(y, classes))
    _, part = connected_components(edges[np.ix_(nodes, nodes)], directed=False)
    nodes = nodes[part == np.argmax(np.bincount(part))]
    x = x[nodes]
    unit = x / np.sqrt(x.sum(axis=1, keepdims=True))
    similar = unit @ unit.T
    u, s, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    scores = u[:, :COMPONENTS] * s[:COMPONENTS] / s[0] * np.sqrt(len(nodes))
    return 0.5 * (similar + similar.T), y[nodes], edges[np.ix_(nodes, nodes)], scores


def labelled_nodes(y: np.ndarray, seed: int) -> np.ndarray:
    """A random tenth of each class, one node at least."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(y == c)) for c in np.unique(y)]
    return np.sort(np.concatenate([r[: max(1, round(SHARE * len(r)))] for r in rows]))


def task_dual(method: str, classes: tuple[int, ...], seed: int) -> tasks.ReadoutDuals:
    """The duals of one task: some classes, and a random choice of labelled nodes; the others score."""
    similar, y, edges, scores = subgraph(classes)
    given = labelled_nodes(y, seed)
    if method.startswith("label"):
        return tasks.graph_dual(similar, y, given, POLYNOMIAL, domain=DOMAINS[method], edges=edges)
    return tasks.graph_dual(
        distances(similar), y, given, GAUSSIAN, features=scores, domain=DOMAINS[method], penalty=PENALTY, edges=edges
    )


def distances(similar: np.ndarray) -> np.ndarray:
    """Euclidean distances of unit vectors, `sqrt(2 - 2 s)`, with zeros on the diagonal."""
    d = np.sqrt(np.maximum(2 - 2 * similar, 0.0))
    np.fill_diagonal(d, 0.0)
    return d


def pair_dual(method: str, pair: int) -> tasks.ReadoutDuals:
    """One of the 21 pairs of classes."""
    return task_dual(method, PAIRS[pair], seed=pair)


def split_dual(method: str, seed: int) -> tasks.ReadoutDuals:
    """Three classes, labelled nodes drawn with `seed`."""
    return task_dual(method, SPLIT_CLASSES, seed)
