"""Ten alphabets, mixed networks for them, and their training."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiments._common import data_file
from jax import Array

import hyprax as hx

NAMES = ("Balinese", "Aramaic", "Greek", "Korean", "Latin")
TASKS, CLASSES, DRAWERS = 2 * len(NAMES), 40, 20
PIXELS = 14
SIZES = (PIXELS**2, 200, 100, CLASSES)
LAYERS = len(SIZES) - 1
BATCH = 60


def shrunk(images: np.ndarray) -> np.ndarray:
    """(n, 105, 105) to (n, PIXELS, PIXELS): means over areas."""
    side = images.shape[-1]
    edges = np.linspace(0, side, PIXELS + 1)
    upper = np.minimum(np.arange(1, side + 1)[None], edges[1:, None])
    areas = np.clip(upper - np.maximum(np.arange(side)[None], edges[:-1, None]), 0, 1) / (side / PIXELS)
    return np.einsum("ip,npq,jq->nij", areas, images, areas, optimize=True)


def alphabets() -> list[np.ndarray]:
    """For each alphabet, and for each turned by 90 degrees, images (characters, drawers, pixels)."""
    with np.load(data_file("omniglot/omniglot_small1.npz")) as archive:
        images, alphabet, character, drawer = (archive[name] for name in ("images", "alphabet", "character", "drawer"))
    small = shrunk(images.astype(np.float32)).astype(np.float32)
    upright = []
    for a in range(len(NAMES)):
        chosen = np.flatnonzero(alphabet == a)
        chosen = chosen[np.lexsort((drawer[chosen], character[chosen]))]
        upright.append(small[chosen].reshape(-1, DRAWERS, PIXELS, PIXELS))
    both = upright + [np.rot90(part, axes=(2, 3)) for part in upright]
    return [np.ascontiguousarray(part).reshape(*part.shape[:2], -1) for part in both]


def drawn_by(images: list[np.ndarray], drawers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The images by these drawers and their labels, alphabet by alphabet."""
    return [
        (part[:, drawers].reshape(-1, PIXELS**2), np.repeat(np.arange(len(part), dtype=np.int32), len(drawers)))
        for part in images
    ]


def padded(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[Array, Array, Array]:
    """All alphabets at the size of the largest: images, labels, and 1 for what is an example."""
    most = max(len(y) for _, y in parts)
    x = np.stack([np.pad(x, ((0, most - len(x)), (0, 0))) for x, _ in parts])
    y = np.stack([np.pad(y, (0, most - len(y))) for _, y in parts])
    known = np.stack([np.arange(most) < len(y) for _, y in parts]).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(known)


class AllAlphabets(eqx.Module):
    """A minibatch of each alphabet at every step."""

    parts: list[hx.Minibatches]

    def __call__(self, t: Any) -> tuple[Array, Array]:
        batches = [part(t) for part in self.parts]
        return jnp.stack([x for x, _ in batches]), jnp.stack([y for _, y in batches])

    def reseeded(self, key: Array) -> "AllAlphabets":
        """The same examples in another order."""
        return AllAlphabets([part.reseeded(jax.random.fold_in(key, i)) for i, part in enumerate(self.parts)])


def minibatches(parts: list[tuple[np.ndarray, np.ndarray]]) -> AllAlphabets:
    return AllAlphabets([hx.Minibatches(part, BATCH, key=jax.random.key(i)) for i, part in enumerate(parts)])


def transforms(hyper: Any) -> Array:
    """M^l, (layers, tasks, tasks): the root of (1 - c_l) I + c_l 11ᵀ and deviations, the rows then of norm 1.

    The norms make M^l M^lᵀ a matrix of correlations: how large the weights are is left to the scales.
    """
    mixing = jax.vmap(root)(hyper["common"]) + hyper["own"]
    return mixing / jnp.linalg.norm(mixing, axis=-1, keepdims=True)


def root(logit: Array) -> Array:
    """The symmetric square root of (1 - c) I + c 11ᵀ, with a derivative that stays finite where c is near 1."""
    along = jnp.full((TASKS, TASKS), 1 / TASKS)
    rest = jnp.exp(jax.nn.log_sigmoid(-logit) / 2)
    return rest * (jnp.eye(TASKS) - along) + jnp.sqrt(1 + (TASKS - 1) * jax.nn.sigmoid(logit)) * along


def init(hyper: Any, key: Array) -> Any:
    keys = jax.random.split(key, LAYERS)
    return [
        {
            "w": jnp.exp(hyper["scales"][i]) * jax.random.normal(keys[i], (TASKS, a, b)) / np.float32(np.sqrt(a)),
            "b": jnp.zeros((TASKS, b)),
        }
        for i, (a, b) in enumerate(itertools.pairwise(SIZES))
    ]


def mixed(params: Any, hyper: Any) -> Any:
    """W_i = Σ_j M_ij V_j, biases too."""
    return [
        {name: jnp.tensordot(matrix, v, axes=1) for name, v in layer.items()}
        for layer, matrix in zip(params, transforms(hyper), strict=True)
    ]


def outputs(weights: Any, x: Array) -> Array:
    """x: (tasks, n, pixels)."""
    for layer in weights[:-1]:
        x = jnp.tanh(jnp.einsum("tnp,tpq->tnq", x, layer["w"]) + layer["b"][:, None])
    return jnp.einsum("tnp,tpq->tnq", x, weights[-1]["w"]) + weights[-1]["b"][:, None]


def judged(params: Any, hyper: Any, data: tuple[Array, Array, Array]) -> Array:
    """The mean cross-entropy over the examples of all alphabets; what only fills an alphabet up counts 0."""
    x, y, known = data
    each = optax.softmax_cross_entropy_with_integer_labels(outputs(mixed(params, hyper), x), y)
    return jnp.sum(each * known) / jnp.sum(known)


@eqx.filter_jit
def ends(params: Any, hyper: Any, data: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    """Loss, and the part that is classified wrongly."""
    x, y, known = data
    wrong = (outputs(mixed(params, hyper), x).argmax(-1) != y) * known
    return judged(params, hyper, data), jnp.sum(wrong) / jnp.sum(known)


def loss(params: Any, hyper: Any, batch: tuple[Array, Array]) -> Array:
    """The sum over alphabets of mean cross-entropies, and penalties of the unmixed weights."""
    x, y = batch
    penalty = sum(jnp.exp(hyper["penalties"][i]) * jnp.sum(layer["w"] ** 2) for i, layer in enumerate(params))
    return TASKS * judged(params, hyper, (x, y, jnp.ones(y.shape, jnp.float32))) + penalty


def optimizer(hyper: Any) -> hx.unroll.MomentumSGD:
    return hx.unroll.MomentumSGD(jnp.exp(hyper["rate"]), jnp.asarray(0.9, jnp.float32))


def start(correlations: tuple[float, ...]) -> dict[str, Array]:
    """From the correlation of all alphabets in each layer; 0 and 1 to seven digits."""
    c = np.clip(correlations, 1e-13, 1 - 1e-13)
    logits = np.log(c) - np.log1p(-c)
    return {
        "rate": jnp.zeros((), jnp.float32),
        "penalties": jnp.full(LAYERS, np.log(0.01), jnp.float32),
        "scales": jnp.asarray([-0.8, 0.4, 0.3], jnp.float32),
        "common": jnp.asarray(logits, jnp.float32),
        "own": jnp.zeros((LAYERS, TASKS, TASKS), jnp.float32),
    }
