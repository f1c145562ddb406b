"""Hypergradients of whole, short and cut trainings, and what they are good for."""

import functools
import time
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from experiments._transformer import logits, mean_loss, row_losses
from scipy.stats import spearmanr

import hyprax as hx

from .problem import KINDS, Problem

STEP = 0.3
"""Of what is acted on: the root mean square of a move."""
LENGTHS = (0.03, 0.3, 1.0)
"""Of steps of the weights along a hypergradient, from 1 each; below the first, single precision is all that is seen."""
DAMPINGS = (1e-3, 1e-2, 1e-1, 1.0)
SAMPLE, PRODUCTS = 256, 30
"""Of influence functions: rows of the curvature, and products with it."""


def gradient(problem: Problem, kind: str, steps: int) -> dict[str, Any]:
    """The hypergradient of a training of so many steps ("short"), or of the whole one, of whose steps only the last so
    many are differentiated ("cut"). The whole one is both."""
    whole = problem.size.steps
    if kind == "short" or steps == whole:
        objective = problem.objective(steps, hx.unroll.Reversible())
    else:
        objective = problem.objective(whole, hx.unroll.Truncated(steps))
    began = time.process_time()
    answer = jax.block_until_ready(hx.hypergradient(objective, problem.start())[0])
    return {
        "gradient": {name: np.asarray(answer.grad[name]).tolist() for name in KINDS},
        "value": float(answer.value),
        "certificate": str(answer.certificate),
        "seconds": time.process_time() - began,
    }


def move(kind: str, grad: np.ndarray) -> np.ndarray:
    """Against the gradient, `STEP` long in the root mean square; weights keep their mean, which Adam does not see."""
    grad = grad - grad.mean() if kind == "weights" else grad
    length = float(np.sqrt(np.mean(grad**2)))
    return -STEP * grad / length if length > 0 else np.zeros_like(grad)


def acted(problem: Problem, grads: dict[str, np.ndarray], kinds: tuple[str, ...]) -> dict[str, float]:
    """Train whole after a move of these hyperparameters; no file counts less than 0."""
    hyper = problem.start()
    for kind in kinds:
        hyper[kind] = (hyper[kind] + move(kind, grads[kind])).astype(np.float32)
    hyper["weights"] = np.maximum(hyper["weights"], np.float32(0))
    return problem.losses(hyper)


def difference(problem: Problem, grad: np.ndarray, length: float) -> float:
    """The central difference of the validation loss along a hypergradient in the weights, their mean kept."""
    direction, ends = uphill(grad), []
    for sign in (1, -1):
        hyper = problem.start()
        hyper["weights"] = (hyper["weights"] + sign * length * direction).astype(np.float32)
        ends.append(problem.losses(hyper)["validation"])
    return (ends[0] - ends[1]) / (2 * length)


def slope(grad: np.ndarray, along: np.ndarray) -> float:
    """What the hypergradient `grad` says of that difference, along another."""
    return float(uphill(along) @ grad)


def uphill(grad: np.ndarray) -> np.ndarray:
    """The direction of a hypergradient in the weights, of length 1, their mean taken off."""
    direction = -move("weights", grad)
    return direction / np.linalg.norm(direction)


def subset(problem: Problem, number: int) -> dict[str, Any]:
    """Train whole on a random half of the files, each of which counts twice."""
    chosen = np.random.default_rng(number).permutation(problem.files)[: problem.files // 2]
    hyper = problem.start()
    hyper["weights"] = np.zeros_like(hyper["weights"])
    hyper["weights"][chosen] = 2
    return {"files": sorted(chosen.tolist()), **problem.losses(hyper)}


def datamodelling_score(scores: np.ndarray, subsets: list[dict[str, Any]]) -> float:
    """Rank correlation of the sum of the scores of the files trained on with the validation loss that came of it."""
    sums = [float(np.sum(scores[row["files"]])) for row in subsets]
    return rank_correlation(np.asarray(sums), np.asarray([row["validation"] for row in subsets]))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; 0 where one of them is constant, and says nothing."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.asarray(spearmanr(a, b))[0])


def metasmoothness(problem: Problem, steps: int, grad: np.ndarray) -> float:
    """Of the trained weights along the move of the files' weights, at half of it and at the whole."""
    direction = {name: jnp.zeros_like(jnp.asarray(x)) for name, x in problem.start().items()}
    direction["weights"] = jnp.asarray(move("weights", grad), jnp.float32)
    length = float(jnp.linalg.norm(direction["weights"]))
    objective = problem.objective(steps, hx.unroll.StoreAll())
    return float(objective.metasmoothness(problem.start(), direction, 0.5 * length))


def influence(problem: Problem, damping: float) -> np.ndarray:
    """-∇F(w)ᵀ (G + δ I)⁻¹ ∇L_g(w) / files for each file g, w at the end of training.

    L_g is the mean loss of its rows, G the generalised Gauss-Newton matrix of a sample of all rows; by conjugate
    gradients (Koh and Liang 2017, arXiv 1703.04730).
    """
    params = problem.trained.report(problem.start()).params
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    sample = np.random.default_rng(0).permutation(len(problem.train))[:SAMPLE]
    rows = jnp.asarray(problem.train[sample]).astype(jnp.int32)

    def outputs(w: Any) -> Any:
        return logits(problem.size, unravel(w), rows)

    @jax.jit
    def product(v: Any) -> Any:
        f, moved = jax.jvp(outputs, (flat,), (v,))
        p = jax.nn.softmax(f)
        curved = p * (moved - jnp.sum(p * moved, axis=-1, keepdims=True)) / (f.shape[0] * f.shape[1])
        return jax.vjp(outputs, flat)[1](curved)[0] + np.float32(damping) * v

    loss = functools.partial(mean_loss, problem.size)
    outer = jax.grad(lambda w: loss(unravel(w), jnp.asarray(problem.validation)))(flat)
    solved = jax.scipy.sparse.linalg.cg(product, outer, maxiter=PRODUCTS)[0]
    along = jax.jit(lambda rows: jax.jvp(lambda w: row_losses(problem.size, unravel(w), rows), (flat,), (solved,))[1])
    by_file = [float(jnp.mean(along(problem.train[problem.group == g]))) for g in range(problem.files)]
    return -np.asarray(by_file) / problem.files
