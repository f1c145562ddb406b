"""The peers of `benchmarks.unrolled`, in an interpreter that has PyTorch: a line of JSON asks, a line answers.

Plain PyTorch (`create_graph`), higher and TorchOpt differentiate the same steps from the same numbers: momentum .9
(Polyak), a learning rate for every step and the logarithm of a penalty for every array of weights.
"""

import importlib.util
import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn

from benchmarks import peak_memory

MOMENTUM = 0.9


class Dense(nn.Module):
    def __init__(self, arrays):
        super().__init__()
        self.arrays = nn.ParameterList([nn.Parameter(torch.from_numpy(a.copy())) for a in arrays])

    def forward(self, x):
        w1, b1, w2, b2 = self.arrays
        return torch.tanh(x @ w1 + b1) @ w2 + b2


class Convolutional(Dense):
    def forward(self, x):
        w1, w2, w3 = self.arrays
        x = torch.tanh(nn.functional.conv2d(x.reshape(-1, 1, 28, 28), w1, stride=2))
        x = torch.tanh(nn.functional.conv2d(x, w2, stride=2))
        return x.reshape(x.shape[0], -1) @ w3


class Pooled(Dense):
    def forward(self, x):
        w1, w2, w3 = self.arrays
        x = x.reshape(-1, 1, 28, 28)
        for w in (w1, w2):
            x = nn.functional.avg_pool2d(torch.tanh(nn.functional.conv2d(x, w, padding=1)), 2)
        return x.reshape(x.shape[0], -1) @ w3


def functional(net, arrays, x):
    names = [name for name, _ in net.named_parameters()]
    return torch.func.functional_call(net, dict(zip(names, arrays, strict=True)), (x,))


class Task:
    """One problem, from the arrays of `benchmarks.unrolled`."""

    def __init__(self, numbers):
        arrays = [numbers[f"w{i}"] for i in range(sum(name.startswith("w") for name in numbers))]
        self.net = {2: Dense, 3: Pooled, 5: Convolutional}[arrays[0].shape[-1] if arrays[0].ndim == 4 else 2](arrays)
        self.x, self.y, self.vx, self.vy, self.rows = (
            torch.from_numpy(numbers[name]) for name in ("x", "y", "vx", "vy", "rows")
        )
        self.rates, self.penalties = numbers["rates"], numbers["penalties"]

    def hyper(self):
        return (torch.from_numpy(a.copy()).requires_grad_() for a in (self.rates, self.penalties))

    def loss(self, outputs, arrays, penalties, t):
        strength = sum(torch.exp(p) * (a**2).sum() for p, a in zip(penalties, arrays, strict=True))
        return nn.functional.cross_entropy(outputs, self.y[self.rows[t]]) + strength

    def batch(self, t):
        return self.x[self.rows[t]]

    def end(self, outputs, rates, penalties):
        value = nn.functional.cross_entropy(outputs, self.vy)
        return value, torch.autograd.grad(value, (rates, penalties))

    def plain(self):
        rates, penalties = self.hyper()
        arrays = [a.detach().clone().requires_grad_() for a in self.net.parameters()]
        velocity = [torch.zeros_like(a) for a in arrays]
        for t in range(len(rates)):
            loss = self.loss(functional(self.net, arrays, self.batch(t)), arrays, penalties, t)
            grads = torch.autograd.grad(loss, arrays, create_graph=True)
            velocity = [MOMENTUM * v - g for v, g in zip(velocity, grads, strict=True)]
            arrays = [a + rates[t] * v for a, v in zip(arrays, velocity, strict=True)]
        return self.end(functional(self.net, arrays, self.vx), rates, penalties)

    def higher(self):
        import higher

        rates, penalties = self.hyper()
        optimiser = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=MOMENTUM)
        with higher.innerloop_ctx(self.net, optimiser) as (net, differentiable):
            for t in range(len(rates)):
                loss = self.loss(net(self.batch(t)), list(net.parameters()), penalties, t)
                differentiable.step(loss, override={"lr": [rates[t]]})
            return self.end(net(self.vx), rates, penalties)

    def torchopt(self):
        import torchopt

        rates, penalties = self.hyper()
        arrays = tuple(a.detach().clone().requires_grad_() for a in self.net.parameters())
        optimiser = torchopt.sgd(lr=1.0, momentum=MOMENTUM)
        state = optimiser.init(arrays)
        for t in range(len(rates)):
            loss = self.loss(functional(self.net, arrays, self.batch(t)), arrays, penalties, t)
            grads = torch.autograd.grad(loss, arrays, create_graph=True)
            updates, state = optimiser.update(grads, state, inplace=False)
            arrays = tuple(a + rates[t] * u for a, u in zip(arrays, updates, strict=True))
        return self.end(functional(self.net, arrays, self.vx), rates, penalties)


def main():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    names = ["plain", *(name for name in ("higher", "torchopt") if importlib.util.find_spec(name))]
    print(json.dumps({"torch": torch.__version__, "methods": names}), flush=True)
    task, loaded = None, None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["path"] != loaded:
            task, loaded = Task(np.load(asked["path"])), asked["path"]
        before = peak_memory.reset()
        began = time.process_time()
        value, grads = getattr(task, asked["method"])()
        seconds = time.process_time() - began
        answer = {"seconds": seconds, "memory": peak_memory.peak() - before, "value": value.item()}
        answer["rates"], answer["penalties"] = (g.tolist() for g in grads)
        del value, grads
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
