"""Tables as people have them, of any dialect, encoding and kind of column: a model's columns, or one clear message."""

import contextlib
import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.recipes import RecipeError
from hyprax.recipes._build import prepare_text
from hyprax.recipes._columns import recognised, target_kind
from hyprax.recipes._data import load_splits
from hyprax.recipes._data_tables import CsvData, Split
from hyprax.recipes._guess import recipe_for
from hyprax.recipes._read import parse_recipe
from hyprax.recipes._tables import read_table


def table(rows: int = 40, *, seed: int = 0) -> list[list[str]]:
    """A table with every kind of column, its header first."""
    rng = np.random.default_rng(seed)
    head = ["customer id", "plan", "fee", "since", "note", "empty", "one", "churn"]
    found = [head]
    for i in range(rows):
        fee = "" if i % 7 == 3 else f"{rng.normal(60, 20):.2f}"
        day = f"2024-{i % 12 + 1:02d}-{i % 28 + 1:02d}"
        found.append(
            [str(i + 1), ["basic", "plus", "pro"][i % 3], fee, day, f"note {i}", "", "x", ["No", "Yes"][i % 2]]
        )
    return found


def write(path: Path, rows: list[list[str]], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    raw = stream.getvalue().encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def splits_of(path: Path, **keys):
    data = CsvData(source="csv", path=path.name, target="churn", scale="standard", **keys)
    return load_splits(data, Split(seed=1), path.parent, classify=True, folds=lambda rows, columns: True)


def test_columns_of_one_name_and_tables_of_few_rows_are_refused(tmp_path):
    path = write(tmp_path / "t.csv", [["a", "b", "a", "churn"], *[["1", "2", "3", "No"]] * 9])
    with pytest.raises(RecipeError, match=r"t.csv: must have one column of each name; has several .a."):
        recipe_for(path, "churn")
    path = write(tmp_path / "few.csv", table(7))
    with pytest.raises(RecipeError, match=r"few.csv: must have 8 rows with a target at least, .*; got 7"):
        recipe_for(path, "churn")
    assert "logistic" in recipe_for(write(tmp_path / "eight.csv", table(8)), "churn")


def test_faults_of_a_table_without_a_recipe_name_no_line_of_one(tmp_path):
    path = write(tmp_path / "t.csv", [["churn"], *[["No"], ["Yes"]] * 5])
    with pytest.raises(RecipeError) as error:
        prepare_text(recipe_for(path, "churn"), path)
    assert str(error.value).startswith(f"{path}: data.path must have a column besides the target")


def test_the_positive_class_is_the_one_that_is_named(tmp_path):
    path = write(tmp_path / "t.csv", table())
    usual, other = splits_of(path), splits_of(path, positive="No")
    assert (usual.classes, other.classes) == (("No", "Yes"), ("Yes", "No"))
    np.testing.assert_array_equal(np.sort(usual.train[1]), np.sort(1 - other.train[1]))
    with pytest.raises(RecipeError, match="must be one of two classes; got 'Maybe' and No, Yes"):
        splits_of(path, positive="Maybe")
    with pytest.raises(RecipeError, match="must be left out for targets that are numbers"):
        load_splits(
            CsvData(source="csv", path=path.name, target="customer id", features=["plan"], positive="1"),
            Split(seed=1),
            path.parent,
            classify=False,
        )


def test_columns_are_taken_for_what_they_are(tmp_path):
    splits = splits_of(write(tmp_path / "t.csv", table()))
    said = dict(note.split(": ", 1) for note in splits.notes)
    assert said["customer id"] == "dropped: an identifier, another for each row"
    assert said["plan"] == "3 categories (basic, plus, pro)"
    assert said["fee"] == "numbers, some missing"
    assert said["since"] == "dates, as days"
    assert said["note"].startswith("dropped: an identifier or free text")
    assert said["empty"] == "dropped: it is empty"
    assert said["one"] == "dropped: it holds 'x' alone"
    assert splits.classes == ("No", "Yes")
    assert splits.features == ("plan=basic", "plan=plus", "plan=pro", "fee", "fee missing", "since")


def test_holes_are_filled_and_columns_scaled_by_rows_that_are_not_test_rows(tmp_path):
    rows = table()
    splits = splits_of(write(tmp_path / "t.csv", rows))
    fees = np.array([float(row[2]) if row[2] else np.nan for row in rows[1:]])
    known = fees[splits.rows]
    filled = np.where(np.isnan(known), np.nanmean(known), known)
    np.testing.assert_allclose(splits.train[0][:, 3], (filled - filled.mean()) / filled.std(), rtol=1e-10, atol=1e-12)
    gone = np.isnan(known).astype(float)
    np.testing.assert_allclose(splits.train[0][:, 4], (gone - gone.mean()) / gone.std(), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "delimiter", "encoding", "comma"),
    [
        ("t.csv", ";", "cp1252", True),
        ("t.csv.gz", ",", "utf-8", False),
        ("t.tsv", "\t", "utf-16", False),
        ("t.txt", "|", "utf-8-sig", True),
    ],
)
def test_every_dialect_is_the_same_table(tmp_path, name, delimiter, encoding, comma):
    rows = [[cell.replace("basic", "básic") for cell in row] for row in table()]
    plain = splits_of(write(tmp_path / "plain.csv", rows))
    if comma:
        rows = [[cell.replace(".", ",") if cell[:1].isdigit() else cell for cell in row] for row in rows]
    found = splits_of(write(tmp_path / name, rows, delimiter, encoding))
    np.testing.assert_array_equal(found.train[0], plain.train[0])
    assert found.features == plain.features
    assert found.features[0] == "plan=básic"
    # What is sniffed may be said, and what is wrong is refused.
    kept = {"delimiter": delimiter, "decimal": "," if comma else "."}
    np.testing.assert_array_equal(splits_of(tmp_path / name, **kept).train[0], plain.train[0])


