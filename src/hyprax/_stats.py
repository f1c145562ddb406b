"""What an engine measured on the way to an answer: typed, its own, and readable by whoever knows nothing of it."""

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float


class Accuracy(eqx.Module):
    """How accurately an objective is to be evaluated; `None` in its place means the objective's own settings.

    Arrays inside, so an adaptive search changes them without recompiling anything.

    **Arguments:**

    - `inner`: the gradient norm to which the inner problem is solved, a number or a scalar array.
    - `adjoint`: the residual norm to which the adjoint system is solved; default `inner`.

    **Raises:** `ValueError` for anything but numbers >= 0 or scalar arrays.
    """

    inner: Float[Array, ""]
    adjoint: Float[Array, ""]

    def __init__(self, inner: ArrayLike, adjoint: ArrayLike | None = None):
        self.inner = _number("inner", inner)
        self.adjoint = self.inner if adjoint is None else _number("adjoint", adjoint)


def _number(name: str, x: Any) -> Float[Array, ""]:
    given = x if isinstance(x, jax.Array) else np.asarray(x)  # the values of arrays are unknown inside jit
    known = not isinstance(x, jax.Array)
    if given.shape != () or given.dtype.kind not in "fiu" or (known and not given >= 0):
        found = repr(x) if given.ndim == 0 else f"an array of {given.dtype}{list(given.shape)}"
        raise ValueError(f"Accuracy: {name} must be a number >= 0 or a scalar array; got {found}.")
    dtype = x.dtype if isinstance(x, jax.Array | np.ndarray) and x.dtype.kind == "f" else jnp.result_type(float)
    return jnp.asarray(x, dtype)  # never weakly typed, so that nothing is compiled twice


class Effort(eqx.Module):
    """What an evaluation took and reached, in the terms that a search knows.

    - `work`: products with the inner Hessian, or what costs as much; 0 where that has no meaning.
    - `reached`: the accuracy reached, residuals recomputed; `None` where an objective has none.
    - `inaccurate`: the answer is usable, and only less accurate than was asked for.
    """

    work: Float[Array, ""]
    reached: Accuracy | None
    inaccurate: Bool[Array, ""]

    def __init__(self, work: ArrayLike = 0.0, reached: Accuracy | None = None, inaccurate: ArrayLike = False):
        self.work = jnp.asarray(work, jnp.result_type(float))
        self.reached = reached
        self.inaccurate = jnp.asarray(inaccurate)


class AbstractStats(eqx.Module):
    """What an engine measured: fields of its own, documented where they are declared.

    Its scalar fields become columns of a run's history; `None` is left out.
    """

    @abc.abstractmethod
    def effort(self) -> Effort:
        """What the evaluation took and reached."""

    if TYPE_CHECKING:  # the fields are each engine's own

        def __getattr__(self, name: str) -> Any: ...


class NamedStats(AbstractStats):
    """Numbers by name, which no code reads by name: for an objective with nothing to tell a search."""

    numbers: dict[str, Array] = eqx.field(default_factory=dict)

    def effort(self) -> Effort:
        return Effort()


def scalars(stats: Any) -> dict[str, Array]:
    """The scalar fields of statistics, and of the modules and mappings in them, by name."""
    found: dict[str, Array] = {}
    named = stats if isinstance(stats, dict) else {f.name: getattr(stats, f.name) for f in dataclasses.fields(stats)}
    for name, x in named.items():
        if isinstance(x, dict | eqx.Module):
            found |= scalars(x)
        elif isinstance(x, jax.Array) and x.size == 1:
            found[name] = x
        elif isinstance(x, bool | int | float):
            found[name] = jnp.asarray(x)
    return found
