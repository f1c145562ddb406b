"""The known failures of the field, each provoked and each caught: by a result, a bound that knows, or an error."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
import oracles
from hyprax.implicit import AdjointSystem, LinearSolution
from hyprax.implicit._objective import ImplicitState
from problems import random_problem, select_penalty
from thoroughness import slow

BOUNDS: dict[str, Callable[[], hx.implicit.AbstractCertifier]] = {
    "look-ahead": hx.implicit.LookAhead,
    "ehrhardt-roberts": hx.implicit.EhrhardtRoberts,
}
LOWER = {
    "gradient-descent": hx.implicit.GradientDescent,
    "heavy-ball": hx.implicit.HeavyBall,
    "fista": hx.implicit.FISTA,
    "lbfgs": hx.implicit.LBFGS,
    "newton": hx.implicit.Newton,
}


def name_of(answer: hx.Hypergradient) -> str:
    names = ("successful", "inner_not_converged", "adjoint_not_converged", "diverged", "indefinite")
    names += ("strong_convexity_disproved", "unpenalised", "adjoint_truncated")
    return next(name for name in names if bool(answer.result == getattr(hx.implicit.RESULTS, name)))


def changed(problem, solver=None, **options) -> hx.ImplicitObjective:
    """The problem with another lower solver, adjoint or bound."""
    built = problem.objective
    optimum = hx.Optimum(built.optimum.loss, solver=solver)
    return hx.ImplicitObjective(optimum, built.outer_loss, built.outer_data, **options)


# A wrong recursion of conjugate gradients


class WrongCG(hx.implicit.AbstractAdjointSolver):
    """Conjugate gradients as two libraries shipped it: the direction is made from the residual BEFORE the step."""

    tolerance: float | None = None
    max_steps: int = 30

    citations: ClassVar[tuple[str, ...]] = ()

    def solve(self, system: AdjointSystem) -> LinearSolution:
        def step(_, carry):
            q, r, p = carry
            image = system.product(p)
            alpha = jnp.vdot(r, r) / jnp.vdot(p, image)
            new = r - alpha * image
            beta = jnp.vdot(new, new) / jnp.vdot(r, r)
            return q + alpha * p, new, r + beta * p  # `new + beta * p` would be right

        begun = system.rhs - system.product(system.start)
        q, _, _ = jax.lax.fori_loop(0, self.max_steps, step, (system.start, begun, begun))
        steps = jnp.asarray(self.max_steps)
        return LinearSolution(q, steps, steps, jnp.asarray(jnp.inf, q.dtype))


def test_a_wrong_recursion_of_conjugate_gradients_is_caught():
    rng = np.random.default_rng(0)
    grown = 0
    for _ in range(10):
        problem = random_problem(rng, "softmax", 3, smallest=1e-2)
        wrong = changed(problem, adjoint=WrongCG(), certifier=hx.implicit.EhrhardtRoberts())
        answer = hx.hypergradient(wrong, problem.hyper, throw=False)[0]
        assert name_of(answer) in ("adjoint_not_converged", "diverged")
        assert not problem.error(answer) > float(answer.certificate.bound)
        zero = float(np.linalg.norm(problem.grad.astype(float)))  # the error of q = 0
        grown += problem.error(answer) > zero
        right = hx.hypergradient(
            changed(problem, adjoint=hx.implicit.CG(tolerance=1e-10), certifier=hx.implicit.NoCertifier()),
            problem.hyper,
        )[0]
        assert problem.error(right) <= 1e-6 * zero
    assert grown >= 2  # worse than q = 0: what is caught is no harmless variant


# A stopped L-BFGS


@pytest.mark.slow
@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())
def test_a_stopped_lbfgs_is_reported_and_its_bound_covers_the_error(bound):
    rng = np.random.default_rng(1)
    worst = 0.0
    for index in range(12):
        problem = random_problem(rng, "logistic", index % 2, smallest=1e-3)
        plain = changed(problem, hx.implicit.LBFGS(max_steps=4), certifier=hx.implicit.NoCertifier())
        answer = hx.hypergradient(plain, problem.hyper, throw=False)[0]
        assert name_of(answer) == "inner_not_converged"
        worst = max(worst, problem.error(answer) / float(np.linalg.norm(problem.grad.astype(float)) + 1e-30))
        answer = hx.hypergradient(
            changed(problem, hx.implicit.LBFGS(max_steps=4), certifier=bound()), problem.hyper, throw=False
        )[0]
        assert name_of(answer) == "inner_not_converged"
        assert problem.error(answer) <= float(answer.certificate.bound)
        with pytest.raises(hx.HypergradientError, match="gradient norm"):
            hx.hypergradient(plain, problem.hyper)[0]
    assert worst > 0.1  # the failure is real


# A strong-convexity constant that is too large


def half_form(w, hyper, matrix):
    return 0.5 * w @ matrix @ w - hyper * jnp.sum(w)


def half_distance(w, hyper, target):
    return 0.5 * jnp.sum((w - target) ** 2)


def quadratic(matrix, target, start=None, **options) -> hx.ImplicitObjective:
    """g = ½ wᵀMw - λ Σw, f = ½‖w - target‖²."""
    begin = jnp.zeros(len(target)) if start is None else jnp.asarray(start)
    optimum = hx.Optimum(half_form, begin, data=jnp.asarray(matrix), solver=options.pop("solver", None))
    return hx.ImplicitObjective(optimum, half_distance, jnp.asarray(target), **options)


@pytest.mark.parametrize("adjoint", [hx.implicit.CG(), hx.implicit.MINRES(), hx.implicit.Cholesky()])
def test_an_overestimated_strong_convexity_is_disproved(adjoint):
    rng = np.random.default_rng(2)
    zero = jnp.zeros(())
    for _ in range(15):
        eigenvalues = 10.0 ** rng.uniform(-2, 0, 5)
        basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
        matrix, target = (basis * eigenvalues) @ basis.T, rng.normal(size=5)

        def result(mu, matrix=matrix, target=target):
            constants = hx.implicit.Constants(jnp.asarray(mu), zero, jnp.sqrt(jnp.asarray(5.0)), zero)
            bound = hx.implicit.EhrhardtRoberts(constants, lipschitz_outer=1.0, lipschitz_direct=0.0)
            solver = hx.implicit.Newton(tolerance=1e-9)
            problem = quadratic(matrix, target, solver=solver, certifier=bound, adjoint=adjoint)
            return hx.hypergradient(problem, jnp.asarray(1.0), throw=False)[0]

        assert name_of(result(eigenvalues.min() * 0.999)) == "successful"
        wrong = result(eigenvalues.min() * 5)
        assert name_of(wrong) == "strong_convexity_disproved"
        assert "Lower mu" in wrong.message


# An indefinite Hessian


@pytest.mark.parametrize(
    "adjoint",
    [
        hx.implicit.CG(),
        hx.implicit.Cholesky(),
        hx.implicit.GradientDescent(),
        hx.implicit.HeavyBall(),
        hx.implicit.CG(preconditioner=hx.implicit.Jacobi(key=jax.random.key(0))),
    ],
)
def test_a_saddle_is_not_taken_for_a_minimum(adjoint):
    """Started exactly at a stationary point with curvature of both signs, where every gradient is zero."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        matrix = (basis * np.array([2.0, 1.0, -0.5, -1.5])) @ basis.T
        saddle = np.linalg.solve(matrix, np.ones(4))
        problem = quadratic(
            matrix, rng.normal(size=4), saddle, adjoint=adjoint, solver=hx.implicit.Newton(tolerance=1e-9)
        )
        answer = hx.hypergradient(problem, jnp.asarray(1.0), throw=False)[0]
        found = name_of(answer)
        assert found in ("indefinite", "adjoint_not_converged", "diverged")
        assert found == "indefinite" or not isinstance(adjoint, hx.implicit.Cholesky)


