"""Recipes of every engine, against computations of their own: dense algebra, plain loops, finite differences."""

# ruff: noqa: E501  (the lines are as people meet them)

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import hyprax as hx
from hyprax.evidence import EvidenceObjective
from hyprax.recipes import RecipeError, carry_out, prepare
from hyprax.recipes._data import load_splits
from hyprax.recipes._data_tables import SklearnData, Split
from hyprax.recipes._models import network
from thoroughness import slow

IRIS = '[data]\nsource = "sklearn"\nname = "iris"\nscale = "standard"\n'
DIABETES = '[data]\nsource = "sklearn"\nname = "diabetes"\nscale = "standard"\nintercept = false\n'


def job_of(tmp_path, text, *settings):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return prepare(path, settings)


def slope_along(objective, hyper, direction, step=1e-5):
    """Central differences of F along a direction of the unconstrained coordinates."""

    def value(shift):
        moved = jax.tree.map(lambda x, d: x + shift * d, hyper, direction)
        return float(objective.value(moved, objective.init(moved))[0].value)

    return (value(step) - value(-step)) / (2 * step)


def check_gradient(objective, hyper, rtol=1e-5):
    """Along a random direction through every leaf, and the leaves do not vanish."""
    answer, _ = objective.value_and_grad(hyper, objective.init(hyper))
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), hyper)
    found = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float(jnp.vdot(g, d)), answer.grad, direction)))
    np.testing.assert_allclose(found, slope_along(objective, hyper, direction), rtol=rtol, atol=1e-9)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(answer.grad))
    return answer


# Linear models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "loss"),
    [
        ('kind = "poisson"', lambda u, y: np.mean(np.exp(u) - y * u)),
        ('kind = "pseudo-huber"\ndelta = 0.7', lambda u, y: 0.49 * np.mean(np.sqrt(1 + ((u - y) / 0.7) ** 2) - 1)),
    ],
)
def test_counts_and_robust_regression_with_groups_of_features(model, loss, tmp_path):
    rng = np.random.default_rng(0)
    X = 0.5 * rng.normal(size=(60, 4))
    y = rng.poisson(np.exp(X @ [0.5, -1, 0.3, 0]))
    np.savez(tmp_path / "counts.npz", X=X, y=y)
    table = '[hyper.penalty]\nshape = "group"\ngroups = [["x0", "x2..x3"]]\nstart = 0.2\n'
    job = job_of(
        tmp_path,
        f'[data]\nsource = "npz"\npath = "counts.npz"\nintercept = false\n[split]\ncriterion = "hold-out"\n[model]\n{model}\n{table}',
    )
    assert job.splits is not None
    hyper = {"penalty": hx.Positive(np.array([0.2, 0.9]))}
    (X, y), (V, z) = job.splits.train, job.splits.validation
    strengths = np.array([0.2, 0.9, 0.2, 0.2])
    found = scipy.optimize.minimize(
        lambda w: loss(X @ w, y) + 0.5 * np.sum(strengths * w**2), np.zeros(4), tol=1e-12, options={"gtol": 1e-9}
    )
    answer, state = job.objective.value_and_grad(hyper, job.objective.init(hyper))
    np.testing.assert_allclose(answer.value, loss(V @ found.x, z), rtol=1e-6)
    np.testing.assert_allclose(state.params, found.x, atol=1e-5)
    assert answer.certificate.kind == "certified"


