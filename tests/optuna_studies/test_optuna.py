"""Optuna outside and gradients inside: values, pruning, attributes, one compilation; runs as trials of a study."""

import re
import shutil
import socketserver
import subprocess
import threading
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
import hyprax.optuna
from compilations import compilations
from hyprax.optuna import Pruning, tuned_trial, write_run

optuna = pytest.importorskip("optuna", reason='Optuna is not installed: pip install "hyprax[optuna]"')
optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")  # of Optuna and SQLAlchemy

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 6))
Y = X[:, 0] - X[:, 1] + 0.5 * rng.normal(size=60)
TRACES: list[int] = []


def loss(params, hyper, data):
    """Ridge regression on the columns that a mask leaves."""
    TRACES.append(1)
    x, y, mask = data
    fit = jnp.mean((jnp.dot(x, mask * params, precision="highest") - y) ** 2)
    return fit + jnp.sum(hyper["penalty"] * params**2)


def outer(params, hyper, data):
    return loss(params, {"penalty": jnp.zeros(())}, data)


def build(trial):
    columns = trial.suggest_int("columns", 1, 6)
    mask = np.where(np.arange(6) < columns, 1.0, 0.0)
    inner = hx.Optimum(loss, jnp.zeros(6), data=(X[:40], Y[:40], mask))
    return hx.ImplicitObjective(inner, outer, (X[40:], Y[40:], mask)), {"penalty": hx.Positive(jnp.asarray(0.1))}


def ridge(penalty, columns):
    """The validation loss of ridge regression, in closed form."""
    x = X[:, :columns]
    gram = x[:40].T @ x[:40] / 40 + penalty * np.eye(columns)
    weights = np.linalg.solve(gram, x[:40].T @ Y[:40] / 40)
    return np.mean((x[40:] @ weights - Y[40:]) ** 2)


def test_discrete_choices_outside_gradients_inside():
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"columns": [1, 2, 6]}))
    study.optimize(tuned_trial(build, steps=8), n_trials=3)
    assert len(study.trials) == 3
    for trial in study.trials:
        tuned = trial.user_attrs["hyprax.hyper"]["penalty"]
        np.testing.assert_allclose(trial.value, ridge(tuned, trial.params["columns"]), rtol=1e-6)
        assert trial.value <= ridge(0.1, trial.params["columns"]) + 1e-9
        assert len(trial.intermediate_values) == trial.user_attrs["hyprax.steps"]
        assert hasattr(hx.search.RESULTS, trial.user_attrs["hyprax.result"])
        assert trial.user_attrs["hyprax.message"] or trial.user_attrs["hyprax.result"] == "successful"


def test_trials_of_equal_shapes_compile_once():
    study = optuna.create_study(sampler=optuna.samplers.GridSampler({"columns": [3, 4, 5]}))
    study.optimize(tuned_trial(build, steps=8), n_trials=1)
    before = len(TRACES)
    with compilations() as compiled:
        study.optimize(tuned_trial(build, steps=8), n_trials=2)
    assert len(study.trials) == 3
    assert len(TRACES) == before
    assert compiled == []


def quadratic(trial):
    height = trial.suggest_float("height", 0, 10)
    return (lambda hyper: jnp.sum(hyper["x"] ** 2) + height), {"x": jnp.ones(2)}


def test_a_bad_trial_is_pruned_and_says_what_it_had_found():
    sampler = optuna.samplers.GridSampler({"height": [0.0, 10.0]}, seed=0)
    pruner = optuna.pruners.ThresholdPruner(upper=5.0)
    study = optuna.create_study(sampler=sampler, pruner=pruner)
    study.optimize(tuned_trial(quadratic, steps=5), n_trials=2)
    by_height = {trial.params["height"]: trial for trial in study.trials}
    assert by_height[0.0].state.name == "COMPLETE"
    bad = by_height[10.0]
    assert bad.state.name == "PRUNED"
    assert bad.intermediate_values == {0: 12.0}
    assert bad.user_attrs["hyprax.result"] == "stopped_by_callback"
    assert "Optuna pruned the trial at step 0." in bad.user_attrs["hyprax.message"]


