"""Duals in the parameter of a graph kernel: label propagation, and simplified graph convolution with a ridge
read-out."""

from functools import partial
from typing import Any

import numpy as np

from ._bernstein import Array
from ._dual import ReadoutDuals
from ._kernel import Graph, Kernel, Matrix, WeightSeries, row_sums
from ._margins import classes_of
from ._series import PENALTY, Features, Outputs, Scores, cover, gamma, ridge_outputs, score, solve_spd
from ._task import check_domain

_FAR = (
    "Nodes that are far from all others there (weights vanish) need a larger hyperparameter, edges of their own, or to "
    "be left out."
)
"""The way out where weights are too small for a proof."""


def graph_dual(
    distances: Any,
    labels: Any,
    labelled: Any,
    kernel: Kernel,
    *,
    domain: tuple[float, float],
    features: Any = None,
    penalty: float | None = None,
    hops: int = 2,
    edges: Any = None,
    score_on: Any = None,
    accuracy: float = 1e-10,
    degree: int = 10,
) -> ReadoutDuals:
    r"""The dual of a graph kernel's parameter: `α -> loss on nodes without a label`, of one of two methods.

    *Label propagation*, without `features`: `(D_uu - A_uu) f = A_ul y_l`, `A = A(α)`, `D = diag(A 1)`. f is the
    harmonic function with the given labels, each value the weighted mean of its neighbours'. With `A_ij =
    (d_ij + α)^Δ` the solution is rational in α; with the Gaussian kernel it is smooth.

    *Simplified graph convolution* of `features` X: `Phi(α) = (D^-1 A(α))^hops X`, features averaged over neighbours
    `hops` times, and a ridge read-out on the labelled nodes, `w = argmin ‖Phi_l w - Y‖^2 / n + penalty ‖w‖^2`. Every
    node is a neighbour of itself, with the weight `k(d_ii, α)`.

    *Certificate of label propagation.* The matrix `M(s) = D_uu - A_uu` has non-positive entries off the diagonal. If
    `v > 0` and `M(s) v >= c > 0` for all |s| <= 1, then M(s) is a non-singular M-matrix and `‖M^-1‖_inf <= max v / c`:
    for `M x = r`, `-|r|_inf M v / c <= r <= |r|_inf M v / c` and `M^-1 >= 0`. v is the computed `M_0^-1 1`, and the
    bound `M_0 v - sum_{j >= 1} |M_j v|` less rounding holds on the whole piece. The polynomial f_hat is then within
    `(max v / c) |A_ul y - M f_hat|_inf`.

    *Certificate of the convolution.* `D F_k = A F_(k-1)` is solved in power series. `D^-1 A` averages, so an error in
    F_(k-1) is not amplified in the largest norm, and `|F_k - F_hat_k| <= |F_(k-1) - F_hat_(k-1)|_inf + |A F_hat_(k-1) -
    D F_hat_k| / D` entry by entry; what the kernel's series leaves out enters the residual. The read-out is verified as
    in `ridge_outputs`.

    **Arguments:**

    - `distances` (N, N): symmetric, distances or similarities, as the kernel takes them.
    - `labels` (N,): integers are classes (two: -1 and +1; more: one-hot), floats targets. All nodes'; those outside
        `labelled` only score the answer.
    - `labelled`: indices of the nodes whose labels are given, or a boolean mask.
    - `kernel`: [`PolynomialKernel`][hyprax.tasks.PolynomialKernel] or [`GaussianKernel`][hyprax.tasks.GaussianKernel].
    - `features` (N, p): of all nodes, for the convolution; `penalty`: of its read-out, above 0; `hops`: how often
        features are averaged, at least 1.
    - `edges` (N, N) boolean: where there are weights; all pairs by default. In label propagation weights of nodes with
        themselves play no part.
    - `score_on`: indices of the nodes scored, or a mask; all the others by default.
    - `domain`, `accuracy`, `degree`: as for [`activation_dual`][hyprax.tasks.activation_dual].

    **Raises:** `ValueError` for bad input, and where label propagation meets a node that is not connected to a labelled
    one (or by weights too small to prove it).

    Sources: Zhu, Ghahramani, Lafferty (2003), "Semi-supervised learning using Gaussian fields and harmonic functions";
    Wu et al. (2019), "Simplifying graph convolutional networks", arXiv 1902.07153 (there with the symmetric
    normalisation `D^-1/2 A D^-1/2`).
    """
    graph = Graph(distances, edges, loops=features is not None)
    a, b = check_domain(domain, "graph_dual", "")
    kernel.check(graph.values, a, b)
    given = _nodes(labelled, graph.n, "labelled")
    free = np.setdiff1d(np.arange(graph.n), given)
    scored = free if score_on is None else _nodes(score_on, graph.n, "score_on")
    if np.isin(scored, given).any():
        raise ValueError("score_on must not hold labelled nodes: their labels are given to the method.")
    targets, check, truth = _targets(labels, graph.n, given, scored)
    place = np.searchsorted(free, scored)

    def propagated(lo: float, hi: float) -> Scores:
        weights = graph.expand(kernel, lo, hi, degree)
        solution, radius, cut = _harmonic(weights, given, free, targets, degree)
        rows = np.full(len(scored), np.sqrt(targets.shape[1]) * (1 + gamma(8)))
        return score(Outputs(solution[:, place], rows * radius, rows * cut), check, truth, degree)

    def convolved(x: Array, strength: float, lo: float, hi: float) -> Scores:
        weights = graph.expand(kernel, lo, hi, degree)
        phi, error, cut = _averaged(weights, x, hops, degree)
        width = np.sqrt(x.shape[1]) * (1 + gamma(8))
        both = [
            Features(phi[:, rows], np.full(len(rows), error * width), np.full(len(rows), cut * width))
            for rows in (given, scored)
        ]
        return score(ridge_outputs(both[0], targets, both[1], strength, degree), check, truth, degree)

    if features is None:
        if penalty is not None:
            raise ValueError(f"penalty must be None without features, as nothing is fitted then; got {penalty}.")
        _check_connected(graph, given)
        pieces = cover((a, b), propagated, accuracy, "graph_dual", _FAR)
    else:
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2 or len(x) != graph.n or not np.all(np.isfinite(x)):
            raise ValueError(f"features must be finite, one row for each of {graph.n} nodes; got shape {x.shape}.")
        if penalty is None or not 0 < penalty < np.inf:
            raise ValueError(f"penalty must be positive and finite, for the read-out of features; got {penalty}.")
        if hops < 1:
            raise ValueError(f"hops must be at least 1; got {hops}.")
        pieces = cover((a, b), partial(convolved, x, penalty), accuracy, "graph_dual", PENALTY)
    return ReadoutDuals.assemble(pieces, len(scored), truth is not None)


