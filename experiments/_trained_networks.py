"""Two networks with a hyperparameter inside, trained throughout: the losses that `tasks.trained_dual` is given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyprax import tasks


class NetworkLosses(NamedTuple):
    """`inner(params, α)`, `outer(params, α)`, and `init(key)`, which draws parameters to start from."""

    inner: Callable[[Any, Any], Any]
    outer: Callable[[Any, Any], Any]
    init: Callable[[Any], Any]


def activation_losses(
    task: tasks.Task, hidden: Sequence[int], o1: tasks.Activation, o2: tasks.Activation, *, penalty: float
) -> NetworkLosses:
    """`inner = (1/n) sum l(net(x_i)) + (penalty/2) ‖params‖^2`, `outer = (1/m) sum l(net(v_j))`, l the logistic loss.

    `net` has hidden layers of the widths in `hidden`, each with `sigma_α = α o1 + (1 - α) o2`. A task of one split and
    of labels -1 and +1.
    """
    (split,) = task.splits

    def loss(params: Any, hyper: Any, x: Any, y: Any) -> Any:
        for weight, bias in params[:-1]:
            z = x @ weight + bias
            x = hyper * _apply(o1, z) + (1 - hyper) * _apply(o2, z)
        return jnp.mean(jax.nn.softplus(-y * (x @ params[-1][0] + params[-1][1])))

    def inner(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, split.X, split.y) + _l2(params, penalty)

    def outer(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, split.X_val, split.y_val)

    return NetworkLosses(inner, outer, lambda key: _draw(key, [split.X.shape[1], *hidden, 1]))


def gcn_losses(
    distances: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    train: np.ndarray,
    validation: np.ndarray,
    edges: np.ndarray,
    *,
    hidden: int,
    penalty: float,
) -> NetworkLosses:
    """Cross entropy of `P softplus(P X W_1 + b_1) W_2 + b_2`, `P = D^-1/2 A(α) D^-1/2`: a two-layer GCN.

    `A_ij(α) = exp(-(d_ij/α)^2)` on the edges and on the diagonal. `inner` is the mean over the nodes of `train` plus
    `(penalty/2) ‖params‖^2`, `outer` the mean over those of `validation`.

    Source: Kipf and Welling (2017), arXiv 1609.02907.
    """
    support = edges | np.eye(len(distances), dtype=bool)
    classes, y = np.unique(labels, return_inverse=True)

    def loss(params: Any, hyper: Any, nodes: Any) -> Any:
        (w1, b1), (w2, b2) = params
        weights = jnp.where(support, jnp.exp(-((distances / hyper) ** 2)), 0.0)
        scale = jax.lax.rsqrt(jnp.sum(weights, axis=1))
        p = scale[:, None] * weights * scale[None, :]
        out = p @ (jax.nn.softplus(p @ (features @ w1) + b1) @ w2) + b2
        return -jnp.mean(jax.nn.log_softmax(out)[nodes, y[nodes]])

    def inner(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, train) + _l2(params, penalty)

    def outer(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, validation)

    return NetworkLosses(inner, outer, lambda key: _draw(key, [features.shape[1], hidden, len(classes)]))


def _l2(params: Any, penalty: float) -> Any:
    return 0.5 * penalty * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def _draw(key: Any, widths: Sequence[int]) -> list[tuple[Any, Any]]:
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (i, o)) * np.sqrt(2 / i).item(), jnp.zeros(o)) for k, i, o in pairs]


def _apply(activation: tasks.Activation, z: Any) -> Any:
    """The piecewise polynomial in JAX."""
    pieces = [sum(c * z**j for j, c in enumerate(cs)) + jnp.zeros_like(z) for cs in activation.coefficients]
    out = pieces[0]
    for point, piece in zip(activation.breakpoints, pieces[1:], strict=True):
        out = jnp.where(z >= point, piece, out)
    return out
