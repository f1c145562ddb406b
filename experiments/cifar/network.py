"""A wide residual network with Fixup, and the images that it reads."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from experiments._common import data_file
from jax import Array, lax

CLASSES = 10

Params = dict[str, dict[str, Array]]


class Images(NamedTuple):
    """Images (n, side, side, 3), standardised by the training images, and their classes."""

    x: np.ndarray
    y: np.ndarray


def images(side: int, train: int, test: int) -> tuple[Images, Images]:
    """The first `train` and `test` images of the CIFAR-10 subset, averaged over blocks of pixels to `side` x `side`."""
    stored = np.load(data_file("cifar10/cifar10_subset.npz"), allow_pickle=False)

    def part(name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        x, block = stored[f"x_{name}"][:count], 32 // side
        pooled = x.reshape(count, side, block, side, block, 3).mean(axis=(2, 4)) / 255
        return pooled.astype(np.float32), stored[f"y_{name}"][:count].astype(np.int32)

    (x, y), (x_test, y_test) = part("train", train), part("test", test)
    centre, spread = x.mean(axis=(0, 1, 2)), x.std(axis=(0, 1, 2))
    return Images((x - centre) / spread, y), Images((x_test - centre) / spread, y_test)


def _kernel(key: Array, fan_in: int, fan_out: int, size: int = 3, gain: float = 2.0) -> Array:
    return math.sqrt(gain / (fan_in * size * size)) * jax.random.normal(key, (size, size, fan_in, fan_out))


def _conv(x: Array, w: Array, stride: int = 1) -> Array:
    """x (rows, columns, channels) with w (k, k, in, out), zeros around."""
    return lax.conv_general_dilated(x[None], w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]


class WideResNet(NamedTuple):
    """WRN-(6 `depth` + 4)-`widen` (Zagoruyko and Komodakis 2016), Fixup in place of normalisation (Zhang et al. 2019).

    Three stages of `depth` blocks with 16, 32 and 64 times `widen` channels. A branch has two convolutions, four scalar
    shifts and a scalar factor; its second convolution and the head start at 0.
    """

    depth: int
    widen: int

    @property
    def name(self) -> str:
        return f"WRN-{6 * self.depth + 4}-{self.widen}"

    def blocks(self) -> list[tuple[str, int, int, int]]:
        """(name, channels in, channels out, stride) of each."""
        out, channels = [], 16
        for stage in range(3):
            for b in range(self.depth):
                wide = 16 * self.widen * 2**stage
                out.append((f"stage{stage}_block{b}", channels, wide, 2 if stage and not b else 1))
                channels = wide
        return out

    def init(self, key: Array) -> Params:
        keys = iter(jax.random.split(key, 1 + 9 * self.depth))
        blocks = self.blocks()
        params: Params = {"stem": {"w": _kernel(next(keys), 3, 16)}}
        for name, narrow, wide, _ in blocks:
            layer = {
                "w1": _kernel(next(keys), narrow, wide) / math.sqrt(len(blocks)),
                "w2": jnp.zeros((3, 3, wide, wide)),
                "shifts": jnp.zeros(4),
                "factor": jnp.ones(()),
            }
            if narrow != wide:
                layer["shortcut"] = _kernel(next(keys), narrow, wide, 1, 1.0)
            params[name] = layer
        params["head"] = {"w": jnp.zeros((blocks[-1][2], CLASSES)), "b": jnp.zeros(CLASSES)}
        return params

    def apply(self, params: Params, hyper: Any, x: Array) -> Array:
        """The logits of one image."""
        z = _conv(x, params["stem"]["w"])
        for name, narrow, wide, stride in self.blocks():
            layer = params[name]
            a, b, c, d = layer["shifts"]
            y = jax.nn.relu(_conv(jax.nn.relu(z + a), layer["w1"], stride) + b)
            y = _conv(y + c, layer["w2"]) * layer["factor"] + d
            z = y + (z if narrow == wide else _conv(z, layer["shortcut"], stride))
        return jax.nn.relu(z).mean((0, 1)) @ params["head"]["w"] + params["head"]["b"]


Apply = Callable[[Params, Any, Array], Array]
