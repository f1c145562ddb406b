"""What is compared: a cell is one problem in numbers, its true answer, and the methods that are run on it in turns."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to the answer, run in a process of its own.

    - `name`: as the tables have it; hyprax's begin with "hyprax".
    - `function`: "module:function", of the arrays and `settings` to a function that runs it.
    - `environment`, `package`: where it is installed (`environments`), and what has to be there.
    - `x64`: whether JAX's 64-bit types are on.
    - `tuned`: whether `run` takes a `tolerance`: it then gets the loosest of the cell's ladder that is accurate enough.
    - `note`: what a reader must know of it.
    - `floor`: whether it is no method, but the least that any could take.
    """

    name: str
    function: str
    environment: str = "hyprax"
    package: str = "hyprax"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    x64: bool = True
    tuned: bool = False
    note: str = ""
    floor: bool = False

    @property
    def ours(self) -> bool:
        return self.name.startswith("hyprax")


def distance(found: np.ndarray, truth: np.ndarray) -> float:
    """‖found - truth‖ / ‖truth‖, in float64."""
    found, truth = np.asarray(found, float).ravel(), np.asarray(truth, float).ravel()
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))


@dataclasses.dataclass(frozen=True)
class Cell:
    """One problem.

    - `arrays`: makes the numbers that all methods get.
    - `truth`: of the arrays, the true answer, in float64 and by other means than any method's; or a method for it.
    - `accept`: the error beyond which an answer is wrong, however fast it was.
    - `error`: of an answer and the truth; `error_name` says what it is.
    - `ladder`: tolerances for methods that are tuned, from the loosest.
    - `rounds`, `seconds`: the most rounds, and the most seconds once every method ran three times.
    - `seeded`: whether a lap is a repetition with a seed of its own: its answer then counts in each lap, and the first
        run, with `seed` None, only compiles.
    - `verdict`: the word for an error beyond `accept`.
    - `target`: of a search, for its picture.
    - `curve`, `x`: for a picture: the curve on which the cell is a point, and where; `xlabel` says of what.
    """

    section: str
    problem: str
    arrays: Callable[[], Arrays]
    truth: Callable[[Arrays], Any] | Method
    methods: tuple[Method, ...]
    accept: float
    error: Callable[[Arrays, Any], float]
    error_name: str
    ladder: tuple[float, ...] = ()
    rounds: int = 50
    seconds: float = 3.0
    seeded: bool = False
    verdict: str = "wrong"
    target: float = 0.0
    curve: str = ""
    x: float = 0.0
    xlabel: str = ""
