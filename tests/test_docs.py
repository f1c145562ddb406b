"""Every Python example of the README and of the documentation runs, each page with names of its own."""

import re
from pathlib import Path

import jax
import pytest

from thoroughness import quickly

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if BLOCK.search(page.read_text())]
QUICK = [page for page in PAGES if page.name in ("README.md", "extending.md", "hyperparameters.md")]


@pytest.mark.parametrize("page", quickly(PAGES, *QUICK), ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("unchecked")
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    if "import torch" in text:
        pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
    names: dict = {"__name__": "example"}
    # As a reader runs them: with JAX's own settings of promotion, which the rest of the tests tighten.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in BLOCK.finditer(text):
            line = text.count("\n", 0, block.start(1))
            exec(compile("\n" * line + block.group(1), page, "exec"), names)
