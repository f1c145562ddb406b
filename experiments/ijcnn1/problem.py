"""ijcnn1: logistic regression with a penalty for each feature, and the outer loss at exact optima."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from experiments._common import data_file

import hyprax as hx

TRAIN = 35_000
START = 1.0
"""The strength that every penalty starts from."""


def select(hyper):
    """The strengths."""
    return hyper["penalty"]


@functools.cache
def arrays(rows: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and validation parts: LIBSVM's own, contiguous in time; of each the first `rows`."""
    with np.load(data_file("libsvm/ijcnn1.npz")) as file:
        x, y = file["X"].astype(np.float64), (file["y"] > 0).astype(np.float64)
    return (x[:TRAIN][:rows], y[:TRAIN][:rows]), (x[TRAIN:][:rows], y[TRAIN:][:rows])


@dataclasses.dataclass(frozen=True)
class Ijcnn1:
    """The problem, and how passes over single examples are counted."""

    rows: int = TRAIN

    @property
    def train(self) -> tuple[np.ndarray, np.ndarray]:
        return arrays(self.rows)[0]

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        return arrays(self.rows)[1]

    @property
    def parts(self) -> tuple:
        """What every objective of the library is made of."""
        family = hx.families.Logistic(*self.train, penalty=select)
        return hx.Optimum(family), family.mean_loss, tuple(map(jnp.asarray, self.validation))

    @property
    def start(self) -> dict:
        return {"penalty": hx.Positive(np.full(self.train[0].shape[1], START))}

    def passes(self, products: float, outer: float) -> float:
        """Examples visited by so many derivatives of the whole inner, and of the whole outer loss."""
        return products * len(self.train[1]) + outer * len(self.validation[1])


class Judge:
    """F at given log-strengths, each solved to a gradient norm of 1e-10 from the last; infinite where there is none."""

    def __init__(self, problem: Ijcnn1):
        self.objective = hx.ImplicitObjective(*problem.parts, certifier=hx.implicit.NoCertifier())
        self.problem, self.state = problem, None

    def __call__(self, raw: np.ndarray) -> float:
        strengths = np.exp(raw)
        if not np.all(np.isfinite(strengths) & (strengths > 1e-300)):
            return np.inf  # the method has diverged
        hyper = {"penalty": hx.Positive(strengths)}
        if self.state is None:
            self.state = self.objective.init(hyper)
        tight = hx.Accuracy(jnp.asarray(1e-10), jnp.asarray(1e-10))
        value, self.state = self.objective.value(hyper, self.state, tight)
        return float(value.value) if bool(value.result == hx.RESULTS.successful) else np.inf
