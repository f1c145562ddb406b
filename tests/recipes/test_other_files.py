"""Parquet tables, which say what CSV tables say, and folders of images."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hyprax.recipes import RecipeError
from hyprax.recipes._data_tables import CsvData, ImagesData
from hyprax.recipes._guess import recipe_for
from hyprax.recipes._read import parse_recipe
from hyprax.recipes._sources import load

ROWS = 30


def columns() -> dict[str, list[object]]:
    rng = np.random.default_rng(0)
    return {
        "fee": [None if i % 7 == 3 else float(x) for i, x in enumerate(rng.normal(60, 20, ROWS))],
        "plan": [["basic", "plus", "pro"][i % 3] for i in range(ROWS)],
        "since": [datetime.date(2024, i % 12 + 1, i % 28 + 1) for i in range(ROWS)],
        "paid": [i % 4 == 0 for i in range(ROWS)],
        "calls": list(range(ROWS)),
        "churn": [["No", "Yes"][i % 2] for i in range(ROWS)],
    }


def write_parquet(path: Path, named: dict[str, list[object]]) -> Path:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(named), path)
    return path


def write_csv(path: Path, named: dict[str, list[object]]) -> Path:
    def text(value: object) -> str:
        return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)

    rows = [",".join(named), *(",".join(text(named[name][i]) for name in named) for i in range(ROWS))]
    path.write_text("\n".join(rows))
    return path


def test_a_parquet_table_is_the_same_as_a_csv_table(tmp_path):
    write_parquet(tmp_path / "t.parquet", columns())
    write_csv(tmp_path / "t.csv", columns())
    one, two = (load(CsvData(source="csv", path=f"t.{end}", target="churn"), tmp_path) for end in ("parquet", "csv"))
    np.testing.assert_array_equal(one.inputs, two.inputs)
    np.testing.assert_array_equal(one.targets, two.targets)
    assert one.features == two.features
    assert one.notes[0] == "t.parquet: Parquet"
    text = recipe_for(tmp_path / "t.parquet", "churn")
    data = parse_recipe(text, tmp_path / "r.toml")[0].data
    assert isinstance(data, CsvData)
    assert data.path == "t.parquet"
    assert "delimiter" not in text
    assert "encoding" not in text


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"a": [[1], [2]], "churn": ["x", "y"]}, "must hold numbers, truth values.* 'a' is list"),
        ({"a": [b"1", b"2"], "churn": ["x", "y"]}, "'a' is binary"),
        ({"a": [], "churn": []}, "must have rows and columns"),
        ({"a": [1.0, float("inf")], "churn": ["x", "y"]}, r"must hold finite numbers; got .*inf.*t\.parquet:2"),
    ],
)
def test_a_parquet_table_that_does_not_fit_is_refused(tmp_path, named, message):
    write_parquet(tmp_path / "t.parquet", named)
    with pytest.raises(RecipeError, match=message):
        load(CsvData(source="csv", path="t.parquet", target="churn"), tmp_path)


def test_a_small_parquet_table_that_unpacks_to_gigabytes_is_refused(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    target, long = [["x", "y"][i % 2] for i in range(20_000)], "x" * 1_000_000
    repeated = arrow.DictionaryArray.from_arrays(arrow.array([0] * 20_000, arrow.int32()), arrow.array([long]))
    parquet.write_table(arrow.table({"a": repeated, "churn": target}), tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 2**20
    with pytest.raises(RecipeError, match=r"must have at most 268435456 characters of text; .* has 200000\d+"):
        load(CsvData(source="csv", path="t.parquet", target="churn"), tmp_path)
    plain = arrow.table({"a": arrow.array([long] * 300), "churn": target[:300]})
    parquet.write_table(plain, tmp_path / "t.parquet", use_dictionary=False, compression="zstd")
    with pytest.raises(RecipeError, match=r"must have at most 268435456 bytes unpacked"):
        load(CsvData(source="csv", path="t.parquet", target="churn"), tmp_path)


def test_categories_of_pandas_are_their_texts(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = pandas.DataFrame(columns())
    table["plan"] = table["plan"].astype("category")
    table.to_parquet(tmp_path / "t.parquet")
    write_csv(tmp_path / "t.csv", columns())
    one, two = (load(CsvData(source="csv", path=f"t.{end}", target="churn"), tmp_path) for end in ("parquet", "csv"))
    np.testing.assert_array_equal(one.inputs, two.inputs)


def test_a_torn_parquet_table_is_refused(tmp_path):
    path = write_parquet(tmp_path / "t.parquet", columns())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecipeError, match=r"must be a Parquet file; .* cannot be read"):
        load(CsvData(source="csv", path="t.parquet", target="churn"), tmp_path)


def images(folder: Path, sizes: list[tuple[int, int]], mode: str = "L") -> Path:
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        place = folder / "photos" / ["cat", "dog"][i % 2]
        place.mkdir(parents=True, exist_ok=True)
        shape = (height, width) if mode == "L" else (height, width, 3)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(place / f"{i}.png")
    (folder / "photos" / "notes.txt").write_text("none of them")
    (folder / "photos" / "cat" / "notes.txt").write_text("none of them")
    return folder


def test_a_folder_of_images_is_rows_of_grey_values(tmp_path):
    found = load(ImagesData(source="images", path="photos"), images(tmp_path, [(4, 6)] * 5))
    assert found.inputs.shape == (5, 24)
    assert found.image_shape == (4, 6)
    assert found.targets.tolist() == ["cat"] * 3 + ["dog"] * 2
    first = np.asarray(Image.open(tmp_path / "photos" / "cat" / "0.png"), float)
    np.testing.assert_array_equal(found.inputs[0].reshape(4, 6), first)


def test_images_of_other_sizes_are_scaled_where_it_is_asked(tmp_path):
    images(tmp_path, [(4, 6), (5, 5), (8, 12)], "RGB")
    assert load(ImagesData(source="images", path="photos", size=[3, 7]), tmp_path).image_shape == (3, 7)
    with pytest.raises(
        RecipeError, match=r"must be \[height, width\] for images of different sizes; .*0\.png is \[4, 6\]"
    ):
        load(ImagesData(source="images", path="photos"), tmp_path)


def test_folders_that_do_not_fit_are_refused(tmp_path):
    images(tmp_path, [(4, 4)])
    with pytest.raises(RecipeError, match=r"a folder of images for each class, two or more; .* has 1"):
        load(ImagesData(source="images", path="photos"), tmp_path)
    images(tmp_path, [(4, 4)] * 2)
    (tmp_path / "photos" / "dog" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(RecipeError, match=r"must hold images; .*dog/1\.png cannot be read"):
        load(ImagesData(source="images", path="photos"), tmp_path)
    with pytest.raises(RecipeError, match="must be a folder; there is no"):
        load(ImagesData(source="images", path="nowhere"), tmp_path)
