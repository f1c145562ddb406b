"""The notebooks are small, read as they are run, and run from the top to the end."""

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LARGEST = 200_000


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def code(path):
    return ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_explains_its_code_and_is_linked(path):
    assert path.stat().st_size < LARGEST
    for i, source in enumerate(code(path)):
        compile(source, f"{path.name}, cell {i}", "exec")
    kinds = [cell["cell_type"] for cell in cells(path)]
    assert kinds[0] == "markdown"
    assert kinds.count("markdown") >= kinds.count("code") / 2
    faults = [out for cell in cells(path) for out in cell.get("outputs", []) if out["output_type"] == "error"]
    assert faults == []
    assert f"examples/notebooks/{path.name}" in (ROOT / "docs" / "tools.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter and its kernel
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    reason = 'Jupyter is not installed: pip install "hyprax[notebooks]"'
    client, form = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=reason)
    if any("import torch" in source for source in code(path)):
        pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = form.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
