"""What quasi-Newton searches share: pairs of moves and turns, bounds of strengths, accuracies that are loose enough."""

import abc
import dataclasses
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._hyper import Positive, is_constrained
from .._objective import AbstractObjective, Hypergradient
from .._trees import tree_dtype
from ._descent import Account, Measured, account, tightening, tighter
from ._results import RESULTS
from ._search import AbstractSearch, Move

MOST_TRIALS = 25
MOST_TIGHTENINGS = 3
FIRST_TOLERANCE = 1e-2
LOOSEST_TOLERANCE = 1.0


class QuasiNewtonState(eqx.Module):
    """The last point with its hypergradient, the pairs kept, newest first, and what is to be tried next.

    `inner` and `adjoint` are 0 where the objective's own settings serve; `radius` is 0 until a search has chosen one.
    """

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]
    radius: Float[Array, ""]
    begun: Bool[Array, ""]
    last_hyper: PyTree
    last_grad: PyTree
    moves: Float[Array, "m N"]
    turns: Float[Array, "m N"]
    stored: Int[Array, ""]
    low: PyTree
    high: PyTree


class Local(eqx.Module):
    """The flat point with its hypergradient, `free` 0 at the coordinates that rest at a bound and would leave it."""

    point: Float[Array, " N"]
    grad: Float[Array, " N"]
    free: Float[Array, " N"]
    norm: Float[Array, ""]
    at_low: Int[Array, ""]
    at_high: Int[Array, ""]


def localised(state: QuasiNewtonState, hyper: PyTree, grad: PyTree, curved: Any) -> tuple[Local, QuasiNewtonState]:
    """Keep the pair that the last move gave where `curved(move, turn)`, and find out which coordinates are free."""
    x, g, low, high, last_x, last_g = (
        ravel_pytree(tree)[0] for tree in (hyper, grad, state.low, state.high, state.last_hyper, state.last_grad)
    )
    move, turn = x - last_x, g - last_g
    keep = state.begun & curved(move, turn)
    moves = jnp.where(keep, jnp.roll(state.moves, 1, axis=0).at[0].set(move), state.moves)
    turns = jnp.where(keep, jnp.roll(state.turns, 1, axis=0).at[0].set(turn), state.turns)
    stored = jnp.where(keep, jnp.minimum(state.stored + 1, moves.shape[0]), state.stored)
    at_low, at_high = (x <= low) & (g > 0), (x >= high) & (g < 0)
    free = jnp.where(at_low | at_high, 0.0, 1.0).astype(g.dtype)
    local = Local(x, g, free, jnp.linalg.norm(g * free), jnp.sum(at_low), jnp.sum(at_high))
    changed = (jnp.asarray(True), hyper, grad, moves, turns, stored)
    of = lambda s: (s.begun, s.last_hyper, s.last_grad, s.moves, s.turns, s.stored)  # noqa: E731
    return local, eqx.tree_at(of, state, changed)


@eqx.filter_jit
def forgotten(state: QuasiNewtonState) -> QuasiNewtonState:
    """Without its pairs, and without the point from which the next would come."""
    return eqx.tree_at(lambda s: (s.stored, s.begun), state, (jnp.zeros_like(state.stored), jnp.asarray(False)))


