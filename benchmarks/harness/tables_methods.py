"""hyprax's methods of `tables`, run in workers."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import hyprax as hx
import hyprax.sklearn
from benchmarks.harness.cells import Arrays
from benchmarks.harness.tables import DOMAIN, FOLDS, NET_DOMAIN, SEGMENTS
from hyprax import tasks

Run = Callable[[], dict[str, Any]]


def shared(data: Arrays, model: str) -> Run:
    """The global optimum, over all penalties of the domain."""
    dual, domain = {"ridge": (tasks.ridge_dual, DOMAIN), "lasso": (tasks.elastic_net_dual, NET_DOMAIN)}[model]

    def run() -> dict[str, Any]:
        task = tasks.Task.k_fold(data["x"], data["y"], data["folds"])
        best = tasks.erm([dual(task, domain)], progress=False)
        return {"l1": best.hyper} if model == "ridge" else {"l1": best.hyper, "l2": 0.0}

    return run


def tuned(data: Arrays, estimator: str) -> Run:
    numbers = np.arange(len(data["x"]))
    pairs = [(numbers[data["folds"] != k], numbers[data["folds"] == k]) for k in range(FOLDS)]
    logistic = estimator == "TunedLogisticRegression"
    y = data["y"].astype(int) if logistic else data["y"]

    def run() -> dict[str, Any]:
        made = getattr(hyprax.sklearn, estimator)(cv=pairs, standardize=False, random_state=0)
        found = list(made.fit(data["x"], y).penalties_.values())
        # A λ of hyprax keeps its weight beside the sum of the losses on a fold, those of the criterion beside the mean.
        return {name: each * FOLDS / (FOLDS - 1) for name, each in zip(("l1", "l2"), found, strict=False)}

    return run


def additive(data: Arrays, criterion: str) -> Run:
    """By `tune` from equal strengths, as a user would."""

    def run() -> dict[str, Any]:
        terms = hx.implicit.SplineTerms(data["x"], segments=SEGMENTS)
        family = hx.families.Squared(
            terms.columns, data["y"], penalty="penalty", penalty_groups=terms.groups, free=terms.free
        )
        objective = {"GCV": hx.implicit.GCV, "REML": hx.implicit.REML}[criterion](hx.Optimum(family))
        stop = hx.search.Stopping(gradient=1e-6, patience=5, improvement=1e-9)
        begin = {"penalty": hx.Positive(np.full(terms.count, 0.01))}
        found = hx.tune(objective, begin, search=hx.search.LBFGS(), steps=300, stop=stop, progress=False)
        assert found.hypergradient is not None
        answer, state = objective.value(found.best, objective.init(found.best))
        freedom = jax.device_get(found.hypergradient.stats.freedom)
        del answer
        return {"fitted": terms.columns @ np.asarray(objective.params(state)), "freedom": freedom}

    return run