def test_minres_follows_the_branch_of_a_saddle():
    """w(λ) = λ M⁻¹1 is stationary whatever the signs: dF/dλ = (M⁻¹1)ᵀ(w - target)."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        basis = np.linalg.qr(rng.normal(size=(4, 4)))[0]
        matrix, target = (basis * np.array([2.0, 1.0, -0.5, -1.5])) @ basis.T, rng.normal(size=4)
        branch = np.linalg.solve(matrix, np.ones(4))
        problem = quadratic(
            matrix,
            target,
            branch,
            adjoint=hx.implicit.MINRES(tolerance=1e-10),
            solver=hx.implicit.Newton(tolerance=1e-9),
        )
        answer = hx.hypergradient(problem, jnp.asarray(1.0))[0]
        np.testing.assert_allclose(answer.grad, branch @ (branch - target), rtol=1e-7)


# A warm start from another problem


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())
def test_a_warm_start_from_another_problem_of_the_same_shape_is_only_a_start(bound):
    rng = np.random.default_rng(5)
    problems = [random_problem(rng, "softmax", 3, smallest=1e-3) for _ in range(4)]
    objectives = [changed(problem, certifier=bound()) for problem in problems]
    states = [o.value_and_grad(p.hyper, o.init(p.hyper))[1] for o, p in zip(objectives, problems, strict=True)]
    for i, (problem, objective) in enumerate(zip(problems, objectives, strict=True)):
        for state in (states[i - 1], ImplicitState(*(1e3 * leaf for leaf in jax.tree.leaves(states[i - 1])))):
            answer, _ = objective.value_and_grad(problem.hyper, state)
            assert problem.error(answer) <= float(answer.certificate.bound)
            assert name_of(answer) != "successful" or problem.error(answer) <= 1e-4 * (
                1e-3 + float(np.linalg.norm(problem.grad.astype(float)))
            )


@pytest.mark.parametrize("name", LOWER)
def test_a_warm_start_from_another_problem_is_right_or_reported(name):
    rng = np.random.default_rng(6)
    problem = random_problem(rng, "logistic", 0, smallest=0.1)
    objective = changed(
        problem,
        LOWER[name](tolerance=1e-9, max_steps=20_000),
        adjoint=hx.implicit.CG(tolerance=1e-9),
        certifier=hx.implicit.NoCertifier(),
    )
    for size in (1.0, 1e3, 1e6):
        state = ImplicitState(jnp.asarray(size * rng.normal(size=5)), jnp.asarray(size * rng.normal(size=5)))
        answer, _ = objective.value_and_grad(problem.hyper, state)
        assert name_of(answer) in ("successful", "inner_not_converged", "adjoint_not_converged")
        if name_of(answer) == "successful":
            assert problem.error(answer) <= 1e-6 * (1e-3 + float(np.linalg.norm(problem.grad.astype(float))))


def test_a_warm_start_of_another_shape_or_dtype_is_refused():
    rng = np.random.default_rng(7)
    first, second = random_problem(rng, "softmax", 0), random_problem(rng, "softmax", 0, d=4)
    state = second.objective.init(second.hyper)
    for ask in (first.objective.value_and_grad, first.objective.value):
        with pytest.raises(ValueError, match="made by another objective"):
            ask(first.hyper, state)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), first.objective.init(first.hyper))
    with pytest.raises(ValueError, match="float32"):
        first.objective.value_and_grad(first.hyper, half)


# float32 at its rounding floor


@pytest.mark.parametrize("name", LOWER)
def test_float32_stops_at_its_rounding_floor_and_says_so(name):
    """1e-12 cannot be reached in float32: the solver ends, the result says so, and the answer is float32's best."""
    rng = np.random.default_rng(8)
    x, xv = rng.normal(size=(2, 40, 4)).astype(np.float32)
    y, yv = (rng.permutation(np.arange(40) % 2).astype(np.float32) for _ in range(2))
    family = hx.families.Logistic(x, y, penalty=select_penalty)
    optimum = hx.Optimum(family, solver=LOWER[name](tolerance=1e-12, max_steps=3000))
    held = (jnp.asarray(xv), jnp.asarray(yv))
    bound = hx.implicit.LookAhead() if name == "lbfgs" else hx.implicit.NoCertifier()
    objective = hx.ImplicitObjective(
        optimum, family.mean_loss, held, adjoint=hx.implicit.CG(tolerance=1e-12), certifier=bound
    )
    hyper = {"penalty": hx.Positive(jnp.full(4, 0.1, jnp.float32))}
    answer = hx.hypergradient(objective, hyper, throw=False)[0]
    assert answer.grad["penalty"].raw.dtype == jnp.float32
    assert name_of(answer) == "inner_not_converged"
    strengths = np.full((4, 1), 0.1)
    wide, labels, held_out, wanted = (np.asarray(a, float) for a in (x, y, xv, yv))
    truth = oracles.reference("logistic", wide, labels, held_out, wanted, strengths)
    exact = np.asarray(truth.per_weight, float)[:, 0]
    error = np.linalg.norm(np.asarray(answer.grad["penalty"].raw, float) - exact)
    assert error <= 1e-4 * np.linalg.norm(exact)
    assert answer.certificate.kind == "none" or error <= float(answer.certificate.bound)


