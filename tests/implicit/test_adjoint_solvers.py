"""Adjoint solvers against dense solves in numpy, and the theorem that ties them to unrolled differentiation."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.implicit import AdjointSystem, LinearSolution

SIZE = 8
TOLERANCE = 1e-10
CONVERGENT = {
    "cg": hx.implicit.CG(),
    "cg-jacobi": hx.implicit.CG(preconditioner=hx.implicit.Jacobi(key=jax.random.key(0))),
    "cg-nystrom": hx.implicit.CG(preconditioner=hx.implicit.Nystrom(rank=4, key=jax.random.key(0))),
    "cg-plain": hx.implicit.CG(preconditioner=False),
    "minres": hx.implicit.MINRES(),
    "gradient-descent": hx.implicit.GradientDescent(max_steps=100_000),
    "heavy-ball": hx.implicit.HeavyBall(max_steps=100_000),
    "cholesky": hx.implicit.Cholesky(),
}


def symmetric(rng: np.random.Generator, eigenvalues) -> np.ndarray:
    basis = np.linalg.qr(rng.normal(size=(len(eigenvalues),) * 2))[0]
    matrix = (basis * eigenvalues) @ basis.T
    return (matrix + matrix.T) / 2


def as_tree(vector) -> dict:
    """Two leaves of different shapes: no solver may count on a single array."""
    return {"a": jnp.asarray(vector[:6]).reshape(2, 3), "b": jnp.asarray(vector[6:])}


def as_vector(tree) -> jax.Array:
    return jnp.concatenate([tree["a"].ravel(), tree["b"]])


@eqx.filter_jit
def run(solver, matrix, rhs, residual, start, diagonal) -> LinearSolution:
    return solver.solve(AdjointSystem(lambda v: as_tree(matrix @ as_vector(v)), rhs, residual, start, None, diagonal))


def solve(solver, matrix, rhs, residual=TOLERANCE, start=None, diagonal=None) -> LinearSolution:
    begin = np.zeros(SIZE) if start is None else start
    known = None if diagonal is None else as_tree(diagonal)
    return run(solver, jnp.asarray(matrix), as_tree(rhs), jnp.asarray(residual), as_tree(begin), known)


@pytest.mark.parametrize("solver", CONVERGENT.values(), ids=CONVERGENT.keys())
def test_positive_definite_systems_are_solved_to_the_residual_asked_for(solver):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(40):
        eigenvalues = np.exp(rng.uniform(-rng.uniform(0, 6), 0, SIZE) + rng.uniform(-3, 3))
        cases.append((symmetric(rng, eigenvalues), rng.normal(size=SIZE), rng.normal(size=SIZE)))
    matrices, sides, starts = (jnp.asarray(np.stack(x)) for x in zip(*cases, strict=True))

    def run(matrix, rhs, start, residual):
        system = AdjointSystem(lambda v: as_tree(matrix @ as_vector(v)), as_tree(rhs), residual, as_tree(start))
        found = solver.solve(system)
        return as_vector(found.value), found.steps, found.products, found.curvature

    batched = jax.jit(jax.vmap(run, in_axes=(0, 0, 0, None)))
    for residual in (1e-2, TOLERANCE):
        for begin in (jnp.zeros_like(starts), starts):
            values, steps, products, curvatures = batched(matrices, sides, begin, jnp.asarray(residual))
            for i, (matrix, rhs, _) in enumerate(cases):
                least = np.linalg.eigvalsh(matrix)[0]
                assert np.linalg.norm(matrix @ values[i] - rhs) <= 1.01 * residual + 1e-12, i
                # ‖q - A⁻¹b‖ <= ‖Aq - b‖/μ
                error = np.linalg.norm(values[i] - np.linalg.solve(matrix, rhs))
                assert error <= 1.01 * residual / least + 1e-9, i
                assert float(curvatures[i]) >= least * (1 - 1e-10), i  # a Rayleigh quotient is never below
                assert int(products[i]) >= int(steps[i]) or isinstance(solver, hx.implicit.Cholesky)


@pytest.mark.parametrize("name", ["cg", "minres", "gradient-descent", "heavy-ball"])
def test_a_warm_start_at_the_solution_takes_no_step(name):
    rng = np.random.default_rng(1)
    matrix, rhs = symmetric(rng, np.exp(rng.uniform(-1, 1, SIZE))), rng.normal(size=SIZE)
    found = solve(CONVERGENT[name], matrix, rhs, start=np.linalg.solve(matrix, rhs))
    assert int(found.steps) == 0


def test_conjugate_gradients_end_within_the_number_of_distinct_eigenvalues():
    rng = np.random.default_rng(2)
    for _ in range(20):
        matrix = symmetric(rng, np.repeat([0.3, 2.0, 7.0], [4, 3, 1]))
        for name in ("cg-plain", "minres"):
            assert int(solve(CONVERGENT[name], matrix, rng.normal(size=SIZE)).steps) <= 3


def test_the_nystrom_preconditioner_takes_the_large_eigenvalues_away():
    rng = np.random.default_rng(3)
    large = np.concatenate([[1e6, 3e5, 1e5], np.linspace(1.0, 2.0, SIZE - 3)])
    matrix, rhs = symmetric(rng, large), rng.normal(size=SIZE)
    plain = solve(hx.implicit.CG(preconditioner=False), matrix, rhs, 1e-6)
    better = solve(hx.implicit.CG(preconditioner=hx.implicit.Nystrom(rank=3, key=jax.random.key(0))), matrix, rhs, 1e-6)
    assert int(better.steps) < int(plain.steps)
    assert int(better.products) == int(better.steps) + 3 + 1


def test_jacobi_undoes_a_scaling_of_the_parameters():
    """For A = S A₀ S with S diagonal, its exact diagonal makes the iteration nearly that of A₀."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        scale = np.exp(rng.uniform(-5, 5, SIZE))
        matrix = symmetric(rng, rng.uniform(1, 1.5, SIZE)) * scale * scale[:, None]
        rhs = scale * rng.normal(size=SIZE)

        def steps(preconditioner, matrix=matrix, rhs=rhs):
            tight = float(1e-10 * np.linalg.norm(rhs))
            solver = hx.implicit.CG(preconditioner=preconditioner)
            return int(solve(solver, matrix, rhs, tight, diagonal=np.diag(matrix)).steps)

        assert steps(hx.implicit.Jacobi(key=jax.random.key(0))) <= SIZE + 2 < steps(False)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_minres_solves_indefinite_systems(damping):
    rng = np.random.default_rng(5)
    for _ in range(30):
        eigenvalues = np.exp(rng.uniform(-2, 2, SIZE)) * rng.choice([-1, 1], SIZE)
        eigenvalues = np.where(np.abs(eigenvalues + damping) < 0.05, 1.0, eigenvalues)
        matrix, rhs = symmetric(rng, eigenvalues), rng.normal(size=SIZE)
        found = solve(hx.implicit.MINRES(damping=damping), matrix, rhs)
        np.testing.assert_allclose(
            as_vector(found.value), np.linalg.solve(matrix + damping * np.eye(SIZE), rhs), rtol=1e-7, atol=1e-7
        )
        assert float(found.curvature) >= eigenvalues.min() - 1e-9


