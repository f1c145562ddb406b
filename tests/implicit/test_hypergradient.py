"""Hypergradients against dense references, closed forms and finite differences."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jax.flatten_util import ravel_pytree

import hyprax as hx
from hyprax.implicit import _lookahead
from problems import FAMILIES, random_problem, select_penalty, shapes
from thoroughness import quickly

CASES = [(kind, index) for kind in FAMILIES for index in range(len(shapes(kind, 5, 3)))]
SOME = quickly(CASES, ("softmax", 3), ("logistic", 1), ("squared", 0), several=True)
SOLVERS = {"newton": hx.implicit.Newton(tolerance=1e-11), "lbfgs": hx.implicit.LBFGS(tolerance=1e-10, max_steps=4000)}


def relative_error(problem, answer) -> float:
    return problem.error(answer) / float(np.sqrt(np.sum(problem.grad**2)) + 1e-12)


@pytest.mark.parametrize(("kind", "index"), SOME)
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_families_agree_with_a_dense_solve(kind, index, seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, kind, index, smallest=1e-3)
    answer = hx.hypergradient(problem.objective, problem.hyper)[0]
    assert problem.error(answer) <= 1e-5 * float(np.sqrt(np.sum(problem.grad**2))) + 1e-7
    assert abs(float(answer.value) - float(problem.truth.value)) <= 1e-7 * (1 + abs(float(problem.truth.value)))


@pytest.mark.parametrize(
    ("kind", "solver"),
    quickly(itertools.product(FAMILIES, SOLVERS), ("logistic", "newton"), ("softmax", "lbfgs"), several=True),
)
def test_every_solver_reaches_its_gradient_norm(kind, solver):
    rng = np.random.default_rng(0)
    for _ in range(5):
        problem = random_problem(rng, kind, 0, smallest=1e-2)
        optimum = hx.Optimum(problem.objective.optimum.loss, solver=SOLVERS[solver])
        objective = hx.ImplicitObjective(
            optimum, problem.objective.outer_loss, problem.objective.outer_data, adjoint=hx.implicit.CG(tolerance=1e-11)
        )
        answer = hx.hypergradient(objective, problem.hyper)[0]
        assert float(answer.stats.inner_gradient_norm) <= SOLVERS[solver].tolerance
        assert relative_error(problem, answer) <= 1e-6


@pytest.mark.parametrize(("kind", "index"), SOME)
def test_families_agree_with_automatic_differentiation(kind, index):
    """A family's closed forms: value, gradient, Hessian product, mixed product against JAX of its value alone."""
    rng = np.random.default_rng(1)
    problem = random_problem(rng, kind, index)
    family = problem.objective.optimum.loss
    assert isinstance(family, FAMILIES[kind])
    w, v = (jnp.asarray(rng.normal(size=problem.objective.optimum.params0.shape)) for _ in range(2))
    point = family.at(w, problem.hyper)
    gradient = jax.grad(family.value)
    np.testing.assert_allclose(point.value, family.value(w, problem.hyper), rtol=1e-13)
    np.testing.assert_allclose(point.grad, gradient(w, problem.hyper), rtol=1e-10, atol=1e-12)
    product = jax.jvp(lambda w: gradient(w, problem.hyper), (w,), (v,))[1]
    np.testing.assert_allclose(family.product(point, problem.hyper)(v), product, rtol=1e-9, atol=1e-11)
    mixed = jax.grad(lambda h: jnp.vdot(gradient(w, h), v))(problem.hyper)
    np.testing.assert_allclose(
        family.mixed(point, problem.hyper, v)["penalty"].raw, mixed["penalty"].raw, rtol=1e-9, atol=1e-12
    )
    solve = family.preconditioner(point, problem.hyper)
    assert solve is not None
    u = jnp.asarray(rng.normal(size=problem.objective.optimum.params0.shape))
    np.testing.assert_allclose(jnp.vdot(u, solve(v)), jnp.vdot(v, solve(u)), rtol=1e-8)  # symmetric
    assert float(jnp.vdot(v, solve(v))) > 0


class Net(eqx.Module):
    layers: tuple[dict[str, jax.Array], ...]
    bias: jax.Array


LEAVES = {
    "plain": (jnp.asarray([0.7, 0.2]), lambda x: x),
    "positive": (hx.Positive([0.7, 0.2]), lambda x: x),
    "interval": (hx.Interval([0.7, 0.2], 0.0, 2.0), lambda x: x),
    "log-interval": (hx.LogInterval([0.7, 0.2], 0.01, 2.0), lambda x: x),
    "simplex": (hx.Simplex([0.7, 0.2, 0.1]), lambda x: x[:2]),
}


