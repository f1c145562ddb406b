"""Holding back without a rate: quasi-Newton steps on F and a price, by its noise, for moving each coordinate."""

import dataclasses
import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._noise import Noise
from .._objective import AbstractObjective, Hypergradient, Value
from .._result import succeeded
from .._stats import AbstractStats, Accuracy, Effort
from ._gate import entry_bounds
from ._lbfgs import LBFGS
from ._quasi_newton import QuasiNewtonState
from ._results import RESULTS
from ._search import AbstractSearch, Move
from ._student import widened

ARRIVED = 0.1  # of its price: an entry that exceeds it by less is not worth a step
GAIN = 1e-3  # of the fall so far: what a step must add to it
PATIENCE = 3


class GatedState(eqx.Module):
    """Where the run began, the price of each coordinate, the moves p and q, and the state of the quasi-Newton steps.

    `first` and `lowest` are values of F, the latter the last that counted as a gain; `idle` counts steps without one.
    """

    begun: Bool[Array, ""]
    first: Float[Array, ""]
    lowest: Float[Array, ""]
    idle: Int[Array, ""]
    origin: PyTree
    prices: Float[Array, " N"]
    moves: Float[Array, "2 N"]
    walk: QuasiNewtonState


class GatedLBFGS(AbstractSearch):
    """min F(θ) + Σ_j t_j |θ_j - θ⁰_j|, t_j = z se_j + bound_j: a coordinate moves where it gains more than its noise.

    [`hyprax.search.Gate`][] with quasi-Newton steps in place of a rate. `se_j` is the standard error of entry j of the
    hypergradient over the sample, `bound_j` the certificate's bound of it, as they were a step before; θ⁰ is the start.
    An entry with |h_j| <= t_j there stays; one that is open moves until |h_j| = t_j, so that what the sample cannot
    tell from chance is not followed. The run ends with `below_noise` where no entry is open by more than a tenth of its
    price, or three steps in turn have each added less than a thousandth to the fall so far.

    With θ = θ⁰ + p - q, p, q >= 0, the price is linear, and [`hyprax.search.LBFGS`][] minimises over p and q, with its
    accuracies, its proofs of a decrease and its bounds of strengths; its pairs are of F, whatever the prices do. The
    first step takes one hypergradient more.

    **Arguments:**

    - `z`: how many standard errors a coordinate must exceed: 2, or 3 where nothing may be lost. Where standard errors
        are estimates of few degrees of freedom, that of Student's t with the same tail.
    - `strengths`: bounds of [`hyprax.Positive`][] leaves, as for `LBFGS`.

    Noisy objectives are refused; [`hyprax.search.Gate`][] is for those.

    **Raises:** `ValueError` for z <= 0, and at the first step for an objective that does not measure its noise.

    Source: the penalty is that of the lasso (Tibshirani, JRSS B 58, 1996), its weights are standard errors; splitting
    into p and q is how gradient projection solves it (Figueiredo, Nowak and Wright, IEEE JSTSP 1, 2007).
    """

    needs_accuracy: ClassVar[bool] = False
    needs_determinism: ClassVar[bool] = True

    z: float = 2.0
    strengths: tuple[float, float] = (1e-8, 1e6)

    def __check_init__(self):
        if not 0 < self.z < math.inf:
            raise ValueError(f"GatedLBFGS: z must be a finite number > 0; got {self.z}.")

    @property
    def _steps(self) -> LBFGS:
        return LBFGS(strengths=self.strengths)

    def init(self, hyper: PyTree) -> GatedState:
        whole = self._steps.init(hyper)
        start, low, high = (ravel_pytree(tree)[0] for tree in (hyper, whole.low, whole.high))
        moves = jnp.zeros((2, start.size), start.dtype)
        walk = self._steps.init(moves)
        ends = (jnp.zeros_like(moves), jnp.stack([high - start, start - low]))
        walk = eqx.tree_at(lambda w: (w.low, w.high), walk, ends)
        none = jnp.asarray(jnp.inf, start.dtype)
        return GatedState(jnp.asarray(False), none, none, jnp.asarray(0), hyper, jnp.zeros_like(start), moves, walk)

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: GatedState, objective_state: PyTree
    ) -> Move:
        state, first = search_state, not bool(search_state.begun)
        if first:
            answer, objective_state = objective.value_and_grad(hyper, objective_state)
            state = _begun(state, self._price(answer))
        priced = _Priced(objective, state.origin, state.prices)
        move = self._steps.step(priced, state.moves, state.walk, objective_state)
        stats = move.hypergradient.stats
        assert isinstance(stats, _Inside)  # `_Priced` has put it there
        found = stats.answer
        assert isinstance(found, Hypergradient)
        value = None if move.value is None else move.value - _price(state.prices, state.moves)
        state = _watched(state, found.value if value is None else value)
        opened, moved, at_low, at_high = _counted(state, move.hypergradient.grad)
        going = int(opened) and int(state.idle) < PATIENCE
        ended = move.ended if going or not bool(succeeded(found.result)) else RESULTS.below_noise
        own = {"open_entries": opened, "moved_entries": moved, "at_lower": at_low, "at_upper": at_high}
        numbers = dict(move.numbers) | own
        numbers["gradients"] = numbers["gradients"] + int(first)
        after = _repriced(state, move.hyper, move.search_state, self._price(found))
        return Move(found, priced.at(move.hyper), after, move.objective_state, ended, value, move.sufficient, numbers)

    def _price(self, answer: Hypergradient) -> Float[Array, " N"]:
        noise = answer.noise
        if not isinstance(noise, Noise):
            raise ValueError(
                f"GatedLBFGS: the objective must measure the noise of its hypergradients; got {noise!r}. For a family "
                "give noise=hx.implicit.ExampleNoise(); or search=hx.search.LBFGS(), which holds nothing back."
            )
        factor = widened(self.z, float(noise.degrees_of_freedom))
        bounds = ravel_pytree(entry_bounds(answer.certificate, answer.grad))[0]
        errors = ravel_pytree(noise.standard_errors)[0]
        return factor * errors + bounds.astype(errors.dtype)


