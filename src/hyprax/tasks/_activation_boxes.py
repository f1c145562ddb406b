r"""An activation `α o1 + (1 - α) o2` beside the penalty of the read-out, on boxes: polynomials with proven radii.

One hidden layer with fixed inner weights has features `Phi(α) = P + α D`, affine in α. The read-out solves
`A w = b`, `A = Phi^T Phi / n + penalty I`, `b = Phi^T Y / n`, and the loss is `f = tr(w^T Q w - 2 q^T w) + r`,
`Q = Psi^T Psi / m` with Psi the features of the validation rows. On a box, `α = c + h s_1`, `penalty = l + k s_2`:

1. A, b, Q and q are polynomials in s: `A(s) = A_0 + H_1 s_1 + H_2 s_1^2 + k s_2 I`. The Taylor polynomial v of w takes
   one inverse and a recurrence. Its residual `b - A v` is a polynomial, so the sum of the norms of its coefficients
   bounds it on the box: nothing is assumed of convergence.
2. `‖v - w‖_A = ‖residual‖_(A^-1)`. `H_2 >= 0`, so `A(s) >= A_low + s_1 H_1 >= (1 - rho) A_low` with A_low that of the
   middle α and the least penalty, and `rho = ‖W H_1 W^T‖`, W an inverse root of A_low: `‖g‖_(A^-1) <= ‖W g‖ / sqrt(1 -
   rho)`. And `A(s) >= penalty I`, so `‖g‖_(A^-1) <= ‖g‖ / sqrt(least penalty)`. The smaller of the two is taken.
3. f is convex in w: `f(v) - 2 ‖Q v - q‖_(A^-1) ‖v - w‖_A <= f(w)`, and f(w) is at most that with a plus sign, and
   `tr(Q) ‖v - w‖_A^2 / penalty` more.

Rounding is counted by the standard model (Higham 2002): of all moments as sums over rows, of what the rounding of the
pre-activations does to the features, of every residual, and of the inverse root.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ._activation import Activation, first_layer
from ._bernstein import UNIT, Array
from ._boxes import SplitBounds, join
from ._multivariate import monomials, pairs, shifts
from ._penalty_boxes import inverse_root
from ._series import gamma
from ._task import Task

_DEGREE = 6
"""Taylor terms of the weights."""
_ALPHA, _ALPHA2, _PENALTY = (1, 0), (2, 0), (0, 1)


class ActivationBoxes(NamedTuple):
    """The splits of tasks, with moments as polynomials in α; `off` of an array bounds its error, entry by entry, for
    every α of the domain, and `size` what its products are rounded in units of."""

    H: Array
    """(N, 3, d, d): `Phi^T Phi / n = H_0 + α H_1 + α^2 H_2`."""
    H_size: Array
    """(N, d, d)."""
    H_off: Array
    b: Array
    """(N, 2, d, K)."""
    b_size: Array
    """(N, d, K)."""
    b_off: Array
    Q: Array
    """(N, 3, d, d); validation, over the validation rows of the task."""
    Q_size: Array
    Q_off: Array
    q: Array
    """(N, 2, d, K)."""
    q_size: Array
    q_off: Array
    r: Array
    """(N,)."""
    r_off: Array
    first: Array
    """(T,): the first split of each task."""
    clip: Array
    """(T,): losses are cut there."""

    @classmethod
    def of(
        cls,
        task: Task,
        layer: tuple[Array, Array],
        o1: Activation,
        o2: Activation,
        alphas: tuple[float, float],
        penalties: tuple[float, float],
    ) -> "ActivationBoxes":
        """The splits of one task, for α and penalties in these ranges."""
        most, rest = max(map(abs, alphas)), max(abs(1 - x) for x in alphas)
        rows = []
        for split in task.splits:
            H = _moments(split.X, split.y, len(split.X), layer, o1, o2, most, rest)
            Q = _moments(split.X_val, split.y_val, task.n_validation, layer, o1, o2, most, rest)
            square = float(np.sum(split.y_val**2)) / task.n_validation
            rows.append((*H, *Q, square, gamma(split.y_val.size + 8) * square))
        parts = [np.array(x) for x in zip(*rows, strict=True)]
        return cls(*parts, first=np.zeros(1, dtype=int), clip=np.array([np.inf]))

    @property
    def degree(self) -> int:
        """Of the polynomials of the loss."""
        return 2 * _DEGREE + 2

    @property
    def size(self) -> int:
        """Floats that one box takes."""
        return self.H.size + self.b.size * len(monomials(2, _DEGREE + 2).powers)

    @property
    def splits(self) -> int:
        """N."""
        return len(self.r)

    def clipped(self, height: float) -> "ActivationBoxes":
        """With losses cut at a height too."""
        return self._replace(clip=np.minimum(self.clip, height))

    def joined(self, others: "Sequence[ActivationBoxes]") -> "ActivationBoxes":
        """With those of other tasks after it."""
        for i, other in enumerate(others, start=1):
            if other.b.shape[1:] != self.b.shape[1:]:
                raise ValueError(
                    "erm_box: all duals must have as many hidden units and targets; got "
                    f"{self.b.shape[2] - 1} and {self.b.shape[3]}, and {other.b.shape[2] - 1} and {other.b.shape[3]} "
                    f"of dual {i}."
                )
        return join([self, *others], {})

    def bounds(self, low: Array, high: Array, hint: Array | None, *, points: bool = False) -> SplitBounds:
        """On boxes (m, 2), or at points, where `low` is `high`. At points the coefficients are derivatives."""
        return _enclose(self, low, high, points)


def _moments(
    X: Array,
    y: Array,
    count: int,
    layer: tuple[Array, Array],
    o1: Activation,
    o2: Activation,
    most: float,
    rest: float,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The polynomials in α of `Phi^T Phi / count` and `Phi^T y / count`, each with its size and its error."""
    hidden = first_layer(X, *layer, o1, o2)
    one, zero = np.ones((len(X), 1)), np.zeros((len(X), 1))
    P, D = np.hstack([hidden.v2, one]), np.hstack([hidden.v1 - hidden.v2, zero])
    # `α v1 + (1 - α) v2` with the errors of both, and of the rounded difference.
    off = np.hstack([most * (hidden.e1 + UNIT * np.abs(D[:, :-1])) + rest * hidden.e2, zero]) * (1 + gamma(16))
    reach = np.abs(P) + most * np.abs(D)
    cross = P.T @ D
    H = np.stack([P.T @ P, cross + cross.T, D.T @ D]) / count
    b = np.stack([P.T @ y, D.T @ y]) / count
    H_size, b_size = reach.T @ reach / count, reach.T @ np.abs(y) / count
    round_, safe = gamma(len(X) + 24), 1 + gamma(len(X) + 64)
    H_off = (round_ * H_size + (reach.T @ off + off.T @ reach + off.T @ off) / count) * safe
    b_off = (round_ * b_size + off.T @ np.abs(y) / count) * safe
    return H, H_size, H_off, b, b_size, b_off


