r"""Many penalised least-squares problems on many boxes of penalties at once: polynomials with proven radii.

A split has the optimum `w(λ) = argmin_w w^T H w / 2 - b^T w + sum_h λ_h (a_h . |w| + c_h . w^2 / 2)` with
`H = X^T X / n`, `b = X^T y / n`, and the validation loss `f(λ) = w^T Q w - 2 q^T w + r`. On a box,
`λ_h = m_h + ρ_h s_h` with |s_h| <= 1:

1. With the signs σ of w at the middle, and S where they are not zero, `A(λ) = H + diag(sum_h λ_h c_h)` gives the
   predictor `v(s)`: `A_SS(s) v_S = (b - l(s) σ)_S`, `l(s) = sum_h λ_h a_h`, zero elsewhere. Its Taylor polynomial takes
   one inverse and a recurrence. The residual of that polynomial is a polynomial again, so the sum of its absolute
   coefficients bounds it on the box: nothing is assumed of convergence.
2. Where the signs change within the box, v is off. Over the box let `t_j` bound the residual on S, `x_j` the excess of
   `|b - H v|_j - l_j` off S, and `ν_j` how far v_j is on the wrong side of zero on S. With `e = v - w`,

       ‖e‖_A <= T + min(sqrt(R), R / T),   R = sum_j ν_j t_j,
       T = sum_j (t_j + x_j) sqrt((A^-1)_jj) + sum_j ν_j sqrt(A_jj).

   *Proof.* Both obey `A v - b + l ζ = t` and `A w - b + l z = 0`, z a subgradient of `sum |w_j|`, ζ = σ on S and
   whatever makes t = 0 off S. So `e^T A e = sum_j e_j (t_j - l_j (ζ_j - z_j))`. Off S,
   `-l_j (ζ_j - z_j) e_j = l_j (ζ_j w_j - |w_j|) <= x_j |e_j|`. On S with v_j on its side, σ_j is a subgradient at v_j
   and the term is at most 0 (monotonicity). On the wrong side, by cases of the sign of w_j,
   `-l_j (σ_j - z_j) (v_j - w_j) <= l_j (1 - σ_j z_j) ν_j = ν_j |t_j - (A e)_j|`. Last,
   `|e_j| <= sqrt((A^-1)_jj) ‖e‖_A` and `|(A e)_j| <= sqrt(A_jj) ‖e‖_A`: a quadratic inequality in ‖e‖_A. (Of the
   residual, the terms of the next degree in s enter by their norms `‖.‖_(A^-1)` instead, which is sharper.)
3. `f(λ) >= f(v) - 2 ‖Q v - q‖_(A^-1) ‖e‖_A`, as f is convex in w; and f is at most that with a plus sign and
   `‖e‖_A^2 tr(A^-1 Q)` more.

All norms are taken with the smallest A of the box, which the others exceed. Rounding is counted by the standard model
(Higham 2002): of H, b, Q and q as sums over rows, of every residual, and of the Cholesky factor and its inverse.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._bernstein import UNIT, Array
from ._boxes import Moments, SplitBounds, join
from ._multivariate import Monomials, monomials, pairs
from ._signs import masked, signs_of, solved, times
from ._task import Task

_DEGREE = 3
"""Taylor terms of the weights."""
_AXES = {"ridge": (1,), "absolute": (2,), "square": (2,)}
"""The axes of arrays that count columns."""


class PenaltyBoxes(NamedTuple):
    """The splits of all tasks, padded to as many columns as the widest has; `size` of an array bounds its rounding."""

    sums: Moments
    ridge: Array
    """(N, d): 1 for the columns that only pad."""
    absolute: Array
    """(N, p, d): a_h."""
    square: Array
    """(N, p, d): c_h."""
    first: Array
    """(T,): the first split of each task."""
    clip: Array
    """(T,): losses are cut there."""

    @classmethod
    def of(cls, task: Task, absolute: Array, square: Array, intercept: bool) -> "PenaltyBoxes":
        """The splits of one task; the two kinds of penalty (p, d)."""
        count = len(task.splits)
        kinds = {name: np.repeat(x[None], count, axis=0) for name, x in (("absolute", absolute), ("square", square))}
        one = {"first": np.zeros(1, dtype=int), "clip": np.array([np.inf])}
        return cls(Moments.of(task, intercept), ridge=np.zeros((count, absolute.shape[1])), **kinds, **one)

    @property
    def any_absolute(self) -> bool:
        """Whether any weight has an absolute penalty."""
        return bool(np.any(self.absolute))

    @property
    def degree(self) -> int:
        """Of the polynomials of the loss."""
        return 2 * _DEGREE

    @property
    def size(self) -> int:
        """Floats that one box takes."""
        return self.sums.H.size

    @property
    def splits(self) -> int:
        """N."""
        return len(self.sums.r)

    def bounds(self, low: Array, high: Array, hint: Array | None, *, points: bool = False) -> SplitBounds:
        """On boxes (m, p), or at points, where `low` is `high`; signs are hints."""
        return _enclose(self, low, high, hint, 0 if points else _DEGREE)

    def clipped(self, height: float) -> "PenaltyBoxes":
        """With losses cut at a height too."""
        return self._replace(clip=np.minimum(self.clip, height))

    def joined(self, others: "Sequence[PenaltyBoxes]") -> "PenaltyBoxes":
        """With those of other tasks after it, padded with columns that no weight of which leaves zero."""
        return join([self, *others], _AXES, ridge=1.0)


def _enclose(stack: PenaltyBoxes, low: Array, high: Array, signs: Array | None, degree: int) -> SplitBounds:
    sums = stack.sums
    (m, p), (n, d) = low.shape, sums.b.shape
    middle = 0.5 * (low + high)
    half = np.where(low == high, 0.0, 0.5 * (high - low) * (1 + 4 * UNIT) + 4 * UNIT * middle)
    square, absolute = _spread(middle, stack.square) + stack.ridge, _spread(middle, stack.absolute)
    sigma = signs_of(sums.H, sums.b, square, absolute, signs)
    active = sigma != 0
    matrix = masked(sums.H, square, active)
    inverse = solved(matrix, np.broadcast_to(np.eye(d), matrix.shape)) * active[..., None, :] * active[..., :, None]

    # The predictor: its Taylor coefficients, (m, n, d, monomials).
    known = monomials(p, degree)
    v = np.zeros((m, n, d, len(known.powers)))
    right = np.where(active, sums.b - absolute * sigma, 0.0)
    v[..., 0] = times(inverse, right)
    rest = right - times(sums.H, v[..., 0]) - square * v[..., 0]
    v[..., 0] += times(inverse, np.where(active, rest, 0.0))
    pull, push = (half[:, None, :, None] * kind[None] for kind in (stack.absolute, stack.square))  # (m, n, p, d)
    rights = np.zeros_like(v)
    rights[..., 0] = right
    for h in range(p if degree else 0):
        rights[..., 1 + h] = -pull[:, :, h] * sigma
    for level in known.level[1:]:
        for row in range(level.start, level.stop):
            for h, below in known.below(row):
                rights[..., row] -= push[:, :, h] * v[..., below]
        v[..., level] = inverse @ np.where(active[..., None], rights[..., level], 0.0)
    gradient_rest = sums.H @ v
    curved = square[..., None] * v
    residual = np.where(active[..., None], gradient_rest + curved - rights, 0.0)
    wrong = np.abs(residual).sum(axis=-1)
    rest = _next_degree(known, push, v)  # what the next Taylor terms would have to cancel
    size = np.abs(v).sum(axis=-1)
    highest, tallest = square + push.sum(axis=2), absolute + pull.sum(axis=2)
    lost = sums.unit[:, None] * (times(sums.H_size, size) + sums.b_size)
    lost += (d + p * (degree + 2) + 24) * UNIT * (times(np.abs(sums.H), size) + highest * size + tallest)
    wrong = np.where(active, wrong, 0.0) + lost + UNIT * np.abs(rest).sum(axis=-1)

    source = wrong
    crossed = np.zeros_like(wrong)
    if stack.any_absolute:
        # Correlations off S above their bound, and weights on S beyond zero, both to first order in s exactly.
        correlation = -gradient_rest
        correlation[..., 0] += sums.b
        linear = slice(1, 1 + p) if degree else slice(1, 1)
        beyond = np.abs(correlation[..., linear.stop :]).sum(axis=-1)
        slopes = correlation[..., linear]
        bound = pull.swapaxes(2, 3) if degree else np.zeros((m, n, d, 0))
        up = correlation[..., 0] - absolute + np.abs(slopes - bound).sum(axis=-1)
        down = -correlation[..., 0] - absolute + np.abs(slopes + bound).sum(axis=-1)
        excess = np.maximum(np.maximum(up, down) + beyond, 0.0)
        source = wrong + np.where(active, 0.0, excess)
        aside = np.abs(v[..., 1:]).sum(axis=-1) - sigma * v[..., 0]
        crossed = np.where(active & (absolute > 0), np.maximum(aside, 0.0) * (1 + 1e-12), 0.0)

    root, sure = _inverse_root(stack, _spread(low, stack.square) + stack.ridge)
    reach = np.sqrt(np.einsum("mnij,mnij->mnj", root, root))
    stiff = np.sqrt(np.einsum("njj->nj", sums.H) * (1 + 1e-9) + highest * (1 + 1e-9))
    t = (source * reach).sum(axis=-1) + (crossed * stiff).sum(axis=-1) + _lengths(root, rest)
    more = (crossed * (wrong + np.abs(rest).sum(axis=-1))).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        error = (t + np.where(more > 0, np.minimum(np.sqrt(more), more / t), 0.0)) * (1 + 1e-9)

    # The loss of the predictor, and what the error of the predictor costs.
    slope = sums.Q @ v
    products = v.swapaxes(-1, -2) @ slope
    coefficients = products.reshape(m, n, -1) @ pairs(p, degree, degree)
    coefficients[..., : v.shape[-1]] -= 2 * np.einsum("nd,mnda->mna", sums.q, v)
    coefficients[..., 0] += sums.r
    slope[..., 0] -= sums.q
    steep = _lengths(root, slope)
    lost = np.einsum("mnd,mnd->mn", size, times(sums.Q_size, size) + 2 * sums.q_size) + sums.r_size
    lost = lost * (sums.unit + (4 * d + len(known.powers) + 24) * UNIT)
    steep += (reach * (sums.unit[:, None] + (2 * d + 24) * UNIT) * (times(sums.Q_size, size) + sums.q_size)).sum(-1)
    # The trace of W Q W^T, whose Q is known to its rounding.
    blur = (sums.unit + (4 * d + 8) * UNIT) * np.linalg.norm(sums.Q_size, axis=(1, 2))
    trace = np.einsum("mnij,mnij->mn", root @ sums.Q, root) + blur * np.einsum("mnij,mnij->mn", root, root)
    sure &= np.isfinite(error) & np.all(np.isfinite(coefficients), axis=-1) & np.isfinite(steep)
    slack = np.where(sure, 2 * steep * error * (1 + 1e-9) + lost, np.inf)
    above = np.where(sure, trace * error**2 * (1 + 1e-9), np.inf)

    if not degree:
        # In the logarithm of λ_h the optimum moves by -A^-1 λ_h (a_h σ + c_h w).
        force = _force(middle, stack, sigma, v[..., 0])
        movement = -2 * np.einsum("mnd,mnhd->mnh", times(inverse, slope[..., 0]), force)
    else:
        moved = v[..., 1 : 1 + p]
        force = pull * sigma[:, :, None] + push * v[:, :, None, :, 0]
        movement = np.sqrt(np.abs(np.einsum("mndh,mnhd->mnh", moved, force))) * steep[..., None]
    coefficients[~sure] = 0.0
    return SplitBounds(coefficients, slack, above, np.nan_to_num(movement), sigma.astype(np.int8))


def _next_degree(known: Monomials, push: Array, v: Array) -> Array:
    """The residual of the Taylor polynomial: its terms of the next degree, (m, n, d, their number)."""
    p, last = known.variables, known.level[-1]
    powers: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for row in range(last.start, last.stop):
        for h in range(p):
            higher = tuple(int(x) + (h == k) for k, x in enumerate(known.powers[row]))
            powers.setdefault(higher, []).append((h, row))
    return np.stack([sum(push[:, :, h] * v[..., row] for h, row in terms) for terms in powers.values()], axis=-1)


def _lengths(root: Array, vectors: Array) -> Array:
    """`sum_k ‖W g_k‖`, (m, n), of vectors (m, n, d, k), rounding of the product included."""
    d = root.shape[-1]
    turned = root @ vectors
    length = np.sqrt(np.einsum("mnik,mnik->mnk", turned, turned)).sum(axis=-1)
    plain = np.sqrt(np.einsum("mnik,mnik->mnk", vectors, vectors)).sum(axis=-1)
    return length * (1 + 1e-12) + (d + 4) * UNIT * plain * np.sqrt(np.einsum("mnij,mnij->mn", root, root))


def _force(hyper: Array, stack: PenaltyBoxes, sigma: Array, w: Array) -> Array:
    """(m, n, p, d): `λ_h (a_h σ + c_h w)`."""
    return hyper[:, None, :, None] * (stack.absolute * sigma[:, :, None] + stack.square * w[:, :, None])


def _spread(hyper: Array, kind: Array) -> Array:
    """(m, n, d): `sum_h λ_h kind_h`."""
    return np.einsum("mh,nhd->mnd", hyper, kind)


def _inverse_root(stack: PenaltyBoxes, square: Array) -> tuple[Array, Array]:
    """`inverse_root` of `H + diag(square)`."""
    sums = stack.sums
    d = square.shape[-1]
    A = np.broadcast_to(sums.H, (*square.shape, d)).copy()
    here = np.arange(d)
    A[..., here, here] += square
    heights = np.einsum("njj->nj", sums.H_size) + square
    return inverse_root(A, heights * sums.unit[:, None] * d, heights)


def inverse_root(A: Array, doubt: Array, heights: Array) -> tuple[Array, Array]:
    """W with `‖g‖_(A^-1) <= ‖W g‖` for every matrix above A, and where that is proved. A (m, n, d, d) is changed.

    A is known to `diag(doubt)` (m, n, d), in the order of matrices, and `heights` bound its diagonal. Taken off, with
    what the factorisation may lose, it leaves a computed Cholesky factor L with `L L^T` below A (Higham 2002, theorem
    10.3, in units of the diagonal). For any R close to L^-1, `‖L^-1 g‖ <= ‖R g‖ / (1 -
    ‖I - R L‖)`.
    """
    d = A.shape[-1]
    here = np.arange(d)
    A[..., here, here] -= doubt + heights * 6 * (d + 4) * UNIT * d
    try:
        L = np.linalg.cholesky(A)
        sure = np.ones(A.shape[:-2], dtype=bool)
    except np.linalg.LinAlgError:
        sure = np.linalg.eigvalsh(A)[..., 0] > 0
        A[~sure] = np.eye(d)
        L = np.empty_like(A)
        for at in np.ndindex(*sure.shape):
            try:
                L[at] = np.linalg.cholesky(A[at])
            except np.linalg.LinAlgError:
                sure[at], L[at] = False, np.eye(d)
    R = np.linalg.inv(L)
    defect = R @ L
    defect[..., here, here] -= 1.0
    off = np.sqrt(np.einsum("mnij,mnij->mn", defect, defect))
    off += 2 * (d + 2) * UNIT * np.sqrt(np.einsum("mnij,mnij->mn", R, R) * np.einsum("mnij,mnij->mn", L, L))
    sure &= off < 0.5
    return R / (1 - np.where(sure, off, 0.0) - 1e-10)[..., None, None], sure