def _targets(labels: Any, n: int, fit: Array, scored: Array) -> tuple[Array, Array, Array | None]:
    """Targets of the nodes that fit and of those that score, and the classes of the latter (or `None`), from all
    labels."""
    y = np.asarray(labels)
    if y.shape[:1] != (n,):
        raise ValueError(f"labels must hold one entry for each of {n} nodes; got shape {y.shape}.")
    used = np.concatenate([fit, scored])
    if y.dtype.kind == "f":
        targets = y.astype(np.float64).reshape(n, -1)
        if not np.all(np.isfinite(targets[used])):
            raise ValueError("float labels must be finite on the nodes that are used.")
    elif y.ndim == 1:
        classes = np.unique(y[fit])
        if len(classes) < 2:
            raise ValueError(f"labels must have at least two classes on the labelled nodes; got {len(classes)}.")
        unknown = scored[~np.isin(y[scored], classes)]
        if unknown.size:
            raise ValueError(
                f"every class that is scored must be among the labelled nodes; got "
                f"{y[unknown[0]]!r} of node {unknown[0]}."
            )
        targets = (y[:, None] == classes).astype(np.float64)
        targets = 2 * targets[:, 1:] - 1 if len(classes) == 2 else targets
    else:
        raise ValueError(f"labels that are classes must be (N,); got shape {y.shape}.")
    return targets[fit], targets[scored], None if classes_of(targets[used]) is None else classes_of(targets[scored])


def _nodes(which: Any, n: int, name: str) -> Array:
    nodes = np.asarray(which)
    if nodes.dtype == bool and nodes.shape == (n,):
        nodes = np.flatnonzero(nodes)
    if nodes.ndim != 1 or nodes.size == 0 or nodes.dtype.kind not in "iu" or nodes.min() < 0 or nodes.max() >= n:
        raise ValueError(
            f"{name} must be indices of some of the {n} nodes, or a mask of them all; got {np.asarray(which)!r}."
        )
    if len(np.unique(nodes)) != len(nodes):
        values, counts = np.unique(nodes, return_counts=True)
        raise ValueError(f"{name} must hold a node once; got {values[counts > 1][0]} more often.")
    return nodes


def _check_connected(graph: Graph, given: Array) -> None:
    from scipy.sparse.csgraph import connected_components

    pattern = graph.matrix(np.ones(len(graph.values)))
    _, part = connected_components(pattern, directed=False)
    alone = np.flatnonzero(~np.isin(part, part[given]))
    if alone.size:
        raise ValueError(
            f"every node must have a path to a labelled one; got {alone.size} nodes without, the first is node "
            f"{alone[0]}. Drop them, or label one of each component."
        )


