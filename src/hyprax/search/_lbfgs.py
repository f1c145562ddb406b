"""Limited-memory quasi-Newton steps: no rate to give, accuracies as loose as certificates allow, proved decrease."""

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
from ._descent import Account, Measured, account, tightening
from ._results import RESULTS
from ._search import AbstractSearch, Move

MOST_TRIALS = 25
MOST_TIGHTENINGS = 3
FIRST_TOLERANCE = 1e-2
LOOSEST_TOLERANCE = 1.0


class LBFGSState(eqx.Module):
    """The last point with its hypergradient, the pairs kept, newest first, and what is to be tried next.

    `inner` and `adjoint` are 0 where the objective's own settings serve.
    """

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]
    begun: Bool[Array, ""]
    last_hyper: PyTree
    last_grad: PyTree
    moves: Float[Array, "m N"]
    turns: Float[Array, "m N"]
    stored: Int[Array, ""]
    low: PyTree
    high: PyTree


class _Plan(eqx.Module):
    """A direction, in which coordinates at a bound that they would leave stand still."""

    direction: Float[Array, " N"]
    largest: Float[Array, ""]
    free_norm: Float[Array, ""]
    at_low: Int[Array, ""]
    at_high: Int[Array, ""]


@eqx.filter_jit
def _planned(state: LBFGSState, hyper: PyTree, grad: PyTree) -> tuple[_Plan, LBFGSState]:
    """Keep the pair that the last move gave, and apply the quasi-Newton inverse to the free part of h."""
    x, g, low, high, last_x, last_g = (
        ravel_pytree(tree)[0] for tree in (hyper, grad, state.low, state.high, state.last_hyper, state.last_grad)
    )
    move, turn = x - last_x, g - last_g
    curved = jnp.vdot(move, turn) > 1e-8 * jnp.linalg.norm(move) * jnp.linalg.norm(turn)
    keep = state.begun & curved
    moves = jnp.where(keep, jnp.roll(state.moves, 1, axis=0).at[0].set(move), state.moves)
    turns = jnp.where(keep, jnp.roll(state.turns, 1, axis=0).at[0].set(turn), state.turns)
    stored = jnp.where(keep, jnp.minimum(state.stored + 1, moves.shape[0]), state.stored)
    at_low, at_high = (x <= low) & (g > 0), (x >= high) & (g < 0)
    free = jnp.where(at_low | at_high, 0.0, 1.0).astype(g.dtype)
    s, y, q = moves * free[None], turns * free[None], g * free
    product = jnp.sum(s * y, axis=1)
    used = (jnp.arange(len(s)) < stored) & (product > 1e-8 * jnp.linalg.norm(s, axis=1) * jnp.linalg.norm(y, axis=1))
    rho = jnp.where(used, 1 / jnp.where(used, product, 1), 0)

    def down(r: Array, pair: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        alpha = pair[2] * jnp.vdot(pair[0], r)
        return r - alpha * pair[1], alpha

    def up(r: Array, pair: tuple[Array, Array, Array, Array]) -> tuple[Array, None]:
        return r + (pair[3] - pair[2] * jnp.vdot(pair[1], r)) * pair[0], None

    r, alphas = jax.lax.scan(down, q, (s, y, rho))
    first = jnp.argmax(used)
    scale = jnp.where(jnp.any(used), product[first] / jnp.maximum(jnp.sum(y[first] ** 2), 1e-300), 1.0)
    r, _ = jax.lax.scan(up, scale.astype(r.dtype) * r, (s, y, rho, alphas), reverse=True)
    descends = jnp.any(used) & (jnp.vdot(r, q) > 1e-8 * jnp.linalg.norm(r) * jnp.linalg.norm(q))
    direction = -free * jnp.where(descends, r, q)
    # Where the pairs give no descent they are forgotten: the search starts afresh from the gradient.
    stored = jnp.where(descends, stored, 0)
    plan = _Plan(direction, jnp.max(jnp.abs(direction)), jnp.linalg.norm(q), jnp.sum(at_low), jnp.sum(at_high))
    return plan, LBFGSState(
        state.inner, state.adjoint, jnp.asarray(True), hyper, grad, moves, turns, stored, state.low, state.high
    )


@eqx.filter_jit
def _displaced(
    hyper: PyTree, grad: PyTree, direction: Array, length: Array, low: PyTree, high: PyTree
) -> tuple[PyTree, Array]:
    """clip(θ + t d) and the fall -<h, move> that the hypergradient predicts for it."""
    x, restore = ravel_pytree(hyper)
    moved = jnp.clip(x + length * direction, ravel_pytree(low)[0], ravel_pytree(high)[0])
    return restore(moved), -jnp.vdot(ravel_pytree(grad)[0], moved - x)


class LBFGS(AbstractSearch):
    """θ ← clip(θ - t H h), H an inverse Hessian from the last few changes of θ and h, t found by values of F.

    Quasi-Newton steps in unconstrained coordinates, with the limited memory of Nocedal and with bounds by projection.
    Nothing is to be tuned: there is no rate. A step takes one hypergradient and, as a rule, one value.

    1. *Accuracy.* Where the objective honours accuracies and certifies, the tolerances are tightened until the bound of
       h is at most `relative_error` ‖h‖, and loosened again as far as that holds. Elsewhere its own settings serve.
    2. *Direction.* Coordinates that rest at a bound and would leave it stand still. A pair without positive curvature
       is not kept; where the kept ones give no direction of descent they are forgotten, and the search starts afresh.
    3. *Length.* t = 1, or at first a move of 1 in the largest coordinate; never more than `longest`. It is accepted
       where the value falls by `armijo` of the prediction: provably, with the bounds of both values, where values have
       certificates, after tightening if need be. A step along which F falls as if it were linear is lengthened, one
       that is refused is shortened by interpolation.

    **Arguments:**

    - `memory`: how many pairs are kept.
    - `strengths`: bounds of [`hyprax.Positive`][] leaves, in natural units (a start outside widens them). A penalty at
        the upper one drops its feature; how many coordinates rest at a bound stands in the history (`at_lower`,
        `at_upper`) and in the message of the run.
    - `relative_error`: of h, see 1.
    - `armijo`: the fraction of the predicted fall asked of a step.
    - `longest`: the longest move of a coordinate in one step.

    A run ends with `precision_reached` where no step lowers F by more than values are known to. Noisy objectives are
    refused.

    **Raises:** `ValueError` for settings out of range.

    Source: Nocedal, Math. Comp. 35 (1980); the projection as Bertsekas, SIAM J. Control Optim. 20 (1982); compared in
    tests with the L-BFGS-B of SciPy (Zhu, Byrd, Lu and Nocedal, ACM TOMS 23, 1997).
    """

    needs_accuracy: ClassVar[bool] = False
    needs_determinism: ClassVar[bool] = True

    memory: int = 10
    strengths: tuple[float, float] = (1e-8, 1e6)
    relative_error: float = 0.03
    armijo: float = 1e-4
    longest: float = 5.0

    citations: ClassVar[tuple[str, ...]] = (
        """@article{nocedal1980updating, author = {Nocedal, Jorge}, title = {Updating quasi-{Newton} matrices with
  limited storage}, journal = {Mathematics of Computation}, volume = {35}, pages = {773--782}, year = {1980}}""",
    )

    def __check_init__(self):
        if isinstance(self.memory, bool) or not isinstance(self.memory, int) or self.memory < 1:
            raise ValueError(f"LBFGS: memory must be an integer >= 1; got {self.memory!r}.")
        low, high = self.strengths
        if not 0 < low < high < math.inf:
            raise ValueError(f"LBFGS: strengths must be two numbers 0 < low < high; got {self.strengths}.")
        for name in ("relative_error", "armijo"):
            if not 0 < getattr(self, name) < 0.5:
                raise ValueError(f"LBFGS: {name} must lie between 0 and 0.5; got {getattr(self, name)}.")
        if not 0 < self.longest < math.inf:
            raise ValueError(f"LBFGS: longest must be a finite number > 0; got {self.longest}.")

    def init(self, hyper: PyTree) -> LBFGSState:
        dtype = tree_dtype(hyper)
        count = sum(leaf.size for leaf in jax.tree.leaves(hyper))
        pairs = jnp.zeros((self.memory, count), dtype)
        tolerance = jnp.asarray(FIRST_TOLERANCE, dtype)
        still = jax.tree.map(jnp.zeros_like, hyper)
        low, high = (self._bounds(hyper, end) for end in (0, 1))
        return LBFGSState(
            tolerance, tolerance, jnp.asarray(False), hyper, still, pairs, pairs, jnp.asarray(0), low, high
        )

    def _bounds(self, hyper: PyTree, end: int) -> PyTree:
        widen, infinite = ((jnp.minimum, -jnp.inf), (jnp.maximum, jnp.inf))[end]

        def bound(leaf: Any) -> Any:
            limit = math.log(self.strengths[end]) if isinstance(leaf, Positive) else infinite
            return jax.tree.map(lambda raw: widen(raw, jnp.asarray(limit, raw.dtype)), leaf)

        return jax.tree.map(bound, hyper, is_leaf=is_constrained)

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: LBFGSState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        walk = _Walk(self, spent, hyper, objective_state, search_state)
        answer, now = walk.gradient()
        if answer.certificate.kind == "none":  # values will not be certified either: this one serves
            walk.base = dataclasses.replace(now, bound=math.inf)
        plan, state = _planned(search_state, hyper, answer.grad)
        largest, free_norm, at_low, at_high, stored = jax.device_get(
            (plan.largest, plan.free_norm, plan.at_low, plan.at_high, state.stored)
        )
        taken, ended = None, None
        if not now.sound:
            ended = answer.result
        elif not free_norm > 0:
            ended = RESULTS.precision_reached if at_low + at_high else None
        else:
            longest = self.longest / float(largest)
            taken = walk.line(answer.grad, plan.direction, min(1.0 if stored else 1 / float(largest), longest), longest)
            if taken is None and int(stored) > 0:  # the pairs may be to blame: once more, along the gradient
                forgotten = eqx.tree_at(lambda s: s.stored, search_state, jnp.asarray(0))
                plan, state = _planned(
                    eqx.tree_at(lambda s: s.begun, forgotten, jnp.asarray(False)), hyper, answer.grad
                )
                largest = float(jax.device_get(plan.largest))
                taken = walk.line(answer.grad, plan.direction, min(walk.retry, 1 / largest), self.longest / largest)
            if taken is None:
                ended = RESULTS.precision_reached
        moved, length, proved = (hyper, 0.0, 0.0) if taken is None else taken
        inner, adjoint = spent.array(walk.inner), spent.array(walk.adjoint)
        state = eqx.tree_at(lambda s: (s.inner, s.adjoint), state, (inner, adjoint))
        numbers = spent.numbers(step_size=length, at_lower=float(at_low), at_upper=float(at_high))
        if walk.certifying:
            numbers["proved_decrease"] = spent.array(proved)
        value = None if walk.base is None else spent.array(walk.base.value)
        return Move(answer, moved, state, walk.state, ended, value, walk.sufficient, numbers)


class _Walk:
    """One step at `hyper`: the tolerances, which both of its parts tighten, and the objective's state."""

    def __init__(self, rule: LBFGS, spent: Account, hyper: PyTree, state: Any, start: LBFGSState):
        self.rule, self.spent, self.hyper, self.state, self.start = rule, spent, hyper, state, start
        self.inner, self.adjoint = float(start.inner), float(start.adjoint)
        if not spent.objective.adaptive:
            self.inner = self.adjoint = 0.0
        self.base: Measured | None = None
        self.certifying = False
        self.sufficient = False
        self.retry = 1.0

    def _tolerances(self) -> tuple[float | None, float | None]:
        return (self.inner, self.adjoint) if self.inner > 0 else (None, None)

    def gradient(self) -> tuple[Hypergradient, Measured]:
        """h, as accurate as the search needs; or as it can be had."""
        last = math.inf
        while True:
            answer, now, self.state = self.spent.value_and_grad(self.hyper, self.state, *self._tolerances())
            wanted = self.rule.relative_error * now.norm
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
            self.inner, self.adjoint = factor * min(self.inner, now.inner), factor * min(self.adjoint, now.adjoint)
        if self.inner > 0 and self.sufficient and self.spent.gradients == 1 and now.bound <= 0.2 * wanted:
            # A second hypergradient costs more than a tighter first one: tolerances are loosened slowly.
            self.inner, self.adjoint = (min(1.5 * x, LOOSEST_TOLERANCE) for x in (self.inner, self.adjoint))
        return answer, now

    def _value(self, hyper: PyTree, state: Any) -> tuple[Measured, Any]:
        answer, measured, state = self.spent.value(hyper, state, *self._tolerances())
        self.certifying = self.certifying or answer.certificate.kind != "none"
        return measured, state

    def line(self, grad: PyTree, direction: Array, length: float, longest: float) -> tuple[PyTree, float, float] | None:
        """The next hyperparameters, t, and the decrease that is proved; `None` where no step lowers the value."""
        unit = float(jnp.finfo(self.spent.dtype).eps)
        if self.base is None:
            self.base, self.state = self._value(self.hyper, self.state)
        base, best, tightenings, narrowest = self.base, None, 0, math.inf
        for _ in range(MOST_TRIALS):
            moved, predicted = _displaced(
                self.hyper, grad, direction, self.spent.array(length), self.start.low, self.start.high
            )
            predicted = float(predicted)
            trial, trial_state = self._value(moved, self.state)
            fall = base.value - trial.value
            rounding = 2 * unit * (abs(base.value) + abs(trial.value))
            bounds = base.bound + trial.bound
            width = rounding + (bounds if math.isfinite(bounds) else 0.0)
            if not (trial.sound and math.isfinite(trial.value)):
                if best is not None:
                    break
                length /= 8
                continue
            asked = self.rule.armijo * predicted
            undecided = abs(fall - asked) <= width and width > rounding
            if undecided and best is None and self.inner > 0 and tightenings < MOST_TIGHTENINGS:
                if width < 0.9 * narrowest and trial.solved and base.solved:
                    narrowest, tightenings = width, tightenings + 1
                    factor = tightening(0.3 * max(abs(fall - asked), 0.1 * predicted), width)
                    self.inner = factor * min(self.inner, max(base.inner, trial.inner))
                    self.base, self.state = self._value(self.hyper, self.state)
                    base = self.base
                    continue
                tightenings = MOST_TIGHTENINGS
            if fall >= asked and fall > rounding:
                if best is None or fall > best[3]:
                    best = moved, length, fall - width, fall, trial_state
                    # As if F were linear: a longer step costs a value, a short one a hypergradient.
                    if fall >= 0.9 * predicted and length < 0.99 * longest:
                        length = min(4 * length, longest)
                        continue
                break
            if best is not None:
                break
            if predicted <= width:  # below what the values can tell
                break
            length *= min(max(0.5 * predicted / (predicted - fall), 0.1), 0.5)
        self.retry = length
        if best is None:
            return None
        self.state = best[4]
        return best[0], best[1], best[2]
