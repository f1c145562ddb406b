"""How a run ends: the results of searches, above those of the core."""

from typing import TYPE_CHECKING

from .._result import RESULTS as CORE


class RESULTS(CORE):  # pyright: ignore[reportGeneralTypeIssues]  # an enumeration in layers
    """How a run of `tune` ended. `RESULTS[result]` is the message: what happened and what to try."""

    if TYPE_CHECKING:  # of the layer below, as members of this one
        successful = ""
        diverged = ""

    gradient_small_uncertified = (
        "The computed hypergradient is below the requested norm, but no certificate proves that the true one is. A "
        "family of `hx.families` at a tighter inner and adjoint tolerance proves it; a plain function cannot."
    )
    no_progress = (
        "The objective has not improved for as many steps as `patience` allows. The best hyperparameters are kept; "
        "raise `patience`, or change the learning rate of the search, to go on."
    )
    steps_spent = "Ask for more `steps` to go on: a recorded run continues where it stopped."
    evaluation_failed = "An evaluation of the objective failed, so that the search could not go on from it."
    stopped_by_callback = "A callback asked to stop."
    no_certified_descent = (
        "No step could be proved to lower the objective: the bounds no longer fall with the tolerances, so the "
        "decrease left is below what they can prove. The best hyperparameters are kept. Use a tighter certificate "
        "(`hx.implicit.LookAhead`), keep penalties from vanishing (`hx.LogInterval`), or go on unproved "
        "(`hx.search.Optax`)."
    )
    no_descent = (
        "No step along the negative hypergradient lowered the objective: at these fixed tolerances it, or the value, "
        "is too inexact. Ask for tighter tolerances, or use a search that adapts them (`hx.search.MAID`)."
    )
    precision_reached = (
        "No step lowers the value by more than the precision with which values are known: the search has arrived, as "
        "far as they can tell. For digits beyond, ask the objective for tighter tolerances or use float64."
    )
    below_noise = (
        "No entry of the hypergradient rises above its noise and its bound, or none by enough to matter: no further "
        "move can be told from chance. The hyperparameters are kept as they are; more validation rows, or fewer "
        "hyperparameters, tell more."
    )
