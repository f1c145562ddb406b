"""The training runs: a tanh network on MNIST, by momentum as published or by AdamW, and how ends of runs are judged."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from experiments._mnist import Examples, Params, drawn, error, nll
from jax import Array

import hyprax as hx

SIZES = (784, 50, 50, 50, 10)
BATCH = 200
LAYERS = len(SIZES) - 1
RATE, SCALE = float(np.exp(-1.0)), float(np.exp(-3.0))


def groups(leaf: Any) -> list[dict[str, Any]]:
    """`leaf` for the weights and for the biases of every layer: eight groups."""
    return [{"w": leaf, "b": leaf} for _ in range(LAYERS)]


def full(steps: int, value: float) -> np.ndarray:
    return np.full(steps, value, np.float32)


def momentum_schedules(steps: int, momentum: float) -> dict[str, Any]:
    """16 T + 8 hyperparameters: rates and momenta of every step and group, and eight scales of initial weights."""
    return {
        "rate": groups(hx.Positive(full(steps, RATE))),
        "momentum": groups(hx.Interval(full(steps, momentum), 0, 1)),
        "scale": groups(hx.Positive(np.float32(SCALE))),
    }


def adamw_schedules(steps: int) -> dict[str, Any]:
    """16 T + 24 hyperparameters: rates and β1 of every step and group; β2, decay and initial scale of every group."""
    return {
        "rate": groups(hx.Positive(full(steps, 1e-3))),
        "beta1": groups(hx.Interval(full(steps, 0.9), 0, 1)),
        "beta2": groups(hx.Interval(np.float32(0.999), 0, 1)),
        "decay": groups(hx.Positive(np.float32(0.01))),
        "scale": groups(hx.Positive(np.float32(SCALE))),
    }


def scalars(rate: float, momentum: float, scale: float) -> dict[str, Any]:
    """The three hyperparameters that the search without gradients moves."""
    plain = {"rate": rate, "momentum": momentum, "scale": scale}
    return {name: jnp.asarray(value, jnp.float32) for name, value in plain.items()}


def init(hyper: dict[str, Any], key: Array) -> Params:
    scale = hyper["scale"]
    return drawn(SIZES, scale if isinstance(scale, list) else groups(scale), key)


def loss(params: Params, hyper: Any, data: Examples) -> Array:
    return nll(params, data)


def by_step(value: Any) -> Any:
    """Schedules where there is one entry a step."""
    return jax.tree.map(lambda leaf: hx.unroll.Schedule(leaf) if jnp.ndim(leaf) else leaf, value)


def by_momentum(hyper: dict[str, Any]) -> hx.unroll.MomentumSGD:
    return hx.unroll.MomentumSGD(by_step(hyper["rate"]), by_step(hyper["momentum"]))


def by_adamw(hyper: dict[str, Any]) -> hx.unroll.AdamW:
    rate, beta1 = by_step(hyper["rate"]), by_step(hyper["beta1"])
    return hx.unroll.AdamW(rate, beta1, hyper["beta2"], weight_decay=hyper["decay"])


def objective(
    data: dict[str, Examples], optimizer: Any, steps: int, judged_on: str, mode: Any, seed: int
) -> hx.UnrolledObjective:
    """The loss on `judged_on` after training, with new initial weights and a new order of the examples every time."""
    batches = hx.Minibatches(data["train"], BATCH, key=jax.random.key(0))
    training = hx.Training(loss, init, optimizer, batches, steps)
    return hx.UnrolledObjective(training, loss, data[judged_on], key=jax.random.key(seed), mode=mode, resample=True)


@dataclasses.dataclass(frozen=True)
class Ends:
    """Runs with fresh seeds, judged: arrays over the seeds."""

    train_loss: np.ndarray
    validation_loss: np.ndarray
    test_loss: np.ndarray
    test_error: np.ndarray

    def row(self) -> str:
        """Cells of a table: means and standard deviations over the seeds."""
        cells = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in (self.train_loss, self.test_loss)]
        return " | ".join([*cells, f"{100 * self.test_error.mean():.2f} ± {100 * self.test_error.std(ddof=1):.2f} %"])


@eqx.filter_jit
def _judge(params: Params, data: dict[str, Examples]) -> tuple[Array, ...]:
    return (*(nll(params, data[name]) for name in ("train", "validation", "test")), error(params, data["test"]))


def ends(objective: hx.UnrolledObjective, hyper: Any, data: dict[str, Examples], seeds: int) -> Ends:
    """Trainings with seeds that no search has seen."""
    state, rows = objective.init(hyper), []
    for seed in range(seeds):
        fresh = eqx.tree_at(lambda s: s.evaluations, state, jnp.asarray(1_000_000 + seed, jnp.int32))
        rows.append([float(x) for x in _judge(objective.report(hyper, fresh).params, data)])
    return Ends(*np.asarray(rows).T)
