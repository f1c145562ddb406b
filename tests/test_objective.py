"""The narrow waist, on a bilevel problem that is solved by hand.

Inner: x*(p) = argmin_x ½‖x - a‖² + ½ p‖x‖² = a/(1 + p), p = exp(u). Outer: F(u) = ½‖x*(p) - b‖².
Then dF/du = p dx*/dp · (x* - b) = -p/(1 + p)² a · (a/(1 + p) - b).
"""

import re
from typing import Any

import equinox as eqx
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx

NOISE = hx.NoNoise("by hand")


class Shrinkage(hx.core.AbstractObjective):
    """Above, by `steps` steps of gradient descent from the state, and an honest bound of what that leaves out."""

    a: jax.Array
    b: jax.Array
    steps: int = 200
    tolerance: float = 1e-10
    noisy: bool = eqx.field(static=True, default=False)
    adaptive: bool = eqx.field(static=True, default=True)
    measures_noise: bool = eqx.field(static=True, default=False)
    value_name: str = eqx.field(static=True, default="value")

    def init(self, hyper):
        del hyper
        return jnp.zeros_like(self.a)

    def _solve(self, hyper, start, accuracy):
        penalty = hx.natural(hyper)["penalty"]
        tolerance = self.tolerance if accuracy is None else accuracy.inner
        step = 0.5 / (1 + penalty)

        def residual(x):
            return x - self.a + penalty * x

        x = jax.lax.fori_loop(0, self.steps, lambda _, x: x - step * residual(x), start)
        norm = jnp.linalg.norm(residual(x))
        result = hx.implicit.RESULTS.where(
            norm <= tolerance, hx.implicit.RESULTS.successful, hx.implicit.RESULTS.inner_not_converged
        )
        return penalty, x, norm, result

    def value_and_grad(self, hyper, state, accuracy=None):
        penalty, x, norm, result = self._solve(hyper, state, accuracy)
        grad = {"penalty": hx.Positive(1.0)}
        slope = -penalty / (1 + penalty) * jnp.dot(x, x - self.b)
        grad = eqx.tree_at(lambda one: one["penalty"].raw, grad, slope)
        error = norm * (jnp.linalg.norm(x) + jnp.linalg.norm(x - self.b) + norm)
        certificate = hx.Certificate(error, "estimated", "‖h - ∇F‖₂", "by hand")
        value = 0.5 * jnp.sum((x - self.b) ** 2)
        return hx.Hypergradient(value, grad, certificate, NOISE, result, hx.core.NamedStats({"gradient_norm": norm})), x

    def value(self, hyper, state, accuracy=None):
        _, x, norm, result = self._solve(hyper, state, accuracy)
        certificate = hx.Certificate(norm * (jnp.linalg.norm(x - self.b) + norm), "estimated", "|value - F|", "by hand")
        return hx.core.Value(
            0.5 * jnp.sum((x - self.b) ** 2), certificate, NOISE, result, hx.core.NamedStats({"gradient_norm": norm})
        ), x

    def params(self, state):
        return state

    def final(self, hyper, state):
        return self.value(hyper, state)


def by_hand(a: np.ndarray, b: np.ndarray, p: float) -> tuple[float, float]:
    x = a / (1 + p)
    return 0.5 * float(np.sum((x - b) ** 2)), float(-p / (1 + p) ** 2 * a @ (x - b))


def problem(seed: int = 0, size: int = 5, **settings) -> Shrinkage:
    a, b = np.random.default_rng(seed).standard_normal((2, size))
    return Shrinkage(a=jnp.asarray(a), b=jnp.asarray(b), **settings)


