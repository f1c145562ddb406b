"""Wrong labels under a torch network: a weight for every example and a rate for every step, learned by gradient.

A third of the training labels of digits are drawn at random. The weights of examples are those with which a training
run ends best on a few clean images. They are written as a column of weights.csv, `sample_weight` for any trainer, and
the schedule as schedule.json, with which torch then trains the module anew.

Needs `pip install "hyprax[torch,sklearn]"`.
"""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

import hyprax as hx

STEPS, SEARCH_STEPS = 40, 30

torch.manual_seed(0)
rng = np.random.default_rng(0)
images, labels = load_digits(return_X_y=True)
images, order = (images / 16).astype("float32"), rng.permutation(len(labels))
train, clean, test = order[:400], order[400:600], order[600:]
wrong = rng.random(len(train)) < 1 / 3
given = np.where(wrong, rng.integers(0, 10, len(train)), labels[train])
wrong = given != labels[train]

module = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
fresh = {name: x.clone() for name, x in module.state_dict().items()}
net = hx.from_torch(module, torch.from_numpy(images[:2]))


def losses(params, batch):
    scores = jax.nn.log_softmax(net(params, batch[0]))
    return -jnp.take_along_axis(scores, batch[1][:, None], axis=1)[:, 0]


training = hx.Training(
    loss=lambda params, hyper, batch: jnp.mean(hyper["weight"] * losses(params, batch)),
    init=lambda hyper, key: net.params,
    optimizer=lambda hyper: hx.unroll.MomentumSGD(hx.unroll.Schedule(hyper["rate"]), 0.9, form="polyak"),
    batches=hx.FullBatch((images[train], given)),
    steps=STEPS,
)
objective = hx.UnrolledObjective(
    training,
    lambda params, hyper, data: jnp.mean(losses(params, data)),
    (jnp.asarray(images[clean]), jnp.asarray(labels[clean])),
    key=jax.random.key(0),
)
start = {
    "weight": hx.Interval(np.full(len(train), 0.5, "float32"), 0, 1),
    "rate": hx.Positive(np.full(STEPS, 0.3, "float32")),
}
tuned = hx.tune(objective, start, steps=SEARCH_STEPS)
best = hx.natural(tuned.best)
weights, rates = np.asarray(best["weight"]), np.asarray(best["rate"])

with open("weights.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["example", "label", "sample_weight"])
    table.writerows(zip(train.tolist(), given.tolist(), weights.tolist(), strict=True))
with open("schedule.json", "w") as file:
    json.dump({"lr": float(rates.max()), "factors": (rates / rates.max()).tolist()}, file)


def accuracy(sample_weight, schedule):
    """On the test images, after a training by torch alone that reads what was written."""
    module.load_state_dict(fresh)
    optimizer = torch.optim.SGD(module.parameters(), lr=schedule["lr"], momentum=0.9)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: schedule["factors"][min(t, STEPS - 1)])
    x, y = torch.from_numpy(images[train]), torch.from_numpy(given)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (sample_weight * nn.functional.cross_entropy(module(x), y, reduction="none")).mean().backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        return float((module(torch.from_numpy(images[test])).argmax(1).numpy() == labels[test]).mean())


with open("weights.csv") as file:
    column = torch.tensor([float(row["sample_weight"]) for row in csv.DictReader(file)])
with open("schedule.json") as file:
    schedule = json.load(file)
accuracies = accuracy(torch.full((len(train),), 0.5), {"lr": 0.3, "factors": [1.0] * STEPS}), accuracy(column, schedule)
auc = roc_auc_score(wrong, -weights)
print(f"loss on clean images {tuned.history[0]['value']:.3f} -> {tuned.best_value:.3f}")
print(f"wrong labels found, AUC {auc:.3f}; test accuracy {accuracies[0]:.3f} -> {accuracies[1]:.3f}")