def test_kinds_may_be_said(tmp_path):
    path = write(tmp_path / "t.csv", table())
    splits = splits_of(path, kinds={"customer id": "number", "since": "drop"}, drop=["fee"])
    assert splits.features == ("customer id", "plan=basic", "plan=plus", "plan=pro")
    with pytest.raises(RecipeError, match=r"data.kinds must name columns of .* got 'sinse'"):
        splits_of(path, kinds={"sinse": "drop"})
    with pytest.raises(RecipeError, match=r"must have a column to learn from; .*plan dropped: as asked"):
        splits_of(path, drop=["plan", "fee", "since"])


def test_all_faults_are_told_at_once(tmp_path):
    rows = table()
    rows[3][2], rows[9][2], rows[12][2], rows[14][2] = "sixty", "inf", "6o", "7o"
    rows[6][-1] = ""
    with pytest.raises(RecipeError) as caught:
        splits_of(write(tmp_path / "t.csv", rows))
    for words in (
        "'sixty' in column 'fee' at",
        "t.csv:4",
        "inf in column",
        ":10",
        "and 1 more",
        "target is missing at",
    ):
        assert words in str(caught.value)
    rows = table()
    rows[4], rows[8] = rows[4][:3], [*rows[8], "more"]
    with pytest.raises(RecipeError, match=r"must have 8 fields a row; .*t.csv:5 has 3, line 9 has 9"):
        splits_of(write(tmp_path / "t.csv", rows))


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["Yes", "No", "No"], "logistic"),
        (["0", "1", "1"], "logistic"),
        (["a", "b", "c"], "softmax"),
        (["0", "3", "1", "2"], "poisson"),
        (["1.5", "2", "8"], "ridge"),
        (["-1", "2", "8"], "ridge"),
        (["1,5", "2", "8"], "ridge"),
    ],
)
def test_targets_decide_the_model(texts, kind):
    assert target_kind(texts)[0] == kind


