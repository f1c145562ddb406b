"""Nothing goes wrong in silence: what was not reached, not finite, not convex or not allowed is named."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.implicit import Constants
from problems import random_problem, select_penalty
from thoroughness import slow


def half_form(w, hyper, matrix):
    return 0.5 * w @ matrix @ w - hyper * jnp.sum(w)


def half_distance(w, hyper, target):
    return 0.5 * jnp.sum((w - target) ** 2)


def quadratic(matrix, target, **options) -> hx.ImplicitObjective:
    """g = ½ wᵀMw - λ Σw, f = ½‖w - target‖²."""
    start = jnp.zeros(len(target))
    optimum = hx.Optimum(half_form, start, data=jnp.asarray(matrix), solver=options.pop("solver", None))
    return hx.ImplicitObjective(optimum, half_distance, jnp.asarray(target), **options)


@pytest.mark.parametrize(
    "solver", [hx.implicit.Newton(tolerance=1e-13, max_steps=1), slow(hx.implicit.LBFGS(tolerance=1e-13, max_steps=3))]
)
def test_an_unconverged_inner_solve_is_reported(solver):
    problem = random_problem(np.random.default_rng(0), "softmax", 3)
    optimum = hx.Optimum(problem.objective.optimum.loss, solver=solver)
    objective = hx.ImplicitObjective(optimum, problem.objective.outer_loss, problem.objective.outer_data)
    answer = hx.hypergradient(objective, problem.hyper, throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.inner_not_converged)
    assert f"{float(answer.stats.inner_gradient_norm):.4g}" in answer.message
    assert problem.error(answer) <= float(answer.certificate.bound)  # the bound knows
    with pytest.raises(hx.HypergradientError, match="gradient norm") as caught:
        hx.hypergradient(objective, problem.hyper)[0]
    assert type(caught.value.hypergradient.stats) is type(answer.stats)
    with pytest.raises(RuntimeError, match="gradient norm"):  # inside a transformation too
        jax.block_until_ready(jax.jit(lambda h: hx.hypergradient(objective, h)[0].grad)(problem.hyper))


def test_an_unconverged_adjoint_solve_is_reported():
    problem = random_problem(np.random.default_rng(1), "softmax", 3)
    objective = hx.ImplicitObjective(
        hx.Optimum(problem.objective.optimum.loss),
        problem.objective.outer_loss,
        problem.objective.outer_data,
        adjoint=hx.implicit.CG(tolerance=1e-12, max_steps=1),
        certifier=hx.implicit.EhrhardtRoberts(),
    )
    answer = hx.hypergradient(objective, problem.hyper, throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.adjoint_not_converged)
    assert "adjoint_residual" in answer.message
    assert problem.error(answer) <= float(answer.certificate.bound)


@pytest.mark.parametrize(
    ("dtype", "size"), [(jnp.float64, 1.0), slow(jnp.float64, 1e4), slow(jnp.float32, 1.0), slow(jnp.float32, 1e4)]
)
def test_rounding_passes_for_less_and_a_solver_that_stops_early_does_not(dtype, size):
    rng = np.random.default_rng(5)
    X, V = (jnp.asarray(rng.normal(size=(30, 3)), dtype) for _ in range(2))
    y, z = (jnp.asarray(size * rng.normal(size=30), dtype) for _ in range(2))
    hyper = {"penalty": hx.Positive(jnp.asarray(1e-6, dtype))}
    unreachable = hx.Accuracy(jnp.asarray(1e-25, dtype), jnp.asarray(1e-25, dtype))
    family = hx.families.Squared(X, y, penalty="penalty")
    optimum, mean = hx.Optimum(family), family.mean_loss
    exact = hx.ImplicitObjective(optimum, mean, (V, z), adjoint=hx.implicit.CG())
    answer, _ = exact.value_and_grad(hyper, exact.init(hyper), unreachable)
    assert answer.message == ""
    assert float(answer.stats.inner_gradient_norm) > 1e-25
    assert float(answer.stats.inner_gradient_norm) < 1e2 * float(jnp.finfo(dtype).eps) * size
    assert bool(exact.value(hyper, exact.init(hyper), unreachable)[0].result == hx.implicit.RESULTS.successful)
    early = hx.ImplicitObjective(optimum, mean, (V, z), adjoint=hx.implicit.CG(preconditioner=False, max_steps=1))
    answer, _ = early.value_and_grad(hyper, early.init(hyper), unreachable)
    assert bool(answer.result == hx.implicit.RESULTS.adjoint_not_converged)
    early = eqx.tree_at(lambda o: o.optimum, exact, hx.Optimum(family, solver=hx.implicit.LBFGS(max_steps=2)))
    answer, _ = early.value(hyper, early.init(hyper), unreachable)
    assert bool(answer.result == hx.implicit.RESULTS.inner_not_converged)


def test_the_residual_is_the_true_one():
    rng = np.random.default_rng(2)
    root = rng.normal(size=(8, 8))
    matrix = root @ root.T + 1e-6 * np.eye(8)
    objective = quadratic(
        matrix, rng.normal(size=8), adjoint=hx.implicit.CG(max_steps=3), certifier=hx.implicit.NoCertifier()
    )
    hyper = jnp.asarray(1.0)
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    residual = matrix @ np.asarray(state.adjoint) - (np.asarray(state.params) - np.asarray(objective.outer_data))
    np.testing.assert_allclose(answer.stats.adjoint_residual, np.linalg.norm(residual), rtol=1e-10)


@pytest.mark.slow
def test_lbfgs_goes_below_where_the_plain_line_search_stalls():
    """At ‖∇g‖ of 1e-8 the decrease of g is below its rounding: Armijo's rule alone would stop about there."""
    problem = random_problem(np.random.default_rng(3), "softmax", 0, smallest=0.1)
    optimum = hx.Optimum(problem.objective.optimum.loss, solver=hx.implicit.LBFGS(tolerance=1e-12))
    objective = hx.ImplicitObjective(optimum, problem.objective.outer_loss, problem.objective.outer_data)
    answer = hx.hypergradient(objective, problem.hyper)[0]
    assert float(answer.stats.inner_gradient_norm) <= 1e-12


