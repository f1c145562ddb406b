"""The methods in PyTorch, run in workers of its environment: training runs, and evidence."""

import torch
from torch import nn
from torch.func import functional_call, vjp, vmap

NAMES = ("b", "c", "v", "w")


def unrolled(data, how):
    from benchmarks import unrolled_torch

    torch.set_num_threads(1)
    method = getattr(unrolled_torch.Task(data), how)

    def run():
        value, (rates, penalties) = method()
        return {"value": value.detach(), "rates": rates, "penalties": penalties}

    return run


class Perceptron(nn.Module):
    """The parameters have the order of `NAMES`."""

    def __init__(self, data):
        super().__init__()
        self.b, self.c, self.v, self.w = (nn.Parameter(torch.from_numpy(data[name].copy())) for name in NAMES)

    def forward(self, x):
        return torch.tanh(x @ self.w + self.b) @ self.v + self.c


def _given(data):
    torch.set_num_threads(1)
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"]).long()
    return x, y, torch.from_numpy(data["logs"].copy()).requires_grad_()


def dense(data):
    """Jacobians of all outputs by vmap(vjp), their kernel, and autograd's derivative of a Cholesky factor."""
    x, y, logs = _given(data)
    model = Perceptron(data)
    params = {name: w.detach() for name, w in model.named_parameters()}

    def rows(row, directions):
        _, pull = vjp(lambda p: functional_call(model, p, (row[None],))[0], params)
        return vmap(lambda one: pull(one)[0])(directions)

    def run():
        with torch.no_grad():
            outputs = functional_call(model, params, (x,))
        p = torch.softmax(outputs, 1)
        roots = p.sqrt()[:, None, :] * torch.eye(p.shape[1]) - p[:, :, None] * p.sqrt()[:, None, :]
        n = p.numel()
        jacobians = [j.reshape(n, -1) for j in vmap(rows)(x, roots.transpose(1, 2)).values()]
        kernel = sum(torch.exp(-log) * (j @ j.T) for log, j in zip(logs, jacobians, strict=True))
        determinant = 2 * torch.linalg.cholesky(torch.eye(n) + kernel).diagonal().log().sum()
        penalty = sum(torch.exp(log) * (w**2).sum() for log, w in zip(logs, params.values(), strict=True))
        value = -nn.functional.cross_entropy(outputs, y, reduction="sum") - 0.5 * penalty - 0.5 * determinant
        return {"value": value.detach(), "grad": torch.autograd.grad(value, logs)[0]}

    return run


class LayeredPerceptron(nn.Sequential):
    """The same network of layers that laplace-torch knows."""

    def __init__(self, data):
        inputs, hidden = data["w"].shape
        super().__init__(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, data["v"].shape[1]))
        with torch.no_grad():
            for layer, weight, bias in ((self[0], "w", "b"), (self[2], "v", "c")):
                layer.weight.copy_(torch.from_numpy(data[weight].T.copy()))
                layer.bias.copy_(torch.from_numpy(data[bias].copy()))


def laplace(data, structure):
    from laplace import Laplace

    x, y, logs = _given(data)
    model = LayeredPerceptron(data)
    order = [NAMES.index(name) for name in ("w", "b", "v", "c")]  # of the parameters of the layers
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=len(x))

    def run():
        found = Laplace(model, "classification", subset_of_weights="all", hessian_structure=structure)
        found.fit(loader)
        value = found.log_marginal_likelihood(prior_precision=torch.exp(logs)[order])
        return {"value": value.detach(), "grad": torch.autograd.grad(value, logs)[0]}

    return run
