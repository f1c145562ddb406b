"""Strided convolutions as products: XLA's values and derivatives, whatever the layout; all others are left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import hyprax as hx
from hyprax.unroll import ReversalCertificate, _convolutions, _drivers
from hyprax.unroll._convolutions import convolves, strided_as_products
from hyprax.unroll._step import Program
from trainings import relative_error


def draw(seed: int):
    """A convolution with random shapes, strides, dilations, margins and layout, and its operands (float64)."""
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 4))
    dilated = seed % 3 == 0  # then with strides of 3: those of 2 could meet zeros alone
    strides = [3] * rank if dilated else [2, *(int(s) for s in rng.integers(1, 4, rank - 1))]
    sizes, widths = rng.integers(7, 10, rank), rng.integers(1, 4, rank)
    batch, channels, made = rng.integers(1, 4, 3)
    settings = {
        "window_strides": strides,
        "padding": [(int(a), int(b)) for a, b in rng.integers(-1, 3, (rank, 2))],
        "lhs_dilation": [int(d) for d in rng.integers(1, 3, rank)] if dilated else None,
        "rhs_dilation": [int(d) for d in rng.integers(1, 3, rank)],
    }
    specs = [rng.permutation(rank + 2) for _ in range(3)]
    settings["dimension_numbers"] = lax.ConvDimensionNumbers(*(tuple(map(int, spec)) for spec in specs))
    x, kernel = np.zeros(rank + 2, int), np.zeros(rank + 2, int)
    x[specs[0]], kernel[specs[1]] = [batch, channels, *sizes], [made, channels, *widths]
    return rng.standard_normal(x), rng.standard_normal(kernel), settings


def values_and_products(function, *args):
    """f, ∇f, and the derivative of ∇f along fixed directions."""
    directions = [jnp.cos(jnp.arange(a.size, dtype=a.dtype)).reshape(a.shape) for a in args]
    both = jax.value_and_grad(function, argnums=tuple(range(len(args))))
    (value, grads), (_, products) = jax.jit(lambda *args: jax.jvp(both, args, tuple(directions)))(*args)
    return value, grads, products


@pytest.mark.parametrize("seed", range(8))
def test_values_and_derivatives_are_those_of_xla(seed):
    x, kernel, settings = draw(seed)
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)

    def function(x, kernel):
        return jnp.sum(jnp.sin(lax.conv_general_dilated(x, kernel, **settings)))

    rewritten = strided_as_products(function)
    assert not convolves(jax.make_jaxpr(jax.grad(rewritten))(x, kernel).jaxpr)
    assert relative_error(values_and_products(rewritten, x, kernel), values_and_products(function, x, kernel)) < 1e-12


def plain(x, kernel, **settings):
    return lax.conv_general_dilated(x, kernel, (2, 2), "SAME", **settings)


@pytest.mark.parametrize(
    ("function", "left"),
    [
        (lambda x, k: jax.jit(plain)(x, k), False),
        (lambda x, k: jax.checkpoint(plain)(x, k), False),
        (lambda x, k: jax.vmap(plain, (0, None))(x[None], k), False),
        (lambda x, k: plain(x, k, preferred_element_type=jnp.float64), False),
        (lambda x, k: plain(x, k[:, :1], feature_group_count=4), True),
        (lambda x, k: plain(x, k, batch_group_count=2), True),
        (lambda x, k: lax.conv_general_dilated(x, k, (1, 1), "SAME"), True),
        (lambda x, k: jax.lax.scan(lambda c, _: (c + jnp.sum(plain(c, k)), None), x, None, 2)[0], True),
        (lambda x, k: jax.nn.relu(plain(x, k)) * jnp.linalg.norm(k), False),
    ],
)
def test_what_surrounds_a_convolution_and_what_is_left_to_xla(function, left):
    keys = jax.random.split(jax.random.key(0))
    x, kernel = jax.random.normal(keys[0], (4, 4, 7, 7)), jax.random.normal(keys[1], (8, 4, 3, 3))

    def value(x, kernel):
        return jnp.sum(jnp.sin(function(x, kernel).astype(x.dtype)))

    rewritten = strided_as_products(value)
    assert convolves(jax.make_jaxpr(rewritten)(x, kernel).jaxpr) == left
    assert relative_error(values_and_products(rewritten, x, kernel), values_and_products(value, x, kernel)) < 1e-12


def test_large_windows_are_left_to_xla(monkeypatch):
    """The windows of the input are larger than it, by the size of the kernel over the stride, squared."""
    x, kernel = jnp.zeros((2, 3, 9, 9)), jnp.zeros((4, 3, 3, 3))
    monkeypatch.setattr(_convolutions, "LARGEST", 2 * 25 * 27)
    assert not convolves(jax.make_jaxpr(strided_as_products(plain))(x, kernel).jaxpr)
    monkeypatch.setattr(_convolutions, "LARGEST", 2 * 25 * 27 - 1)
    assert convolves(jax.make_jaxpr(strided_as_products(plain))(x, kernel).jaxpr)


def test_an_infinity_stays_in_its_windows():
    """A product with a matrix of zeros and ones would spread it."""
    x, kernel = jnp.zeros((1, 1, 9, 9)).at[0, 0, 0, 0].set(jnp.inf), jnp.ones((1, 1, 3, 3))
    found = strided_as_products(lambda x, k: lax.conv_general_dilated(x, k, (2, 2), "VALID"))(x, kernel)
    assert np.sum(np.isinf(found)) == 1
    assert not np.any(np.isnan(found))


@pytest.mark.parametrize("strides", [(2, 2), pytest.param((1, 1), marks=pytest.mark.slow)])
def test_strided_networks_run_in_compiled_loops_and_come_back(strides):
    """The hypergradient of reversal and of a plain Python loop, which knows nothing of products."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (20, 6, 6, 2), jnp.float32)
    weights = {"k": 0.3 * jax.random.normal(keys[1], (3, 3, 2, 4), jnp.float32), "b": jnp.zeros(4, jnp.float32)}

    def loss(params, hyper, batch):
        y = lax.conv_general_dilated(batch, params["k"], strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        penalty = hyper["penalty"] * jnp.sum(params["k"] ** 2)
        return jnp.mean((jnp.tanh(y + params["b"][None, None, None]).sum((1, 2)) - 1) ** 2) + penalty

    training = hx.Training(
        loss,
        lambda hyper, key: weights,
        lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], jnp.asarray(0.9, jnp.float32), form="polyak"),
        hx.Minibatches(x, 5, key=keys[2]),
        steps=10,
    )
    hyper = {"rate": jnp.asarray(0.01, jnp.float32), "penalty": jnp.asarray(0.1, jnp.float32)}
    program = Program(training, hyper, keys[0])
    driver = _drivers.LoopDriver if strides == (2, 2) else _drivers.HostDriver
    assert isinstance(_drivers.choose_driver("auto", program), driver)

    def by_hand(hyper):
        params, velocity = weights, jax.tree.map(jnp.zeros_like, weights)
        for t in range(10):
            grads = jax.grad(loss)(params, hyper, training.batches(t))
            velocity = jax.tree.map(lambda v, g: jnp.float32(0.9) * v - g, velocity, grads)
            params = jax.tree.map(lambda w, v: w + hyper["rate"] * v, params, velocity)
        return loss(params, hyper, x)

    objective = hx.UnrolledObjective(training, loss, x, key=keys[0], mode=hx.unroll.Reversible())
    answer = hx.hypergradient(objective, hyper)[0]
    assert isinstance(answer.certificate, ReversalCertificate)
    value, grads = jax.jit(jax.value_and_grad(by_hand))(hyper)
    assert abs(float(answer.value - value)) <= 1e-5 * float(value)
    assert relative_error(answer.grad, grads) <= 1e-3
