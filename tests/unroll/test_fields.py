"""What plain calculus does not cover: fields that are no gradients, and gradients that are always 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hyprax import FullBatch, Training, UnrolledObjective, hypergradient, unroll
from trainings import relative_error

STEPS = 5


@jax.custom_vjp
def reverse(x, strength):
    """Gradient reversal."""
    return x


reverse.defvjp(lambda x, s: (x, s), lambda s, g: (-s * g, jnp.zeros_like(s)))


@jax.custom_vjp
def clipped(x, limit):
    """x, with a gradient that is clipped."""
    return x


clipped.defvjp(lambda x, limit: (x, limit), lambda limit, g: (jnp.clip(g, -limit, limit), jnp.zeros_like(limit)))


@jax.custom_vjp
def rounded(x):
    """A straight-through estimator, with a forward rule that calls the function itself."""
    return jnp.round(4 * x) / 4


rounded.defvjp(lambda x: (rounded(x), x), lambda x, g: (jnp.where(jnp.abs(x) < 2, g, 0.0),))


def field_loss(params, hyper, batch):
    """All of them in one network, a straight-through estimator by `stop_gradient`, and ties under a maximum."""
    x, y = batch
    hidden = jnp.tanh(x @ params["in"])
    quantised = hidden + jax.lax.stop_gradient(jnp.round(8 * hidden) / 8 - hidden)
    fit = jnp.mean((quantised @ params["out"] - y) ** 2)
    domain = jnp.mean(jax.nn.softplus(-jnp.sign(x[:, 0]) * (reverse(hidden, hyper["reversal"]) @ params["domain"])))
    tail = jnp.mean(jnp.sin(rounded(x @ params["in"]) * 2) ** 2)
    pooled = jnp.mean(jnp.max(clipped(hidden * jnp.abs(x[:, :1]), hyper["limit"]), axis=1))
    return fit + domain + tail + pooled


def field_problem():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((20, 3)))
    start = {name: jnp.asarray(0.6 * rng.standard_normal(shape)) for name, shape in
             (("in", (3, 4)), ("out", (4,)), ("domain", (4,)))}  # fmt: skip
    hyper = {name: jnp.asarray(v) for name, v in (("rate", 0.05), ("reversal", 0.7), ("limit", 0.02))}
    data = (x, jnp.sin(jnp.sum(x, axis=1)))

    def outer(params, hyper, data):
        return jnp.mean((jnp.tanh(data[0] @ params["in"]) @ params["out"] - data[1]) ** 2)

    def optimizer(hyper):
        return unroll.MomentumSGD(hyper["rate"], 0.9, form="polyak")

    def plain(hyper):
        params, velocity = start, jax.tree.map(jnp.zeros_like, start)
        for _ in range(STEPS):
            grads = jax.grad(field_loss)(params, hyper, data)
            velocity = jax.tree.map(lambda v, g: 0.9 * v - g, velocity, grads)
            params = jax.tree.map(lambda p, v: p + hyper["rate"] * v, params, velocity)
        return outer(params, hyper, data)

    training = Training(field_loss, lambda hyper, key: start, optimizer, FullBatch(data), STEPS)
    return training, outer, data, hyper, jax.jit(jax.grad(plain))(hyper)


@pytest.mark.parametrize(
    "modes",
    [
        (unroll.StoreAll(), unroll.Reversible(), unroll.ForwardMode()),
        pytest.param((unroll.Checkpointed(), unroll.Truncated(STEPS)), marks=pytest.mark.slow),
    ],
)
def test_fields_that_are_no_gradients_are_differentiated_in_every_mode(modes):
    """The Jacobian of such a field is not symmetric, and its derivative in λ is not that of the loss."""
    training, outer, data, hyper, expected = field_problem()
    assert abs(float(expected["reversal"])) > 1e-4
    for mode in modes:
        objective = UnrolledObjective(training, outer, data, key=jax.random.key(0), mode=mode)
        assert relative_error(hypergradient(objective, hyper)[0].grad, expected) < 1e-7, mode


def silent_problem(make, dtype, columns):
    """Linear regression in which the third input is always 0: its weight starts at 0, has a penalty, and is judged."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 3))
    y = x[:, 0] - x[:, 1]
    x[:, 2] = 0
    x, y = jnp.asarray(x[:, :columns], dtype), jnp.asarray(y, dtype)

    def loss(params, hyper, batch):
        return jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2) + hyper["l2"] * jnp.sum(params["w"] ** 2)

    def outer(params, hyper, data):
        return jnp.mean((data[0] @ params["w"] - data[1]) ** 2) + jnp.sum((params["w"] - 0.3) ** 2)

    training = Training(loss, lambda hyper, key: {"w": jnp.zeros(columns, dtype)}, make, FullBatch((x[:30], y[:30])), 6)
    hyper = {"rate": jnp.asarray(0.05, dtype), "l2": jnp.asarray(0.01, dtype)}
    return lambda mode: hypergradient(
        UnrolledObjective(training, outer, (x[30:], y[30:]), key=jax.random.key(0), mode=mode), hyper
    )[0]


