"""Every lower solver with every adjoint solver, to any accuracy, alone and batched, against dense references."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from problems import random_problem
from thoroughness import slow


def damped_newton(value_and_grad, params, tolerance, max_steps):
    """A minimiser of a user's own: dense Newton with halving, by JAX."""

    def step(carry):
        w, count = carry
        value, grad = value_and_grad(w)
        direction = jnp.linalg.solve(jax.jacobian(lambda w: value_and_grad(w)[1])(w), grad)
        lengths = 0.5 ** jnp.arange(12, dtype=w.dtype)
        values = jax.vmap(lambda t: value_and_grad(w - t * direction)[0])(lengths)
        best = jnp.argmin(values)
        return jnp.where(values[best] <= value, w - lengths[best] * direction, w - direction), count + 1

    def unfinished(carry):
        w, count = carry
        return (jnp.linalg.norm(value_and_grad(w)[1]) > tolerance) & (count < max_steps)

    return jax.lax.while_loop(unfinished, step, (params, jnp.asarray(0)))[0]


LOWER = {
    "gradient-descent": hx.implicit.GradientDescent(max_steps=200_000),
    "heavy-ball": hx.implicit.HeavyBall(max_steps=50_000),
    "fista": hx.implicit.FISTA(max_steps=50_000),
    "lbfgs": hx.implicit.LBFGS(max_steps=4000),
    "newton": hx.implicit.Newton(),
    "callable": damped_newton,
}
ADJOINT = {
    "cg": hx.implicit.CG(),
    "cg-jacobi": hx.implicit.CG(preconditioner=hx.implicit.Jacobi(key=jax.random.key(0))),
    "cg-nystrom": hx.implicit.CG(preconditioner=hx.implicit.Nystrom(rank=2, key=jax.random.key(0))),
    "minres": hx.implicit.MINRES(),
    "gradient-descent": hx.implicit.GradientDescent(max_steps=200_000),
    "heavy-ball": hx.implicit.HeavyBall(max_steps=50_000),
    "cholesky": hx.implicit.Cholesky(),
    "neumann": hx.implicit.Neumann(terms=20_000),
}
FEATURES = 4


def inner(w, hyper, data):
    """log cosh regression with one strength a feature: smooth, strongly convex, not quadratic."""
    inputs, targets = data
    error = inputs @ w - targets
    return jnp.mean(jnp.logaddexp(error, -error)) + 0.5 * jnp.sum(hyper * w**2)


def outer(w, hyper, data):
    inputs, targets = data
    return 0.5 * jnp.mean((inputs @ w - targets) ** 2)


def case(seed: int):
    rng = np.random.default_rng(seed)
    inputs, held = rng.normal(size=(2, 20, FEATURES)) * np.exp(rng.uniform(-0.5, 0.5, FEATURES))
    targets, wanted = rng.normal(size=(2, 20))
    return (jnp.asarray(inputs), jnp.asarray(targets)), (jnp.asarray(held), jnp.asarray(wanted))


def reference(train, held, strengths) -> np.ndarray:
    """Newton's method and a direct solve in numpy, derivatives by hand."""
    (x, y), (xv, yv), w = map(np.asarray, train), map(np.asarray, held), np.zeros(FEATURES)
    x, y, xv, yv = map(np.asarray, (*train, *held))

    def gradient(w):
        return x.T @ np.tanh(x @ w - y) / len(y) + strengths * w

    for _ in range(100):
        curve = x.T @ (x / np.cosh(x @ w - y)[:, None] ** 2) / len(y) + np.diag(strengths)
        step = np.linalg.solve(curve, gradient(w))
        t = 1.0
        while np.linalg.norm(gradient(w - t * step)) > np.linalg.norm(gradient(w)) and t > 1e-6:
            t /= 2
        w = w - t * step
    curve = x.T @ (x / np.cosh(x @ w - y)[:, None] ** 2) / len(y) + np.diag(strengths)
    return -strengths * w * np.linalg.solve(curve, xv.T @ (xv @ w - yv) / len(yv))


