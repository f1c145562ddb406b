"""`hyprax tasks` on small tables: right answers, and mistakes that end in one line with exit code 2."""

import csv
import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from hyprax.recipes._tasks import ValidationTable, task_of
from hyprax.recipes._tasks_cli import app
from hyprax.tasks import Task, erm, gap, ridge_dual, tasks_needed
from hyprax.tasks.complexity import Intervals

TOML = """
processes = {processes}
[data]
path = "{path}"
task = "school"
target = "score"
[model]
kind = "ridge"
low = {low}
high = 10.0
standardise = false
[validation]
kind = "k_fold"
folds = 3
seed = 4
[guarantee]
range = 3.0
"""


def problem(seed=0, tasks=6, rows=14):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=3)
    found = []
    for _ in range(tasks):
        X = rng.normal(size=(rows, 3))
        found.append((X, X @ (w + 0.3 * rng.normal(size=3)) * 0.3 + 0.5 * rng.normal(size=rows)))
    return found


def write_table(path, tasks):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x1", "school", "x2", "x3", "score"])
        for i, (X, y) in enumerate(tasks):
            writer.writerows([x[0], f"s{i}", x[1], x[2], t] for x, t in zip(X, y, strict=True))


def invoke(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def table(tmp_path):
    write_table(tmp_path / "scores.csv", problem())
    (tmp_path / "run.toml").write_text(TOML.format(path="scores.csv", low=0.001, processes=1))
    return tmp_path


def fails(result, *words):
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_tune_gives_what_the_library_gives(table):
    result = invoke("tune", table / "run.toml", "--out", table / "answer.json", "--quiet")
    assert result.exit_code == 0, result.output
    answer = json.loads((table / "answer.json").read_text())
    duals = [ridge_dual(Task.k_fold(X, y, 3, key=jax.random.key(4)), (0.001, 10.0)) for X, y in problem()]
    truth = erm(duals)
    assert answer["hyper"] == pytest.approx(truth.hyper, rel=1e-9)
    assert answer["mean_loss"] == pytest.approx(truth.value, rel=1e-12)
    assert answer["tasks"] == [f"s{i}" for i in range(6)]
    assert answer["certificate"]["kind"] == "certified"
    assert set(answer["guarantees"]) == {"excess", "deviation"}
    assert "independent draws" in result.output


def test_a_folder_of_files_gives_what_the_table_gives(table):
    folder = table / "tasks"
    folder.mkdir()
    for i, (X, y) in enumerate(problem()):
        if i % 2:
            np.savez(folder / f"s{i}.npz", X=X, y=y)
        else:
            with (folder / f"s{i}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["x1", "x2", "x3", "score"], *np.column_stack([X, y]).tolist()])
    (table / "folder.toml").write_text(TOML.format(path="tasks", low=0.001, processes=1))
    for name in ("run", "folder"):
        assert invoke("tune", table / f"{name}.toml", "--out", table / f"{name}.json").exit_code == 0
    one, two = (json.loads((table / f"{name}.json").read_text()) for name in ("run", "folder"))
    assert one == two


def test_parallel_processes_give_the_same_answer(table):
    (table / "two.toml").write_text(TOML.format(path="scores.csv", low=0.001, processes=2))
    for name in ("run", "two"):
        assert invoke("tune", table / f"{name}.toml", "--out", table / f"{name}.json").exit_code == 0
    one, two = (json.loads((table / f"{name}.json").read_text()) for name in ("run", "two"))
    assert one["hyper"] == pytest.approx(two["hyper"], rel=1e-12)


def test_plot_writes_a_picture(table):
    import matplotlib.image

    result = invoke("plot", table / "run.toml", table / "duals.png")
    assert result.exit_code == 0, result.output
    picture = matplotlib.image.imread(table / "duals.png")
    assert picture.shape[0] > 400
    assert np.std(picture) > 0.05
    fails(invoke("plot", table / "run.toml", table / "nowhere" / "duals.png"), "nowhere")


def test_needed_and_gap_print_what_the_library_gives(table):
    result = invoke("needed", 0.1, "--structure", "lasso-kinks=30", "--delta", 0.01)
    assert str(tasks_needed(Intervals.lasso(30), 0.1, 0.01)) in result.output
    result = invoke("gap", 139, "--structure", "lasso-kinks=30", "--range", 2.0, "--target", "deviation")
    assert str(gap(Intervals.lasso(30, range=2.0), 139, 0.05, target="deviation")) in result.output
    result = invoke("gap", "--data", table / "run.toml", "--structure", "ridge-rank=9", "--quiet")
    assert result.exit_code == 0, result.output
    assert "over 6 tasks" in result.output
    assert "crossings (Intervals.ridge)" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["needed", 0.1], ["--structure"]),
        (["needed", 0.1, "--structure", "kinks=3"], ["kinks=3", "lasso-kinks"]),
        (["needed", 0.1, "--structure", "lasso-kinks=many"], ["lasso-kinks=many"]),
        (["needed", 0.1, "--structure", "lipschitz=1:2"], ["lipschitz=1:2"]),
        (["needed", "--structure", "lasso-kinks=3", "--", -1], ["epsilon"]),
        (["gap", 10, "--structure", "lasso-kinks=3", "--target", "risk"], ["'excess' or 'deviation'"]),
        (["gap", 0, "--structure", "lasso-kinks=3"], ["number of tasks"]),
        (["gap", 10, "--structure", "lasso-kinks=3", "--delta", 1.0], ["delta"]),
        (["gap"], ["either"]),
        (["tune", "nowhere.toml"], ["nowhere.toml"]),
    ],
)
@pytest.mark.usefixtures("unchecked")  # as for a user, whose arguments nobody checks
def test_mistakes_on_the_line_end_in_one_line(arguments, words):
    fails(invoke(*arguments), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("low = 0.001", "low = 20.0"), ["model", "low must be below high"]),
        (lambda text: text.replace("low = 0.001", "low = nan"), ["model.low"]),
        (lambda text: text.replace("low = 0.001", "low = 0.0"), ["ridge needs low > 0"]),
        (lambda text: text.replace('kind = "ridge"', 'kind = "lars"'), ["model.kind"]),
        (lambda text: text.replace('kind = "ridge"', 'kind = "elastic_net"'), ["penalty2"]),
        (lambda text: text.replace("folds = 3", "folds = 1"), ["validation.folds"]),
        (lambda text: text.replace("[guarantee]", "[garantee]"), ["garantee"]),
        (lambda text: text.replace("range = 3.0", "range = 0"), ["guarantee.range"]),
        (lambda text: text.replace("[data]", "[data"), ["not a TOML file"]),
        (lambda text: text.replace("scores.csv", "no.csv"), ["no.csv"]),
        (lambda text: text.replace('task = "school"', 'task = "town"'), ["'town'", "scores.csv"]),
        (lambda text: text.replace('target = "score"', 'target = "mark"'), ["'mark'", "scores.csv"]),
    ],
)
def test_mistakes_in_the_file_end_in_one_line(table, change, words):
    (table / "run.toml").write_text(change((table / "run.toml").read_text()))
    fails(invoke("tune", table / "run.toml"), *words)