@hypothesis.given(st.integers(0, 2**31), st.floats(1e-6, 1e6))
def test_hypergradient_of_a_problem_solved_by_hand(seed, penalty):
    objective = problem(seed)
    answer = hx.hypergradient(objective, {"penalty": hx.Positive(penalty)})[0]
    value, slope = by_hand(np.asarray(objective.a), np.asarray(objective.b), penalty)
    np.testing.assert_allclose(answer.value, value, rtol=1e-9)
    np.testing.assert_allclose(answer.grad["penalty"].raw, slope, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(answer.norm, abs(slope), rtol=1e-8, atol=1e-12)
    assert answer.result == hx.implicit.RESULTS.successful
    assert answer.message == ""


def test_an_unconverged_solve_is_raised_with_what_was_computed():
    objective = problem(steps=3)
    with pytest.raises(hx.HypergradientError, match="inner problem was not solved") as raised:
        hx.hypergradient(objective, {"penalty": hx.Positive(1.0)})[0]
    answer = raised.value.hypergradient
    assert answer.result == hx.implicit.RESULTS.inner_not_converged
    assert f"gradient_norm = {float(answer.stats.numbers['gradient_norm']):.4g}" in str(raised.value)
    value, slope = by_hand(np.asarray(objective.a), np.asarray(objective.b), 1.0)
    assert abs(answer.grad["penalty"].raw - slope) <= answer.certificate.bound
    assert abs(answer.value - value) > 0


def test_without_throw_the_failure_is_returned():
    answer = hx.hypergradient(problem(steps=3), {"penalty": hx.Positive(1.0)}, throw=False)[0]
    assert answer.result == hx.implicit.RESULTS.inner_not_converged
    assert "inner problem was not solved" in answer.message


def test_a_state_is_where_the_computation_starts():
    hyper = {"penalty": hx.Positive(1.0)}
    _, warm = problem().value_and_grad(hyper, problem().init(hyper))
    with pytest.raises(hx.HypergradientError):
        hx.hypergradient(problem(steps=1), hyper)[0]
    assert hx.hypergradient(problem(steps=1), hyper, warm)[0].result == hx.implicit.RESULTS.successful


def test_accuracy_replaces_the_settings():
    hyper = {"penalty": hx.Positive(1.0)}
    loose = hx.Accuracy(jnp.asarray(10.0), jnp.asarray(10.0))
    answer, _ = problem(steps=3).value_and_grad(hyper, jnp.zeros(5), loose)
    assert answer.result == hx.implicit.RESULTS.successful


def test_inside_transformations():
    objective = problem()

    def slope(penalty):
        return hx.hypergradient(objective, {"penalty": hx.Positive(penalty)})[0].grad["penalty"].raw

    penalties = jnp.asarray([0.1, 1.0, 10.0])
    exact = [by_hand(np.asarray(objective.a), np.asarray(objective.b), float(p))[1] for p in penalties]
    np.testing.assert_allclose(jax.jit(slope)(1.0), exact[1], rtol=1e-8)
    np.testing.assert_allclose(jax.vmap(slope)(penalties), exact, rtol=1e-8)
    np.testing.assert_allclose(jax.jit(jax.vmap(slope))(penalties), exact, rtol=1e-8)


def test_a_failure_inside_a_transformation_is_a_runtime_error():
    objective = problem(steps=3)
    failing = eqx.filter_jit(lambda hyper: hx.hypergradient(objective, hyper)[0].value)
    with pytest.raises(RuntimeError, match="inner problem was not solved"):
        jax.block_until_ready(failing({"penalty": hx.Positive(1.0)}))
    quiet = eqx.filter_jit(lambda hyper: hx.hypergradient(objective, hyper, throw=False)[0])
    answer = quiet({"penalty": hx.Positive(1.0)})
    assert answer.result == hx.implicit.RESULTS.inner_not_converged
    assert "inner problem was not solved" in answer.message


def test_hyperparameters_are_checked_before_any_work():
    with pytest.raises(ValueError, match=re.escape("hyper['penalty']")):
        hx.hypergradient(problem(), {"penalty": np.nan})[0]


def test_what_an_answer_prints():
    answer = hx.hypergradient(problem(), {"penalty": hx.Positive(1.0)})[0]
    assert re.fullmatch(
        r"Hypergradient\(value=\S+, norm=\S+, certificate=<estimated: .* \(by hand\)>, noise=.*\)", repr(answer)
    )
    np.testing.assert_allclose(answer.relative_bound, answer.certificate.bound / answer.norm)


@hypothesis.given(st.integers(0, 2**31), st.integers(0, 30))
def test_a_value_encloses_the_truth(seed, steps):
    objective = problem(seed, steps=steps)
    hyper = {"penalty": hx.Positive(2.0)}
    value, _ = objective.value(hyper, objective.init(hyper))
    truth, _ = by_hand(np.asarray(objective.a), np.asarray(objective.b), 2.0)
    assert value.lower - 1e-12 <= truth <= value.upper + 1e-12
    np.testing.assert_allclose(value.upper - value.lower, 2 * value.certificate.bound, rtol=1e-6)


def test_an_abstract_objective_cannot_be_made():
    abstract: Any = hx.core.AbstractObjective
    with pytest.raises(TypeError, match="abstract"):
        abstract()