def objective(lower, adjoint, data=None) -> hx.ImplicitObjective:
    train, held = case(0) if data is None else data
    optimum = hx.Optimum(inner, jnp.zeros(FEATURES), data=train, solver=lower)
    return hx.ImplicitObjective(optimum, outer, held, adjoint=adjoint, certifier=hx.implicit.NoCertifier())


OTHERS = ["gradient-descent", "heavy-ball", "lbfgs", "callable"]
PAIRS = [
    pytest.param(a, b, marks=() if a == "newton" or b == "cg" else pytest.mark.slow) for a in LOWER for b in ADJOINT
]


@pytest.mark.parametrize(("lower", "adjoint"), PAIRS)
def test_any_lower_solver_with_any_adjoint_at_hyperparameters_at_once(lower, adjoint):
    """vmap over hyperparameters, three accuracies from one compilation: each is met, and the tightest is the truth."""
    problem = objective(LOWER[lower], ADJOINT[adjoint])
    strengths = np.exp(np.random.default_rng(1).uniform(-3, 1, (4, FEATURES)))

    @jax.jit
    def run(raw, tolerance):
        hyper = hx.Positive(jnp.exp(raw))
        answer, _ = problem.value_and_grad(hyper, problem.init(hyper), hx.Accuracy(tolerance, tolerance))
        return answer.grad.raw, answer.stats, answer.result

    together = jax.vmap(run, in_axes=(0, None))
    for tolerance in (1e-2, 1e-5, 1e-10):
        grads, stats, results = together(jnp.log(strengths), jnp.asarray(tolerance))
        assert np.all(stats.inner_gradient_norm <= tolerance)
        assert np.all(stats.adjoint_residual <= 1.01 * tolerance)
        assert np.all(results == hx.implicit.RESULTS.successful)
    for row, strength in zip(grads, strengths, strict=True):
        np.testing.assert_allclose(row, reference(*case(0), strength), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", LOWER)
def test_a_warm_start_at_the_optimum_takes_no_steps(name):
    problem = objective(LOWER[name], hx.implicit.CG())
    hyper = hx.Positive(np.full(FEATURES, 0.3))
    first, state = problem.value_and_grad(hyper, problem.init(hyper))
    again, _ = problem.value_and_grad(hyper, state)
    assert int(again.stats.inner_steps) == 0 or name == "lbfgs"  # which looks at its gradient after a first step
    assert int(again.stats.inner_steps) <= 1
    assert int(again.stats.adjoint_steps) == 0
    np.testing.assert_allclose(again.grad.raw, first.grad.raw, rtol=1e-6)
    assert int(again.stats.products) < int(first.stats.products) or name == "callable"


FIRST_ORDER = [hx.implicit.GradientDescent, hx.implicit.HeavyBall, hx.implicit.FISTA]


@pytest.mark.parametrize("method", FIRST_ORDER)
@pytest.mark.parametrize("kind", [slow("softmax"), "logistic", slow("squared")])
def test_first_order_methods_on_families_use_their_constants(kind, method):
    """No estimate is made, every gradient counts as one product, and the answer is that of the dense reference."""
    rng = np.random.default_rng(2)
    for _ in range(2):
        problem = random_problem(rng, kind, 0, smallest=0.1)
        built = problem.objective
        optimum = hx.Optimum(built.optimum.loss, solver=method(tolerance=1e-10, max_steps=200_000))
        plain = hx.ImplicitObjective(
            optimum,
            built.outer_loss,
            built.outer_data,
            adjoint=hx.implicit.CG(tolerance=1e-11),
            certifier=hx.implicit.NoCertifier(),
        )
        answer = hx.hypergradient(plain, problem.hyper)[0]
        steps, adjoint = int(answer.stats.inner_steps), int(answer.stats.adjoint_steps)
        assert int(answer.stats.products) == steps + 1 + adjoint + 2
        assert problem.error(answer) <= 1e-6 * float(np.linalg.norm(problem.grad.astype(float))) + 1e-8


@pytest.mark.parametrize("method", [hx.implicit.GradientDescent, hx.implicit.FISTA])
def test_an_estimate_of_smoothness_that_is_too_small_is_raised(method):
    """g = Σ_j ½w_j² + 500 [log(1 + e^{4(w_j - h)}) + log(1 + e^{-w_j})]: A is 1 at the start, and 10³ at the end."""

    def steep(w, hyper, data):
        return 0.5 * jnp.sum(w**2) + 500 * jnp.sum(jnp.logaddexp(0.0, 4 * (w - hyper)) + jnp.logaddexp(0.0, -w))

    optimum = hx.Optimum(steep, jnp.full(3, -40.0), solver=method(tolerance=1e-7, max_steps=20_000))
    problem = hx.ImplicitObjective(optimum, lambda w, hyper, data: jnp.sum(w), certifier=hx.implicit.NoCertifier())
    answer = hx.hypergradient(problem, jnp.asarray(0.5), throw=False)[0]
    assert float(answer.stats.inner_gradient_norm) <= 1e-7

    def sigmoid(u):
        return 1 / (1 + np.exp(-u))

    low, high, w = -5.0, 5.0, 0.0
    for _ in range(100):
        w = (low + high) / 2
        low, high = (low, w) if w + 500 * (4 * sigmoid(4 * (w - 0.5)) - sigmoid(-w)) > 0 else (w, high)
    curve = 16 * 500 * sigmoid(4 * (w - 0.5)) * sigmoid(-4 * (w - 0.5))
    exact = 3 * curve / (1 + curve + 500 * sigmoid(w) * sigmoid(-w))
    np.testing.assert_allclose(answer.grad, exact, rtol=1e-7)


@pytest.mark.parametrize("lower", ["newton", "fista", *(pytest.param(n, marks=pytest.mark.slow) for n in OTHERS)])
def test_vmap_over_problems(lower):
    problems = [objective(LOWER[lower], hx.implicit.CG(), case(seed)) for seed in range(3)]
    together = hx.ImplicitObjective.stacked(problems)
    strengths = np.exp(np.random.default_rng(3).uniform(-2, 1, (3, FEATURES)))
    hypers = jax.vmap(lambda s: hx.Positive(s))(jnp.asarray(strengths))
    states = eqx.filter_vmap(lambda o, hyper: o.init(hyper))(together, hypers)
    answers, _ = eqx.filter_vmap(lambda o, hyper, state: o.value_and_grad(hyper, state))(together, hypers, states)
    for seed, (row, strength) in enumerate(zip(answers.grad.raw, strengths, strict=True)):
        np.testing.assert_allclose(row, reference(*case(seed), strength), rtol=1e-5, atol=1e-7)


def test_families_are_stacked_with_their_certificates():
    rng = np.random.default_rng(4)
    bound = hx.implicit.EhrhardtRoberts()
    problems = [random_problem(rng, "logistic", 1, smallest=1e-2, certifier=bound) for _ in range(3)]
    together = hx.ImplicitObjective.stacked([problem.objective for problem in problems])
    hypers = jax.tree.map(lambda *x: jnp.stack(x), *(problem.hyper for problem in problems))
    states = eqx.filter_vmap(lambda o, hyper: o.init(hyper))(together, hypers)
    answers, _ = eqx.filter_vmap(lambda o, hyper, state: o.value_and_grad(hyper, state))(together, hypers, states)
    assert answers.certificate.kind == "certified"
    for i, problem in enumerate(problems):
        answer = jax.tree.map(lambda leaf, i=i: leaf[i], answers)
        assert problem.error(answer) <= float(answer.certificate.bound) < np.inf


def test_a_momentum_that_does_not_converge_is_reported():
    """Heavy ball has a cycle where the curvature changes by a factor of a thousand: it must not pass for an optimum."""

    def steep(w, hyper, data):
        return 0.5 * jnp.sum(w**2) + 500 * jnp.sum(jnp.logaddexp(0.0, 4 * (w - hyper)) + jnp.logaddexp(0.0, -w))

    optimum = hx.Optimum(steep, jnp.full(3, -40.0), solver=hx.implicit.HeavyBall(max_steps=2000))
    problem = hx.ImplicitObjective(optimum, lambda w, hyper, data: jnp.sum(w), certifier=hx.implicit.NoCertifier())
    answer = hx.hypergradient(problem, jnp.asarray(0.5), throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.inner_not_converged)


def test_what_differs_is_not_stacked():
    with pytest.raises(ValueError, match="at least one"):
        hx.ImplicitObjective.stacked([])
    with pytest.raises(ValueError, match="objective 1 differs"):
        hx.ImplicitObjective.stacked(
            [objective(hx.implicit.LBFGS(), hx.implicit.CG()), objective(hx.implicit.Newton(), hx.implicit.CG())]
        )
    train, held = case(0)
    shorter = (train[0][:10], train[1][:10]), held
    with pytest.raises(ValueError, match="objective 1 differs"):
        hx.ImplicitObjective.stacked(
            [
                objective(hx.implicit.LBFGS(), hx.implicit.CG()),
                objective(hx.implicit.LBFGS(), hx.implicit.CG(), shorter),
            ]
        )


def test_a_callable_that_returns_something_else_is_refused():
    for bad in (lambda f, w, tol, n: w[:2], lambda f, w, tol, n: {"w": w}, lambda f, w, tol, n: w.astype(jnp.float32)):
        with pytest.raises(ValueError, match="must return what it was given"):
            hx.hypergradient(objective(bad, hx.implicit.CG()), hx.Positive(np.full(FEATURES, 0.3)))[0]


def test_a_callable_that_stops_early_is_found_out():
    problem = objective(
        lambda value_and_grad, w, tolerance, max_steps: w - 0.1 * value_and_grad(w)[1], hx.implicit.CG()
    )
    answer = hx.hypergradient(problem, hx.Positive(np.full(FEATURES, 0.3)), throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.inner_not_converged)


@pytest.mark.parametrize(
    ("adjoint", "words"),
    [
        (hx.implicit.Neumann(terms=3), "3 terms of the Neumann series"),
        slow(hx.implicit.Neumann(terms=1), "1 terms of the Neumann series"),
        (hx.implicit.Neumann(terms=1, preconditioned=True), "1 preconditioned steps"),
        (hx.implicit.Nystrom(rank=2, damping=0.1, key=jax.random.key(0)), "A_r + 0.1 I"),
        (hx.implicit.CG(damping=0.3), "A + 0.3 I"),
        slow(hx.implicit.MINRES(damping=0.3), "A + 0.3 I"),
    ],
)
def test_a_certificate_names_the_system_that_was_solved_and_covers_what_it_left_out(adjoint, words):
    rng = np.random.default_rng(6)
    off = 0.0
    for _ in range(3):
        problem = random_problem(rng, "logistic", 1, smallest=0.1)
        built = problem.objective
        for bound in (hx.implicit.EhrhardtRoberts(), hx.implicit.NoCertifier()):
            objective = hx.ImplicitObjective(
                built.optimum, built.outer_loss, built.outer_data, adjoint=adjoint, certifier=bound
            )
            answer = hx.hypergradient(objective, problem.hyper, throw=False)[0]
            assert words in repr(answer.certificate)
            assert problem.error(answer) <= float(answer.certificate.bound)
        off = max(off, problem.error(answer) / float(np.linalg.norm(problem.grad.astype(float))))
    assert off > 1e-3  # it is another system
