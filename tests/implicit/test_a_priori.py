"""A priori rates and bounds against what solvers really do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit import AdjointSystem, APrioriRate, EhrhardtRoberts

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
            assert distance <= APrioriRate(method, float(high / low)).reduction(steps) * row[0] * (1 + 1e-9) + 1e-12


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
            rate = APrioriRate(method, float(high / low)).reduction(steps)
            assert np.linalg.norm(q - exact) <= rate * np.linalg.norm(exact) * (1 + 1e-9) + 1e-11
            assert np.linalg.norm(matrix @ q - rhs) <= rate * np.linalg.norm(rhs) * (1 + 1e-9) + 1e-10


@pytest.mark.parametrize("method", ["gradient_descent", "heavy_ball", "fista", "conjugate_gradients"])
def test_the_steps_given_are_the_fewest_that_suffice(method):
    rng = np.random.default_rng(2)
    for _ in range(200):
        condition, reduction = float(np.exp(rng.uniform(0, 12))), float(10 ** rng.uniform(-12, -0.01))
        steps = APrioriRate(method, condition).steps(reduction)
        assert APrioriRate(method, condition).reduction(steps) <= reduction
        assert steps == 1 or APrioriRate(method, condition).reduction(steps - 1) > reduction
    assert APrioriRate(method, 10.0).steps(1.0) == 0


def test_the_a_priori_bound_holds_and_the_a_posteriori_bounds_are_below_it():
    """Ridge regression with one strength a feature: all constants known, the truth by a dense solve."""
    rng = np.random.default_rng(3)
    n, d = 30, 4

    def evaluate(x, y, xv, yv, raw, low, high, *, steps, more):
        def ridge(w, hyper, data):
            return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.sum(hyper * w**2)

        def validation(w, hyper, data):
            return 0.5 * jnp.mean((xv @ w - yv) ** 2)

        solver = hx.implicit.GradientDescent(tolerance=1e-300, max_steps=steps, smoothness=high, strong_convexity=low)
        adjoint = hx.implicit.GradientDescent(tolerance=1e-300, max_steps=more, smoothness=high, strong_convexity=low)
        optimum = hx.Optimum(ridge, jnp.zeros(d), solver=solver)
        objective = hx.ImplicitObjective(optimum, validation, adjoint=adjoint, certifier=hx.implicit.NoCertifier())
        hyper = hx.Positive(jnp.exp(raw))
        return objective.value_and_grad(hyper, objective.init(hyper))[0].grad.raw

    run = {(k, m): jax.jit(lambda *a, k=k, m=m: evaluate(*a, steps=k, more=m)) for k in (1, 100) for m in (1, 100)}
    tightest = np.inf
    for _ in range(60):
        x, xv = rng.normal(size=(n, d)), rng.normal(size=(n, d))
        y, yv = rng.normal(size=n), rng.normal(size=n)
        raw = rng.uniform(-3, 2, d)
        strengths = np.asarray(hx.Positive(np.exp(raw)).value)
        matrix, mean = x.T @ x / n + np.diag(strengths), x.T @ y / n
        low, high = np.linalg.eigvalsh(matrix)[[0, -1]]
        w = np.linalg.solve(matrix, mean)
        truth = -strengths * w * np.linalg.solve(matrix, xv.T @ (xv @ w - yv) / n)
        # B has the column λ_j w_j e_j for each j; at w_0 = 0 it is zero, and L_B = max λ_j.
        zero, most = jnp.zeros(()), jnp.asarray(strengths.max())
        constants = hx.implicit.Constants(jnp.asarray(low), zero, zero, most)
        for (k, m), fn in run.items():
            bound = EhrhardtRoberts.a_priori(
                constants,
                float(high) * (1 + 1e-12),
                gradient_norm=float(np.linalg.norm(mean)),
                outer_gradient_norm=float(np.linalg.norm(xv.T @ yv / n)),
                lipschitz_outer=float(np.linalg.eigvalsh(xv.T @ xv / n)[-1]),
                inner=("gradient_descent", k),
                adjoint=("gradient_descent", m),
            )
            error = float(np.linalg.norm(fn(x, y, xv, yv, raw, low, high) - truth))
            assert error <= bound * (1 + 1e-9) + 1e-12
            tightest = min(tightest, bound / max(error, 1e-300))
    assert tightest < 1e3  # a bound of infinity would hold too


def test_misuse_of_a_priori_rates_is_refused(unchecked):
    one = jnp.ones(())
    for bad in (
        lambda: APrioriRate("newton", 10.0).reduction(3),  # pyright: ignore[reportArgumentType]  # to be refused
        lambda: APrioriRate("fista", 0.5).reduction(3),
        lambda: APrioriRate("fista", 2.0).reduction(-1),
        lambda: APrioriRate("fista", 2.0).steps(0.0),
        lambda: EhrhardtRoberts.a_priori(
            hx.implicit.Constants(2 * one, one, one, one),
            1.0,
            gradient_norm=1.0,
            outer_gradient_norm=1.0,
            lipschitz_outer=1.0,
            inner=("fista", 3),
            adjoint=("fista", 3),
        ),
    ):
        with pytest.raises(ValueError, match=r"must|requires|required|at most"):
            bad()
