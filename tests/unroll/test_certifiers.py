"""Bounds of the rounding of hypergradients, against runs in `decimal` that share no code with the library."""

from decimal import Decimal
from typing import Any

import jax.numpy as jnp
import pytest
from hypothesis import given, settings, strategies as st

import hyprax as hx
from short_run_cases import drawn, errors, of_erf
from trainings import make_problem

BALLS, ROUNDING = hx.unroll.BallCertifier(), hx.unroll.RoundingCertifier()
DECIMALS = 1e-25
"""Far below every error; float64 holds the differences of the `decimal` runs to 16 digits."""


def check(problem: Any, **settings: Any) -> None:
    """The bound is above the error, and by no more than a few hundredths; so are those of the entries."""
    answer = hx.hypergradient(problem.objective(certifier=BALLS, **settings), problem.hyper)[0]
    assert answer.certificate.kind == "certified", answer.certificate
    error, entries = errors(problem, answer)
    for of_entry, bound in entries.values():
        assert of_entry <= bound
    assert error <= float(answer.certificate.bound) <= 1.05 * error + DECIMALS


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_the_bound_holds_and_is_the_error(optimizer):
    @settings(max_examples=3)
    @given(st.integers(0, 10**6))
    def holds(seed):
        check(drawn(seed, optimizer))

    holds()


def test_the_bound_of_a_value_holds():
    problem = drawn(1, "momentum")
    objective = problem.objective(certifier=BALLS)
    value = objective.value(problem.hyper, objective.init(problem.hyper))[0]
    assert value.certificate.kind == "certified"
    assert abs(problem.truth()[0] - Decimal(float(value.value))) <= Decimal(float(value.certificate.bound))
    assert float(value.certificate.bound) < 1e-13


@pytest.mark.slow
def test_the_bound_holds_in_float32():
    check(drawn(4, "momentum", "float32"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_an_estimate_is_near_the_error(dtype):
    problem = drawn(1, "momentum", dtype)
    answer = hx.hypergradient(problem.objective(certifier=ROUNDING), problem.hyper)[0]
    assert answer.certificate.kind == "estimated"
    error = errors(problem, answer)[0]
    assert error <= float(answer.certificate.bound) <= 1e3 * error


@pytest.mark.slow
@pytest.mark.parametrize("mode", [hx.unroll.Reversible(), hx.unroll.Truncated(2), hx.unroll.ForwardMode()])
def test_every_mode_can_be_certified(mode):
    """What reversal rounds and what truncation leaves out are in the bound."""
    problem = drawn(3, "momentum")
    check(problem, mode=mode)
    answer = hx.hypergradient(problem.objective(certifier=ROUNDING, mode=mode), problem.hyper)[0]
    assert errors(problem, answer)[0] <= float(answer.certificate.bound)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer", "dtype"), [("mlp", "sgd", "float64"), ("attention", "adam", "float32")])
def test_minibatches_dropout_and_optax(model, optimizer, dtype):
    """The bound is that of rounding: small beside the hypergradient, in any dtype.

    Adam divides by roots of gradients near 0, which multiply the rounding of float32.
    """
    problem = make_problem(model, optimizer, seed=5, steps=3, dropout=True, dtype=jnp.dtype(dtype))
    answer = hx.hypergradient(problem.objective(hx.unroll.Checkpointed(), certifier=BALLS), problem.hyper)[0]
    assert answer.certificate.kind == "certified", answer.certificate
    assert 0 < float(answer.relative_bound) < (1e3 if optimizer == "sgd" else 1e5) * float(jnp.finfo(dtype).eps)


def test_why_there_is_no_proof_is_said():
    problem = drawn(0, "momentum")
    few = problem.objective(certifier=hx.unroll.BallCertifier(most_operations=10))
    state = few.init(problem.hyper)
    certificate: Any = few.value(problem.hyper, state)[0].certificate
    assert certificate.kind == "estimated"
    assert "most_operations is 1e+01" in certificate.method
    erf = problem.objective(of_erf, certifier=BALLS)
    certificate = erf.value(problem.hyper, state)[0].certificate
    assert certificate.kind == "estimated"
    assert "there is no proof, because of the operation erf" in certificate.method


@pytest.mark.usefixtures("unchecked")
def test_settings_are_checked():
    problem = drawn(0, "momentum")
    with pytest.raises(ValueError, match=r"certifier must be hx.unroll.BallCertifier\(\)"):
        problem.objective(certifier="balls")
    with pytest.raises(ValueError, match="most_bits must be an integer from 160 to 896; got 64"):
        hx.unroll.BallCertifier(most_bits=64)
    with pytest.raises(ValueError, match="most_operations must be a number > 0"):
        hx.unroll.BallCertifier(most_operations=0)
