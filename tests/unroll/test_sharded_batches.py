"""Batches over several devices: gradients of all of them, and a run that is undone bit for bit as on one."""

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
from jax.sharding import NamedSharding, PartitionSpec

assert jax.device_count() == 4
rng = np.random.default_rng(0)
X, V = rng.normal(size=(64, 6)), rng.normal(size=(32, 6))
y, v = np.sin(X @ np.ones(6)), np.sin(V @ np.ones(6))
batches = hx.Minibatches((X, y), 16, key=jax.random.key(1))
mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

def over_devices(t):
    return jax.lax.with_sharding_constraint(batches(t), NamedSharding(mesh, PartitionSpec("rows")))

def loss(w, hyper, batch):
    x, y = batch
    return jnp.mean(jnp.square(jnp.tanh(x @ w["a"]) @ w["b"] - y)) + hyper["decay"] * jnp.sum(jnp.square(w["a"]))

def init(hyper, key):
    keys = jax.random.split(key)
    return {"a": jax.random.normal(keys[0], (6, 5)) / 3, "b": jax.random.normal(keys[1], (5,)) / 3}

def found(batches, mode):
    training = hx.Training(loss, init, lambda h: hx.unroll.Adam(h["rate"]), batches, 30)
    outer = lambda w, hyper, data: loss(w, {"decay": 0.0}, data)
    objective = hx.UnrolledObjective(training, outer, (V, v), mode=mode, key=jax.random.key(0))
    answer, _ = hx.hypergradient(objective, {"rate": hx.Positive(0.05), "decay": hx.Positive(0.01)})
    program = jax.jit(lambda w, t: jax.grad(loss)(w, {"decay": 0.0}, batches(t)))
    text = program.lower(init(None, jax.random.key(0)), jnp.asarray(0)).compile().as_text()
    grads = [float(answer.grad[name].raw) for name in ("rate", "decay")]
    return {
        "result": bool(answer.result == hx.unroll.RESULTS.successful),
        "certificate": type(answer.certificate).__name__,
        "grads": grads,
        "value": float(answer.value),
        "reduced": "all-reduce" in text,
    }

modes = [hx.unroll.Reversible(), hx.unroll.Checkpointed()]
print(json.dumps([[found(b, mode) for b in (batches, over_devices)] for mode in modes]))
"""


@pytest.mark.slow
def test_batches_over_four_devices_give_the_hypergradient_of_one_and_are_undone():
    settings = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (one, four), (plain, plain_four) = json.loads(done.stdout.splitlines()[-1])
    assert [x["reduced"] for x in (one, four)] == [False, True]
    assert one["certificate"] == four["certificate"] == "ReversalCertificate"
    for a, b in ((one, four), (plain, plain_four)):
        assert a["result"]
        assert b["result"]
        assert b["value"] == pytest.approx(a["value"], rel=1e-10)
        assert b["grads"] == pytest.approx(a["grads"], rel=1e-8)
