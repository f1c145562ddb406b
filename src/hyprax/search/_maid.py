"""Accuracies and step sizes chosen by certificates: as loose, and as long, as descent can be proved with."""

import math
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate
from .._objective import AbstractObjective, Hypergradient
from .._result import RESULTS
from .._trees import tree_dtype
from ._descent import Account, Measured, account, check_positive, descend
from ._search import AbstractSearch, Move

SMALLEST_FACTOR = 1e-4
MOST_EVALUATIONS = 60


class MAIDState(eqx.Module):
    """The tolerances and the step size to try first; a step size of 0 before the first move."""

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]
    step_size: Float[Array, ""]


class _Stalls:
    """Whether a bound that is asked to fall still does: two attempts in a row without a tenth mean that it cannot."""

    def __init__(self):
        self.best, self.count = math.inf, 0

    def stuck(self, bound: float) -> bool:
        """Told the next bound; an infinite one is only waiting for the first that is finite."""
        falls = bound < 0.9 * self.best or math.isinf(bound)
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
    3. *Loosening.* After a step ε and δ grow by `loosen`, and α by `lengthen` if its first trial passed.

    When tightening, the factor is what would reach the bound needed if bounds were proportional to tolerances, at most
    ½ and at least 1e-4; it acts on the residuals reached where those are below the tolerances. So a bound that is loose
    by orders of magnitude costs a few evaluations more, and no tuning. Published are halvings alone, and a line search
    that shortens α and tightens ε in a fixed pattern; here the certificates say which of the two is to blame.

    **Arguments:**

    - `eta`: η, between 0 and 1.
    - `armijo`: λ, 0 < λ < η/2.
    - `inner`, `adjoint`: ε and δ of the first step, absolute norms. What they are hardly matters.
    - `loosen`: >= 1; `lengthen`: >= 1.

    **Certificate:** the decrease is proved exactly as far as the objective's own certificates are: with those of kind
    `certified` F falls at every step; with `estimated` ones probably. Each step records `proved_decrease`, D - w.

    A run ends with `no_certified_descent` where tightening no longer lowers ω or w: at the rounding floor.

    **Raises:** `ValueError` for settings out of range, and at the first step for an objective without certificates.

    Source: Salehi, Mukherjee, Roberts and Ehrhardt, arXiv 2308.10098 (2023), with a line search of our own.
    """

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
            raise ValueError(f"MAID: given eta {self.eta}, allowed are numbers between 0 and 1.")
        if not 0 < self.armijo < self.eta / 2:
            raise ValueError(f"MAID: given armijo {self.armijo}, allowed are numbers between 0 and eta/2 = {self.eta / 2}.")
        for name in ("loosen", "lengthen"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"MAID: given {name} {getattr(self, name)}, allowed are finite numbers >= 1.")

    def init(self, hyper: PyTree) -> MAIDState:
        dtype = tree_dtype(hyper)
        return MAIDState(jnp.asarray(self.inner, dtype), jnp.asarray(self.adjoint, dtype), jnp.zeros((), dtype))

    def step(self, objective: AbstractObjective, hyper: PyTree, search_state: MAIDState, objective_state: PyTree) -> Move:
        spent = account(objective, hyper)
        walk = _Walk(self, spent, hyper, objective_state, float(search_state.inner), float(search_state.adjoint))
        answer, now, descends = walk.direction()
        used = {"search_inner": walk.inner, "search_adjoint": walk.adjoint}
        step_size, taken, ended = float(search_state.step_size), None, None
        if not descends and math.isfinite(now.value):
            ended = RESULTS.no_certified_descent
        elif descends and now.norm > 0:
            taken = walk.line(answer, now.norm, step_size if step_size > 0 else 1 / now.norm)
            ended = RESULTS.no_certified_descent if taken is None else None
        moved, proved, longer = (hyper, 0.0, step_size) if taken is None else taken
        state = MAIDState(spent.array(walk.inner), spent.array(walk.adjoint), spent.array(longer))
        recorded = spent.recorded(answer, **used, step_size=walk.step_size, proved_decrease=proved)
        return Move(recorded, moved, state, walk.state, ended)


class _Walk:
    """One step of MAID at `hyper`: the tolerances, which both of its parts tighten, and the objective's state."""

    def __init__(self, rule: MAID, spent: Account, hyper: PyTree, state: Any, inner: float, adjoint: float):
        self.rule, self.spent, self.hyper, self.state = rule, spent, hyper, state
        self.inner, self.adjoint, self.step_size = inner, adjoint, 0.0

    def direction(self) -> tuple[Hypergradient, Measured, bool]:
        """Tighten until ω <= (1 - η)‖h‖; false where that cannot be reached."""
        stalls = _Stalls()
        while True:
            answer, now, self.state = self.spent.value_and_grad(self.hyper, self.state, self.inner, self.adjoint)
            _require(answer.certificate)
            wanted = (1 - self.rule.eta) * now.norm
            finite = math.isfinite(now.value) and math.isfinite(now.norm)
            if not finite or now.bound <= wanted:
                return answer, now, finite
            if stalls.stuck(now.bound) or self.spent.gradients >= MOST_EVALUATIONS:
                return answer, now, False
            factor = _factor(0.7 * wanted, now.bound)
            self.inner = factor * min(self.inner, now.inner)
            self.adjoint = factor * min(self.adjoint, now.adjoint)

    def line(self, answer: Hypergradient, norm: float, alpha: float) -> tuple[PyTree, float, float] | None:
        """The next hyperparameters, the decrease proved, and the α to try next; `None` where none can be proved."""
        rule, stalls, shortened = self.rule, _Stalls(), False
        unit = float(jnp.finfo(self.spent.dtype).eps)
        base_value, base, state = self.spent.value(self.hyper, self.state, self.inner, self.adjoint)
        _require(base_value.certificate)
        while self.spent.values < MOST_EVALUATIONS:
            moved = descend(self.hyper, answer.grad, self.spent.array(alpha))
            _, trial, trial_state = self.spent.value(moved, state, self.inner, self.adjoint)
            fall, predicted = base.value - trial.value, alpha * norm**2
            width = base.bound + trial.bound + 2 * unit * (abs(base.value) + abs(trial.value))
            asked = rule.armijo * predicted
            if fall - width >= asked:
                self.state, self.step_size = trial_state, alpha
                self.inner, self.adjoint = self.inner * rule.loosen, self.adjoint * rule.loosen
                return moved, fall - width, alpha if shortened else alpha * rule.lengthen
            if not math.isfinite(trial.value) or fall + width < 2 * asked or (base.solved and not trial.solved):
                alpha, shortened, stalls = alpha / 2, True, _Stalls()
                continue
            if not base.solved or stalls.stuck(width):
                break
            decisive = max(fall - asked, 2 * asked - fall, 0.5 * asked)
            self.inner = _factor(0.7 * decisive, width) * min(self.inner, max(base.inner, trial.inner))
            _, base, state = self.spent.value(self.hyper, state, self.inner, self.adjoint)
        self.step_size = alpha
        return None


def _factor(wanted: float, had: float) -> float:
    """By what to multiply tolerances so that a bound proportional to them falls from `had` to `wanted`."""
    return min(max(wanted / had, SMALLEST_FACTOR), 0.5) if math.isfinite(had) else 0.05


def _require(certificate: AbstractCertificate) -> None:
    if certificate.kind == "none":
        raise ValueError(
            f"MAID: given an objective without error bounds ({certificate!r}), allowed is one with a certificate "
            "(a family with hx.LookAhead(), or hx.EhrhardtRoberts(constants=...)). Without one use hx.search.HOAG()."
        )
