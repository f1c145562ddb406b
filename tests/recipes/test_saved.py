"""A table goes in, a model comes out: from the command line, and back in Python; and runs go on from their records."""

import csv
import dataclasses
import queue
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest

import hyprax as hx
from hyprax import cli
from hyprax._objective import FunctionObjective
from hyprax.cli._looking import serve, weights_as_csv
from hyprax.recipes import Model, load
from hyprax.recipes._columns import Column
from hyprax.recipes._data import load_splits
from hyprax.recipes._data_tables import Split
from hyprax.recipes._guess import recipe_for
from hyprax.recipes._preparation import Preparation, scaling
from hyprax.recipes._read import parse_recipe

SETTINGS = (
    "--set=split.test=0.4",
    "--set=search.steps=4",
    "--set=baseline.points=3",
    "--set=hyper.penalty.shape=feature",
    "--set=objective.certificate=none",
)


def call(capsys, *words) -> tuple[int, str, str]:
    try:
        cli.main([str(word) for word in words])
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 rows, three columns; semicolons and decimal commas."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3))
    y = X @ [1.0, -1.0, 0.0] + 5 + 0.3 * rng.normal(size=100)
    with open(folder / "set.csv", "w", newline="", encoding="cp1252") as stream:
        writer = csv.writer(stream, delimiter=";")
        writer.writerow(["größe", "b", "c", "y"])
        writer.writerows([[f"{x:.6f}".replace(".", ",") for x in row] for row in np.column_stack([X, y])])
    return folder


def test_a_table_is_tuned_predicted_and_resumed(folder, capsys):
    table, out = folder / "set.csv", folder / "run"
    status, text, err = call(capsys, "tune", table, "--target", "y", "--out", out, *SETTINGS)
    assert status == 0, err
    assert "set.csv: Windows-1252, semicolons between columns" in err
    assert "größe: numbers" in err
    assert "On 40 test rows, each fitted on all 60 others" in " ".join(text.split())
    assert f"hyprax predict {out}" in text

    # The predictions are those of dense ridge regression on the rows that are not test rows.
    recipe, _ = parse_recipe(recipe_for(table, "y"), table, ["split.test=0.4"])
    assert recipe.data is not None
    splits = load_splits(recipe.data, recipe.split, folder, classify=False, folds=lambda *_: True, intercept=True)
    model = load(out)
    assert model.features == ("größe", "b", "c", "intercept")
    assert model.penalties[-1] == 0
    X, y = splits.train
    w = np.linalg.solve(X.T @ X / 60 + np.diag(model.penalties), X.T @ y / 60)
    np.testing.assert_allclose(model.weights, w, rtol=1e-6)
    status, text, _ = call(capsys, "predict", out, table)
    assert status == 0
    name, *values = text.splitlines()
    assert name == "y"
    found = np.asarray(values, float)
    np.testing.assert_allclose(found[splits.rows], X @ w, rtol=1e-6)
    assert np.mean((found - 5) ** 2) > 0.5

    # In Python, from columns by name, in any order, or an array.
    rows = [row.replace(",", ".").split(";") for row in table.read_text(encoding="cp1252").splitlines()[1:]]
    numbers = np.asarray(rows, float)
    names = ("größe", "b", "c")
    columns = {name: numbers[:, i] for i, name in reversed(list(enumerate(names)))}
    texts = {name: [f"{x!r}".replace(".", ",") for x in column.tolist()] for name, column in columns.items()}
    np.testing.assert_allclose(model.predict(texts), found, rtol=1e-12)
    np.testing.assert_allclose(model.predict(numbers[:, :3]), found, rtol=1e-12)
    with pytest.raises(ValueError, match="it has no 'b'"):
        model.predict({"größe": numbers[:, 0], "c": numbers[:, 2]})
    with pytest.raises(ValueError, match="must be of classes; got ridge"):
        model.predict_proba(texts)

    # The weights in the units of the table are the same model.
    status, text, _ = call(capsys, "export", out)
    assert status == 0
    _, first, *rest = csv.reader(text.splitlines())
    assert [name for name, _ in rest] == ["größe", "b", "c"]
    weights = np.asarray([float(x) for _, x in rest])
    np.testing.assert_allclose(numbers[:, :3] @ weights + float(first[1]), found, rtol=1e-10)

    # A run that stopped early goes on from its own record to the same bits.
    short = folder / "short"
    assert call(capsys, "tune", table, "--target", "y", "--out", short, *SETTINGS, "--set=search.steps=2")[0] == 0
    status, _, err = call(capsys, "resume", short, "--set=search.steps=4", "--quiet")
    assert status == 0, err
    for name in ("best.safetensors", "model.safetensors"):
        assert (short / name).read_bytes() == (out / name).read_bytes()
    status, text, err = call(capsys, "compare", out, short)
    assert (status, err) == (0, "")
    best = f"{hx.runs.read(out).summary['best_value']:.6g}"
    assert text.count(best) == 2
    assert "gain over" in " ".join(text.split())
    outcome = hx.resume(short, ["search.steps=4"], progress=False, say=lambda _: None)
    assert len(outcome.tuned.history) == len(hx.runs.read(out).history)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("tune", "F/set.csv", "--target", "z"), "--target must name a column, one of größe, b, c, y; got 'z'"),
        (("tune", "F/set.csv"), "--target must name a column, one of größe, b, c, y; got nothing"),
        (("tune", "F/gone.csv", "--target", "y"), "gone.csv: there is no such file"),
        (("tune", "F/recipe.toml", "--target", "y"), "--target must be left out for a recipe"),
        (("init", "F/set.csv", "--target", "z"), "--target must name a column"),
        (("predict", "F", "F/set.csv"), "must hold a model; it has no model.json"),
        (("export", "F"), "must hold a model; it has no model.json"),
        (("compare", "F", "F"), "must be the folder of a run"),
        (("watch", "F", "--port=0"), "must be the folder of a run"),
        (("resume", "F"), "must be the folder of a run"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder, capsys, words, said):
    before = sorted(folder.iterdir())
    status, text, err = call(capsys, *(word.replace("F", str(folder), 1) if "F" in word else word for word in words))
    assert status == 2
    assert text == ""
    assert said in err
    assert err.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_a_recipe_is_written_once(folder, capsys):
    out = folder / "new.toml"
    assert call(capsys, "init", folder / "set.csv", "--target", "y", "--out", out)[0] == 0
    recipe, _ = parse_recipe(out.read_text(encoding="utf-8"), out)
    assert recipe.model.kind == "ridge"
    assert recipe.split == Split()
    status, _, err = call(capsys, "init", folder / "set.csv", "--target", "y", "--out", out)
    assert status == 2
    assert "must be a new file" in err


