"""Test losses by segment, recomputed by dense algebra from the rows of the file."""

import json
import math

import numpy as np
import pytest

import hyprax as hx
from hyprax.recipes import RecipeError, carry_out, prepare
from hyprax.recipes._segments import _segments
from hyprax.report._page import render

ROWS = 180
RECIPE = """
[data]
source = "csv"
path = "set.csv"
target = "y"
features = ["a", "b"]
MORE
[model]
kind = "ridge"
[hyper.penalty]
shape = "feature"
[split]
seed = 1
[objective]
certificate = "none"
[search]
steps = 2
[baseline]
lo = 1e-2
points = 3
"""


def written(folder, more="", text=RECIPE, lone=-1):
    """A table whose rows are told apart by the column a; regions of very different sizes, shops of three rows each."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, ROWS))
    y = a - b + rng.normal(size=ROWS)
    region = np.minimum(rng.geometric(0.1, size=ROWS), 25)
    shop = rng.permutation(np.arange(ROWS) // 3)
    a, b, y = a.tolist(), b.tolist(), y.tolist()
    lines = [f"{a[i]!r},{b[i]!r},r{region[i]:02},s{shop[i]:02},{'alone' * (i == lone)},{y[i]!r}" for i in range(ROWS)]
    (folder / "set.csv").write_text("\n".join(["a,b,region,shop,gain,y", *lines]))
    (folder / "recipe.toml").write_text(text.replace("MORE", more))
    columns = {"region": [f"r{k:02}" for k in region], "shop": [f"s{k:02}" for k in shop]}
    return *map(np.asarray, (a, b, y)), {name: np.asarray(texts) for name, texts in columns.items()}


def ridge(X, y, strengths):
    """The weights of (1/n) Σ loss + ½ Σ λ w², the last column without a penalty."""
    return np.linalg.solve(X.T @ X / len(y) + np.diag([*strengths, 0.0]), X.T @ y / len(y))


def judged(folder, more, settings=(), lone=-1):
    """The rows of the test part, by their numbers in the file; their losses under the three models; the tables."""
    a, b, y, columns = written(folder, more, lone=lone)
    job = prepare(folder / "recipe.toml", settings)
    outcome = carry_out(job, hx.Run(folder / "run", config=job.config), progress=False)
    assert job.splits is not None
    test = np.asarray([np.flatnonzero(a == x)[0] for x in job.splits.test[0][:, 0]])
    known = np.setdiff1d(np.arange(ROWS), test)
    X = np.stack([a, b, np.ones(ROWS)], axis=1)
    assert outcome.judgement is not None
    name = outcome.judgement.models[1].name
    simple = [x for x in np.geomspace(1e-2, 10, 3) if f"({x:.2g})" in name]
    found = np.asarray(hx.natural(outcome.tuned.best)["penalty"])
    losses = [0.5 * (y[known].mean() - y[test]) ** 2]
    losses += [0.5 * (X[test] @ ridge(X[known], y[known], w) - y[test]) ** 2 for w in (simple * 2, found)]
    return test, losses, columns, json.loads((folder / "run" / "summary.json").read_text())["tables"]


def numbers(text):
    """What stands before and after ±; NaN for a dash."""
    return [math.nan if part == "–" else float(part) for part in text.split(" ± ")]


def check_row(row, inside, losses, error):
    assert int(row["test rows"]) == inside.sum()
    shown = [float(text) for text in list(row.values())[2:5]]
    np.testing.assert_allclose(shown, [each[inside].mean() for each in losses], atol=6e-5)
    gains = (losses[1] - losses[2])[inside]
    gain, spread = numbers(row["gain"])
    np.testing.assert_allclose(gain, gains.mean(), atol=6e-5)
    np.testing.assert_allclose(spread, error(gains), atol=6e-5)


def of_rows(gains):
    return gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else math.nan


def test_losses_by_a_column_are_those_of_its_test_rows(tmp_path):
    test, losses, columns, tables = judged(tmp_path, 'segments = "region"')
    regions = columns["region"][test]
    names, counts = np.unique(regions, return_counts=True)
    assert len(names) > 12
    table = tables[1]
    assert table["title"].startswith("Mean test losses by region")
    order = sorted(zip(-counts, names, strict=True))
    assert [row["region"] for row in table["rows"]] == [*(name for _, name in order[:11]), f"{len(names) - 11} others"]
    *rows, rest = table["rows"]
    for row in rows:
        check_row(row, regions == row["region"], losses, of_rows)
    check_row(rest, ~np.isin(regions, [row["region"] for row in rows]), losses, of_rows)
    page = render(hx.runs.read(tmp_path / "run"))
    assert page.index("A gain is established" if "A gain is" in page else "No gain is") < page.index(
        table["title"][:20]
    )
    assert page.index(table["title"][:20]) < page.index("<h2>Comparison")


def test_a_segment_of_one_row_has_a_dash_for_its_standard_error(tmp_path):
    """Nor does an empty name go unseen, or the column of names in one of the table's own."""
    a, *_ = written(tmp_path)
    splits = prepare(tmp_path / "recipe.toml").splits
    assert splits is not None
    lone = np.flatnonzero(a == splits.test[0][0, 0])
    test, losses, _, tables = judged(tmp_path, 'segments = "gain"', lone=int(lone[0]))
    first, last = tables[1]["rows"]
    assert (first["gain (column)"], last["gain (column)"]) == ("(empty)", "alone")
    check_row(first, test != lone, losses, of_rows)
    check_row(last, test == lone, losses, of_rows)
    assert last["gain"].endswith(" ± –")
    assert "–" not in first["gain"]


