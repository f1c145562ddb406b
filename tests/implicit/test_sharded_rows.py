"""Rows over two devices: the same certificate as on one; in a process of its own, which counts its devices once."""

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
import hyprax as hx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

assert jax.device_count() == 2
rng = np.random.default_rng(0)
X = rng.normal(size=(240, 5))
y = (X[:, 0] + rng.normal(size=240) > 0).astype(int)
mesh = Mesh(np.array(jax.devices()), ("rows",))

def sharded(x):
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows", *[None] * (x.ndim - 1))))

def found(place):
    family = hx.families.Logistic(place(X[:160]), place(y[:160]), penalty="penalty")
    inner = hx.Optimum(family, solver=hx.implicit.Newton())
    objective = hx.ImplicitObjective(inner, family.mean_loss, (place(X[160:]), place(y[160:])))
    answer, _ = hx.hypergradient(objective, {"penalty": hx.Positive(jnp.full(5, 1e-2))})
    kind, bound = answer.certificate.kind, float(answer.certificate.bound)
    return {"kind": kind, "bound": bound, "grad": np.asarray(answer.grad["penalty"].raw).tolist()}

print(json.dumps([found(jnp.asarray), found(sharded)]))
"""


@pytest.mark.slow
def test_rows_over_two_devices_have_the_certificate_of_one():
    settings = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = json.loads(done.stdout.splitlines()[-1])
    assert one["kind"] == two["kind"] == "certified"
    difference = sum((a - b) ** 2 for a, b in zip(one["grad"], two["grad"], strict=True)) ** 0.5
    assert difference <= one["bound"] + two["bound"]
    assert two["bound"] <= 2 * one["bound"]
