"""Weights of classes in recipes, against scikit-learn at equal strength."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import hyprax as hx
from hyprax.recipes import RecipeError, carry_out, load, prepare

RECIPE = """
[data]
source = "csv"
path = "set.csv"
target = "y"
class_weight = WEIGHT
[model]
kind = "KIND"
[search]
steps = 2
[baseline]
points = 3
"""


def job_of(folder, kind, weight, classes):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(160, 2))
    place = np.digitize(X[:, 0] + rng.normal(size=160), [0.5, 1.5][: len(classes) - 1])
    lines = [f"{a:.6f},{b:.6f},{classes[k]}" for (a, b), k in zip(X, place, strict=True)]
    (folder / "set.csv").write_text("\n".join(["a,b,y", *lines]))
    (folder / "recipe.toml").write_text(RECIPE.replace("WEIGHT", weight).replace("KIND", kind))
    return prepare(folder / "recipe.toml")


@pytest.mark.parametrize(
    ("kind", "weight", "classes", "asked"),
    [
        ("logistic", '"balanced"', ["No", "Yes"], "balanced"),
        pytest.param("softmax", "{b = 3, c = 0.5}", ["a", "b", "c"], {1: 3.0, 2: 0.5}, marks=pytest.mark.slow),
    ],
)
def test_weights_of_classes_are_those_of_scikit_learn(tmp_path, kind, weight, classes, asked):
    job = job_of(tmp_path, kind, weight, classes)
    assert job.splits is not None
    outcome = carry_out(job, hx.Run(tmp_path / "run", config=job.config), progress=False)
    assert outcome.tuned.history[0]["certificate_kind"] == "certified"
    strength = float(hx.natural(outcome.tuned.best)["penalty"])
    (X, y), (V, z) = job.splits.fitted, job.splits.test

    each = dict.fromkeys(range(len(classes)), 1.0) | (asked if isinstance(asked, dict) else {})
    counts = np.bincount(y)
    if asked == "balanced":
        each = {k: len(y) / (len(classes) * n) for k, n in enumerate(counts)}
    total = sum(each[k] * n for k, n in enumerate(counts))
    theirs = LogisticRegression(C=1 / (total * strength), class_weight=asked, tol=1e-12, max_iter=10_000)
    theirs.fit(X[:, :-1], y)
    model = load(tmp_path / "run")
    said = model.predict_proba({name: V[:, k] for k, name in enumerate("ab")})
    np.testing.assert_allclose(said, theirs.predict_proba(V[:, :-1]), atol=2e-6)

    # the criterion's constants, the report's losses and scores count rows alike
    scale = len(y) / total
    np.testing.assert_allclose(model.class_weights, [scale * each[k] for k in range(len(classes))])
    count = scale * np.asarray([each[k] for k in z])
    assert outcome.judgement is not None
    constant, _, tuned = outcome.judgement.models
    shares = np.asarray([scale * each[k] * n for k, n in enumerate(counts)]) / len(y)
    np.testing.assert_allclose(constant.losses, -count * np.log(shares[z]), rtol=1e-9)
    expected = log_loss(z, said, sample_weight=count, labels=range(len(classes))) * count.mean()
    np.testing.assert_allclose(tuned.losses.mean(), expected, rtol=1e-5)
    np.testing.assert_allclose(tuned.score, theirs.score(V[:, :-1], z, sample_weight=count))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert "rows count by their class" in summary["tables"][0]["title"]


@pytest.mark.parametrize(
    ("kind", "weight", "message"),
    [
        ("logistic", "{Maybe = 2.0}", "data.class_weight must name classes of the target, No, Yes; got 'Maybe'"),
        ("logistic", "{Yes = 0.0}", 'data.class_weight must be "balanced" or a number > 0; got'),
        ("logistic", '"equal"', 'data.class_weight must be "balanced" or a table; got "equal"'),
        ("pseudo-huber", '"balanced"', 'data.class_weight must be left out for kind = "pseudo-huber"'),
    ],
)
def test_weights_that_cannot_be_are_refused(tmp_path, kind, weight, message):
    with pytest.raises(RecipeError) as refused:
        job_of(tmp_path, kind, weight, ["No", "Yes"])
    assert message in str(refused.value)
