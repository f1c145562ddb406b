"""Callbacks watch a run, may stop it, and can neither change nor break it; what is logged is what was recorded."""

import csv
import importlib
import json
import logging
import math
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax.callbacks import CSV, JSONL, EarlyStopping, MLflow, TensorBoard, TimeBudget, WandB, WorkBudget
from hyprax.callbacks._named import NAMES, named
from hyprax.search import Optax, Start, Step, Stopping

SEARCH = Optax(optax.adam(0.1))
NEVER = Stopping(gradient=0, patience=None)
START = {"x": jnp.asarray([3.0, -2.0])}


def bowl(hyper):
    return jnp.sum((hyper["x"] - 1.0) ** 2)


class Work(hx.core.AbstractStats):
    def effort(self):
        return hx.core.Effort(work=3)


class Working(hx.core.AbstractObjective):
    """The bowl, with three products an evaluation."""

    noisy = False
    adaptive = False
    measures_noise = False
    value_name = "value"

    def init(self, hyper):
        return ()

    def value_and_grad(self, hyper, state, accuracy=None):
        answer, _ = hx.hypergradient(bowl, hyper)
        return hx.Hypergradient(
            answer.value, answer.grad, answer.certificate, answer.noise, answer.result, Work()
        ), state

    def value(self, hyper, state, accuracy=None):
        raise NotImplementedError  # `tune` asks a deterministic objective for gradients alone

    def params(self, state):
        return None

    def final(self, hyper, state):
        raise NotImplementedError  # `tune` asks a deterministic objective for gradients alone


def go(steps=6, objective=bowl, **given):
    return hx.tune(objective, START, search=SEARCH, steps=steps, stop=NEVER, progress=False, **given)


def rows(history):
    """A history without the times that it took, as a text, so that NaN equals itself."""
    return repr([{name: x for name, x in row.items() if name != "seconds"} for row in history])


class Everything:
    """A callback that keeps what it is told."""

    def __init__(self):
        self.told = []

    def start(self, start: Start):
        self.told.append(("start", len(start.history), start.objective, start.search, start.folder))

    def step(self, step: Step):
        self.told.append(("step", step.step))

    def checkpoint(self, folder):
        self.told.append(("checkpoint", (folder / "state.safetensors").is_file()))

    def end(self, tuned):
        self.told.append(("end", None if tuned is None else len(tuned.history)))


def test_a_callback_is_told_of_start_steps_saved_states_and_end(tmp_path):
    seen = Everything()
    go(2, callbacks=[seen], run=hx.Run(tmp_path / "run", every=0.0))
    began = ("start", 0, "FunctionObjective", "Optax", tmp_path / "run")
    assert seen.told == [began, ("checkpoint", True), ("step", 0), ("checkpoint", True), ("step", 1), ("end", 2)]
    again = Everything()
    go(3, callbacks=[again], run=hx.Run(tmp_path / "run"))
    assert again.told[0] == ("start", 2, "FunctionObjective", "Optax", tmp_path / "run")
    assert again.told[1:] == [("step", 2), ("end", 3)]


def test_an_interrupted_run_tells_its_callbacks_that_it_has_no_result():
    def interrupt(step):
        raise KeyboardInterrupt

    seen = Everything()
    with pytest.raises(KeyboardInterrupt):
        go(callbacks=[seen, interrupt])
    assert seen.told[-1] == ("end", None)


class Broken:
    def __init__(self, place):
        self.place, self.calls = place, 0

    def __getattr__(self, name):
        if name not in ("start", "step", "checkpoint", "end"):
            raise AttributeError(name)

        def method(news):
            self.calls += 1
            if name == self.place:
                raise OSError("the disk is full")

        return method


@pytest.mark.parametrize(("place", "calls"), [("start", 1), ("step", 8), ("end", 8)])
def test_an_error_in_a_callback_is_told_once_and_changes_nothing(place, calls):
    broken = Broken(place)
    with pytest.warns(
        RuntimeWarning, match=rf"callback Broken failed at {place} \(OSError: the disk is full\)"
    ) as told:
        found = go(callbacks=[broken])
    assert len(told) == 1
    assert broken.calls == calls
    assert rows(found.history) == rows(go().history)


def test_what_is_no_callback_is_refused():
    with pytest.raises(ValueError, match="callbacks must be functions of a step, or objects with a method"):
        go(callbacks=["csv"])


