"""The command line, end to end, as a person uses it."""

import html.parser
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hyprax as hx
from hyprax import cli

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
[data]
source = "sklearn"
name = "iris"
scale = "standard"
intercept = false

[split]
criterion = "hold-out"

[model]
kind = "softmax"

[baseline]
lo = 1e-4
hi = 1.0
points = 4

[hyper.penalty]
shape = "weight"
start = "grid"

[search]
steps = 4
learning_rate = 0.05
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "iris.toml"
    path.write_text(RECIPE)
    return path


def call(capsys, *words: str | Path) -> tuple[int, str, str]:
    """Exit status, standard output, standard error of the command line."""
    try:
        cli.main([str(word) for word in words])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    out, err = capsys.readouterr()
    return status, out, err


class Page(html.parser.HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources: list[str] = []
        self.drawings = 0
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "link", "iframe")
        self.drawings += tag == "svg"
        self.sources += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def test_tune_show_report(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    status, text, err = call(capsys, "tune", recipe, "--out", out)
    assert status == 0, err
    assert "12 tuned" in text
    assert "On 36 test rows, each fitted on all 114 others" in " ".join(text.split())
    assert "held-out rows the loss of the model of 12 tuned penalties" in text
    assert "largest relative error" in text
    record = hx.runs.read(out)
    assert len(record.history) == 4
    assert {row["certificate_kind"] for row in record.history} == {"certified"}
    page = Page((out / "report.html").read_text())
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert page.drawings == 6  # objective, gradient, work, probabilities, classes, one leaf
    assert "best of 4 single penalties" in page.text
    status, text, _ = call(capsys, "show", out)
    assert status == 0
    assert "steps_spent" in text
    assert "best value" in text
    (out / "report.html").unlink()
    status, text, _ = call(capsys, "report", out)
    assert status == 0
    assert Path(text.strip()).is_file()


def test_resume_goes_on_and_without_it_a_run_is_refused(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    assert call(capsys, "tune", recipe, "--out", out, "--quiet")[0] == 0
    status, _, err = call(capsys, "tune", recipe, "--out", out)
    assert status == 2
    assert "resume" in err
    status, _, err = call(capsys, "tune", recipe, "--out", out, "--resume", "--set", "search.steps=6", "--quiet")
    assert status == 0, err
    assert len(hx.runs.read(out).history) == 6
    changed = ("--set", "search.steps=7", "--set", "stop.patience=1", "--set", "stop.improvement=1e6")
    status, _, err = call(capsys, "tune", recipe, "--out", out, "--resume", *changed, "--quiet")
    assert status == 0, err
    assert hx.runs.read(out).summary["result"] == "no_progress"
    status, _, err = call(capsys, "tune", recipe, "--out", out, "--resume", "--set", "search.learning_rate=0.5")
    assert status == 2
    assert "search was" in err


@pytest.mark.parametrize(
    "words",
    [
        ("tune", "missing.toml"),
        ("tune", "{recipe}", "--set", "search.stepps=3"),
        ("tune", "{recipe}", "--set", "data.name=cifar"),
        ("tune", "{recipe}", "--set", "split.test=0.001"),
        ("show", "nowhere"),
        ("report", "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(recipe, tmp_path, capsys, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = call(capsys, *(word.format(recipe=recipe) for word in words))
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "must" in err or "there are" in err or "no such file" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iris.toml"]


def test_a_folder_in_use_is_refused(recipe, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    status, _, err = call(capsys, "tune", recipe, "--out", tmp_path / "full")
    assert status == 2
    assert "other files" in err


def test_tables_show_texts_as_they_are(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 3, "config": {}, "environment": {}}')
    rows = [{"row": "1", "label": "[/b]"}, {"row": "2", "label": "[red]:cat:"}]
    (tmp_path / "summary.json").write_text(json.dumps({"tables": [{"title": "[i]Least", "rows": rows}]}))
    status, text, _ = call(capsys, "show", tmp_path)
    assert status == 0
    for shown in ("[/b]", "[red]:cat:", "[i]Least"):
        assert shown in text


def test_version_and_help(capsys):
    assert call(capsys, "--version")[1].strip() == f"hyprax {hx.__version__}"
    status, text, _ = call(capsys, "--help")
    assert status == 0
    assert all(name in text for name in ("tune", "show", "report"))


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 3, "config": {}, "environment": {}}')
    rows = [{"row": "1", "label": "\x1b[31mRED\x1b[2J"}, {"row": "2", "label": "\x9b2J"}]
    (tmp_path / "summary.json").write_text(
        json.dumps({"message": "\x1b]0;title\x07", "tables": [{"title": "\x1b[2J", "rows": rows}]})
    )
    status, text, _ = call(capsys, "show", tmp_path)
    assert status == 0
    assert not set(text) & {"\x1b", "\x9b", "\x07"}
    assert "\\x1b[31mRED" in text


def test_a_plain_install_says_how_to_get_the_command_line(tmp_path):
    for name in ("typer", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module', name='{name}')")
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); runpy.run_module('hyprax', run_name='__main__')"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert 'pip install "hyprax[cli]"' in found.stderr


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_real_process_that_is_stopped_says_how_to_go_on(number, status, word, tmp_path):
    (tmp_path / "long_for_a_test.py").write_text(
        "import hyprax as hx, jax.numpy as jnp\n"
        "def build(splits):\n"
        "    inner = lambda w, hyper, data: jnp.sum((w - hyper['a']) ** 2)\n"
        "    outer = lambda w, hyper, data: jnp.sum(w**2)\n"
        "    return hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(1)), outer), {'a': hx.Positive([1.0])}\n"
    )
    recipe = tmp_path / "custom.toml"
    recipe.write_text(
        '[model]\nkind = "custom"\nfunction = "long_for_a_test:build"\n'
        "[search]\nsteps = 1000000\n[stop]\ngradient = 0.0\npatience = 1000000\n"
    )
    interrupted(recipe, tmp_path / "run", number, status, word)


def interrupted(recipe, out, number, status, word):
    process = subprocess.Popen(
        [sys.executable, "-m", "hyprax", "tune", str(recipe), "--out", str(out)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (out / "history.sqlite").exists() and hx.runs.read(out).history:
            break
        time.sleep(0.1)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert f"{word}; to go on: hyprax tune" in err
    assert "--resume" in err
    assert "Traceback" not in err
    assert (out / "state.safetensors").exists()


def test_a_diverged_run_ends_with_status_one_and_a_report(tmp_path, capsys):
    (tmp_path / "blowing_up.py").write_text(
        "import hyprax as hx, jax.numpy as jnp\n"
        "def build(splits):\n"
        "    inner = lambda w, hyper, data: 0.5 * jnp.sum((w - hyper['a']) ** 2)\n"
        "    outer = lambda w, hyper, data: jnp.log(2.0 - jnp.sum(w))\n"
        "    objective = hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(1)), outer)\n"
        "    return objective, {'a': jnp.asarray([1.0])}\n"
    )
    recipe = tmp_path / "custom.toml"
    recipe.write_text(
        '[model]\nkind = "custom"\nfunction = "blowing_up:build"\n[search]\noptimizer = "sgd"\nlearning_rate = 5.0\n'
    )
    status, _, err = call(capsys, "tune", recipe, "--out", tmp_path / "run")
    assert status == 1
    warning, message = err.strip().splitlines()
    assert re.match(r"warning: step \d+: A non-finite number", warning)
    assert message.startswith(f"{tmp_path / 'run'}: diverged: A non-finite number")
    page = Page((tmp_path / "run" / "report.html").read_text())
    assert "diverged" in page.text
    assert re.search(r"certificates: estimated", page.text)


@pytest.mark.slow
def test_the_digits_example_is_a_good_recipe(tmp_path, capsys):
    words = ("--set", "search.steps=2", "--set", "baseline.points=3", "--quiet")
    assert call(capsys, "tune", ROOT / "examples" / "digits.toml", "--out", tmp_path / "run", *words)[0] == 0
    assert hx.runs.read(tmp_path / "run").best["penalty"].shape == (64, 10)
