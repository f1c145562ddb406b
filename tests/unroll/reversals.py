"""Trainings with optimisers that can be undone, and their hypergradients through a Python loop: nothing shared."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hyprax as hx
from trainings import Problem, make_problem


def hyperparameters(steps: int, dtype: Any, seed: int) -> dict[str, Any]:
    """Schedules per step and group, and scalars."""
    rng = np.random.default_rng(seed)

    def array(x: Any) -> jax.Array:
        return jnp.asarray(x, dtype)

    return {
        "rate": {"in": array(rng.uniform(0.02, 0.1, steps)), "out": array(rng.uniform(0.02, 0.1, steps))},
        "momentum": array(rng.uniform(0.5, 0.95, steps)),
        "beta2": {"in": array(0.99), "out": {"w": array(0.98), "b": array(rng.uniform(0.9, 0.99, steps))}},
        "eps": array(1e-3),
        "weight_decay": {"in": array(0.3), "out": array(0.05)},
    }


USED = {
    "adam": ("rate", "momentum", "beta2", "eps"),
    "adamw": ("rate", "momentum", "beta2", "eps", "weight_decay"),
}
"""The hyperparameters of each optimizer; of all others, the first two."""


def said(x: Any) -> Any:
    """Schedules where there is one entry a step."""
    return jax.tree.map(lambda leaf: hx.unroll.Schedule(leaf) if leaf.ndim else leaf, x)


def build(name: str, o: Any, **settings: Any) -> hx.unroll.AbstractOptimizer:
    o = {key: said(value) for key, value in o.items()}
    if name in ("paper", "polyak", "nesterov"):
        return hx.unroll.MomentumSGD(o["rate"], o["momentum"], form=name, **settings)
    if name == "adam":
        return hx.unroll.Adam(o["rate"], o["momentum"], o["beta2"], o["eps"], **settings)
    return hx.unroll.AdamW(o["rate"], o["momentum"], o["beta2"], o["eps"], o["weight_decay"], **settings)


def make(
    name: str,
    model: str = "mlp",
    *,
    seed: int = 0,
    steps: int = 6,
    dropout: bool = False,
    dtype: Any = jnp.float64,
    fixed: dict[str, Any] | None = None,
    **settings: Any,
) -> Problem:
    """`fixed` replaces hyperparameters of the optimiser; `settings` go to it."""
    problem = make_problem(model, "sgd", seed, steps=steps, dropout=dropout, dtype=dtype)
    own = {**hyperparameters(steps, dtype, seed), **(fixed or {})}
    own = {key: own[key] for key in USED.get(name, ("rate", "momentum"))}
    hyper = {k: problem.hyper[k] for k in ("scale", "penalty", "weights")} | {"optimizer": own}
    training = eqx.tree_at(
        lambda t: t.optimizer, problem.training, lambda hyper: build(name, hyper["optimizer"], **settings)
    )
    return dataclasses.replace(problem, training=training, hyper=hyper)


def entry(tree: Any, path: tuple[str, str], t: int) -> Any:
    """The scalar of step t for one leaf of the weights."""
    for key in path:
        tree = tree[key] if isinstance(tree, dict) else tree
    return tree[t] if tree.ndim else tree


def oracle(problem: Problem, name: str) -> tuple[Any, Any]:
    """F and dF/dλ: `jax.grad` through a Python loop, leaf by leaf, from the formulas."""
    training = problem.training
    slope = jax.jit(jax.grad(training.loss))

    def value(hyper: Any) -> Any:
        init_key, step_key = jax.random.split(problem.key)
        tree = training.init(hyper, init_key)
        leaves = {(a, b): tree[a][b] for a in tree for b in tree[a]}
        first = {path: jnp.zeros_like(leaf) for path, leaf in leaves.items()}
        second, p1, p2 = dict(first), dict.fromkeys(leaves, 1.0), dict.fromkeys(leaves, 1.0)
        for t in range(training.steps):
            tree = {a: {b: leaves[a, b] for b in tree[a]} for a in tree}
            extra = (jax.random.fold_in(step_key, t),) if training.keyed else ()
            grads = slope(tree, hyper, training.batches(t), *extra)
            for path in leaves:
                o = {k: entry(v, path, t) for k, v in hyper["optimizer"].items()}
                g, w = grads[path[0]][path[1]], leaves[path]
                if name in ("paper", "polyak", "nesterov"):
                    gain = 1 - o["momentum"] if name == "paper" else 1.0
                    first[path] = o["momentum"] * first[path] - gain * g
                    move = o["momentum"] * first[path] - g if name == "nesterov" else first[path]
                    leaves[path] = w + o["rate"] * move
                    continue
                first[path] = o["momentum"] * first[path] + (1 - o["momentum"]) * g
                second[path] = o["beta2"] * second[path] + (1 - o["beta2"]) * g**2
                p1[path], p2[path] = p1[path] * o["momentum"], p2[path] * o["beta2"]
                ratio = first[path] / (1 - p1[path]) / (jnp.sqrt(second[path] / (1 - p2[path])) + o["eps"])
                decay = o["weight_decay"] if name == "adamw" else 0.0
                leaves[path] = w - o["rate"] * (ratio + decay * w)
        return problem.outer_loss({a: {b: leaves[a, b] for b in tree[a]} for a in tree}, hyper, problem.outer_data)

    return jax.jit(jax.value_and_grad(value))(problem.hyper)
