"""Noise: how far an answer would scatter, had the sample been another. A spread, never a bound."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jaxtyping import Array, ArrayLike, Float, PyTree

from . import _html as page
from ._certificate import show
from ._trees import tree_norm


def beyond(t: float, freedom: float) -> float:
    """P(|T| > t) for Student's t with `freedom` degrees; the normal distribution where they are infinite."""
    if math.isinf(freedom) or freedom > 1e7:
        return math.erfc(t / math.sqrt(2))
    if not freedom > 0:
        return math.nan
    return float(betainc(jnp.asarray(freedom / 2), jnp.asarray(0.5), jnp.asarray(freedom / (freedom + t * t))))


class AbstractNoise(eqx.Module):
    """A statement about the sample that an answer was computed from: its spread, or why the spread is not known."""

    over: eqx.AbstractVar[str]
    """What was sampled, in words: "validation examples", "rows drawn"; empty where nothing was."""

    @property
    @abc.abstractmethod
    def norm(self) -> Float[Array, ""]:
        """√(Σ_j se_j²), the standard error of the answer as a whole; NaN where it is not known."""

    @abc.abstractmethod
    def meaning(self) -> str:
        """What the spread says, in plain sentences: for a reader of a report."""

    def _repr_html_(self) -> str:
        return page.shown(lambda: noise_card(self), self)


def noise_card(noise: AbstractNoise) -> str:
    """A spread for a notebook."""
    known = show(noise.norm)
    over = f"standard error {known} over {noise.over}" if noise.over and known != "nan" else ""
    return page.card(type(noise).__name__, "", page.paragraphs(over, noise.meaning()))


class Noise(AbstractNoise):
    """Standard errors of an answer, entry by entry, over a sample.

    With h = (1/m) Σ_i h_i over a sample of m, se_j² = Σ_i (h_ij - h_j)² / (m (m - 1)) or an estimate of it. About 95 %
    of the answers that another sample would give lie within two standard errors of the mean over all samples. It is
    neither a certificate nor a bound: it says nothing of the error of the computation.

    **Arguments:**

    - `standard_errors`: a pytree in the structure of the answer (of `grad`, or a scalar for a value), in its units.
    - `degrees_of_freedom`: of the variances: infinite for one that is known, m - 1 for that of m draws, the number of
        probes for one estimated by random probes. Thresholds come from Student's t with as many.
    - `over`: what was sampled, in words.
    """

    standard_errors: PyTree
    degrees_of_freedom: Float[Array, ""]
    over: str = eqx.field(static=True)

    def __init__(self, standard_errors: PyTree, degrees_of_freedom: ArrayLike, over: str):
        self.standard_errors = standard_errors
        dtype = jnp.result_type(float, *jax.tree.leaves(standard_errors))
        self.degrees_of_freedom = jnp.asarray(degrees_of_freedom, dtype)
        self.over = over

    @property
    def norm(self) -> Float[Array, ""]:
        return tree_norm(self.standard_errors)

    def above(self, answer: PyTree, errors: float = 2.0) -> tuple[int, int, float]:
        """How many entries of the answer exceed so many of their standard errors, of how many, and of pure noise.

        The last is what chance would give were every true entry zero: Student's t, with the degrees of freedom.
        """
        pairs = zip(jax.tree.leaves(answer), jax.tree.leaves(self.standard_errors), strict=True)
        hits = [np.abs(np.asarray(x)) > errors * np.asarray(error) for x, error in pairs]
        total = sum(hit.size for hit in hits)
        return int(sum(hit.sum() for hit in hits)), total, total * beyond(errors, float(self.degrees_of_freedom))

    def meaning(self) -> str:
        return (
            f"The answer was computed from a sample ({self.over}); another sample would give another one. The standard "
            "errors say how far such answers scatter. They are no bound of an error, and no statement about the "
            "computation."
        )

    def __repr__(self) -> str:
        return f"<standard error {show(self.norm)} over {self.over}>"


class NoNoise(AbstractNoise):
    """The spread of an answer over samples is not known; `reason` says why, and what would change that.

    **Arguments:**

    - `reason`: why.
    - `over`: what was sampled, in words; empty where nothing was.
    """

    reason: str = eqx.field(static=True)
    over: str = eqx.field(static=True)

    def __init__(self, reason: str, over: str = ""):
        self.reason, self.over = reason, over

    @property
    def norm(self) -> Float[Array, ""]:
        return jnp.asarray(jnp.nan)

    def meaning(self) -> str:
        return f"How far the answer would scatter over other samples was not measured: {self.reason}."

    def __repr__(self) -> str:
        return f"<noise not measured: {self.reason}>"
