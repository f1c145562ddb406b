"""Examples over two devices: the evidence and its gradient of one; in a process of its own."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
import jax
jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
from hyprax import evidence as ev
from jax.sharding import Mesh, NamedSharding, PartitionSpec

assert jax.device_count() == 2
rng = np.random.default_rng(0)
X = rng.normal(size=(64, 4))
y = (X[:, 0] + rng.normal(size=64) > 0).astype(int) + (X[:, 1] > 0)
mesh = Mesh(np.array(jax.devices()), ("rows",))

def sharded(x):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows", *[None] * (x.ndim - 1))))

def network(params, hyper, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]

params = {"w": rng.normal(size=(4, 3)), "b": np.zeros(3), "v": rng.normal(size=(3, 3))}
estimators = {
    "exact": None,
    "subset": ev.Partition(16, "one", ev.roots.Rows()),
    "factors": ev.FullData(ev.structures.KFAC()),
}

def found(place, estimator):
    # Three steps of training on batches, then the mode of all examples.
    schedule = ev.Schedule(every=3, hyper_steps=1)
    objective = ev.EvidenceObjective(
        network, params, (place(X), place(y)), estimator=estimator, schedule=schedule, batch_size=16,
        key=jax.random.key(0),
    )
    hyper = {"precision": ev.precisions(params, 1.0)}
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    final, _ = objective.final(hyper, state)
    grads = [float(x) for leaf in jax.tree.leaves(answer.grad) for x in np.ravel(leaf)]
    return [float(answer.value), *grads, float(final.value), float(final.stats.decrement)]

print(json.dumps({name: [found(jnp.asarray, e), found(sharded, e)] for name, e in estimators.items()}))
"""


@pytest.mark.slow
def test_examples_over_two_devices_have_the_evidence_of_one():
    settings = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, (one, two) in json.loads(done.stdout.splitlines()[-1]).items():
        assert two == pytest.approx(one, rel=1e-9, abs=1e-9), name
