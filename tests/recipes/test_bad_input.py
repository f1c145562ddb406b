"""Bad input meets one line that says where, what must be there and what was got; status 2, and nothing written."""

# ruff: noqa: E501  (the lines are as people meet them)

import gzip
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from hyprax import cli
from hyprax.recipes import RecipeError, _tables, prepare

CSV = '[data]\nsource = "csv"\npath = "{}"\ntarget = "label"\n'
REFUSE = 'missing = "refuse"\n'
NPZ = '[data]\nsource = "npz"\npath = "{}.npz"\n'
IRIS = '[data]\nsource = "sklearn"\nname = "iris"\n'
SOFTMAX = '[model]\nkind = "softmax"\n'
CUSTOM = '[model]\nkind = "custom"\nfunction = "{}"\n'
PENALTY = "[hyper.penalty]\n"
LOG = 'constraint = "log-interval"\n'
TABLES = "data, split, model, hyper, objective, training, evidence, search, stop, baseline"
MODEL = "kind, function, outer, params, targets, delta, width, depth, activation, norm"

MLP = IRIS + '[model]\nkind = "mlp"\n[hyper.learning_rate]\n[training]\n'
OWN = (
    NPZ.format("numbers")
    + '[model]\nkind = "loss"\nfunction = "functions_for_a_test:loss"\nparams = {w = [0.0, 0.0, 0.0]}\n'
)

