"""A torch CNN on digits: the weight decay of every layer and the learning rate of every step, tuned by gradient.

Needs `pip install "hyprax[torch,sklearn]"`. Prints the penalties and the accuracy on test images, leaves the tuned
weights in the torch module, and the schedule in schedule.json, as `torch.optim.lr_scheduler.LambdaLR` reads it.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from sklearn.datasets import load_digits
from torch import nn

import hyprax as hx
from hyprax.torch import arrays, batches

STEPS, SEARCH_STEPS = 60, 25

torch.manual_seed(0)
module = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(64, 10)),
)

images, labels = load_digits(return_X_y=True)
images = torch.from_numpy(images.reshape(-1, 1, 8, 8).astype("float32") / 16)
order = torch.randperm(len(labels))
train, validation, test = order[:200], order[200:800], order[800:]
data = torch.utils.data.TensorDataset(images, torch.from_numpy(labels))
loader = torch.utils.data.DataLoader(torch.utils.data.Subset(data, train.tolist()), 50, shuffle=True, drop_last=True)

net = hx.from_torch(module, images[:2])


def cross_entropy(params, hyper, batch):
    scores = jax.nn.log_softmax(net(params, batch[0]))
    return -jnp.mean(jnp.take_along_axis(scores, batch[1][:, None], axis=1))


def training_loss(params, hyper, batch):
    decay = sum(hyper["decay"][name] * jnp.sum(w**2) / 2 for name, w in params.items())
    return cross_entropy(params, hyper, batch) + decay


training = hx.Training(
    training_loss,
    init=lambda hyper, key: net.params,
    optimizer=lambda hyper: hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["rate"]), 0.9, form="polyak"),
    batches=batches(loader, STEPS),
    steps=STEPS,
)
held_out = arrays(torch.utils.data.Subset(data, validation.tolist()))
objective = hx.UnrolledObjective(training, cross_entropy, held_out, key=jax.random.key(0))
start = {
    "decay": {name: hx.Positive(np.float32(1e-2)) for name in net.params},
    "rate": hx.Positive(np.full(STEPS, 0.1, "float32")),
}
tuned = hx.tune(objective, start, search=hx.search.Optax(optax.adam(0.05)), steps=SEARCH_STEPS)
best = hx.natural(tuned.best)


def accuracy(hyper):
    """On the test images, by torch, with the weights at the end of the training."""
    state = objective.value(hyper, objective.init(hyper))[1]
    module.load_state_dict(net.to_torch(objective.params(state)))
    with torch.no_grad():
        return float((module(images[test]).argmax(1) == data.tensors[1][test]).float().mean())


accuracies = accuracy(start), accuracy(tuned.best)
rates = best["rate"].tolist()
with open("schedule.json", "w") as file:
    json.dump({"lr": max(rates), "factors": [rate / max(rates) for rate in rates]}, file)
for name, decay in best["decay"].items():
    print(f"{name:12} decay {float(decay):.1e}")
print(f"validation loss {tuned.history[0]['value']:.3f} -> {tuned.best_value:.3f}")
print(f"test accuracy {accuracies[0]:.3f} -> {accuracies[1]:.3f}")
