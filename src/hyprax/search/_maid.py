"""Accuracies and step sizes chosen by certificates: as loose, and as long, as descent can be proved with."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from .._certificate import AbstractCertificate
from .._objective import AbstractObjective, Hypergradient
from .._trees import tree_dot, tree_dtype, tree_sub
from ._descent import Account, Measured, account, check_positive, descend, tightening, tighter
from ._results import RESULTS
from ._search import AbstractSearch, Move

MOST_EVALUATIONS = 60
MOST_TIGHTENINGS = 3
LONGEST_FACTOR = 100.0


class MAIDState(eqx.Module):
    """The tolerances to try first; of the last move its step size (0 before the first), and where it began.

    `upper` is a proved upper bound of F at the present θ, infinite before the first move.
    """

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]
    step_size: Float[Array, ""]
    last_hyper: PyTree
    last_grad: PyTree
    last_bound: Float[Array, ""]
    upper: Float[Array, ""]


@eqx.filter_jit
def _inverse_curvature(
    state: MAIDState, hyper: PyTree, grad: PyTree, bound: Float[Array, ""]
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """<s, y>/<y, y>, s and y the last changes of θ and of h: the short step of Barzilai and Borwein; 0 for y = 0.

    And whether it is worth its name: the errors of both hypergradients make at most half of y.
    """
    moved, turned = tree_sub(hyper, state.last_hyper), tree_sub(grad, state.last_grad)
    square = tree_dot(turned, turned)
    inverse = jnp.where(square > 0, tree_dot(moved, turned) / jnp.where(square > 0, square, 1), 0)
    return inverse, 4 * (bound + state.last_bound) ** 2 <= square


class _Stalls:
    """Whether a bound that is asked to fall still does: two attempts in a row without a tenth mean that it cannot."""

    def __init__(self):
        self.best, self.count = math.inf, 0

    def stuck(self, bound: float, solved: bool) -> bool:
        """Told the next bound; an infinite one of a problem solved as asked only waits for the first that is finite."""
        falls = bound < 0.9 * self.best or (math.isinf(bound) and solved)
        self.count = 0 if falls else self.count + 1
        self.best = min(self.best, bound)
        return self.count >= 2


class MAID(AbstractSearch):
    """θ ← θ - α h where F is *proved* to fall by at least λ α‖h‖²; tolerances and α are found, not given.

    With the certificates ‖h - ∇F‖ <= ω of the hypergradient and |value - F| <= u of values, one step at θ:

    1. *Direction.* Tolerances (ε, δ) are tightened until ω <= (1 - η)‖h‖. Then <∇F, h> >= η‖h‖²: -h descends.
    2. *Line search.* With D the computed decrease from θ to θ - α h, w the sum of the two values' bounds (and their
       rounding) and P = α‖h‖²: the step is taken if D - w >= λP, which proves F(θ) - F(θ - α h) >= λP; α is halved if
       D + w < 2λP, which proves that it was too long; otherwise ε is tightened, and either holds at the latest when w
       <= ½λP. As 2λ < η, every α up to 2(η - 2λ)/L passes, L the curvature of F: there are finitely many trials.
    3. *Loosening.* After a step ε and δ grow by `loosen`. The next α to try is the inverse curvature <s, y>/<y, y> of
       the last move (s, y the changes of θ and h); the last α times `lengthen` where that is negative.

    When tightening, the factor is what would reach the bound needed if bounds were proportional to tolerances, at most
    ½ and at least 1e-4; it acts on the residuals reached where those are below the tolerances. So a bound that is loose
    by orders of magnitude costs a few evaluations more, and no tuning. Published are halvings alone, a line search that
    shortens α and tightens ε in a fixed pattern, and an α that only grows between steps; here the certificates say
    which of the two is to blame, and the hypergradients how long a step may be.

    **Arguments:**

    - `eta`: η, between 0 and 1.
    - `armijo`: λ, 0 < λ < η/2.
    - `inner`, `adjoint`: ε and δ of the first step, absolute norms. What they are hardly matters.
    - `loosen`: >= 1; `lengthen`: >= 1.

    **Certificate:** the decrease is proved exactly as far as the objective's own certificates are: with those of kind
    `certified` F falls at every step; with `estimated` ones probably. Each step records `proved_decrease`, D - w, and
    as its value the last one that the line search computed at θ, or the upper bound that the move to θ has proved.

    A run ends with `no_certified_descent` where tightening no longer lowers w, and no step is proved: at the rounding
    floor. Where it no longer lowers ω the line search is tried all the same, since its proof needs values alone.

    **Raises:** `ValueError` for settings out of range, and at the first step for an objective without certificates.

    Source: Salehi, Mukherjee, Roberts and Ehrhardt, arXiv 2308.10098 (2023), with a line search of our own; Barzilai
    and Borwein (IMA J. Numer. Anal. 8, 1988) for the first α.
    """

    needs_accuracy: ClassVar[bool] = True
    needs_determinism: ClassVar[bool] = True

    eta: float = 0.5
    armijo: float = 0.1
    inner: float = 0.1
    adjoint: float = 0.1
    loosen: float = 1.25
    lengthen: float = 2.0

    citations: ClassVar[tuple[str, ...]] = (
        """@article{salehi2023adaptively, author = {Salehi, Mohammad Sadegh and Mukherjee, Subhadip and Roberts, Lindon
  and Ehrhardt, Matthias J.}, title = {An adaptively inexact first-order method for bilevel optimization with
  application to hyperparameter learning}, year = {2023}, note = {arXiv:2308.10098}}""",
    )

    def __check_init__(self):
        check_positive("MAID", inner=self.inner, adjoint=self.adjoint)
        if not 0 < self.eta < 1:
            raise ValueError(f"MAID: eta must lie between 0 and 1; got {self.eta}.")
        if not 0 < self.armijo < self.eta / 2:
            raise ValueError(f"MAID: armijo must lie between 0 and eta/2 = {self.eta / 2}; got {self.armijo}.")
        for name in ("loosen", "lengthen"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"MAID: {name} must be a finite number >= 1; got {getattr(self, name)}.")

    def init(self, hyper: PyTree) -> MAIDState:
        dtype = tree_dtype(hyper)
        still = jax.tree.map(jnp.zeros_like, hyper)
        zero = jnp.zeros((), dtype)
        return MAIDState(
            inner=jnp.asarray(self.inner, dtype),
            adjoint=jnp.asarray(self.adjoint, dtype),
            step_size=zero,
            last_hyper=hyper,
            last_grad=still,
            last_bound=zero,
            upper=jnp.full((), jnp.inf, dtype),
        )

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: MAIDState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        walk = _Walk(self, spent, hyper, objective_state, search_state)
        answer, now, descends = walk.direction()
        used = {"search_inner": walk.inner, "search_adjoint": walk.adjoint}
        taken, ended = None, None
        if now.sound and now.norm > 0:  # values decide, even where the direction could not be certified
            taken = walk.line(
                answer, now.norm, self._trial(search_state, hyper, answer, now.norm, spent.array(now.bound))
            )
        if not now.sound:
            ended = answer.result
        elif taken is None and not (descends and now.norm == 0):
            ended = RESULTS.no_certified_descent
        moved, proved = (hyper, 0.0) if taken is None else taken
        state = MAIDState(
            inner=spent.array(walk.inner),
            adjoint=spent.array(walk.adjoint),
            step_size=spent.array(walk.step_size),
            last_hyper=hyper,
            last_grad=answer.grad,
            last_bound=spent.array(now.bound),
            upper=spent.array(walk.upper),
        )
        # Where F is known to be below the computed value, that is closer: so the values of a run fall at every step.
        value = None if walk.value is None else spent.array(min(walk.value, float(search_state.upper)))
        numbers = spent.numbers(**used, step_size=walk.step_size, proved_decrease=proved)
        # The certificate is what the tolerances were for: one that was missed no longer matters.
        sufficient = descends or taken is not None
        return Move(answer, moved, state, walk.state, ended, value, sufficient, numbers)

    def _trial(self, state: MAIDState, hyper: PyTree, answer: Hypergradient, norm: float, bound: Array) -> float:
        """The α to try first."""
        last = float(state.step_size)
        if last == 0:
            return 1 / norm
        inverse, certain = jax.device_get(_inverse_curvature(state, hyper, answer.grad, bound))
        if not inverse > 0:
            return self.lengthen * last
        # Errors of y make it longer, and the step shorter: what is not certain shortens it by a half at most.
        return min(max(float(inverse), 0.0 if certain else last / 2), LONGEST_FACTOR * last)


class _Walk:
    """One step of MAID at `hyper`: the tolerances, which both of its parts tighten, and the objective's state."""

    def __init__(self, rule: MAID, spent: Account, hyper: PyTree, state: Any, start: MAIDState):
        self.rule, self.spent, self.hyper, self.state = rule, spent, hyper, state
        self.inner, self.adjoint, self.step_size = float(start.inner), float(start.adjoint), 0.0
        self.value: float | None = None
        self.upper = float(start.upper)

    def direction(self) -> tuple[Hypergradient, Measured, bool]:
        """Tighten until ω <= (1 - η)‖h‖; false, and what had the smallest ω, where that cannot be reached."""
        stalls, best = _Stalls(), None
        while True:
            answer, now, self.state = self.spent.value_and_grad(self.hyper, self.state, self.inner, self.adjoint)
            _require(answer.certificate)
            wanted = (1 - self.rule.eta) * now.norm
            if not now.sound or now.bound <= wanted:
                return answer, now, now.sound
            if best is None or now.bound < 0.9 * best[1].bound:
                best = answer, now, self.inner, self.adjoint
            if stalls.stuck(now.bound, now.solved) or self.spent.gradients >= MOST_EVALUATIONS:
                answer, now, self.inner, self.adjoint = best
                return answer, now, False
            factor = tightening(0.7 * wanted, now.bound)
            self.inner = tighter(factor, self.inner, now.inner)
            self.adjoint = tighter(factor, self.adjoint, now.adjoint)

    def line(self, answer: Hypergradient, norm: float, alpha: float) -> tuple[PyTree, float] | None:
        """The next hyperparameters and the decrease proved; `None` where none can be proved."""
        rule, stalls, attempts, shortened = self.rule, _Stalls(), 0, False
        unit = float(jnp.finfo(self.spent.dtype).eps)
        inner = self.inner
        base_value, base, state = self.spent.value(self.hyper, self.state, inner, self.adjoint)
        _require(base_value.certificate)
        while self.spent.values < MOST_EVALUATIONS:
            self.value = base.value
            moved = descend(self.hyper, answer.grad, self.spent.array(alpha))
            _, trial, trial_state = self.spent.value(moved, state, inner, self.adjoint)
            fall, predicted = base.value - trial.value, alpha * norm**2
            asked = rule.armijo * predicted
            rounding = 2 * unit * (abs(base.value) + abs(trial.value))
            width = base.bound + trial.bound + rounding
            if fall - width >= asked:
                self.state, self.step_size = trial_state, alpha
                self.upper = trial.value + trial.bound + rounding
                self.inner, self.adjoint = inner * rule.loosen, self.adjoint * rule.loosen
                return moved, fall - width
            attempts += 1
            reached = (base.solved or base.inner <= inner) and trial.solved
            hopeless = stalls.stuck(width, reached) or not reached or attempts > MOST_TIGHTENINGS
            if not math.isfinite(trial.value) or fall + width < 2 * asked:
                alpha, shortened = alpha / 2, True
            elif hopeless and trial.bound > 10 * base.bound:
                # Far away the problem may be conditioned so badly that no tolerance helps: that is the step's fault.
                alpha, shortened = alpha / 8, True
            elif hopeless and not shortened:
                # The decrease that so short a step can bring drowns in rounding; that of a longer one may not.
                alpha = 4 * alpha
            elif hopeless:
                return None
            else:
                # What decides, if the fall is as computed; one beyond the prediction is the error's.
                likely = min(max(fall, -predicted), predicted)
                decisive = max(likely - asked, 2 * asked - likely, 0.5 * asked)
                inner = tighter(tightening(0.7 * decisive, width), inner, max(base.inner, trial.inner))
                _, base, state = self.spent.value(self.hyper, state, inner, self.adjoint)
                continue
            inner, stalls, attempts = self.inner, _Stalls(), 0
        return None


def _require(certificate: AbstractCertificate) -> None:
    if certificate.kind == "none":
        raise ValueError(
            f"MAID needs an objective with a certificate; got one without error bounds ({certificate!r}). Take one "
            "(a family with hx.implicit.LookAhead(), or hx.implicit.EhrhardtRoberts(constants=...)). Without "
            "one use hx.search.HOAG()."
        )