@pytest.mark.parametrize(
    ("make", "dtype", "modes"),
    [
        (
            lambda h: unroll.Adam(h["rate"]),
            jnp.float32,
            (unroll.Checkpointed(), unroll.Reversible(), unroll.ForwardMode()),
        ),
        (
            lambda h: unroll.OptaxOptimizer(optax.adam(h["rate"])),
            jnp.float64,
            (unroll.Checkpointed(), unroll.ForwardMode()),
        ),
        pytest.param(
            lambda h: unroll.OptaxOptimizer(optax.adamw(h["rate"])),
            jnp.float32,
            (unroll.StoreAll(), unroll.ForwardMode()),
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda h: unroll.AdamW(h["rate"]), jnp.float64, (unroll.Reversible(),), marks=pytest.mark.slow),
        pytest.param(
            lambda h: unroll.OptaxOptimizer(optax.amsgrad(h["rate"])),
            jnp.float64,
            (unroll.StoreAll(),),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda h: unroll.OptaxOptimizer(optax.adamax(h["rate"])),
            jnp.float32,
            (unroll.StoreAll(),),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda h: unroll.OptaxOptimizer(optax.chain(optax.clip_by_global_norm(1.0), optax.nadam(h["rate"]))),
            jnp.float64,
            (unroll.StoreAll(), unroll.ForwardMode()),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_weight_without_a_gradient_changes_no_derivative(make, dtype, modes):
    """It stays at 0 whatever the hyperparameters are: the hypergradient is that of the training without it."""
    without = silent_problem(make, dtype, 2)(modes[0])
    for mode in modes:
        answer = silent_problem(make, dtype, 3)(mode)
        assert relative_error(answer.grad, without.grad) < (1e-10 if dtype == jnp.float64 else 1e-4), mode


def test_updates_of_optax_keep_their_values_and_their_derivatives_elsewhere():
    """Bit for bit those of optax as it is, and `jax.grad` of it where no gradient is 0."""
    ours, theirs = unroll.OptaxOptimizer(optax.adam(0.1)), optax.adam(0.1)
    params = jnp.asarray([1.0, -2.0, 0.5])
    zero, some = jnp.asarray([0.0, 1e-3, -4.0]), jnp.asarray([0.2, 1e-3, -4.0])

    def plain(grads):
        with jax.numpy_dtype_promotion("standard"):
            return optax.apply_updates(params, theirs.update(grads, theirs.init(params), params)[0])

    def made(grads):
        return ours.update(grads, ours.init(params), params, jnp.asarray(0))[0]

    assert np.array_equal(np.asarray(plain(zero)), np.asarray(made(zero)))
    rounding = 8 * np.finfo(float).eps * 0.1 / np.abs(some)  # derivatives of m/√v that cancel but for ε
    assert np.all(np.abs(jax.jacobian(made)(some) - jax.jacobian(plain)(some)) <= rounding)
    assert np.all(np.isfinite(jax.jacobian(made)(zero)))
