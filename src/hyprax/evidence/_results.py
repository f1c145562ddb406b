"""How a computation of the evidence ended."""

from .._result import RESULTS as CORE_RESULTS


class RESULTS(CORE_RESULTS):  # pyright: ignore[reportGeneralTypeIssues]  # how Equinox extends an enumeration
    """The core's results, and those of the evidence."""

    not_at_a_mode = (
        "The weights are not at their optimum, which a Laplace evidence presumes: see `decrement`, about how many nats "
        "of log joint density a Newton step would add. Train for longer or at a falling learning rate, or go the rest "
        "of the way with `hx.evidence.to_mode`."
    )
    hyperparameters_still_moving = (
        "The hyperparameters were still moving when the steps were spent. Ask for more `epochs` or `mode_stages`."
    )
    precision_running_away = (
        "A prior precision has left the range in which it makes a difference: compare `largest_precision` and "
        "`smallest_precision`. Very large, the data do not speak for these weights: remove the tensor, or fix its "
        "precision. Very small, nothing in the evidence holds it: fix it."
    )
    noise_vanishing = (
        "The noise has become negligible beside the spread of the targets (`noise_share`): the model fits the targets "
        "exactly, or they hold no noise. Use a smaller model or stronger priors, or fix the noise."
    )
    rounding_too_large = (
        "Rounding may have moved the log-determinant by as many nats as `rounding` says: its matrix spans more orders "
        "of magnitude than this precision holds. Compute in float64 (`jax.config.update('jax_enable_x64', True)`), "
        "scale inputs and targets, or keep the noise from vanishing."
    )