def _enclose(of: ActivationBoxes, low: Array, high: Array, points: bool) -> SplitBounds:
    (m, n), (d, K) = (len(low), of.splits), of.b.shape[2:]
    degree = 1 if points else _DEGREE
    middle = 0.5 * (low + high)
    # At points the coefficients are derivatives, in α and in the logarithm of the penalty.
    half = 0.5 * (high - low) * (1 + 4 * UNIT) + 4 * UNIT * np.abs(middle)
    h, k = (np.ones(m), middle[:, 1]) if points else half.T
    known, long = monomials(2, degree), monomials(2, degree + 2)
    seen = slice(0, 1) if points else slice(None)

    H, b = _on_box(of.H, middle[:, 0], h), _on_box(of.b, middle[:, 0], h)
    Q, q = _on_box(of.Q, middle[:, 0], h), _on_box(of.q, middle[:, 0], h)
    penalty, wide = middle[:, 1, None, None, None], k[:, None, None, None]
    A = H[0] + penalty * np.eye(d)
    inverse = np.linalg.inv(A)
    v = np.zeros((m, n, d, K, len(known.powers)))
    v[..., 0] = inverse @ b[0]
    v[..., 0] += inverse @ (b[0] - A @ v[..., 0])
    for row in range(1, len(known.powers)):
        power = tuple(map(int, known.powers[row]))
        right = b[1].copy() if power == _ALPHA else np.zeros((m, n, d, K))
        for raised, matrix in ((_ALPHA, H[1]), (_ALPHA2, H[2]), (_PENALTY, None)):
            lower = (power[0] - raised[0], power[1] - raised[1])
            if min(lower) >= 0:
                x = v[..., known.row_of[lower]]
                right -= wide * x if matrix is None else matrix @ x
        v[..., row] = inverse @ right

    residual = -_product(v, [A, *H[1:]], degree, wide)
    residual[..., 0] += b[0]
    residual[..., long.row_of[_ALPHA]] += b[1]
    size = np.abs(v[..., seen]).sum(axis=-1)
    top = (high[:, 1, None, None, None] + wide) if not points else 2 * penalty
    count = 4 * d + 8 * len(long.powers) + 64
    lost = (of.H_off + count * UNIT * of.H_size) @ size + of.b_off + count * UNIT * (of.b_size + top * size)
    slope = _product(v, Q, degree, None)  # Q v, and then Q v - q
    loss = (v.reshape(m, n, d * K, -1).swapaxes(-1, -2) @ slope.reshape(m, n, d * K, -1)).reshape(m, n, -1)
    coefficients = loss @ pairs(2, degree, degree + 2)
    for power, target in (((0, 0), q[0]), (_ALPHA, q[1])):
        rows, to = shifts(2, 2 * degree + 2, power)
        inside = rows < v.shape[-1]
        pull = np.einsum("mndk,mndka->mna", target, v[..., rows[inside]])
        coefficients[..., to[inside]] -= 2 * pull
        slope[..., long.row_of[power]] -= target
    coefficients[..., 0] += of.r

    least = low[:, 1, None]
    length = _lengths(of, H, least, residual[..., seen], slope[..., seen])
    error = (length[0] + _norm(lost) / np.sqrt(least)) * (1 + 1e-9)
    turned = (of.Q_off + count * UNIT * of.Q_size) @ size
    steep = (length[1] + _norm(turned + of.q_off + count * UNIT * of.q_size) / np.sqrt(least)) * (1 + 1e-9)
    off = np.sum(size * (turned + 2 * of.q_off + 2 * count * UNIT * of.q_size), axis=(2, 3)) + of.r_off
    off += count * UNIT * (np.abs(coefficients[..., seen]).sum(axis=-1) + of.r)
    slack = 2 * steep * error * (1 + 1e-9) + off
    above = np.einsum("njj->n", of.Q_size) * (1 + 1e-9) * error**2 / least
    sure = np.isfinite(slack + above) & np.all(np.isfinite(coefficients), axis=-1)
    coefficients = np.where(sure[..., None], coefficients, 0.0)
    if points:
        movement, coefficients = coefficients[..., 1:3], coefficients[..., :1]
    else:
        # What moves the loss, and what the residual is made of.
        blame = np.sqrt(np.sum(residual**2, axis=(2, 3))) @ (
            long.powers / np.maximum(long.powers.sum(axis=1), 1)[:, None]
        )
        blame /= np.maximum(blame.sum(axis=-1, keepdims=True), 1e-300)
        movement = np.abs(coefficients) @ (monomials(2, 2 * degree + 2).powers > 0)
        movement += np.where(sure, np.minimum(slack, 1e100), 1e100)[..., None] * blame
    slack, above = (np.where(sure, x, np.inf) for x in (slack, above))
    return SplitBounds(coefficients, slack, above, movement, np.zeros((m, n), dtype=np.int8))