def rewrite(table, change):
    path = table / "scores.csv"
    rows = list(csv.reader(path.read_text().splitlines()))
    path.write_text("\n".join(",".join(row) for row in change(rows)) + "\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows[:-1], ["nan", *rows[-1][1:]]], ["scores.csv:85", "'x1'", "nan"]),
        (lambda rows: [*rows[:-1], ["high", *rows[-1][1:]]], ["scores.csv:85", "'x1'", "'high'"]),
        (lambda rows: [*rows[:-1], ["", *rows[-1][1:]]], ["scores.csv:85", "'x1'"]),
        (lambda rows: [*rows[:-1], [*rows[-1][:-1], "good"]], ["row 84", "'score'", "'good'"]),
        (lambda rows: [*rows[:-1], rows[-1][:-1]], ["scores.csv:85", "has 4"]),
        (lambda rows: rows[:1], ["must have rows under a header"]),
        (lambda rows: [*rows, ["0", "lonely", "0", "0", "1"]], ["task lonely", "at least 2 rows"]),
    ],
)
def test_mistakes_in_the_table_end_in_one_line(table, change, words):
    rewrite(table, change)
    fails(invoke("tune", table / "run.toml"), *words)


def test_odd_tables_get_a_right_answer(table):
    """One task, a constant target, and duplicated rows are no mistakes."""
    for tasks in (
        problem(tasks=1),
        [(X, np.ones_like(y)) for X, y in problem()],
        [(np.repeat(X, 2, axis=0), np.repeat(y, 2)) for X, y in problem()],
    ):
        write_table(table / "scores.csv", tasks)
        result = invoke("tune", table / "run.toml", "--out", table / "odd.json")
        assert result.exit_code == 0, result.output
        answer = json.loads((table / "odd.json").read_text())
        truth = erm([ridge_dual(Task.k_fold(X, y, 3, key=jax.random.key(4)), (0.001, 10.0)) for X, y in tasks])
        assert answer["mean_loss"] == pytest.approx(truth.value, rel=1e-9, abs=1e-12)
        assert answer["lower"] <= truth.upper


