"""Bad input meets one line that says where, what was given and what is allowed; status 2, and nothing written."""

from pathlib import Path

import numpy as np
import pytest

from hyprax import cli

CSV = '[data]\nsource = "csv"\npath = "{}"\ntarget = "label"\n'
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
    "": "R: model: missing, and there is no default",
    # Keys
    IRIS + SOFTMAX + "[serch]\n": f"R:6: serch: unknown key, did you mean search? allowed are {TABLES}",
    IRIS
    + SOFTMAX
    + "[search]\nstep = 3\n": "R:7: search.step: unknown key, did you mean steps? allowed are optimiser, "
    "learning_rate, schedule, inner, adjoint, step_size, steps",
    IRIS + SOFTMAX + '[search]\noptimiser = "maid"\nlearning_rate = 0.1\n': "R:8: search.learning_rate: given for "
    'optimiser = "maid", allowed for "adam", "sgd", "momentum", "rmsprop"',
    IRIS + SOFTMAX + '[search]\nschedule = "cubic"\n': 'R:7: search.schedule: given for optimiser = "adam", allowed '
    'for "hoag"',
    IRIS + SOFTMAX + '[search]\noptimiser = "fixed"\ninner = 1e-3\n': "R:6: search.adjoint: missing, and optimiser = "
    '"fixed" asks for it',
    IRIS + SOFTMAX + '[objective]\ncertificate = "none"\n[search]\noptimiser = "maid"\n': "R:9: search.optimiser: "
    'given "maid", allowed with a certificate other than "none"',
    IRIS + "featuers = 3\n" + SOFTMAX: "R:4: data.featuers: unknown key, allowed are scale, intercept, rows, corrupt, "
    "scale_targets, source, name",
    IRIS + SOFTMAX + PENALTY + "shap = 1\n": "R:7: hyper.penalty.shap: unknown key, did you mean shape? allowed are "
    "constraint, lo, hi, shape, groups, start",
    IRIS + SOFTMAX + "hyper = {penalty = {shap = 1}}\n": f"R:6: model.hyper: unknown key, allowed are {MODEL}",
    IRIS + '[model]\nknid = "softmax"\n': f"R:5: model.knid: unknown key, did you mean kind? allowed are {MODEL}",
    IRIS + "[model]\n": "R:4: model.kind: missing, and there is no default",
    SOFTMAX: 'R: data: missing, and kind = "softmax" asks for it',
    '[data]\nname = "iris"\n' + SOFTMAX: 'R:1: data.source: missing, allowed are "sklearn", "csv", "npz", "idx", '
    '"openml", "named"',
    # Types and ranges
    IRIS + SOFTMAX + '[search]\nsteps = "many"\n': 'R:7: search.steps: given "many", allowed are whole numbers',
    IRIS + SOFTMAX + "[search]\nsteps = 2.5\n": "R:7: search.steps: given 2.5, allowed are whole numbers",
    IRIS + SOFTMAX + "[search]\nsteps = 0\n": "R:7: search.steps: given 0, allowed are numbers >= 1",
    IRIS + SOFTMAX + "[search]\nlearning_rate = inf\n": "R:7: search.learning_rate: given inf, allowed are finite "
    "numbers",
    IRIS + SOFTMAX + "[search]\nlearning_rate = nan\n": "R:7: search.learning_rate: given nan, allowed are finite "
    "numbers",
    IRIS + 'intercept = "yes"\n' + SOFTMAX: 'R:4: data.intercept: given "yes", allowed are true, false',
    "data = 3\n" + SOFTMAX: "R:1: data: given 3, allowed are tables",
    '[data]\nsource = "sklearn"\nname = "digit"\n' + SOFTMAX: 'R:3: data.name: given "digit", allowed are '
    '"breast_cancer", "diabetes", "digits", "iris", "wine"',
    '[data]\nsource = "ftp"\n' + SOFTMAX: 'R:2: data.source: given "ftp", allowed are "sklearn", "csv", "npz", "idx", '
    '"openml", "named"',
    CSV.format("good.csv")
    + "features = []\n"
    + SOFTMAX: "R:5: data.features: given [], allowed are lists with an entry",
    CSV.format("good.csv") + "features = [1]\n" + SOFTMAX: "R:5: data.features: given 1, allowed are texts in quotes",
    # Penalties
    IRIS + SOFTMAX + PENALTY + 'start = "grdi"\n': 'R:7: hyper.penalty.start: given "grdi", allowed are numbers or '
    '"grid"',
    IRIS + SOFTMAX + PENALTY + 'start = "grid"\n': 'R:7: hyper.penalty.start: given "grid", allowed with a table '
    "[baseline]",
    IRIS + SOFTMAX + PENALTY + "start = 0.0\n": "R:7: hyper.penalty.start: given 0.0, allowed are numbers >= 1e-100 or "
    '"grid"',
    IRIS
    + SOFTMAX
    + PENALTY
    + "lo = 0.0\n": "R:7: hyper.penalty.lo: given without an interval, allowed with constraint = "
    '"interval" or "log-interval"',
    IRIS + SOFTMAX + PENALTY + LOG: 'R:6: hyper.penalty.lo: missing, and constraint = "log-interval" asks for it',
    IRIS
    + SOFTMAX
    + PENALTY
    + LOG
    + "lo = 1.0\nhi = 0.1\n": "R:8: hyper.penalty.lo: given 1, allowed is below hi = 0.1",
    IRIS
    + SOFTMAX
    + PENALTY
    + LOG
    + "lo = 0.0\nhi = 0.1\n": "R:8: hyper.penalty.lo: given 0, allowed with constraint = "
    '"log-interval" are numbers >= 1e-100',
    IRIS + SOFTMAX + PENALTY + LOG + "lo = 0.1\nhi = 1\nstart = 3\n": "R:10: hyper.penalty.start: given 3, allowed is "
    "between lo = 0.1 and hi = 1",
    IRIS + SOFTMAX + PENALTY + LOG + "lo = 0.1\nhi = inf\n": "R:9: hyper.penalty.hi: given inf, allowed are finite "
    "numbers",
    IRIS + SOFTMAX + "[baseline]\nlo = 2\n": "R:7: baseline.lo: given 2, allowed is below hi = 1",
    CSV.format("good.csv")
    + '[model]\nkind = "logistic"\n'
    + PENALTY
    + 'shape = "class"\n': "R:8: hyper.penalty.shape: "
    'given "class", allowed for kind = "logistic" are "global", "feature", "group"',
    # Data
    CSV.format("gone.csv") + SOFTMAX: "R:3: data.path: given 'gone.csv': there is no file F/gone.csv",
    CSV.format("$HYPRAX_NOWHERE/a.csv") + SOFTMAX: "R:3: data.path: given '$HYPRAX_NOWHERE/a.csv': that environment "
    "variable is not set",
    CSV.format("good.csv").replace("label", "lable") + SOFTMAX: "R:4: data.target: there is no column 'lable' in "
    "F/good.csv, allowed are a, b, label",
    CSV.format("good.csv") + 'features = ["a", "z"]\n' + SOFTMAX: "R:5: data.features: there is no column 'z' in "
    "F/good.csv, allowed are a, b, label",
    CSV.format("good.csv") + 'features = ["a", "a"]\n' + SOFTMAX: "R:5: data.features: given 'a' more than once",
    CSV.format("good.csv") + 'features = ["label"]\n' + SOFTMAX: "R:5: data.features: given 'label', which is the "
    "target: it would be predicted from itself",
    CSV.format("twice.csv") + SOFTMAX: "R:3: data.path: F/twice.csv has 2 columns 'a', allowed is one",
    CSV.format("only.csv") + SOFTMAX: "R:3: data.path: F/only.csv has no column besides the target",
    CSV.format("nothing.csv") + SOFTMAX: "R:3: data.path: F/nothing.csv has no rows under its header",
    CSV.format("nan.csv") + SOFTMAX: "R:3: data.path: F/nan.csv:3: column 'b' holds nan, allowed are finite numbers",
    CSV.format("blank.csv") + SOFTMAX: "R:3: data.path: F/blank.csv:3: column 'b' holds nothing, allowed are finite "
    "numbers",
    CSV.format("text.csv") + SOFTMAX: "R:3: data.path: F/text.csv:3: column 'b' holds 'red', allowed are numbers "
    "(data.features names the columns to use)",
    CSV.format("ragged.csv") + SOFTMAX: "R:3: data.path: F/ragged.csv:3: given 2 fields, allowed are 3",
    CSV.format("quoted.csv") + SOFTMAX: "R:3: data.path: F/quoted.csv:5: given 2 fields, allowed are 3",
    CSV.format("one.csv") + SOFTMAX: "R:1: data: given a single class, yes; allowed are two or more",
    CSV.format("unlabelled.csv")
    + SOFTMAX: "R:4: data.target: F/unlabelled.csv:3: column 'label' holds nan, allowed are values",
    CSV.format("fractions.csv")
    + SOFTMAX: 'R:6: model.kind: given targets with fractions, allowed are classes (or kind = "ridge")',
    CSV.format("good.csv") + '[model]\nkind = "ridge"\n': "R:6: model.kind: given targets that are texts, allowed are "
    'numbers (or kind = "softmax")',
    CSV.format("rare.csv")
    + SOFTMAX: "R: split.train: class rare, in 1 of 21 rows, is not in the training part, allowed "
    "are parts with every class",
    IRIS + '[model]\nkind = "logistic"\n': "R:5: model.kind: given 3 classes, allowed for logistic are 2",
    IRIS + "rows = 151\n" + SOFTMAX: "R:4: data.rows: given 151, allowed are at most 150, the rows there are",
    IRIS + SOFTMAX + "[split]\ntrain = 0.5\nvalidation = 0.499\ntest = 0.001\n": "R:9: split.test: given 0.001 of 150 "
    "rows: that part is empty",
    IRIS + SOFTMAX + "[split]\ntrain = 0.9\n": "R:6: split: given fractions with the sum 1.4, allowed is at most 1",
    NPZ.format("good")
    + 'inputs = "Z"\n'
    + SOFTMAX: "R:4: data.inputs: no array 'Z' in F/good.npz, allowed are X, y, m",
    NPZ.format("good")
    + 'targets = "m"\n'
    + SOFTMAX: "R:4: data.targets: m in F/good.npz is float64[20, 1], allowed are numbers or texts (rows,)",
    NPZ.format("objects") + SOFTMAX: "R:3: data.path: F/objects.npz cannot be read as an npz file of numbers and texts "
    "(it is none, or holds Python objects)",
    NPZ.format("nan") + SOFTMAX: "R:1: data: row 3, column 'x1' holds nan (and 1 more entries like it), allowed are "
    "finite numbers",
    NPZ.format("short") + SOFTMAX: "R:1: data: given 20 inputs and 19 targets, allowed are as many",
    '[data]\nsource = "idx"\ninputs = "good.csv"\ntargets = "good.csv"\n' + SOFTMAX: "R:3: data.inputs: F/good.csv "
    "cannot be read as IDX (its first bytes are not those of IDX)",
    NPZ.format("huge")
    + SOFTMAX: "R:5: model.kind: data: given an entry of size 1e+200, allowed are at most 1e+60: bounds take powers of "
    "it; scale the data",
    NPZ.format("images") + "intercept = true\n" + '[model]\nkind = "cnn"\n[hyper.learning_rate]\n': "R:4: "
    'data.intercept: given true, allowed for kind = "cnn" is false: inputs are images',
    # Seeds
    MLP + "seed = 99999999999999999999\n": "R:8: training.seed: given 99999999999999999999, allowed are numbers < "
    "9.22337e+18",
    # Reversal
    MLP + 'steps = 2\nmode = "reversible"\nmomentum = 1e-9\n': "R:7: training: beta1: given 1e-09 with Reversible, "
    "allowed are numbers above 0.000488 and up to 4: a step with a factor 0 forgets what was before it, and needs "
    "hx.unroll.Checkpointed",
    # A user's own hyperparameters
    OWN + "[hyper.own.l]\nstart = [[1.0, 2.0], [1.0]]\n": "R:9: hyper.own.l.start: given lists of several lengths, "
    "allowed is one",
    OWN + "[hyper.own.l]\nstart = []\n": "R:9: hyper.own.l.start: given no number, allowed is one at least",
    OWN + "[hyper.own.l]\nstart = [1.0, 2.0]\nshape = [3]\n": "R:10: hyper.own.l.shape: given [3], allowed is one that "
    "a start of shape [2] can be repeated to",
    OWN + '[hyper.own.l]\nstart = 5.0\nconstraint = "interval"\nlo = 0.0\nhi = 1.0\n': "R:9: hyper.own.l.start: "
    "given 5, allowed is between lo = 0 and hi = 1",
    OWN + '[hyper.own.l]\nconstraint = "interval"\n': 'R:8: hyper.own.l.lo: missing, and constraint = "interval" asks '
    "for it",
    OWN.replace(":loss", ":rows") + "[hyper.own.l]\n": "R:6: model.function: the loss returned float64[10], allowed is "
    "one floating number",
    # A user's own function
    '[model]\nkind = "custom"\n': 'R:1: model.function: missing, and kind = "custom" asks for it: "module:function"',
    IRIS
    + SOFTMAX
    + 'function = "a:b"\n': 'R:6: model.function: given for kind = "softmax", allowed for "loss", "custom"',
    CUSTOM.format("a.b"): 'R:3: model.function: given "a.b", allowed are "module:function"',
    CUSTOM.format(
        "hyprax_absent:f"
    ): "R:3: model.function: cannot import 'hyprax_absent' (ModuleNotFoundError: No module named 'hyprax_absent')",
    CUSTOM.format(
        "broken_for_a_test:f"
    ): "R:3: model.function: cannot import 'broken_for_a_test' (ModuleNotFoundError: No "
    "module named 'absent_thing' at broken_for_a_test.py:1)",
    CUSTOM.format("functions_for_a_test:f"): "R:3: model.function: module 'functions_for_a_test' has no function 'f'",
    CUSTOM.format("functions_for_a_test:fails"): "R:3: model.function: functions_for_a_test:fails failed "
    "(ZeroDivisionError: division by zero at functions_for_a_test.py:2)",
    CUSTOM.format(
        "functions_for_a_test:three"
    ): "R:3: model.function: functions_for_a_test:three returned int, allowed is (objective, hyper)",
    CUSTOM.format("functions_for_a_test:nothing"): "R:3: model.function: functions_for_a_test:nothing returned "
    "hyperparameters that cannot be tuned: hyper: given a pytree without leaves, allowed is at least one "
    "hyperparameter.",
    CUSTOM.format("csv:reader"): "R:3: model.function: 'csv' is the name of another module, CSV: rename csv.py",
    CUSTOM.format("a:b") + "[baseline]\n": 'R:4: baseline: given for kind = "custom", allowed for every other: the '
    "function decides",
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
    assert line == expected.replace("R:", f"{recipe}:", 1) + "\n"
    assert printed == ""
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == [
        path for path in before if path.name != "__pycache__"
    ]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["search.steps"], "--set: given 'search.steps', allowed is key=value, such as search.steps=200"),
        (["search.steps=x"], '--set: search.steps: given "x", allowed are whole numbers'),
        (["serch.steps=1"], f"--set: serch: unknown key, did you mean search? allowed are {TABLES}"),
        (["data.name.x=1"], "--set: data.name.x: given a key below name, which is a value and not a table"),
        (["data.rows=151"], "--set: data.rows: given 151, allowed are at most 150, the rows there are"),
        (["baseline.lo=2"], "--set: baseline.lo: given 2, allowed is below hi = 1"),
        (["search.steps=2", "model.kind=logistic"], "--set: model.kind: given 3 classes, allowed for logistic are 2"),
        (["split.test=0.5"], "--set: split: given fractions with the sum 1.25, allowed is at most 1"),
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
        ("config.json", "[]", "config.json: given a list, allowed is an object"),
        ("config.json", "{}", "config.json: given something else, allowed is the configuration of a run"),
        ("history.sqlite", "no database", "history.sqlite: cannot be read"),
        ("summary.json", "", "summary.json: cannot be read"),
    ],
)
@pytest.mark.parametrize("command", ["show", "report"])
def test_a_damaged_record_is_one_line(command, name, text, words, tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"config": {}, "environment": {}}')
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