# Recipes, and the line that each meets; R is the recipe's path.
CASES = {
    # The file
    "[data\n": "R:1: not TOML: Expected ']' at the end of a table declaration (column 6)",
    "[data]\nsource = csv\n": "R:2: not TOML: Invalid value (column 10)",
    "": "R: model must be given",
    # Keys
    IRIS + SOFTMAX + "[serch]\n": f"R:6: serch: unknown key, did you mean search? there are {TABLES}",
    IRIS
    + SOFTMAX
    + "[search]\nstep = 3\n": "R:7: search.step: unknown key, did you mean steps? there are optimizer, learning_rate, schedule, inner, adjoint, step_size, steps, hold_back",
    IRIS
    + SOFTMAX
    + '[search]\noptimizer = "maid"\nlearning_rate = 0.1\n': 'R:8: search.learning_rate must be left out for optimizer = "maid": it is for "adam", "sgd", "momentum", "rmsprop"',
    IRIS
    + SOFTMAX
    + '[search]\nschedule = "cubic"\n': 'R:7: search.schedule must be left out for optimizer = "auto": it is for "hoag"',
    IRIS
    + SOFTMAX
    + '[search]\noptimizer = "fixed"\ninner = 1e-3\n': 'R:6: search.adjoint must be given with optimizer = "fixed"',
    IRIS
    + SOFTMAX
    + '[objective]\ncertificate = "none"\n[search]\noptimizer = "maid"\n': 'R:9: search.optimizer must not be "maid" with certificate = "none": it goes by certificates',
    IRIS
    + "featuers = 3\n"
    + SOFTMAX: "R:4: data.featuers: unknown key, there are scale, intercept, rows, corrupt, scale_targets, expand, positive, source, name",
    IRIS
    + SOFTMAX
    + PENALTY
    + "shap = 1\n": "R:7: hyper.penalty.shap: unknown key, did you mean shape? there are constraint, lo, hi, shape, groups, start",
    IRIS + SOFTMAX + "hyper = {penalty = {shap = 1}}\n": f"R:6: model.hyper: unknown key, there are {MODEL}",
    IRIS + '[model]\nknid = "softmax"\n': f"R:5: model.knid: unknown key, did you mean kind? there are {MODEL}",
    IRIS + "[model]\n": "R:4: model.kind must be given",
    SOFTMAX: 'R: data must be given for kind = "softmax"',
    '[data]\nname = "iris"\n'
    + SOFTMAX: 'R:1: data.source must be given: "sklearn", "csv", "npz", "idx", "images", "openml" or "named"',
    # Types and ranges
    IRIS + SOFTMAX + '[search]\nsteps = "many"\n': 'R:7: search.steps must be a whole number; got "many"',
    IRIS + SOFTMAX + "[search]\nsteps = 2.5\n": "R:7: search.steps must be a whole number; got 2.5",
    IRIS + SOFTMAX + "[search]\nsteps = 0\n": "R:7: search.steps must be a number >= 1; got 0",
    IRIS + SOFTMAX + "[search]\nlearning_rate = inf\n": "R:7: search.learning_rate must be a finite number; got inf",
    IRIS + SOFTMAX + "[search]\nlearning_rate = nan\n": "R:7: search.learning_rate must be a finite number; got nan",
    IRIS + 'intercept = "yes"\n' + SOFTMAX: 'R:4: data.intercept must be true or false; got "yes"',
    "data = 3\n" + SOFTMAX: "R:1: data must be a table; got 3",
    '[data]\nsource = "sklearn"\nname = "digit"\n'
    + SOFTMAX: 'R:3: data.name must be "breast_cancer", "diabetes", "digits", "iris" or "wine"; got "digit"',
    '[data]\nsource = "ftp"\n'
    + SOFTMAX: 'R:2: data.source must be "sklearn", "csv", "npz", "idx", "images", "openml" or "named"; got "ftp"',
    CSV.format("good.csv") + "features = []\n" + SOFTMAX: "R:5: data.features must be a list with an entry; got []",
    CSV.format("good.csv") + "features = [1]\n" + SOFTMAX: "R:5: data.features must be a text in quotes; got 1",
    # Penalties
    IRIS + SOFTMAX + PENALTY + 'start = "grdi"\n': 'R:7: hyper.penalty.start must be a number or "grid"; got "grdi"',
    IRIS
    + SOFTMAX
    + '[objective]\nmethod = "soba"\n'
    + PENALTY
    + 'start = "grid"\n': 'R:9: hyper.penalty.start must be a number without a table [baseline]; got "grid"',
    IRIS
    + SOFTMAX
    + PENALTY
    + "start = 0.0\n": 'R:7: hyper.penalty.start must be a number >= 1e-100 or "grid"; got 0.0',
    IRIS
    + SOFTMAX
    + PENALTY
    + "lo = 0.0\n": 'R:7: hyper.penalty.lo must be left out for constraint = "positive": it is for "interval" and "log-interval"',
    IRIS + SOFTMAX + PENALTY + LOG: 'R:6: hyper.penalty.lo must be given with constraint = "log-interval"',
    IRIS + SOFTMAX + PENALTY + LOG + "lo = 1.0\nhi = 0.1\n": "R:8: hyper.penalty.lo must be below hi = 0.1; got 1",
    IRIS
    + SOFTMAX
    + PENALTY
    + LOG
    + "lo = 0.0\nhi = 0.1\n": 'R:8: hyper.penalty.lo must be at least 1e-100 with constraint = "log-interval"; got 0',
    IRIS
    + SOFTMAX
    + PENALTY
    + LOG
    + "lo = 0.1\nhi = 1\nstart = 3\n": "R:10: hyper.penalty.start must be between lo = 0.1 and hi = 1; got 3",
    IRIS + SOFTMAX + PENALTY + LOG + "lo = 0.1\nhi = inf\n": "R:9: hyper.penalty.hi must be a finite number; got inf",
    IRIS + SOFTMAX + "[baseline]\nlo = 20\n": "R:7: baseline.lo must be below hi = 10; got 20",
    CSV.format("good.csv")
    + '[model]\nkind = "logistic"\n'
    + PENALTY
    + 'shape = "class"\n': 'R:8: hyper.penalty.shape must be "global", "feature", "group", "column", "kind" for kind = "logistic"; got "class"',
    # Data
    CSV.format("gone.csv") + SOFTMAX: "R:3: data.path must be a file; there is no F/gone.csv",
    CSV.format("$HYPRAX_NOWHERE/a.csv")
    + SOFTMAX: "R:3: data.path must name environment variables that are set; got '$HYPRAX_NOWHERE/a.csv'",
    CSV.format("good.csv").replace("label", "lable")
    + SOFTMAX: "R:4: data.target must name columns of F/good.csv, which has a, b, label; got 'lable'",
    CSV.format("good.csv")
    + 'features = ["a", "z"]\n'
    + SOFTMAX: "R:5: data.features must name columns of F/good.csv, which has a, b, label; got 'z'",
    CSV.format("good.csv")
    + 'features = ["a", "a"]\n'
    + SOFTMAX: "R:5: data.features must name columns once; got 'a' more than once",
    CSV.format("good.csv")
    + 'features = ["label"]\n'
    + SOFTMAX: "R:5: data.features must name columns once; got 'label', which is the target: it would be predicted from itself",
    CSV.format("twice.csv")
    + SOFTMAX: "R:3: data.path must have one column of each name; F/twice.csv has 2 columns 'a'",
    CSV.format("only.csv") + SOFTMAX: "R:3: data.path must have a column besides the target; F/only.csv has none",
    CSV.format("nothing.csv") + SOFTMAX: "R:3: data.path must have rows under a header; F/nothing.csv has none",
    CSV.format("nan.csv")
    + REFUSE
    + SOFTMAX: "R:3: data.path must hold finite numbers; got nan in column 'b' at F/nan.csv:3",
    CSV.format("blank.csv")
    + REFUSE
    + SOFTMAX: "R:3: data.path must hold finite numbers; got nothing in column 'b' at F/blank.csv:3",
    CSV.format("text.csv")
    + SOFTMAX: "R:3: data.path must hold finite numbers; got 'red' in column 'b' at F/text.csv:3 (data.features names the columns to use)",
    CSV.format("ragged.csv") + SOFTMAX: "R:3: data.path must have 3 fields a row; F/ragged.csv:3 has 2",
    CSV.format("quoted.csv") + SOFTMAX: "R:3: data.path must have 3 fields a row; F/quoted.csv:5 has 2",
    CSV.format("one.csv") + SOFTMAX: "R:1: data must have two classes at least; got one alone, yes",
    CSV.format("unlabelled.csv")
    + SOFTMAX: "R:4: data.target must be a column of values; got nan at F/unlabelled.csv:3",
    CSV.format("fractions.csv")
    + SOFTMAX: 'R:6: model.kind must be for numbers, such as "ridge"; got targets with fractions',
    CSV.format("good.csv")
    + '[model]\nkind = "ridge"\n': 'R:6: model.kind must be for classes, such as "softmax"; got targets that are texts',
    CSV.format("rare.csv")
    + SOFTMAX: "R:1: data must have three rows at least of each class, to be split; got 1 of class rare",
    IRIS
    + '[model]\nkind = "logistic"\n': 'R:5: model.kind must be "softmax" for more than two classes; got "logistic" and 3 of them',
    IRIS + "rows = 151\n" + SOFTMAX: "R:4: data.rows must be at most 150, the rows there are; got 151",
    IRIS
    + SOFTMAX
    + "[split]\ntrain = 0.5\nvalidation = 0.499\ntest = 0.001\n": "R:9: split.test must be more of 150 rows: that part is empty; got 0.001",
    IRIS + SOFTMAX + "[split]\ntrain = 0.9\n": "R:6: split must be fractions with a sum of at most 1; got 1.4",
    IRIS
    + SOFTMAX
    + '[hyper.weights]\n[split]\ncriterion = "folds"\n': 'R:8: split.criterion must be "hold-out" or "auto": folds are for linear models with method = "implicit", without [hyper.weights] and data.corrupt',
    IRIS
    + SOFTMAX
    + '[search]\nhold_back = "path"\n': 'R:7: search.hold_back must be "auto" or "none" without split.criterion = "folds"',
    IRIS + SOFTMAX + "[split]\nfolds = 200\n": "R:7: split.folds must be at most 114, the rows to fold; got 200",
    IRIS
    + SOFTMAX
    + PENALTY
    + 'shape = "kind"\n': 'R:7: hyper.penalty.shape must not be "kind" with data.expand = "none"',
    NPZ.format("good")
    + 'inputs = "Z"\n'
    + SOFTMAX: "R:4: data.inputs must name an array of F/good.npz, which has X, m, y; got 'Z'",
    NPZ.format("good")
    + 'targets = "m"\n'
    + SOFTMAX: "R:4: data.targets must be numbers or texts (rows,); m in F/good.npz is float64[20, 1]",
    NPZ.format("objects")
    + SOFTMAX: "R:1: data.targets must be an array of numbers or texts; y in F/objects.npz cannot be read (it holds Python objects)",
    NPZ.format("nan")
    + SOFTMAX: "R:1: data must hold finite numbers; got nan in row 3, column 'x1' (and 1 more entries like it)",
    NPZ.format("short") + SOFTMAX: "R:1: data must have a target for each input; got 20 and 19",
    '[data]\nsource = "idx"\ninputs = "good.csv"\ntargets = "good.csv"\n'
    + SOFTMAX: "R:3: data.inputs must be an IDX file; F/good.csv cannot be read (its first bytes are not those of IDX)",
    NPZ.format("huge") + SOFTMAX: "R:5: model.kind: inputs...",
    NPZ.format("images")
    + "intercept = true\n"
    + '[model]\nkind = "cnn"\n[hyper.learning_rate]\n': 'R:4: data.intercept must be false for kind = "cnn": inputs are images',
    # Seeds
    MLP
    + "seed = 99999999999999999999\n": "R:8: training.seed must be a number < 9.22337e+18; got 99999999999999999999",
    # A user's own hyperparameters
    OWN
    + "[hyper.own.l]\nstart = [[1.0, 2.0], [1.0]]\n": "R:9: hyper.own.l.start must be lists of one length; got several",
    OWN + "[hyper.own.l]\nstart = []\n": "R:9: hyper.own.l.start must have a number at least; got none",
    OWN
    + "[hyper.own.l]\nstart = [1.0, 2.0]\nshape = [3]\n": "R:10: hyper.own.l.shape must be a shape that a start of shape [2] can be repeated to; got [3]",
    OWN
    + '[hyper.own.l]\nstart = 5.0\nconstraint = "interval"\nlo = 0.0\nhi = 1.0\n': "R:9: hyper.own.l.start must be between lo = 0 and hi = 1; got 5",
    OWN + '[hyper.own.l]\nconstraint = "interval"\n': 'R:8: hyper.own.l.lo must be given with constraint = "interval"',
    OWN.replace(":loss", ":rows")
    + "[hyper.own.l]\n": "R:6: model.function must return one floating number; the loss returned float64[10]",
    # A user's own function
    '[model]\nkind = "custom"\n': 'R:1: model.function must be given for kind = "custom": "module:function"',
    IRIS
    + SOFTMAX
    + 'function = "a:b"\n': 'R:6: model.function must be left out for kind = "softmax": it is for "loss", "custom"',
    CUSTOM.format("a.b"): 'R:3: model.function must be "module:function"; got "a.b"',
    CUSTOM.format(
        "hyprax_absent:f"
    ): "R:3: model.function: cannot import 'hyprax_absent' (ModuleNotFoundError: No module named 'hyprax_absent')",
    CUSTOM.format(
        "broken_for_a_test:f"
    ): "R:3: model.function: cannot import 'broken_for_a_test' (ModuleNotFoundError: No module named 'absent_thing' at broken_for_a_test.py:1)",
    CUSTOM.format("functions_for_a_test:f"): "R:3: model.function: module 'functions_for_a_test' has no function 'f'",
    CUSTOM.format(
        "functions_for_a_test:fails"
    ): "R:3: model.function: functions_for_a_test:fails failed (ZeroDivisionError: division by zero at functions_for_a_test.py:2)",
    CUSTOM.format(
        "functions_for_a_test:three"
    ): "R:3: model.function must return (objective, hyper); functions_for_a_test:three returned a int",
    CUSTOM.format(
        "functions_for_a_test:nothing"
    ): "R:3: model.function must return hyperparameters that can be tuned; functions_for_a_test:nothing did not: hyper must hold at least one hyperparameter; got a pytree without leaves.",
    CUSTOM.format("csv:reader"): "R:3: model.function: 'csv' is the name of another module, CSV: rename csv.py",
    CUSTOM.format("a:b") + "[baseline]\n": 'R:4: baseline must be left out for kind = "custom": the function decides',
}