@pytest.mark.slow
def test_cleaning_finds_wrong_labels_and_weights_are_those_of_the_family(tmp_path):
    text = (
        IRIS
        + 'corrupt = 0.2\nintercept = false\n[model]\nkind = "softmax"\n[hyper.penalty]\nconstraint = "fixed"\nstart = 0.01\n'
    )
    job = job_of(
        tmp_path,
        text + "[hyper.weights]\n[objective]\ncertificate = 'free'\n[search]\nsteps = 20\nlearning_rate = 0.5\n",
    )
    assert job.splits is not None
    assert job.hyper is not None
    assert set(job.hyper) == {"weights"}
    run = hx.Run(tmp_path / "run", config=job.config)
    outcome = carry_out(job, run, progress=False)
    assert [contestant.name for contestant in outcome.contestants] == ["at the start", "75 tuned hyperparameters"]
    assert outcome.contestants[1].validation_loss < outcome.contestants[0].validation_loss
    weights, wrong = np.asarray(outcome.tuned.best["weights"].value), job.splits.corrupted
    auc = np.mean([(a < b) + 0.5 * (a == b) for a in weights[wrong] for b in weights[~wrong]])
    assert auc > 0.9
    (row,) = hx.runs.read(tmp_path / "run").summary["tables"][1]["rows"]
    assert row["AUC"] == f"{auc:.4f}"
    assert row["wrong labels"] == str(wrong.sum()) == "15"
    assert row["found among the 15 of least weight"].startswith(str(wrong[np.argsort(weights)[:15]].sum()))


def test_corruption_changes_training_labels_alone(tmp_path):
    data = SklearnData(source="sklearn", name="iris")
    clean = load_splits(data, Split(), tmp_path, classify=True)
    dirty = load_splits(data.model_copy(update={"corrupt": 0.3}), Split(), tmp_path, classify=True)
    np.testing.assert_array_equal(clean.rows, dirty.rows)
    np.testing.assert_array_equal(clean.train[1] != dirty.train[1], dirty.corrupted)
    assert dirty.corrupted.sum() == round(0.3 * len(dirty.corrupted))
    for part in ("validation", "test"):
        np.testing.assert_array_equal(getattr(clean, part)[1], getattr(dirty, part)[1])
    from sklearn.datasets import load_iris

    iris: Any = load_iris()
    np.testing.assert_array_equal(iris.data[clean.rows], clean.train[0])


def test_weights_of_groups_by_a_column(tmp_path):
    rows = [f"{i % 7},{i * i % 11},{'AB'[i % 2]},{i % 3}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,source,label", *rows]) + "\n")
    text = '[data]\nsource = "csv"\npath = "t.csv"\ntarget = "label"\ngroups = "source"\nintercept = false\n[model]\nkind = "softmax"\n'
    job = job_of(tmp_path, text + '[hyper.weights]\nshape = "group"\n')
    assert job.splits is not None
    assert job.splits.features == ("a", "b")
    assert job.splits.group_names == ("A", "B")
    np.testing.assert_array_equal(job.splits.groups, job.splits.rows % 2)
    assert job.hyper is not None
    assert job.hyper["weights"].value.shape == (2,)


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.adjoint=minres"],
        ["objective.adjoint=cholesky", "objective.solver=fista"],
        ["objective.adjoint=gradient-descent"],
        ["objective.adjoint=cg", "objective.preconditioner=nystrom", "objective.rank=3", "objective.solver=heavy-ball"],
    ],
)
def test_solvers_by_name_give_the_same_hypergradient(settings, tmp_path):
    text = DIABETES + 'scale_targets = true\n[model]\nkind = "ridge"\n[hyper.penalty]\nshape = "feature"\nstart = 0.5\n'
    text += '[split]\ncriterion = "hold-out"\n[objective]\ncertificate = "none"\n'
    job, usual = job_of(tmp_path, text, *settings), job_of(tmp_path, text)
    found, expected = (hx.hypergradient(j.objective, j.hyper)[0] for j in (job, usual))
    np.testing.assert_allclose(found.grad["penalty"].raw, expected.grad["penalty"].raw, rtol=1e-4, atol=1e-9)


# A loss of one's own

