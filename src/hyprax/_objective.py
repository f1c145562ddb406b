"""The narrow waist: what an engine gives, and all that the rest of the library knows of it.

An answer carries three statements that are never mixed: a certificate of the computation, the noise of the sample, and,
where a search adds it, the gain on new data.
"""

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import _html as page
from ._certificate import AbstractCertificate, NoCertificate, show
from ._forks import refuse_forked
from ._hyper import natural, validated
from ._noise import AbstractNoise, Noise, NoNoise
from ._result import RESULTS, Result, explain, result_name, succeeded
from ._stats import AbstractStats, Accuracy, NamedStats, scalars
from ._trees import tree_all_finite, tree_norm

State = TypeVar("State")


class Value(eqx.Module):
    """A value of the outer objective: `|value - F(hyper)| <= certificate.bound`, with its noise."""

    value: Float[Array, ""]
    certificate: AbstractCertificate
    noise: AbstractNoise
    result: Result
    stats: AbstractStats

    @property
    def lower(self) -> Float[Array, ""]:
        """value - bound."""
        return self.value - self.certificate.bound

    @property
    def upper(self) -> Float[Array, ""]:
        """value + bound."""
        return self.value + self.certificate.bound

    def _repr_html_(self) -> str:
        return page.shown(lambda: _answer_card(self, "Value", {}, ""), self)


