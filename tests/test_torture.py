"""Runs and inputs under torture, in its five-minute form: `python -m experiments.torture --quick`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_runs_and_inputs_come_out_of_it(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.torture", "--quick", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
