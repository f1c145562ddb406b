"""Affine maps against closed forms and SciPy, and ranges and scales that the evidence finds by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings, strategies as st
from scipy import linalg, ndimage

import hyprax as hx
from hyprax import evidence as ev
from hyprax.evidence._invariance import exponential, lattice, warp
from hyprax.fits import fit_evidence


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_exponential_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    g = rng.normal(size=(3, 3)) * rng.uniform(0, 2.5)
    g[2] = 0
    np.testing.assert_allclose(jax.jit(exponential)(jnp.asarray(g)), linalg.expm(g), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(9, 9), (8, 11), (7, 6, 3)])
def test_a_warp_is_bilinear_interpolation_and_zero_outside(shape):
    rng = np.random.default_rng(0)
    for _ in range(10):
        image = rng.normal(size=shape)
        t = np.eye(3)
        t[:2] += rng.normal(size=(2, 3)) * 0.4
        height, width = shape[:2]
        y, x = np.meshgrid(
            (2 * np.arange(height) + 1) / height - 1, (2 * np.arange(width) + 1) / width - 1, indexing="ij"
        )
        at = np.einsum("ij,jhw->ihw", t, np.stack([x, y, np.ones_like(x)]))
        places = np.stack([((at[1] + 1) * height - 1) / 2, ((at[0] + 1) * width - 1) / 2])
        flat = image.reshape(height, width, -1)
        # A frame of zeros makes SciPy's edge the same as ours: half a pixel out, on the way to 0.
        framed = [np.pad(flat[..., c], 1) for c in range(flat.shape[2])]
        want = np.stack([ndimage.map_coordinates(f, places + 1, order=1, cval=0.0) for f in framed], -1)
        np.testing.assert_allclose(warp(jnp.asarray(image), jnp.asarray(t)), want.reshape(shape), atol=1e-12)


def test_the_identity_and_a_quarter_turn_move_pixels_exactly():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))
    np.testing.assert_allclose(warp(image, jnp.eye(3)), image, atol=1e-14)
    turn = exponential(jnp.asarray([[0.0, -np.pi / 2, 0], [np.pi / 2, 0, 0], [0, 0, 0]]))
    np.testing.assert_allclose(warp(image, turn), np.rot90(image, 1), atol=1e-12)
    step = jnp.eye(3).at[0, 2].set(2 * 2 / 6)  # two pixels along x
    np.testing.assert_allclose(warp(image, step)[:, :4], image[:, 2:], atol=1e-12)


def test_the_points_are_uniform_over_images_and_fixed_for_each():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 4, 4)))
    points = jax.vmap(lambda x: lattice(x, 3))(images)
    np.testing.assert_array_equal(points, jax.vmap(lambda x: lattice(x, 3))(images))
    flat = np.asarray(points)
    assert flat.min() >= -1
    assert flat.max() <= 1
    np.testing.assert_allclose(flat.mean((0, 1)), 0, atol=0.04)
    np.testing.assert_allclose(np.var(flat, axis=(0, 1)), 1 / 3, atol=0.02)
    shifts = flat[:, 0]
    assert np.abs(np.corrcoef(shifts.T) - np.eye(6)).max() < 0.1
    # One pixel's last bit is another image.
    near = images[0].at[1, 1].add(1e-15)
    assert np.all(lattice(near, 3) != lattice(images[0], 3))


def test_half_precision_images_are_moved_too():
    image = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float16)
    assert lattice(image, 2).dtype == jnp.float16
    assert np.all(np.isfinite(warp(image, jnp.eye(3, dtype=jnp.float16))))


def pixels(params, hyper, x):
    return jnp.tanh(x.ravel() @ params["w"] + params["b"]) @ params["v"]


def small(rng, side=6):
    return {
        "w": jnp.asarray(rng.normal(size=(side * side, 5)) * 0.3),
        "b": jnp.asarray(rng.normal(size=5)),
        "v": jnp.asarray(rng.normal(size=(5, 3))),
    }


def test_the_log_evidence_has_its_gradient_in_the_ranges():
    rng = np.random.default_rng(0)
    model = ev.AffineInvariance(pixels, samples=4)
    data = (rng.normal(size=(8, 6, 6)), rng.integers(0, 3, 8))
    params = small(rng)

    def value(ranges):
        return ev.log_evidence(
            model,
            params,
            data,
            {"ranges": ranges},
            likelihood=ev.Categorical(),
            prior=ev.GaussianPrior(1.0),
            estimator=ev.FullData(),
        ).value

    at = jnp.asarray([0.11, 0.07, 0.5, 0.13, 0.21, 0.17])
    got = jax.grad(value)(at)
    step = 1e-6
    for i in range(6):
        way = jnp.zeros(6).at[i].set(step)
        np.testing.assert_allclose(got[i], (value(at + way) - value(at - way)) / (2 * step), rtol=1e-4, atol=1e-7)


def test_the_average_of_an_invariant_model_is_the_model():
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.normal(size=(6, 6)))
    params = small(rng)
    still = ev.AffineInvariance(pixels, samples=3)(params, {"ranges": jnp.zeros(6)}, image)
    np.testing.assert_allclose(still, pixels(params, None, image), rtol=1e-10)
    # By hand: the mean over the three maps.
    model = ev.AffineInvariance(pixels, samples=3, only=("rotation",))
    maps = model.transforms(jnp.asarray([0.8]), image)
    angles = np.arctan2(maps[:, 1, 0], maps[:, 0, 0])
    np.testing.assert_allclose(angles, 0.8 * np.asarray(lattice(image, 3))[:, 2], rtol=1e-12)
    want = np.mean([pixels(params, None, warp(image, t)) for t in maps], axis=0)
    np.testing.assert_allclose(model(params, {"ranges": jnp.asarray([0.8])}, image), want, rtol=1e-12)


def features(params, hyper, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


@pytest.mark.slow  # the quick fact: test_tuning_finds_noise_and_relevant_inputs_from_the_training_data
def test_scales_of_inputs_that_do_not_matter_fall():
    rng = np.random.default_rng(0)
    n, d = 120, 5
    x = rng.normal(size=(n, d))
    y = np.sin(2 * x[:, :1]) + 0.5 * x[:, 1:2] + 0.1 * rng.normal(size=(n, 1))
    params = {
        "w": jnp.asarray(rng.normal(size=(d, 10)) / np.sqrt(d)),
        "b": jnp.zeros(10),
        "v": jnp.asarray(rng.normal(size=(10, 1)) * 0.3),
    }
    fitted = fit_evidence(
        ev.InputScales(features),
        params,
        (x, y),
        {"noise": hx.Positive(0.5), "input_scales": hx.Positive(np.ones(d))},
        likelihood=lambda h: ev.Gaussian(h["noise"]),
        estimator=ev.FullData(),
        epochs=250,
        burn_in=30,
        every=5,
        hyper_steps=3,
        optimizer=optax.adam(2e-2),
        batch_size=n,
        progress=False,
        key=jax.random.key(0),
    )
    found = hx.natural(fitted.hyper)
    scales = found["input_scales"]
    assert float(jnp.min(scales[:2])) > 4 * float(jnp.max(scales[2:]))
    assert float(found["noise"]) < 0.2


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ev.AffineInvariance(pixels, samples=0), "samples must be an integer >= 1; got 0"),
        (lambda: ev.AffineInvariance(pixels, only=("spin",)), "spin"),
        (lambda: ev.AffineInvariance(pixels, only=("shear", "shear")), "different names"),
        (
            lambda: ev.AffineInvariance(pixels)({}, {"ranges": jnp.zeros(5)}, jnp.zeros((4, 4))),
            "ranges must have shape",
        ),
        (
            lambda: ev.AffineInvariance(pixels)({}, {"ranges": jnp.zeros(6)}, jnp.zeros(4)),
            "an input must be a floating-point image",
        ),
        (lambda: ev.AffineInvariance(pixels)({}, {"ranges": jnp.zeros(6)}, jnp.zeros((4, 4), int)), "type int64"),
        (
            lambda: ev.InputScales(features)({}, {"input_scales": jnp.ones(2)}, jnp.zeros(3)),
            "scales must have the shape of x",
        ),
    ],
)
def test_models_that_do_not_fit_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