OWN = """
import jax.numpy as jnp

def ridge(params, hyper, batch):
    inputs, targets = batch
    fit = jnp.mean((inputs @ params["w"] - targets) ** 2) / 2
    return fit + jnp.sum(hyper["strength"] * params["w"] ** 2) / 2

def plain(params, hyper, batch):
    inputs, targets = batch
    return jnp.mean((inputs @ params["w"] - targets) ** 2) / 2

def start(splits):
    return {"w": jnp.zeros(len(splits.features))}

def pair(params, hyper, batch):
    return params["w"], 1.0
"""
OWN_RECIPE = f"""{DIABETES}scale_targets = true
[model]
kind = "loss"
function = "own_for_a_test:ridge"
outer = "own_for_a_test:plain"
params = "own_for_a_test:start"
targets = "numbers"
[hyper.own.strength]
start = 0.3
shape = [10]
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")  # one for all: a module is imported once
    (folder / "own_for_a_test.py").write_text(OWN)
    return folder


def test_a_loss_of_ones_own_is_ridge_regression(own):
    job = job_of(own, OWN_RECIPE)
    assert job.splits is not None
    (X, y), (V, z) = job.splits.train, job.splits.validation
    w = np.linalg.solve(X.T @ X / len(X) + 0.3 * np.eye(10), X.T @ y / len(X))
    answer = check_gradient(job.objective, job.hyper, rtol=1e-4)
    np.testing.assert_allclose(answer.value, np.mean((V @ w - z) ** 2) / 2, rtol=1e-8)
    assert answer.certificate.kind == "estimated"


def test_a_loss_of_ones_own_is_unrolled(own):
    extra = (
        '[hyper.learning_rate]\nshape = "step"\n[objective]\nmethod = "unroll"\n[training]\noptimizer = "momentum"\n'
    )
    job = job_of(own, OWN_RECIPE + extra + "steps = 4\nlearning_rate = 0.1\nmomentum = 0.5\n")
    assert job.splits is not None
    (X, y), (V, z) = job.splits.train, job.splits.validation
    w, v = np.zeros(10), np.zeros(10)
    for _ in range(4):
        v = 0.5 * v - (X.T @ (X @ w - y) / len(X) + 0.3 * w)
        w = w + 0.1 * v
    answer = check_gradient(job.objective, job.hyper)
    np.testing.assert_allclose(answer.value, np.mean((V @ w - z) ** 2) / 2, rtol=1e-10)
    assert answer.grad["learning_rate"].raw.shape == (4,)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "own_for_a_test:ridge",
            "own_for_a_test:pair",
            "model.function must return one floating number; the loss returned",
        ),
        ("own_for_a_test:plain", "own_for_a_test:start", "model.outer: the loss failed (TypeError"),
        ('params = "own_for_a_test:start"\n', "", 'model.params must be given for kind = "loss"'),
        ('"own_for_a_test:start"', "{w = [[1], [1, 2]]}", "model.params.w must be lists of one length"),
        ('"own_for_a_test:start"', "{w = [1.0, 2.0]}", "model.function: the loss failed (TypeError"),
        ("shape = [10]", "shape = [10]\nlo = 0.1", "hyper.own.strength.lo must be left out"),
        ("start = 0.3", "start = -0.3", "hyper.own.strength.start: Positive"),
        ("start = 0.3", "strat = 0.3", "hyper.own.strength.strat: unknown key, did you mean start?"),
        ("[hyper.own.strength]", "[hyper.penalty]", "hyper.penalty"),
        ("[hyper.own.strength]", "[hyper.own.momentum]", "hyper.own.momentum must have another name"),
        ("scale_targets", "corrupt = 0.1\nscale_targets", "data.corrupt must be 0 where targets are numbers; got 0.1"),
    ],
)
def test_bad_losses_are_one_line(old, new, words, own):
    assert old in OWN_RECIPE
    with pytest.raises(RecipeError) as error:
        job_of(own, OWN_RECIPE.replace(old, new))
    assert words in str(error.value)
    assert "recipe.toml" in str(error.value)
    assert "\n" not in str(error.value)


# Networks, unrolled

UNROLLED = f"""{IRIS}
[model]
kind = "mlp"
width = 5
activation = "tanh"
[hyper.learning_rate]
shape = "layer-step"
[hyper.momentum]
shape = "layer"
[hyper.initial_scale]
shape = "layer"
[hyper.penalty]
shape = "weight"
start = 0.02
[hyper.weights]
shape = "class"
[training]
steps = 3
optimizer = "momentum"
learning_rate = 0.3
momentum = 0.6
"""


@pytest.mark.slow
def test_a_network_is_trained_as_a_plain_loop_would(tmp_path):
    job = job_of(tmp_path, UNROLLED)
    assert job.splits is not None
    rng = np.random.default_rng(0)
    hyper = jax.tree.map(lambda x: x + jnp.asarray(0.3 * rng.normal(size=x.shape)), job.hyper)
    at, net = hx.natural(hyper), network("mlp", 4, 3, width=5, depth=1, activation="tanh")
    (X, y), (V, z) = (tuple(map(jnp.asarray, part)) for part in (job.splits.train, job.splits.validation))

    def cross_entropy(p, inputs, labels):
        logits = jax.vmap(lambda x: net.apply(p, x))(inputs)
        return -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]

    def loss(p):
        penalty = sum(jnp.sum(s * w**2) for s, w in zip(*map(jax.tree.leaves, (at["penalty"], p)), strict=True))
        return jnp.mean(at["weights"][y] * cross_entropy(p, X, y)) + penalty / 2

    p = net.init(jax.random.split(jax.random.key(0))[0])
    p = {name: {"w": layer["w"] * at["initial_scale"][name], "b": layer["b"]} for name, layer in p.items()}
    velocity = jax.tree.map(jnp.zeros_like, p)
    for t in range(3):
        grad = jax.grad(loss)(p)
        for name in p:
            for key in p[name]:
                velocity[name][key] = at["momentum"][name] * velocity[name][key] - grad[name][key]
                p[name][key] = p[name][key] + at["learning_rate"][name][t] * velocity[name][key]
    answer = check_gradient(job.objective, hyper)
    np.testing.assert_allclose(answer.value, jnp.mean(cross_entropy(p, V, z)), rtol=1e-12)


@pytest.mark.slow
def test_tuned_training_data_and_augmentation(tmp_path):
    text = IRIS + '[model]\nkind = "mlp"\nwidth = 5\nactivation = "tanh"\n[hyper.inputs]\nrows_per_class = 2\n'
    text += '[hyper.augmentation]\nshape = "feature"\n[training]\nsteps = 3\nlearning_rate = 0.05\n'
    job = job_of(tmp_path, text)
    assert job.splits is not None
    assert job.hyper is not None
    assert job.hyper["inputs"].shape == (6, 4)
    inputs, labels = job.splits.train
    for row, label in zip(np.asarray(job.hyper["inputs"]), [0, 0, 1, 1, 2, 2], strict=True):
        assert label in labels[np.all(inputs == row, axis=1)]
    check_gradient(job.objective, job.hyper)


def test_modes_agree_and_reversal_is_told_exact(tmp_path):
    settings = ["training.batch_size=10", "hyper.momentum.shape=global"]
    text = UNROLLED.replace('"weight"', '"layer"')
    usual = job_of(tmp_path, text, *settings)
    expected = hx.hypergradient(usual.objective, usual.hyper)[0]
    job = job_of(tmp_path, text, *settings, "training.mode=reversible", "search.steps=1")
    run = hx.Run(tmp_path / "run", config=job.config)
    outcome = carry_out(job, run, progress=False)
    found = outcome.tuned.hypergradient
    assert found is not None
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), found.grad, expected.grad)
    record = hx.runs.read(tmp_path / "run")
    assert record.summary["certificate"]["exact"] is True
    assert record.summary["certificate"]["type"] == "ReversalCertificate"
    page = hx_report(record)
    assert "its start came back bit for bit" in page
    assert "bits_per_parameter_step" in page


def hx_report(record):
    from hyprax.report._page import render

    return render(record)


# The evidence


@pytest.mark.parametrize(
    ("targets", "shape"),
    [("classes", "layer"), ("numbers", "parameter"), slow("classes", "parameter"), slow("numbers", "layer")],
)
def test_the_evidence_is_that_of_dense_algebra(shape, targets, tmp_path):
    data = IRIS if targets == "classes" else DIABETES + "rows = 80\nscale_targets = true\n"
    text = f"""{data}[split]\ntrain = 0.4\nvalidation = 0.0\ntest = 0.3
