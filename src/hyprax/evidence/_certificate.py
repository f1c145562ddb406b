"""What is known of an estimate of the log evidence, what was measured on the way, and how it ended."""

import dataclasses
from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._certificate import AbstractCertificate, Kind, right, show
from .._result import RESULTS as CORE_RESULTS
from .._stats import AbstractStats, Effort
from ._chain import LogDeterminant
from ._estimator import EstimatorKind


class EvidenceCertificate(AbstractCertificate):
    """How far a value can be from the Laplace evidence at its weights, on which side it is, and how far the other side.

    - `bound`: of the distance from the log evidence of the Laplace approximation at these weights, where all of
        log|I + K| was computed: about what rounding may have done, kind `estimated`. Of a draw, or of a reduction of
        the matrix, nothing is known for sure: infinite, kind `none`.
    - `side`: "both" if the value is that evidence; "lower" if it is, in expectation over the draw, at most that
        evidence (proved, rounding aside; no single draw is guaranteed); "unknown" if neither.
    - `slack`: half the distance of the two sides of log|I + K| in the units of the value, where an estimator has both;
        infinite where it has one.

    How much a draw scatters is its noise, and stands beside the certificate; how far the weights are from their mode is
    the decrement, and stands in the statistics.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    side: str = eqx.field(static=True)
    slack: Float[Array, ""]
    of_gradient: bool = eqx.field(static=True, default=False)
    follows: bool = eqx.field(static=True, default=False)

    @classmethod
    def of_draw(cls, kind: EstimatorKind, draws: bool, sides: LogDeterminant) -> "EvidenceCertificate":
        """Of the value that one call of an estimator gives."""
        whole = not draws and sides.lower is not None
        slack = jnp.full_like(sides.upper, jnp.inf) if sides.lower is None else 0.5 * (sides.upper - sides.lower)
        rounding = 0.5 * jnp.asarray(sides.rounding, slack.dtype)
        return cls(
            bound=rounding if whole else jnp.full_like(slack, jnp.inf),
            kind="estimated" if whole else "none",
            quantity="the distance from the Laplace evidence at these weights, by rounding" if whole else "nothing",
            side="both" if whole else "lower" if kind == "bound" else "unknown",
            slack=slack,
        )

    def scaled(self, size: int) -> "EvidenceCertificate":
        """Of the value a datum."""
        return eqx.tree_at(lambda c: (c.bound, c.slack), self, (self.bound / size, self.slack / size))

    def for_gradient(self, slack: Array) -> "EvidenceCertificate":
        """Of the gradient, whose distance from that of the log evidence is not bounded."""
        unknown = jnp.full_like(self.bound, jnp.inf)
        return EvidenceCertificate(
            bound=unknown, kind="none", quantity="nothing", side=self.side, slack=slack, of_gradient=True
        )

    def for_value(self) -> "EvidenceCertificate":
        """Of the value of the same draw, whose distance from the evidence is not bounded either."""
        return dataclasses.replace(self, of_gradient=False)

    def following(self) -> "EvidenceCertificate":
        """Of a gradient that has the way of the mode in it."""
        return dataclasses.replace(self, follows=True)

    def meaning(self) -> str:
        found = [right(self.kind)]
        if self.side == "both":
            found.append(
                "All of the log-determinant was computed, so only rounding parts it from the Laplace evidence."
            )
        elif self.side == "lower":
            found.append(
                "Side, lower: in expectation over the draw, the estimate is proved to be at most the log evidence of "
                "the Laplace approximation at these weights, so the objective shown, which is minus that, is on "
                "average an upper bound of it. The slack is half the distance to a bound from the other side."
            )
        else:
            found.append("Side, unknown: the estimate may lie on either side of the Laplace evidence.")
        if self.follows:
            found.append("How the mode moves with the hyperparameters is in the gradient.")
        elif self.of_gradient:
            found.append(
                "The gradient is that at fixed weights: how the mode moves with the hyperparameters is not in it."
            )
        found.append("None of it says how good the Laplace approximation is.")
        return " ".join(found)

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.quantity} <= {show(self.bound)} (side: {self.side}, slack {show(self.slack)})>"


class EvidenceStats(AbstractStats):
    """What an evaluation of the evidence measured, in nats of the whole data set unless said otherwise."""

    log_determinant: Float[Array, ""]
    """The estimate of log|I + K|."""
    decrement: Float[Array, ""]
    """½ gᵀ(P0 + H)⁻¹g: about how many nats the evidence at these weights lacks of that at their mode.

    Infinite where the way to the mode ended near a saddle, and while weights train and no matrix of the smaller side
    is cheap: it is then measured at the mode and at the end."""
    slack: Float[Array, ""]
    """Half the distance of the two sides of log|I + K|, a datum, smoothed over past draws; infinite for one side."""
    rounding: Float[Array, ""]
    """About how far rounding may have moved log|I + K|."""
    noise_share: Float[Array, ""]
    """The noise over the spread of the targets; infinite where the likelihood is not Gaussian."""
    largest_precision: Float[Array, ""]
    """The largest prior precision, in the units of the weights."""
    smallest_precision: Float[Array, ""]
    """The smallest prior precision."""
    trained: Int[Array, ""]
    """The training steps made so far."""
    estimator: Int[Array, ""] | None = None
    """The place of the estimator that [`hyprax.evidence.Choice`][] used."""

    kept: Int[Array, ""] | None = None
    """The evaluation of an objective that is the best of those at a mode so far; -1 where there is none."""
    gained: Int[Array, ""] | None = None
    """The last such evaluation that was better by more than a twentieth of a nat."""

    def effort(self) -> Effort:
        return Effort()


class RESULTS(CORE_RESULTS):  # pyright: ignore[reportGeneralTypeIssues]  # how Equinox extends an enumeration
    """How a computation of the evidence ended: the core's results, and those of the evidence."""

    if TYPE_CHECKING:  # of the layer below, as members of this one
        successful = ""
        diverged = ""

    not_at_a_mode = (
        "The weights are not at their optimum, which a Laplace evidence presumes: `decrement` says about how many nats "
        "of log joint density a Newton step would add; where it is infinite, they are near a saddle. Train for longer "
        "or at a falling learning rate, or go the rest of the way: `hx.evidence.to_mode`, or an objective with "
        "`Schedule(mode_after=0)`."
    )
    hyperparameters_still_moving = (
        "The hyperparameters were still moving when the steps were spent: a unit of log hyperparameter would still "
        "change the log evidence by `gradient_nats`. Ask for more `epochs` or `mode_steps`."
    )
    mode_folds = (
        "No step finds a better evidence any more, although a unit of log hyperparameter would still change it by "
        "`gradient_nats` here: as where the mode of the weights ends, and a little further they go to another, of "
        "lower evidence. More steps do not help. Compare the log evidence of several starts (other weights or keys), "
        "or use a smaller network or more data."
    )
    precision_running_away = (
        "A prior precision has left the range in which it makes a difference: compare `largest_precision` and "
        "`smallest_precision`. A very large one says that the data do not need these weights: remove the tensor, or "
        "fix its precision. A very small one is held by nothing in the evidence: fix it."
    )
    noise_vanishing = (
        "The noise has become negligible beside the spread of the targets, as `noise_share` says: the model fits the "
        "targets without error, or the targets hold none. Use a smaller model or stronger priors, or fix the noise."
    )
    rounding_too_large = (
        "Rounding may have moved the log-determinant by as many nats as `rounding` says: its matrix spans more orders "
        "of magnitude than this precision holds. Compute in float64 (`jax.config.update('jax_enable_x64', True)`), "
        "scale inputs and targets, or keep the noise from vanishing."
    )