def mixed(path, tasks=5, seed=1):
    """A table of shops of unequal sizes: a date, numbers with gaps, a category, sales and whether they were good."""
    rng = np.random.default_rng(seed)
    rows = []
    for shop in range(tasks):
        for i in range(int(rng.integers(14, 24))):
            x, kind = rng.normal(size=2), "ab"[rng.integers(2)]
            y = x[0] + (kind == "a") + 0.3 * rng.normal()
            size = "" if rng.random() < 0.15 else f"{x[0]:.3f}"
            day = f"2024-{1 + i % 12:02d}-{1 + (7 * i) % 28:02d}"
            rows.append(
                [day, f"s{shop}", size, f"{x[1]:.3f}", kind, f"{y:.3f}", "good" if y > 0.5 else "bad", shop + 1]
            )
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["day", "shop", "size", "price", "kind", "sales", "sold", "area"], *rows])


def test_a_table_is_tuned_without_a_file_of_settings(tmp_path):
    mixed(tmp_path / "shops.csv")
    table = [tmp_path / "shops.csv", "--task", "shop", "--quiet", "--out", tmp_path / "answer.json"]
    found = invoke("tune", *table, "--target", "sales", "--order", "day", "--weight", "rows")
    assert found.exit_code == 0, found.output
    assert "size: numbers, some missing" in found.output
    assert "kind: 2 categories (a, b)" in found.output
    assert "day:" not in found.output
    assert "scikit-learn: Ridge(alpha=hyper * n)" in found.output
    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (answer["model"], answer["tasks"]) == ("ridge", [f"s{i}" for i in range(5)])
    assert answer["certificate"]["kind"] == "certified"
    found = invoke("tune", *table, "--target", "sold", "--model", "hinge", "--high", "0.1")
    assert found.exit_code == 0, found.output
    assert "classes: bad (-1) and good (+1)" in found.output
    fails(invoke("tune", *table, "--target", "kind", "--model", "forest"), "--model must be one of ridge, lasso")
    fails(invoke("tune", *table, "--target", "sale"), "--target must name a column, one of day, shop", "got 'sale'")
    fails(invoke("tune", table[0], "--target", "sales"), "--task must name a column")
    fails(invoke("tune", *table, "--target", "day"), "--target must hold numbers or two classes")
    fails(invoke("tune", *table, "--target", "sales", "--order", "kind"), "data.order must hold numbers or dates")
    fails(invoke("tune", *table, "--target", "sales", "--weight", "area", "--range", "2"), "tasks that weigh the same")
    fails(invoke("tune", tmp_path / "run.toml", "--target", "sales"), "--target must be left out beside a TOML file")


