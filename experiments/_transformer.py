"""A causal transformer over bytes, its weights in single precision: what the experiments on text train."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx


@dataclasses.dataclass(frozen=True)
class Size:
    layers: int
    width: int
    heads: int
    context: int
    batch: int
    steps: int
    compute: str = "float32"
    """The dtype of products and activations."""
    attention: str = "written"
    """By formulas of its own, or by `jax.nn.dot_product_attention`: "xla", or "cudnn" on a card, fused."""

    def weights(self) -> int:
        """How many numbers are trained."""
        shapes = jax.eval_shape(lambda key: init(self, 1.0, key), jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def tokens(self, steps: int) -> int:
        """The bytes of text that so many steps predict."""
        return steps * self.batch * self.context


def init(size: Size, scale: Any, key: Any) -> Any:
    d, n = size.width, size.layers
    keys = jax.random.split(key, 7)

    def normal(key: Any, *shape: int) -> Any:
        return scale * jax.random.normal(key, shape, jnp.float32) / np.float32(np.sqrt(shape[-2]))

    return {
        "bytes": 0.02 * jax.random.normal(keys[0], (256, d), jnp.float32),
        "places": 0.02 * jax.random.normal(keys[1], (size.context, d), jnp.float32),
        "blocks": {
            "mix": normal(keys[2], n, d, 3 * d),
            "out": normal(keys[3], n, d, d),
            "up": normal(keys[4], n, d, 4 * d),
            "down": normal(keys[5], n, 4 * d, d),
            "gain": jnp.ones((n, 2, d), jnp.float32),
        },
        "head": normal(keys[6], d, 256),
    }


def normalised(x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + np.asarray(1e-6, x.dtype))


def attention(size: Size, q: Any, k: Any, v: Any) -> Any:
    if size.attention != "written":
        fused: Any = jax.nn.dot_product_attention
        return fused(q, k, v, is_causal=True, implementation=size.attention)
    length = q.shape[1]
    scores = jnp.einsum("blhc,bmhc->bhlm", q, k) / np.asarray(np.sqrt(q.shape[-1]), q.dtype)
    past = jnp.tril(jnp.ones((length, length), bool))[None, None]
    weights = jax.nn.softmax(jnp.where(past, scores, np.asarray(-1e9, q.dtype)), axis=-1)
    return jnp.einsum("bhlm,bmhc->blhc", weights, v)


def block(size: Size, params: Any, x: Any) -> Any:
    batch, length, d = x.shape
    params = jax.tree.map(lambda w: w.astype(x.dtype), params)
    q, k, v = jnp.split(normalised(x) * params["gain"][0][None, None] @ params["mix"], 3, axis=-1)
    q, k, v = (a.reshape(batch, length, size.heads, d // size.heads) for a in (q, k, v))
    x = x + attention(size, q, k, v).reshape(batch, length, d) @ params["out"]
    return x + jax.nn.gelu(normalised(x) * params["gain"][1][None, None] @ params["up"]) @ params["down"]


def logits(size: Size, params: Any, rows: Any) -> Any:
    """For the bytes that follow all but the last of each row."""
    x = (params["bytes"][rows[:, :-1]] + params["places"][None]).astype(size.compute)
    x = hx.unroll.scan_blocks(lambda p, x: block(size, p, x), params["blocks"], x)
    return normalised(x).astype(jnp.float32) @ params["head"]


def row_losses(size: Size, params: Any, rows: Any) -> Any:
    """Nats a byte, of each row."""
    rows = rows.astype(jnp.int32)
    found = optax.softmax_cross_entropy_with_integer_labels(logits(size, params, rows), rows[:, 1:])
    return jnp.mean(found, axis=1)


def mean_loss(size: Size, params: Any, rows: Any) -> Any:
    """Nats a byte."""
    return jnp.mean(row_losses(size, params, rows))
