r"""Structures of duals that are optima over weights: counted by the cells of polynomials, with explicit constants.

**Lemma (projection).** `{α : max_w f(α, w) > z}` is the projection of `{(α, w) : f > z}`, and the
continuous image of a connected set is connected, so it has at most as many intervals as that set has components.

**Theorem (Basu, Pollack and Roy 2005).** The realisations of all sign conditions (< 0, = 0, > 0) of s polynomials of
degree at most D in k real variables have together at most `C(s, k, D) = D (2D - 1)^(k-1) sum_{j<=k} binom(s, j) 4^j`
connected components, called cells here. It makes the constants of the neural-network bounds explicit.

Sources: Balcan, Nguyen and Sharma (2025), arXiv 2501.13734; Basu, Pollack and Roy, "On the Betti numbers of sign
conditions", Proc. AMS 133 (2005); Bartlett, Harvey, Liaw and Mehrabian (2019), for counting layer by layer.
"""

import math
from dataclasses import dataclass

import numpy as np

from ._complexity import Structure, from_intervals, log_binomial_sum


@dataclass(frozen=True)
class PiecewisePolynomial(Structure):
    r"""`B0 = N C(M + 1, d + 1, D)`: the training dual `min_w f(α, w)` of a piecewise polynomial f.

    f has N = `pieces`, cut by M = `boundaries` polynomials in (α, w), every degree at most D = `degree`, and
    d = `weights`. *Proof.* `{f < z}` is the union over the pieces i of `R_i` with `{f_i < z}`, a union of cells of the
    M + 1 polynomials (boundaries and `f_i - z`); then project. This is Pdim = O(log N + d log(D M)) of arXiv 2501.13734
    with its constant. If w is confined to a box, count its 2d faces among the boundaries.
    """

    pieces: int
    boundaries: int
    degree: int
    weights: int

    def _least(self, name: str) -> int:
        return 0 if name == "boundaries" else 1

    def log_labellings(self, n: int) -> float:
        cells = log_cells(self.boundaries + 1, self.weights + 1, self.degree)
        return from_intervals(n, math.log(self.pieces) + cells)

    @property
    def assumption(self) -> str:
        return (
            f"the dual is the optimum over {self.weights} weights of a training loss that is piecewise polynomial with "
            f"{self.pieces} pieces, {self.boundaries} boundaries and degrees at most {self.degree}"
        )


@dataclass(frozen=True)
class ValidationOptimum(Structure):
    r"""`B0 = T_f T_g C(M_f + M_g + d + 1, d + 1, D)`: the dual `g(α, w(α))` of a regular inner problem.

    Regular: for every α the training loss f is differentiable in w, and its gradient vanishes at w(α) alone (a
    strictly convex f does it). *Proof.* The graph of w is the zero set of the gradient. On piece i of f and piece j of
    g the part of the graph with g < z is a union of cells of the M_f + M_g boundaries, the d polynomials `grad_w f_i`
    and `g_j - z`; project. Pdim = O(log(T_f T_g) + d log((M_f + M_g + d) D)), without the d^2 that the general result
    pays; see [`published_order`][hyprax.tasks.complexity.published_order] for that.
    """

    weights: int
    degree: int
    pieces: int = 1
    boundaries: int = 0
    validation_pieces: int = 1
    validation_boundaries: int = 0

    def _least(self, name: str) -> int:
        return 0 if name.endswith("boundaries") else 1

    def log_labellings(self, n: int) -> float:
        polynomials = self.boundaries + self.validation_boundaries + self.weights + 1
        cells = log_cells(polynomials, self.weights + 1, self.degree)
        return from_intervals(n, math.log(self.pieces * self.validation_pieces) + cells)

    @property
    def assumption(self) -> str:
        return (
            f"the dual is a validation loss at the only stationary point of a training loss of {self.weights} weights, "
            f"both piecewise polynomial of degree at most {self.degree}"
        )


@dataclass(frozen=True)
class ActivationInterpolation(Structure):
    r"""`ln B0 = sum_l ln C(k_l T p, 1 + W_l, e_l) + ln C(sum_l k_l T p + s, 1 + W, e)` for α o1 + (1 - α) o2.

    A fully connected network of `widths = (inputs, k_1, ..., k_L, outputs)` with o1, o2 piecewise polynomial of
    `degree` D with p = `breakpoints` in all, trained on T = `examples`; the dual is the optimal training loss
    (squared, or 0-1 by the sign of one output or the largest of several). W_l weights up to layer l, W in all.

    *Proof.* Pre-activations of layer l are polynomials in (α, w) of degree `e_l = D e_{l-1} + 2` (`e_1 = 1`)
    once the pieces of the earlier layers are fixed, as an activation of degree D, times α, times a weight, adds up
    to that. They meet p thresholds at each of k_l T places, so the choices of pieces in layer l number at most C(k_l T
    p, 1 + W_l, e_l). For each choice of the pieces of all layers the loss is fixed by s polynomials: one, `loss - z`,
    of degree 2 e_{L+1}, or for 0-1 loss T binom(F, 2) comparisons of outputs (T if there is one) of degree e_{L+1}.
    The cells of all these polynomials together number at most the last term; then project. This is O(L W (L log D +
    log(T p k))) as in arXiv 2501.13734, with its constants. Leaky ReLU: p = 1, D = 1.
    """

    widths: tuple[int, ...]
    examples: int
    breakpoints: int = 1
    degree: int = 1
    biases: bool = True
    loss: str = "squared"

    def __post_init__(self):
        super().__post_init__()
        if len(self.widths) < 3 or not all(isinstance(k, int | np.integer) and k >= 1 for k in self.widths):
            raise ValueError(
                "ActivationInterpolation: widths must be (inputs, hidden, ..., outputs), at least three positive "
                f"integers; got {self.widths!r}."
            )
        _check_loss("ActivationInterpolation", self.loss)

    @property
    def weights(self) -> int:
        """W: the number of weights, biases included."""
        return self._weights_up_to(len(self.widths) - 1)

    def _weights_up_to(self, layer: int) -> int:
        bias = int(self.biases)
        return sum((self.widths[j] + bias) * self.widths[j + 1] for j in range(layer))

    def log_labellings(self, n: int) -> float:
        total, polynomials, degree = 0.0, 0, 1
        for layer in range(1, len(self.widths) - 1):
            thresholds = self.widths[layer] * self.examples * self.breakpoints
            total += log_cells(thresholds, 1 + self._weights_up_to(layer), degree)
            polynomials += thresholds
            degree = self.degree * degree + 2
        extra, degree = _loss_polynomials(self.loss, self.examples, self.widths[-1], degree)
        return from_intervals(n, total + log_cells(polynomials + extra, 1 + self.weights, degree))

    @property
    def assumption(self) -> str:
        return (
            f"the dual is the optimal {self.loss} training loss of a network of widths {self.widths} on "
            f"{self.examples} examples with activation hyper o1 + (1 - hyper) o2, "
            f"{self.breakpoints} breakpoints, degree {self.degree}"
        )


