"""What became of a computation: an enumeration whose members are the messages."""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np


class RESULTS(eqx.Enumeration):
    """How a computation ended. `RESULTS[result]` is the message: what happened and what to try.

    The measured numbers travel beside the result, in `stats`; [`hyprax.explain`][] joins the two.
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
        "`hx.Truncated`; `hx.unroll.metasmoothness` measures whether that helped, and `hx.unroll.ChaosGauge` sets "
        "the limit."
    )
    gradient_small_uncertified = (
        "The computed hypergradient is below the requested norm, but its certificate does not prove that the true one "
        "is. Ask for a tighter inner and adjoint tolerance, or use a family so that the bound is certified."
    )
    not_reversible = (
        "The training run was undone and did not come back to the bits that it started from: the gradient of a step is "
        "not deterministic, or depends on more than weights, hyperparameters and step. Make the loss a pure function, "
        "ask for deterministic operations of the device, or use `hx.Checkpointed`."
    )
    fixed_point_overflow = (
        "A weight or a state of the optimiser outgrew its fixed-point format: compare `used_bits` with `limit_bits`. "
        "Give the optimiser fewer `fraction_bits` (or `variance_bits`), lower the learning rate, scale the loss down, "
        "or use `hx.Checkpointed`."
    )
    no_progress = (
        "The objective has not improved for as many steps as `patience` allows. The best hyperparameters are kept; "
        "raise `patience`, or change the learning rate of the search, to go on."
    )
    steps_spent = (
        "All steps were made, and the search was still moving. Ask for more `steps` to go on: a recorded run continues "
        "where it stopped."
    )
    stopped_by_callback = "A callback asked to stop."
    interrupted = "The training was interrupted (Ctrl-C). What was best until then is kept; train for longer to go on."
    no_certified_descent = (
        "No step could be proved to lower the objective: the bounds no longer fall with the tolerances, so the "
        "decrease left is below what they can prove. The best hyperparameters are kept. Use a tighter certificate "
        "(`hx.LookAhead`), keep penalties from vanishing (`hx.LogInterval`), or go on unproved (`hx.search.Optax`)."
    )
    no_descent = (
        "No step along the negative hypergradient lowered the objective: at these fixed tolerances it, or the value, "
        "is too inexact. Ask for tighter tolerances, or use a search that adapts them (`hx.search.MAID`)."
    )


RESULT_NAMES = (
    "successful",
    "inner_not_converged",
    "adjoint_not_converged",
    "diverged",
    "indefinite",
    "strong_convexity_disproved",
    "unpenalised",
    "chaotic",
    "gradient_small_uncertified",
    "not_reversible",
    "fixed_point_overflow",
    "no_progress",
    "steps_spent",
    "stopped_by_callback",
    "interrupted",
    "no_certified_descent",
    "no_descent",
)


def result_name(result: RESULTS) -> str:
    """The name of a member, for records and tables."""
    return next(name for name in RESULT_NAMES if bool(result == getattr(RESULTS, name)))


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


def explain(result: RESULTS, stats: Mapping[str, Any]) -> str:
    """The message of a result, followed by the numbers that it speaks of.

    **Arguments:**

    - `result`: a member of [`hyprax.RESULTS`][], not traced.
    - `stats`: the statistics beside it.

    **Returns:** the text; empty for a success.
    """
    text = RESULTS[result]
    return f"{text} [{describe(stats)}]" if text else ""
