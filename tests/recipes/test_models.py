"""Networks against plain NumPy, and what their initial weights promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hyprax.recipes._models import network, outputs_of, scaled, shifted


def relu(x):
    return np.maximum(x, 0)


def conv(x: np.ndarray, w: np.ndarray, stride: int) -> np.ndarray:
    """(channels, rows, columns) with (out, in, k, k), zeros around as XLA's SAME has them, by loops."""
    out, _, k, _ = w.shape
    rows, columns = (-(-n // stride) for n in x.shape[1:])
    pads = [max((m - 1) * stride + k - n, 0) for m, n in zip((rows, columns), x.shape[1:], strict=True)]
    x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads)])
    found = np.zeros((out, rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            found[:, i, j] = np.tensordot(w, patch, 3)
    return found


def group_norm(z: np.ndarray, groups: int, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    parts = [(p - p.mean()) / np.sqrt(p.var() + 1e-5) for p in np.split(z, groups)]
    return np.concatenate(parts) * gain[:, None, None] + bias[:, None, None]


def drawn(net, seed):
    """Weights that are nowhere zero, so that nothing is left out by chance."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), net.init(jax.random.key(seed)))


def test_mlp():
    net = network("mlp", 5, 3, width=4, depth=2)
    params, x = drawn(net, 0), np.random.default_rng(1).normal(size=5)
    p = jax.tree.map(np.asarray, params)
    expected = relu(x @ p["layer0"]["w"] + p["layer0"]["b"])
    expected = relu(expected @ p["layer1"]["w"] + p["layer1"]["b"]) @ p["layer2"]["w"] + p["layer2"]["b"]
    np.testing.assert_allclose(net.apply(params, jnp.asarray(x)), expected, rtol=1e-12)
    assert net.last == "layer2"


def test_cnn():
    net = network("cnn", 35, 3, width=2, depth=2, image_shape=(7, 5))
    params, x = drawn(net, 0), np.random.default_rng(1).normal(size=35)
    p = jax.tree.map(np.asarray, params)
    z = x.reshape(1, 7, 5)
    for i, stride in enumerate((1, 2)):
        z = relu(conv(z, p[f"conv{i}"]["w"], stride) + p[f"conv{i}"]["b"][:, None, None])
    expected = z.mean((1, 2)) @ p["head"]["w"] + p["head"]["b"]
    np.testing.assert_allclose(net.apply(params, jnp.asarray(x)), expected, rtol=1e-12)


@pytest.mark.parametrize("norm", ["fixup", "group"])
def test_resnet(norm):
    net = network("resnet", 48, 3, width=4, depth=1, norm=norm, image_shape=(8, 6))
    params, x = drawn(net, 2), np.random.default_rng(1).normal(size=48)
    p = jax.tree.map(np.asarray, params)
    z = conv(x.reshape(1, 8, 6), p["stem"]["w"], 1)
    for stage, stride in enumerate((1, 2, 2)):
        q = p[f"stage{stage}_block0"]
        if norm == "fixup":
            y = relu(conv(relu(z + q["b0"]), q["w1"], stride) + q["b1"]) + q["b2"]
            y = conv(y, q["w2"], 1) * q["scale"] + q["b3"]
        else:  # 4 and 8 channels make one group each, 16 make eight
            y = conv(relu(group_norm(z, 1, q["gain1"], q["bias1"])), q["w1"], stride)
            y = conv(relu(group_norm(y, 8 if stage == 2 else 1, q["gain2"], q["bias2"])), q["w2"], 1)
        z = y + (conv(z, q["shortcut"], stride) if stage else z)
    expected = relu(z).mean((1, 2)) @ p["head"]["w"] + p["head"]["b"]
    np.testing.assert_allclose(net.apply(params, jnp.asarray(x)), expected, rtol=1e-10)


def test_initial_weights():
    net = network("mlp", 400, 300, width=500, depth=1)
    params = net.init(jax.random.key(0))
    np.testing.assert_allclose(float(params["layer0"]["w"].std()), np.sqrt(2 / 400), rtol=0.01)
    np.testing.assert_allclose(float(params["layer1"]["w"].std()), np.sqrt(1 / 500), rtol=0.01)
    fixup = network("resnet", 64, 3, width=4, depth=2, image_shape=(8, 8))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64)))
    np.testing.assert_array_equal(outputs_of(fixup.apply, fixup.init(jax.random.key(0)), x), np.zeros((2, 3)))


def test_scales_act_on_matrices_alone():
    params = drawn(network("mlp", 3, 2, width=4, depth=1), 0)
    factors = {"layer0": jnp.asarray(2.0), "layer1": jnp.asarray(0.5)}
    found = scaled(params, lambda name: factors[name])
    for name, factor in factors.items():
        np.testing.assert_array_equal(found[name]["w"], factor * params[name]["w"])
        np.testing.assert_array_equal(found[name]["b"], params[name]["b"])


def test_shifts_by_whole_pixels_and_between():
    image = np.random.default_rng(0).normal(size=(5, 4))
    moved = shifted(jnp.asarray(image.ravel()), jnp.asarray([1.0, -2.0]), (5, 4)).reshape(5, 4)
    expected = np.zeros((5, 4))
    expected[1:, :2] = image[:-1, 2:]
    np.testing.assert_allclose(moved, expected, atol=1e-12)
    half = shifted(jnp.asarray(image.ravel()), jnp.asarray([0.5, 0.0]), (5, 4)).reshape(5, 4)
    np.testing.assert_allclose(half[1:], (image[1:] + image[:-1]) / 2, atol=1e-12)


def test_images_are_asked_for():
    with pytest.raises(ValueError, match='must be "mlp" for rows of numbers'):
        network("cnn", 30, 2, width=4, depth=1)