@pytest.mark.slow
def test_the_rounding_floor_ends_newton():
    problem = random_problem(np.random.default_rng(4), "logistic", 0)
    optimum = hx.Optimum(problem.objective.optimum.loss, solver=hx.implicit.Newton(tolerance=1e-40))
    objective = hx.ImplicitObjective(optimum, problem.objective.outer_loss, problem.objective.outer_data)
    answer = hx.hypergradient(objective, problem.hyper, throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.inner_not_converged)
    assert int(answer.stats.inner_steps) < 60
    assert problem.error(answer) <= float(answer.certificate.bound)


def test_an_indefinite_hessian_is_reported():
    objective = quadratic(
        np.diag([1.0, -2.0]), [0.0, 5.0], solver=hx.implicit.Newton(max_steps=3), certifier=hx.implicit.NoCertifier()
    )
    state = objective.init(None)
    answer, _ = objective.value_and_grad(jnp.asarray(0.0), state)
    assert bool(answer.result == hx.implicit.RESULTS.indefinite) or not bool(
        answer.result == hx.implicit.RESULTS.successful
    )
    assert answer.message


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_data_is_reported(bad):
    objective = quadratic(np.diag([1.0, bad]), [0.0, 1.0])
    answer = hx.hypergradient(objective, jnp.asarray(1.0), throw=False)[0]
    assert bool(answer.result == hx.implicit.RESULTS.diverged)
    _, state = objective.value_and_grad(jnp.asarray(1.0), objective.init(None))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def constants(mu: float, matrix: np.ndarray) -> Constants:
    """Of the quadratic above: A is constant, B = -(1, ..., 1)ᵀ is too."""
    return Constants(*map(jnp.asarray, (mu, 0.0, np.sqrt(len(matrix)), 0.0)))


def test_constants_of_the_user_certify_and_a_wrong_mu_is_disproved():
    rng = np.random.default_rng(5)
    for _ in range(20):
        root = rng.normal(size=(5, 5))
        matrix = root @ root.T + 0.1 * np.eye(5)
        target, strength = rng.normal(size=5), float(rng.normal())
        mu = float(np.linalg.eigvalsh(matrix)[0])
        exact = -np.linalg.solve(matrix, np.ones(5)) @ (target - strength * np.linalg.solve(matrix, np.ones(5)))

        def objective(mu, matrix=matrix, target=target):
            bound = hx.implicit.EhrhardtRoberts(constants(mu, matrix), lipschitz_outer=1.0, lipschitz_direct=0.0)
            return quadratic(matrix, target, solver=hx.implicit.LBFGS(tolerance=1e-3), certifier=bound)

        answer = hx.hypergradient(objective(0.999 * mu), jnp.asarray(strength))[0]
        assert answer.certificate.kind == "certified"
        assert "user's constants" in repr(answer.certificate)
        assert abs(float(answer.grad) - exact) <= float(answer.certificate.bound)
        wrong = hx.hypergradient(objective(50 * np.trace(matrix)), jnp.asarray(strength), throw=False)[0]
        assert bool(wrong.result == hx.implicit.RESULTS.strong_convexity_disproved)