# A column of zeros


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        slow("softmax", hx.implicit.LookAhead),
        slow("softmax", hx.implicit.EhrhardtRoberts),
        slow("logistic", hx.implicit.EhrhardtRoberts),
        ("squared", hx.implicit.EhrhardtRoberts),
    ],
)
def test_a_column_of_zeros_has_no_effect_and_a_hypergradient_of_zero(kind, bound):
    rng = np.random.default_rng(9)
    n, d, c = 30, 4, 3
    x, xv = rng.normal(size=(2, n, d))
    x[:, 1], xv[:, 1] = 0, 0
    if kind == "softmax":
        family = hx.families.Softmax(x, np.arange(n) % c, penalty=select_penalty)
        yv, strength = jnp.asarray(np.arange(n)[::-1] % c), np.full((d, 1), 1e-3)
    else:
        make = {"logistic": hx.families.Logistic, "squared": hx.families.Squared}[kind]
        family = make(x, (np.arange(n) % 2).astype(float), penalty=select_penalty)
        yv, strength = jnp.asarray(rng.integers(0, 2, n).astype(float)), np.full(d, 1e-3)
    for adjoint in (hx.implicit.CG(), hx.implicit.CG(preconditioner=hx.implicit.Jacobi(key=jax.random.key(0))))[
        : 1 if bound is hx.implicit.LookAhead else 2
    ]:
        objective = hx.ImplicitObjective(
            hx.Optimum(family), family.mean_loss, (jnp.asarray(xv), yv), certifier=bound(), adjoint=adjoint
        )
        answer = hx.hypergradient(objective, {"penalty": hx.Positive(strength)})[0]
        grad = np.ravel(answer.grad["penalty"].raw)
        assert grad[1] == 0
        assert np.all(np.isfinite(grad))
        assert np.all(np.delete(grad, 1) != 0)
        assert np.isfinite(float(answer.certificate.bound))


