"""The experiments on text at their smallest sizes: what a card is asked, and how soon short trainings mislead."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(folder, *command):
    settings = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *command, "--quick"],
        cwd=folder,
        env=settings,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "given", [(), ("--compute", "bfloat16"), ("--attention", "xla")], ids=["float32", "bfloat16", "attention of jax.nn"]
)
def test_a_language_model_is_undone_and_agrees_with_what_is_stored(tmp_path, given):
    code, out, err = run(
        tmp_path, "experiments.language_model", "--size", "tiny", "--device", "cpu", "--steps", "6", *given
    )
    assert code == 0, err[-2000:]
    assert "| the start came back, bit for bit | yes, attempt 1 |" in out
    apart = {line.split(" | ")[0].strip("| "): line for line in out.splitlines() if line.startswith("| ")}
    loosest = 0.1 if "bfloat16" in given else 1e-3
    for mode in ("Checkpointed", "StoreAll"):
        assert float(apart[mode].strip("| ").split(" | ")[-1]) < loosest, apart[mode]


@pytest.mark.slow
def test_a_card_that_is_not_there_is_one_sentence(tmp_path):
    code, out, _ = run(tmp_path, "experiments.language_model", "--size", "tiny", "--device", "gpu", "--steps", "2")
    assert code == 0
    assert "--device gpu: JAX finds none" in out


@pytest.mark.slow
def test_the_horizon_is_measured_at_its_smallest(tmp_path):
    code, out, err = run(tmp_path, "experiments.horizon")
    assert code == 0, err[-2000:]
    assert "| whole | 24 | 1.00 | 1.00 | 1.00 |" in out
    assert (tmp_path / "out" / "experiments" / "horizon" / "horizon.png").stat().st_size > 10_000
