"""Random inner and outer problems for tests: data of every conditioning, strengths of every shape."""

import dataclasses

import jax.numpy as jnp
import numpy as np

import hyprax as hx
import oracles

FAMILIES = {"softmax": hx.families.Softmax, "logistic": hx.families.Logistic, "squared": hx.families.Squared}


def select_penalty(hyper):
    """The one selector of all tests, so that problems of one shape share one compilation."""
    return hyper["penalty"]


@dataclasses.dataclass
class Problem:
    kind: str
    objective: hx.ImplicitObjective
    hyper: dict
    truth: oracles.Reference

    @property
    def grad(self) -> np.ndarray:
        """The exact hypergradient with respect to the log-strengths."""
        shape = self.hyper["penalty"].raw.shape
        wide = shape if self.kind == "softmax" or shape == () else (*shape, 1)
        return oracles.sum_to(self.truth.per_weight, wide).reshape(shape)

    def error(self, answer: hx.Hypergradient) -> float:
        difference = np.asarray(answer.grad["penalty"].raw).astype(oracles.LONG) - self.grad
        return float(np.sqrt(np.sum(difference**2)))


def shapes(kind: str, d: int, c: int) -> list[tuple[int, ...]]:
    """Strength shapes: one, a class, a feature, a weight; for a single output one, and a feature."""
    return [(), (c,), (d, 1), (d, c)] if kind == "softmax" else [(), (d,)]


def random_problem(
    rng: np.random.Generator,
    kind: str,
    shape_index: int,
    *,
    n: int = 40,
    d: int = 5,
    c: int = 3,
    smallest: float = 1e-6,
    **options,
) -> Problem:
    """Features of scales e^-3 to e, correlated, some doubled or zero; strengths log-uniform from `smallest` to 10."""
    mix = rng.normal(size=(d, d)) if rng.random() < 0.5 else np.eye(d)
    scales = np.exp(rng.uniform(-3, 1, d) * (rng.random() < 0.5))
    x, xv = (rng.normal(size=(m, d)) @ mix * scales for m in (n, n // 2))
    if rng.random() < 0.1:
        x[:, 0], xv[:, 0] = 0.0, 0.0
    elif rng.random() < 0.1:
        x[:, 1], xv[:, 1] = x[:, 0], xv[:, 0]
    if kind == "softmax":
        labels = np.concatenate([np.arange(c), rng.integers(0, c, n - c)])
        y, yv = labels, rng.integers(0, c, n // 2)
        family = FAMILIES[kind](x, y, penalty=select_penalty, classes=c)
    elif kind == "logistic":
        y = np.concatenate([[0, 1], rng.integers(0, 2, n - 2)]).astype(float)
        yv = rng.integers(0, 2, n // 2).astype(float)
        family = FAMILIES[kind](x, y, penalty=select_penalty)
    else:
        w = rng.normal(size=d)
        y, yv = x @ w + rng.normal(size=n), xv @ w + rng.normal(size=n // 2)
        family = FAMILIES[kind](x, y, penalty=select_penalty)
    shape = shapes(kind, d, c)[shape_index]
    low = rng.uniform(np.log(smallest), 0)
    strengths = np.exp(rng.uniform(low, min(low + rng.uniform(0, 6), np.log(10)), size=shape))
    leaf = hx.Positive(strengths)
    columns = c if kind == "softmax" else 1
    used = np.asarray(leaf.value)
    full = np.broadcast_to(used if kind == "softmax" or used.ndim == 0 else used[:, None], (d, columns))
    truth = oracles.reference(kind, x, y, xv, yv, np.array(full))
    outer_data = (jnp.asarray(xv), jnp.asarray(yv))
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer_data, **options)
    return Problem(kind, objective, {"penalty": leaf}, truth)
