"""A run that goes on: nothing added, nothing lost, and what is not as it was is said."""

import concurrent.futures
import contextlib
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax._arrays import load_arrays
from hyprax._interrupt import Terminated, deferred_interrupt
from hyprax._objective import FunctionObjective
from hyprax.runs import Run, RunError, RunWarning, _run, read
from hyprax.runs._history import History
from hyprax.search import Stopping

HYPER = {"a": hx.Positive([2.0, 3.0])}
ADAM = hx.search.Optax(optax.adam(0.05))


def squares(hyper):
    return jnp.sum((hyper["a"] - 1) ** 2)


def go(folder, steps=4, objective=squares, stop=Stopping(gradient=0), search=None, **options):
    search = ADAM if search is None else search
    run = Run(folder, every=0.0, **options)
    return hx.tune(objective, HYPER, steps=steps, run=run, stop=stop, progress=False, search=search)


class Ending(hx.search.AbstractSearch):
    """Ends by itself after its third step."""

    needs_accuracy = False
    needs_determinism = False

    def init(self, hyper):
        return jnp.zeros((), int)

    def step(self, objective, hyper, search_state, objective_state):
        answer, after = objective.value_and_grad(hyper, objective_state)
        ended = hx.search.RESULTS.no_descent if search_state == 2 else None
        return hx.search.Move(answer, hyper, search_state + 1, after, ended=ended)


class Data(hx.core.AbstractObjective):
    """The mean of squares of rows that it holds, which may be rows that overflow."""

    rows: jnp.ndarray
    noisy: bool = False
    adaptive: bool = False
    measures_noise: bool = False
    value_name: str = "loss"

    def init(self, hyper):
        return jnp.zeros(())

    def value_and_grad(self, hyper, state, accuracy=None):
        return FunctionObjective(lambda h: jnp.mean((h["a"][0] - self.rows) ** 2)).value_and_grad(hyper, state)

    def value(self, hyper, state, accuracy=None):
        return FunctionObjective(lambda h: jnp.mean((h["a"][0] - self.rows) ** 2)).value(hyper, state)

    def params(self, state):
        return None

    def final(self, hyper, state):
        return self.value(hyper, state)


@pytest.mark.parametrize(
    ("options", "result", "steps"),
    [
        ({"stop": Stopping(gradient=0, patience=2, improvement=0.9)}, "no_progress", 3),
        ({"stop": Stopping(gradient=100.0)}, "gradient_small_uncertified", 1),
        ({"search": Ending()}, "no_descent", 3),
        ({"objective": lambda h: jnp.sum(h["a"]) / 0}, "diverged", 1),
    ],
    ids=lambda x: x if isinstance(x, str) else None,
)
@pytest.mark.filterwarnings("ignore::hyprax.search.TuningWarning")
def test_a_run_that_has_ended_gains_no_row(tmp_path, options, result, steps):
    for _ in range(3):
        found = go(tmp_path / "run", 9, **options)
        assert len(found.history) == steps
        record = read(tmp_path / "run")
        assert record.summary["result"] == result
        assert record.summary["steps"] == len(record.history) == steps


@pytest.mark.filterwarnings("ignore::hyprax.search.TuningWarning")
def test_a_gradient_of_zero_is_never(tmp_path):
    flat = go(tmp_path / "run", 3, objective=lambda h: jnp.sum(0.0 * h["a"]), stop=Stopping(gradient=0))
    assert len(flat.history) == 3


def test_more_patience_goes_on(tmp_path):
    short = go(tmp_path / "run", 9, stop=Stopping(gradient=0, patience=2, improvement=0.9))
    assert len(short.history) == 3
    whole = go(tmp_path / "whole", 9)
    assert [row["value"] for row in go(tmp_path / "run", 9).history] == [row["value"] for row in whole.history]


def test_changed_data_are_named(tmp_path):
    rows = np.arange(5.0)
    go(tmp_path / "run", 2, objective=Data(rows=jnp.asarray(rows)))
    go(tmp_path / "run", 3, objective=Data(rows=jnp.asarray(rows)))
    for changed in (rows + np.eye(5)[2], rows[:4], rows.astype(np.float32)):
        with pytest.raises(RunError, match=r"arrays of .* objective/rows was float64\[5\] \w+ and is now"):
            go(tmp_path / "run", 4, objective=Data(rows=jnp.asarray(changed)))
    assert len(read(tmp_path / "run").history) == 3


