"""The scripts of the gallery run and draw, and what its page says of them holds, as do the numbers that stand there."""

import runpy
from collections.abc import Callable
from pathlib import Path

import jax
import matplotlib
import pytest
from matplotlib.figure import Figure

from thoroughness import quickly

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "examples" / "gallery"
PICTURES = ROOT / "docs" / "pictures"
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
LARGEST = 64_000
NAMES = sorted(path.stem for path in SCRIPTS.glob("[a-z]*.py"))

# What the page says in words, of the numbers that the script returns.
CLAIMS: dict[str, Callable[[dict[str, float]], list[bool]]] = {
    "calibrated_probabilities": lambda found: [
        found["largest distance from the diagonal, tuned strength"] < 0.15,
        found["largest distance from the diagonal, next to no penalty"] > 0.2,
        found["test log-loss, tuned strength"] < found["test log-loss, next to no penalty"],
    ],
    "certificate_and_error": lambda found: [
        found["errors above their bound, of 30"] == 0,
        found["bound over error at a tolerance of 1e-6, look-ahead"]
        < found["bound over error at a tolerance of 1e-6, Ehrhardt and Roberts"],
    ],
    "column_groups": lambda found: [
        found["splits of ten on which a strength a kind is better"] == 9,
        found["mean test error, a strength a kind"] < found["mean test error, one strength"],
        found["median strength of squares"] > 100 * found["median strength of columns"],
        found["median strength of products"] > 100 * found["median strength of columns"],
    ],
    "dropped_columns": lambda found: [
        found["columns kept, ridge"] == 65,
        found["columns kept, elastic net"] < 65 / 3,
        abs(found["test R², elastic net"] - found["test R², ridge"]) < 0.02,
    ],
    "input_relevance": lambda found: [found["measurements above every probe"] == 6],
    "learning_rates": lambda found: [
        found["loss judged by, a rate a step"] < 0.6 * found["loss judged by, a tuned constant rate"],
        found["test accuracy, a rate a step"] > found["test accuracy, a tuned constant rate"],
    ],
    "leave_one_out": lambda found: [
        found["largest difference to 150 fits"] <= found["largest bound"] < 1e-3,
        found["its loss"] <= found["least of the twelve"],
    ],
    "many_tasks": lambda found: [
        found["proved for new tasks after 300"] < found["proved for new tasks after 30"] / 2,
        found["seen on 300 new tasks after 300"] < found["proved for new tasks after 300"] / 5,
        found["its mean loss is the least within"] < 1e-6,
    ],
    "overfitted_validation": lambda found: [
        found["validation loss, Adam, last over first"] < 0.5 * found["validation loss, Gate, last over first"],
        found["test loss, Adam, last over least"] > 1.1,
        found["test loss, Adam, last over first"] > 1.05,
        found["test loss, Gate, last over least"] < 1.02,
        found["test loss, Gate, last over first"] < 0.95,
    ],
    "posterior_band": lambda found: [
        found["deviation of the function among the data, at -2"]
        < found["in the gap, at 0.25"]
        < found["outside, at 5"],
        0.07 < found["noise found"] < 0.13,
    ],
    "shrinkage_path": lambda found: [
        found["cross-validated loss, free"] < found["cross-validated loss, one for all"],
        found["test loss, chosen"] <= found["test loss, free"],
    ],
    "smooth_terms": lambda found: [
        found["test error, smooth effects"] < found["test error, straight effects"],
    ],
    "torch_module": lambda found: [
        found["validation loss, tuned"] < found["validation loss at the start"],
        found["test accuracy, tuned"] >= found["test accuracy at the start"],
    ],
    "two_penalties": lambda found: [
        found["least of 144 pairs on a grid"] >= found["mean loss"] - found["proved gap"],
        found["proved gap"] <= 0.01 * found["mean loss"] * 1.01,
    ],
    "wrong_labels": lambda found: [
        found["AUC of the weights for wrong labels"] > 0.8,
        found["of them with a wrong label"] > 0.6 * found["weights below a quarter"],
        found["test accuracy, weights found"] > found["test accuracy, all weights equal"],
    ],
}


def stored(name: str) -> dict[str, float]:
    lines = (PICTURES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return {words: float(number) for number, words in (line.split(maxsplit=1) for line in lines)}


def test_there_are_at_least_twelve_and_each_has_claims():
    assert len(NAMES) >= 12
    assert sorted(CLAIMS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_script_has_a_small_picture_and_its_place_on_the_page(name):
    picture = PICTURES / f"{name}.svg"
    assert picture.stat().st_size < LARGEST
    assert "<dc:date>" not in picture.read_text(encoding="utf-8")
    for part in (f"](pictures/{name}.svg)", f'"docs/pictures/{name}.txt"', f'"examples/gallery/{name}.py"'):
        assert part in PAGE
    assert all(CLAIMS[name](stored(name)))
    assert 20 <= len((SCRIPTS / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 75


@pytest.mark.parametrize("name", quickly(NAMES, "dropped_columns", "two_penalties"))
@pytest.mark.usefixtures("unchecked")
def test_a_script_draws_and_finds_what_the_page_says(name, monkeypatch):
    if name == "torch_module":
        pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
    monkeypatch.syspath_prepend(str(SCRIPTS))
    # As a reader runs them: with JAX's own settings of promotion, which the rest of the tests tighten.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), matplotlib.rc_context():
        figure, facts = runpy.run_path(str(SCRIPTS / f"{name}.py"))["main"]()
        figure.draw_without_rendering()
    assert isinstance(figure, Figure)
    assert all(axes.has_data() for axes in figure.axes)
    assert list(facts) == list(stored(name))
    assert all(CLAIMS[name](facts)), facts
    assert facts == pytest.approx(stored(name), rel=0.1, abs=1e-5)
