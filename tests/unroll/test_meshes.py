"""Weights and rows spread over the devices of a mesh: the same hypergradient as on one device."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import hyprax as hx

jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
X, y = rng.normal(size=(64, 8)), rng.normal(size=64)
V, v = rng.normal(size=(64, 8)), rng.normal(size=64)
optimizers = {"sgd": hx.unroll.MomentumSGD(0.05, 0.9), "adam": hx.unroll.Adam(0.05)}
modes = {
    "loop": hx.unroll.Checkpointed(driver="loop"), "host": hx.unroll.Checkpointed(driver="host"),
    "all": hx.unroll.StoreAll(), "reversible": hx.unroll.Reversible(),
}


def objective(optimizer, mode, mesh=None, rows=False):
    explicit = mesh is not None and mesh.axis_types[0] == AxisType.Explicit
    over = None if mesh is None else NamedSharding(mesh, P("devices"))
    put = (lambda x: jax.device_put(x, over)) if rows else jnp.asarray
    data, held = (put(X), put(y)), (put(V), put(v))

    def predict(inputs, w):
        if not explicit or rows:
            return inputs @ w
        return jnp.einsum("nd,d->n", inputs, w, out_sharding=P(None))

    def init(hyper, key):
        w = hyper["start"] * jnp.ones(8)
        if over is None or rows:
            return w
        return jax.sharding.reshard(w, over) if explicit else jax.lax.with_sharding_constraint(w, over)

    def loss(w, hyper, batch):
        return jnp.mean((predict(batch[0], w) - batch[1]) ** 2) + jnp.exp(hyper["decay"]) * jnp.sum(w * w)

    def outer(w, hyper, data):
        return jnp.mean((predict(data[0], w) - data[1]) ** 2)

    training = hx.Training(loss, init, optimizer=lambda hyper: optimizer, batches=lambda t: data, steps=20)
    return hx.UnrolledObjective(training, outer, held, key=jax.random.key(0), mode=mode)


hyper = {"decay": jnp.asarray(-3.0), "start": jnp.asarray(0.5)}
for name, optimizer in optimizers.items():
    alone, _ = hx.hypergradient(objective(optimizer, modes["loop"]), hyper)
    for kind in AxisType.Auto, AxisType.Explicit:
        mesh = jax.make_mesh((4,), ("devices",), axis_types=(kind,))
        for rows in True, False:
            for mode in modes:
                with jax.set_mesh(mesh):
                    answer, _ = hx.hypergradient(objective(optimizer, modes[mode], mesh, rows), hyper)
                off = max(abs(float(answer.grad[k]) / float(alone.grad[k]) - 1) for k in hyper)
                assert off < 1e-12, (name, kind, rows, mode, off)
                print("right", name, kind, rows, mode)
"""


@pytest.mark.slow
def test_hypergradients_on_four_devices_are_those_on_one():
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.count("right") == 32
