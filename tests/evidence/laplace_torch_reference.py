"""Print the log marginal likelihoods of laplace-torch for the network of `frozen_network`.

Run in an environment of its own: `pip install laplace-torch==0.3 torch==2.13.0` (without torchvision), then
`python tests/evidence/laplace_torch_reference.py`.
"""

import frozen_network as frozen
import numpy as np
import torch
from laplace import Laplace


def model() -> torch.nn.Module:
    w = {name: torch.tensor(x) for name, x in frozen.network().items()}
    first, second = torch.nn.Linear(frozen.D, frozen.H), torch.nn.Linear(frozen.H, frozen.C)
    net = torch.nn.Sequential(first, torch.nn.Tanh(), second).double()
    with torch.no_grad():
        first.weight.copy_(w["W1"].T)
        first.bias.copy_(w["b1"])
        second.weight.copy_(w["W2"].T)
        second.bias.copy_(w["b2"])
    return net


def main() -> None:
    torch.set_default_dtype(torch.float64)
    x = torch.tensor(frozen.inputs())
    for likelihood, y in (("classification", frozen.labels()), ("regression", frozen.targets())):
        data = torch.utils.data.TensorDataset(x, torch.tensor(np.asarray(y)))
        loader = torch.utils.data.DataLoader(data, batch_size=frozen.N)
        for structure in ("full", "kron", "diag"):
            noise = {} if likelihood == "classification" else {"sigma_noise": frozen.SIGMA}
            la = Laplace(model(), likelihood, subset_of_weights="all", hessian_structure=structure, **noise)
            la.fit(loader)
            for precision in frozen.PRECISIONS:
                value = la.log_marginal_likelihood(prior_precision=torch.tensor(precision))
                print(f'    ("{likelihood}", "{structure}", {precision}): {value.item()!r},')


if __name__ == "__main__":
    main()
