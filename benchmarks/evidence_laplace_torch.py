"""laplace-torch's side of `evidence_laplace`: run there by an interpreter that has it; prints what it found as JSON.

python benchmarks/evidence_laplace_torch.py PROBLEM.npz EPOCHS
"""

import json
import sys
import time

import numpy as np
import torch
from laplace.curvature import CurvlinopsGGN
from laplace.marglik_training import marglik_training
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stored, epochs = np.load(sys.argv[1]), int(sys.argv[2])
    w, v, classes = stored["w"], stored["v"], bool(stored["classes"])
    net = nn.Sequential(nn.Linear(*w.shape), nn.Tanh(), nn.Linear(*v.shape))
    with torch.no_grad():
        for layer, weight in ((net[0], w), (net[2], v)):
            layer.weight.copy_(torch.tensor(weight.T))
            layer.bias.zero_()
    y = torch.tensor(stored["y"]).long() if classes else torch.tensor(stored["y"])
    loader = DataLoader(TensorDataset(torch.tensor(stored["x"]), y), batch_size=128, shuffle=True)
    began = time.process_time()
    found, *_ = marglik_training(
        net,
        loader,
        "classification" if classes else "regression",
        hessian_structure="full",
        backend=CurvlinopsGGN,
        optimizer_kwargs={"lr": 1e-2},
        n_epochs=epochs,
        n_epochs_burnin=epochs // 10,
        marglik_frequency=5,
        prior_structure="layerwise",
    )
    seconds = time.process_time() - began
    answer = {
        "seconds": seconds,
        "log_evidence": found.log_marginal_likelihood().item(),
        "precision": np.ravel(found.prior_precision.detach().numpy()).tolist(),
        "noise": float(found.sigma_noise),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