class Hypergradient(eqx.Module):
    """dF/d hyper at one point, with what is known of its error."""

    value: Float[Array, ""]
    """The outer objective at `hyper`."""
    grad: PyTree
    """The structure of `hyper`; its arrays are derivatives with respect to the unconstrained coordinates."""
    certificate: AbstractCertificate
    """What is known of the error of the computation of `grad`."""
    noise: AbstractNoise
    """How far `grad` would scatter, entry by entry, had the sample been another."""
    result: Result
    """How the computation ended; anything but `successful` is a reason not to use `grad`."""
    stats: AbstractStats
    """What it took and what was measured, in fields of the engine's own."""

    @property
    def norm(self) -> Float[Array, ""]:
        """‖grad‖₂ over all leaves."""
        return tree_norm(self.grad)

    @property
    def relative_bound(self) -> Float[Array, ""]:
        """certificate.bound / ‖grad‖₂."""
        return self.certificate.bound / self.norm

    @property
    def message(self) -> str:
        """The text of `result` with the numbers that it speaks of; empty for a success."""
        return explain(self.result, scalars(self.stats))

    def __repr__(self) -> str:
        return (
            f"Hypergradient(value={show(self.value)}, norm={show(self.norm)}, certificate={self.certificate!r}, "
            f"noise={self.noise!r}{self._above()})"
        )

    def _repr_html_(self) -> str:
        def make() -> str:
            norms = {"norm of the gradient": show(self.norm), "relative bound": show(self.relative_bound)}
            rows = page.table(page.of_tree(self.grad), ("gradient", "shape", "unconstrained coordinates"))
            return _answer_card(self, "Hypergradient", norms, rows)

        return page.shown(make, self)

    def _above(self) -> str:
        if not isinstance(self.noise, Noise):
            return ""
        try:
            found, entries, chance = self.noise.above(self.grad)
        except (TypeError, jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
            return ""  # under a transformation there is no number yet
        return f", {found} of {entries} entries above noise, {chance:.0f} by chance"


def _answer_card(answer: Value | Hypergradient, title: str, more: dict[str, str], rows: str) -> str:
    """An answer for a notebook: its numbers, then its two statements in their own words, never mixed."""
    certificate, noise = answer.certificate, answer.noise
    facts = {"value": show(answer.value), **more}
    if certificate.kind != "none":
        facts[certificate.quantity] = f"at most {show(certificate.bound)}"
    if np.all(np.isfinite(np.asarray(noise.norm))):
        facts["standard error"] = f"{show(noise.norm)} over {noise.over}"
    measured = {name: np.asarray(x).item() for name, x in scalars(answer.stats).items()}
    named = "several" if np.ndim(np.asarray(answer.value)) else result_name(answer.result)
    message = "" if named in ("successful", "several") else explain(answer.result, {})
    return page.card(
        title,
        page.badge(named) + page.badge(certificate.kind),
        page.table(list(facts.items())),
        page.paragraphs(message),
        rows,
        page.paragraphs(f"Certificate. {certificate.meaning()}", f"Noise. {noise.meaning()}"),
        page.folded("measured", page.numbers(measured)),
    )


class HypergradientError(RuntimeError):
    """A hypergradient could not be computed as asked; `.hypergradient` holds what was computed."""

    def __init__(self, hypergradient: Hypergradient):
        super().__init__(hypergradient.message)
        self.hypergradient = hypergradient


class AbstractObjective(eqx.Module, Generic[State]):
    """A thing that maps hyperparameters to a value and a hypergradient.

    An objective compiles its own steps: call its methods as they are. One that needs no host loop may also be used
    inside `jax.jit` and `jax.vmap`.
    """

    noisy: eqx.AbstractVar[bool]
    """Whether two calls at the same hyperparameters may differ (new batches, draws, folds). Then the lowest value seen
    is luck, and `tune` keeps the last hyperparameters instead."""
    adaptive: eqx.AbstractVar[bool]
    """Whether `accuracy` is honoured; an objective that cannot refuses one, and so does a search that needs it."""
    measures_noise: eqx.AbstractVar[bool]
    """Whether hypergradients come with their [`hyprax.Noise`][] over the rows that judge (held out, left out): then
    `tune` holds many hyperparameters back by default. Not so where nothing is held out: what is drawn there is no
    sample that could be overfitted."""
    value_name: eqx.AbstractVar[str]
    """What the value is, in words: "validation loss"."""

    @abc.abstractmethod
    def init(self, hyper: PyTree) -> State:
        """The state before the first call: warm starts, weights, random keys; a pytree of arrays."""

    @abc.abstractmethod
    def value_and_grad(
        self, hyper: PyTree, state: State, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, State]:
        """The value and the hypergradient at `hyper`, and the next state."""

    @abc.abstractmethod
    def value(self, hyper: PyTree, state: State, accuracy: Accuracy | None = None) -> tuple[Value, State]:
        """The value alone, with an enclosure: for line searches."""

    @abc.abstractmethod
    def params(self, state: State) -> PyTree:
        """The weights of the last evaluation."""

    @abc.abstractmethod
    def final(self, hyper: PyTree, state: State) -> tuple[Value, State]:
        """The value to report after a run, as accurately as the objective can give it, and the state with its weights.

        That of `value` where nothing better is to be had; an exact solve for a method that was on its way to one; fresh
        draws, with their noise, for an objective that draws.
        """


def refuse_accuracy(objective: AbstractObjective, accuracy: Accuracy | None) -> None:
    """Refuse an accuracy, for an objective that is not adaptive.

    **Raises:** `ValueError` for anything but `None`.
    """
    if accuracy is not None:
        raise ValueError(
            f"{type(objective).__name__}: accuracy must be None; got {accuracy}. This objective has no tolerance "
            "that an accuracy could set (`adaptive` is False)."
        )


def hypergradient(
    objective: AbstractObjective | Callable[[PyTree], Any],
    hyper: PyTree,
    state: Any = None,
    accuracy: Accuracy | None = None,
    *,
    throw: bool = True,
) -> tuple[Hypergradient, Any]:
    """The hypergradient h ≈ dF/d hyper at `hyper`, with a certificate of ‖h - dF/d hyper‖, and the next call's state.

    **Arguments:**

    - `objective`: any [`hyprax.core.AbstractObjective`][], or a function of hyper in natural units to a scalar.
    - `hyper`: the hyperparameters, a pytree whose leaves are real arrays or constrained leaves
        ([`hyprax.Positive`][], [`hyprax.Interval`][], [`hyprax.Simplex`][]).
    - `state`: where to start from, as `objective.init` or an earlier call returned it; a cold start if `None`.
    - `accuracy`: [`hyprax.Accuracy`][], for objectives that are adaptive; their own settings if `None`.
    - `throw`: whether a result other than `successful` raises [`hyprax.HypergradientError`][] (inside a JAX
        transformation: a runtime error). With `throw=False`, look at `.result` and `.message`.

    **Returns:** a [`hyprax.Hypergradient`][], and the state to pass to the next call.
    """
    refuse_forked()
    objective, hyper = as_objective(objective), validated(hyper)
    state = objective.init(hyper) if state is None else state
    answer, state = objective.value_and_grad(hyper, state, accuracy)
    if not throw:
        return answer, state
    failed = jnp.logical_not(succeeded(answer.result))
    try:
        any_failed = bool(np.any(np.asarray(failed)))
    except jax.errors.TracerArrayConversionError:
        return answer.result.error_if(answer, failed), state
    if any_failed:
        raise HypergradientError(answer)
    return answer, state


class FunctionObjective(AbstractObjective[PyTree]):
    """F(λ) = fn(λ), a plain function of the hyperparameters, differentiated by JAX; its certificate is `none`.

    **Arguments:**

    - `fn`: a pure function of hyper, in natural units, to a scalar.

    **Raises:** `ValueError`, at the first call, for a function that does not return one real number.
    """

    fn: Callable[[PyTree], Any]
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    measures_noise: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(self, fn: Callable[[PyTree], Any]):
        self.fn = fn
        self.noisy, self.adaptive, self.measures_noise = False, False, False
        self.value_name = "value"

    def init(self, hyper: PyTree) -> PyTree:
        shape = jax.eval_shape(lambda h: self.fn(natural(h)), hyper)
        leaves = jax.tree.leaves(shape)
        if len(leaves) != 1 or leaves[0].shape != () or not jnp.issubdtype(leaves[0].dtype, jnp.floating):
            got = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves) or "nothing"
            raise ValueError(
                f"hyprax: a function given as an objective must return one real number, such as a loss; got {got}. "
                "For a model with data, make an objective: hx.ImplicitObjective, hx.UnrolledObjective or "
                "hx.EvidenceObjective."
            )
        return ()

    @eqx.filter_jit
    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        refuse_accuracy(self, accuracy)
        value, grad = jax.value_and_grad(lambda h: jnp.asarray(self.fn(natural(h))))(hyper)
        finite = jnp.isfinite(value) & tree_all_finite(grad)
        return Hypergradient(value, grad, _rounding(value), _NO_SAMPLE, _finite(finite), NamedStats()), state

    @eqx.filter_jit
    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        refuse_accuracy(self, accuracy)
        value = jnp.asarray(self.fn(natural(hyper)))
        return Value(value, _rounding(value), _NO_SAMPLE, _finite(jnp.isfinite(value)), NamedStats()), state

    def params(self, state: PyTree) -> PyTree:
        return None

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        return self.value(hyper, state)


_NO_SAMPLE = NoNoise("a plain function does not say which sample it was computed from")


def _rounding(value: Array) -> NoCertificate:
    return NoCertificate("a plain function, differentiated by JAX: its rounding is not bounded", value.dtype)


def _finite(finite: Array) -> Result:
    return RESULTS.where(finite, RESULTS.successful, RESULTS.diverged)


def as_objective(objective: Any) -> AbstractObjective:
    """An objective as it is, or a plain function of hyper made into one.

    **Raises:** `ValueError` for anything else.
    """
    if isinstance(objective, AbstractObjective):
        return objective
    if callable(objective) and not isinstance(objective, eqx.Module | type):
        return FunctionObjective(objective)
    raise ValueError(
        f"hyprax: an objective must be an hx.ImplicitObjective, hx.UnrolledObjective, hx.EvidenceObjective, another "
        f"hx.core.AbstractObjective, or a function of the hyperparameters to a number; got {described(objective)}."
    )


def described(x: Any) -> str:
    """A value that was given in place of another, for an error: what it is, without its contents."""
    if isinstance(x, type):
        return f"the class {x.__name__} (make an instance of it)"
    name = type(x).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
