"""Learned invariances and learned relevance of inputs: models wrapped so that the evidence can tune them."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from .._products import einsum, product

GENERATORS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "translation_x": ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0)),
    "translation_y": ((0.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "rotation": ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)),
    "scale_x": ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
    "scale_y": ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "shear": ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
}
"""The first two rows of each generator; coordinates run from -1 to 1 over the image, the third row is 0."""

TERMS, SQUARINGS = 10, 5


def exponential(generator: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """exp G by scaling and squaring of a Taylor polynomial: exact to rounding for ‖G‖ <= 7.

    Straight-line, with no case distinction, so that it is cheap to trace and to differentiate.
    """
    small = generator / 2**SQUARINGS
    one = jnp.eye(3, dtype=generator.dtype)
    total = one
    for k in range(TERMS, 0, -1):
        total = one + product(small, total) / k
    for _ in range(SQUARINGS):
        total = product(total, total)
    return total


def affine_map(weights: Float[Array, "6"]) -> Float[Array, "3 3"]:
    """exp(Σ_i w_i G_i), with the generators of [`hyprax.evidence.AffineInvariance`][] in their order.

    **Arguments:**

    - `weights`: w: half widths for the translations, radians, logarithms of factors for the scalings, and shear.
    """
    rows = np.array([[*GENERATORS[name], (0.0, 0.0, 0.0)] for name in GENERATORS])
    return exponential(einsum("k,kij->ij", weights, jnp.asarray(rows, weights.dtype)))


def warp(image: Float[Array, "h w *c"], transform: Float[Array, "3 3"]) -> Float[Array, "h w *c"]:
    """out(p) = image(T p) at the centres p of the pixels, bilinear, 0 outside; x runs along the columns.

    Differentiable in T almost everywhere.
    """
    height, width = image.shape[:2]
    dtype = transform.dtype
    y = (2 * jnp.arange(height, dtype=dtype) + 1) / height - 1
    x = (2 * jnp.arange(width, dtype=dtype) + 1) / width - 1
    x, y = jnp.meshgrid(x, y)
    column = ((transform[0, 0] * x + transform[0, 1] * y + transform[0, 2] + 1) * width - 1) / 2
    row = ((transform[1, 0] * x + transform[1, 1] * y + transform[1, 2] + 1) * height - 1) / 2
    planes = image.reshape(height, width, -1)

    def sampled(plane: Array) -> Array:
        return jax.scipy.ndimage.map_coordinates(plane, [row, column], order=1, mode="constant")

    return jax.vmap(sampled, in_axes=2, out_axes=2)(planes).reshape(image.shape)


def _hashed(image: Array) -> UInt32[Array, ""]:
    """32 bits that depend on every pixel and its place."""
    if image.dtype.itemsize < 4:
        image = image.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(image, jnp.uint32).ravel()
    places = jnp.arange(1, bits.size + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    mixed = (bits ^ (bits >> 15) ^ places) * jnp.uint32(0x85EBCA6B)
    total = jnp.sum((mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35), dtype=jnp.uint32)
    return total ^ (total >> 16)


def lattice(image: Array, count: int) -> Float[Array, "s d"]:
    """ε in [-1, 1]^6, `count` points: the lattice 2 frac(u + s α) - 1, shifted by u, a function of the image.

    α_i = φ^-i with φ⁷ = φ + 1 (the R-sequence, whose points are spread evenly for every count). The shift makes the
    points of each image uniform and those of different images different: averages over a data set see a random sample,
    and each image the same points every time.
    """
    dimensions = len(GENERATORS)
    ratio = np.roots([1.0, *[0.0] * (dimensions - 1), -1.0, -1.0])
    phi = float(ratio[np.argmax(ratio.real)].real)
    steps = np.arange(count)[:, None] * phi ** -np.arange(1.0, dimensions + 1)[None]
    seed = _hashed(jax.lax.stop_gradient(image))
    salts = jnp.arange(1, dimensions + 1, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    shift = (seed ^ salts) * jnp.uint32(0x85EBCA6B)
    shift = (shift ^ (shift >> 13)) * jnp.uint32(0xC2B2AE35)
    uniform = ((shift ^ (shift >> 16)) >> 8).astype(image.dtype) / 2**24
    return 2 * ((jnp.asarray(steps % 1, image.dtype) + uniform[None]) % 1.0) - 1


class AffineInvariance(eqx.Module):
    """f̄(x) = (1/S) Σ_s f(x ∘ exp(Σ_i ε_si η_i G_i)), ε_si in [-1, 1]: a model averaged over random affine maps.

    G_i generates translation along x and y, rotation, scaling along x and y, and shear, in coordinates that run from -1
    to 1 over the image: η is half a width for translations, radians for rotation, the logarithm of the factor for
    scalings. The ranges η are hyperparameters; the log evidence has a gradient in them, since the outputs, and not the
    losses, are averaged. Negative ranges mean the same as positive ones; at η = 0 the gradient of the average of many
    samples is 0, so start a little off it, as `hx.Positive(np.full(6, 0.2))`: steps are then relative and none lands
    on 0.

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` of one image x, (H, W) or (H, W, channels).
    - `samples`: S.
    - `name`: the entry of hyper that holds the ranges: (6,) in the order of `AffineInvariance.names`, or one for each
        of `only`.
    - `only`: the generators used, by name; default all six.

    The ε of an image are a lattice shifted at random by a function of the image itself, so the model is a function of
    x, as the evidence needs.

    Source: van der Ouderaa and van der Wilk 2022 (arXiv 2202.07559); Immer, van der Ouderaa et al. 2022
    (arXiv 2202.10638).
    """

    apply: Callable[[Any, Any, Any], Array]
    samples: int = eqx.field(static=True, default=20)
    name: str = eqx.field(static=True, default="ranges")
    only: tuple[str, ...] = eqx.field(static=True, default=tuple(GENERATORS))

    names = tuple(GENERATORS)
    affine_map = staticmethod(affine_map)
    """exp(Σ_i w_i G_i) of six weights, in the order of `names`."""
    warp = staticmethod(warp)
    """An image seen through an affine map."""

    def __check_init__(self):
        if self.samples < 1:
            raise ValueError(f"AffineInvariance: samples must be an integer >= 1; got {self.samples}.")
        if not self.only or len(set(self.only)) < len(self.only) or not set(self.only) <= set(GENERATORS):
            raise ValueError(f"AffineInvariance: only must be different names among {self.names}; got {self.only}.")

    def transforms(self, ranges: Float[Array, " k"], image: Array) -> Float[Array, "s 3 3"]:
        """The S maps of an image at these ranges."""
        if ranges.shape != (len(self.only),):
            raise ValueError(
                f"AffineInvariance: ranges must have shape ({len(self.only)},) for {self.only}; got {ranges.shape}."
            )
        points = lattice(image, self.samples)
        places = np.array([self.names.index(name) for name in self.only])
        whole = jnp.zeros(len(self.names), points.dtype).at[places].set(ranges.astype(points.dtype))
        return jax.vmap(affine_map)(points * whole[None])

    def __call__(self, params: Any, hyper: Any, x: Array) -> Float[Array, " c"]:
        """f̄(x)."""
        if x.ndim not in (2, 3) or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                "AffineInvariance: an input must be a floating-point image (H, W) or (H, W, C); got shape "
                f"{x.shape} and type {x.dtype}."
            )
        maps = self.transforms(hyper[self.name], x)
        return jnp.mean(jax.vmap(lambda t: self.apply(params, hyper, warp(x, t)))(maps), axis=0)


class InputScales(eqx.Module):
    """f(s ∘ x): a model whose features are multiplied by learned scales; 0 for a feature that does not matter (ARD).

    **Arguments:**

    - `apply`: `apply(params, hyper, x)` of one example x, an array.
    - `name`: the entry of hyper that holds s, of the shape of x; start at 1, as `hx.Positive(np.ones(d))`.

    The evidence weighs s against the prior precision of the first layer; it is only their product that the model sees.
    A step of s changes the function that the weights were trained for, so s must move slowly beside them: where the
    noise is learned too and is small, steps of a few per cent look like noise, which then grows until the inputs that
    matter little are lost. Where x meets the weights in a product first, one prior precision for each input (an array
    in [`hyprax.evidence.GaussianPrior`][]) describes the same models, and its steps change no function.

    Source: MacKay 1994 and Neal 1996, for automatic relevance determination.
    """

    apply: Callable[[Any, Any, Any], Array]
    name: str = eqx.field(static=True, default="input_scales")

    def __call__(self, params: Any, hyper: Any, x: Array) -> Float[Array, " c"]:
        """f(s ∘ x)."""
        scales = hyper[self.name]
        if scales.shape != x.shape:
            raise ValueError(f"InputScales: scales must have the shape of x, {x.shape}; got {scales.shape}.")
        return self.apply(params, hyper, x * scales.astype(x.dtype))