def test_groups_are_the_segments_where_no_column_is_named(tmp_path):
    """Whole groups are in the test part. Rows of one are judged by their own spread; those of several by that of the
    groups."""
    test, losses, columns, tables = judged(tmp_path, 'groups = "shop"', ["split.by=groups"])
    shops = columns["shop"][test]
    *rows, rest = tables[1]["rows"]
    assert tables[1]["title"].startswith("Mean test losses by shop")
    assert [row["test rows"] for row in rows] == ["3"] * 11
    for row in rows:
        check_row(row, shops == row["shop"], losses, of_rows)
    inside = ~np.isin(shops, [row["shop"] for row in rows])

    def of_shops(gains):
        sums = np.asarray([(gains - gains.mean())[shops[inside] == name].sum() for name in np.unique(shops[inside])])
        return (len(sums) / (len(sums) - 1) * np.sum(sums**2)) ** 0.5 / len(gains)

    check_row(rest, inside, losses, of_shops)


def test_another_column_counts_the_groups_that_rows_are_split_by(tmp_path):
    more = 'groups = "shop"\nsegments = "region"'
    test, losses, columns, tables = judged(tmp_path, more, ["split.by=groups"])
    regions, shops = (columns[name][test] for name in ("region", "shop"))
    largest = tables[1]["rows"][0]
    inside = regions == largest["region"]

    def of_shops(gains):
        sums = np.asarray([(gains - gains.mean())[shops[inside] == name].sum() for name in np.unique(shops[inside])])
        return (len(sums) / (len(sums) - 1) * np.sum(sums**2)) ** 0.5 / len(gains)

    check_row(largest, inside, losses, of_shops)


