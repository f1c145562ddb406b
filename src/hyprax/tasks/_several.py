r"""Structures of duals in several penalties, with explicit constants: counted by the cells of polynomials.

**Lemma (cells).** If the labels `1[loss_λ(x_i) < z_i]` of n tasks are fixed by the signs (< 0, = 0, > 0) of s
polynomials of degree at most D in p hyperparameters λ, then `N(n) <= C(s, p, D)`: no label changes within a cell. With
the theorem of Basu, Pollack and Roy (see `_cells.py`), `C(s, p, D) = D (2D - 1)^(p-1) sum_{j<=p} binom(s, j) 4^j`.
The number of hyperparameters p is the exponent of n; the number of features enters s and D alone.
"""

import math
from dataclasses import dataclass

import numpy as np

from ._cells import log_cells
from ._complexity import Structure


@dataclass(frozen=True)
class RidgePenalties(Structure):
    r"""`N(n) = C(n, p, 2 d k)`: ridge regression with p = `hyperparameters` strengths on d = `features`.

    k = `splits` training parts a task: 1 for a hold-out, K for K folds. *Proof.* On a split the weights are
    `adj(A(λ)) b / det A(λ)`, `A(λ) = X^T X / n + sum_g λ_g D_g`. The determinant is positive, of degree at most d in λ,
    and a residual times the determinant is a polynomial of degree at most d too. Times the product of the squared
    determinants of all splits, `loss - z` is one polynomial of degree at most 2 d k. So Pdim = O(p log(d k)). Squared
    loss; the features may be in any groups.
    """

    features: int
    """d."""
    hyperparameters: int
    """p."""
    splits: int = 1
    """k."""

    def log_labellings(self, n: int) -> float:
        return log_cells(n, self.hyperparameters, 2 * self.features * self.splits)

    @property
    def assumption(self) -> str:
        return (
            f"ridge regression with {self.hyperparameters} strengths on {self.features} features, squared loss, "
            f"{_parts(self.splits)}"
        )


@dataclass(frozen=True)
class ElasticNetPenalties(Structure):
    r"""`N(n) = C(2 n k d 3^d, 2, d) C(n, 2, 2 d k)`: the elastic net in both penalties, on d = `features`.

    k = `splits` training parts a task. *Proof.* For signs σ with support S, `A_S = X_S^T X_S / n + l2 I`, the candidate
    is `w_S = adj(A_S) (b_S - l1 σ_S) / det A_S`, with numerators of degree at most |S|. It is the optimum, with signs
    σ, exactly if these numerators have the signs σ and `|b_j - H_jS w_S| <= l1` off S: signs of |S| + 2 (d - |S|)
    polynomials, at most 2 d, of degree at most d. There are 3^d candidates a split. In a cell of all these 2 n k d 3^d
    polynomials the signs of every optimum are fixed, so `loss_i - z_i` is, but for a positive denominator, one
    polynomial of degree at most 2 d k for each task: such a cell has at most C(n, 2, 2 d k) labellings. So
    Pdim = O(d + log k), linear in the features, as in Balcan, Nguyen and Sharma (2023); arXiv 2207.10199 had d^2.
    Squared loss, l2 > 0.
    """

    features: int
    """d."""
    splits: int = 1
    """k."""

    def log_labellings(self, n: int) -> float:
        d = self.features
        boundaries = math.log(2 * n * self.splits * d) + d * math.log(3)
        # binom(s, j) <= s^j / j!, in logarithms as s has as many digits as there are features.
        choices = np.logaddexp.reduce([0.0, boundaries + math.log(4), 2 * boundaries + math.log(8)])
        first = math.log(d) + math.log(2 * d - 1) + float(choices)
        return first + log_cells(n, 2, 2 * d * self.splits)

    @property
    def assumption(self) -> str:
        return f"the elastic net in both penalties on {self.features} features, squared loss, {_parts(self.splits)}"


def _parts(splits: int) -> str:
    return f"{splits} training part{'s' if splits > 1 else ''} a task"
