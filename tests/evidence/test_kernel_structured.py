"""Kernels against dense float64 Jacobians, and their derivatives against derivatives of those."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ARCHITECTURES, C, Model
from jax import Array
from jax.flatten_util import ravel_pytree

from hyprax.evidence import _plan
from hyprax.evidence._kernel import MEMORY, _arguments, _kernel, kernel, kernel_matvec, kernels_by_tensor, uses
from thoroughness import quickly

TOLERANCE = 1e-10


def dense(apply: Any, params: Any, hyper: Any, inputs: Any, cotangents: Array, variances: Any) -> Array:
    """K by the Jacobian of all rows at once."""
    flat, unravel = ravel_pytree(params)

    def rows(flat: Array) -> Array:
        f = jax.vmap(lambda x: apply(unravel(flat), hyper, x))(inputs)
        return jnp.einsum("mrc,mc->mr", cotangents, f).reshape(-1)

    jacobian = jax.jacrev(rows)(flat)
    spread = ravel_pytree(jax.tree.map(lambda v, w: jnp.broadcast_to(v, w.shape), variances, params))[0]
    return (jacobian * spread[None, :]) @ jacobian.T


def problem(name: str, seed: int, m: int, r: int, spread: str = "scalars") -> tuple[Model, Array, Any]:
    rng = np.random.default_rng([seed, m, r])
    model = ARCHITECTURES[name](rng, m)
    cotangents = jnp.asarray(rng.normal(size=(m, r, C)))
    shape = {
        "scalars": lambda w: (),
        "arrays": lambda w: w.shape,
        "mixed": lambda w: w.shape if rng.uniform() < 0.5 else (),
    }
    variances = jax.tree.map(lambda w: jnp.asarray(rng.uniform(0.1, 2, size=shape[spread](w))), model.params)
    return model, cotangents, variances


def assert_close(a: Any, b: Any, scale: float | None = None) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.shape == y.shape
        if x.dtype == jax.dtypes.float0:
            continue
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * (scale or max(1.0, float(jnp.abs(y).max(initial=0)))))


def log_determinant(k: Array) -> Array:
    factor = jnp.linalg.cholesky(jnp.eye(len(k)) + k)
    return 2 * jnp.log(jnp.diag(factor)).sum()


def value_and_gradient(kernel_of: Any, model: Model, cotangents: Array, variances: Any) -> Any:
    """K, log |I + K| and its derivative in everything that is not an integer, compiled."""

    def objective(moving: Any) -> tuple[Array, Array]:
        params, hyper, inputs, cotangents, variances = moving
        if model.inputs_are_integers:
            inputs = model.inputs
        k = kernel_of(model.apply, params, hyper, inputs, cotangents, variances)
        return log_determinant(k), k

    inputs = () if model.inputs_are_integers else model.inputs
    moving = model.params, model.hyper, inputs, cotangents, variances
    return jax.jit(jax.value_and_grad(objective, has_aux=True))(moving)


def by_contraction(contraction: Any, memory: int = MEMORY) -> Any:
    """The kernel with one contraction for every tensor that has a choice."""

    def kernel_of(*problem: Any) -> Array:
        plan, given, spread = _arguments(*problem)
        return _kernel(plan.contracted(contraction), memory, given, spread)

    return kernel_of


FAST = ("mlp", "strange_cnn", "transformer", "tied", "custom_rule")
"""The kinds of networks that stand for the others in the quick tests."""


def assert_agrees(kernel_of: Any, model: Model, cotangents: Array, variances: Any) -> None:
    (value, k), gradient = value_and_gradient(kernel_of, model, cotangents, variances)
    (expected, dense_k), dense_gradient = value_and_gradient(dense, model, cotangents, variances)
    assert float(jnp.abs(dense_k).max()) > 1e-3
    assert_close(k, dense_k)
    assert_close(value, expected)
    assert_close(gradient, dense_gradient)


@pytest.mark.parametrize("name", quickly(ARCHITECTURES, *FAST))
def test_kernels_and_their_derivatives_are_those_of_the_dense_jacobian(name: str) -> None:
    assert_agrees(by_contraction("columns"), *problem(name, 0, 5, 2, "mixed"))


QUICK = ("tied", "rnn")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES])
def test_pairs_of_factors_agree_with_the_dense_jacobian(name: str) -> None:
    assert_agrees(by_contraction("pairwise"), *problem(name, 0, 5, 2, "scalars"))


@pytest.mark.slow
@pytest.mark.parametrize(("m", "r", "seed"), [(1, 1, 0), (6, 1, 1), (4, 3, 2)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_chosen_contractions_agree_with_the_dense_jacobian(name: str, m: int, r: int, seed: int) -> None:
    assert_agrees(kernel, *problem(name, seed, m, r, "mixed"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "contraction"),
    [
        ("lenet", "gradient"),
        pytest.param("lenet", "columns", marks=SLOW),
        pytest.param("transformer", "gradient", marks=SLOW),
        pytest.param("transformer", "columns", marks=SLOW),
        ("rnn", "columns"),
    ],
)
def test_gradients_at_once_and_chunks_of_examples_change_nothing(name: str, contraction: Any) -> None:
    model, cotangents, variances = problem(name, 1, 5, 2, "arrays")
    plan = _arguments(*model, cotangents, variances)[0].contracted(contraction)
    assert_agrees(by_contraction(contraction, 2 * plan.example_bytes(2)), model, cotangents, variances)


def test_pairs_in_chunks_change_nothing() -> None:
    model, cotangents, variances = problem("tied", 1, 7, 2)
    assert_agrees(by_contraction("pairwise", 1 << 11), model, cotangents, variances)


def test_arrays_that_apply_closes_over_are_differentiated() -> None:
    model, cotangents, variances = problem("mlp", 2, 6, 2)

    def objective(kernel_of: Any, scale: Array) -> Array:
        def closed(params: Any, hyper: Any, x: Array) -> Array:
            return model.apply(params, scale * hyper, x)

        return log_determinant(kernel_of(closed, model.params, model.hyper, model.inputs, cotangents, variances))

    ours, expected = (jax.jit(jax.grad(lambda s, k=k: objective(k, s)))(jnp.asarray(1.1)) for k in (kernel, dense))
    assert abs(float(expected)) > 1e-3
    assert_close(ours, expected)


FACTORS = ("tied", "scanned_layers", "strange_cnn", "transformer", "custom_rule", "equinox_module")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in FACTORS[2:] else n for n in FACTORS])
def test_tensors_and_factors_sum_to_the_kernel(name: str) -> None:
    model, cotangents, _ = problem(name, 3, 4, 2)
    n = cotangents.shape[0] * cotangents.shape[1]
    leaves = jax.tree.leaves(model.params)

    def ours(*given: Any) -> tuple[list[Array], list[Array]]:
        gradients = [jnp.zeros((n, leaf.size)) for leaf in leaves]
        for use in uses(model.apply, *given):
            if use.rows is not None:
                gradients[use.number] += use.rows.reshape(n, -1)
            else:
                rows = jnp.einsum("mbsi,mrbso->mrbio", use.a, use.g)
                gradients[use.number] = gradients[use.number].at[:, use.places.reshape(-1)].add(rows.reshape(n, -1))
        return jax.tree.leaves(kernels_by_tensor(model.apply, *given)), gradients

    def expected(params: Any, hyper: Any, inputs: Any, cotangents: Array) -> list[Array]:
        def rows(params: Any) -> Array:
            f = jax.vmap(lambda x: model.apply(params, hyper, x))(inputs)
            return jnp.einsum("mrc,mc->mr", cotangents, f).reshape(-1)

        return [j.reshape(n, -1) for j in jax.tree.leaves(jax.jacrev(rows)(params))]

    grams, gradients = jax.jit(ours)(*model[1:], cotangents)
    for gram, gradient, jacobian in zip(grams, gradients, jax.jit(expected)(*model[1:], cotangents), strict=True):
        assert_close(gradient, jacobian)
        assert_close(gram, jacobian @ jacobian.T)


@pytest.mark.parametrize(
    ("name", "spread", "memory"),
    [("lenet", "scalars", MEMORY), ("lenet", "mixed", 1), pytest.param("strange_cnn", "mixed", MEMORY, marks=SLOW)],
)
def test_derivatives_in_variances_alone_agree_where_convolutions_are_left_whole(
    name: str, spread: str, memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row of each example; with the Gram of each tensor kept, and recomputed where memory is short."""
    monkeypatch.setattr(_plan, "CACHE", 0)
    model, cotangents, variances = problem(name, 8, 3, 1, spread)
    plan = _arguments(*model, cotangents, variances)[0]
    assert any(not t.groups and plan.tensors[i].groups for i, t in enumerate(plan.untapped(3).tensors))

    def value_and_grad(kernel_of: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda v: log_determinant(kernel_of(*model, cotangents, v))))(variances)

    assert_close(value_and_grad(partial(kernel, memory=memory)), value_and_grad(dense))


