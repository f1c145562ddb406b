"""Splits: every row in one part, classes in proportion, scaled by the training part alone."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from hyprax.recipes import RecipeError
from hyprax.recipes._data import load_splits
from hyprax.recipes._data_tables import CsvData, NpzData, SklearnData
from hyprax.recipes._schema import Split


def random_set(folder, rng, rows, classes):
    """A set whose first column is the number of the row, so that rows are known again."""
    inputs = np.column_stack([np.arange(rows), rng.normal(3.0, 5.0, (rows, 2)), np.full(rows, 4.0)])
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    np.savez(folder / "set.npz", X=inputs, y=targets)
    return inputs, targets


@given(
    seed=st.integers(0, 2**32 - 1),
    classes=st.integers(2, 5),
    train=st.floats(0.2, 0.6),
    validation=st.floats(0.1, 0.2),
)
def test_parts_are_disjoint_and_proportional(tmp_path_factory, seed, classes, train, validation):
    folder = tmp_path_factory.mktemp("sets")
    inputs, targets = random_set(folder, np.random.default_rng(seed), 120, classes)
    test = 1 - train - validation
    split = Split(train=train, validation=validation, test=test, seed=seed)
    splits = load_splits(NpzData(source="npz", path="set.npz"), split, folder, classify=True)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    rows = np.concatenate([part[0][:, 0].astype(int) for part in parts.values()])
    assert sorted(rows) == list(range(120))
    for name, (x, y) in parts.items():
        np.testing.assert_array_equal(x, inputs[x[:, 0].astype(int)])
        np.testing.assert_array_equal(y, targets[x[:, 0].astype(int)])
        for label in range(classes):
            assert abs(np.sum(y == label) - split.fractions[name] * np.sum(targets == label)) <= 1 + 1e-9


def test_fractions_below_one_leave_rows_out_and_a_seed_decides_all(tmp_path):
    random_set(tmp_path, np.random.default_rng(0), 100, 2)
    data = NpzData(source="npz", path="set.npz")

    def rows(seed: int) -> list[list[float]]:
        split = Split(train=0.3, validation=0.2, test=0.1, seed=seed)
        splits = load_splits(data, split, tmp_path, classify=False)
        return [list(part[0][:, 0]) for part in (splits.train, splits.validation, splits.test)]

    assert [len(part) for part in rows(0)] == [30, 20, 10]
    assert len({row for part in rows(0) for row in part}) == 60
    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


@pytest.mark.parametrize("scale", ["none", "standard", "minmax", "unit"])
def test_scales_are_measured_on_the_training_part(tmp_path, scale):
    inputs, _ = random_set(tmp_path, np.random.default_rng(1), 90, 3)

    def load(scale):
        return load_splits(NpzData(source="npz", path="set.npz", scale=scale), Split(), tmp_path, classify=True)

    train = load("none").train[0]
    for plain, scaled in zip(
        (part[0] for part in (load("none").train, load("none").validation, load("none").test)),
        (part[0] for part in (load(scale).train, load(scale).validation, load(scale).test)),
        strict=True,
    ):
        # The last column is constant: it has no spread to divide by, and stays finite.
        expected = {
            "none": plain,
            "standard": (plain - train.mean(0)) / [*train.std(0)[:3], 1.0],
            "minmax": (plain - train.min(0)) / [*np.ptp(train, axis=0)[:3], 1.0],
            "unit": plain / np.abs(train).max(),
        }[scale]
        np.testing.assert_allclose(scaled, expected, rtol=1e-14, atol=1e-14)
    assert len(inputs) == 90


@pytest.mark.parametrize(
    ("written", "classes"),
    [
        (["1", "1.0", "2", "10"], ("1", "2", "10")),
        (["b", "a", " a", "b"], ("a", "b")),
        (["1", "x", "1", "x"], ("1", "x")),
        (["True", "False", "True", "False"], ("False", "True")),
    ],
)
def test_classes_of_a_table_may_have_any_name(tmp_path, written, classes):
    rows = [f"{i},{written[i % 4]}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\ufeffx,y\n\n" + "\n".join(rows) + "\n", encoding="utf-8")
    splits = load_splits(CsvData(source="csv", path="t.csv", target="y"), Split(), tmp_path, classify=True)
    assert splits.classes == classes
    names = np.asarray(splits.classes)[splits.train[1]]
    for x, name in zip(splits.train[0][:, 0], names, strict=True):
        given = written[int(x) % 4].strip()
        assert name == (str(int(float(given))) if given[0].isdigit() and "x" not in written else given)


def test_digits_are_images_until_a_column_is_added(tmp_path):
    data = SklearnData(source="sklearn", name="digits")
    assert load_splits(data, Split(), tmp_path, classify=True).image_shape == (8, 8)
    data = SklearnData(source="sklearn", name="digits", intercept=True, scale="standard")
    splits = load_splits(data, Split(), tmp_path, classify=True)
    assert splits.image_shape is None
    assert splits.features[-1] == "intercept"
    for inputs, _ in (splits.train, splits.validation, splits.test):
        assert np.all(inputs[:, -1] == 1.0)


@pytest.mark.parametrize("size", [1e-300, 1e-20, 1e160, 1e300])
@pytest.mark.parametrize("scale", ["standard", "minmax"])
def test_columns_of_any_size_are_scaled(tmp_path, scale, size):
    inputs, targets = random_set(tmp_path, np.random.default_rng(1), 90, 3)
    data = NpzData(source="npz", path="set.npz", scale=scale)
    plain = load_splits(data, Split(), tmp_path, classify=True).train[0]
    np.savez(tmp_path / "set.npz", X=inputs * [1, size, -size, 1], y=targets)
    found = load_splits(data, Split(), tmp_path, classify=True).train[0]
    np.testing.assert_allclose(found[:, :2], plain[:, :2], rtol=1e-9)
    flipped = -plain[:, 2] if scale == "standard" else 1 - plain[:, 2]
    np.testing.assert_allclose(found[:, 2], flipped, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("names", [(2**53, 2**53 + 1), (10**300, 10**300 + 1), (-(10**19), 10**19)])
def test_classes_of_large_numbers_are_not_merged(tmp_path, names):
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{i},{names[i % 2]}\n" for i in range(40)))
    splits = load_splits(CsvData(source="csv", path="t.csv", target="y"), Split(), tmp_path, classify=True)
    assert splits.classes == tuple(map(str, sorted(names)))
    floats = np.asarray([1e300, 2e300])[np.arange(40) % 2]
    np.savez(tmp_path / "set.npz", X=np.ones((40, 1)), y=floats)
    splits = load_splits(NpzData(source="npz", path="set.npz"), Split(), tmp_path, classify=True)
    assert splits.classes == (str(int(1e300)), str(int(2e300)))


@pytest.mark.parametrize("folded", [False, True])
def test_groups_stay_together(tmp_path, folded):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 30, 240)
    np.savez(
        tmp_path / "set.npz",
        X=np.column_stack([np.arange(240), rng.normal(size=240)]),
        y=rng.normal(size=240),
        g=groups,
    )
    data, split = NpzData(source="npz", path="set.npz", groups="g"), Split(by="groups", seed=3)
    splits = load_splits(data, split, tmp_path, classify=False, folds=lambda *_: folded)
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    owner = {}
    for name, (x, _) in parts.items():
        for group in groups[x[:, 0].astype(int)]:
            assert owner.setdefault(group, name) == name
        share = split.fractions[name] + (split.validation if name == "train" else -split.validation) * folded * (
            name != "test"
        )
        assert abs(len(x) / 240 - share) < 0.1
    np.testing.assert_array_equal(splits.clusters, groups[splits.test[0][:, 0].astype(int)])
    assert (splits.pairs is not None) == folded
    known = groups[splits.train[0][:, 0].astype(int)]
    for fit, held in splits.pairs or ():
        assert not set(known[fit]) & set(known[held])
        np.testing.assert_array_equal(fit, ~held)
    if splits.pairs is not None:
        assert np.all(np.sum([held for _, held in splits.pairs], axis=0) == 1)


def test_in_time_what_judges_comes_after_what_is_fitted(tmp_path):
    random_set(tmp_path, np.random.default_rng(0), 120, 2)
    data, split = NpzData(source="npz", path="set.npz", rows=90), Split(by="time", folds=4)
    splits = load_splits(data, split, tmp_path, classify=False, folds=lambda *_: True)
    known, last = splits.train[0][:, 0], splits.test[0][:, 0]
    assert np.all(np.diff(np.concatenate([known, last])) > 0)
    assert splits.in_time
    assert splits.pairs is not None
    assert len(splits.pairs) == 4
    for fit, held in splits.pairs:
        assert known[fit].max() < known[held].min()
        assert np.flatnonzero(held)[0] == np.flatnonzero(fit)[-1] + 1


@pytest.mark.parametrize(
    ("split", "key"),
    [(Split(by="groups", folds=9), "split.folds"), (Split(by="time", folds=89), "split.folds")],
)
def test_too_few_to_fold_is_said(tmp_path, split, key):
    np.savez(tmp_path / "set.npz", X=np.arange(100.0)[:, None], y=np.arange(100.0), g=np.arange(100) // 10)
    data = NpzData(source="npz", path="set.npz", groups="g")
    with pytest.raises(RecipeError, match="to fold") as caught:
        load_splits(data, split, tmp_path, classify=False, folds=lambda *_: True)
    assert caught.value.key == key


def test_few_groups_and_columns_that_are_taken_are_named(tmp_path):
    lines = [f"{k % 2},{k}" for k in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["g,y", *lines]))
    data = CsvData(source="csv", path="t.csv", target="y", groups="g")
    with pytest.raises(RecipeError, match=r"data\.path must have a column besides the target and the groups"):
        load_splits(data, Split(), tmp_path, classify=False)
    (tmp_path / "t.csv").write_text("\n".join(["g,y,x", *(f"{line},{k % 3}" for k, line in enumerate(lines))]))
    with pytest.raises(RecipeError, match="must be more of 20 rows in 2 groups: that part is empty"):
        load_splits(data, Split(by="groups"), tmp_path, classify=False)
