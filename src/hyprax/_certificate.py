"""Certificates: what an answer says of the error of its computation, and with what right."""

import abc
import dataclasses
from typing import Any, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import _html as page
from ._result import Result, message_of

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
    """A statement about the computation: `|answer - exact value of what was asked| <= bound`, and its kind.

    - `kind = "certified"`: the bound is proved under the stated assumptions, rounding included; a failure is a bug.
    - `kind = "estimated"`: the bound is a good guess with no proof.
    - `kind = "none"`: nothing is known; `bound` is infinite.

    An infinite bound of kind `certified` is a true statement that happens to say nothing. A certificate never speaks of
    the sample that the answer was computed from: that is [`hyprax.core.AbstractNoise`][].
    """

    kind: eqx.AbstractVar[Kind]
    """`certified`, `estimated` or `none`."""
    quantity: eqx.AbstractVar[str]
    """What the number bounds, in words."""
    bound: eqx.AbstractVar[Float[Array, "..."]]
    """The bound."""

    @abc.abstractmethod
    def meaning(self) -> str:
        """What the certificate says, and with what right, in plain sentences: for a reader of a report."""

    def _repr_html_(self) -> str:
        return page.shown(lambda: certificate_card(self), self)


RIGHTS: dict[str, str] = {
    "certified": (
        "The error of each hypergradient is proved to be at most the bound, rounding included, under the assumptions "
        "that the method names."
    ),
    "estimated": "The bound is a good guess at the error of each hypergradient, without proof.",
    "none": "Nothing is known of the error of the hypergradients: no bound was computed.",
}
OF_THE_COMPUTATION = (
    "It says how far the computed answer can be trusted to be that of the objective on this data; it says nothing of "
    "new data."
)


def right(kind: Kind) -> str:
    """What a kind of certificate allows one to say, in plain sentences."""
    return RIGHTS[kind] if kind == "none" else f"{RIGHTS[kind]} {OF_THE_COMPUTATION}"


def entries_of(certificate: AbstractCertificate) -> PyTree | None:
    """Bounds of the single entries of an answer, in its structure, where a certificate has them as `entries`."""
    return getattr(certificate, "entries", None)


def details(certificate: AbstractCertificate) -> dict[str, str | float | bool]:
    """What a certificate says, by name: its type, its meaning, its texts, its numbers; for a record.

    Trees and arrays of more than one entry are left out.
    """
    found: dict[str, str | float | bool] = {"type": type(certificate).__name__, "meaning": certificate.meaning()}
    for field in dataclasses.fields(certificate):
        x = getattr(certificate, field.name)
        if isinstance(x, Result):
            found[field.name] = message_of(x)
        elif isinstance(x, str | bool):
            found[field.name] = x
        elif isinstance(x, jax.Array | np.ndarray | float | int) and np.size(x) == 1:
            found[field.name] = float(np.asarray(x).item())
    return found


def certificate_card(certificate: AbstractCertificate) -> str:
    """A certificate for a notebook: what it bounds, with what right, and its numbers."""
    said = details(certificate)
    named = {name: x for name, x in said.items() if name not in ("type", "meaning", "kind", "quantity", "bound")}
    bound = f"{certificate.quantity} ≤ {show(certificate.bound)}" if certificate.kind != "none" else ""
    inside = page.paragraphs(bound, certificate.meaning()) + page.folded("how it was obtained", page.numbers(named))
    return page.card(str(said["type"]), page.badge(certificate.kind), inside)


class Certificate(AbstractCertificate):
    """A bound of the error of an answer, `|answer - truth| <= bound`, with how it was obtained.

    `terms` holds the parts or the alternatives of the bound by name, for whoever wants to know what dominates it;
    `entries` bounds of the single entries of the answer, in its structure, where they are known.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    method: str = eqx.field(static=True)
    terms: dict[str, Array]
    entries: PyTree | None

    def __init__(
        self,
        bound: Array,
        kind: Kind,
        quantity: str,
        method: str,
        terms: dict[str, Array] | None = None,
        entries: PyTree | None = None,
    ):
        if kind not in ("certified", "estimated"):
            raise ValueError(f"Certificate: kind must be 'certified' or 'estimated'; got {kind!r}.")
        self.bound = bound
        self.kind = kind
        self.quantity = quantity
        self.method = method
        self.terms = {} if terms is None else terms
        self.entries = entries

    def meaning(self) -> str:
        return right(self.kind)

    def __repr__(self) -> str:
        return f"<{self.kind}: {self.quantity} <= {show(self.bound)} ({self.method})>"


class NoCertificate(AbstractCertificate):
    """Nothing is known of the error, so the bound is infinite; `reason` says why, and what would change that.

    `dtype` is that of the bound, where the answer has another than the default.
    """

    bound: Float[Array, "..."]
    kind: Kind = eqx.field(static=True)
    quantity: str = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def __init__(self, reason: str, dtype: Any = None):
        self.reason = reason
        self.kind = "none"
        self.quantity = "nothing"
        self.bound = jnp.asarray(jnp.inf, dtype=jnp.result_type(float) if dtype is None else dtype)

    def meaning(self) -> str:
        return f"{right('none')} Why there is none: {self.reason}."

    def __repr__(self) -> str:
        return f"<none: {self.reason}>"
