"""What the single-loop methods share: the problem as two finite sums, rates, state, and the answer."""

import abc
import operator
from collections.abc import Callable
from typing import Any, Required, SupportsIndex, TypedDict

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Integer, PyTree

from ..._certificate import NoCertificate
from ..._hyper import natural
from ..._noise import AbstractNoise, Noise, NoNoise
from ..._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from ..._stats import Accuracy
from ..._trees import tree_all_finite, tree_axpy, tree_dtype, tree_norm, tree_sub
from .._answers import RESULTS, SingleLoopStats
from .._bounds import AbstractCertifier, OuterLoss
from .._objective import ImplicitObjective, ImplicitState
from .._optimum import Optimum, matched
from ._blocks import common_length
from ._sums import AbstractSum, LinearInner, Terms, check_mean, inner_sum, outer_sum

Rate = float | Callable[[Integer[Array, ""]], Float[Array, ""]]
"""A step size: a number, or a function of the number of the step (an optax schedule)."""

REASON = (
    "a stochastic direction, from one step of the inner problem and of the adjoint: take objective.full_batch() and "
    "warm_start(state) for a certificate"
)

RUNS = 4
"""Of successive steps, in which the draws of one call are taken together for their spread."""

NOISE = NoNoise(
    f"the spread of a stochastic direction over rows drawn is measured where a call makes {2 * RUNS} steps or more "
    "(steps=)",
    "rows drawn",
)


class Sampling(TypedDict, total=False):
    """The settings of every method, by keyword, as `SOBA` explains them."""

    rate: Rate | None
    adjoint_rate: Rate | None
    batch_size: SupportsIndex
    outer_batch_size: SupportsIndex | None
    key: Required[Array]


class SingleLoopState(eqx.Module):
    """The inner variable w, the adjoint v (A v ≈ ∇f), the number of the next step, and the method's memory, if any.

    Batches are functions of the number of the step, so nothing random is kept.
    """

    params: PyTree
    adjoint: PyTree
    step: Int[Array, ""]
    memory: PyTree = None


class Directions(eqx.Module):
    """D_w, D_v and D_λ, with an estimate of f: what one stochastic step moves along."""

    params: PyTree
    adjoint: PyTree
    hyper: PyTree
    value: Float[Array, ""]


def directions(inner: Terms, outer: Terms) -> Directions:
    """D_w = ∇_w g, D_v = A v - ∇_w f, D_λ = ∂_λ f - Bᵀv."""
    return Directions(
        inner.gradient, tree_sub(inner.second, outer.gradient), tree_sub(outer.hyper, inner.hyper), outer.second
    )


def terms(part: AbstractSum, block: Integer[Array, ""], params: PyTree, hyper: PyTree, adjoint: PyTree) -> Terms:
    """An unbiased estimate from one block: the contribution of the block, and the exact part."""
    sampled = part.decode(block, part.code(block, params, hyper, adjoint), params, hyper)
    return jax.tree.map(jnp.add, sampled, part.exact(params, hyper, adjoint))


