"""What is known of an estimate of the log evidence, and of its gradient."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._certificate import AbstractCertificate, Kind, show
from ._estimator import EstimatorKind, LogDeterminant


class EvidenceCertificate(AbstractCertificate):
    """Which side of the log evidence an estimate is on, how far the other side is, and how noisy the gradient.

    - `side`: "lower" if the estimate is, in expectation over the draw, at most the log evidence of the Laplace
        approximation at these weights (proved, rounding aside); "unknown" if not. No single draw is guaranteed.
    - `slack`: half the distance of the two sides of log|I + K| in nats, an estimate of the error where there are two;
        infinite where there is only one.
    - `gradient_deviation`: the standard deviation of the stochastic gradient, NaN where it was not measured.

    `bound` is one of these, named in `bounds`; its kind is `estimated`, or `none` where neither is known.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    bounds: str = eqx.field(static=True)
    side: str = eqx.field(static=True)
    slack: Float[Array, ""]
    gradient_deviation: Float[Array, ""]

    @classmethod
    def of_draw(cls, kind: EstimatorKind, sides: LogDeterminant) -> "EvidenceCertificate":
        """Of the value of one draw: the bound is the slack."""
        known = sides.lower is not None
        slack = 0.5 * (sides.upper - sides.lower) if sides.lower is not None else jnp.full_like(sides.upper, jnp.inf)
        return cls.of_value(kind, known, slack, jnp.full_like(slack, jnp.nan))

    @classmethod
    def of_value(cls, kind: EstimatorKind, known: bool, slack: Array, deviation: Array) -> "EvidenceCertificate":
        """Of a value whose slack is measured where `known`; the bound is the slack."""
        return cls(
            bound=slack,
            kind="estimated" if known else "none",
            bounds="the distance of the estimate from the log evidence" if known else "nothing",
            side="lower" if kind == "bound" else "unknown",
            slack=slack,
            gradient_deviation=deviation,
        )

    @classmethod
    def of_gradient(cls, kind: EstimatorKind, slack: Array, deviation: Array) -> "EvidenceCertificate":
        """Of a gradient: the bound is the standard deviation."""
        return cls(
            bound=deviation,
            kind="estimated",
            bounds="the standard deviation of the stochastic gradient",
            side="lower" if kind == "bound" else "unknown",
            slack=slack,
            gradient_deviation=deviation,
        )

    def __repr__(self) -> str:
        return (
            f"<{self.kind}: {self.bounds} <= {show(self.bound)} (side: {self.side}, slack {show(self.slack)}, gradient "
            f"deviation {show(self.gradient_deviation)})>"
        )
