"""PyTorch's side of `evidence_grams`: run there by an interpreter that has PyTorch; prints seconds as JSON.

python benchmarks/evidence_grams_torch.py MODEL M all|one prior|input SECONDS
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

C = 10
RUN = 0.05


class Block(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.w1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.w2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.b1, self.b2 = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(()))
        self.short = nn.Conv2d(channels, width, 1, stride, bias=False) if channels != width else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        y = self.w1(torch.relu(z + self.b1))
        return self.w2(torch.relu(y + self.b2)) * self.scale + self.short(z)


class Mean(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.relu(z).mean((2, 3))


def build(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 100), nn.Tanh(), nn.Linear(100, C)), (784,)
    if name == "lenet":
        first = [nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2)]
        second = [nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()]
        head = [nn.Linear(400, 120, False), nn.Tanh(), nn.Linear(120, 84, False), nn.Tanh(), nn.Linear(84, C, False)]
        return nn.Sequential(*first, *second, *head), (1, 28, 28)
    widths = [16 * int(name.removeprefix("wrn-16-")) * 2**g for g in range(3)]
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1, bias=False)]
    channels = 16
    for g, width in enumerate(widths):
        for b in range(2):
            layers.append(Block(channels, width, 2 if g and not b else 1))
            channels = width
    return nn.Sequential(*layers, Mean(), nn.Linear(channels, C, False)), (3, 32, 32)


def dense(model: nn.Module, inputs: torch.Tensor, cotangents: torch.Tensor, with_input: bool) -> Callable[[], None]:
    """log |I + K| and its gradient in the log precisions, and with `with_input` in an offset of every input."""
    params = {name: w.detach() for name, w in model.named_parameters()}
    logs = torch.tensor([float(w.numel()) for w in params.values()]).log().requires_grad_()
    offset = torch.zeros(inputs.shape[1:]).requires_grad_(with_input)

    def rows(x: torch.Tensor, c: torch.Tensor) -> dict[str, torch.Tensor]:
        _, pull = vjp(lambda p: functional_call(model, p, (x[None],))[0], params)
        return vmap(lambda one: pull(one)[0])(c)

    def run() -> None:
        n = cotangents.shape[0] * cotangents.shape[1]
        jacobians = [j.reshape(n, -1) for j in vmap(rows)(inputs + offset, cotangents).values()]
        k = sum(torch.exp(-log) * (j @ j.T) for log, j in zip(logs, jacobians, strict=True))
        value = 2 * torch.linalg.cholesky(torch.eye(n) + k).diagonal().log().sum()
        torch.autograd.grad(value, (logs, offset) if with_input else logs)

    return run


def kfac(model: nn.Module, inputs: torch.Tensor) -> Callable[[], None]:
    """laplace-torch's marginal likelihood with KFAC, and its gradient in one log precision a tensor."""
    from laplace import Laplace

    data = torch.utils.data.TensorDataset(inputs, torch.arange(len(inputs)) % C)
    loader = torch.utils.data.DataLoader(data, batch_size=len(inputs))
    logs = torch.zeros(len(list(model.parameters()))).requires_grad_()

    def run() -> None:
        approximation = Laplace(model, "classification", subset_of_weights="all", hessian_structure="kron")
        approximation.fit(loader)
        torch.autograd.grad(approximation.log_marginal_likelihood(prior_precision=torch.exp(logs)), logs)

    return run


def seconds(run: Callable[[], None], limit: float) -> float:
    """Of one call: the least of rounds of a twentieth of a second at least."""
    run()
    times: list[float] = []
    start = time.process_time()
    for _ in range(200):
        before, calls = time.process_time(), 0
        while not calls or time.process_time() - before < RUN:
            run()
            calls += 1
        times.append((time.process_time() - before) / calls)
        if time.process_time() - start > limit:
            break
    return min(times)


def main() -> None:
    name, m, outputs, gradient, limit = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
    r, with_input = {"all": C, "one": 1}[outputs], {"input": True, "prior": False}[gradient]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, shape = build(name)
    inputs = torch.randn(m, *shape)
    found = {"torch": seconds(dense(model, inputs, torch.randn(m, r, C), with_input), limit)}
    if r == C and name in ("mlp", "lenet") and not with_input:
        with contextlib.suppress(ImportError):
            found["kfac"] = seconds(kfac(model, inputs), limit)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
