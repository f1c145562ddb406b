"""What became of a computation: enumerations in layers, whose members are the messages."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Bool


class RESULTS(eqx.Enumeration):
    """How a computation ended. `RESULTS[result]` is the message: what happened and what to try.

    The measured numbers travel beside the result, in `stats`; [`hyprax.core.explain`][] joins the two.
    """

    successful = ""
    inner_not_converged = (
        "The inner problem was not solved to the requested gradient norm, so the hypergradient is that of a point "
        "which is not an optimum. Raise `max_steps` of the inner solver, loosen its tolerance, start from a warm "
        "state, or rescale the data (badly scaled features slow every solver)."
    )
    adjoint_not_converged = (
        "The adjoint system A q = grad f was not solved to the requested residual (the residual is recomputed, not the "
        "solver's own). Raise `max_steps` of the adjoint solver, loosen its tolerance, or strengthen the "
        "regularisation: a larger penalty conditions A better."
    )
    diverged = (
        "A non-finite number (inf or nan) appeared. Look for non-finite data, lower the learning rate of the search, "
        "or bound the hyperparameters (`hx.Interval`) so that the inner problem keeps a finite optimum."
    )
    indefinite = (
        "The inner Hessian has a direction of non-positive curvature, so the point found is not a strict minimum and "
        "the adjoint by conjugate gradients is meaningless. Add an l2 penalty, or solve the inner problem further."
    )
    strong_convexity_disproved = (
        "A measured curvature is below the strong-convexity constant mu that the certificate was given, so its bound "
        "would not hold. Lower mu, or give the constants of the loss that is really used."
    )
    unpenalised = (
        "A strength of the penalty is not above zero (or an example weight is negative), so the inner loss need not "
        "have a minimum: with separable classes the weights grow without end, and the point found is where the solver "
        "stopped. Give every weight a strength above zero (`hx.Positive` keeps it there)."
    )
    chaotic = (
        "The training is chaotic: the adjoint of the weights grew so much on its way back through the steps that the "
        "hypergradient, however exact, foretells the objective only over a vanishing distance. Lower the learning "
        "rate of the training or clip its gradients, train for fewer steps, or cut the sweep short with "
        "`hx.unroll.Truncated`; `hx.unroll.metasmoothness` measures whether that helped, and "
        "`hx.unroll.ChaosGauge` sets "
        "the limit."
    )
    not_reversible = (
        "The training run was undone and did not come back to the bits that it started from: the gradient of a step is "
        "not deterministic, or depends on more than weights, hyperparameters and step. Make the loss a pure function, "
        "ask for deterministic operations of the device, or use `hx.unroll.Checkpointed`."
    )
    fixed_point_overflow = (
        "A weight or a state of the optimiser outgrew its fixed-point format: compare `used_bits` with `limit_bits`. "
        "Give the optimiser fewer `fraction_bits` (or `variance_bits`), lower the learning rate, scale the loss down, "
        "or use `hx.unroll.Checkpointed`."
    )
    interrupted = "The training was interrupted (Ctrl-C). What was best until then is kept; train for longer to go on."


if TYPE_CHECKING:
    Result: TypeAlias = eqx.Enumeration
else:  # a member of any layer: `isinstance` of an enumeration itself knows its own members alone
    Result = type(RESULTS.successful)


def _enumerations(base: type[eqx.Enumeration] = eqx.Enumeration) -> Iterator[type[eqx.Enumeration]]:
    yield base
    for layer in base.__subclasses__():
        yield from _enumerations(layer)


def layer_of(result: Result) -> type[eqx.Enumeration]:
    """The enumeration that `result` is a member of: the core's, or that of an engine or of the searches."""
    return next(layer for layer in _enumerations() if isinstance(result, layer))


def message_of(result: Result) -> str:
    """The text of a member of any enumeration, not traced."""
    return layer_of(result)[result]


def succeeded(result: Result) -> Bool[Array, "..."]:
    """Whether a result of any layer is `successful`."""
    return result == layer_of(result).successful  # pyright: ignore[reportAttributeAccessIssue]


def result_name(result: Result) -> str:
    """The name of a member of any layer, for records and tables."""
    names = layer_of(result)._name_to_item
    return next(name for name, member in names.items() if bool(result == member))


def describe(stats: Mapping[str, Any]) -> str:
    """`name = number` for every scalar statistic, in the order in which it was recorded."""
    words = []
    for name, value in stats.items():
        try:
            number = np.asarray(value)
        except jax.errors.TracerArrayConversionError:  # under a transformation there is no number yet
            continue
        if number.size == 1:
            words.append(f"{name} = {number.item():.4g}")
    return ", ".join(words)


def explain(result: Result, stats: Mapping[str, Any]) -> str:
    """The message of a result, followed by the numbers that it speaks of.

    **Arguments:**

    - `result`: a member of [`hyprax.RESULTS`][] or of a layer above it, not traced.
    - `stats`: the statistics beside it.

    **Returns:** the text; empty for a success.
    """
    text = message_of(result)
    return f"{text} [{describe(stats)}]" if text else ""
