"""Data keep their digits on the way in: families by dtypes of every argument, beside a dense float64 oracle."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import scipy.sparse

import hyprax as hx
import oracles
from hyprax import implicit

N, D, C = 24, 3, 3
FAMILIES = {
    "squared": hx.families.Squared,
    "logistic": hx.families.Logistic,
    "softmax": hx.families.Softmax,
    "poisson": hx.families.Poisson,
    "huber": lambda x, y, **terms: hx.families.PseudoHuber(x, y, delta=oracles.HUBER, **terms),
}
INPUTS = [bool, np.int8, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
FORMS = {
    "list": lambda x: x.tolist(),
    "csr": scipy.sparse.csr_matrix,
    "coo": scipy.sparse.coo_array,
    "jax": jnp.asarray,
}


def problem(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs that every dtype holds, targets that only float64 does where they are numbers."""
    rng = np.random.default_rng(0)
    x, v = (rng.integers(0, 2, (N, D)) for _ in range(2))
    if kind in ("squared", "huber"):
        y, u = (a @ [0.5, -1.0, 2.0] + 0.3 * rng.standard_normal(N) for a in (x, v))
    elif kind == "poisson":
        y, u = rng.poisson(2.0, (2, N))
    else:
        y, u = np.tile(np.arange(C if kind == "softmax" else 2), (2, N))[:, :N]
    return x, y, v, u


def check(kind: str, given: tuple[Any, Any, Any, Any], strength: Any, exact: Any) -> None:
    family = FAMILIES[kind](given[0], given[1], penalty="penalty")
    optimum = hx.Optimum(family, solver=implicit.Newton(tolerance=1e-11))
    objective = hx.ImplicitObjective(
        optimum,
        family.mean_loss,
        given[2:],
        adjoint=implicit.CG(tolerance=1e-11),
        certifier=implicit.ResidualCertifier(),  # compiled in a tenth of the default's time
    )
    hyper = {"penalty": hx.Positive(strength)}
    answer, _ = hx.hypergradient(objective, hyper)
    columns = C if kind == "softmax" else 1
    used = np.exp(np.asarray(hyper["penalty"].raw, float))
    truth = oracles.reference(kind, exact[0], exact[1], exact[2], exact[3], np.full((D, columns), used))
    assert answer.value.dtype == answer.grad["penalty"].raw.dtype == jnp.float64
    assert abs(float(answer.value) - float(truth.value)) <= 1e-7 * (1 + abs(float(truth.value)))
    error = abs(float(answer.grad["penalty"].raw) - float(truth.per_weight.sum()))
    assert answer.certificate.kind == "certified"
    assert error <= float(answer.certificate.bound) <= 1e-2 * abs(float(truth.per_weight.sum())) + 1e-9


@pytest.mark.parametrize("kind", FAMILIES)
def test_no_dtype_of_any_argument_costs_digits(kind):
    """All are promoted to float64, so that all share one compiled program."""
    x, y, v, u = problem(kind)
    exact = (x.astype(float), y, v.astype(float), u)
    counts: list[Any] = [(y, u)]
    if y.dtype.kind != "f":
        counts = [(y.astype(a), u.astype(b)) for a, b in ((np.uint8, np.int64), (np.int32, np.int8))]
    if kind == "logistic":
        counts.append((y.astype(bool), u.astype(np.float32)))
    for index, (train, held) in enumerate(zip(INPUTS, INPUTS[::-1], strict=True)):
        targets = counts[index % len(counts)]
        check(kind, (x.astype(train), targets[0], v.astype(held), targets[1]), 0.1, exact)
    check(kind, (x.astype(float), y, v.astype(float), u), np.float32(0.1), exact)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_inputs_is_taken_for_training_and_for_validation(form):
    x, y, v, u = problem("logistic")
    exact = (x.astype(float), y, v.astype(float), u)
    check("logistic", (FORMS[form](x), y.tolist(), v, u), 0.1, exact)
    check("logistic", (x, y, FORMS[form](v.astype(np.float32)), u.tolist()), 0.1, exact)


