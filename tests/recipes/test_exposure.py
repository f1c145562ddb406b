"""Counts over unequal exposures: recipes beside scikit-learn's regression of rates, weighted by their exposures."""

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor
from sklearn.metrics import d2_tweedie_score

import hyprax as hx
from hyprax.recipes import RecipeError, carry_out, load, prepare
from hyprax.recipes._build import prepare_table

ROWS = 90
SHORT = ["search.steps=2", "baseline.points=3", "hyper.penalty.shape=global"]


def written(folder: Path, name: str = "counts.csv", exposure: list[str] | None = None) -> Path:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(ROWS, 2))
    hours = np.round(rng.uniform(0.5, 40, size=ROWS), 2)
    counts = rng.poisson(hours * np.exp(0.4 * x[:, 0] - 1.5))
    cells = [f"{h:.2f}" for h in hours] if exposure is None else exposure
    rows = [(f"{a:.6f}", f"{b:.6f}", h, str(k)) for (a, b), h, k in zip(x, cells, counts, strict=True)]
    with (folder / name).open("w", newline="") as stream:
        csv.writer(stream).writerows([("a", "b", "hours", "faults"), *rows])
    return folder / name


def rates(table: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    read = np.loadtxt(table, delimiter=",", skiprows=1)
    return read[:, :2], read[:, 2], read[:, 3]


def test_a_fit_is_that_of_rates_weighted_by_their_exposures(tmp_path):
    job = prepare_table(written(tmp_path), "faults", SHORT, exposure="hours")
    assert job.splits is not None
    assert job.refit is not None
    (X, y), V, offsets = job.splits.fitted, job.splits.test[0], job.splits.offsets
    exposure = np.exp(np.concatenate(offsets[:2]))
    theirs = PoissonRegressor(alpha=0.1 * len(y) / exposure.sum(), tol=1e-10, max_iter=100_000)
    theirs.fit(X[:, :2], y / exposure, sample_weight=exposure)
    found = np.exp(job.on_test_rows(job.refit({"penalty": hx.Positive(0.1)}).params))
    np.testing.assert_allclose(found, theirs.predict(V[:, :2]) * np.exp(offsets[2]), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["folds", "hold-out"])
def test_an_exposure_is_in_losses_scores_and_predictions(tmp_path, criterion):
    table = written(tmp_path)
    job = prepare_table(table, "faults", [*SHORT, f"split.criterion={criterion}"], exposure="hours")
    assert job.splits is not None
    assert job.recipe.model.kind == "poisson"
    assert job.splits.features == ("a", "b", "intercept")
    outcome = carry_out(job, hx.Run(tmp_path / "run", config=job.config), progress=False)
    assert outcome.tuned.history[0]["certificate_kind"] == "certified"
    bounds = [row["certificate_bound"] for row in outcome.tuned.history]
    assert np.all(np.isfinite(bounds))

    strength = float(hx.natural(outcome.tuned.best)["penalty"])
    (X, y), (V, z) = job.splits.fitted, job.splits.test
    offset, test_offset = job.splits.fitted_offset, job.splits.offsets[2]
    assert offset is not None
    exposure = np.exp(offset)
    # theirs: Σ e (μ - (y/e) log μ)/Σ e + α/2 ‖w‖²
    theirs = PoissonRegressor(alpha=strength * len(y) / exposure.sum(), tol=1e-10, max_iter=100_000)
    theirs.fit(X[:, :2], y / exposure, sample_weight=exposure)
    expected = theirs.predict(V[:, :2]) * np.exp(test_offset)
    assert outcome.judgement is not None
    constant, _, tuned = outcome.judgement.models
    np.testing.assert_allclose(np.exp(job.on_test_rows(tuned.params)), expected, rtol=1e-5)
    np.testing.assert_allclose(tuned.losses, expected - z * np.log(expected), rtol=1e-5, atol=1e-6)
    one_rate = y.sum() / exposure.sum() * np.exp(test_offset)
    np.testing.assert_allclose(constant.losses, one_rate - z * np.log(one_rate), rtol=1e-9, atol=1e-12)
    weights = np.exp(test_offset)
    d2 = d2_tweedie_score(z / weights, expected / weights, sample_weight=weights, power=1)
    np.testing.assert_allclose(tuned.score, d2, rtol=1e-4)

    model = load(tmp_path / "run")
    assert model.exposure == "hours"
    inputs, hours, _ = rates(table)
    per_hour = np.exp(model.outputs(inputs))
    np.testing.assert_allclose(model.predict(table), hours * per_hour, rtol=1e-12)
    columns = {"a": inputs[:, 0], "b": inputs[:, 1]}
    with pytest.raises(RecipeError, match="must have the columns of the model; it has no 'hours'"):
        model.predict(columns)
    with pytest.raises(RecipeError, match=r"must hold finite numbers, above 0 in 'hours'; got '0.0' in column 'hours'"):
        model.predict(columns | {"hours": np.where(np.arange(ROWS) == 3, 0.0, hours)})


def test_what_is_no_exposure_is_refused(tmp_path):
    numbers = [str(i % 7) for i in range(ROWS)]
    table = written(tmp_path, exposure=numbers)
    with pytest.raises(
        RecipeError, match=r"data.exposure must name a column of numbers > 0; got '0' in column 'hours' at"
    ):
        prepare_table(table, "faults", SHORT, exposure="hours")
    table = written(tmp_path)
    with pytest.raises(RecipeError, match=r"--exposure must name a column, one of a, b, hours, faults; got 'hrs'"):
        prepare_table(table, "faults", SHORT, exposure="hrs")
    with pytest.raises(RecipeError, match=r"--exposure must not name the target"):
        prepare_table(table, "faults", SHORT, exposure="faults")
    recipe = tmp_path / "counts.toml"
    text = (
        '[data]\nsource = "csv"\npath = "counts.csv"\ntarget = "faults"\nexposure = "hours"\n[model]\nkind = "KIND"\n'
    )
    recipe.write_text(text.replace("KIND", "ridge"))
    with pytest.raises(
        RecipeError, match=r'data.exposure must be left out for kind = "ridge": it is for kind = "poisson"'
    ):
        prepare(recipe)
    recipe.write_text(text.replace("KIND", "poisson") + '[objective]\nmethod = "soba"\n')
    with pytest.raises(RecipeError, match=r'data.exposure must be left out for method = "soba"'):
        prepare(recipe)


def test_arrays_have_exposures_too(tmp_path):
    inputs, hours, counts = rates(written(tmp_path))
    np.savez(tmp_path / "counts.npz", X=inputs, y=counts, hours=hours)
    recipe = tmp_path / "counts.toml"
    text = '[data]\nsource = "npz"\npath = "counts.npz"\nexposure = "hours"\n[model]\nkind = "poisson"\n'
    recipe.write_text(text)
    job = prepare(recipe)
    assert job.splits is not None
    np.testing.assert_array_equal(np.sort(np.concatenate(job.splits.offsets)), np.sort(np.log(hours)))
    np.savez(tmp_path / "counts.npz", X=inputs, y=counts, hours=hours - 0.5 * hours.max())
    with pytest.raises(RecipeError, match=r"data.exposure must be finite numbers > 0; got others in hours of"):
        prepare(recipe)
