"""Training and validation losses of the two networks with a hyperparameter inside: what `trained_dual` is given."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._activation import Activation
from ._kernel import GaussianKernel, PolynomialKernel
from ._margins import classes_of
from ._task import Task


class NetworkLosses(NamedTuple):
    """`inner(params, α)`, `outer(params, α)`, and `init(key)`, which draws parameters to start from."""

    inner: Callable[[Any, Any], Any]
    outer: Callable[[Any, Any], Any]
    init: Callable[[Any], Any]


def activation_losses(
    task: Task, hidden: Sequence[int], o1: Activation, o2: Activation, *, penalty: float
) -> NetworkLosses:
    r"""`inner = (1/n) sum l(net(x_i)) + (penalty/2) ‖params‖^2`, `outer = (1/m) sum l(net(v_j))`, trained throughout.

    `net` has hidden layers of the widths in `hidden`, each with `sigma_α = α o1 + (1 - α) o2`. l is the
    logistic loss for targets -1 and +1, the cross entropy for one-hot rows, half the squared error otherwise. A task of
    one split.
    """
    if len(task.splits) != 1:
        raise ValueError(f"activation_losses takes a task of one split; got {len(task.splits)}.")
    _check_penalty(penalty)
    split = task.splits[0]
    widths = [split.X.shape[1], *hidden, split.y.shape[1]]
    classifies = classes_of(np.concatenate([split.y, split.y_val])) is not None

    def net(params: Any, hyper: Any, x: Any) -> Any:
        for weight, bias in params[:-1]:
            z = x @ weight + bias[None]
            x = hyper * _apply(o1, z) + (1 - hyper) * _apply(o2, z)
        return x @ params[-1][0] + params[-1][1][None]

    def loss(params: Any, hyper: Any, x: Any, y: Any) -> Any:
        dtype = params[0][0].dtype
        out, y = net(params, hyper, jnp.asarray(x, dtype)), jnp.asarray(y, dtype)
        if not classifies:
            return 0.5 * jnp.mean(jnp.sum((out - y) ** 2, axis=1))
        if y.shape[1] == 1:
            return jnp.mean(jax.nn.softplus(-y * out))
        return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(out), axis=1))

    def inner(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, split.X, split.y) + _l2(params, penalty)

    def outer(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, split.X_val, split.y_val)

    return NetworkLosses(inner, outer, lambda key: _draw(key, widths))


def gcn_losses(
    distances: Any,
    features: Any,
    labels: Any,
    train: Any,
    validation: Any,
    kernel: PolynomialKernel | GaussianKernel,
    *,
    hidden: int,
    penalty: float,
    edges: Any = None,
    activation: Callable[[Any], Any] = jax.nn.relu,
) -> NetworkLosses:
    r"""Cross entropy of `P activation(P X W_1 + b_1) W_2 + b_2`, `P = D^-1/2 A(α) D^-1/2`: a two-layer GCN, trained
    throughout.

    `A_ij(α)` is the kernel on the edges (all pairs by default) and on the diagonal. `labels` (N,) integers; `inner`
    is the mean over `train` plus `(penalty/2) ‖params‖^2`, `outer` the mean over `validation`.

    Source: Kipf and Welling (2017), arXiv 1609.02907.
    """
    _check_penalty(penalty)
    d, x = np.asarray(distances, dtype=np.float64), np.asarray(features, dtype=np.float64)
    support = np.ones(d.shape, dtype=bool) if edges is None else np.asarray(edges).astype(bool)
    support = support | np.eye(len(d), dtype=bool)
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"gcn_losses needs at least two classes; got {len(classes)}.")
    fit, scored = np.asarray(train), np.asarray(validation)

    def logits(params: Any, hyper: Any) -> Any:
        (w1, b1), (w2, b2) = params
        span = jnp.asarray(d, w1.dtype)
        weights = (
            (span + hyper) ** kernel.degree if isinstance(kernel, PolynomialKernel) else jnp.exp(-((span / hyper) ** 2))
        )
        weights = jnp.where(jnp.asarray(support), weights, 0.0)
        scale = jax.lax.rsqrt(jnp.sum(weights, axis=1))
        p = scale[:, None] * weights * scale[None, :]
        h = activation(p @ (jnp.asarray(x, w1.dtype) @ w1) + b1[None])
        return p @ (h @ w2) + b2[None]

    def loss(params: Any, hyper: Any, nodes: Any) -> Any:
        return -jnp.mean(jax.nn.log_softmax(logits(params, hyper))[nodes, y[nodes]])

    def inner(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, fit) + _l2(params, penalty)

    def outer(params: Any, hyper: Any) -> Any:
        return loss(params, hyper, scored)

    return NetworkLosses(inner, outer, lambda key: _draw(key, [x.shape[1], hidden, len(classes)]))


def _check_penalty(penalty: float) -> None:
    if not penalty > 0:
        raise ValueError(f"penalty must be positive, so that minima are isolated; got {penalty}.")


def _l2(params: Any, penalty: float) -> Any:
    return 0.5 * penalty * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def _draw(key: Any, widths: Sequence[int]) -> list[tuple[Any, Any]]:
    keys = jax.random.split(key, len(widths) - 1)
    pairs = zip(keys, widths[:-1], widths[1:], strict=True)
    return [(jax.random.normal(k, (i, o)) * np.sqrt(2 / i).item(), jnp.zeros(o)) for k, i, o in pairs]


def _apply(activation: Activation, z: Any) -> Any:
    """The piecewise polynomial in JAX."""
    pieces = [sum(c * z**j for j, c in enumerate(cs)) + jnp.zeros_like(z) for cs in activation.coefficients]
    out = pieces[0]
    for point, piece in zip(activation.breakpoints, pieces[1:], strict=True):
        out = jnp.where(z >= point, piece, out)
    return out