# One example


@pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS.keys())
def test_one_example_is_enough_for_ridge_regression(bound):
    """w = x y/(‖x‖² + λ): dF/dlog λ = -λ (xᵀv y/(‖x‖² + λ) - t) xᵀv y/(‖x‖² + λ)² for one validation example (v, t)."""
    rng = np.random.default_rng(10)
    for _ in range(10):
        x, v = rng.normal(size=(2, 1, 3))
        y, t = rng.normal(size=(2, 1))
        strength = float(np.exp(rng.normal()))
        family = hx.families.Squared(x, y, penalty=select_penalty)
        objective = hx.ImplicitObjective(
            hx.Optimum(family), family.mean_loss, (jnp.asarray(v), jnp.asarray(t)), certifier=bound()
        )
        hyper = {"penalty": hx.Positive(strength)}
        answer = hx.hypergradient(objective, hyper)[0]
        used = float(hyper["penalty"].value)
        along, size = (x[0] @ v[0]) * y[0], x[0] @ x[0] + used
        exact = -used * (along / size - t[0]) * along / size**2
        error = abs(float(answer.grad["penalty"].raw) - exact)
        assert error <= float(answer.certificate.bound)
        assert error <= 1e-6 * (1e-3 + abs(exact))


@pytest.mark.parametrize("make", [hx.families.Softmax, hx.families.Logistic])
def test_one_example_has_one_class_and_is_refused(make):
    with pytest.raises(ValueError, match="single class"):
        make(np.ones((1, 3)), np.ones(1, int), penalty=select_penalty)


