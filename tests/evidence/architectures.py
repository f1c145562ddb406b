"""Models of one example, each with its parameters, a hyperparameter that acts inside it, and inputs: for kernels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

C = 3
"""Outputs of every model."""


class Model(NamedTuple):
    apply: Callable[[Any, Any, Any], Array]
    params: Any
    hyper: Any
    inputs: Any

    @property
    def inputs_are_integers(self) -> bool:
        return all(jnp.issubdtype(x.dtype, jnp.integer) for x in jax.tree.leaves(self.inputs))


def draw(rng: np.random.Generator, *shape: int) -> Array:
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(max(1, np.prod(shape[:-1]))))


def layer_norm(x: Array) -> Array:
    x = x - x.mean(-1, keepdims=True)
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-3)


def conv(x: Array, w: Array, **options: Any) -> Array:
    options = {"window_strides": (1, 1), "padding": "SAME", **options}
    return lax.conv_general_dilated(x[None], w, **options)[0]


def mlp(rng: np.random.Generator, m: int) -> Model:
    params = [{"w": draw(rng, a, b), "b": draw(rng, b)} for a, b in [(5, 6), (6, 4), (4, C)]]

    def apply(params: Any, hyper: Array, x: Array) -> Array:
        z = hyper * x  # learned scales of the features
        for layer in params[:-1]:
            z = jax.nn.relu(z @ layer["w"] + layer["b"])
        return z @ params[-1]["w"] + params[-1]["b"]

    return Model(apply, params, draw(rng, 5), draw(rng, m, 5))


def lenet(rng: np.random.Generator, m: int) -> Model:
    params = {
        "c1": draw(rng, 4, 1, 3, 3), "b1": draw(rng, 4), "c2": draw(rng, 6, 4, 3, 3), "w": draw(rng, 24, 8),
        "v": draw(rng, 8, C),
    }  # fmt: skip

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = jnp.tanh(conv(x * (1 + hyper), p["c1"], padding="VALID") + p["b1"][:, None, None])
        z = lax.reduce_window(z, -jnp.inf, lax.max, (1, 2, 2), (1, 2, 2), "VALID")
        z = jnp.tanh(conv(z, p["c2"], padding="VALID"))
        return jnp.tanh(z.reshape(-1) @ p["w"]) @ p["v"]

    return Model(apply, params, draw(rng, 1, 10, 10), draw(rng, m, 1, 10, 10))


def strange_cnn(rng: np.random.Generator, m: int) -> Model:
    """Grouped, strided and dilated convolutions, one transposed, one in channels-last order, one over a time axis."""
    params = {
        "grouped": draw(rng, 6, 2, 3, 3), "strided": draw(rng, 4, 6, 3, 2), "dilated": draw(rng, 4, 4, 2, 2),
        "depthwise": draw(rng, 8, 1, 3, 3), "transposed": draw(rng, 3, 8, 2, 2), "last": draw(rng, 2, 2, 3, C),
        "time": draw(rng, C, 1, 2),
    }  # fmt: skip

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = jnp.tanh(conv(hyper * x, p["grouped"], feature_group_count=2))
        z = jnp.tanh(conv(z, p["strided"], window_strides=(2, 1), padding=[(1, 0), (2, 1)]))
        z = jnp.tanh(conv(z, p["dilated"], rhs_dilation=(2, 1)))
        z = jnp.tanh(conv(z, p["depthwise"], feature_group_count=4))
        z = jnp.tanh(conv(z, p["transposed"], lhs_dilation=(2, 2), padding=[(1, 1), (1, 1)]))
        numbers = ("NHWC", "HWIO", "NHWC")
        z = lax.conv_general_dilated(z.transpose(1, 2, 0)[None], p["last"], (1, 1), "VALID", dimension_numbers=numbers)[
            0
        ]
        series = z.sum(-1).reshape(1, 1, -1)
        return jnp.sin(conv(series[0], p["time"], window_strides=(3,), padding="VALID")).sum(-1) + z.sum((0, 1))

    return Model(apply, params, jnp.ones((4, 1, 1)) + draw(rng, 4, 1, 1), draw(rng, m, 4, 6, 5))


def group_norm_resnet(rng: np.random.Generator, m: int) -> Model:
    params = {
        "stem": draw(rng, 4, 2, 3, 3), "w1": draw(rng, 4, 4, 3, 3), "w2": draw(rng, 4, 4, 3, 3), 
        "gain": 1 + draw(rng, 4), "bias": draw(rng, 4), "alpha": draw(rng, 1)[0], "head": draw(rng, C, 4),
    }  # fmt: skip

    def norm(z: Array, gain: Array, bias: Array) -> Array:
        shape = z.shape
        z = layer_norm(z.reshape(2, -1)).reshape(shape)
        return z * gain[:, None, None] + bias[:, None, None]

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = conv(x, p["stem"], window_strides=(2, 2))
        y = jax.nn.relu(norm(conv(z, p["w1"]), p["gain"], p["bias"]))
        z = z + hyper * p["alpha"] * conv(y, p["w2"])
        return p["head"] @ jax.nn.relu(z).mean((1, 2))

    return Model(apply, params, jnp.asarray(1.3), draw(rng, m, 2, 8, 8))


def transformer(rng: np.random.Generator, m: int) -> Model:
    """Embedding by look-up, positions, fused query-key-value, two heads, LayerNorm, a rematerialised block."""
    d, t = 6, 5
    params = {
        "embedding": draw(rng, 7, d), "position": draw(rng, t, d), "qkv": draw(rng, d, 3 * d),
        "out": draw(rng, 2, d // 2, d), "gain": 1 + draw(rng, d), "up": draw(rng, d, 2 * d),
        "down": draw(rng, 2 * d, d), "head": draw(rng, d, C),
    }  # fmt: skip

    def block(p: Any, z: Array, temperature: Array) -> Array:
        wq, wk, wv = (w.reshape(d, 2, d // 2) for w in jnp.split(p["qkv"], 3, axis=1))
        y = layer_norm(z) * p["gain"][None]
        q, k, v = (jnp.einsum("td,dhe->the", y, w) for w in (wq, wk, wv))
        attention = jax.nn.softmax(temperature * jnp.einsum("the,she->hts", q, k))
        z = z + jnp.einsum("hts,she,hed->td", attention, v, p["out"])
        return z + jax.nn.gelu(layer_norm(z) @ p["up"]) @ p["down"]

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = jnp.take(p["embedding"], x, axis=0) + p["position"]
        return jax.checkpoint(block)(p, z, hyper).mean(0) @ p["head"]

    return Model(apply, params, jnp.asarray(0.8), jnp.asarray(rng.integers(0, 7, (m, t))))


def tied(rng: np.random.Generator, m: int) -> Model:
    """One matrix applied twice, one transposed, an embedding tied to the output, two look-ups in one table."""
    params = {
        "w": draw(rng, 4, 4),
        "v": draw(rng, 4, 4),
        "e": draw(rng, C, 4),
        "table": draw(rng, 6, 4),
        "b": draw(rng, 4),
    }

    def apply(p: Any, hyper: Array, x: Any) -> Array:
        z = p["e"][x["token"]] * hyper + p["table"][x["left"]] + p["table"][x["right"]].mean(0)
        z = jnp.tanh(jnp.tanh(z @ p["w"] + p["b"]) @ p["w"] + p["b"])
        return p["e"] @ jnp.tanh((z @ p["v"]) @ p["v"].T)

    shapes = {"token": (C, ()), "left": (6, ()), "right": (6, (3,))}
    inputs = {name: jnp.asarray(rng.integers(0, n, (m, *shape))) for name, (n, shape) in shapes.items()}
    return Model(apply, params, draw(rng, 4), inputs)


def weight_norm(rng: np.random.Generator, m: int) -> Model:
    """Weights that are functions of the parameters: normalised, symmetric, low-rank, masked."""
    params = {
        "v": draw(rng, 5, 4),
        "g": 1 + draw(rng, 4),
        "s": draw(rng, 4, 4),
        "u": draw(rng, 4, 2),
        "m": draw(rng, 4, C),
    }
    mask = jnp.asarray(rng.integers(0, 2, (4, C)), float)

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = jnp.tanh(x @ (p["g"][None] * p["v"] / jnp.linalg.norm(p["v"], axis=0, keepdims=True)))
        z = jnp.tanh(z @ (p["s"] + p["s"].T) + hyper * (z @ (p["u"] @ p["u"].T)))
        return z @ (p["m"] * mask)

    return Model(apply, params, jnp.asarray(0.6), draw(rng, m, 5))


def rnn(rng: np.random.Generator, m: int) -> Model:
    """A recurrence by scan, with an initial state that is learned and a readout at each step."""
    params = {"w": draw(rng, 4, 4), "u": draw(rng, 2, 4), "b": draw(rng, 4), "h": draw(rng, 4), "o": draw(rng, 4, C)}

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        def step(h: Array, x_t: Array) -> tuple[Array, Array]:
            h = jnp.tanh(h @ p["w"] + (hyper * x_t) @ p["u"] + p["b"])
            return h, h @ p["o"]

        h, ys = lax.scan(step, p["h"], x, reverse=True)
        return ys.sum(0) + h @ p["o"]

    return Model(apply, params, jnp.asarray(1.2), draw(rng, m, 5, 2))


def scanned_layers(rng: np.random.Generator, m: int) -> Model:
    """Layers of stacked weights by scan, each with a scan over the positions inside; and a model under jit."""
    params = {
        "w": draw(rng, 3, 4, 4), "k": draw(rng, 3, 2, 4, 1, 3), "gain": 1 + draw(rng, 3, 4), "shared": draw(rng, 4, 4),
        "o": draw(rng, 4, C),
    }  # fmt: skip

    @jax.jit
    def apply(p: Any, hyper: Array, x: Array) -> Array:
        def layer(z: Array, w: Any) -> tuple[Array, None]:
            def position(state: Array, z_t: Array) -> tuple[Array, Array]:
                state = jnp.tanh(state @ w["w"] + z_t @ p["shared"])
                return state, state * w["gain"]

            _, z = lax.scan(position, jnp.zeros(4), z)
            kernel = w["k"][1]
            z = z + lax.conv_general_dilated(z.T[None], kernel, (1,), "SAME", feature_group_count=4)[0].T
            return z * hyper, None

        stacked = {name: p[name] for name in ("w", "k", "gain")}
        z, _ = lax.scan(layer, x, stacked)
        return z.mean(0) @ p["o"]

    return Model(apply, params, jnp.asarray(0.9), draw(rng, m, 5, 4))


class Network(eqx.Module):
    first: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    last: eqx.nn.Linear

    def __init__(self, key: Array) -> None:
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 4, 3, stride=2, key=keys[0])
        self.norm = eqx.nn.LayerNorm(4)
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=keys[1])
        self.last = eqx.nn.Linear(4, C, key=keys[2])

    def __call__(self, x: Array) -> Array:
        z = jax.vmap(self.norm)(jnp.tanh(self.first(x)).reshape(4, -1).T)
        return self.last(self.attention(z, z, z).mean(0))


def equinox_module(rng: np.random.Generator, m: int) -> Model:
    model = Network(jax.random.key(int(rng.integers(1 << 30))))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params: Any, hyper: Array, x: Array) -> Array:
        return eqx.combine(params, static)(x + hyper)

    return Model(apply, params, draw(rng, 1, 7, 7), draw(rng, m, 1, 7, 7))


class FlaxNetwork(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 4, (3, 3), strides=2, param_dtype=jnp.float64, rngs=rngs)
        self.norm = nnx.GroupNorm(4, num_groups=2, param_dtype=jnp.float64, rngs=rngs)
        self.last = nnx.Linear(4, C, param_dtype=jnp.float64, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.last(jnp.tanh(self.norm(self.first(x))).mean((0, 1)))


def flax_module(rng: np.random.Generator, m: int) -> Model:
    graph, params = nnx.split(FlaxNetwork(nnx.Rngs(int(rng.integers(1 << 30)))), nnx.Param)

    def apply(params: Any, hyper: Array, x: Array) -> Array:
        with jax.numpy_dtype_promotion("standard"):  # Flax itself mixes dtypes
            return nnx.merge(graph, params)(x + hyper)

    return Model(apply, params, draw(rng, 7, 7, 1), draw(rng, m, 7, 7, 1))


def custom_rule(rng: np.random.Generator, m: int) -> Model:
    """Weights that pass through a function with a derivative of its own, through cond and while; a bias returned."""
    params = {
        "w": draw(rng, 4, 4),
        "v": draw(rng, 4, C),
        "u": draw(rng, 4, 4),
        "b": draw(rng, C),
        "unused": draw(rng, 2),
    }

    @jax.custom_vjp
    def dense(x: Array, w: Array) -> Array:
        return jnp.tanh(x @ w)

    def forward(x: Array, w: Array) -> tuple[Array, Any]:
        y = dense(x, w)
        return y, (x, w, y)

    def backward(kept: Any, g: Array) -> tuple[Array, Array]:
        x, w, y = kept
        g = g * (1 - y * y)
        return g @ w.T, jnp.outer(x, g)

    dense.defvjp(forward, backward)

    def apply(p: Any, hyper: Array, x: Array) -> Array:
        z = dense(x * hyper, p["w"])
        z = lax.cond(x[0] > 0, lambda u: jnp.tanh(z @ u), lambda u: jnp.tanh(u @ z), p["u"])
        z = lax.fori_loop(0, 2, lambda i, y: jnp.tanh(y @ p["u"]), z)
        return z @ p["v"] * jnp.abs(p["b"]) + lax.stop_gradient(p["b"])

    return Model(apply, params, draw(rng, 4), draw(rng, m, 4))


ARCHITECTURES: dict[str, Callable[[np.random.Generator, int], Model]] = {
    f.__name__: f
    for f in (
        mlp, lenet, strange_cnn, group_norm_resnet, transformer, tied, weight_norm, rnn, scanned_layers, equinox_module,
        flax_module, custom_rule,
    )
}  # fmt: skip