class AbstractSingleLoop(AbstractObjective[SingleLoopState]):
    """The problem of [`hyprax.ImplicitObjective`][], g and f means over examples, one stochastic step a call.

    The arguments are explained by [`hyprax.implicit.SOBA`][].
    """

    optimum: Optimum
    outer_loss: OuterLoss
    outer_data: PyTree
    inner: AbstractSum
    outer: AbstractSum
    rate: Rate | None
    adjoint_rate: Rate | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        optimum: Optimum,
        outer_loss: OuterLoss,
        outer_data: PyTree = None,
        *,
        rate: Rate | None = None,
        adjoint_rate: Rate | None = None,
        batch_size: SupportsIndex = 64,
        outer_batch_size: SupportsIndex | None = None,
        key: Array,
    ):
        name = type(self).__name__
        self.noisy, self.adaptive, self.measures_noise = True, False, False
        self.value_name = "validation loss"
        inner_key, outer_key = jax.random.split(key)
        self.optimum, self.outer_loss, self.outer_data = optimum, outer_loss, outer_data = matched(
            optimum, outer_loss, outer_data
        )
        self.inner = inner_sum(name, optimum.loss, batch_size, inner_key)
        if outer_batch_size is None:
            outer_batch_size = min(operator.index(batch_size), common_length(f"{name}, outer_data", self.outer_data))
        self.outer = outer_sum(name, outer_loss, self.outer_data, outer_batch_size, outer_key)
        known = isinstance(self.inner, LinearInner) and self.inner.family.loss.curvature < float("inf")
        if rate is None and not known:
            raise ValueError(
                f"{name}: rate is required for a loss of unknown smoothness; only a family of bounded curvature "
                "without example weights has a rate of its own."
            )
        for label, given in (("rate", rate), ("adjoint_rate", adjoint_rate)):
            if given is not None and not callable(given) and not 0 < given < float("inf"):
                raise ValueError(f"{name}: {label} must be a number > 0, or a function of the step; got {given}.")
        self.rate, self.adjoint_rate = rate, adjoint_rate

    def init(self, hyper: PyTree) -> SingleLoopState:
        """One step of w from where the optimum starts, and one of v from 0.

        From v = 0 itself the first direction would often be 0, and be taken for a small gradient.
        """
        name, params = type(self).__name__, self.optimum.params0
        check_mean(f"{name}, the optimum's loss", self.inner, params, hyper)
        check_mean(f"{name}, outer_loss", self.outer, params, hyper)
        return self._first(hyper)

    @eqx.filter_jit
    def _first(self, hyper: PyTree) -> SingleLoopState:
        params = self.optimum.params0
        zero, before = jnp.zeros((), jnp.int32), jnp.asarray(-1, jnp.int32)
        adjoint = jax.tree.map(jnp.zeros_like, params)
        rate, adjoint_rate = self._rates(hyper, zero)
        slope = terms(self.inner, self.inner.blocks.draw(before), params, hyper, adjoint).gradient
        params = tree_axpy(-rate, slope, params)
        outer = terms(self.outer, self.outer.blocks.draw(before), params, hyper, adjoint).gradient
        adjoint = tree_axpy(adjoint_rate, outer, adjoint)
        return SingleLoopState(params, adjoint, zero, self._remember(params, hyper, adjoint))

    def _remember(self, params: PyTree, hyper: PyTree, adjoint: PyTree) -> PyTree:
        """What the method keeps besides w and v, before the first step."""
        return None

    @abc.abstractmethod
    def _advance(self, hyper: PyTree, state: SingleLoopState) -> tuple[Hypergradient, SingleLoopState]:
        """One call's steps, and their direction; not compiled."""

    def value_and_grad(
        self, hyper: PyTree, state: SingleLoopState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, SingleLoopState]:
        refuse_accuracy(self, accuracy)
        advance = _advance_in_place if self._in_place else _advance_copied
        return advance((self, hyper), state)

    @property
    def _in_place(self) -> bool:
        """Whether a call may use up the state that it is given."""
        return False

    @eqx.filter_jit
    def value(
        self, hyper: PyTree, state: SingleLoopState, accuracy: Accuracy | None = None
    ) -> tuple[Value, SingleLoopState]:
        """f(w, λ) over all outer data at the current w, which is not the optimum of λ; the state is left as it is."""
        refuse_accuracy(self, accuracy)
        value = self.outer_loss(state.params, natural(hyper), self.outer_data)
        certificate = NoCertificate("the outer loss at the current inner variable, not at the optimum", value.dtype)
        result = RESULTS.where(jnp.isfinite(value), RESULTS.successful, RESULTS.diverged)
        return Value(value, certificate, NOISE, result, SingleLoopStats(jnp.asarray(self.outer.blocks.size))), state

    def params(self, state: SingleLoopState) -> PyTree:
        return state.params

    def final(self, hyper: PyTree, state: SingleLoopState) -> tuple[Value, SingleLoopState]:
        """The value at the optimum of all data: the inner problem solved from where the state stands."""
        value, solved = self.full_batch().value(hyper, self.warm_start(state))
        return value, eqx.tree_at(lambda s: s.params, state, solved.params)

    def full_batch(self, *, certifier: AbstractCertifier | None = None) -> ImplicitObjective:
        """The same problem, solved to the optimum of the inner problem on all data, with certificates.

        `objective.full_batch().value_and_grad(hyper, objective.warm_start(state))` measures how good the state is:
        a hypergradient with its certificate and true residuals, at the cost of a few passes over the data.
        """
        return ImplicitObjective(self.optimum, self.outer_loss, self.outer_data, certifier=certifier)

    def warm_start(self, state: SingleLoopState) -> ImplicitState:
        """The inner variable and the adjoint of a state, for `full_batch`."""
        return ImplicitState(state.params, state.adjoint)

    @eqx.filter_jit
    def residuals(self, hyper: PyTree, state: SingleLoopState) -> dict[str, Float[Array, ""]]:
        """‖∇_w g(w)‖ and ‖A v - ∇_w f(w)‖ over all data: `inner_gradient_norm` and `adjoint_residual`."""
        loss = self.optimum.loss
        point = loss.at(state.params, hyper)
        outer = jax.grad(self.outer_loss)(state.params, natural(hyper), self.outer_data)
        residual = tree_sub(loss.product(point, hyper)(state.adjoint), outer)
        return {"inner_gradient_norm": tree_norm(point.grad), "adjoint_residual": tree_norm(residual)}

    def _rates(self, hyper: PyTree, step: Integer[Array, ""]) -> tuple[Array, Array]:
        """The step sizes of w and v at step t: scalars, or one for each weight."""
        dtype = tree_dtype(self.optimum.params0)

        def at(rate: Rate | None) -> Array:
            if rate is None:
                assert isinstance(self.inner, LinearInner)  # __init__ has asked for a rate otherwise
                return (0.5 / self.inner.smoothness(hyper)).astype(dtype)
            with jax.numpy_dtype_promotion("standard"):  # schedules mix dtypes, whatever the user has set
                return jnp.asarray(rate(step) if callable(rate) else rate, dtype)

        inner = at(self.rate)
        return inner, inner if self.adjoint_rate is None else at(self.adjoint_rate)

    def _answer(
        self,
        hyper: PyTree,
        old: SingleLoopState,
        new: SingleLoopState,
        step: Directions,
        passes: int,
        noise: AbstractNoise = NOISE,
    ) -> tuple[Hypergradient, SingleLoopState]:
        """The direction as an answer; w and v stay where they were if anything is not finite."""
        finite = tree_all_finite((step, new.params, new.adjoint))
        stats = SingleLoopStats(
            jnp.asarray(passes),
            tree_norm(step.params),
            tree_norm(step.adjoint),
            jnp.max(self._rates(hyper, old.step)[0]),
        )
        result = RESULTS.where(finite, RESULTS.successful, RESULTS.diverged)
        answer = Hypergradient(step.value, step.hyper, NoCertificate(REASON, step.value.dtype), noise, result, stats)

        def kept(a: PyTree, b: PyTree) -> PyTree:
            return jax.tree.map(lambda x, y: jnp.where(finite, x, y), a, b)

        state = SingleLoopState(kept(new.params, old.params), kept(new.adjoint, old.adjoint), new.step, new.memory)
        return answer, state