# Separable classes without a penalty


@pytest.mark.parametrize(
    ("make", "bound"),
    [
        slow(hx.families.Softmax, hx.implicit.LookAhead),
        (hx.families.Logistic, hx.implicit.EhrhardtRoberts),
        (hx.families.Softmax, hx.implicit.NoCertifier),
        slow(hx.families.Logistic, hx.implicit.NoCertifier),
    ],
)
def test_separable_classes_without_penalty_have_no_optimum(make, bound):
    """The gradient norm does fall below the tolerance, far out: that alone must not pass for an optimum."""
    x = np.concatenate([np.linspace(-2, -0.5, 10), np.linspace(0.5, 2, 10)])[:, None]
    y = np.repeat([0, 1], 10)
    family = make(x, y, penalty=select_penalty)
    held = (jnp.asarray(x), jnp.asarray(y if make is hx.families.Softmax else y.astype(float)))
    for name in ("newton",) if bound is not hx.implicit.NoCertifier else ("lbfgs", "gradient-descent"):
        optimum = hx.Optimum(family, solver=LOWER[name](tolerance=1e-6))
        objective = hx.ImplicitObjective(optimum, family.mean_loss, held, certifier=bound())
        hyper = {"penalty": jnp.zeros(())}
        answer = hx.hypergradient(objective, hyper, throw=False)[0]
        assert name_of(answer) == "unpenalised"
        assert "strength above zero" in answer.message
        assert not np.isfinite(float(answer.certificate.bound))
        value, _ = objective.value(hyper, objective.init(hyper))
        assert bool(value.result == hx.implicit.RESULTS.unpenalised)
        assert not np.isfinite(float(value.certificate.bound))


def test_strong_convexity_claimed_for_separable_classes_is_disproved():
    """A user's own logistic loss without penalty: at the point where the gradient is small the curvature is too."""
    x = jnp.concatenate([jnp.linspace(-2, -0.5, 10), jnp.linspace(0.5, 2, 10)])[:, None]
    sign = jnp.repeat(jnp.asarray([-1.0, 1.0]), 10)

    def logistic(w, hyper, data):
        return jnp.mean(jnp.logaddexp(0.0, -sign * (x @ w))) + 0 * jnp.sum(hyper)

    one = jnp.ones(())
    bound = hx.implicit.EhrhardtRoberts(
        hx.implicit.Constants(1e-3 * one, one, one, one), lipschitz_outer=1.0, lipschitz_direct=0.0
    )
    optimum = hx.Optimum(logistic, jnp.zeros(1), solver=hx.implicit.LBFGS(tolerance=1e-6))
    objective = hx.ImplicitObjective(optimum, lambda w, hyper, data: jnp.sum(w), certifier=bound)
    answer = hx.hypergradient(objective, jnp.asarray(0.3), throw=False)[0]
    assert name_of(answer) == "strong_convexity_disproved"


# A truncated adjoint


@pytest.mark.parametrize("terms", [1, slow(3)])
def test_a_truncated_adjoint_that_solves_next_to_nothing_is_reported(terms):
    """Features in units of 1 and of 10,000: a step of 1/L moves nothing but the largest, and h is 100 % wrong."""
    rng = np.random.default_rng(11)
    scales = np.array([1.0, 1e4, 10.0])
    x, v = rng.normal(size=(2, 40, 3)) + 1.0
    y, u = (a @ np.ones(3) + rng.normal(size=40) for a in (x, v))
    hyper = {"penalty": hx.Positive(np.full(3, 1e-3))}

    def answer(scale, adjoint):
        family = hx.families.Squared(x * scale, y, penalty=select_penalty)
        objective = hx.ImplicitObjective(
            hx.Optimum(family),
            family.mean_loss,
            (v * scale, u),
            adjoint=adjoint,
            certifier=hx.implicit.NoCertifier(),
        )
        found, _ = hx.hypergradient(objective, hyper, throw=False)
        return found, np.asarray(found.grad["penalty"].raw)

    truth = answer(scales, hx.implicit.CG())[1]
    found, grad = answer(scales, hx.implicit.Neumann(terms=terms))
    assert np.linalg.norm(grad - truth) > 0.9 * np.linalg.norm(truth)
    assert name_of(found) == "adjoint_truncated"
    assert float(found.stats.adjoint_left) == pytest.approx(1.0, abs=0.1)
    assert "adjoint_left" in found.message
    fine, grad = answer(1.0, hx.implicit.Neumann(terms=40))
    truth = answer(1.0, hx.implicit.CG())[1]
    assert name_of(fine) == "successful"
    assert np.linalg.norm(grad - truth) <= 1e-2 * np.linalg.norm(truth)