@pytest.mark.parametrize("name", quickly(LEAVES, "simplex"))
def test_any_pytree_and_any_constraint_against_finite_differences(name):
    leaf, pick = LEAVES[name]
    """A smooth strongly convex inner loss over an Equinox module; the outer loss sees the hyperparameters too."""
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.normal(size=(20, 3)))
    params = Net(({"w": jnp.zeros((3, 2))}, {"v": jnp.zeros(2)}), jnp.zeros(()))

    def inner(net, hyper, data):
        strengths = pick(hyper["a"][0])
        u = data @ net.layers[0]["w"] + net.layers[1]["v"][None] + net.bias
        size = 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(net))
        fit = jnp.mean(jnp.sum(jnp.logaddexp(u - hyper["shift"], -u), axis=1))
        return (
            fit + 0.5 * strengths[0] * size + 0.5 * strengths[1] * jnp.sum((net.layers[1]["v"] - 1) ** 2) + 0.1 * size
        )

    def outer(net, hyper, data):
        return jnp.sum((data @ net.layers[0]["w"]) ** 2) / 20 + net.bias + jnp.sum(pick(hyper["a"][0]) ** 2)

    optimum = hx.Optimum(inner, params, data=x, solver=hx.implicit.Newton(tolerance=1e-13))
    objective = hx.ImplicitObjective(optimum, outer, x, adjoint=hx.implicit.CG(tolerance=1e-13))
    hyper = {"a": (leaf,), "shift": jnp.asarray(0.3)}
    answer = hx.hypergradient(objective, hyper, throw=False)[0]
    assert jax.tree.structure(answer.grad) == jax.tree.structure(hyper)
    assert answer.certificate.kind == "estimated"

    def value(hyper):
        return float(objective.value(hyper, objective.init(hyper))[0].value)

    raw, unravel = ravel_pytree(hyper)
    found = ravel_pytree(answer.grad)[0]
    for i in range(raw.size):
        step = 1e-5
        up, down = (value(unravel(raw.at[i].add(s))) for s in (step, -step))
        np.testing.assert_allclose(found[i], (up - down) / (2 * step), rtol=1e-5, atol=1e-8)


def test_closed_form_of_a_quadratic():
    """g = ½‖w - a‖² + ½λ‖w‖², f = ½‖w - b‖²: w* = a/(1 + λ), dF/dlog λ = -λ <w* - b, a>/(1 + λ)²."""
    rng = np.random.default_rng(3)
    for _ in range(4):
        a, b, strength = rng.normal(size=4), rng.normal(size=4), float(np.exp(rng.normal()))
        a, b = jnp.asarray(a), jnp.asarray(b)
        optimum = hx.Optimum(
            lambda w, hyper, a: 0.5 * jnp.sum((w - a) ** 2) + 0.5 * hyper * jnp.sum(w**2), jnp.zeros(4), data=a
        )
        objective = hx.ImplicitObjective(optimum, lambda w, hyper, b: 0.5 * jnp.sum((w - b) ** 2), b)
        answer = hx.hypergradient(objective, hx.Positive(strength))[0]
        exact = -strength * jnp.vdot(a / (1 + strength) - b, a) / (1 + strength) ** 2
        np.testing.assert_allclose(answer.grad.raw, exact, rtol=1e-6, atol=1e-8)


def test_warm_starts_cost_nothing_and_states_round_trip():
    rng = np.random.default_rng(5)
    problem = random_problem(rng, "softmax", 3, smallest=1e-2, certifier=hx.implicit.NoCertifier())
    _, state = problem.objective.value_and_grad(problem.hyper, problem.objective.init(problem.hyper))
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, leaves)
    again, _ = problem.objective.value_and_grad(problem.hyper, state)
    assert int(again.stats.inner_steps) == 0
    assert int(again.stats.adjoint_steps) <= 1  # the solver looks at its residual after a first step


def test_vmap_over_hyperparameters_and_jit():
    rng = np.random.default_rng(6)
    problem = random_problem(rng, "logistic", 1, smallest=1e-2)
    strengths = jnp.asarray(np.exp(rng.uniform(-3, 1, size=(3, 5))))

    def gradient(strength):
        return hx.hypergradient(problem.objective, {"penalty": hx.Positive(strength)})[0].grad["penalty"].raw

    together = jax.jit(jax.vmap(gradient))(strengths)
    for row, strength in zip(together, strengths, strict=True):
        np.testing.assert_allclose(row, gradient(strength), rtol=1e-5, atol=1e-9)


