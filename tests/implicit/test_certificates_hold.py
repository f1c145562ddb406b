"""Every certificate of the families in thousands of random cases: not one may fail."""

import zlib

import numpy as np
import pytest

import certificate_cases as cases
import hyprax as hx
from hyprax.implicit.families._design import SparseDesign

pytestmark = pytest.mark.optimised  # rounding and bits are those of the compiler that users have

BOUNDS = {"look-ahead": hx.implicit.LookAhead(relative=0.0), "free": hx.implicit.ResidualCertifier()}


PARTS = {f"look-ahead, part {k}": BOUNDS["look-ahead"].part(k) for k in range(2)}
"""Working precision alone and extended precision alone, which are programs of their own."""


def run(structure: cases.Structure, seed: int, problems: int, points: int, **more: object) -> list[cases.Outcome]:
    bounds = BOUNDS | more
    if structure.dtype == "float64" and not structure.free:  # its constants are global, and it refuses free columns
        bounds["ehrhardt-roberts"] = hx.implicit.EhrhardtRoberts()
    rng = np.random.default_rng([seed, zlib.crc32(str(structure).encode())])
    drawn = (cases.random_case(rng, structure) for _ in range(problems))
    return [cases.check(case, rng, bounds) for case in drawn for _ in range(points)]


def check(structure: cases.Structure, seed: int, problems: int, points: int) -> None:
    outcomes = run(structure, seed, problems, points)
    assert [v for outcome in outcomes for v in outcome.violations] == []
    ratios = [o.ratio["look-ahead"] for o in outcomes if 1e-6 < o.relative <= 0.1]
    assert len(ratios) >= len(outcomes) / 2  # or the next two statements say little
    assert np.median(ratios) <= 1.3
    assert np.quantile(ratios, 0.9) <= 3


@pytest.mark.parametrize("structure", cases.few_structures(), ids=str)
def test_certificates_hold_and_are_tight(structure):
    check(structure, seed=0, problems=80, points=5)


@pytest.mark.slow
@pytest.mark.parametrize("structure", cases.structures(), ids=str)
def test_certificates_of_every_structure_hold_and_are_tight(structure):
    check(structure, seed=1, problems=60, points=5)


@pytest.mark.slow
@pytest.mark.parametrize("structure", cases.few_structures(), ids=str)
def test_both_parts_of_the_look_ahead_hold(structure):
    outcomes = run(structure, seed=4, problems=60, points=5, **PARTS)
    assert [v for outcome in outcomes for v in outcome.violations] == []


DENSE = [structure for structure in cases.structures() if not structure.sparse]


def check_cholesky(structure: cases.Structure, seed: int, problems: int) -> None:
    bounds = {"cholesky": hx.implicit.CholeskyCertifier(), "free": hx.implicit.ResidualCertifier()}
    rng = np.random.default_rng([seed, zlib.crc32(str(structure).encode())])
    drawn = (cases.random_case(rng, structure) for _ in range(problems))
    outcomes = [cases.check(case, rng, bounds) for case in drawn for _ in range(5)]
    assert [v for outcome in outcomes for v in outcome.violations] == []
    assert all(o.ratio["cholesky"] <= o.ratio["free"] * (1 + 1e-9) for o in outcomes)
    # Where nearly collinear inputs meet next to no penalty both are infinite, and their ratio says nothing.
    near = [o for o in outcomes if 1e-6 < o.relative <= 0.1 and np.isfinite(o.ratio["free"])]
    assert len(near) >= len(outcomes) / 4
    assert np.median([o.ratio["cholesky"] / o.ratio["free"] for o in near]) <= 0.5


@pytest.mark.slow
@pytest.mark.parametrize("structure", [cases.Structure("logistic", "group", "group")], ids=str)
def test_the_cholesky_bound_holds_and_is_tighter(structure):
    check_cholesky(structure, seed=2, problems=100)


@pytest.mark.slow
@pytest.mark.parametrize("structure", DENSE, ids=str)
def test_the_cholesky_bound_of_every_structure_holds(structure):
    check_cholesky(structure, seed=3, problems=40)


def test_the_cholesky_bound_refuses_what_it_cannot_factorise():
    case = cases.random_case(np.random.default_rng(0), cases.Structure("squared", "feature", sparse=True))
    with pytest.raises(ValueError, match="requires dense data"):
        hx.implicit.CholeskyCertifier().prepare(case.loss, case.loss.mean_loss, case.outer_data)


def test_entries_of_one_place_are_one_entry():
    """a + b in one place has the norm |a + b|, not (a² + b²)^½: bounds rest on norms."""
    rng = np.random.default_rng(0)
    rows, columns = np.array([0, 0, 1, 1, 1, 2]), np.array([1, 1, 0, 2, 2, 1])
    entries = rng.normal(size=6)
    dense = np.zeros((3, 4))
    np.add.at(dense, (rows, columns), entries)
    made = SparseDesign(entries, rows, columns, (3, 4))
    assert len(made.by_row[0]) == 4
    family = hx.families.Squared(made, np.ones(3), penalty=0.1)
    np.testing.assert_array_less(np.linalg.norm(dense, axis=1), np.asarray(family.norms.rows))
    np.testing.assert_array_less(np.linalg.norm(dense, 2) ** 2, float(family.norms.gram))
    whole = SparseDesign(np.array([2, 3]), np.array([0, 1]), np.array([0, 1]), (2, 2))
    assert whole.dtype == np.float64