def edit(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_other_versions_are_warned_of_and_other_formats_refused(tmp_path):
    go(tmp_path / "run", 2)
    config = tmp_path / "run" / "config.json"
    edit(config, lambda c: c | {"environment": c["environment"] | {"jax": "0.1"}})
    with pytest.warns(RunWarning, match=r"jax was 0\.1 and is now"):
        go(tmp_path / "run", 3)
    edit(config, lambda c: {name: x for name, x in c.items() if name != "format"})
    for use in (read, Run):
        with pytest.raises(RunError, match="must be of format 3; got format 1"):
            use(tmp_path / "run")


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "damage", [lambda p: flip(p, -3), lambda p: p.write_bytes(p.read_bytes()[:-9]), lambda p: p.unlink()]
)
def test_a_damaged_state_is_named_and_the_one_before_it_used(tmp_path, damage):
    whole = go(tmp_path / "whole", 6)
    go(tmp_path / "run", 4)
    damage(tmp_path / "run" / "state.safetensors")
    with pytest.warns(RunWarning, match=r"state\.safetensors.* Going on from the state before it"):
        found = go(tmp_path / "run", 6)
    assert [row["value"] for row in found.history] == [row["value"] for row in whole.history]
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("whole", "run")]
    assert states[0] == states[1]
    damage(tmp_path / "run" / "state.safetensors")
    with pytest.warns(RunWarning, match="Going on from the state before it"):
        go(tmp_path / "run", 6)  # it has ended: no step is made, and the state is there again
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == states[0]
    for name in ("state", "previous"):
        flip(tmp_path / "run" / f"{name}.safetensors", -3)
    with pytest.raises(RunError, match="does not match its checksum"):
        go(tmp_path / "run", 7)


def test_a_history_that_is_not_whole_is_refused(tmp_path):
    for damage in (
        lambda folder: (folder / "history.sqlite").unlink(),
        lambda folder: History(folder / "history.sqlite", write=True).truncate(2),
        lambda folder: [(folder / f"{name}.safetensors").unlink() for name in ("state", "previous")],
    ):
        folder = tmp_path / str(damage.__code__.co_firstlineno)
        go(folder, 4)
        damage(folder)
        with pytest.raises(RunError, match=r"deleted or altered|is missing"):
            go(folder, 5)


def test_what_a_kill_at_the_start_leaves_does_not_block_the_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".config.json.4711.tmp").write_text("{")
    (folder / ".lock").write_text("")
    go(folder, 2)
    (folder / ".state.safetensors.4711.tmp").write_text("")
    go(folder, 3)
    assert not list(folder.glob("*.tmp"))
    assert len(read(folder).history) == 3


WRITER = """
import sys
from pathlib import Path
from hyprax.runs import _run
from hyprax.runs._history import History
history = History(Path(sys.argv[1]), write=True)
for i in range(10**9):
    history.append({"step": i % 1000, "value": 1.0, "result": "successful"})
    if i == 10:
        print(flush=True)
"""


def test_a_history_is_read_while_it_is_written_and_after_a_kill(tmp_path):
    path = tmp_path / "history.sqlite"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for kill in (False, False, True):
        if kill:
            process.kill()
            process.wait()
        reader = History(path, write=False)
        assert len(reader.rows()) > 10
        reader.close()
    process.stdout.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_finished_run_is_read_from_a_folder_that_cannot_be_written(tmp_path):
    go(tmp_path / "run", 2)
    (tmp_path / "run").chmod(0o500)
    try:
        assert len(read(tmp_path / "run").history) == 2
    finally:
        (tmp_path / "run").chmod(0o700)


def test_a_full_disk_is_said_and_loses_at_most_a_step(tmp_path, monkeypatch):
    full = []

    def append(self, row, usual=History.append):
        if full:
            raise RunError("history.sqlite: cannot be written (database or disk is full).")
        usual(self, row)

    monkeypatch.setattr(History, "append", append)
    with pytest.raises(RunError, match="disk is full"):
        hx.tune(
            squares,
            HYPER,
            search=ADAM,
            steps=9,
            run=Run(tmp_path / "run"),
            progress=False,
            callbacks=[lambda s: full.append(1)],
        )
    full.clear()
    monkeypatch.undo()
    whole = go(tmp_path / "whole", 5)
    assert len(read(tmp_path / "run").history) == 1
    assert [row["value"] for row in go(tmp_path / "run", 5).history] == [row["value"] for row in whole.history]


def signalled(*numbers):
    """What comes of signals that arrive within a step."""
    with deferred_interrupt() as check:
        for number in numbers:
            signal.raise_signal(number)
        check()


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM), (signal.SIGINT,)])
def test_a_signal_waits_for_the_step_and_a_second_does_not(numbers):
    usual = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Terminated if signal.SIGTERM in numbers else KeyboardInterrupt):
        signalled(*numbers)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == usual


def test_a_termination_is_kept_until_the_step_is_whole_and_saved(tmp_path):
    def end(step):
        if step.step == 2:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        hx.tune(squares, HYPER, search=ADAM, steps=9, run=Run(tmp_path / "run"), progress=False, callbacks=[end])
    whole = go(tmp_path / "whole", 5)
    assert len(read(tmp_path / "run").history) == 3
    assert [row["value"] for row in go(tmp_path / "run", 5).history] == [row["value"] for row in whole.history]


@pytest.mark.parametrize(
    "change",
    [
        {"tables": "none"},
        {"tables": [{"title": "Comparison"}]},
        {"tables": [{"title": "Comparison", "rows": [1]}]},
        {"tables": [{"title": "Comparison", "rows": [{"a": 1}]}]},
        {"tables": [{"title": "Comparison", "rows": [{"a": "1"}, {"b": "1"}]}]},
        {"baselines": [{"name": "x", "value": "much"}]},
        {"best_value": "low"},
        {"certificate": []},
        {"result": 3},
    ],
)
def test_a_damaged_summary_is_named(tmp_path, change):
    go(tmp_path / "run", 1)
    edit(tmp_path / "run" / "summary.json", lambda summary: summary | change)
    with pytest.raises(RunError, match=r"summary\.json: .*damaged"):
        read(tmp_path / "run")


