r"""Duals whose level sets are few intervals, and the theorems that count these for a kind of model.

**Lemma (projection).** `{α : max_w f(α, w) > z}` is the projection of `{(α, w) : f > z}`, and the
continuous image of a connected set is connected, so it has at most as many intervals as that set has components.
The theorem that counts these components, C(s, k, D), stands in `_cells.py`.

Sources: Balcan, Nguyen and Sharma (2025), arXiv 2501.13734; Bartlett, Harvey, Liaw and Mehrabian (2019), for counting
layer by layer.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ._cells import log_cells
from ._complexity import Structure, check_count

NetworkLoss: TypeAlias = Literal["squared", "zero-one"]


@dataclass(frozen=True, init=False)
class Intervals(Structure):
    """`N(n) = 2 n B0 + 1`: every set `{α : loss < z}` is a union of at most B0 = `count` intervals.

    A jointly convex training loss has B0 = 1 (projections of convex sets are convex), so Pdim <= 2. For other models
    the class methods count the intervals; each states its theorem and proves it. All take `range` too.

    **Arguments:**

    - `count`: B0, an integer >= 1.
    - `range`: H, the loss of every task lies in [0, H].

    **Raises:** `ValueError` for a count below 1, or a range that is not a finite number above 0.
    """

    log_count: float
    """`ln B0`, natural logarithm: B0 may be far beyond the range of a float."""
    words: str
    """What is known, and so why there are no more, in words."""
    theorem: str
    """The class method that counted them; empty for a count that was given."""

    def __init__(self, count: int, *, range: float = 1.0):
        check_count("Intervals", count=count)
        self._set(math.log(count), f"every set {{hyper : loss < z}} is a union of at most {count} intervals", "", range)

    def _set(self, log_count: float, words: str, theorem: str, range: float) -> None:
        for name, value in (("log_count", log_count), ("words", words), ("theorem", theorem), ("range", range)):
            object.__setattr__(self, name, value)
        self.__post_init__()

    @classmethod
    def _by(cls, theorem: str, log_count: float, words: str, range: float) -> "Intervals":
        made = object.__new__(cls)
        made._set(log_count, words, theorem, range)
        return made

    def log_labellings(self, n: int) -> float:
        return float(np.logaddexp(0.0, math.log(2 * n) + self.log_count))

    @property
    def assumption(self) -> str:
        return self.words

    @property
    def name(self) -> str:
        return f"Intervals.{self.theorem}" if self.theorem else "Intervals"

    @classmethod
    def rational(cls, degree: int, *, range: float = 1.0) -> "Intervals":
        """`B0 = floor(D / 2) + 1`: every dual is one quotient N/M, M > 0, with both degrees at most D = `degree`.

        `N - z M` is negative on the set in question, and between two neighbouring intervals of it lie at least two of
        its at most D roots, counted with multiplicity (the two ends of the gap, or a double root).
        """
        check_count("Intervals.rational", least=0, degree=degree)
        words = f"every dual function is a quotient of polynomials of degree at most {degree} in hyper"
        return cls._by("rational", math.log(degree // 2 + 1), words, range)

    @classmethod
    def ridge(cls, rank: int, *, range: float = 1.0) -> "Intervals":
        """`B0 = r + 1`: the squared validation loss of ridge regression is rational of degree 2r in λ, r = `rank`.

        With the singular values s_j of a training matrix of rank r, predictions are `sum_j c_j / (s_j^2 + λ)`: over
        the common denominator `prod_j (s_j^2 + λ)^2` the loss has degree 2r over 2r. K folds have K denominators:
        give K r.
        """
        check_count("Intervals.ridge", rank=rank)
        words = f"ridge regression, squared loss, training matrices of rank at most {rank}"
        return cls._by("ridge", math.log(rank + 1), words, range)

    @classmethod
    def lasso(cls, kinks: int, *, range: float = 1.0) -> "Intervals":
        """`B0 = K + 1`: the path of the lasso or elastic net is linear between at most K = `kinks` kinks.

        K is the most of any path. On each of the K + 1 pieces the squared validation loss is a convex quadratic, and
        `{convex < z}` is one interval.
        """
        check_count("Intervals.lasso", least=0, kinks=kinks)
        words = f"lasso or elastic-net paths with at most {kinks} kinks, squared loss"
        return cls._by("lasso", math.log(kinks + 1), words, range)

    @classmethod
    def training_optimum(
        cls, *, weights: int, degree: int, pieces: int = 1, boundaries: int = 0, range: float = 1.0
    ) -> "Intervals":
        r"""`B0 = N C(M + 1, d + 1, D)`: the training dual `min_w f(α, w)` of a piecewise polynomial f.

        f has N = `pieces`, cut by M = `boundaries` polynomials in (α, w), every degree at most D = `degree`, and
        d = `weights`. *Proof.* `{f < z}` is the union over the pieces i of `R_i` with `{f_i < z}`, a union of cells of
        the M + 1 polynomials (boundaries and `f_i - z`); then project. This is Pdim = O(log N + d log(D M)) of arXiv
        2501.13734 with its constant. If w is confined to a box, count its 2d faces among the boundaries.
        """
        where = "Intervals.training_optimum"
        check_count(where, weights=weights, degree=degree, pieces=pieces)
        check_count(where, least=0, boundaries=boundaries)
        words = (
            f"the dual is the optimum over {weights} weights of a training loss that is piecewise polynomial with "
            f"{pieces} pieces, {boundaries} boundaries and degrees at most {degree}"
        )
        log_count = math.log(pieces) + log_cells(boundaries + 1, weights + 1, degree)
        return cls._by("training_optimum", log_count, words, range)

    @classmethod
    def validation_optimum(
        cls,
        *,
        weights: int,
        degree: int,
        pieces: int = 1,
        boundaries: int = 0,
        validation_pieces: int = 1,
        validation_boundaries: int = 0,
        range: float = 1.0,
    ) -> "Intervals":
        r"""`B0 = T_f T_g C(M_f + M_g + d + 1, d + 1, D)`: the dual `g(α, w(α))` of a regular inner problem.

        The training loss f has T_f = `pieces` cut by M_f = `boundaries`, the validation loss g T_g =
        `validation_pieces` cut by M_g = `validation_boundaries`; d = `weights`, every degree at most D = `degree`.
        Regular: for every α f is differentiable in w, and its gradient vanishes at w(α) alone (a strictly convex f does
        it). *Proof.* The graph of w is the zero set of the gradient. On piece i of f and piece j of g the part of the
        graph with g < z is a union of cells of the M_f + M_g boundaries, the d polynomials `grad_w f_i` and `g_j - z`;
        project. Pdim = O(log(T_f T_g) + d log((M_f + M_g + d) D)), without the d^2 that is published for problems that
        are not regular (arXiv 2501.13734).
        """
        where = "Intervals.validation_optimum"
        check_count(where, weights=weights, degree=degree, pieces=pieces, validation_pieces=validation_pieces)
        check_count(where, least=0, boundaries=boundaries, validation_boundaries=validation_boundaries)
        words = (
            f"the dual is a validation loss at the only stationary point of a training loss of {weights} weights, "
            f"both piecewise polynomial of degree at most {degree}"
        )
        cells = log_cells(boundaries + validation_boundaries + weights + 1, weights + 1, degree)
        return cls._by("validation_optimum", math.log(pieces * validation_pieces) + cells, words, range)

    @classmethod
    def network(
        cls,
        widths: tuple[int, ...],
        examples: int,
        *,
        breakpoints: int = 1,
        degree: int = 1,
        biases: bool = True,
        loss: NetworkLoss = "squared",
        range: float = 1.0,
    ) -> "Intervals":
        r"""`ln B0 = sum_l ln C(k_l T p, 1 + W_l, e_l) + ln C(sum_l k_l T p + s, 1 + W, e)` for α o1 + (1 - α) o2.

        A fully connected network of `widths = (inputs, k_1, ..., k_L, outputs)` with activations o1, o2 piecewise
        polynomial of `degree` D with p = `breakpoints` in all, trained on T = `examples`; the dual is the optimal
        training loss (squared, or 0-1 by the sign of one output or the largest of several). W_l weights up to layer l,
        W in all, `biases` included if there are any.

        *Proof.* Pre-activations of layer l are polynomials in (α, w) of degree `e_l = D e_{l-1} + 2` (`e_1 = 1`) once
        the pieces of the earlier layers are fixed, as an activation of degree D, times α, times a weight, adds up to
        that. They meet p thresholds at each of k_l T places, so the choices of pieces in layer l number at most
        C(k_l T p, 1 + W_l, e_l). For each choice of the pieces of all layers the loss is fixed by s polynomials: one,
        `loss - z`, of degree 2 e_{L+1}, or for 0-1 loss T binom(F, 2) comparisons of outputs (T if there is one) of
        degree e_{L+1}. The cells of all these polynomials together number at most the last term; then project. This is
        O(L W (L log D + log(T p k))) as in arXiv 2501.13734, with its constants. Leaky ReLU: p = 1, D = 1.
        """
        where = "Intervals.network"
        if len(widths) < 3 or not all(isinstance(k, int | np.integer) and k >= 1 for k in widths):
            raise ValueError(
                f"{where}: widths must be (inputs, hidden, ..., outputs), at least three positive integers; got "
                f"{widths!r}."
            )
        check_count(where, examples=examples, breakpoints=breakpoints, degree=degree)
        weights = np.cumsum([(a + int(biases)) * b for a, b in itertools.pairwise(widths)]).tolist()
        total, polynomials, reached = 0.0, 0, 1
        for width, below in zip(widths[1:-1], weights[:-1], strict=True):
            thresholds = width * examples * breakpoints
            total += log_cells(thresholds, 1 + below, reached)
            polynomials += thresholds
            reached = degree * reached + 2
        extra, reached = _loss_polynomials(where, loss, examples, widths[-1], reached)
        words = (
            f"the dual is the optimal {loss} training loss of a network of widths {widths} on {examples} examples with "
            f"activation hyper o1 + (1 - hyper) o2, {breakpoints} breakpoints, degree {degree}"
        )
        return cls._by("network", total + log_cells(polynomials + extra, 1 + weights[-1], reached), words, range)

    @classmethod
    def graph_kernel(
        cls,
        *,
        nodes: int,
        features: int,
        hidden: int,
        classes: int,
        degree: int,
        loss: NetworkLoss = "zero-one",
        range: float = 1.0,
    ) -> "Intervals":
        r"""`ln B0 = ln C(n d0, 1 + d_in d0, D + 1) + ln C(n d0 + s, 1 + W, 2D + 2)`: a two-layer GCN, A = (d_ij + α)^D.

        The network is `A relu(A X W0) W1` on n = `nodes`, with d_in = `features`, d0 = `hidden` units and F =
        `classes`; W = d0 (d_in + F), D = `degree`. *Proof.* The n d0 pre-activations have degree D + 1 in (α, W0); once
        their signs are fixed, the outputs are polynomials of degree 2D + 2. The 0-1 loss compares them: s =
        n binom(F, 2) polynomials (n if F = 1); the squared loss is one polynomial of twice the degree. Count cells and
        project: the O(d0 (d_in + F) log(n d0 F D)) of the theory.
        """
        where = "Intervals.graph_kernel"
        check_count(where, nodes=nodes, features=features, hidden=hidden, classes=classes, degree=degree)
        signs, weights = nodes * hidden, hidden * (features + classes)
        extra, reached = _loss_polynomials(where, loss, nodes, classes, 2 * degree + 2)
        patterns = log_cells(signs, 1 + features * hidden, degree + 1)
        words = (
            f"the dual is the optimal {loss} loss of a two-layer graph network of {features} features, {hidden} hidden "
            f"units and {classes} classes on {nodes} nodes, with kernel (d_ij + hyper)^{degree}"
        )
        return cls._by("graph_kernel", patterns + log_cells(signs + extra, 1 + weights, reached), words, range)


def _loss_polynomials(where: str, loss: str, examples: int, outputs: int, degree: int) -> tuple[int, int]:
    """How many polynomials fix the loss, and their degree, for outputs that are polynomials of the given degree."""
    if loss not in ("squared", "zero-one"):
        raise ValueError(f"{where}: loss must be 'squared' or 'zero-one'; got {loss!r}.")
    if loss == "squared":
        return 1, 2 * degree
    return examples * max(1, math.comb(outputs, 2)), degree
