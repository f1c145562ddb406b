"""The record on disk: every bit back, nothing lost, nothing half written, and clear refusals."""

import signal
import sqlite3
import subprocess
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax._arrays import leaf_names, load_tree, save_tree
from hyprax.runs import Run, RunError, read


class Layer(eqx.Module):
    weight: jax.Array
    scale: jax.Array


TREES = {
    "dtypes": {
        str(dtype): jnp.asarray([0, 1, 3], dtype)
        for dtype in ("float64", "float32", "float16", "bfloat16", "int32", "int64", "uint8", "bool")
    },
    "shapes": (jnp.zeros(()), jnp.zeros((0,)), jnp.zeros((2, 0, 3)), jnp.arange(6.0).reshape(2, 3)),
    "special": jnp.asarray([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
    "nested": {"layers": [Layer(jnp.ones(2), jnp.asarray(3.0)), None], "penalty": hx.Positive([1.0, 2.0])},
    "key": {"key": jax.random.key(7), "keys": jax.random.split(jax.random.key(1), 3)},
    "leaf": jnp.arange(3),
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
def test_every_bit_comes_back(tmp_path, tree):
    save_tree(tmp_path / "state", tree)
    back = load_tree(tmp_path / "state", tree)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(tree), strict=True):
        assert a.dtype == b.dtype
        bits = [
            np.asarray(jax.random.key_data(x) if a.dtype == b.dtype and "key" in str(x.dtype) else x) for x in (a, b)
        ]
        assert bits[0].shape == bits[1].shape
        assert bits[0].tobytes() == bits[1].tobytes()


def test_names_are_paths():
    assert leaf_names(TREES["nested"]) == [
        "layers/0/weight",
        "layers/0/scale",
        "penalty/raw",
    ]


def test_a_state_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "state"
    save_tree(path, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
    for template, named in [
        ({"a": jnp.zeros(3)}, "b is saved but not expected"),
        ({"a": jnp.zeros(3), "b": jnp.zeros(2), "c": jnp.zeros(1)}, "c is expected but not saved"),
        ({"a": jnp.zeros(4), "b": jnp.zeros(2)}, r"a is float64\[3\], expected is float64\[4\]"),
        ({"a": jnp.zeros(3), "b": jnp.zeros(2, jnp.float32)}, "b is float64"),
    ]:
        with pytest.raises(RunError, match=named):
            load_tree(path, template)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RunError, match="cannot be read"):
        load_tree(path, {"a": jnp.zeros(3), "b": jnp.zeros(2)})


def problem():
    """A cheap one: what is tested is the record."""
    return lambda hyper: jnp.sum(jnp.square(jnp.log(hyper["penalty"]) + 1)), {
        "penalty": hx.Positive(np.full((4, 3), 0.1))
    }


SEARCH = hx.search.Optax(optax.adam(0.1))


def go(folder, steps, **options):
    objective, hyper = problem()
    return hx.tune(objective, hyper, search=SEARCH, steps=steps, run=Run(folder, **options))


def test_a_run_is_read_back(tmp_path):
    tuned = go(tmp_path / "run", 6, config={"who": "test", "rate": 0.1})
    record = read(tmp_path / "run")
    assert record.config == {"who": "test", "rate": 0.1}
    assert record.finished
    assert record.summary["best_value"] == tuned.best_value
    np.testing.assert_equal(record.history, tuned.history)
    np.testing.assert_array_equal(record.column("value"), tuned.column("value"))
    np.testing.assert_allclose(record.start["penalty"], 0.1)
    np.testing.assert_array_equal(record.best["penalty"], tuned.best["penalty"].value)
    with sqlite3.connect(tmp_path / "run" / "history.sqlite") as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(steps)")]
    assert columns[:5] == ["step", "value", "gradient_norm", "certificate_kind", "certificate_bound"]
    assert not [path for path in (tmp_path / "run").iterdir() if path.suffix == ".tmp"]


def test_more_steps_give_the_bits_of_one_longer_run(tmp_path):
    go(tmp_path / "whole", 12)
    go(tmp_path / "parts", 5)
    go(tmp_path / "parts", 12)
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "parts")]
    assert states[0] == states[1]
    assert len(read(tmp_path / "parts").history) == 12