def data(rows: int = 12):
    rng = np.random.default_rng(6)
    return rng.normal(size=(rows, 3)), np.arange(rows) % 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, np.zeros_like(y)), "single class"),
        (lambda x, y: (x, y - 1), "got -1 to 1"),
        (lambda x, y: (x, y.astype(float)), "integer labels"),
        (lambda x, y: (x, y[:-1]), "same length; got 12 and 11"),
        (lambda x, y: (np.where(x > 2, np.nan, x * np.nan), y), "got nan in row 0"),
        (lambda x, y: (x[:, :0], y), "at least 1 of each"),
        (lambda x, y: (x[0], y), r"\(examples, features\)"),
        (lambda x, y: (x[:1], y[:1]), "single class"),
    ],
)
def test_bad_data_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        hx.families.Softmax(*change(*data()), penalty=select_penalty)


def test_a_penalty_of_another_shape_is_refused():
    x, y = data()
    family = hx.families.Softmax(x, y, penalty=select_penalty)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x, y))
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        hx.hypergradient(objective, {"penalty": hx.Positive(np.ones(4))})[0]
    objective = hx.ImplicitObjective(
        hx.Optimum(family), family.mean_loss, (x, y), certifier=hx.implicit.ResidualCertifier()
    )
    with pytest.raises(ValueError, match="Simplex"):
        hx.hypergradient(objective, {"penalty": hx.Simplex(np.full(3, 1 / 3))})[0]


def test_strengths_computed_on_the_way_are_not_certified():
    """Twice a leaf is not a leaf: its slope would be taken for 1, and the bound would be wrong."""
    x, y = data()
    family = hx.families.Softmax(x, y, penalty=lambda hyper: 2 * hyper["penalty"])
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x, y))
    hyper = {"penalty": jnp.asarray(0.3)}
    answer = hx.hypergradient(objective, hyper)[0]
    assert answer.certificate.kind == "estimated"
    plain = hx.families.Softmax(x, y, penalty=lambda hyper: hyper["penalty"])
    other = hx.ImplicitObjective(hx.Optimum(plain), plain.mean_loss, (x, y))
    twice = hx.hypergradient(other, {"penalty": jnp.asarray(0.6)})[0]
    np.testing.assert_allclose(answer.grad["penalty"], 2 * twice.grad["penalty"], rtol=1e-6)
    strict = hx.ImplicitObjective(
        hx.Optimum(family), family.mean_loss, (x, y), certifier=hx.implicit.ResidualCertifier()
    )
    with pytest.raises(ValueError, match="a leaf of the hyperparameters as it is"):
        hx.hypergradient(strict, hyper)


@pytest.mark.optimised  # scalars all along: XLA's light way to compile repeats them without end
@pytest.mark.parametrize("strength", [1e-10, 1e10])
def test_extreme_strengths_on_separable_data_are_bounded_or_reported(strength):
    x = np.concatenate([np.full((10, 1), -1.0), np.full((10, 1), 1.0)])
    y = np.repeat([0.0, 1.0], 10)
    family = hx.families.Logistic(x, y, penalty=select_penalty)
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x, y))
    answer = hx.hypergradient(objective, {"penalty": hx.Positive(strength)}, throw=False)[0]
    assert np.isfinite(float(answer.value))
    assert not np.isnan(float(answer.certificate.bound))


def test_misuse_of_the_parts_is_refused():
    x, y = data()
    family = hx.families.Softmax(x, y, penalty=select_penalty)
    with pytest.raises(ValueError, match="the family holds its data"):
        hx.Optimum(family, data=x)
    with pytest.raises(ValueError, match="no parameters"):
        hx.Optimum(half_form)
    with pytest.raises(ValueError, match="params0"):
        hx.Optimum(family, jnp.zeros(3))
    with pytest.raises(ValueError, match="unknown structure"):
        quadratic(np.eye(2), [1.0, 2.0], certifier=hx.implicit.EhrhardtRoberts())
    with pytest.raises(ValueError, match="unknown structure"):
        quadratic(np.eye(2), [1.0, 2.0], certifier=hx.implicit.LookAhead())
    for bad in (
        lambda: hx.implicit.Newton(tolerance=-1.0),
        lambda: hx.implicit.LBFGS(max_steps=0),
        lambda: hx.implicit.CG(tolerance=0.0),
    ):
        with pytest.raises(ValueError, match="must be"):
            bad()


