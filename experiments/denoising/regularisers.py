"""Two convex regularisers with their parameters, and the constants that prove bounds of hypergradients.

Inner problem, over all patches at once: g(x) = ½‖x - y‖² + R(x), so μ = 1. With r = √(t² + ν²), φ(t) = r - ν has
φ'' = ν²/r³ <= 1/ν and |φ'''| = 3tν²/r⁵ <= c/ν², c = 48/(25√5), attained at t = ν/2. For φ(|z|) with z in the plane,
D³[a, a, a] = -(3 t cos θ/r³)(1 - (t²/r²) cos²θ), t = |z|, θ the angle of a and z: again at most c/ν² (for t²/r² < 1/3
it is largest at θ = 0, which is the case of the line; beyond it is at most (2/√3)/r² <= 0.77/ν²). The smoothing is
bounded below, or learning would make it so small that no bound is worth having.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import hyprax as hx

THIRD = 48 / (25 * math.sqrt(5))


def norm(x: Array) -> Array:
    """‖x‖₂ of all entries."""
    return jnp.sqrt(jnp.sum(jnp.square(x)))


@dataclasses.dataclass(frozen=True)
class Regulariser:
    """R(x; hyper), what its hyperparameters start from, and the constants of g at a point."""

    name: str
    penalty: Callable[[Array, dict], Array]
    constants: Callable[[Array, dict, Array], hx.implicit.Constants]
    start: Callable[[], dict]

    def inner(self, x: Array, hyper: dict, noisy: Array) -> Array:
        return 0.5 * jnp.sum(jnp.square(x - noisy)) + self.penalty(x, hyper)

    def objective(self, clean: np.ndarray, noisy: np.ndarray) -> hx.ImplicitObjective:
        """Half the mean squared error at the optimum; L_f is 1 over the number of pixels."""
        y = jnp.asarray(noisy)

        def constants(x: Array, hyper: dict) -> hx.implicit.Constants:
            return self.constants(x, hyper, y)

        return hx.ImplicitObjective(
            hx.Optimum(self.inner, y, data=y, solver=hx.implicit.LBFGS(max_steps=3000)),
            half_mean_square,
            jnp.asarray(clean),
            certifier=hx.implicit.EhrhardtRoberts(constants, lipschitz_outer=1 / y.size, lipschitz_direct=0.0),
        )

    def denoised(self, noisy: np.ndarray, hyper: dict) -> np.ndarray:
        """The optimum for other images, to a gradient norm of 1e-4 √pixels."""
        y = jnp.asarray(noisy)
        optimum = hx.Optimum(
            self.inner, y, data=y, solver=hx.implicit.LBFGS(tolerance=1e-4 * math.sqrt(y.size), max_steps=3000)
        )
        objective = hx.ImplicitObjective(optimum, half_mean_square, y, certifier=hx.implicit.NoCertifier("a test"))
        value, state = objective.value(hyper, objective.init(hyper))
        assert bool(value.result == hx.RESULTS.successful), value.result
        return np.asarray(state.params)


def half_mean_square(x: Array, hyper: dict, clean: Array) -> Array:
    """½ mean (x - clean)²."""
    return 0.5 * jnp.mean(jnp.square(x - clean))


def _differences(x: Array) -> Array:
    """Forward differences (count, side, side, 2), 0 beyond the edge: ‖K‖² <= 8, each pair of rows of norm <= √3."""
    down = jnp.pad(jnp.diff(x, axis=1), ((0, 0), (0, 1), (0, 0)))
    right = jnp.pad(jnp.diff(x, axis=2), ((0, 0), (0, 0), (0, 1)))
    return jnp.stack([down, right], axis=-1)


def _tv_penalty(x: Array, hyper: dict) -> Array:
    square = jnp.sum(jnp.square(_differences(x)), axis=-1)
    return hyper["weight"] * jnp.sum(jnp.sqrt(square + hyper["smoothing"] ** 2) - hyper["smoothing"])


def _tv_constants(x: Array, hyper: dict, noisy: Array) -> hx.implicit.Constants:
    """B has the columns λ Kᵀ(z/r) for log λ, and -λ Kᵀ(ν² z/r³) for log ν: exact norms, and 8λ/ν Lipschitz each."""
    weight, smoothing = hyper["weight"], hyper["smoothing"]
    z, transposed = jax.vjp(_differences, x)
    r = jnp.sqrt(jnp.sum(jnp.square(z), axis=-1, keepdims=True) + smoothing**2)
    columns = [norm(transposed(z * scale)[0]) for scale in (1 / r, smoothing**2 / r**3)]
    return hx.implicit.Constants(
        strong_convexity=jnp.ones(()),
        lipschitz_hessian=weight * 8 * math.sqrt(3) * THIRD / smoothing**2,
        mixed_norm=weight * jnp.hypot(*columns),
        lipschitz_mixed=math.sqrt(2) * 8 * weight / smoothing,
    )


def smoothing_leaf() -> hx.LogInterval:
    """ν between two and 25 grey levels. |dν/d raw| <= ν log(0.1/0.008)/4 < ν: constants in log ν hold for raw too."""
    return hx.LogInterval(0.03, 0.008, 0.1)


TV = Regulariser(
    "smoothed TV",
    _tv_penalty,
    _tv_constants,
    lambda: {"weight": hx.Positive(0.02), "smoothing": smoothing_leaf()},
)

SIDE = 3


def _atoms() -> np.ndarray:
    """The orthonormal cosine basis of 3 x 3 filters without the constant one, `(8, 9)`: filters of mean 0."""
    k, n = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    line = np.cos(np.pi * k * (2 * n + 1) / (2 * SIDE)) * np.sqrt(np.where(k == 0, 1, 2) / SIDE)
    return np.einsum("ai,bj->abij", line, line).reshape(SIDE**2, SIDE**2)[1:]


ATOMS = _atoms()


def _windows(x: Array) -> Array:
    """Every 3 x 3 window inside the image, `(count, side - 2, side - 2, 9)`."""
    rows, columns = x.shape[1] - SIDE + 1, x.shape[2] - SIDE + 1
    return jnp.stack([x[:, i : i + rows, j : j + columns] for i in range(SIDE) for j in range(SIDE)], axis=-1)


def filters(hyper: dict) -> Array:
    """f_k = Σ_b c_kb d_b, `(experts, 9)`."""
    return hyper["coefficients"] @ ATOMS


def _experts_penalty(x: Array, hyper: dict) -> Array:
    responses = _windows(x) @ filters(hyper).T
    smoothing = hyper["smoothing"]
    return jnp.sum(hyper["weights"] * (jnp.sqrt(jnp.square(responses) + smoothing**2) - smoothing))


def _experts_constants(x: Array, hyper: dict, noisy: Array) -> hx.implicit.Constants:
    """C_k is the correlation with f_k: ‖C_k‖ <= ‖f_k‖₁ =: F_k, its rows of norm ‖f_k‖₂; D_b the same for the atoms.

    With u_k = C_k x, columns of B, and how fast they change with x:

    - log w_k: w_k C_kᵀφ'(u_k); w_k F_k²/ν.
    - log ν: the sum over k of -w_k C_kᵀ(ν² u_k/r³); Σ_k w_k F_k²/ν, as for TV.
    - c_kb: w_k [D_bᵀφ'(u_k) + C_kᵀ(φ''(u_k) D_b x)], of norm at most w_k [‖d_b‖₁‖φ'(u_k)‖ + F_k‖φ''(u_k) D_b x‖];
      w_k F_k [2‖d_b‖₁/ν + F_k (c/ν²) max|D_b x|], the maximum over all points between here and the optimum: at most
      that at x plus ‖d_b‖₂ ‖∇g(x)‖, since μ = 1.

    The norm of a matrix is at most the root of the sum of the squares of its columns' norms.
    """
    f, w, nu = filters(hyper), hyper["weights"], hyper["smoothing"]
    one, two = jnp.sum(jnp.abs(f), axis=1), jnp.sqrt(jnp.sum(jnp.square(f), axis=1))
    atom_one = jnp.asarray(np.abs(ATOMS).sum(axis=1))
    windows = _windows(x)
    u, details = windows @ f.T, windows @ ATOMS.T
    r = jnp.sqrt(jnp.square(u) + nu**2)

    def sizes(rows: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(rows), axis=(0, 1, 2)))

    slope, curve = sizes(u / r), nu**2 / r**3
    # ‖φ''(u_k) D_b x‖² = Σ φ''(u_k)² (D_b x)², for all pairs in one product.
    pairs = jnp.sqrt(jnp.einsum("pijk,pijb->kb", jnp.square(curve), jnp.square(details)))
    mixed = jnp.concatenate(
        [
            w * one * slope,
            jnp.sum(w * one * sizes(nu**2 * u / r**3))[None],
            jnp.ravel(w[:, None] * (atom_one[None] * slope[:, None] + one[:, None] * pairs)),
        ]
    )
    distance = norm(jax.grad(EXPERTS.inner)(x, hyper, noisy))
    widest = jnp.max(jnp.abs(details), axis=(0, 1, 2)) + distance
    moving = 2 * atom_one[None] / nu + one[:, None] * THIRD / nu**2 * widest[None]
    lipschitz = jnp.concatenate(
        [w * one**2 / nu, jnp.sum(w * one**2)[None] / nu, jnp.ravel((w * one)[:, None] * moving)]
    )
    return hx.implicit.Constants(
        strong_convexity=jnp.ones(()),
        lipschitz_hessian=jnp.sum(w * one**2 * two) * THIRD / nu**2,
        mixed_norm=norm(mixed),
        lipschitz_mixed=norm(lipschitz),
    )


def _experts_start() -> dict:
    """Every atom once, equally weighted."""
    count = len(ATOMS)
    return {
        "coefficients": jnp.eye(count),
        "weights": hx.Positive(np.full(count, 0.01)),
        "smoothing": smoothing_leaf(),
    }


EXPERTS = Regulariser("field of experts", _experts_penalty, _experts_constants, _experts_start)