# Newton far from the optimum, and data in any unit


@pytest.mark.parametrize("start", [None, np.zeros(2), np.array([1.0, 1e3])])
def test_newton_goes_on_while_the_loss_falls(start):
    """Robust regression on raw features: the gradient norm rises on the way, and the loss falls at every step."""
    x = np.array([980.0, 1600, 4200, 4900, 5500, 6200, 7000, 7200, 7600])
    y = np.array([-80.0, 230, -500, -110, -85, 195, -30, -25, 365])
    a = np.column_stack([x, np.ones(9)])
    family = hx.families.PseudoHuber(a, y, penalty=select_penalty, delta=1.35)
    optimum = hx.Optimum(family, None if start is None else jnp.asarray(start))
    objective = hx.ImplicitObjective(optimum, family.mean_loss, (a, y), certifier=hx.implicit.NoCertifier())
    hyper = {"penalty": hx.Positive(1e-4)}
    found, state = hx.hypergradient(objective, hyper)
    w = np.asarray(state.params)
    residual = (a @ w - y) / 1.35
    slope = a.T @ (1.35 * residual / np.sqrt(1 + residual**2)) / 9 + float(hyper["penalty"].value) * w
    assert np.linalg.norm(slope) <= 1e-7
    assert float(found.value) == pytest.approx(220.738635, rel=1e-6)


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_unit_and_the_offset_of_the_targets_do_not_matter(unit, offset):
    """Tolerances are relative to the problem: right answers are not refused, nor wrong ones taken, in any unit."""
    rng = np.random.default_rng(12)
    x, v = (np.column_stack([np.ones(40), rng.normal(size=(40, 2))]) for _ in range(2))
    y, u = (unit * (offset + a @ [2.0, 1.0, -0.5] + 0.3 * rng.normal(size=40)) for a in (x, v))
    family = hx.families.Squared(x, y, penalty=select_penalty)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (v, u), certifier=hx.implicit.NoCertifier())
    hyper = {"penalty": hx.Positive(1e-3)}
    answer, _ = hx.hypergradient(objective, hyper)
    truth = oracles.reference("squared", x, y, v, u, np.full((3, 1), float(hyper["penalty"].value)))
    assert float(answer.grad["penalty"].raw) == pytest.approx(float(truth.per_weight.sum()), rel=1e-6)


@pytest.mark.parametrize("level", [1.0, 7.0, 15.0])
def test_counts_of_every_size_are_fitted(level):
    rng = np.random.default_rng(13)
    x = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    y = rng.poisson(np.exp(level + 0.5 * x[:, 1])).astype(float)
    family = hx.families.Poisson(x[:40], y[:40], penalty=select_penalty)
    objective = hx.ImplicitObjective(
        hx.Optimum(family), family.mean_loss, (x[40:], y[40:]), certifier=hx.implicit.NoCertifier()
    )
    hyper = {"penalty": hx.Positive(1e-3)}
    answer, state = hx.hypergradient(objective, hyper)
    w = np.asarray(state.params)
    slope = x[:40].T @ (np.exp(x[:40] @ w) - y[:40]) / 40 + float(hyper["penalty"].value) * w
    assert np.linalg.norm(slope) <= 1e-7 * np.exp(level)
    assert int(answer.stats.inner_steps) <= 10