def test_weights_of_classes_are_exported_in_units_and_products_are_not():
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(50, 2)) * [1e-3, 1e5] + [7.0, -1e6]
    first = scaling(inputs, "standard")
    prepare = Preparation(first, "none", None, True)
    columns = tuple(Column(name=name, kind="number") for name in ("a", "b"))
    classes, features = ("x", "y", "z"), ("a", "b", "intercept")
    weights = rng.normal(size=(3, 3))
    model = Model("softmax", "y", classes, columns, features, prepare, None, weights, np.ones((3, 3)))
    header, *rows = csv.reader(weights_as_csv(model).splitlines())
    assert header == ["column", *classes]
    intercept, *slopes = np.asarray([row[1:] for row in rows], float)
    np.testing.assert_allclose(inputs @ slopes + intercept, model.outputs(inputs), rtol=1e-9, atol=1e-9)
    squares = dataclasses.replace(model, prepare=Preparation(first, "squares", first, True))
    with pytest.raises(ValueError, match=r'must be "none" for weights in the units of the table; got "squares"'):
        weights_as_csv(squares)


def test_a_run_is_watched_on_the_loopback(tmp_path):
    """A page that renews itself while the run goes on, and stops doing so when it has ended."""
    run, said = hx.Run(tmp_path / "run"), queue.SimpleQueue()
    objective = FunctionObjective(lambda hyper: (hyper["x"] - 1) ** 2)
    hx.tune(objective, {"x": hx.Positive(2.0)}, steps=2, run=run)
    summary = tmp_path / "run" / "summary.json"
    ended = summary.read_bytes()
    summary.unlink()
    threading.Thread(target=serve, args=(tmp_path / "run", 0, said.put), daemon=True).start()
    address = said.get(timeout=60).split()[0]
    assert address.startswith("http://127.0.0.1:")

    def page() -> str:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return answer.read().decode()

    assert "not finished" in page()
    assert 'http-equiv="refresh"' in page()
    summary.write_bytes(ended)
    assert 'http-equiv="refresh"' not in page()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}../etc/passwd", timeout=60)
    summary.write_text("{")
    with pytest.raises(urllib.error.HTTPError, match="500"):
        page()
