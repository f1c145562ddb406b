"""The examples run, and find what they say."""

import runpy
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import hyprax as hx
from hyprax import cli
from thoroughness import slow

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.usefixtures("unchecked")
def test_the_python_example_fits_a_screen_and_lowers_the_loss(capsys):
    path = EXAMPLES / "digits.py"
    assert len(path.read_text().splitlines()) <= 15
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = runpy.run_path(str(path))
    assert names["tuned"].best_value < 0.6 * names["tuned"].history[0]["value"]
    assert "certified" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["gaussian_process", "kernel_ridge", "banded_ridge"])
def test_many_strengths_are_better_than_one_in_these_examples(name, capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    if name == "gaussian_process":
        assert -names["tuned"].best_value > names["evidence"] + 0.005
    elif name == "kernel_ridge":
        assert names["many"].best_value < 0.98 * names["one"].best_value
    else:
        assert names["error"] < 0.8 * names["theirs"]
        assert "certified" in capsys.readouterr().out


@pytest.mark.slow
def test_the_example_of_an_own_loss(tmp_path, capsys, monkeypatch):
    for name in ("custom.toml", "custom.py"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        cli_status = _call("tune", "custom.toml", "--out", "run", "--set", "search.steps=30")
    assert cli_status == 0, capsys.readouterr().err
    record = hx.runs.read("run")
    assert {row["certificate_kind"] for row in record.history} == {"estimated"}
    assert record.column("value")[-1] < record.column("value")[0]
    # The gradient of the example is that of its own loss: central differences of the value.
    from hyprax.recipes import prepare

    job = prepare(tmp_path / "custom.toml")
    assert job.hyper is not None
    accuracy = hx.Accuracy(jax.numpy.asarray(1e-11), jax.numpy.asarray(1e-11))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = job.objective.init(job.hyper)
        answer, state = job.objective.value_and_grad(job.hyper, state, accuracy)

        def value(shift: float) -> float:
            moved = {"penalty": hx.Positive(1e-4 * np.exp(shift * np.eye(10)[2]))}
            return float(job.objective.value(moved, state, accuracy)[0].value)

        slope = (value(1e-3) - value(-1e-3)) / 2e-3
    np.testing.assert_allclose(answer.grad["penalty"].raw[2], slope, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        slow("cleaning", "certified", ["search.steps=6"]),
        slow("schedules", "none", ["search.steps=4", "training.steps=12"]),
        ("evidence", "none", ["search.steps=30"]),
    ],
)
def test_the_examples_of_every_engine(name, kind, settings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        words = [f"--set={text}" for text in settings]
        status = _call("tune", str(EXAMPLES / f"{name}.toml"), "--out", "run", *words)
    printed = capsys.readouterr()
    assert status == 0, printed.err
    record = hx.runs.read("run")
    assert {row["certificate_kind"] for row in record.history} == {kind}
    assert record.column("value")[-1] < record.column("value")[0]
    comparison, *others = (table["rows"] for table in record.summary["tables"])
    (score,) = {float(row["test accuracy"]) for row in comparison[-1:]}
    assert score > 0.85 if name != "schedules" else score > 0.5
    if name == "cleaning":
        assert float(others[0][0]["AUC"]) > 0.9
        assert "Wrong labels" in printed.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch_weight_decay", "noisy_labels_torch"])
@pytest.mark.usefixtures("unchecked")
def test_the_examples_with_torch_find_better_settings(name, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        names = runpy.run_path(str(EXAMPLES / f"{name}.py"))
    assert names["tuned"].best_value < 0.9 * names["tuned"].history[0]["value"]
    before, after = names["accuracies"]
    assert after > before
    if name == "noisy_labels_torch":
        assert names["auc"] > 0.8


def _call(*words: str) -> int:
    try:
        cli.main(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0
