"""Limited-memory quasi-Newton steps: no rate to give, accuracies as loose as certificates allow, proved decrease."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, PyTree

from ._quasi_newton import MOST_TRIALS, AbstractQuasiNewton, Local, QuasiNewtonState, Taken, Walk, localised


def _convex(move: Array, turn: Array) -> Bool[Array, ""]:
    """Whether the curvature along a move was positive, beyond rounding."""
    return jnp.vdot(move, turn) > 1e-8 * jnp.linalg.norm(move) * jnp.linalg.norm(turn)


@eqx.filter_jit
def _planned(
    state: QuasiNewtonState, hyper: PyTree, grad: PyTree
) -> tuple[Local, QuasiNewtonState, tuple[Array, Array]]:
    """The quasi-Newton inverse, applied to the free part of h: a direction, and its largest coordinate."""
    local, state = localised(state, hyper, grad, _convex)
    free, q = local.free, local.grad * local.free
    s, y = state.moves * free[None], state.turns * free[None]
    product = jnp.sum(s * y, axis=1)
    used = (jnp.arange(len(s)) < state.stored) & (
        product > 1e-8 * jnp.linalg.norm(s, axis=1) * jnp.linalg.norm(y, axis=1)
    )
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
    state = eqx.tree_at(lambda s: s.stored, state, jnp.where(descends, state.stored, 0))
    return local, state, (direction, jnp.max(jnp.abs(direction)))


@eqx.filter_jit
def _displaced(local: Local, state: QuasiNewtonState, direction: Array, length: Array) -> tuple[PyTree, Array]:
    """clip(θ + t d) and the fall -<h, move> that the hypergradient predicts for it."""
    low, high = (ravel_pytree(bound)[0] for bound in (state.low, state.high))
    moved = jnp.clip(local.point + length * direction, low, high)
    return ravel_pytree(state.last_hyper)[1](moved), -jnp.vdot(local.grad, moved - local.point)


class LBFGS(AbstractQuasiNewton):
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
        if not 0 < self.armijo < 0.5:
            raise ValueError(f"LBFGS: armijo must lie between 0 and 0.5; got {self.armijo}.")

    def _planned(self, state: QuasiNewtonState, hyper: PyTree, grad: PyTree) -> tuple[Local, QuasiNewtonState, PyTree]:
        return _planned(state, hyper, grad)

    def _taken(self, walk: Walk, local: Local, state: QuasiNewtonState, plan: PyTree) -> Taken | None:
        direction, (largest, stored) = plan[0], jax.device_get((plan[1], state.stored))
        longest = self.longest / float(largest)
        first = 1.0 if stored else min(walk.retry, 1 / float(largest))
        return self._line(walk, local, state, direction, min(first, longest), longest)

    def _line(
        self, walk: Walk, local: Local, state: QuasiNewtonState, direction: Array, length: float, longest: float
    ) -> Taken | None:
        """The longest step of those tried that falls as it should."""
        base, best, most = walk.begin(), None, -math.inf
        for _ in range(MOST_TRIALS):
            moved, predicted = _displaced(local, state, direction, walk.spent.array(length))
            predicted = float(predicted)
            trial, trial_state = walk.value(moved, walk.state)
            if not (trial.sound and math.isfinite(trial.value)):
                if best is not None:
                    break
                length /= 8
                continue
            fall, (width, rounding) = base.value - trial.value, walk.width(trial)
            asked = self.armijo * predicted
            wanted = 0.3 * max(abs(fall - asked), 0.1 * predicted)
            if best is None and abs(fall - asked) <= width and walk.tightened(trial, wanted):
                base = walk.begun()
                continue
            if fall >= asked and fall > rounding:
                if fall > most:
                    best, most = Taken(moved, length, fall - width, trial_state), fall
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
        walk.retry = length
        return best