def test_a_recipe_for_a_table_says_what_its_columns_were_taken_for(tmp_path):
    path = write(tmp_path / "t.csv", table(), ";", "cp1252")
    text = recipe_for(path, "churn")
    recipe, _ = parse_recipe(text, tmp_path / "t.toml")
    assert isinstance(recipe.data, CsvData)
    assert recipe.model.kind == "logistic"
    assert recipe.data.kinds is not None
    assert recipe.data.kinds["plan"] == "category"
    assert recipe.data.kinds["note"] == "drop"
    assert recipe.data.delimiter == ";"
    assert recipe.hyper.penalty is not None
    assert recipe.hyper.penalty.shape == "column"
    with pytest.raises(RecipeError, match=r"--target must name a column, one of customer id, plan, .*; got 'chrn'"):
        recipe_for(path, "chrn")


def test_a_recipe_names_a_rare_class(tmp_path):
    said = '# class_weight = "balanced"  # "Yes" has 10.0 % of the rows'
    for rare in (2, 6):
        path = tmp_path / f"{rare}.csv"
        path.write_text("a,y\n" + "".join(f"{i}.5,{'Yes' if i < rare else 'No'}\n" for i in range(20)))
        assert (said in recipe_for(path, "y")) == (rare == 2)
    recipe, _ = parse_recipe(recipe_for(tmp_path / "2.csv", "y").replace(said, said[2:]), tmp_path / "t.toml")
    assert recipe.data is not None
    assert recipe.data.class_weight == "balanced"


@contextlib.contextmanager
def one_line():
    """An error of one line may pass."""
    try:
        yield
    except RecipeError as error:
        if "\n" in str(error):
            raise AssertionError(str(error)) from error
        raise


CELLS = st.one_of(
    st.sampled_from(["", "NA", "?", "1", "2.5", "-3e2", "1,5", "a", "b", "Yes", "No", "2024-01-31", "31.01.2024"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=6),
    st.floats(allow_nan=True, allow_infinity=True).map(repr),
)


@pytest.mark.slow
@given(
    data=st.data(),
    columns=st.integers(1, 5),
    rows=st.integers(0, 30),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_any_table_is_read_or_refused_in_one_line(tmp_path_factory, data, columns, rows, delimiter, encoding):
    folder = tmp_path_factory.mktemp("any")
    alike = data.draw(st.booleans())
    pools = [data.draw(st.lists(CELLS, min_size=1, max_size=3 if alike else 20)) for _ in range(columns)]
    cells = [[data.draw(st.sampled_from(pool)) for pool in pools] for _ in range(rows)]
    if rows and data.draw(st.booleans()):
        cells[-1] = cells[-1][:-1]
    header = [f"c{i}" for i in range(columns)]
    path = write(folder / "t.csv", [header, *cells], delimiter, encoding)
    with contextlib.suppress(RecipeError), one_line():
        text = recipe_for(path, "c0")
        recipe, _ = parse_recipe(text, folder / "t.toml")
        assert recipe.data is not None
        splits = load_splits(
            recipe.data, recipe.split, folder, classify=recipe.model.classifies, folds=recipe.folds, intercept=True
        )
        assert np.all(np.isfinite(splits.train[0]))
        assert np.all(np.isfinite(splits.test[0]))


@pytest.mark.slow
@given(raw=st.binary(max_size=200))
def test_any_bytes_are_a_table_or_refused(tmp_path_factory, raw):
    path = tmp_path_factory.mktemp("bytes") / "t.csv"
    path.write_bytes(raw)
    with contextlib.suppress(RecipeError), one_line():
        found = read_table(path)
        for name in dict.fromkeys(found.header):
            recognised(name, found.column(name), None, None)


def test_bytes_that_are_no_text_hide_no_column(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,\x81\n2,\xff\n")
    for encoding in (None, "Windows-1252"):
        found = read_table(path, encoding=encoding)
        assert found.encoding == "Windows-1252"
        assert found.column("b")[1] == "ÿ"
    assert read_table(path).header == ["a", "b"]


@pytest.mark.parametrize(("texts", "kind"), [(["1.5", "2.5", "1.5"], "ridge"), (["1", "2", "1"], "logistic")])
def test_two_numbers_are_classes_where_they_are_whole(texts, kind):
    assert target_kind(texts)[0] == kind