def test_one_compilation_for_all_hyperparameters_states_and_accuracies():
    traces = []

    def inner(w, hyper, data):
        traces.append(1)
        return jnp.sum(jnp.cosh(w - 1)) + 0.5 * hyper["a"] * jnp.sum(w**2)

    objective = hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(3)), lambda w, hyper, data: jnp.sum(w**2))
    hyper = {"a": hx.Positive(0.5)}
    state = objective.init(hyper)
    accuracy = [hx.Accuracy(jnp.asarray(10.0**-k), jnp.asarray(10.0**-k)) for k in (3, 6)]
    _, state = objective.value_and_grad(hyper, state, accuracy[0])
    count = len(traces)
    for value in (0.1, 2.0):
        for asked in accuracy:
            _, state = objective.value_and_grad({"a": hx.Positive(value)}, state, asked)
    assert len(traces) == count


def test_extended_precision_is_compiled_where_it_is_needed_alone(monkeypatch):
    traces, extended = [], _lookahead.extended_residuals

    def counted(*arguments):
        traces.append(1)
        return extended(*arguments)

    monkeypatch.setattr(_lookahead, "extended_residuals", counted)
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((31, 3)), np.tile([0.0, 1.0], 16)[:31]
    family = hx.families.Logistic(x, y, penalty="penalty")
    hyper = {"penalty": hx.Positive(np.full(3, 0.1))}

    def objective(relative):
        certifier = hx.implicit.LookAhead(relative=relative)
        return hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (x[::-1], y), certifier=certifier)

    usual, after = hx.hypergradient(objective(1e-3), hyper)
    assert isinstance(usual.certificate, hx.implicit.TwoSidedCertificate)
    assert not traces
    assert not usual.certificate.terms["extended"]
    # From its own end, and asked for more than float64 can say.
    _, after = hx.hypergradient(objective(0.0), hyper, after)
    exact, _ = hx.hypergradient(objective(0.0), hyper, after)
    assert isinstance(exact.certificate, hx.implicit.TwoSidedCertificate)
    assert traces
    assert exact.certificate.terms["extended"]
    assert exact.certificate.bound < 1e-3 * usual.certificate.bound
    assert exact.stats.products > usual.stats.products
    inside, _ = eqx.filter_jit(lambda o: o.value_and_grad(hyper, after))(objective(0.0))
    assert inside.certificate.terms["extended"]
    distance = np.linalg.norm(inside.grad["penalty"].raw - exact.grad["penalty"].raw)
    assert distance <= inside.certificate.bound + exact.certificate.bound


@pytest.mark.parametrize("selector", ["penalty", select_penalty, 0.1, lambda hyper: 2 * hyper["penalty"]])
def test_problems_of_equal_shapes_share_one_program(selector):
    """Folds: other data, other values, the same key or function. A solver of the user counts its traces."""
    rng = np.random.default_rng(7)
    traces = []

    def stays(value_and_grad, params, tolerance, max_steps):
        traces.append(1)
        return params

    def fold(factor):
        x, y = rng.standard_normal((30, 3)), np.tile([0, 1], 15)
        chosen = factor * selector if isinstance(selector, float) else selector
        family = hx.families.Logistic(x[:20], y[:20], penalty=chosen)
        objective = hx.ImplicitObjective(
            hx.Optimum(family, solver=stays),
            family.mean_loss,
            (x[20:], y[20:]),
            certifier=hx.implicit.NoCertifier(),
        )
        hx.hypergradient(objective, {"penalty": hx.Positive(0.1 * factor)}, throw=False)
        return len(traces)

    first = fold(1.0)
    assert fold(2.0) == fold(3.0) == first


class Strengths(eqx.Module):
    penalty: hx.Positive


def test_strengths_are_picked_by_key_by_attribute_or_by_function():
    """A name that is not there is refused with those that are."""
    rng = np.random.default_rng(8)
    x, y = rng.standard_normal((30, 3)), np.tile([0, 1], 15)

    def gradient(selector, hyper):
        family = hx.families.Logistic(x[:20], y[:20], penalty=selector)
        assert isinstance(family, hx.families.Logistic)
        objective = hx.ImplicitObjective(
            hx.Optimum(family), family.mean_loss, (x[20:], y[20:]), certifier=hx.implicit.NoCertifier()
        )
        return float(jax.tree.leaves(hx.hypergradient(objective, hyper)[0].grad)[0])

    leaf = hx.Positive(0.1)
    expected = gradient(lambda hyper: hyper["penalty"], {"penalty": leaf})
    assert gradient("penalty", {"penalty": leaf}) == expected
    assert gradient("penalty", Strengths(leaf)) == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match=r"penalty='strength' must be a key .*; got the keys 'penalty'"):
        gradient("strength", {"penalty": leaf})
    with pytest.raises(ValueError, match=r"penalty='penalty' must be a key .*; got a single leaf"):
        gradient("penalty", leaf)