def test_a_damped_system_is_that_of_the_damped_matrix():
    rng = np.random.default_rng(6)
    matrix, rhs = symmetric(rng, np.exp(rng.uniform(-3, 0, SIZE))), rng.normal(size=SIZE)
    found = solve(hx.implicit.CG(damping=0.2), matrix, rhs)
    np.testing.assert_allclose(as_vector(found.value), np.linalg.solve(matrix + 0.2 * np.eye(SIZE), rhs), rtol=1e-8)
    assert float(found.curvature) >= np.linalg.eigvalsh(matrix)[0] * (1 - 1e-9)  # that of A, not of A + ρI


def test_truncated_adjoints_are_their_formulas():
    rng = np.random.default_rng(7)
    for _ in range(20):
        matrix, rhs = symmetric(rng, rng.uniform(0.1, 1.0, SIZE)), rng.normal(size=SIZE)
        start = rng.normal(size=SIZE)  # not used: a truncated series has no warm start
        for terms in (1, 2, 7):
            factors = [np.linalg.matrix_power(np.eye(SIZE) - 0.9 * matrix, k) for k in range(terms)]
            series = 0.9 * sum(factors) @ rhs
            found = solve(hx.implicit.Neumann(terms=terms, step=0.9), matrix, rhs, start=start)
            np.testing.assert_allclose(as_vector(found.value), series, rtol=1e-10, atol=1e-12)
        found = solve(hx.implicit.Neumann(terms=1, step=0.9), matrix, rhs, start=start)
        np.testing.assert_allclose(as_vector(found.value), 0.9 * rhs, rtol=1e-14)
        assert int(found.products) == 0
        whole = solve(hx.implicit.Nystrom(rank=SIZE, damping=0.05, key=jax.random.key(0)), matrix, rhs)
        exact = np.linalg.solve(matrix + 0.05 * np.eye(SIZE), rhs)
        np.testing.assert_allclose(as_vector(whole.value), exact, rtol=1e-6, atol=1e-8)


