"""Rows over the devices of two processes: one record, the same numbers as one process, and the same bits resumed."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process, folder, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=process)
import jax.numpy as jnp
import numpy as np
import hyprax as hx
from jax.sharding import NamedSharding, PartitionSpec

assert jax.device_count() == 4 and jax.local_device_count() == 2
rng = np.random.default_rng(0)
X = rng.normal(size=(240, 5))
y = (X[:, 0] + rng.normal(size=240) > 0).astype(int)
mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

def sharded(x):
    sharding = NamedSharding(mesh, PartitionSpec("rows", *[None] * (x.ndim - 1)))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

family = hx.families.Logistic(sharded(X[:160]), sharded(y[:160]), penalty="penalty")
objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (sharded(X[160:]), sharded(y[160:])))
tuned = hx.tune(objective, {"penalty": hx.Positive(np.full(5, 1e-2))}, steps=steps, progress=False,
    search=hx.search.LBFGS(), stop=hx.search.Stopping(patience=None), run=hx.Run(folder, every=0.0))
rows = [[row["value"], row["certificate_bound"], row["certificate_kind"]] for row in tuned.history]
print(json.dumps({"rows": rows, "last": np.asarray(tuned.state.hyper["penalty"].raw).tolist()}))
"""


def run(folder, steps):
    """What the two processes print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    commands = [[sys.executable, "-c", PROGRAM, str(port), str(i), str(folder), str(steps)] for i in (0, 1)]
    both = [
        subprocess.Popen(c, env=settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for c in commands
    ]
    outputs = [process.communicate(timeout=900) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_write_one_record_and_go_on_with_the_same_bits(tmp_path):
    import hyprax as hx

    whole, other = run(tmp_path / "whole", 5)
    assert whole == other
    run(tmp_path / "cut", 2)
    resumed, other = run(tmp_path / "cut", 5)
    assert resumed == other == whole

    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 5))
    y = (X[:, 0] + rng.normal(size=240) > 0).astype(int)
    family = hx.families.Logistic(X[:160], y[:160], penalty="penalty")
    objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (X[160:], y[160:]))
    answer, _ = hx.hypergradient(objective, {"penalty": hx.Positive(np.full(5, 1e-2))})
    value, _, kind = whole["rows"][0]
    assert kind == "certified"
    assert abs(value - float(answer.value)) <= 1e-6  # found to another accuracy

    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert "4 devices in 2 processes" in config["environment"]["machine"]
    assert any("'rows'" in setting for setting in config["settings"].values())