@eqx.filter_jit
def _begun(state: GatedState, prices: Array) -> GatedState:
    """With the first prices; a coordinate of which nothing is known, since its price is not finite, stays."""
    known = jnp.isfinite(prices)
    high = jnp.where(known[None], state.walk.high, 0)
    prices = jnp.where(known, prices, 0).astype(state.prices.dtype)
    return eqx.tree_at(lambda s: (s.begun, s.prices, s.walk.high), state, (jnp.asarray(True), prices, high))


@eqx.filter_jit
def _repriced(state: GatedState, moves: Array, walk: QuasiNewtonState, prices: Array) -> GatedState:
    """After a step: the prices of where it began, and the last gradient as if they had been known there."""
    prices = jnp.where(jnp.isfinite(prices), prices, state.prices).astype(state.prices.dtype)
    walk = eqx.tree_at(lambda w: w.last_grad, walk, walk.last_grad + (prices - state.prices)[None])
    return eqx.tree_at(lambda s: (s.prices, s.moves, s.walk), state, (prices, moves, walk))


@eqx.filter_jit
def _watched(state: GatedState, value: Array) -> GatedState:
    """With the count of steps that have added next to nothing to the fall so far."""
    value = value.astype(state.first.dtype)
    first = jnp.where(jnp.isinf(state.first), value, state.first)
    gained = value < state.lowest - GAIN * jnp.where(jnp.isinf(state.lowest), 0, first - state.lowest)
    lowest, idle = jnp.where(gained, value, state.lowest), jnp.where(gained, 0, state.idle + 1)
    return eqx.tree_at(lambda s: (s.first, s.lowest, s.idle), state, (first, lowest, idle))


@jax.jit
def _price(prices: Array, moves: Array) -> Float[Array, ""]:
    return jnp.sum(prices * jnp.sum(moves, axis=0))


@eqx.filter_jit
def _counted(state: GatedState, grad: Float[Array, "2 N"]) -> tuple[Int[Array, ""], ...]:
    """How many coordinates are open, how many have moved, and how many rest at a bound of the strengths."""
    least = ARRIVED * state.prices[None]
    free = jnp.where(grad > 0, state.moves > 0, state.moves < state.walk.high)
    opened = jnp.any(free & (jnp.abs(grad) > least), axis=0)
    ends = (state.moves >= state.walk.high) & (state.walk.high > 0) & (grad < 0)
    return jnp.sum(opened), jnp.sum(jnp.any(state.moves > 0, axis=0)), jnp.sum(ends[1]), jnp.sum(ends[0])


class _Inside(AbstractStats):
    """The answer of F itself."""

    answer: Value | Hypergradient

    def effort(self) -> Effort:
        return self.answer.stats.effort()


class _Priced(AbstractObjective[PyTree]):
    """F(θ⁰ + p - q) + Σ_j t_j (p_j + q_j), of hyperparameters (p, q)."""

    objective: AbstractObjective
    origin: PyTree
    prices: Float[Array, " N"]
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(self, objective: AbstractObjective, origin: PyTree, prices: Array):
        self.objective, self.origin, self.prices = objective, origin, prices
        self.noisy, self.adaptive, self.measures_noise = False, objective.adaptive, False
        self.value_name = objective.value_name

    def at(self, moves: Array) -> PyTree:
        """The hyperparameters of F."""
        return _displaced(self.origin, moves)

    def init(self, hyper: Array) -> PyTree:
        return self.objective.init(self.at(hyper))

    def value_and_grad(
        self, hyper: Array, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        answer, state = self.objective.value_and_grad(self.at(hyper), state, accuracy)
        value, grad = _with_price(self.prices, hyper, answer.value, answer.grad)
        certificate = _widened(answer.certificate, 2**0.5, jnp.linalg.norm(grad))  # h enters twice
        return Hypergradient(value, grad, certificate, answer.noise, answer.result, _Inside(answer)), state

    def value(self, hyper: Array, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        answer, state = self.objective.value(self.at(hyper), state, accuracy)
        value = answer.value + _price(self.prices, hyper).astype(answer.value.dtype)
        certificate = _widened(answer.certificate, 1.0, value)
        return dataclasses.replace(answer, value=value, certificate=certificate, stats=_Inside(answer)), state

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: Array, state: PyTree) -> tuple[Value, PyTree]:
        return self.value(hyper, state)


@jax.jit
def _displaced(origin: PyTree, moves: Array) -> PyTree:
    start, restore = ravel_pytree(origin)
    return restore(start + moves[0] - moves[1])


@jax.jit
def _with_price(prices: Array, moves: Array, value: Array, grad: PyTree) -> tuple[Array, Array]:
    h = ravel_pytree(grad)[0].astype(prices.dtype)
    return value + _price(prices, moves).astype(value.dtype), jnp.stack([prices + h, prices - h])


def _widened(certificate: AbstractCertificate, factor: float, size: Array) -> AbstractCertificate:
    """Of an answer that enters so many times, and to which numbers were added that are known up to rounding."""
    if certificate.kind == "none":
        return certificate
    bound = certificate.bound
    bound = (1 + 1e-6) * factor * bound + 1e2 * jnp.finfo(bound.dtype).eps * jnp.abs(size).astype(bound.dtype)
    return Certificate(bound, certificate.kind, certificate.quantity, "with a price that is known up to rounding")