def test_the_nystrom_solver_is_exact_for_a_matrix_of_its_rank():
    rng = np.random.default_rng(8)
    for _ in range(10):
        matrix, rhs = symmetric(rng, np.concatenate([[3.0, 1.0, 0.5], np.zeros(SIZE - 3)])), rng.normal(size=SIZE)
        found = solve(hx.implicit.Nystrom(rank=3, damping=0.1, key=jax.random.key(0)), matrix, rhs)
        np.testing.assert_allclose(
            as_vector(found.value), np.linalg.solve(matrix + 0.1 * np.eye(SIZE), rhs), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("method", ["gradient descent", "heavy ball"])
def test_inexact_automatic_differentiation_is_the_solver_on_the_adjoint_system(method):
    """The theorem: backpropagation through K inner steps, second derivatives frozen at x^K, gives -Bᵀq_K.

    x_{k+1} = x_k - t ∇g(x_k, θ) + β (x_k - x_{k-1}) is run on a loss that is no quadratic; then ∇g is replaced by its
    linearisation in (x, θ) at (x^K, θ), and JAX differentiates f(x^K) through all K steps.
    """
    rng = np.random.default_rng(9)
    rows = jnp.asarray(rng.normal(size=(30, SIZE)))
    target = jnp.asarray(rng.normal(size=SIZE))

    def inner(x, theta):
        return jnp.mean(jnp.logaddexp(0.0, rows @ x)) + 0.5 * jnp.sum(jnp.exp(theta) * x**2) - jnp.sum(theta * x)

    def outer(x):
        return jnp.sum(jnp.cos(x - target))

    gradient = jax.grad(inner)
    most, least = 12.0, 0.05
    if method == "gradient descent":
        step, momentum = 2 / (most + least), 0.0
        make = hx.implicit.GradientDescent
    else:
        high, low = np.sqrt(most), np.sqrt(least)
        step, momentum = 4 / (high + low) ** 2, ((high - low) / (high + low)) ** 2
        make = hx.implicit.HeavyBall

    @functools.partial(jax.jit, static_argnums=2)
    def both(theta, x0, count):
        def iterate(slope, theta):
            def advance(carry, _):
                x, before = carry
                return (x - step * slope(x, theta) + momentum * (x - before), x), None

            return jax.lax.scan(advance, (x0, x0), length=count)[0][0]

        last = iterate(gradient, theta)

        def frozen(x, parameter):
            return gradient(last, theta) + jax.jvp(gradient, (last, theta), (x - last, parameter - theta))[1]

        # The frozen recursion ends elsewhere than at x^K; the outer gradient is that at x^K.
        slope = jax.grad(outer)(last)
        unrolled = jax.grad(lambda parameter: slope @ iterate(frozen, parameter))(theta)
        product = jax.linearize(lambda x: gradient(x, theta), last)[1]
        solver = make(max_steps=count, smoothness=most, strong_convexity=least)
        q = solver.solve(AdjointSystem(product, slope, jnp.zeros(()), jnp.zeros(SIZE))).value
        return unrolled, -jax.grad(lambda parameter: gradient(last, parameter) @ q)(theta)

    for count in (1, 2, 9, 40):
        for _ in range(10):
            theta, x0 = jnp.asarray(rng.uniform(-3, 0, SIZE)), jnp.asarray(rng.normal(size=SIZE))
            unrolled, adjoint = both(theta, x0, count)
            np.testing.assert_allclose(unrolled, adjoint, rtol=1e-9, atol=1e-11)


def test_misuse_of_adjoint_solvers_is_refused():
    matrix, rhs = np.eye(SIZE), np.ones(SIZE)
    wide = hx.implicit.Nystrom(rank=SIZE + 1, key=jax.random.key(0))
    for bad in (
        lambda: hx.implicit.Neumann(terms=0),
        lambda: hx.implicit.CG(damping=-1.0),
        lambda: hx.implicit.MINRES(max_steps=0),
        lambda: hx.implicit.Nystrom(rank=3, damping=0.0, key=jax.random.key(0)),
        lambda: hx.implicit.Jacobi(probes=0),
        lambda: hx.implicit.GradientDescent(smoothness=1.0, strong_convexity=2.0),
        lambda: solve(hx.implicit.Cholesky(max_size=4), matrix, rhs),
        lambda: solve(hx.implicit.CG(preconditioner=wide), matrix, rhs),
        lambda: solve(hx.implicit.Neumann(terms=1, preconditioned=True), matrix, rhs),
    ):
        with pytest.raises(ValueError, match=r"must|requires|required|at most"):
            bad()