def _on_box(moments: Array, centre: Array, half: Array) -> list[Array]:
    """Polynomials in α (N, 2 or 3, ...) as polynomials in s, each coefficient (m, N, ...)."""
    c, h = centre[:, None, None, None], half[:, None, None, None]
    parts = [moments[:, i] for i in range(moments.shape[1])]
    if len(parts) == 2:
        return [parts[0] + c * parts[1], h * parts[1]]
    return [parts[0] + c * parts[1] + c**2 * parts[2], h * (parts[1] + 2 * c * parts[2]), h**2 * parts[2]]


def _product(v: Array, matrices: list[Array], degree: int, wide: Array | None) -> Array:
    """`(M_0 + s_1 M_1 + s_1^2 M_2 + wide s_2 I) v`, a polynomial of a degree higher by two."""
    m, n, d, K, count = v.shape
    long = monomials(2, degree + 2)
    out = np.zeros((m, n, d, K, len(long.powers)))
    flat = v.reshape(m, n, d, -1)
    for raised, matrix in zip(((0, 0), _ALPHA, _ALPHA2), matrices, strict=True):
        rows, to = shifts(2, degree + 2, raised)
        inside = rows < count
        out[..., to[inside]] += (matrix @ flat).reshape(m, n, d, K, count)[..., rows[inside]]
    if wide is not None:
        rows, to = shifts(2, degree + 2, _PENALTY)
        inside = rows < count
        out[..., to[inside]] += wide[..., None] * v[..., rows[inside]]
    return out


