"""What a recipe says of linear models on new data, against dense algebra: folds, refits, gains, warnings."""

import jax
import numpy as np
import pytest

import hyprax as hx
from hyprax.recipes import RecipeError, carry_out, prepare
from hyprax.recipes._judgement import spread
from hyprax.report._page import render
from hyprax.search._cross_validated import drawn_folds

RECIPE = """
[data]
source = "npz"
path = "set.npz"
[model]
kind = "ridge"
[hyper.penalty]
shape = "feature"
[split]
test = 0.4
seed = 4
[objective]
certificate = "none"
[search]
steps = 10
[baseline]
lo = 1e-3
hi = 10.0
points = 5
"""


def job_of(folder, matter, *settings, noise=1.0, text=RECIPE):
    """A set of 100 rows of which 60 are fitted, its weights given."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, len(matter)))
    np.savez(folder / "set.npz", X=X, y=X @ matter + noise * rng.normal(size=100))
    (folder / "recipe.toml").write_text(text)
    return prepare(folder / "recipe.toml", settings)


def ridge(X, y, strengths, rows):
    """The weights of (1/n) Σ loss + ½ Σ λ w²: n counts all rows, also those that a fold leaves out; the last column
    is not penalised."""
    return np.linalg.solve(X.T @ X / rows + np.diag([*strengths, 0.0]), X.T @ y / rows)


def test_folds_are_the_criterion_and_refits_are_compared_on_test_rows(tmp_path):
    job = job_of(tmp_path, [1.0, -1.0, 0.0])
    assert job.splits is not None
    (X, y), (V, z) = job.splits.train, job.splits.test
    assert X.shape == (60, 4)
    assert job.splits.features[-1] == "intercept"
    run = hx.Run(tmp_path / "run", config=job.config)
    outcome = carry_out(job, run, progress=False)

    def criterion(strengths):
        total = 0.0
        for fit, held in drawn_folds(5, 60, None, jax.random.fold_in(jax.random.key(4), 0)):
            w = ridge(X[fit], y[fit], strengths, 60)
            total += 0.5 * np.sum((X[held] @ w - y[held]) ** 2)
        return total / 60

    grid = np.geomspace(10, 1e-3, 5)
    values = [criterion(np.full(3, x)) for x in grid]
    simple, tuned = outcome.contestants
    np.testing.assert_allclose(simple.validation_loss, min(values), rtol=1e-6)
    found = np.asarray(hx.natural(outcome.tuned.best)["penalty"])
    np.testing.assert_allclose(tuned.validation_loss, criterion(found), rtol=1e-6)
    assert tuned.validation_loss < simple.validation_loss

    assert outcome.judgement is not None
    constant, one, many = outcome.judgement.models
    strengths = [np.full(3, grid[int(np.argmin(values))]), found]
    losses = [0.5 * (V @ ridge(X, y, each, 60) - z) ** 2 for each in strengths]
    np.testing.assert_allclose(constant.losses, 0.5 * (y.mean() - z) ** 2, rtol=1e-9)
    np.testing.assert_allclose(one.losses, losses[0], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(many.losses, losses[1], rtol=1e-5, atol=1e-9)
    gain = outcome.judgement.gain
    np.testing.assert_allclose(gain.value, np.mean(losses[0] - losses[1]), rtol=1e-4)
    assert gain.rows == 40
    assert "of one fit on one split" in gain.meaning()
    assert any("Only 60 rows judge" in text for text in outcome.judgement.warnings)
    assert any("hypergradient entries are above noise" in text for text in outcome.judgement.warnings)
    assert not any("constant" in text for text in outcome.judgement.warnings)

    # The report begins with it.
    record = hx.runs.read(tmp_path / "run")
    first, second, largest = record.summary["tables"]
    assert first["title"].startswith("On 40 test rows, each fitted on all 60 others")
    assert next(row[""] for row in first["rows"]) == "a constant"
    assert second["title"] == "Comparison"
    assert {row["column"] for row in largest["rows"][:2]} == {"x0", "x1"}
    assert {row["penalty"] for row in largest["rows"] if row["column"] == "intercept"} == {"none"}
    drawn = record.summary["drawn"]["predictions"]
    assert drawn["rows"] == len(drawn["said"]) == 40
    np.testing.assert_allclose(drawn["true"], z, rtol=1e-12)  # not scaled
    left = np.subtract(drawn["true"], drawn["said"])
    np.testing.assert_allclose(0.5 * left**2, losses[1], rtol=1e-4, atol=1e-8)
    assert record.summary["columns"] == ["x0", "x1", "x2", "intercept"]
    page = render(record)
    assert "Predictions on the test rows" in page
    assert page.index("On 40 test rows") < page.index(gain.meaning()[:40]) < page.index("The objective")


@pytest.mark.slow
def test_nothing_to_gain_is_said(tmp_path):
    """No column matters: nested folds hold six penalties to one, and no model is better than a constant."""
    job = job_of(tmp_path, np.zeros(6))
    assert job.held_back
    outcome = carry_out(job, hx.Run(tmp_path / "run", config=job.config), progress=False)
    assert outcome.judgement is not None
    said = " ".join(outcome.judgement.warnings)
    assert "better than a constant" in said
    np.testing.assert_allclose(outcome.judgement.gain.value, 0, atol=0.02)
    path = hx.runs.read(tmp_path / "run").summary["path"]
    assert len(path["strengths"]) == len(path["criterion"]) == len(path["gains"])
    assert ("Nothing to gain" in said) == (path["chosen"] == 0)


@pytest.mark.slow
def test_few_of_many_that_matter_are_found(tmp_path):
    job = job_of(tmp_path, np.r_[np.full(2, 2.0), np.zeros(18)])
    outcome = carry_out(job, None, progress=False)
    assert outcome.judgement is not None
    assert outcome.judgement.gain.value > 0
    found = np.asarray(hx.natural(outcome.tuned.best)["penalty"])
    assert found[:2].max() < np.median(found[2:])


def test_standard_errors_of_clusters_count_them():
    """Rows that are copies of one another are one."""
    values = np.random.default_rng(0).normal(size=20)
    plain = spread(values, None)
    np.testing.assert_allclose(plain, (values.std(ddof=1) / 20**0.5, 19))
    np.testing.assert_allclose(spread(np.repeat(values, 7), np.repeat(np.arange(20), 7)), plain, rtol=1e-12)
    assert spread(values, np.zeros(20)) == (np.inf, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("by", "over"), [("groups", "groups"), ("time", "time")])
def test_a_recipe_by_groups_or_in_time_is_judged_as_it_says(tmp_path, by, over):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 6))
    groups = np.arange(200) // 8
    y = X[:, 0] + rng.normal(size=25)[groups] + 0.3 * rng.normal(size=200)
    np.savez(tmp_path / "set.npz", X=X, y=y, g=groups)
    text = RECIPE.replace('path = "set.npz"', 'path = "set.npz"\ngroups = "g"')
    (tmp_path / "recipe.toml").write_text(text)
    outcome = carry_out(prepare(tmp_path / "recipe.toml", [f"split.by={by}"]), None, progress=False)
    assert outcome.judgement is not None
    assert over in outcome.judgement.gain.caution
    assert outcome.judgement.gain.degrees_of_freedom < (20 if by == "groups" else 80)


def test_a_fold_of_one_class_is_named_and_not_the_tolerance(tmp_path):
    """In time the first fold is fitted on rows of one class: without a penalty its intercept has no optimum."""
    x = np.random.default_rng(0).normal(size=48)
    lines = [f"{x[k]:.5f},{'late' if k >= 12 and k % 2 else 'early'}" for k in range(48)]
    (tmp_path / "t.csv").write_text("\n".join(["x,y", *lines]))
    text = '[data]\nsource = "csv"\npath = "t.csv"\ntarget = "y"\n[model]\nkind = "logistic"\n[split]\nby = "time"\n'
    (tmp_path / "t.toml").write_text(f'{text}[objective]\ncertificate = "none"\n[baseline]\npoints = 2\n')
    job = prepare(tmp_path / "t.toml", ["split.folds=4"])
    with pytest.raises(
        RecipeError, match=r"data: no strength .* \(split.by and split.folds say .*a fold holds one class"
    ):
        carry_out(job, None, progress=False)