def test_a_sentence_from_a_callback_ends_the_run_with_it():
    found = go(callbacks=[lambda step: "Enough." if step.step == 2 else False])
    assert bool(found.result == hx.search.RESULTS.stopped_by_callback)
    assert len(found.history) == 3
    assert "A callback asked to stop." in found.message
    assert "Enough." in found.message


def plateau(hyper):
    return jnp.maximum(jnp.sum(hyper["x"] ** 2), 11.0)


def test_early_stopping_counts_steps_without_a_fall():
    found = go(40, plateau, callbacks=[EarlyStopping(4)])
    values = [row["value"] for row in found.history]
    assert values[-4:] == [11.0] * 4
    assert values[-5] == 11.0
    assert values[-6] > 11.0
    assert "The value has not fallen for 4 steps" in found.message


def test_a_window_judges_noisy_values_by_their_means():
    """Values that alternate around a falling mean: the lowest alone would not fall for two steps at a time."""
    rule = EarlyStopping(3, window=2)
    rule.start(
        Start("", "", "", 9, {}, [{"value": 10 - 0.1 * k + 5 * (-1) ** k, "result": "successful"} for k in range(20)])
    )
    assert rule._waited < 3
    flat = [{"value": 5.0 * (-1) ** k, "result": "successful"} for k in range(20)]
    assert EarlyStopping(3, window=2).start(Start("", "", "", 9, {}, flat))


def test_early_stopping_of_a_resumed_run_is_that_of_the_whole(tmp_path):
    whole = go(40, plateau, callbacks=[EarlyStopping(4)], run=hx.Run(tmp_path / "whole"))
    go(len(whole.history) - 2, plateau, callbacks=[EarlyStopping(4)], run=hx.Run(tmp_path / "parts"))
    parts = go(40, plateau, callbacks=[EarlyStopping(4)], run=hx.Run(tmp_path / "parts"))
    assert rows(parts.history) == rows(whole.history)
    again = go(40, plateau, callbacks=[EarlyStopping(4)], run=hx.Run(tmp_path / "parts"))
    assert rows(again.history) == rows(whole.history)
    assert bool(again.result == hx.search.RESULTS.stopped_by_callback)


def test_budgets_of_time_and_work():
    found = go(50, callbacks=[TimeBudget(1e-6)])
    assert len(found.history) == 1
    assert "TimeBudget" in found.message
    worked = go(50, Working(), callbacks=[WorkBudget(7)])  # pyright: ignore[reportCallIssue]  # its fields are of the class
    assert len(worked.history) == 3
    assert "9 products of 7" in worked.message


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(0),
        lambda: EarlyStopping(3, improvement=math.nan),
        lambda: EarlyStopping(3, window=0),
        lambda: TimeBudget(0),
        lambda: WorkBudget(-1),
        lambda: named("tensorbord", "."),
    ],
)
def test_settings_of_no_meaning_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()


def test_a_run_with_callbacks_has_the_bits_of_one_without(tmp_path):
    watchers = [
        CSV(tmp_path / "log.csv"),
        JSONL(tmp_path / "log.jsonl"),
        EarlyStopping(99),
        TimeBudget(1e9),
        Everything(),
    ]
    plain, watched = go(), go(callbacks=watchers)
    assert rows(plain.history) == rows(watched.history)
    for a, b in zip(jax.tree.leaves(plain.state), jax.tree.leaves(watched.state), strict=True):
        np.testing.assert_array_equal(a, b)


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_csv_and_json_lines_hold_the_history_and_the_hyperparameters(tmp_path):
    found = go(callbacks=[CSV(tmp_path / "log.csv"), JSONL(tmp_path / "log.jsonl")])
    table, lines = read_csv(tmp_path / "log.csv"), (tmp_path / "log.jsonl").read_text().splitlines()
    *steps, last = map(json.loads, lines)
    assert [float(row["value"]) for row in table] == [row["value"] for row in steps] == list(found.column("value"))
    assert float(table[0]["hyper/x[1]"]) == steps[0]["hyper/x[1]"] == -2.0
    assert steps[0]["certificate_bound"] is None
    assert last["ended"] == "steps_spent"
    assert last["best_value"] == found.best_value


