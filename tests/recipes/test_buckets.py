"""Rows up to a size that other tables have too: the same answers, bounds that hold, and programs that are shared."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import hyprax as hx
from compilations import compilations
from hyprax.recipes._build import prepare_table
from hyprax.recipes._linear import FAMILIES
from hyprax.search import CrossValidated

HYPER = {"penalty": hx.Positive(0.03)}


def job_of(folder: Path, kind: str, rows: int):
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, 3))
    hours = rng.uniform(0.5, 3, size=rows)
    u = x[:, 0] + rng.normal(size=rows)
    y = {
        "ridge": [f"{v:.4f}" for v in u],
        "pseudo-huber": [f"{v:.4f}" for v in u],
        "logistic": ["yes" if v > 0 else "no" for v in u],
        "softmax": [("low", "mid", "high")[k] for k in np.digitize(u, [-0.5, 0.5])],
        "poisson": [str(k) for k in rng.poisson(hours * np.exp(0.5 * x[:, 0]))],
    }[kind]
    lines = [f"{a:.6f},{b:.6f},{c:.6f},{h:.4f},{k}" for (a, b, c), h, k in zip(x, hours, y, strict=True)]
    path = folder / f"{rows}.csv"
    path.write_text("\n".join(["a,b,c,hours,y", *lines]))
    more = [f"model.kind={kind}", "hyper.penalty.shape=global"]
    return prepare_table(path, "y", more, exposure="hours" if kind == "poisson" else None, assume=True)


def plain(job):
    """The same folds of the family on the rows alone, to full accuracy."""
    splits, kind = job.splits, job.recipe.model.kind
    inputs, targets = splits.train
    more = {"classes": len(splits.classes)} if kind == "softmax" else {}
    more |= {"offset": splits.offsets[0]} if splits.offsets else {}
    family = FAMILIES[kind](inputs, targets, penalty="penalty", free=[-1], **more)
    key = jax.random.key(job.recipe.split.seed)
    noise = hx.implicit.ExampleNoise()
    return CrossValidated(hx.Optimum(family), job.recipe.split.folds, key=key, noise=noise), family


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["logistic", "ridge", "softmax", "poisson", "pseudo-huber"])
def test_blank_rows_change_nothing_but_rounding_and_bounds_hold(tmp_path, kind):
    job = job_of(tmp_path, kind, 80)
    alone, family = plain(job)
    exact, _ = alone.value_and_grad(HYPER, alone.init(HYPER), hx.Accuracy(1e-13, 1e-13))
    as_exact, _ = job.objective.value_and_grad(HYPER, job.objective.init(HYPER), hx.Accuracy(1e-13, 1e-13))
    np.testing.assert_allclose(as_exact.value, exact.value, rtol=1e-12)
    for accuracy in (None, hx.Accuracy(1e-4, 1e-4)):
        found, _ = job.objective.value_and_grad(HYPER, job.objective.init(HYPER), accuracy)
        assert found.certificate.kind == "certified"
        off = abs(float(found.grad["penalty"].raw - exact.grad["penalty"].raw))
        assert off <= float(found.certificate.bound) + float(exact.certificate.bound)
        if accuracy is None:
            same, _ = alone.value_and_grad(HYPER, alone.init(HYPER))
            assert found.certificate.bound < 3 * same.certificate.bound
            noises: list[Any] = [found.noise, same.noise]
            errors = [noise.standard_errors["penalty"].raw for noise in noises]
            np.testing.assert_allclose(*errors, rtol=1e-6)
    assert job.refit is not None
    np.testing.assert_allclose(job.refit(HYPER).params, hx.Optimum(family).refit(HYPER).params, rtol=1e-7, atol=1e-9)
    losses = []
    problem: Any
    for problem in (job.problem, hx.Optimum(family)):  # all folds in one program, as they are for the shrinkage path
        folds = problem.together(HYPER, [alone._drawn(0)])
        losses.append(np.asarray(folds.value_and_grad(ravel_pytree(HYPER)[0][None], folds.start())[0]))
    np.testing.assert_allclose(*losses, rtol=1e-7)


def test_a_table_of_about_the_size_compiles_nothing(tmp_path):
    first, second = job_of(tmp_path, "logistic", 80), job_of(tmp_path, "logistic", 76)
    assert first.splits is not None
    assert second.splits is not None
    assert len(first.splits.train[1]) != len(second.splits.train[1])
    first.objective.value(HYPER, first.objective.init(HYPER))
    with compilations() as compiled:
        second.objective.value(HYPER, second.objective.init(HYPER))
    assert compiled == []
