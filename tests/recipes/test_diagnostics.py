"""What the report draws of the test rows."""

import numpy as np
import pytest
from scipy.special import expit

from hyprax.recipes._diagnostics import area_under_curve, calibration, probabilities
from hyprax.report import _figures as figures
from hyprax.report._page import _of_the_model


def test_log_odds_and_logits_give_the_same_probabilities():
    odds = np.array([-800.0, -1.0, 0.0, 2.0, 800.0])
    said = probabilities(odds)
    np.testing.assert_allclose(said[:, 1], expit(odds), rtol=1e-12)
    np.testing.assert_allclose(probabilities(np.c_[np.zeros(5), odds]), said, rtol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_bins_hold_every_row_once_and_true_probabilities_lie_on_the_diagonal(classes):
    draw = np.random.default_rng(0)
    said = draw.dirichlet(np.full(classes, 0.7), size=20_000)
    true = np.array([draw.choice(classes, p=p) for p in said[:4000]])
    bins = np.asarray(calibration(said[:4000], true, np.ones(4000)))
    assert bins[:, 2].sum() == 4000
    assert np.all(np.diff(bins[:, 0]) > 0)
    np.testing.assert_allclose(bins[:, 1], bins[:, 0], atol=5 * 0.5 / 400**0.5)
    (one,) = calibration(said[:1], true[:1], np.ones(1))
    assert one[2] == 1


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    outputs, true = np.array([0.3, -1.0, 2.0, 0.3, 0.1]), np.array([0, 0, 1, 1, 1])
    pairs = [(a > b) + 0.5 * (a == b) for a in outputs[true == 1] for b in outputs[true == 0]]
    np.testing.assert_allclose(area_under_curve(outputs, true), np.mean(pairs))
    np.testing.assert_allclose(area_under_curve(np.c_[np.ones(5), 1 + outputs], true), np.mean(pairs))
    assert np.isnan(area_under_curve(outputs, np.ones(5, int)))


def test_all_that_is_drawn_stands_on_the_page():
    of_classes = {
        "calibration": {"a": [[0.1, 0.0, 5]]},
        "confusion": {"classes": ["x", "y"], "counts": [[2, 1], [0, 2]]},
    }
    of_numbers = {"predictions": {"said": [1.0, 2.0], "true": [1.5, 2.0], "rows": 2}}
    titles = [title for drawn in (of_classes, of_numbers) for title, _, _ in _of_the_model(drawn)]
    assert titles == [f"{what} on the test rows" for what in ("Probabilities", "Classes", "Predictions")]


def test_pictures_bear_names_of_any_kind():
    names = ["$x_1^$", "<b>", "a" * 80, "\x1b[31m"]
    bins = [[0.1, 0.0, 5], [0.9, 1.0, 5]]
    drawn = [
        figures.calibration(dict.fromkeys(names, bins)),
        figures.confusion(names, np.eye(4, dtype=int).tolist()),
        figures.predictions({"said": [1.0], "true": [1.0]}),
        figures.hyperparameter("penalty", np.ones(4), np.arange(1.0, 5.0), None, names),
        figures.hyperparameter("penalty", np.ones(40), np.arange(1.0, 41.0), None, [f"c{i}" for i in range(40)]),
    ]
    assert all(text.rstrip().endswith("</svg>") for text in drawn)
    assert not any("<b>" in text or "\x1b" in text for text in drawn)
