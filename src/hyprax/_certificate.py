"""Certificates: what an answer says of its own error, and with what right."""

import dataclasses
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

Kind: TypeAlias = Literal["certified", "estimated", "none"]
KINDS: tuple[str, ...] = ("certified", "estimated", "none")


def show(x: Any) -> str:
    """A number for a reader; a range for an array; the shape for an abstract value."""
    try:
        value = np.asarray(x)
    except jax.errors.TracerArrayConversionError:  # under a transformation there is no number yet
        return str(jax.typeof(x))
    if value.size == 1:
        return f"{value.item():.3g}"
    return f"{np.min(value):.3g} .. {np.max(value):.3g} over {value.shape}" if value.size else "empty"


class AbstractCertificate(eqx.Module):
    """A statement `|error| <= bound`, and its kind.

    - `kind = "certified"`: the bound is proved under the stated assumptions, rounding included; a failure is a bug.
    - `kind = "estimated"`: the bound is a good guess with no proof.
    - `kind = "none"`: nothing is known; `bound` is infinite.

    An infinite bound of kind `certified` is a true statement that happens to say nothing.
    """

    kind: eqx.AbstractVar[Kind]
    """`certified`, `estimated` or `none`."""
    bounds: eqx.AbstractVar[str]
    """What the number bounds, in words."""
    bound: eqx.AbstractVar[Float[Array, "..."]]
    """The bound."""


def details(certificate: AbstractCertificate) -> dict[str, str | float | bool]:
    """What a certificate says besides its bound, by name: its type, its texts, its numbers; for a record.

    Trees and arrays of more than one entry are left out.
    """
    found: dict[str, str | float | bool] = {"type": type(certificate).__name__}
    for field in dataclasses.fields(certificate):
        x = getattr(certificate, field.name)
        if isinstance(x, STATUS):
            found[field.name] = str(STATUS[x])
        elif isinstance(x, str | bool):
            found[field.name] = x
        elif isinstance(x, jax.Array | np.ndarray | float | int) and np.size(x) == 1:
            found[field.name] = float(np.asarray(x).item())
    return found


class ErrorBound(AbstractCertificate):
    """`|answer - truth| <= bound`, with how it was obtained.

    `terms` holds the parts or the alternatives of the bound by name, for whoever wants to know what dominates it.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    bounds: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    terms: dict[str, Array]

    def __init__(self, bound: Array, kind: Kind, bounds: str, method: str, terms: dict[str, Array] | None = None):
        if kind not in ("certified", "estimated"):
            raise ValueError(f"ErrorBound(kind={kind!r}): allowed are 'certified' and 'estimated'.")
        self.bound = bound
        self.kind = kind
        self.bounds = bounds
        self.method = method
        self.terms = {} if terms is None else terms

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.bounds} <= {show(self.bound)} ({self.method})>"


class STATUS(eqx.Enumeration):
    """Why a two-sided bound stopped where it did. `STATUS[status]` is the message."""

    effectivity_proved = "effectivity at most 3 proved"
    decision_made = "decision made: the bound is as small as was asked"
    rounding_floor = "rounding floor: more work in this arithmetic would not tighten the bound"
    rounds_spent = "rounds spent"


class TwoSidedBound(AbstractCertificate):
    """`|answer - truth| <= bound`, and `lower <= |first - truth| <= upper` for the answer first computed.

    Made by certificates that answer with an improved value: `shift` is the distance between the two answers.

    - `entries`: bounds of the single entries of the answer, in its structure.
    - `status`: a member of `STATUS`. Where `effectivity_proved`, upper <= 3 |first - truth|.
    - `terms`: the parts of the bound by name.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    bounds: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    shift: Float[Array, "..."]
    lower: Float[Array, "..."]
    upper: Float[Array, "..."]
    entries: PyTree
    status: STATUS
    terms: dict[str, Array]

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.bounds} <= {show(self.bound)} ({self.method})>"


class NoCertificate(AbstractCertificate):
    """Nothing is known of the error, so the bound is infinite; `reason` says why, and what would change that.

    `dtype` is that of the bound, where the answer has another than the default.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    bounds: str = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def __init__(self, reason: str, dtype: Any = None):
        self.reason = reason
        self.kind = "none"
        self.bounds = "nothing"
        self.bound = jnp.asarray(jnp.inf, dtype=jnp.result_type(float) if dtype is None else dtype)

    def __repr__(self) -> str:
        return f"<none: {self.reason}>"