[model]\nkind = "mlp"\nwidth = 3\nactivation = "tanh"\ntargets = "{targets}"
[objective]\nmethod = "evidence"\n[evidence]\nestimator = "full"\n[hyper.precision]\nshape = "{shape}"\n"""
    job = job_of(tmp_path, text)
    objective = job.objective
    assert isinstance(objective, EvidenceObjective)
    assert job.splits is not None
    rng = np.random.default_rng(0)
    hyper = jax.tree.map(lambda x: x + jnp.asarray(0.5 * rng.normal(size=x.shape)), job.hyper)
    at, w, (X, y) = hx.natural(hyper), objective.initial, job.splits.train
    outputs = 3 if targets == "classes" else 1
    net = network("mlp", X.shape[1], outputs, width=3, depth=1, activation="tanh")
    flat, unflatten = jax.flatten_util.ravel_pytree(w)
    precision = np.concatenate(
        [np.ravel(np.broadcast_to(p, x.shape)) for p, x in zip(*_leaves(at["precision"], w), strict=True)]
    )
    f = np.asarray(jax.vmap(lambda x: net.apply(w, x))(jnp.asarray(X)))
    J = np.asarray(jax.jacobian(lambda v: jax.vmap(lambda x: net.apply(unflatten(v), x))(jnp.asarray(X)))(flat))
    if targets == "classes":
        p = np.exp(f) / np.exp(f).sum(1, keepdims=True)
        fit = np.log(p[np.arange(len(y)), y]).sum()
        curvature = [np.diag(row) - np.outer(row, row) for row in p]
    else:
        sigma = float(at["noise"])
        fit = (-((y - f[:, 0]) ** 2) / (2 * sigma**2) - np.log(sigma) - 0.5 * np.log(2 * np.pi)).sum()
        curvature = [np.eye(1) / sigma**2] * len(y)
    hessian = np.diag(precision) + sum(j.T @ c @ j for j, c in zip(J, curvature, strict=True))
    determinant = np.linalg.slogdet(hessian)[1] - np.log(precision).sum()
    evidence = fit - 0.5 * np.sum(precision * np.asarray(flat) ** 2) - 0.5 * determinant
    value, _ = objective.value(hyper, objective.init(hyper))
    np.testing.assert_allclose(value.value, -evidence / len(y), rtol=1e-9)


def _leaves(prefix, params):
    return jax.tree.leaves(jax.tree.broadcast(prefix, params)), jax.tree.leaves(params)


def test_a_recipe_of_the_evidence_standardises_what_is_left_alone(tmp_path):
    text = f"""{DIABETES.replace("standard", "none")}[split]\ntrain = 0.4\nvalidation = 0.0\ntest = 0.6