def moved(
    state: SingleLoopState, step: Directions, rates: tuple[Array, Array], memory: PyTree = None
) -> SingleLoopState:
    """w - ρ D_w and v - ρ_v D_v, one step on."""
    params = tree_axpy(-rates[0], step.params, state.params)
    adjoint = tree_axpy(-rates[1], step.adjoint, state.adjoint)
    return SingleLoopState(params, adjoint, state.step + 1, memory)


def joint_steps(
    objective: AbstractSingleLoop,
    step: Callable[[PyTree, SingleLoopState], tuple[Directions, SingleLoopState]],
    hyper: PyTree,
    state: SingleLoopState,
    count: int,
) -> tuple[Hypergradient, SingleLoopState]:
    """`count` steps at the same hyperparameters: the mean of D_λ and of the values, and the last D_w and D_v."""

    def one(carry: SingleLoopState, _: None) -> tuple[SingleLoopState, Directions]:
        made, carry = step(hyper, carry)
        return carry, made

    noise: AbstractNoise = NOISE
    if count == 1:
        made, new = step(hyper, state)
    else:
        new, steps = jax.lax.scan(one, state, length=count)
        last = jax.tree.map(lambda leaf: leaf[-1], steps)
        means = jax.tree.map(lambda x: x.mean(0), (steps.hyper, steps.value))
        made = Directions(last.params, last.adjoint, *means)
        noise = spread_of(steps.hyper, count)
    passes = count * (objective.inner.passes_of_a_block + objective.outer.passes_of_a_block)
    return objective._answer(hyper, state, new, made, passes, noise)


def spread_of(draws: PyTree, count: int) -> AbstractNoise:
    """The standard error of the mean of `count` draws in sequence, each leaf (count, ...), by batch means.

    Neighbours resemble each other, since w and v move little by little, and blocks are not drawn twice in an epoch: so
    it is the scatter of the means of four runs of successive draws that counts, with 3 degrees of freedom (Flegal and
    Jones, Ann. Stat. 38, 2010).
    """
    length = count // RUNS
    if length < 2:
        return NOISE

    def error(leaf: Array) -> Array:
        means = leaf[-RUNS * length :].reshape(RUNS, length, *leaf.shape[1:]).mean(1)
        return jnp.std(means, axis=0, ddof=1) / RUNS**0.5

    return Noise(jax.tree.map(error, draws), RUNS - 1, f"rows drawn in {count} steps, given where they began")


def checked_count(name: str, label: str, count: Any) -> int:
    """A number of steps.

    **Raises:** `ValueError` for anything but an integer of at least 1.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{name}: {label} must be an integer >= 1; got {count!r}.")
    return count


def _advance(fixed: tuple[AbstractSingleLoop, PyTree], state: SingleLoopState) -> tuple[Hypergradient, SingleLoopState]:
    objective, hyper = fixed
    return objective._advance(hyper, state)


_advance_copied = eqx.filter_jit(_advance)
_advance_in_place = eqx.filter_jit(_advance, donate="all-except-first")
