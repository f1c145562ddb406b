"""The rates of first-order solvers, known before any iteration is made, against what the solvers really do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit import AdjointSystem

METHODS = {
    "gradient_descent": hx.implicit.GradientDescent,
    "heavy_ball": hx.implicit.HeavyBall,
    "fista": hx.implicit.FISTA,
}
ADJOINTS = {
    "gradient_descent": hx.implicit.GradientDescent,
    "heavy_ball": hx.implicit.HeavyBall,
    "conjugate_gradients": hx.implicit.CG,
}
SIZE = 6
LENGTHS = (0, 1, 2, 5, 20, 60)


def spectrum(rng: np.random.Generator) -> tuple[np.ndarray, float, float]:
    """A random matrix with eigenvalues in [μ, L], both taken: the worst cases of a rate are at the ends."""
    low, high = 1.0, float(np.exp(rng.uniform(0.1, 6)))
    values = np.concatenate([[low, high], rng.uniform(low, high, SIZE - 2) ** rng.choice([0.0, 1.0], SIZE - 2)])
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    return (basis * values) @ basis.T, low, high


def reduction(method: str, condition: float, k: int) -> float:
    """ρ_k with ‖x_k - x*‖ <= ρ_k ‖x_0 - x*‖, for the condition number κ = L/μ.

    Gradient descent and FISTA: for every L-smooth, μ-strongly convex function; heavy ball and conjugate gradients: for
    quadratics. Sources: Nesterov, Lectures on Convex Optimization (2018); Ehrhardt and Roberts, arXiv 2301.04764
    (2023), section 3. Heavy ball: with t = (1 + β - αλ)/(2√β) in [-1, 1] the k-th error polynomial is
    β^{k/2}(U_k(t) - √β U_{k-1}(t)), and |U_k| <= k + 1. FISTA, at the point y_k that is returned: from
    ½μ‖x_k - x*‖² <= g(x_k) - g* <= (1 - 1/√κ)^k ½(L + μ)‖x_0 - x*‖².
    """
    root = (np.sqrt(condition) - 1) / (np.sqrt(condition) + 1)
    if method == "gradient_descent":
        return ((condition - 1) / (condition + 1)) ** k
    if method == "heavy_ball":
        return (1 + k * (1 + root)) * root**k
    if method == "conjugate_gradients":
        return min(2 * np.sqrt(condition) * root**k, np.sqrt(condition))
    if k == 0:
        return 1.0
    shrink = np.sqrt(1 - 1 / np.sqrt(condition))
    return ((1 + root) * shrink**k + root * shrink ** (k - 1)) * np.sqrt(condition + 1)


def inner(w, hyper, data):
    matrix, target = data
    return 0.5 * (w - target) @ matrix @ (w - target)


@pytest.mark.parametrize("method", METHODS)
def test_inner_solvers_keep_their_rates(method):
    rng = np.random.default_rng(0)

    def distances(matrix, target, low, high):
        found = []
        for steps in LENGTHS:
            if steps == 0:
                found.append(jnp.linalg.norm(target))
                continue
            solver = METHODS[method](tolerance=1e-300, max_steps=steps, smoothness=high, strong_convexity=low)
            optimum = hx.Optimum(inner, jnp.zeros(SIZE), data=(matrix, target), solver=solver)
            minimum = optimum.find(jnp.zeros(()), jnp.zeros(SIZE), jnp.asarray(1e-300))
            found.append(jnp.linalg.norm(minimum.point.params - target))
        return jnp.stack(found)

    run = jax.jit(jax.vmap(distances))
    cases = [(*spectrum(rng), rng.normal(size=SIZE)) for _ in range(200)]
    matrices, lows, highs, targets = (jnp.asarray(np.stack(x)) for x in zip(*cases, strict=True))
    measured = np.asarray(run(matrices, targets, lows, highs))
    for row, low, high in zip(measured, lows, highs, strict=True):
        for steps, distance in zip(LENGTHS, row, strict=True):
            assert distance <= reduction(method, float(high / low), steps) * row[0] * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("method", ADJOINTS)
def test_adjoint_solvers_keep_their_rates_in_error_and_in_residual(method):
    rng = np.random.default_rng(1)

    def runs(matrix, rhs, low, high):
        found = [jnp.zeros(SIZE)]
        for steps in LENGTHS[1:]:
            options = {} if method == "conjugate_gradients" else {"smoothness": high, "strong_convexity": low}
            solver = ADJOINTS[method](max_steps=steps, **options)
            # A residual of zero is never reached, but CG divides by its square: it stops at the rounding floor.
            stop = 1e-14 * jnp.linalg.norm(rhs)
            found.append(solver.solve(AdjointSystem(lambda v: matrix @ v, rhs, stop, jnp.zeros(SIZE))).value)
        return jnp.stack(found)

    run = jax.jit(jax.vmap(runs))
    cases = [(*spectrum(rng), rng.normal(size=SIZE)) for _ in range(200)]
    matrices, lows, highs, sides = (jnp.asarray(np.stack(x)) for x in zip(*cases, strict=True))
    values = np.asarray(run(matrices, sides, lows, highs))
    for matrix, rhs, low, high, row in zip(matrices, sides, lows, highs, values, strict=True):
        exact = np.linalg.solve(matrix, rhs)
        for steps, q in zip(LENGTHS, row, strict=True):
            rate = reduction(method, float(high / low), steps)
            assert np.linalg.norm(q - exact) <= rate * np.linalg.norm(exact) * (1 + 1e-9) + 1e-11
            assert np.linalg.norm(matrix @ q - rhs) <= rate * np.linalg.norm(rhs) * (1 + 1e-9) + 1e-10