@pytest.mark.parametrize("name", [pytest.param("transformer", marks=SLOW), "rnn"])
def test_products_with_a_vector_need_no_kernel(name: str) -> None:
    model, cotangents, variances = problem(name, 4, 5, 2, "mixed")
    vector = jnp.asarray(np.random.default_rng(5).normal(size=10))
    given = *model[1:], cotangents, variances
    expected = jax.jit(dense, static_argnums=0)(model.apply, *given) @ vector
    assert_close(jax.jit(kernel_matvec, static_argnums=0)(model.apply, *given, vector), expected)


def test_single_precision_stays_and_agrees() -> None:
    model, cotangents, variances = problem("lenet", 6, 5, 2)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), (*model[1:], cotangents, variances))
    k = jax.jit(lambda *given: kernel(model.apply, *given))(*single)
    assert k.dtype == jnp.float32
    expected = jax.jit(lambda *given: dense(model.apply, *given))(*model[1:], cotangents, variances)
    np.testing.assert_allclose(k, expected, rtol=0, atol=1e-5 * float(jnp.abs(expected).max()))


def test_derivatives_are_compiled_into_an_outer_loop() -> None:
    """A kernel inside scan and vmap, as an optimiser of hyperparameters has it."""
    model, cotangents, variances = problem("mlp", 7, 4, 1)

    def objective(kernel_of: Any, log_scale: Array) -> Array:
        spread = jax.tree.map(lambda v: v * jnp.exp(log_scale), variances)
        return log_determinant(kernel_of(*model, cotangents, spread))

    def descend(kernel_of: Any) -> Array:
        def step(s: Array, _: None) -> tuple[Array, Array]:
            g = jax.grad(lambda t: objective(kernel_of, t))(s)
            return s - 0.1 * g, g

        return jax.lax.scan(step, jnp.asarray(0.0), None, length=3)[1]

    assert_close(jax.jit(lambda: descend(kernel))(), jax.jit(lambda: descend(dense))())
    scales = jnp.asarray([-1.0, 0.0, 1.0])
    ours, expected = (jax.jit(jax.vmap(jax.grad(lambda s, k=k: objective(k, s))))(scales) for k in (kernel, dense))
    assert_close(ours, expected)