def test_rows_and_columns_that_weigh_differently_are_those_of_the_library(tmp_path):
    path, rng = tmp_path / "scores.csv", np.random.default_rng(3)
    heavy = [rng.integers(1, 4, size=14).astype(float) for _ in range(6)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x1", "school", "x2", "x3", "score", "pupils"])
        for i, ((X, y), v) in enumerate(zip(problem(), heavy, strict=True)):
            writer.writerows([x[0], f"s{i}", x[1], x[2], t, u] for x, t, u in zip(X, y, v, strict=True))
    text = TOML.format(path="scores.csv", low=0.001, processes=1).split("[guarantee]")[0]
    text = text.replace('target = "score"', 'target = "score"\nrow_weight = "pupils"')
    (tmp_path / "run.toml").write_text(text.replace('"ridge"', '"ridge"\nfeature_weights = {x2 = 4.0}'))
    result = invoke("tune", tmp_path / "run.toml", "--out", tmp_path / "answer.json", "--quiet")
    assert result.exit_code == 0, result.output
    made = [Task.k_fold(X, y, 3, key=jax.random.key(4), weights=v) for (X, y), v in zip(problem(), heavy, strict=True)]
    truth = erm([ridge_dual(task.scaled([1.0, 0.5, 1.0]), (0.001, 10.0)) for task in made])
    assert json.loads((tmp_path / "answer.json").read_text())["hyper"] == pytest.approx(truth.hyper, rel=1e-9)
    (tmp_path / "run.toml").write_text(text.replace('"ridge"', '"ridge"\nfeature_weights = {pupils = 4.0}'))
    fails(invoke("tune", tmp_path / "run.toml", "--quiet"), "must name columns to learn from, among x1, x2, x3")
    given = "tune", path, "--task", "school", "--target", "score", "--row-weight"
    result = invoke(*given, "pupils", "--quiet", "--folds", 2, "--model", "lasso")
    assert result.exit_code == 0, result.output
    assert "x1" in result.output
    assert "pupils:" not in result.output
    fails(invoke(*given, "size"), "--row-weight must name a column")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Dask's own
def test_a_cluster_of_two_workers_gives_the_same_bits(table, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="Dask is not installed (extra `dask`)")
    answers = []
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as local:
        given = "tune", table / "scores.csv", "--task", "school", "--target", "score", "--quiet", "--range", "3"
        for option in ((), ("--cluster", local.scheduler_address)):
            result = invoke(*given, *option, "--out", table / "answer.json")
            assert result.exit_code == 0, result.output
            answers.append((table / "answer.json").read_bytes())
        monkeypatch.setenv("DASK_SCHEDULER", local.scheduler_address)
        assert invoke(*given, "--out", table / "answer.json").exit_code == 0
        answers.append((table / "answer.json").read_bytes())
    assert answers[0] == answers[1] == answers[2]
    fails(invoke(*given), "its scheduler must answer")


def test_what_is_missing_is_filled_by_training_rows_alone():
    X, y = np.array([[1.0], [3.0], [np.nan], [50.0]]), np.arange(4.0)
    splits = task_of(X, y, ValidationTable(kind="time", folds=2)).splits
    assert [s.X.ravel().tolist() for s in splits] == [[1, 3], [1, 3, 2]]
    assert [s.X_val.ravel().tolist() for s in splits] == [[2], [50]]
    task = task_of(X, y, ValidationTable(kind="leave_one_out"))
    assert [s.X_val[0, 0] for s in task.splits] == [1, 3, 18, 50]