def _harmonic(
    weights: WeightSeries, given: Array, free: Array, targets: Array, degree: int
) -> tuple[Array, float, float]:
    """Series (degree + 1, u, K) of the harmonic function, the bound of its error in the largest norm, and of its
    truncation."""
    blocks = [_dense(a[free]) for a in weights.coefficients]
    laplacian = np.stack([np.diag(row_sums(a)) - a[:, free] for a in blocks])
    right = np.stack([a[:, given] @ targets for a in blocks])
    solution = solve_spd(laplacian, np.concatenate([right, np.ones((len(right), len(free), 1))], axis=2), degree)
    v = solution[0, :, -1]
    solution = solution[:, :, :-1]
    n = laplacian.shape[1] + len(given)
    error = weights.row_radius[free]
    # For the rounding of M_j w: a row of M_j holds weights, and a degree that is itself a rounded sum of n weights.
    size = np.stack([np.diag(row_sums(np.abs(a))) + np.abs(a[:, free]) for a in blocks])
    count = gamma(2 * n + 2 * len(blocks) + 2 * degree + 16)
    if not np.all(v > 0):
        raise np.linalg.LinAlgError("the Laplacian of the nodes without labels is numerically singular")
    spread = sum(np.abs(m @ v) for m in laplacian[1:]) if len(laplacian) > 1 else 0.0
    floor = laplacian[0] @ v - spread - count * np.sum(size @ v, axis=0) - 2 * error * np.max(v) * (1 + gamma(16))
    least = float(np.min(floor))
    if not least > 0:
        raise np.linalg.LinAlgError("the Laplacian of the nodes without labels could not be proved non-singular")
    inverse = float(np.max(v)) / least * (1 + gamma(16))

    residual = np.zeros((len(laplacian) + len(solution) - 1, *solution.shape[1:]))
    residual[: len(right)] += right
    for j, m in enumerate(laplacian):
        residual[j : j + len(solution)] -= m @ solution
    total = np.sum(np.abs(solution), axis=0)
    outer = float(np.max(np.abs(targets)))
    rounding = count * (np.sum(size, axis=0) @ total + np.sum(np.abs(blocks), axis=0)[:, given] @ np.abs(targets))
    reach = 2 * float(np.max(total)) + outer
    exact = float(np.max(np.sum(np.abs(residual), axis=0) + rounding + error[:, None] * reach))
    cut = float(np.max(np.sum(np.abs(residual[degree + 1 :]), axis=0) + weights.row_truncation[free][:, None] * reach))
    return solution, exact * inverse * (1 + gamma(64)), cut * inverse


def _averaged(weights: WeightSeries, x: Array, hops: int, degree: int) -> tuple[Array, float, float]:
    """Series (degree + 1, N, p) of `(D^-1 A)^hops X`, a bound of the error of its entries, and of their truncation."""
    sums = np.stack([row_sums(a) for a in weights.coefficients])
    size = sum(row_sums(abs(a)) for a in weights.coefficients)
    n = len(x)
    count = gamma(2 * n + 4 * degree + 16)
    least = sums[0] - np.sum(np.abs(sums[1:]), axis=0) - weights.row_radius - count * size
    if not np.all(least > 0):
        raise np.linalg.LinAlgError("a node's weights could not be proved to have a positive sum")
    current, error, cut = x[None], 0.0, 0.0
    for _ in range(hops):
        pushed = np.zeros((len(weights.coefficients) + len(current) - 1, *x.shape))
        for j, a in enumerate(weights.coefficients):
            for d in range(len(current)):
                pushed[j + d] += a @ current[d]
        following = np.zeros((degree + 1, *x.shape))
        for d in range(degree + 1):
            r = pushed[d].copy() if d < len(pushed) else np.zeros(x.shape)
            for j in range(1, min(d, len(sums) - 1) + 1):
                r -= sums[j][:, None] * following[d - j]
            following[d] = r / sums[0][:, None]
        residual = np.zeros((max(len(pushed), len(sums) + degree), *x.shape))
        residual[: len(pushed)] += pushed
        for j in range(len(sums)):
            residual[j : j + degree + 1] -= sums[j][:, None] * following
        largest = float(np.max(np.sum(np.abs(current), axis=0))) + float(np.max(np.sum(np.abs(following), axis=0)))
        missed = np.max(np.sum(np.abs(residual), axis=0), axis=1) + (weights.row_radius + count * size) * largest
        error = (error + float(np.max(missed / least))) * (1 + gamma(n + 64))
        lost = np.max(np.sum(np.abs(residual[degree + 1 :]), axis=0), axis=1) + weights.row_truncation * largest
        cut += float(np.max(lost / least))
        current = following
    return current, error, cut


def _dense(matrix: Matrix) -> Array:
    return matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