def test_naming_segments_changes_neither_split_nor_columns(tmp_path):
    written(tmp_path, 'groups = "shop"')
    columns = ['data.features=["a","b","region"]', "data.kinds.region=category"]
    without = prepare(tmp_path / "recipe.toml", columns)
    with_them = prepare(tmp_path / "recipe.toml", [*columns, "data.segments=region"])
    assert without.splits is not None
    assert with_them.splits is not None
    assert without.splits.features == with_them.splits.features
    for before, after in zip(without.splits.test, with_them.splits.test, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(without.splits.train[0], with_them.splits.train[0])
    assert without.config == with_them.config
    assert without.splits.segments is not None
    assert with_them.splits.segments is not None
    assert set(without.splits.segments) <= {f"s{k:02}" for k in range(ROWS // 3)}
    assert set(with_them.splits.segments) <= {f"r{k:02}" for k in range(1, 26)}


def test_a_run_that_has_ended_gets_the_table_afterwards(tmp_path):
    written(tmp_path)
    job = prepare(tmp_path / "recipe.toml")
    carry_out(job, hx.Run(tmp_path / "run", config=job.config, about=job.about), progress=False)
    before = json.loads((tmp_path / "run" / "summary.json").read_text())
    hx.resume(tmp_path / "run", ["data.segments=region"])
    after = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [table["title"][:24] for table in before["tables"][1:2]] == ["Comparison"]
    assert after["tables"][1]["title"].startswith("Mean test losses by region")
    assert after["tables"][0] == before["tables"][0]


def test_arrays_have_segments_too(tmp_path):
    a, b, y, _ = written(tmp_path)
    places = np.arange(ROWS) % 3
    np.savez(tmp_path / "set.npz", X=np.stack([a, b], axis=1), y=y, part=places, bad=a)
    text = RECIPE.replace('source = "csv"', 'source = "npz"').replace("set.csv", "set.npz")
    text = text.replace('target = "y"\nfeatures = ["a", "b"]\n', "")
    (tmp_path / "recipe.toml").write_text(text.replace("MORE", 'segments = "part"'))
    splits = prepare(tmp_path / "recipe.toml").splits
    assert splits is not None
    at = [int(np.flatnonzero(a == x)[0]) for x in splits.test[0][:, 0]]
    np.testing.assert_array_equal(splits.segments, places[at])
    (tmp_path / "recipe.toml").write_text(text.replace("MORE", 'segments = "bad"'))
    with pytest.raises(RecipeError, match=r"data.segments must be whole numbers or texts, one for each input; bad in"):
        prepare(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["data.segments=regoin"],
            "data.segments must name columns of .*, which has a, b, region, shop, gain, y; got 'regoin'",
        ),
        (["data.segments=region", "objective.method=soba"], "data.segments must be left out here"),
        (
            ["data.segments=region", "hyper.weights.shape=example"],
            "data.segments must be",
        ),
    ],
)
def test_segments_that_cannot_be_are_refused(tmp_path, settings, message):
    text = RECIPE.split("[objective]")[0]
    written(tmp_path, text=text)
    with pytest.raises(RecipeError, match=message):
        prepare(tmp_path / "recipe.toml", settings)


def test_rows_that_count_by_their_class_make_means_over_the_segment_and_not_over_its_mixture(tmp_path):
    """With balanced classes the constant is one half: log 2 in every segment, whatever classes it holds."""
    rng = np.random.default_rng(4)
    a, region = np.round(rng.normal(size=ROWS), 1), rng.integers(4, size=ROWS)
    y = (a + 1.5 * rng.normal(size=ROWS) > 1.2 - 0.8 * region).astype(int)
    lines = [f"{a[i]:.1f},{a[i] ** 2:.2f},r{region[i]},{('no', 'yes')[y[i]]}" for i in range(ROWS)]
    (tmp_path / "set.csv").write_text("\n".join(["a,b,region,y", *lines]))
    more = 'segments = "region"\nclass_weight = "balanced"'
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("MORE", more).replace('"ridge"', '"logistic"'))
    job = prepare(tmp_path / "recipe.toml", [])
    carry_out(job, hx.Run(tmp_path / "run", config=job.config), progress=False)
    tables = json.loads((tmp_path / "run" / "summary.json").read_text())["tables"]
    of_segments = next(table for table in tables if "losses by region" in table["title"])
    assert of_segments["title"].endswith("rows count by their class")
    assert len(of_segments["rows"]) == 4
    assert [float(row["a constant"]) for row in of_segments["rows"]] == pytest.approx([math.log(2)] * 4, abs=2e-3)


def test_no_two_segments_have_one_name():
    long = "A" * 60
    levels = ["", "(empty)", long + "A", long + "B", "3 others", *"bcdefgjklm"]
    rows = np.repeat(np.asarray(levels), range(30, 30 - len(levels), -1))
    names = [name for name, _ in _segments(rows)]
    assert len(set(names)) == len(names) == 12
    assert names[:4] == ["(empty)", "(empty) (2)", long + "…", long + "… (2)"]