def _lengths(of: ActivationBoxes, H: list[Array], least: Array, *polynomials: Array) -> list[Array]:
    """`‖g‖_(A^-1)` of polynomials (m, n, d, K, terms) on the whole box, by the smaller of two ways."""
    m, n, d = H[0].shape[:3]
    low = H[0] + least[..., None, None] * np.eye(d)
    heights = np.einsum("njj->nj", of.H_size) + least[..., None]
    # The errors of H, and of a computed `H_2 >= 0`, in the Euclidean norm.
    doubt = 2 * np.sqrt(np.sum(of.H_off**2, axis=(1, 2))) + 32 * UNIT * np.sqrt(np.sum(of.H_size**2, axis=(1, 2)))
    root, sure = inverse_root(low, np.broadcast_to(doubt[:, None], (m, n, d)), heights)
    turned = root @ H[1] @ root.swapaxes(-1, -2)
    size = np.sum(root**2, axis=(-1, -2)) * np.sqrt(np.sum(H[1] ** 2, axis=(-1, -2)))
    fourth = np.linalg.matrix_power(0.5 * (turned + turned.swapaxes(-1, -2)), 4)
    # ‖M‖ <= ‖M^4‖_F^(1/4) for a symmetric M.
    rho = (np.sqrt(np.sum(fourth**2, axis=(-1, -2))) + 64 * d * UNIT * size**4) ** 0.25 * (1 + 1e-9)
    known = sure & (rho < 0.99)
    shrink = np.sqrt(1 - np.where(known, rho, 0.0))
    found = []
    for g in polynomials:
        flat = g.reshape(m, n, d, -1, g.shape[-1])
        plain = np.sqrt(np.sum(flat**2, axis=(2, 3)))
        w = (root @ g.reshape(m, n, d, -1)).reshape(flat.shape)
        sharp = (
            np.sqrt(np.sum(w**2, axis=(2, 3)))
            + (d + 8) * UNIT * plain * np.sqrt(np.sum(root**2, axis=(-1, -2)))[..., None]
        )
        sharp = np.where(known, sharp.sum(axis=-1) / shrink, np.inf)
        found.append(np.minimum(sharp, plain.sum(axis=-1) / np.sqrt(least)) * (1 + 1e-9))
    return found


def _norm(x: Array) -> Array:
    """(m, n): Euclidean, of (m, n, d, K)."""
    return np.sqrt(np.sum(x**2, axis=(2, 3)))
