"""What is known of an estimate of the log evidence."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._certificate import AbstractCertificate, Kind, right, show
from ._estimator import EstimatorKind, LogDeterminant


class EvidenceCertificate(AbstractCertificate):
    """Which side of the log evidence an estimate is on, and how far the other side is.

    - `side`: "lower" if the estimate is, in expectation over the draw, at most the log evidence of the Laplace
        approximation at these weights (proved, rounding aside); "unknown" if not. No single draw is guaranteed.
    - `slack`: half the distance of the two sides of log|I + K| in nats, an estimate of the error where there are two;
        infinite where there is only one.

    `bound` is the slack where it bounds the quantity at hand, kind `estimated`; else infinite, kind `none`. How much a
    draw scatters is its noise, and stands beside the certificate.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    side: str = eqx.field(static=True)
    slack: Float[Array, ""]

    @classmethod
    def of_draw(cls, kind: EstimatorKind, sides: LogDeterminant) -> "EvidenceCertificate":
        """Of the value of one draw: the bound is the slack."""
        known = sides.lower is not None
        slack = 0.5 * (sides.upper - sides.lower) if sides.lower is not None else jnp.full_like(sides.upper, jnp.inf)
        return cls.of_value(kind, known, slack)

    @classmethod
    def of_value(cls, kind: EstimatorKind, known: bool, slack: Array) -> "EvidenceCertificate":
        """Of a value whose slack is measured where `known`; the bound is the slack."""
        return cls(
            bound=slack,
            kind="estimated" if known else "none",
            quantity="the distance of the estimate from the log evidence" if known else "nothing",
            side="lower" if kind == "bound" else "unknown",
            slack=slack,
        )

    @classmethod
    def of_gradient(cls, kind: EstimatorKind, slack: Array) -> "EvidenceCertificate":
        """Of the gradient of one draw, whose distance from the gradient of the log evidence is not bounded."""
        return cls(
            bound=jnp.full_like(slack, jnp.inf),
            kind="none",
            quantity="nothing",
            side="lower" if kind == "bound" else "unknown",
            slack=slack,
        )

    def meaning(self) -> str:
        found = [right(self.kind)]
        if self.side == "lower":
            found.append(
                "Side, lower: in expectation over the draw, the estimate is proved to be at most the log "
                "evidence of the "
                "Laplace approximation at these weights, so the objective shown, which is minus that, is on average an "
                "upper bound of it. The slack is half the distance to a bound from the other side. It says nothing of "
                "how good the Laplace approximation is."
            )
        return " ".join(found)

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.quantity} <= {show(self.bound)} (side: {self.side}, slack {show(self.slack)})>"
