"""Dense float64 references: Jacobians row by row, curvatures in NumPy; no code of the package."""

import jax
import jax.numpy as jnp
import numpy as np


def softmax(f: np.ndarray) -> np.ndarray:
    e = np.exp(f - f.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def curvature(kind: str, f: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Λ [N, C, C]."""
    if kind == "categorical":
        p = softmax(f)
        return np.einsum("nc,cd->ncd", p, np.eye(f.shape[1])) - np.einsum("nc,nd->ncd", p, p)
    diagonal = {
        "gaussian": np.full_like(f, scale**-2),
        "bernoulli": np.exp(f) / (1 + np.exp(f)) ** 2,
        "poisson": np.exp(f),
    }[kind]
    return np.einsum("nc,cd->ncd", diagonal, np.eye(f.shape[1]))


def jacobian(apply, params, hyper, x) -> jax.Array:
    """J [N, C, P], the leaves of the weights side by side."""
    one = jax.vmap(lambda z: jax.jacrev(lambda p: apply(p, hyper, z))(params))(x)
    leaves = jax.tree.leaves(one)
    return jnp.concatenate([leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=2)


def log_determinant(apply, params, hyper, x, root, variances, temperature) -> jax.Array:
    """log|I + H P0⁻¹| with H = (1/T) Σ Jᵀ L Lᵀ J, from the weights' side; `root` [N, C, C] or a function of f."""
    j = jacobian(apply, params, hyper, x)
    if callable(root):
        root = root(jax.vmap(lambda z: apply(params, hyper, z))(x))
    rows = jnp.einsum("ncp,ncr->nrp", j, root).reshape(-1, j.shape[2])
    h = rows.T @ rows / temperature
    flat = jnp.concatenate(
        [jnp.broadcast_to(v, w.shape).ravel() for v, w in zip(variances, jax.tree.leaves(params), strict=True)]
    )
    return jnp.linalg.slogdet(jnp.eye(h.shape[0]) + h * flat[None, :])[1]


def square_root(matrices: np.ndarray) -> np.ndarray:
    """The symmetric square root of each."""
    values, vectors = np.linalg.eigh(matrices)
    return np.einsum("nij,nj,nkj->nik", vectors, np.sqrt(np.maximum(values, 0)), vectors)