@dataclass(frozen=True)
class GraphKernel(Structure):
    r"""`ln B0 = ln C(n d0, 1 + d_in d0, D + 1) + ln C(n d0 + s, 1 + W, 2D + 2)`: a two-layer GCN, A = (d_ij + α)^D.

    The network is `A relu(A X W0) W1` on n = `nodes`, with d_in = `features`, d0 = `hidden` units and F = `classes`;
    W = d0 (d_in + F). *Proof.* The n d0 pre-activations have degree D + 1 in (α, W0); once their signs are fixed,
    the outputs are polynomials of degree 2D + 2. The 0-1 loss compares them: s = n binom(F, 2) polynomials (n if
    F = 1); the squared loss is one polynomial of twice the degree. Count cells and project: the
    O(d0 (d_in + F) log(n d0 F D)) of the theory.
    """

    nodes: int
    features: int
    hidden: int
    classes: int
    degree: int
    loss: str = "zero-one"

    def __post_init__(self):
        super().__post_init__()
        _check_loss("GraphKernel", self.loss)

    def log_labellings(self, n: int) -> float:
        signs = self.nodes * self.hidden
        extra, degree = _loss_polynomials(self.loss, self.nodes, self.classes, 2 * self.degree + 2)
        weights = self.hidden * (self.features + self.classes)
        patterns = log_cells(signs, 1 + self.features * self.hidden, self.degree + 1)
        return from_intervals(n, patterns + log_cells(signs + extra, 1 + weights, degree))

    @property
    def assumption(self) -> str:
        return (
            f"the dual is the optimal {self.loss} loss of a two-layer graph network of {self.features} features, "
            f"{self.hidden} hidden units and {self.classes} classes on {self.nodes} nodes, "
            f"with kernel (d_ij + hyper)^{self.degree}"
        )


def _check_loss(where: str, loss: str) -> None:
    if loss not in ("squared", "zero-one"):
        raise ValueError(f"{where}: loss must be 'squared' or 'zero-one'; got {loss!r}.")


def _loss_polynomials(loss: str, examples: int, outputs: int, degree: int) -> tuple[int, int]:
    """How many polynomials fix the loss, and their degree, for outputs that are polynomials of the given degree."""
    if loss == "squared":
        return 1, 2 * degree
    return examples * max(1, math.comb(outputs, 2)), degree


def log_cells(polynomials: int, variables: int, degree: int) -> float:
    """`ln C(s, k, D)`, `C = D (2D - 1)^(k-1) sum_{j <= k} binom(s, j) 4^j` (Basu, Pollack and Roy 2005)."""
    choices = log_binomial_sum(polynomials, variables, math.log(4.0))
    return math.log(degree) + (variables - 1) * math.log(2 * degree - 1) + choices


def published_order(
    objective: str, *, weights: int, pieces: int, boundaries: int, degree: int, hyperparameters: int = 1
) -> float:
    """The order of the pseudo-dimension with no regularity assumed, hidden constant set to 1: guidance, no guarantee.

    Training objective: `p log T + p d log(M + d) + p d log D`; validation objective: `p log T + p d^2 log(2 + M D)`,
    with p = `hyperparameters`, d = `weights`, T = `pieces` (for validation the product T_f T_g), M = `boundaries` (for
    validation M_f + M_g + T_f + d) and D = `degree`. The published results hide their constants, so nothing here is
    ever chosen as a bound. Sources: arXiv 2501.13734 (2025) and arXiv 2602.02406 (2026).
    """
    p, d = hyperparameters, weights
    if min(p, d, pieces, degree) < 1 or boundaries < 0:
        raise ValueError("published_order: every size must be >= 1 (boundaries >= 0).")
    if objective == "training":
        return p * (math.log(pieces) + d * math.log(boundaries + d) + d * math.log(degree))
    if objective == "validation":
        return p * (math.log(pieces) + d**2 * math.log(2 + boundaries * degree))
    raise ValueError(f"published_order: objective must be 'training' or 'validation'; got {objective!r}.")
