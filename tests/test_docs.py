"""Every Python example of the README and of the documentation runs, each page with names of its own."""

import importlib.util
import re
import textwrap
from pathlib import Path

import jax
import pytest

from thoroughness import quickly

ROOT = Path(__file__).resolve().parents[1]
# Indented where it stands in a tab or in a note.
BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)
# What the dev environment does not hold: a block that imports one runs where it is installed.
APART = {"torch": 'pip install "hyprax[torch]"', "optuna": 'pip install "hyprax[optuna]"'}
PAGES = [page for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))] if BLOCK.search(page.read_text())]
QUICK = [page for page in PAGES if page.name in ("README.md", "extending.md", "hyperparameters.md")]


def missing(block: str) -> list[str]:
    imported = re.findall(r"^(?:import|from) (\w+)", block, flags=re.MULTILINE)
    return [name for name in imported if name in APART and importlib.util.find_spec(name) is None]


@pytest.mark.parametrize("page", quickly(PAGES, *QUICK), ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("unchecked")
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    names: dict = {"__name__": "example"}
    run, left = 0, None
    # As a reader runs them: with JAX's own settings of promotion, which the rest of the tests tighten.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in BLOCK.finditer(text):
            code = textwrap.dedent(block.group(2))
            if absent := missing(code):
                left = absent[0]
                continue
            if left and not block.group(1):
                break  # on a page about a library that is missing, the later blocks build on what was left out
            line = text.count("\n", 0, block.start(2))
            exec(compile("\n" * line + code, page, "exec"), names)
            run += 1
    if not run:
        pytest.skip(f"{left} is not installed: {APART[str(left)]}")