class AbstractQuasiNewton(AbstractSearch):
    """A search that learns the curvature from its hypergradients; see its kinds for how they step.

    `memory` pairs are kept; `strengths` bound [`hyprax.Positive`][] leaves; `relative_error` is that of h.
    """

    needs_accuracy: ClassVar[bool] = False
    needs_determinism: ClassVar[bool] = True

    memory: eqx.AbstractVar[int]
    strengths: eqx.AbstractVar[tuple[float, float]]
    relative_error: eqx.AbstractVar[float]
    longest: eqx.AbstractVar[float]

    def __check_init__(self):
        name = type(self).__name__
        if isinstance(self.memory, bool) or not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"{name}: memory must be an integer >= 1; got {self.memory!r}.")
        low, high = self.strengths
        if not 0 < low < high < math.inf:
            raise ValueError(f"{name}: strengths must be two numbers 0 < low < high; got {self.strengths}.")
        if not 0 < self.relative_error < 0.5:
            raise ValueError(f"{name}: relative_error must lie between 0 and 0.5; got {self.relative_error}.")
        if not 0 < self.longest < math.inf:
            raise ValueError(f"{name}: longest must be a finite number > 0; got {self.longest}.")

    def init(self, hyper: PyTree) -> QuasiNewtonState:
        dtype = tree_dtype(hyper)
        count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
        pairs = jnp.zeros((self.memory, count), dtype)
        tolerance, none = jnp.asarray(FIRST_TOLERANCE, dtype), jnp.zeros((), dtype)
        still = jax.tree.map(jnp.zeros_like, hyper)
        low, high = (self._bounds(hyper, end) for end in (0, 1))
        return QuasiNewtonState(
            tolerance, tolerance, none, jnp.asarray(False), hyper, still, pairs, pairs, jnp.asarray(0), low, high
        )

    def _bounds(self, hyper: PyTree, end: int) -> PyTree:
        widen, infinite = ((jnp.minimum, -jnp.inf), (jnp.maximum, jnp.inf))[end]

        def bound(leaf: Any) -> Any:
            limit = math.log(self.strengths[end]) if isinstance(leaf, Positive) else infinite
            return jax.tree.map(lambda raw: widen(raw, jnp.asarray(limit, raw.dtype)), leaf)

        return jax.tree.map(bound, hyper, is_leaf=is_constrained)

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: QuasiNewtonState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        walk = Walk(self.relative_error, spent, hyper, objective_state, search_state)
        answer, now = walk.gradient()
        if answer.certificate.kind == "none":  # values will not be certified either: this one serves
            walk.base = dataclasses.replace(now, bound=math.inf)
        local, state, plan = self._planned(search_state, hyper, answer.grad)
        norm, at_low, at_high, stored = jax.device_get((local.norm, local.at_low, local.at_high, state.stored))
        taken, ended = None, None
        if not now.sound:
            ended = answer.result
        elif not norm > 0:
            ended = RESULTS.precision_reached if at_low + at_high else None
        else:
            taken = self._taken(walk, local, state, plan)
            if taken is None and int(stored) > 0:  # the pairs may be to blame: once more, along the gradient
                local, state, plan = self._planned(forgotten(search_state), hyper, answer.grad)
                taken = self._taken(walk, local, state, plan)
            if taken is None:
                ended = RESULTS.precision_reached
        taken = Taken(hyper, 0.0, 0.0, walk.state) if taken is None else taken
        inner, adjoint, radius = (spent.array(x) for x in (walk.inner, walk.adjoint, walk.radius))
        state = eqx.tree_at(lambda s: (s.inner, s.adjoint, s.radius), state, (inner, adjoint, radius))
        numbers = spent.numbers(step_size=taken.length, at_lower=float(at_low), at_upper=float(at_high))
        if walk.certifying:
            numbers["proved_decrease"] = spent.array(taken.proved)
        value = None if walk.base is None else spent.array(walk.base.value)
        return Move(answer, taken.hyper, state, taken.state, ended, value, walk.sufficient, numbers)

    @abc.abstractmethod
    def _planned(self, state: QuasiNewtonState, hyper: PyTree, grad: PyTree) -> tuple[Local, QuasiNewtonState, PyTree]:
        """`localised`, with the pairs that this search can use, and what it makes of them."""

    @abc.abstractmethod
    def _taken(self, walk: "Walk", local: Local, state: QuasiNewtonState, plan: PyTree) -> "Taken | None":
        """A move that lowers the value; `None` where there is none."""


@dataclasses.dataclass
class Taken:
    """A move: the next hyperparameters, its length by the search's measure, the decrease that is proved, the state."""

    hyper: PyTree
    length: float
    proved: float
    state: Any