KILLED = """
import sys, time, jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, {tests!r})
from test_run import problem, SEARCH
import hyprax as hx
objective, hyper = problem()
def slow(step):
    print(step.step, flush=True)
    time.sleep(0.05)
hx.tune(objective, hyper, search=SEARCH, steps=40, run=hx.Run({folder!r}, every=0.2), callbacks=[slow])
"""


class Failing(hx.search.AbstractSearch):
    needs_accuracy = False
    needs_determinism = False

    def init(self, hyper):
        return SEARCH.init(hyper)

    def step(self, objective, hyper, search_state, objective_state):
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::hyprax.runs.RunWarning")  # another search
def test_a_run_without_steps_is_forgotten_and_one_with_steps_is_kept(tmp_path):
    objective, hyper = problem()
    run = Run(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        hx.tune(objective, hyper, search=Failing(), steps=2, run=run)
    run.forget()
    assert not (tmp_path / "run").exists()
    tuned = go(tmp_path / "run", 2, config={"another": 1})
    again = Run(tmp_path / "run", config={"another": 1})
    with pytest.raises(KeyboardInterrupt):
        hx.tune(objective, hyper, search=Failing(), steps=3, run=again)
    again.forget()
    np.testing.assert_equal(read(tmp_path / "run").history, tuned.history)


def test_a_finished_run_that_goes_on_is_unfinished_until_it_ends(tmp_path):
    go(tmp_path / "run", 2)
    objective, hyper = problem()
    seen = []
    hx.tune(
        objective,
        hyper,
        search=SEARCH,
        steps=4,
        run=Run(tmp_path / "run"),
        callbacks=[lambda step: seen.append((tmp_path / "run" / "summary.json").exists())],
    )
    assert seen == [False, False]
    assert read(tmp_path / "run").summary["steps"] == 4
    go(tmp_path / "run", 4)  # no step is left to make: what the last one said of its certificate stays
    assert "certificate" in read(tmp_path / "run").summary


def test_killed_and_resumed_it_has_the_same_bits(tmp_path):
    go(tmp_path / "whole", 40)
    program = KILLED.format(tests=__file__.rsplit("/", 1)[0], folder=str(tmp_path / "killed"))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "20":
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    before = read(tmp_path / "killed")
    assert not before.finished
    assert 20 <= len(before.history) < 40
    go(tmp_path / "killed", 40)
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "killed")]
    assert states[0] == states[1]
    assert [row["value"] for row in read(tmp_path / "whole").history] == [
        row["value"] for row in read(tmp_path / "killed").history
    ]


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="it has other files"):
        Run(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="must be a folder; got a file"):
        Run(tmp_path / "file")
    go(tmp_path / "run", 2, config={"rate": 0.1})
    with pytest.raises(RunError, match=r"rate was 0.1 and is now 0.2"):
        Run(tmp_path / "run", config={"rate": 0.2})
    with pytest.raises(RunError, match="Resume it"):
        Run(tmp_path / "run", config={"rate": 0.1}, resume=False)
    with pytest.raises(RunError, match="must be the folder of a run"):
        read(tmp_path / "other")


def test_two_writers_are_refused(tmp_path):
    objective, hyper = problem()

    def second(step):
        with pytest.raises(RunError, match="another process"):
            Run(tmp_path / "run").begin(None)
        return True

    began = time.monotonic()
    hx.tune(objective, hyper, search=SEARCH, steps=3, run=Run(tmp_path / "run"), callbacks=[second])
    assert time.monotonic() - began < 30


def test_other_hyperparameters_in_the_same_folder_are_refused(tmp_path):
    go(tmp_path / "run", 2)
    objective, _ = problem()
    with pytest.raises(RunError, match="penalty"):
        hx.tune(objective, {"penalty": hx.Positive(0.1)}, search=SEARCH, steps=3, run=Run(tmp_path / "run"))
