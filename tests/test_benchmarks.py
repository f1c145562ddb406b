"""The harness of the benchmarks: turns, truth, and what it says of methods that fail."""

import json

import numpy as np
import pytest
from benchmarks.harness import __main__, environments, implicit, processes, report
from benchmarks.harness.cells import Cell, Method
from benchmarks.harness.measuring import Row, measure
from benchmarks.harness.processes import Peers


def method(name, function=None, package="tests", **settings):
    return Method(name, f"tests.benchmark_peers:{function or name}", package=package, **settings)


def cell(*methods, **settings):
    given = {"accept": 1e-3, "rounds": 3, "seconds": 0.1} | settings
    return Cell(
        section="sums",
        problem="ten numbers",
        arrays=lambda: {"x": np.arange(10.0)},
        truth=lambda data: float(data["x"].sum()),
        methods=methods,
        error=lambda found, truth: abs(float(found["sum"]) / truth - 1),
        error_name="relative error",
        **given,
    )


@pytest.fixture(scope="module")
def peers():
    with Peers(pinned=False) as found:
        yield found


@pytest.fixture(scope="module")
def part(peers):
    """A cell with everything that can happen to a method."""
    methods = [
        *(method("hyprax", function="right"), method("hasty"), method("tuned", tuned=True), method("broken")),
        method("ending", package="of its own"),
        Method("absent", "nowhere:nothing", environment="no such", package="absent"),
    ]
    made = cell(*methods, ladder=(1.0, 1e-2, 1e-4, 1e-6))
    return report.Part(made, measure(made, peers))


def rows(part):
    return {row.method: row for row in part.rows}


def test_a_faster_wrong_answer_is_marked_and_is_never_the_fastest(part):
    assert rows(part)["hasty"].wrong
    assert "hasty" not in [row.method for row in part.right]
    assert rows(part)["hasty"].seconds < 1  # its time is reported all the same


def test_a_tuned_method_gets_the_loosest_tolerance_that_is_accurate_enough(part):
    assert rows(part)["tuned"].tolerance == 1e-4
    assert rows(part)["tuned"].error == pytest.approx(1e-4, rel=1e-6)


def test_methods_that_fail_are_rows_that_say_why_and_stop_no_other(part):
    found = rows(part)
    assert found["broken"].failed == "ValueError: cannot sum"
    assert "its process ended" in found["ending"].failed
    assert found["absent"].failed.startswith("not installed: ")
    assert len(found["hyprax"].cpu) == len(found["tuned"].cpu) == 3


def test_a_tuned_method_that_never_reaches_the_target_has_no_time(peers):
    made = cell(method("tuned", tuned=True), ladder=(1.0, 1e-2))
    (row,) = measure(made, peers)
    assert row.wrong
    assert not row.cpu
    assert row.error == pytest.approx(1e-2)
    assert "does not reach it" in report._line(row, None, made)


def test_a_method_that_refuses_a_tolerance_gets_the_next_one(peers):
    (row,) = measure(cell(method("strict", tuned=True), ladder=(1.0, 1e-2, 1e-4)), peers)
    assert row.tolerance == 1e-4
    assert row.counts


def test_repetitions_have_seeds_of_their_own_and_measure_themselves(peers):
    made = cell(method("searching"), seeded=True, accept=0.0, verdict="not reached")
    (row,) = measure(made, peers)
    assert row.cpu == [1.0, 2.0, 3.0]
    assert row.wall == [2.0] * 3
    assert row.error == 0
    assert not row.wrong


def test_the_sentence_below_a_table_says_plainly_who_is_fastest():
    def of(**seconds):
        found = [Row(name, name == "hyprax", cpu=[s], wall=[s], error=0.0, first=0.0) for name, s in seconds.items()]
        return report.verdict(report.Part(cell(), found))

    assert of(hyprax=1.0, peer=2.0) == "hyprax is the fastest; the next, peer, takes 2 times as long."
    assert of(hyprax=2.0, peer=1.0) == "**hyprax is not the fastest**: peer takes 0.50 of the time of hyprax."


def test_files_have_machine_versions_commit_and_a_mark_of_load(part, tmp_path):
    sections = [
        report.Section("quiet", "Quiet", "Text.", [part], (0.2, 1.2), 1.0, "abc123", "2026-01-01"),
        report.Section("busy", "Busy", "Text.", [part], (0.2, 1.9), 1.0, "def456", "2026-01-02"),
    ]
    results = report.Results("usual", sections, {"hyprax": {"numpy": np.__version__}})
    report.write(results, tmp_path, tmp_path / "pictures")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "MEASURED UNDER LOAD: `busy`" in text
    assert "MEASURED UNDER LOAD: `quiet`" not in text
    assert "abc123, 2026-01-01" in text
    assert "def456, 2026-01-02" in text
    assert f"numpy {np.__version__}" in text
    assert "**wrong**" in text
    assert "not installed: " in text
    stored = json.loads((tmp_path / "results.json").read_text())
    busy = stored["sections"]["busy"]
    assert busy["commit"] == "def456"
    assert busy["load"] == [0.2, 1.9]
    # What stands is read back when another section is measured again.
    assert report.restored("busy", "Busy", "Text.", [part.cell], busy) == sections[1]
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {
        "benchmarks-quiet-times.svg",
        "benchmarks-busy-times.svg",
    }


def test_a_real_cell_is_right_to_its_target(peers):
    (made,) = implicit.cells("quick")
    ours = [each for each in made.methods if each.name == "hyprax, no certificate"]
    (row,) = measure(Cell(**{**vars(made), "methods": tuple(ours)}), peers)
    assert not row.failed
    assert row.counts
    assert row.error is not None
    assert row.error <= 1e-3


def test_environments_that_were_not_made_are_missed_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    assert environments.missing("hyprax", "jaxopt") is None
    assert environments.missing("torch", "higher") == "make bench-env has not been run"


def test_a_card_that_is_not_there_is_one_sentence(monkeypatch):
    monkeypatch.setattr("sys.argv", ["harness", "--quick", "--device", "gpu"])
    with pytest.raises(SystemExit, match="--device gpu: JAX finds none"):
        __main__.main()


def test_on_a_card_the_clock_counts_and_each_method_has_a_process_of_its_own(monkeypatch):
    monkeypatch.setitem(processes.PLATFORMS, "gpu", "cpu")  # there is none here: the ways to it are what is tested
    with Peers(pinned=False, device="gpu") as found:
        made = cell(method("hyprax", function="right"), method("waiting", function="right", settings={"seconds": 0.05}))
        rows = measure(made, found)
        assert len(found._peers) == 2
    assert all(row.by_clock for row in rows)
    waiting = next(row for row in rows if row.method == "waiting")
    assert waiting.seconds > 5 * np.median(waiting.cpu)
    text = report.as_markdown(report.Results("quick", [], {}, "a card"))
    assert "- a card, beside " in text
    assert "by the clock" in text
