"""Guesses about a table that may be wrong are told together, settled by the keys that they name, or taken as such."""

import csv
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hyprax.cli._commands import app
from hyprax.recipes import RecipeError, prepare
from hyprax.recipes._build import prepare_table
from hyprax.recipes._columns import recognised
from hyprax.recipes._data_tables import CsvData
from hyprax.recipes._doubts import of_column, of_dialect, of_target
from hyprax.recipes._guess import recipe_for
from hyprax.recipes._sources import load
from hyprax.recipes._tables import read_table

RNG = np.random.default_rng(0)
ROWS = 24
NUMBERS = [f"{x:.3f}" for x in RNG.normal(size=ROWS)]


def written(path: Path, columns: dict[str, list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


CERTAIN = {
    "text ids": ("customer_id", [f"C{i:05}" for i in range(ROWS)]),
    "row numbers that are called so": ("id", [str(i + 1) for i in range(ROWS)]),
    "numbers": ("fee", NUMBERS),
    "whole numbers": ("age", [str(20 + i % 7) for i in range(ROWS)]),
    "a trend": ("day", [str(i) for i in range(ROWS)]),
    "years": ("year", [str(1990 + i) for i in range(ROWS)]),
    "categories": ("plan", ["basic", "plus"] * 12),
    "ISO dates": ("since", [f"2024-{1 + i % 12:02}-{i + 1:02}" for i in range(ROWS)]),
    "dates with a day above 12": ("since", [f"{i + 1:02}/03/2024" for i in range(ROWS)]),
    "free text": ("note", [f"it was fine, number {i}" for i in range(ROWS)]),
    "empty": ("none", [""] * ROWS),
    "decimal commas": ("fee", [x.replace(".", ",") for x in NUMBERS]),
}
DOUBTFUL = {
    "ids that are whole numbers": ("account id", [str(7919 * (i + 3) % 10007) for i in range(ROWS)], "only its name"),
    "ids that come back": ("shop_id", [str(100 + i % 5) for i in range(ROWS)], "its name is that of an identifier"),
    "row numbers": ("Unnamed: 0", [str(i) for i in range(ROWS)], "it counts the rows"),
    "dates without an order": (
        "since",
        [f"{1 + i % 12}/{1 + i % 9}/2024" for i in range(ROWS)],
        "which number is the day",
    ),
    "dates in words": ("since", [f"{i + 1} March 2024" for i in range(ROWS)], "looks like a date"),
    "dates with a bad one": ("since", [f"2024-03-{i + 9:02}" for i in range(ROWS)], "looks like a date"),
    "packed dates": ("since", [f"202403{i + 1:02}" for i in range(ROWS)], "looks like a date"),
    "numbers with units": ("fee", [f"{i / 7:.2f} kg" for i in range(ROWS)], "looks like a number"),
    "percentages": ("share", [f"{i} %" for i in range(ROWS)], "looks like a number"),
    "thousands": ("sold", [f"{i + 1},{125 + i}" for i in range(ROWS)], "may part thousands"),
    "many categories": ("town", [f"town {i % 23}" for i in range(ROWS)], "values come back"),
}


@pytest.mark.parametrize("name", CERTAIN)
def test_what_is_certain_is_not_doubted(name):
    column, texts = CERTAIN[name][0], np.asarray(CERTAIN[name][1], object)
    assert of_column(recognised(column, texts, None, None), texts) == []


@pytest.mark.parametrize("name", DOUBTFUL)
def test_what_may_be_wrong_is_doubted_in_words(name):
    column, texts, why = DOUBTFUL[name]
    (doubt,) = of_column(recognised(column, np.asarray(texts, object), None, None), np.asarray(texts, object))
    assert doubt.key == f"data.kinds.{column}"
    assert why in doubt.said


@pytest.mark.parametrize(
    ("texts", "kind", "why"),
    [
        (["0", "1"] * 12, "logistic", ""),
        (["Yes", "No"] * 12, "logistic", ""),
        (NUMBERS, "ridge", ""),
        ([str(i % 5) for i in range(ROWS)], "poisson", "5 whole numbers may be classes"),
        ([str(1 + i % 5) for i in range(ROWS)], "ridge", "5 whole numbers may be classes"),
        ([*NUMBERS[:-1], "oops"], "softmax", "'oops' is none"),
        ([f"town {i % 21}" for i in range(ROWS)], "softmax", "these are many"),
    ],
)
def test_a_target_of_few_whole_numbers_may_be_classes(texts, kind, why):
    found = of_target("y", texts, kind, "this")
    assert why in found[0].said if why else found == []


def test_lines_that_two_signs_cut_evenly_are_doubted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b;c\n" + "1,5;x\n" * 9)
    assert [doubt.key for doubt in of_dialect(read_table(path))] == ["data.delimiter"]
    assert of_dialect(read_table(path, ";")) == []
    path.write_text("a;b\n" + "1,5;2,5\n" * 9)
    assert of_dialect(read_table(path)) == []


def doubtful(folder: Path) -> Path:
    """A table with two doubtful columns and a doubtful target."""
    columns = {
        "x": NUMBERS,
        "account id": DOUBTFUL["ids that are whole numbers"][1],
        "since": DOUBTFUL["dates in words"][1],
        "grade": [str(1 + i % 4) for i in range(ROWS)],
    }
    return written(folder / "t.csv", columns)


def test_all_doubtful_guesses_stand_in_one_message_with_what_settles_them(tmp_path):
    path = doubtful(tmp_path)
    with pytest.raises(RecipeError) as error:
        prepare_table(path, "grade")
    said = str(error.value)
    assert said.startswith(f"{path}: 3 of the guesses are doubtful: column 'account id'")
    for part in ("'since'", "target 'grade'", "--set data.kinds.NAME=drop", "--set model.kind=softmax", "--assume"):
        assert part in said
    settled = ["data.drop=['since']", "model.kind=ridge"]
    with pytest.raises(RecipeError, match="1 of the guesses is doubtful: column 'account id'"):
        prepare_table(path, "grade", settled)
    job = prepare_table(path, "grade", [*settled, "data.kinds.account id=drop"])
    assert job.splits is not None
    assert not any(note.startswith("assumed") for note in job.splits.notes)
    assert "assume" not in job.config["data"]


def test_what_is_assumed_is_said_and_is_what_was_guessed(tmp_path):
    job = prepare_table(doubtful(tmp_path), "grade", assume=True)
    assert job.splits is not None
    assert job.splits.features == ("x", "intercept")
    notes = job.splits.notes
    assert "grade, the target: numbers" in notes
    assert [note.split(" was ")[0] for note in notes if note.startswith("assumed")] == [
        "assumed: column 'account id'",
        "assumed: column 'since'",
        "assumed: target 'grade'",
    ]
    assert job.about["recipe"]["settings"] == ["data.assume=true"]  # so that a run is gone on with


def test_a_recipe_says_it_too_and_the_one_that_init_writes_settles_everything(tmp_path):
    path = doubtful(tmp_path)
    named = {"source": "csv", "path": path.name, "target": "grade"}
    with pytest.raises(RecipeError, match="2 of the guesses are doubtful"):
        load(CsvData.model_validate(named), tmp_path)
    assumed = load(CsvData.model_validate({**named, "assume": True}), tmp_path)
    told = load(CsvData.model_validate({**named, "drop": ["account id", "since"]}), tmp_path)
    np.testing.assert_array_equal(assumed.inputs, told.inputs)
    text = recipe_for(path, "grade")
    assert text.count("doubtful: ") == 3
    recipe = tmp_path / "t.toml"
    recipe.write_text(text)
    assert prepare(recipe).splits is not None


def test_the_command_line_stops_and_says_how_to_go_on(tmp_path):
    found = CliRunner().invoke(
        app, ["tune", str(doubtful(tmp_path)), "--target", "grade", "--out", str(tmp_path / "r")]
    )
    assert not (tmp_path / "r").exists()
    assert isinstance(found.exception, RecipeError)  # `run` makes one line of it, and exit status 2