[model]\nkind = "mlp"\nwidth = 3\nactivation = "tanh"\ntargets = "numbers"
[objective]\nmethod = "evidence"\n[evidence]\nmode_after = 7\n"""
    job = job_of(tmp_path, text)
    assert isinstance(job.objective, EvidenceObjective)
    assert job.splits is not None
    assert job.predict is not None
    assert job.objective.schedule.mode_after == 7
    (X, y), w = job.splits.train, job.objective.initial
    net = network("mlp", X.shape[1], 1, width=3, depth=1, activation="tanh")
    f = np.asarray(jax.vmap(lambda x: net.apply(w, x))(jnp.asarray((X - X.mean(0)) / X.std(0))))
    np.testing.assert_allclose(job.predict(w, X), y.mean() + y.std() * f, rtol=1e-9)
    np.testing.assert_allclose(hx.natural(job.hyper)["noise"], y.std(), rtol=1e-12)


def test_an_evidence_run_says_which_side_it_is_on(tmp_path):
    text = f"""{IRIS}[split]\ntrain = 0.6\nvalidation = 0.0\ntest = 0.4\n[model]\nkind = "mlp"\nwidth = 4
[objective]\nmethod = "evidence"\n[training]\nsteps = 5\n[evidence]\nsize = 20\n[search]\nsteps = 4\n"""
    job = job_of(tmp_path, text)
    assert job.objective.noisy
    outcome = carry_out(job, hx.Run(tmp_path / "run", config=job.config), progress=False)
    (found,) = outcome.contestants
    assert np.isnan(found.relative_bound)  # a spread is no error
    assert outcome.tuned.final is not None
    np.testing.assert_allclose(found.validation_loss, outcome.tuned.final.value)
    record = hx.runs.read(tmp_path / "run")
    for name, layer in hx.natural(outcome.tuned.last)["precision"].items():  # the best of noisy values is luck
        np.testing.assert_array_equal(record.best[f"precision/{name}"], layer)
    assert record.summary["certificate"]["side"] == "lower"
    assert record.summary["value_name"] == outcome.value_name == "negative log evidence per example"
    assert record.summary["best_value"] == outcome.contestants[-1].validation_loss
    assert record.summary["best_step"] == 3
    page = hx_report(record)
    assert "The standard errors say how far such answers scatter" in page
    assert "proved to be at most the log evidence" in page


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[model]\nkind = "mlp"\n', "hyper must have a table of what is tuned, not fixed: penalty, weights"),
        ('[model]\nkind = "cnn"\n[hyper.learning_rate]\n', "6: model.kind must be \"mlp\" for rows of numbers"),
        ('[model]\nkind = "mlp"\n[objective]\nmethod = "implicit"\n', '8: objective.method must be "unroll"'),
        ('[model]\nkind = "softmax"\nwidth = 3\n', '7: model.width must be left out for kind = "softmax": it is for "mlp"'),
        ('[model]\nkind = "softmax"\n[training]\nsteps = 3\n', 'training must be left out for method = "implicit"'),
        ('[model]\nkind = "softmax"\n[hyper.momentum]\n', 'hyper.momentum must be left out for kind = "softmax"'),
        ('[model]\nkind = "softmax"\n[objective]\nterms = 3\n', '8: objective.terms must be left out for adjoint = "cg"'),
        (
            '[model]\nkind = "mlp"\n[hyper.learning_rate]\nconstraint = "interval"\nlo = 0.1\nhi = 1\n',
            "training.learning_rate must be between lo = 0.1 and hi = 1; got 0.01",
        ),
        (
            '[model]\nkind = "mlp"\n[hyper.learning_rate]\n[training]\nbatch_size = 500\n',
            "9: training.batch_size must be at most 75, the rows of the training part; got 500",
        ),
        (
            '[model]\nkind = "mlp"\n[hyper.learning_rate]\n[training]\nmode = "reversible"\noptimizer = "nesterov"\n',
            '9: training.mode must not be "reversible" with optimizer = "nesterov"',
        ),
        ('[model]\nkind = "mlp"\n[hyper.inputs]\nrows_per_class = 40\n', "8: hyper.inputs.rows_per_class must be at most"),
        ('[model]\nkind = "mlp"\n[hyper.augmentation]\nkind = "shift"\n', "8: hyper.augmentation.kind must be \"noise\""),
        ('[model]\nkind = "softmax"\n[hyper.weights]\nshape = "group"\n', '8: hyper.weights.shape must'),
        (
            '[model]\nkind = "softmax"\n[hyper.penalty]\nshape = "group"\ngroups = [["x"]]\n',
            "9: hyper.penalty.groups must name features (sepal length (cm)",
        ),
        (
            '[model]\nkind = "softmax"\n[hyper.penalty]\nshape = "group"\ngroups = [0, 1]\n',
            "9: hyper.penalty.groups must be a number for each of 4 features; got 2",
        ),
        ('[model]\nkind = "softmax"\n[hyper.penalty]\nshape = "group"\n', "hyper.penalty.groups must be given"),
        ('[model]\nkind = "softmax"\n[split]\nvalidation = 0.0\n', "8: split.validation must be above 0"),
        (
            '[model]\nkind = "mlp"\n[objective]\nmethod = "evidence"\n[evidence]\nestimator = "kfac"\nsize = 3\n',
            '11: evidence.size must be left out for estimator = "kfac"',
        ),
        ('[model]\nkind = "mlp"\n[hyper.noise]\n[objective]\nmethod = "evidence"\n', "7: hyper.noise must be left out for classes"),
        (
            '[model]\nkind = "softmax"\n[hyper.weights]\n[objective]\nmethod = "saba"\nbatch_size = 9\n',
            "objective.rate: SABA",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(text, words, tmp_path):
    with pytest.raises(RecipeError) as error:
        job_of(tmp_path, IRIS + text)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "recipe.toml"))
    assert "\n" not in str(error.value)