FLOAT32 = """
import jax, jax.numpy as jnp, numpy as np, hyprax as hx
x, y = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32), np.arange(30) % 3
family = hx.families.Softmax(x, y, penalty=lambda hyper: hyper["penalty"])
outer = (jnp.asarray(x), jnp.asarray(y))
objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer)
answer = hx.hypergradient(objective, {"penalty": hx.Positive(0.1)})[0]
assert answer.grad["penalty"].raw.dtype == jnp.float32
assert answer.certificate.kind == "estimated", answer
try:
    hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer, certifier=hx.implicit.LookAhead())
except ValueError as error:
    assert "jax_enable_x64" in str(error)
else:
    raise AssertionError("a certified bound in 32-bit arithmetic was not refused")
"""


def test_32_bit_arithmetic_certifies_nothing():
    subprocess.run([sys.executable, "-c", FLOAT32], check=True, timeout=120)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("family", "outer", "text"),
    [
        ("Logistic", lambda x, y: (x, y + 1), r"outer_data: targets must be 0 or 1, of shape \(n,\); got 2"),
        ("Softmax", lambda x, y: (x, y + 1), "outer_data: targets must be labels from 0 to 1; got 1 to 2"),
        ("Softmax", lambda x, y: (x, y.astype(float)), "outer_data: targets must be integer labels"),
        ("Poisson", lambda x, y: (x, y - 1), "outer_data: targets must be counts, numbers >= 0; got -1"),
        (
            "Squared",
            lambda x, y: (x, np.where(y == 1, np.nan, 0.0)),
            "outer_data: targets must be finite",
        ),
        ("Squared", lambda x, y: (x[:, :1], y), r"outer_data must be inputs \(m, 2\), .*; got \(30, 1\)"),
        ("Squared", lambda x, y: (x[:-1], y), r"and \(30,\)"),
        ("Squared", lambda x, y: x, "a pair"),
    ],
)
def test_outer_data_that_a_mean_loss_cannot_judge_are_refused(family, outer, text):
    """Labels 1 and 2 would give a negative logistic loss, with a certificate."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.permutation(np.repeat([0, 1], 15))
    made = getattr(hx.families, family)(x, y, penalty=select_penalty)
    with pytest.raises(ValueError, match=text):
        hx.ImplicitObjective(hx.Optimum(made), made.mean_loss, outer(x, y))
    with pytest.raises(ValueError, match=text):
        hx.implicit.SOBA(hx.Optimum(made), made.mean_loss, outer(x, y), rate=0.1, key=jax.random.key(0))


@pytest.mark.usefixtures("unchecked")
def test_outer_data_may_be_nested_lists():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.permutation(np.repeat([0, 1], 15))
    family = hx.families.Logistic(x, y, penalty=select_penalty)

    def gradient(outer):
        objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer)
        return hx.hypergradient(objective, {"penalty": hx.Positive(0.1)})[0].grad["penalty"].raw

    assert gradient((x.tolist(), y.tolist())) == gradient((x, y))


@pytest.mark.usefixtures("unchecked")
def test_what_newcomers_hand_over_is_named():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 2)), rng.permutation(np.repeat([0, 1], 15))
    family = hx.families.Logistic(x, y, penalty=select_penalty)
    with pytest.raises(ValueError, match=r"hx.Optimum\(family\)"):
        hx.ImplicitObjective(family, family.mean_loss, (x, y))  # pyright: ignore[reportArgumentType]  # to be refused
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x, y))
    hyper = {"penalty": hx.Positive(0.1)}
    with pytest.raises(ValueError, match=r"search\.Optax"):
        hx.tune(objective, hyper, search=optax.adam(0.1), steps=2)  # pyright: ignore[reportArgumentType]  # to be refused
    with pytest.raises(ValueError, match=r"hx\.Run"):
        hx.tune(objective, hyper, run="folder", steps=2)  # pyright: ignore[reportArgumentType]  # to be refused
    narrow = hx.families.Logistic(x.astype(np.float32), y, penalty=select_penalty)
    objective = hx.ImplicitObjective(hx.Optimum(narrow), narrow.mean_loss, (x.astype(np.float32), y))
    with pytest.raises(ValueError, match="the dtype of the data, float32; got float64"):
        hx.hypergradient(objective, hyper)
