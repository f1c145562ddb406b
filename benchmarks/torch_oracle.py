"""A loss that stays in torch, through 200 steps: `hyprax.torch.oracle` beside torch's own graph of the whole run.

Time and peak memory of one hypergradient, in the 200 learning rates and a penalty, of a CNN on 8 x 8 images; and how
far the answers are apart, relative to the largest entry. Run: python -m benchmarks.torch_oracle [steps]
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

import hyprax as hx
from benchmarks import peak_memory
from hyprax.torch import oracle

BATCH, RATE, MOMENTUM = 64, 0.05, 0.9


def cnn():
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 10)),
    )


def loss_of(module):
    def loss(params, hyper, batch):
        scores = torch.func.functional_call(module, params, (batch[0],))
        decay = torch.exp(hyper["decay"]) * sum((w**2).sum() for w in params.values())
        return nn.functional.cross_entropy(scores, batch[1]) + decay

    return loss


def by_graph(module, loss, data, steps):
    """Torch alone: `create_graph` keeps every step."""
    x, y = (torch.from_numpy(a) for a in data)
    rates = torch.full((steps,), RATE, requires_grad=True)
    decay = torch.tensor(-7.0, requires_grad=True)
    weights = {name: w.detach().clone().requires_grad_() for name, w in module.named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for t in range(steps):
        rows = slice(t % 4 * BATCH, (t % 4 + 1) * BATCH)
        value = loss(weights, {"decay": decay}, (x[rows], y[rows]))
        grads = torch.autograd.grad(value, list(weights.values()), create_graph=True)
        velocity = {name: MOMENTUM * velocity[name] + g for name, g in zip(weights, grads, strict=True)}
        weights = {name: w - rates[t] * velocity[name] for name, w in weights.items()}
    return [g.numpy() for g in torch.autograd.grad(loss(weights, {"decay": decay}, (x, y)), (rates, decay))]


def by_oracle(module, loss, data, steps, mode):
    x, y = map(jnp.asarray, data)
    start = {name: jnp.asarray(w.detach().numpy().copy()) for name, w in module.named_parameters()}
    training = hx.Training(
        oracle(loss),
        init=lambda hyper, key: start,
        optimizer=lambda hyper: hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["rate"]), MOMENTUM, form="polyak"),
        batches=lambda t: tuple(jax.lax.dynamic_slice_in_dim(a, t % 4 * BATCH, BATCH) for a in (x, y)),
        steps=steps,
    )
    objective = hx.UnrolledObjective(training, training.loss, (x, y), mode=mode, key=jax.random.key(0))
    hyper = {"rate": jnp.full(steps, RATE), "decay": jnp.asarray(-7.0)}

    def run():
        answer = hx.hypergradient(objective, hyper)[0]
        return [np.asarray(answer.grad[name]) for name in ("rate", "decay")]

    return run


def measured(run):
    run()  # compiles, and fills caches
    before, start = peak_memory.reset(), time.perf_counter()
    grads = run()
    return grads, time.perf_counter() - start, (peak_memory.peak() - before) / 2**20


def main(steps):
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4 * BATCH, 1, 8, 8)).astype("float32"), rng.integers(0, 10, 4 * BATCH)
    module = cnn()
    loss = loss_of(module)
    runs = {
        "torch's graph": lambda: by_graph(module, loss, data, steps),
        "oracle, Checkpointed": by_oracle(module, loss, data, steps, hx.unroll.Checkpointed()),
        "oracle, Reversible": by_oracle(module, loss, data, steps, hx.unroll.Reversible()),
    }
    print(f"{steps} steps\n\n| way | seconds | peak MiB | apart |\n| --- | --- | --- | --- |")
    theirs = None
    for name, run in runs.items():
        grads, seconds, mebibytes = measured(run)
        theirs = grads if theirs is None else theirs
        apart = max(np.max(np.abs(a - b)) for a, b in zip(grads, theirs, strict=True)) / max(
            map(np.max, map(abs, theirs))
        )
        print(f"| {name} | {seconds:.1f} | {mebibytes:.0f} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 200)