def test_pruning_serves_objectives_of_ones_own():
    def objective(trial):
        pruning = Pruning(trial)
        found = hx.tune(lambda h: jnp.sum(h["x"] ** 2), {"x": jnp.ones(2)}, steps=3, callbacks=[pruning])
        pruning.check()
        return found.best_value

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
    study.optimize(objective, n_trials=1)
    assert study.trials[0].state.name == "PRUNED"


def test_a_trial_without_a_finite_value_fails_and_maximising_is_refused():
    def infinite(trial):
        return (lambda hyper: jnp.sum(hyper["x"]) / 0.0), {"x": jnp.ones(2)}

    study = optuna.create_study()
    study.optimize(tuned_trial(infinite, steps=2), n_trials=1)
    assert study.trials[0].state.name == "FAIL"
    up = optuna.create_study(direction="maximize")
    with pytest.raises(ValueError, match="direction of the study must be 'minimize'; got maximize"):
        up.optimize(tuned_trial(quadratic, steps=2), n_trials=1)


HYPER = {"p": hx.Positive(jnp.asarray(0.5)), "x": jnp.asarray([3.0, -2.0])}


def bowl(hyper):
    return jnp.sum((hyper["x"] - 1.0) ** 2) + hyper["p"]


def go(folder, steps, rate=0.1, **given):
    import optax

    never = hx.search.Stopping(gradient=0, patience=None)
    run = hx.Run(folder, config={"rate": rate})
    return hx.tune(bowl, HYPER, search=hx.search.Optax(optax.adam(rate)), steps=steps, stop=never, run=run, **given)


def test_runs_are_trials_of_a_study_in_sqlite(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    found = [go(tmp_path / "a", 4), go(tmp_path / "b", 5, rate=0.2)]
    for name in "aab":  # once more changes nothing
        write_run(tmp_path / name, storage)
    study = optuna.load_study(study_name="hyprax", storage=storage)
    assert len(study.trials) == 2
    for trial, tuned in zip(study.trials, found, strict=True):
        assert trial.state.name == "COMPLETE"
        assert trial.value == tuned.best_value
        assert list(trial.intermediate_values.values()) == list(tuned.column("value"))
        best = hx.natural(tuned.best)
        np.testing.assert_allclose(trial.params["p"], best["p"])
        np.testing.assert_allclose([trial.params["x[0]"], trial.params["x[1]"]], best["x"])
        assert trial.distributions["p"].log
        assert not trial.distributions["x[0]"].log
        assert trial.user_attrs["hyprax.message"] == tuned.message
    assert study.trials[1].user_attrs["asked.rate"] == 0.2
    assert study.best_trial.value == min(tuned.best_value for tuned in found)


def test_a_running_run_is_a_running_trial(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    states = []

    def write(step):
        (trial,) = write_run(tmp_path / "run", storage).trials
        states.append((trial.state.name, len(trial.intermediate_values)))

    go(tmp_path / "run", 3, callbacks=[write])
    assert states == [("RUNNING", 1), ("RUNNING", 2), ("RUNNING", 3)]
    (trial,) = write_run(tmp_path / "run", storage).trials
    assert trial.state.name == "COMPLETE"
    go(tmp_path / "run", 4)
    assert [len(trial.intermediate_values) for trial in write_run(tmp_path / "run", storage).trials] == [3, 4]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_page_on_tools_runs_with_its_studies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).resolve().parents[2] / "docs" / "tools.md"
    names: dict = {"__name__": "example"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"^```py(?:thon)?\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            exec(compile(block, page, "exec"), names)
    assert len(names["study"].trials) == 20
    assert (tmp_path / "studies.db").exists()


class Served(socketserver.ThreadingMixIn, WSGIServer):
    """A browser opens several connections at once."""

    daemon_threads = True


class Quiet(WSGIRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.mark.slow
def test_optuna_dashboard_shows_a_run_to_a_browser(tmp_path):
    dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium to look with")
    go(tmp_path / "a", 4)
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    write_run(tmp_path / "a", storage, study="penalties")
    with make_server("127.0.0.1", 0, dashboard.wsgi(storage), Served, Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/dashboard/studies/1/trials?numbers=0"
        asked = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom", address]
        page = subprocess.run([browser, *asked], capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    assert "penalties" in page
    assert "hyprax.message" in page
    assert "x[1]" in page
