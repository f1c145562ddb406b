"""The searches of `search`, run in workers. Each stops where it reaches the target, or at its budget."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

import hyprax as hx
from benchmarks.harness.cells import Arrays
from benchmarks.harness.search import DOMAIN, START, test_loss

Run = Callable[..., dict[str, Any]]


class Watch:
    """Keeps the test loss of the best penalties by validation so far; time spent on testing is taken off."""

    def __init__(self, data: Arrays, budget: float):
        self._data, self._budget, self._best, self._off = data, budget, np.inf, np.zeros(2)
        self.seconds, self.losses = list[float](), list[float]()
        self._began = self._clocks()

    def _clocks(self) -> np.ndarray:
        return np.array([time.process_time(), time.perf_counter()])

    def see(self, validation: float, penalties: np.ndarray) -> bool:
        """Whether to stop."""
        self.spent = self._clocks() - self._began - self._off
        if validation < self._best:
            self._best, before = validation, self._clocks()
            self.losses.append(test_loss(self._data, penalties))
            self.seconds.append(float(self.spent[0]))
            self._off += self._clocks() - before
        return bool(self.losses[-1] <= self._data["target"] or self.spent[0] > self._budget)

    def answer(self) -> dict[str, Any]:
        found = {"loss": min(self.losses), "trace_cpu": self.seconds, "trace_test": self.losses}
        return found | {"cpu_seconds": self.spent[0], "wall_seconds": self.spent[1]}


def _objective(data: Arrays) -> hx.ImplicitObjective:
    family = hx.families.Squared(data["x"], data["y"], penalty="penalty", penalty_groups=data["groups"])
    return hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (data["vx"], data["vy"]))


def _start(data: Arrays) -> np.ndarray:
    return np.full(int(data["groups"].max()) + 1, START)


def ours(data: Arrays, budget: float, free: bool = False) -> Run:
    """`hx.tune` as it comes, or with a search that follows the validation loss wherever it leads."""
    objective, search = _objective(data), hx.search.LBFGS() if free else None

    def run(seed: int | None) -> dict[str, Any]:
        """Nothing is drawn; a seed of None stops at once."""
        watch = Watch(data, budget if seed is not None else 0.0)

        def look(step: Any) -> bool:
            return watch.see(step.value, np.asarray(step.hyper["penalty"].value))

        begin = {"penalty": hx.Positive(_start(data))}
        hx.tune(objective, begin, search=search, steps=1000, callbacks=[look], progress=False)
        return watch.answer()

    return run


def _evaluated(data: Arrays) -> Callable[[np.ndarray], float]:
    objective = _objective(data)
    state = objective.init({"penalty": hx.Positive(_start(data))})
    return lambda penalties: float(objective.value({"penalty": hx.Positive(penalties)}, state)[0].value)


def tpe(data: Arrays, budget: float) -> Run:
    """Independent TPE, its default, over the logarithms."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    value, names = _evaluated(data), [f"p{j}" for j in range(len(_start(data)))]

    def run(seed: int | None) -> dict[str, Any]:
        watch = Watch(data, budget if seed is not None else 0.0)
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial(dict.fromkeys(names, START))
        while True:
            trial = study.ask()
            penalties = np.array([trial.suggest_float(name, *DOMAIN, log=True) for name in names])
            found = value(penalties)
            study.tell(trial, found)
            if watch.see(found, penalties):
                return watch.answer()

    return run


def at_random(data: Arrays, budget: float) -> Run:
    value, start = _evaluated(data), _start(data)
    low, high = np.log(DOMAIN)

    def run(seed: int | None) -> dict[str, Any]:
        watch, rng, penalties = Watch(data, budget if seed is not None else 0.0), np.random.default_rng(seed), start
        while not watch.see(value(penalties), penalties):
            penalties = np.exp(rng.uniform(low, high, len(start)))
        return watch.answer()

    return run