@pytest.mark.parametrize("logger", [CSV, JSONL])
def test_the_file_of_a_run_that_goes_on_goes_on(tmp_path, logger):
    path = tmp_path / "log"
    run = tmp_path / "run"
    go(3, callbacks=[logger(path)], run=hx.Run(run))
    with path.open("a") as stream:
        stream.write("7,not,whole" if logger is CSV else '{"step": 7, "val')
    go(5, callbacks=[logger(path)], run=hx.Run(run))
    found = read_csv(path) if logger is CSV else [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    assert [int(row["step"]) for row in found] == [0, 1, 2, 3, 4]
    assert all(row["hyper/x[0]"] not in ("", None) for row in found)


def test_a_file_that_is_no_log_is_left_alone(tmp_path):
    (tmp_path / "thesis.csv").write_text("precious\n")
    with pytest.warns(RuntimeWarning, match="must be a new file"):
        go(callbacks=[CSV(tmp_path / "thesis.csv")])
    assert (tmp_path / "thesis.csv").read_text() == "precious\n"


def test_a_missing_package_is_one_plain_sentence(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match=r'WandB needs wandb, which is not installed: pip install "hyprax\['):
        WandB()


def test_a_run_speaks_to_the_logger_of_the_library(caplog, tmp_path, capsys):
    with caplog.at_level(logging.INFO, "hyprax"):
        go(2, run=hx.Run(tmp_path / "run", every=0.0))
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "FunctionObjective by Optax: begins at step 0 of 2"
    assert said[1] == f"saved step 0 in {tmp_path / 'run'}"
    assert said[-1].startswith("ended at step 2: steps_spent.")
    assert capsys.readouterr() == ("", "")


def test_warnings_of_a_run_are_logged_as_such(caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "hyprax"):
        warnings.simplefilter("ignore")
        go(2, lambda hyper: 0.0 * jnp.sum(hyper["x"]))
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_the_command_line_refuses_a_logger_that_is_none(capsys, tmp_path):
    from hyprax.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["tune", "examples/digits.toml", "--log", "excel", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "log must be one of csv, jsonl, tensorboard, mlflow, wandb; got 'excel'" in capsys.readouterr().err


# With the packages themselves.


def installed(*modules):
    for module in modules:
        pytest.importorskip(module, reason=f'{module} is not installed: pip install "hyprax[loggers]"')


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_written(tmp_path):
    installed("tensorboard")
    make_ndarray = importlib.import_module("tensorboard.util.tensor_util").make_ndarray
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = go(callbacks=[TensorBoard(tmp_path)])
    events = reader.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()["tensors"]
    assert {"value", "gradient_norm", "seconds", "hyper/x[0]"} <= set(tags)
    values = [make_ndarray(event.tensor_proto).item() for event in events.Tensors("value")]
    np.testing.assert_allclose(values, found.column("value"), rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_what_was_written(tmp_path):
    installed("mlflow", "sqlalchemy", "alembic")
    mlflow = importlib.import_module("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    go(3, callbacks=[MLflow(uri)], run=hx.Run(tmp_path / "run"))
    found = go(5, callbacks=[MLflow(uri)], run=hx.Run(tmp_path / "run"))
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("hyprax").experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["search"] == "Optax"
    assert run.data.params["hyper/x.0"] == "3.0"
    assert run.data.tags["hyprax.result"] == "steps_spent"
    history = client.get_metric_history(run.info.run_id, "value")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(found.column("value")))


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(tmp_path, monkeypatch):
    installed("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    found = go(3, callbacks=[WandB(dir=str(tmp_path), name="a run")])
    assert len(found.history) == 3
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    text = b""
    for _ in range(50):  # its own process writes the file
        text = log.read_bytes()
        if b"steps_spent" in text and b"gradient_norm" in text:
            return
        time.sleep(0.2)
    raise AssertionError(text)


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_knows_a_run_that_goes_on(tmp_path, monkeypatch):
    installed("wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for run, steps in (("run", 2), ("run", 3), ("another", 2)):
        go(steps, callbacks=[WandB(dir=str(tmp_path))], run=hx.Run(tmp_path / run))
    # offline-run-DATE-ID, and a further number where two were begun within a second.
    ids = [folder.name.split("-")[3] for folder in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert len(set(ids)) == 2
    assert (tmp_path / "run" / "wandb.id").read_text() in ids


@pytest.mark.parametrize("name", NAMES)
def test_loggers_by_name_make_nothing_before_a_run(name, tmp_path):
    if name not in ("csv", "jsonl"):
        installed(name)
    named(name, tmp_path / "run")
    assert not (tmp_path / "run").exists()
