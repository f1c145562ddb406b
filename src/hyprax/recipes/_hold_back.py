"""Many penalties held together by a prior, as strong as nested folds ask for."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from ..implicit import NoCertifier
from ..search import ShrinkagePath, shrinkage_path
from ._job import Job
from ._solvers import adjoint_solver

RELATIVE = (0.1, 0.01, 0.003, 0.001)
"""Strengths of the prior, falling, in units of the criterion at the single penalty."""
STEPS = 12


@dataclasses.dataclass(frozen=True)
class HeldBack:
    """What nested folds chose: the strength of the prior, `None` for one penalty for all; no path for too few rows."""

    strength: float | None
    chosen: ShrinkagePath | None
    seconds: float

    @property
    def steps(self) -> int:
        """The hypergradients that the choice took, those of single folds counted."""
        return 0 if self.chosen is None else self.chosen.steps

    def path(self) -> dict[str, Any]:
        """What the path was worth: by its criterion, and on the outer folds, which chose."""
        if self.chosen is None:
            return {}
        gains = self.chosen.gains
        return {
            "strengths": [None if np.isinf(x) else x for x in self.chosen.strengths],
            "criterion": [float(x) for x in self.chosen.criteria],
            "gains": [float(x) for x in gains.mean(axis=0)],
            "errors": [float(x) for x in gains.std(axis=0, ddof=1) / len(gains) ** 0.5],
            "chosen": self.chosen.chosen,
        }


def hold_back(job: Job, hyper: PyTree, *, say: Callable[[str], None], progress: bool) -> HeldBack:
    """Walk from one penalty for all to freer ones, on nested folds, and take the largest gain beyond its error."""
    assert job.problem is not None  # folds alone are held back
    began = time.perf_counter()
    folds = job.recipe.split.folds
    pairs = None if job.splits is None else job.splits.pairs
    if len(job.problem.labels()) < 2 * folds**2:
        say("too few rows for nested folds: one penalty for all")
        return HeldBack(None, None, 0.0)
    found = shrinkage_path(
        job.problem,
        hyper,
        key=jax.random.key(job.recipe.split.seed),
        strengths=RELATIVE,
        folds=folds if pairs is None else pairs,
        outer_folds=folds,
        steps=STEPS,
        progress=progress,
        adjoint=adjoint_solver(job.recipe.objective),
        certifier=NoCertifier(),  # bounds cost products, and choose nothing here
    )
    strength = found.strengths[found.chosen]
    held = HeldBack(None if np.isinf(strength) else float(strength), found, time.perf_counter() - began)
    mean = found.gains.mean(axis=0)[found.chosen]
    say(
        "nested folds prefer one penalty for all"
        if held.strength is None
        else f"nested folds hold the penalties together by a prior of strength {strength:.2g}; held-out gain {mean:.4f}"
    )
    return held