class Walk:
    """One step at `hyper`: the tolerances, which both of its parts tighten, and the objective's state."""

    def __init__(self, relative_error: float, spent: Account, hyper: PyTree, state: Any, start: QuasiNewtonState):
        self.relative_error, self.spent, self.hyper, self.state = relative_error, spent, hyper, state
        self.inner, self.adjoint, self.radius = float(start.inner), float(start.adjoint), float(start.radius)
        if not spent.objective.adaptive:
            self.inner = self.adjoint = 0.0
        self.base: Measured | None = None
        self.certifying = False
        self.sufficient = False
        self.retry = math.inf
        self._tightenings, self._narrowest = 0, math.inf

    def _tolerances(self) -> tuple[float | None, float | None]:
        return (self.inner, self.adjoint) if self.inner > 0 else (None, None)

    def gradient(self) -> tuple[Hypergradient, Measured]:
        """h, as accurate as the search needs; or as it can be had."""
        last = math.inf
        while True:
            answer, now, self.state = self.spent.value_and_grad(self.hyper, self.state, *self._tolerances())
            wanted = self.relative_error * now.norm
            if answer.certificate.kind == "none" and self.inner > 0:
                self.inner = self.adjoint = 0.0  # nothing says how loose is loose enough
                continue
            self.sufficient = now.sound and now.bound <= wanted
            if self.inner == 0 or self.sufficient:
                break
            if not now.solved:  # the floor of the solvers
                self.inner, self.adjoint = max(self.inner, 2 * now.inner), max(self.adjoint, 2 * now.adjoint)
                break
            if not now.bound < 0.9 * last or self.spent.gradients > MOST_TIGHTENINGS:
                break
            last = now.bound
            factor = tightening(0.3 * wanted, now.bound)
            self.inner = tighter(factor, self.inner, now.inner)
            self.adjoint = tighter(factor, self.adjoint, now.adjoint)
        if self.inner > 0 and self.sufficient and self.spent.gradients == 1 and now.bound <= 0.2 * wanted:
            # A second hypergradient costs more than a tighter first one: tolerances are loosened slowly.
            self.inner, self.adjoint = (min(1.5 * x, LOOSEST_TOLERANCE) for x in (self.inner, self.adjoint))
        return answer, now

    def value(self, hyper: PyTree, state: Any) -> tuple[Measured, Any]:
        answer, measured, state = self.spent.value(hyper, state, *self._tolerances())
        self.certifying = self.certifying or answer.certificate.kind != "none"
        return measured, state

    def begin(self) -> Measured:
        """The value where the step begins."""
        if self.base is None:
            self.base, self.state = self.value(self.hyper, self.state)
        self._tightenings, self._narrowest = 0, math.inf
        return self.base

    def begun(self) -> Measured:
        """The value where the step begins, as it is known by now."""
        assert self.base is not None  # `begin` has made it
        return self.base

    def width(self, trial: Measured) -> tuple[float, float]:
        """To what the fall from the beginning to a trial is known, in all and by rounding alone."""
        base, unit = self.begun(), float(jnp.finfo(self.spent.dtype).eps)
        rounding = 2 * unit * (abs(base.value) + abs(trial.value))
        bounds = base.bound + trial.bound
        return rounding + (bounds if math.isfinite(bounds) else 0.0), rounding

    def tightened(self, trial: Measured, wanted: float) -> bool:
        """Whether the tolerances could be tightened, towards a width of `wanted`: the trial is then made again."""
        base, (width, rounding) = self.begun(), self.width(trial)
        if not (width > rounding and self.inner > 0 and self._tightenings < MOST_TIGHTENINGS):
            return False
        if not (width < 0.9 * self._narrowest and trial.solved and base.solved):
            self._tightenings = MOST_TIGHTENINGS
            return False
        self._narrowest, self._tightenings = width, self._tightenings + 1
        self.inner = tighter(tightening(wanted, width), self.inner, max(base.inner, trial.inner))
        self.base, self.state = self.value(self.hyper, self.state)
        return True