def test_float32_stays_float32():
    x, y, v, u = problem("logistic")
    family = hx.families.Logistic(x.astype(np.float32), y, penalty="penalty")
    assert family.dtype == jnp.float32
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (v.astype(np.float16), u))
    answer, _ = hx.hypergradient(objective, {"penalty": hx.Positive(np.float32(0.1))})
    assert answer.value.dtype == answer.grad["penalty"].raw.dtype == jnp.float32


@pytest.mark.parametrize("part", ["targets", "start"])
def test_one_float64_argument_widens_a_float32_problem(part):
    x, y, v, u = problem("squared")
    family = hx.families.Squared(x.astype(np.float32), y.astype(np.float32), penalty="penalty")
    held = (v.astype(np.float32), u if part == "targets" else u.astype(np.float32))
    solver = implicit.Newton(tolerance=1e-12)
    optimum = hx.Optimum(family, jnp.zeros(D) if part == "start" else None, solver=solver)
    objective = hx.ImplicitObjective(optimum, family.mean_loss, held)
    hyper = {"penalty": hx.Positive(0.1)}
    answer, _ = hx.hypergradient(objective, hyper)
    rows = (x.astype(float), y.astype(np.float32).astype(float), v.astype(float), held[1].astype(float))
    truth = oracles.reference("squared", *rows, np.full((D, 1), float(hyper["penalty"].value)))
    assert abs(float(answer.grad["penalty"].raw) - float(truth.per_weight.sum())) <= float(answer.certificate.bound)
    np.testing.assert_allclose(float(answer.value), float(truth.value), rtol=1e-9)


@pytest.mark.parametrize("method", [implicit.SOBA, implicit.SABA, implicit.AmIGO])
def test_single_loops_keep_the_digits_too(method):
    x, y, v, u = problem("squared")
    family = hx.families.Squared(x.astype(np.float32), y.astype(np.float32), penalty="penalty")
    objective = method(hx.Optimum(family), family.mean_loss, (v, u), key=jax.random.key(0), batch_size=8)
    hyper = {"penalty": hx.Positive(0.1)}
    state = objective.init(hyper)
    for _ in range(3):
        _, state = objective.value_and_grad(hyper, state)
    expected = 0.5 * np.mean((v @ np.asarray(state.params) - u) ** 2)
    np.testing.assert_allclose(float(objective.value(hyper, state)[0].value), expected, rtol=1e-12)


def put(x: np.ndarray, value: Any, dtype: Any = float) -> np.ndarray:
    x = x.astype(dtype)
    x[3, 2] = value
    return x


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: put(x, np.nan), "inputs must be finite numbers; got nan in row 3"),
        (lambda x: scipy.sparse.csr_matrix(put(x, np.inf)), "inputs must be finite numbers; got inf in row 3"),
        (lambda x: x + 1j, "inputs must be real numbers; got complex128"),
        (lambda x: put(x, "red", object), "inputs must be real numbers; got object"),
        (lambda x: x.astype(str), "inputs must be real numbers; got <U"),
        (lambda x: put(x, 2**53 + 1, np.int64), "float64 holds exactly; got 9007199254740993"),
        (lambda x: x[:0], r"\(examples, features\), at least 1 of each; got \(0, 3\)"),
        (lambda x: [[1.0, 2.0, 3.0], [1.0]], "rows of different lengths"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused_by_name(change, words):
    x, y, v, u = problem("logistic")
    with pytest.raises(ValueError, match=f"Logistic: .*{words}"):
        hx.families.Logistic(change(x), y, penalty="penalty")
    family = hx.families.Logistic(x, y, penalty="penalty")
    with pytest.raises(ValueError, match=f"outer_data: .*{words}"):
        hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (change(v), u))


@pytest.mark.usefixtures("unchecked")
def test_outer_data_of_a_function_are_arrays_of_numbers():
    optimum = hx.Optimum(lambda w, hyper, data: jnp.sum(w**2), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"outer_data\['y'\]\[0\] must be an array of numbers; got str"):
        hx.ImplicitObjective(optimum, lambda w, hyper, data: jnp.sum(w), {"y": ["a", "b"]})