FUNCTIONS = """def fails(splits):
    return 1 / 0
def three(splits):
    return 3
def nothing(splits):
    import hyprax, jax.numpy as jnp
    loss = lambda w, hyper, data: jnp.sum(w**2)
    return hyprax.ImplicitObjective(hyprax.Optimum(loss, jnp.zeros(1)), loss), {}
def loss(params, hyper, batch):
    inputs, targets = batch
    return ((inputs @ params["w"] - targets) ** 2).mean() + hyper["l"] * (params["w"] ** 2).sum()
def rows(params, hyper, batch):
    return batch[1]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    rows = [f"{i}.5,{i % 3},{'yes' if i % 2 else 'no'}" for i in range(20)]

    def table(name: str, header: str = "a,b,label", second: str | None = None, rows: list[str] = rows) -> None:
        changed = rows if second is None else [rows[0], second, *rows[2:]]
        (folder / f"{name}.csv").write_text("\n".join([header, *changed]) + "\n")

    table("good")
    table("twice", "a,a,label")
    table("only", "label", rows=["yes", "no"])
    table("nothing", rows=[])
    table("nan", second="1,nan,yes")
    table("blank", second="1, ,yes")
    table("text", second="1,red,yes")
    table("ragged", second="1,yes")
    table("quoted", second='1,2,"a\nb"\n1,2', rows=rows)  # a quoted line break: lines are not rows
    table("one", rows=[row.replace("no", "yes") for row in rows])
    table("unlabelled", rows=[f"{i},1,{i % 2}" for i in range(20)], second="1,1,nan")
    table("fractions", rows=[f"{i},1,{i / 7}" for i in range(20)])
    table("rare", rows=[*rows, "1,1,rare"])
    X, y = np.arange(60.0).reshape(20, 3), np.arange(20) % 2
    np.savez(folder / "good.npz", X=X, y=y, m=np.ones((20, 1)))
    np.savez(folder / "objects.npz", X=X, y=np.asarray([{}] * 20))
    np.savez(folder / "nan.npz", X=np.where(X == 7, np.nan, np.where(X == 11, np.inf, X)), y=y)
    np.savez(folder / "short.npz", X=X, y=y[1:])
    np.savez(folder / "huge.npz", X=1e200 * (X > 30), y=y)
    np.savez(folder / "images.npz", X=X.reshape(20, 3, 1), y=y)
    np.savez(folder / "numbers.npz", X=X, y=X[:, 0])
    (folder / "broken_for_a_test.py").write_text("import absent_thing\n")
    (folder / "functions_for_a_test.py").write_text(FUNCTIONS)
    (folder / "csv.py").write_text("reader = None\n")
    return folder


@pytest.mark.parametrize("text", CASES, ids=[line.split(",")[0] for line in CASES.values()])
def test_bad_input_meets_one_line(text, folder, capsys):
    import csv

    recipe, out = folder / "recipe.toml", folder / "run"
    recipe.write_text(text)
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", str(recipe), "--out", str(out)])
    printed, line = capsys.readouterr()
    assert stop.value.code == 2
    expected = CASES[text].replace("F/", f"{folder}/").replace("CSV", str(csv.__file__))
    expected = expected.replace("R:", f"{recipe}:", 1)
    if expected.endswith("..."):  # the engine's own words follow
        assert line.startswith(expected[:-3])
        assert line.count("\n") == 1
    else:
        assert line == expected + "\n"
    assert printed == ""
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["search.steps"], "--set: must be key=value, such as search.steps=200; got 'search.steps'"),
        (["search.steps=x"], '--set: search.steps must be a whole number; got "x"'),
        (["serch.steps=1"], f"--set: serch: unknown key, did you mean search? there are {TABLES}"),
        (["data.name.x=1"], "--set: data.name.x must not be below name, which is a value and no table"),
        (["data.rows=151"], "--set: data.rows must be at most 150, the rows there are; got 151"),
        (["baseline.lo=20"], "--set: baseline.lo must be below hi = 10; got 20"),
        (
            ["search.steps=2", "model.kind=logistic"],
            '--set: model.kind must be "softmax" for more than two classes; got "logistic" and 3 of them',
        ),
        (["split.test=0.8"], "--set: split must be fractions with a sum of at most 1; got 1.05"),
    ],
)
def test_bad_settings_are_told_from_a_bad_file(settings, line, tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(IRIS + SOFTMAX)
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", str(recipe), *(f"--set={text}" for text in settings), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", line + "\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("source", ['"openml"\nname = "no-such-set-anywhere"', '"named"\nname = "mnist"'])
def test_openml_out_of_reach_is_one_line(source, tmp_path, capsys, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there: the request fails at once
    for name in ("no_proxy", "NO_PROXY", "HYPRAX_DATA", "SCIKIT_LEARN_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(tmp_path / "cache"))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[data]\nsource = {source}\n{SOFTMAX}")
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", str(recipe), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{recipe}:3: data.name: OpenML cannot be reached for ")
    assert line.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_grid_that_cannot_be_solved_for_writes_nothing(tmp_path, capsys):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"{IRIS}{SOFTMAX}[objective]\ninner_tolerance = 1e-30\n[baseline]\npoints = 2\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", str(recipe), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{recipe}:7: objective.inner_tolerance: no strength of the baseline's grid was solved for")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", "{", "config.json: cannot be read"),
        ("config.json", "[]", "config.json: must hold a JSON object; got a list"),
        ("config.json", "{}", "config.json: must hold the configuration of a run"),
        ("history.sqlite", "no database", "history.sqlite: cannot be opened"),
        ("summary.json", "", "summary.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["show", "report"])
def test_a_damaged_record_is_one_line(command, name, text, words, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": 3, "config": {}, "environment": {}}')
    (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as stop:
        cli.main([command, str(tmp_path)])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"{tmp_path}/{words}")
    assert line.count("\n") == 1


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(IRIS + SOFTMAX)
    with pytest.raises(SystemExit) as stop:
        cli.main(["tune", str(recipe), "--out", str(tmp_path / "file" / "run")])
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert str(tmp_path / "file" / "run") in line
    assert line.count("\n") == 1


def test_messages_are_of_a_bearable_length_and_without_escapes():
    error = RecipeError(
        f"must be one of a, b; got {'x' * 3000} and \x1b[2J", key="y" * 5000, file="recipe.toml", line=3
    )
    assert len(str(error)) < 400
    assert "\x1b" not in str(error)
    assert "(3,000 characters)" in str(error)
    assert len(str(RecipeError("word " * 3000))) < 1600


def refused(folder, text):
    (folder / "r.toml").write_text(text)
    with pytest.raises(RecipeError) as error:
        prepare(folder / "r.toml")
    return str(error.value)


def test_what_a_variable_holds_is_not_shown(tmp_path, monkeypatch):
    secret = tmp_path / "sesame"
    secret.mkdir()
    (secret / "t.csv").write_text("a,b\n1,2\n3,x\n")
    np.savez(secret / "t.npz", X=np.zeros((3, 2)))
    monkeypatch.setenv("HYPRAX_TEST_DATA", str(secret))
    for name, source in (("t.csv", "csv"), ("none.csv", "csv"), ("t.npz", "npz"), ("t.csv", "npz")):
        target = 'target = "y"\n' if source == "csv" else ""
        text = f'[data]\nsource = "{source}"\npath = "$HYPRAX_TEST_DATA/{name}"\n{target}[model]\nkind = "ridge"\n'
        said = refused(tmp_path, text)
        assert "sesame" not in said
        assert f"$HYPRAX_TEST_DATA/{name}" in said


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((10**9, 10**9), "<f8"), ((-1, 5), "<f8"), ((2, 3), "<U500000000"), ((2**62, 4), "|u1"), ((0,), "<f8")],
)
def test_shapes_that_no_file_can_hold_are_refused_by_the_header(tmp_path, shape, kind):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": kind, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", header.getvalue() + bytes(1000))
        archive.writestr("y.npy", header.getvalue())
    said = refused(tmp_path, NPZ.format("d") + '[model]\nkind = "ridge"\n')
    assert "data.inputs must" in said
    assert str(list(shape)) in said


def test_a_packed_table_that_grows_without_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_tables, "MOST_UNPACKED", 2**16)
    monkeypatch.setattr(_tables, "MOST_CELLS", 2**14)
    text = CSV.format("d.csv") + '[model]\nkind = "ridge"\n'
    (tmp_path / "d.csv").write_bytes(gzip.compress(b"a,label\n" + b"0,0\n" * 2**15))
    assert "must hold at most 65536 bytes if packed" in refused(tmp_path, text)
    (tmp_path / "d.csv").write_bytes(b"a,label\n" + b"0,0\n" * 2**13)
    assert "must have at most 16384 fields" in refused(tmp_path, text)


def test_the_columns_of_a_wide_table_are_looked_up_once(tmp_path):
    names = [f"c{i}" for i in range(10**5)]
    (tmp_path / "d.csv").write_text(f"{','.join(names)},label\n" + f"{'1.5,' * 10**5}2\n" * 2)
    found = _tables.read_table(tmp_path / "d.csv")
    began = time.process_time()
    assert [found.column(name)[0] for name in (*names, "label")] == ["1.5"] * 10**5 + ["2"]
    assert time.process_time() - began < 20  # by the place of each name in a list: minutes