def test_an_altered_history_is_named(tmp_path):
    go(tmp_path / "run", 4)
    path = tmp_path / "run" / "history.sqlite"
    whole = path.read_bytes()
    for change in ("UPDATE steps SET value = value * 1.01", "UPDATE steps SET seconds = 1", "DELETE FROM steps"):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(f"{change} WHERE step = 1")
            connection.commit()
        for use in (read, lambda folder: go(folder, 5)):
            with pytest.raises(RunError, match=r"history\.sqlite: cannot be read \(step [12] does not match"):
                use(tmp_path / "run")
        path.write_bytes(whole)
    assert len(go(tmp_path / "run", 5).history) == 5


def test_states_are_kept_by_steps_and_the_last_ones(tmp_path):
    def run(folder, steps, **options):
        record = Run(folder, every=1e9, **options)
        return hx.tune(squares, HYPER, search=ADAM, steps=steps, run=record, stop=Stopping(gradient=0), progress=False)

    whole = run(tmp_path / "whole", 9)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert names == ["best.safetensors", "previous.safetensors", "start.safetensors", "state.safetensors"]
    run(tmp_path / "run", 7, every_steps=2, keep=4)
    kept = ["state", "previous", "previous-2", "previous-3"]
    paths = [tmp_path / "run" / f"{name}.safetensors" for name in kept]
    assert [int(load_arrays(path)["step"]) for path in paths] == [7, 6, 4, 2]
    for path in paths[:2]:
        flip(path, -3)
    with pytest.warns(RunWarning) as told:
        found = run(tmp_path / "run", 9, every_steps=2, keep=4)
    assert [name in str(said.message) for said, name in zip(told, kept, strict=False)] == [True, True]
    assert [row["value"] for row in found.history] == [row["value"] for row in whole.history]
    settings: list[dict[str, Any]] = [{"every": -1.0}, {"every_steps": 0}, {"keep": 0}, {"keep": True}]
    for bad in settings:
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
            Run(tmp_path / "other", **bad)


def test_other_settings_and_other_code_are_named(tmp_path):
    go(tmp_path / "run", 2)
    with pytest.warns(RunWarning, match=r"search/.*step_size was -0\.05 and is now -0\.1"):
        go(tmp_path / "run", 3, search=hx.search.Optax(optax.adam(0.1)))
    with pytest.warns(RunWarning, match=r"objective/fn/code was code \w+ and is now code"):
        go(tmp_path / "run", 4, objective=lambda h: jnp.sum((h["a"] - 2) ** 2))

    def held(rows):
        return lambda h: jnp.sum((h["a"][0] - rows) ** 2)

    go(tmp_path / "held", 2, objective=held(jnp.ones(3)))
    go(tmp_path / "held", 3, objective=held(jnp.ones(3)))
    with pytest.raises(RunError, match=r"objective/fn/rows was float64\[3\]"):
        go(tmp_path / "held", 4, objective=held(jnp.zeros(3)))


def test_a_full_disk_takes_the_room_of_older_states(tmp_path, monkeypatch):
    save, full = _run.save_tree, []

    def saved(path, tree, previous=None):
        if full and (path.parent / "previous.safetensors").exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(path, tree, previous)

    def fill(step):
        full.append(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "save_tree", saved)
    run = Run(tmp_path / "run", every=1e9)
    with pytest.raises(KeyboardInterrupt):
        hx.tune(squares, HYPER, search=ADAM, steps=9, run=run, progress=False, callbacks=[fill])
    assert int(load_arrays(tmp_path / "run" / "state.safetensors")["step"]) == 1


def test_a_folder_that_is_gone_is_named(tmp_path):
    def gone(step):
        if step.step == 1:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises((RunError, OSError), match="run"):
        hx.tune(
            squares, HYPER, search=ADAM, steps=9, run=Run(tmp_path / "run", every=0.0), progress=False, callbacks=[gone]
        )


def test_threads_write_runs_side_by_side_and_never_one_run(tmp_path):
    whole, refused = go(tmp_path / "whole", 4), []

    def write(i):
        try:
            go(tmp_path / f"run {i % 4}", 4)
        except RunError as error:
            refused.append(str(error))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert all("another process is writing this run" in text for text in refused)
    for i in range(4):
        rows = read(tmp_path / f"run {i}").history
        assert [row["value"] for row in rows] == [row["value"] for row in whole.history]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork")
@pytest.mark.filterwarnings("ignore:.*fork:RuntimeWarning", "ignore:.*fork:DeprecationWarning")
def test_a_forked_process_is_refused():
    hx.hypergradient(squares, HYPER)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            hx.tune(squares, HYPER, steps=1, progress=False)
        except RuntimeError as error:
            status = 0 if "forked" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
