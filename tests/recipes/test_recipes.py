"""Recipes: what they build, and a one-line error with file, line and key for each thing that can be wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

import hyprax as hx
from hyprax.recipes import RecipeError, prepare
from hyprax.recipes._sources import read_idx

GOOD = """
[data]
source = "sklearn"
name = "iris"
scale = "standard"
intercept = false

[model]
kind = "softmax"

[hyper.penalty]
shape = "weight"
start = 0.01

[search]
steps = 3
"""


def write(folder: Path, text: str, name: str = "recipe.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, *settings: str) -> str:
    with pytest.raises(RecipeError) as caught:
        prepare(path, settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_recipe_becomes_a_job(tmp_path):
    job = prepare(write(tmp_path, GOOD))
    assert job.splits is not None
    assert isinstance(job.objective, hx.CrossValidated)
    assert len(job.objective.parts) == 5
    assert job.hyper is not None
    assert job.hyper["penalty"].value.shape == (4, 3)
    np.testing.assert_allclose(job.hyper["penalty"].value, 0.01)
    sizes = [len(part[1]) for part in (job.splits.train, job.splits.validation, job.splits.test)]
    assert sizes[1] == 0  # folds are made of all rows but those of the test part
    assert sizes[0] + sizes[2] == 150
    np.testing.assert_allclose(job.splits.train[0].mean(axis=0), 0, atol=1e-12)


def test_a_validation_part_that_is_asked_for_is_the_criterion(tmp_path):
    for settings in (["split.validation=0.25"], ["split.criterion=hold-out"]):
        job = prepare(write(tmp_path, GOOD), settings)
        assert job.splits is not None
        assert isinstance(job.objective, hx.ImplicitObjective)
        assert isinstance(job.objective.certifier, hx.implicit.LookAhead)
        sizes = [len(part[1]) for part in (job.splits.train, job.splits.validation, job.splits.test)]
        assert sum(sizes) == 150
        assert min(sizes) > 30
        assert len(job.splits.fitted[1]) == sizes[0] + sizes[1]
    # The test part is the same whatever judges the hyperparameters.
    folded = prepare(write(tmp_path, GOOD)).splits
    assert folded is not None
    np.testing.assert_array_equal(folded.test[1], job.splits.test[1])


def test_squares_and_products_are_columns_of_their_own(tmp_path):
    job = prepare(write(tmp_path, GOOD), ["data.expand=products", "hyper.penalty.shape=kind"])
    assert job.splits is not None
    assert job.hyper is not None
    X = job.splits.train[0]
    assert X.shape[1] == 4 + 4 + 6 == len(job.splits.features)
    assert job.splits.kinds == (0,) * 4 + (1,) * 4 + (2,) * 6
    assert job.hyper["penalty"].value.shape == (3,)
    assert job.splits.features[8] == "sepal length (cm)*sepal width (cm)"
    product = X[:, 0] * X[:, 1]
    np.testing.assert_allclose(X[:, 8], (product - product.mean()) / product.std(), atol=1e-12)
    np.testing.assert_allclose(X.std(axis=0), 1)


def test_settings_override_the_file(tmp_path):
    path = write(tmp_path, GOOD)
    job = prepare(path, ["search.steps=7", "hyper.penalty.shape=class", 'data.name="wine"', "split.seed=3"])
    assert job.recipe.search.steps == 7
    assert job.hyper is not None
    assert job.hyper["penalty"].value.shape == (3,)
    assert job.splits is not None
    assert job.splits.train[0].shape[1] == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "expected"), [("global", ()), ("class", (3,)), ("feature", (4, 1)), ("weight", (4, 3))]
)
def test_every_penalty_shape(tmp_path, shape, expected):
    job = prepare(write(tmp_path, GOOD), [f"hyper.penalty.shape={shape}"])
    assert job.hyper is not None
    answer = hx.hypergradient(job.objective, job.hyper)[0]
    assert answer.grad["penalty"].raw.shape == expected
    assert answer.certificate.kind == "certified"


def test_constraints_hold_the_bounds(tmp_path):
    path = write(tmp_path, GOOD)
    bounds = ["hyper.penalty.lo=1e-3", "hyper.penalty.hi=0.1"]
    for constraint, kind in (("log-interval", hx.LogInterval), ("interval", hx.Interval)):
        job = prepare(path, [*bounds, f"hyper.penalty.constraint={constraint}"])
        assert job.hyper is not None
        assert isinstance(job.hyper["penalty"], kind)
        low, high = job.start_at(1e-9)["penalty"].value, job.start_at(1e9)["penalty"].value
        assert np.all(low > 1e-3)
        assert np.all(high < 0.1)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("serch.steps=3", ["--set", "serch", "unknown key", "search"]),
        ("search.stepps=3", ["--set", "search.stepps", "unknown key", "steps"]),
        ("search.steps=many", ['--set: search.steps must be a whole number; got "many"']),
        ("search.steps=0", ["search.steps must be a number >= 1; got 0"]),
        ("search.optimizer=bfgs", ["search.optimizer", '"bfgs"', '"adam"']),
        ("model.kind=forest", ["model.kind", '"forest"', '"softmax"']),
        ("data.name=cifar", ["data.name", '"cifar"', '"digits"']),
        ("data.source=ftp", ["data.source", "ftp", "csv"]),
        ("data.intercepts=true", ["data.intercepts", "unknown key", "intercept"]),
        ("split.train=1.5", ["split.train must be", "got 1.5"]),
        ("split.train=0.8", ["split", "at most 1"]),
        ("split.criterion=fold", ['split.criterion must be "auto", "folds" or "hold-out"']),
        ("split.test=0.001", ["split.test", "empty"]),
        ("hyper.penalty.lo=0.1", ["hyper.penalty", "lo"]),
        ("hyper.penalty.start=-1", ['hyper.penalty.start must be a number >= 1e-100 or "grid"']),
        ("model.function=a:b", ["model", "custom"]),
        ("model.kind=logistic", ["hyper.penalty.shape"]),
        ("data.rows=100000", ["data.rows", "at most 150"]),
        ("nonsense", ["--set", "key=value"]),
        ("model.kind.deeper=1", ["--set", "model.kind"]),
    ],
)
def test_bad_settings(tmp_path, setting, words):
    message = refused(write(tmp_path, GOOD), setting)
    for word in words:
        assert word in message


def test_errors_name_file_and_line(tmp_path):
    path = write(tmp_path, GOOD.replace("steps = 3", 'steps = "three"'))
    assert refused(path).startswith(f'{path}:16: search.steps must be a whole number; got "three"')
    path = write(tmp_path, GOOD.replace("start = 0.01", "begin = 0.01"))
    assert refused(path).startswith(f"{path}:13: hyper.penalty.begin: unknown key")
    path = write(tmp_path, GOOD + "[data\n")
    assert refused(path).startswith(f"{path}:17: not TOML")
    assert "no such file" in refused(tmp_path / "missing.toml")
    assert "model must be given" in refused(write(tmp_path, '[data]\nsource = "sklearn"\nname = "iris"\n'))


CSV = "a,b,label\n" + "".join(f"{i % 7},{i % 3}.5,{'yes' if i % 2 else 'no'}\n" for i in range(40))


REFUSE = 'missing = "refuse"'


def csv_recipe(folder: Path, table: str, extra: str = "", kind: str = "softmax") -> Path:
    write(folder, table, "table.csv")
    return write(
        folder,
        f'[data]\nsource = "csv"\npath = "table.csv"\ntarget = "label"\n{extra}\n[model]\nkind = "{kind}"\n',
    )


def test_csv_is_loaded(tmp_path):
    splits = prepare(csv_recipe(tmp_path, CSV)).splits
    assert splits is not None
    assert splits.classes == ("no", "yes")
    assert splits.features == ("a", "b", "intercept")
    splits = prepare(csv_recipe(tmp_path, CSV, 'features = ["b"]\nintercept = true')).splits
    assert splits is not None
    assert splits.features == ("b", "intercept")
    assert np.all(splits.train[0][:, 1] == 1)


@pytest.mark.parametrize(
    ("table", "extra", "words"),
    [
        (CSV.replace("label", "lable"), "", ["got 'label'", "a, b, lable", "data.target"]),
        (CSV, 'features = ["a", "z"]', ["got 'z'", "data.features"]),
        (CSV.replace("\n3,", "\n,", 1), REFUSE, ["table.csv:5", "got nothing in column 'a'", "finite numbers"]),
        (CSV.replace("\n3,", "\nnan,", 1), REFUSE, ["table.csv:5", "got nan in column 'a'", "finite numbers"]),
        (CSV.replace("\n3,", "\ninf,", 1), "", ["table.csv:5", "got inf in column 'a'"]),
        (CSV.replace("\n3,", "\nthree,", 1), "", ["table.csv:5", "'three'", "numbers"]),
        (CSV.replace("\n3,", "\n3,9,", 1), "", ["table.csv:5 has 4"]),
        (CSV.replace("yes", "no"), "", ["got one alone, no"]),
        ("a,b,label\n", "", ["must have rows under a header"]),
        (CSV.replace(",no\n", ",\n", 1), "", ["table.csv:2", "got nothing"]),
    ],
    ids=("target", "feature", "blank", "nan", "inf", "text", "ragged", "one class", "empty", "no target"),
)
def test_bad_tables(tmp_path, table, extra, words):
    message = refused(csv_recipe(tmp_path, table, extra))
    assert message.startswith(str(tmp_path / "recipe.toml"))
    for word in words:
        assert word in message


def test_a_class_missing_from_training_is_refused(tmp_path):
    table = CSV + "1,1,rare\n"
    path = csv_recipe(tmp_path, table)
    assert "three rows at least of each class, to be split; got 1 of class rare" in refused(path, "split.train=0.3")
    path = csv_recipe(tmp_path, table + "1,1,rare\n" * 2)
    held_out = ("split.train=0.1", "split.criterion=hold-out")
    assert "got none of class rare, in 3 of 43 rows" in refused(path, *held_out)


def test_targets_must_fit_the_model(tmp_path):
    numbers = "a,label\n" + "".join(f"{i},{i / 7}\n" for i in range(30))
    assert prepare(csv_recipe(tmp_path, numbers, kind="ridge")).splits is not None
    assert "targets that are texts" in refused(csv_recipe(tmp_path, CSV, kind="ridge"))
    np.savez(tmp_path / "set.npz", X=np.arange(60.0).reshape(30, 2), y=np.arange(30) / 7)
    path = write(tmp_path, '[data]\nsource = "npz"\npath = "set.npz"\n[model]\nkind = "softmax"\n')
    assert "fractions" in refused(path)


def test_npz_and_idx(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (30, 4, 4), dtype=np.uint8), rng.integers(0, 3, 30).astype(np.uint8)
    np.savez(tmp_path / "set.npz", X=images, y=labels, ragged=np.zeros((30, 2)))
    path = write(tmp_path, '[data]\nsource = "npz"\npath = "set.npz"\nscale = "unit"\n[model]\nkind = "softmax"\n')
    splits = prepare(path).splits
    assert splits is not None
    assert splits.image_shape == (4, 4)
    assert splits.train[0].max() == 1.0
    assert "got 'Z'" in refused(path, "data.inputs=Z")
    assert "ragged in" in refused(path, "data.targets=ragged")
    for name, array, rank in (("x", images, 3), ("y", labels, 1)):
        raw = struct.pack(f">HBB{rank}I", 0, 8, rank, *array.shape) + array.tobytes()
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(raw))
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz", "data.inputs"), images)
    path = write(tmp_path, '[data]\nsource = "idx"\ninputs = "x.gz"\ntargets = "y.gz"\n[model]\nkind = "softmax"\n')
    assert prepare(path).splits is not None
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0\0\7\1"))
    assert "must be an IDX file" in refused(path)
    assert "must be a file" in refused(path, "data.inputs=missing.gz")
    assert "environment variables that are set" in refused(path, "data.inputs=$HYPRAX_NOWHERE/x.gz")
    np.save(tmp_path / "objects.npy", np.asarray([{}], dtype=object))
    np.savez(tmp_path / "set.npz", X=np.asarray([{}] * 30, dtype=object), y=labels)
    path = write(tmp_path, '[data]\nsource = "npz"\npath = "set.npz"\n[model]\nkind = "softmax"\n')
    assert "it holds Python objects" in refused(path)


def test_named_sets_come_from_the_data_folder(tmp_path, data_folder, monkeypatch):
    monkeypatch.setenv("HYPRAX_DATA", str(data_folder))
    path = write(tmp_path, '[data]\nsource = "named"\nname = "mnist"\nrows = 500\n[model]\nkind = "softmax"\n')
    splits = prepare(path).splits
    assert splits is not None
    assert splits.image_shape == (28, 28)
    assert len(splits.classes) == 10
    monkeypatch.setenv("HYPRAX_DATA", str(tmp_path))
    assert "HYPRAX_DATA" in refused(path)


CUSTOM = '[model]\nkind = "custom"\nfunction = "{}"\n[search]\nsteps = 2\n'


def test_a_users_own_function(tmp_path):
    write(
        tmp_path,
        "import hyprax as hx, jax.numpy as jnp\n"
        "def build(splits):\n"
        "    inner = lambda w, hyper, data: jnp.sum((w - 1) ** 2) + hyper['a'] * jnp.sum(w ** 2)\n"
        "    outer = lambda w, hyper, data: jnp.sum((w - 0.5) ** 2)\n"
        "    return hx.ImplicitObjective(hx.Optimum(inner, jnp.zeros(2)), outer), {'a': hx.Positive(0.3)}\n"
        "def wrong(splits):\n    return 3\n"
        "def failing(splits):\n    return 1 / 0\n",
        "mine_for_a_test.py",
    )
    job = prepare(write(tmp_path, CUSTOM.format("mine_for_a_test:build")))
    assert job.hyper is not None
    assert hx.hypergradient(job.objective, job.hyper)[0].certificate.kind == "estimated"
    for name, words in [
        ("nowhere_at_all:build", "cannot import"),
        ("mine_for_a_test:absent", "no function 'absent'"),
        ("mine_for_a_test:wrong", "returned a int"),
        ("mine_for_a_test:failing", "ZeroDivisionError"),
    ]:
        assert words in refused(write(tmp_path, CUSTOM.format(name)))
    assert "model.function" in refused(write(tmp_path, CUSTOM.format("not a name")))
