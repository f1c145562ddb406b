"""What bounds the rounding of a hypergradient through a training run: a proof for short runs, else an estimate."""

import abc
import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._hyper import natural
from .._trees import tree_norm, tree_sub
from ._balls import MOST_BITS, Arithmetic, Undecided, Unsupported
from ._big_functions import TooLarge
from ._checkpointed import Checkpointed
from ._mode import AbstractMode, Outer
from ._rounded import shortened_run
from ._short_runs import RunInBalls, Unbounded, rise
from ._training import Training

HYPERGRADIENT = "‖grad - dF/d hyper‖₂"
VALUE = "|value - F|"
DROPPED = (3, 5)
"""Bits that the shorter runs of an estimate have less."""
SAFETY = 8.0
FIRST_BITS = 160


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation to be certified: the run, its hyperparameters (as the user gives them), and its answer."""

    training: Training
    outer: Outer
    hyper: PyTree
    key: Array
    mode: AbstractMode
    value: Float[Array, ""]
    grad: PyTree = None


class AbstractCertifier(eqx.Module):
    """What makes the certificate of an evaluation through a run, once there is an answer."""

    @abc.abstractmethod
    def certificate(self, evaluated: Evaluated) -> AbstractCertificate:
        """That of the hypergradient, or of the value where there is no hypergradient."""


class RoundingCertifier(AbstractCertifier):
    """‖h - dF/dλ‖ is about ‖h - h₀‖ + 8 max_k ‖h_k - h₀‖ 2^-k + ε ‖h‖: an estimate from runs that round more.

    h₀ is the hypergradient by [`hyprax.unroll.Checkpointed`][] (which is h, for that mode), h_k the same with k = 3 and
    5 bits less in every number that training, outer loss and their derivatives compute. Rounding errors are in
    proportion to their unit ε while they are small, so 2^-k of what the shorter run is off by is what this one is. It
    costs two or three more evaluations, each of which compiles once, of any size and in any dtype.

    The kind is `estimated`: errors may cancel by chance, and a chaotic run is not in proportion. For a mode that leaves
    steps out, the first term is what they mattered.
    """

    def certificate(self, evaluated: Evaluated) -> AbstractCertificate:
        return self.estimate(evaluated, "")

    def estimate(self, evaluated: Evaluated, why: str) -> AbstractCertificate:
        """The estimate; `why` there is no proof is added to its method."""
        plain, pull = jax.vjp(natural, evaluated.hyper)
        mode = Checkpointed()
        same = isinstance(evaluated.mode, Checkpointed)

        def answer(training: Training, outer: Outer) -> PyTree:
            if evaluated.grad is None:
                return mode.value(training, outer, plain, evaluated.key)[0]
            return pull(mode.value_and_grad(training, outer, plain, evaluated.key)[1])[0]

        given = evaluated.value if evaluated.grad is None else evaluated.grad
        whole = given if same else answer(evaluated.training, evaluated.outer)
        spread = [
            float(tree_norm(tree_sub(answer(*shortened_run(evaluated.training, evaluated.outer, k)), whole))) * 0.5**k
            for k in DROPPED
        ]
        distance = 0.0 if same else float(tree_norm(tree_sub(given, whole)))
        rounding = SAFETY * max(spread) + float(jnp.finfo(evaluated.value.dtype).eps) * float(tree_norm(given))
        bound = distance + rounding
        terms = {"distance": jnp.asarray(distance), "rounding": jnp.asarray(rounding)}
        method = "runs with 3 and 5 bits less in every number, whose errors are scaled down" + why
        quantity = VALUE if evaluated.grad is None else HYPERGRADIENT
        return Certificate(jnp.asarray(bound, evaluated.value.dtype), "estimated", quantity, method, terms)


class BallCertifier(AbstractCertifier):
    """‖h - dF/dλ‖ <= ‖h - c‖ + ‖r‖, |dF/dλ - c| <= r: the run anew in ball arithmetic, for short runs of small models.

    The truth is the derivative of the run in real numbers: of what `jax.grad` makes of the loss, the optimizer and the
    outer loss, at the hyperparameters, the data, the draws and the constants of the code as they are in memory (in
    float32 a momentum of 0.9 is the nearest number to it of that dtype), every later number without rounding (a
    conversion from float64 to float32 inside of the loss too). It is enclosed by integers of 160 bits or more and radii
    that count every rounding; whatever mode computed h, and in whatever dtype, is compared with that. So nothing is
    assumed of XLA's sums, fused operations or elementary functions, and the certificate of
    [`hyprax.unroll.Reversible`][] or [`hyprax.unroll.Truncated`][] contains what their fixed point or their cut makes.

    Radii grow from step to step, by more than errors do; the bits are raised until that no longer matters. What remains
    is time: about two microseconds for every multiplication of the run, on the host, so that 100 weights, 50 examples
    and 100 steps take seconds where the run takes milliseconds. Ask for it where the answer counts, not in every step
    of a search. The bound is that of rounding, so typically some 1e-15 of the hypergradient in float64.

    Where there is no proof, the certificate is that of [`hyprax.unroll.RoundingCertifier`][], of kind `estimated`, and
    its method says why: an operation that is not known in ball arithmetic (convolutions with stride 1, sorting, `erf`,
    factorisations), a comparison of numbers that are equal only up to rounding, more operations or bits than allowed.

    **Arguments:**

    - `most_operations`: about how many multiplications the run may have, forwards and backwards; by default about a
        minute of them.
    - `most_bits`: after the point, at most 896. A run whose balls grow by a factor γ a step needs about T log2 γ.

    **Raises:** `ValueError` for bits out of range or no operations.

    Source: balls as in Johansson 2017, arXiv 1611.02831.
    """

    most_operations: float = eqx.field(static=True, default=2e7)
    most_bits: int = eqx.field(static=True, default=MOST_BITS)

    def __check_init__(self) -> None:
        if not self.most_operations > 0:
            raise ValueError(f"BallCertifier: most_operations must be a number > 0; got {self.most_operations}.")
        if not FIRST_BITS <= self.most_bits <= MOST_BITS:
            raise ValueError(
                f"BallCertifier: most_bits must be an integer from {FIRST_BITS} to {MOST_BITS}; got {self.most_bits}."
            )

    def certificate(self, evaluated: Evaluated) -> AbstractCertificate:
        try:
            return self._proved(evaluated)
        except (Unsupported, Undecided, Unbounded, TooLarge) as error:
            why = str(error)
        return RoundingCertifier().estimate(evaluated, f"; there is no proof, because of {why}")

    def _proved(self, evaluated: Evaluated) -> AbstractCertificate:
        """**Raises:** what stands in the way."""
        run = RunInBalls(evaluated.training, evaluated.outer, evaluated.hyper, evaluated.key)
        work = run.operations(evaluated.grad is not None)
        if work > self.most_operations:
            raise Unsupported(f"about {work:.0e} operations, where most_operations is {self.most_operations:.0e}")
        bits, found = min(self.most_bits, run.bits(8, FIRST_BITS)), None
        while found is None:
            found, bits = self._attempt(run, evaluated, bits)
        return found

    def _attempt(self, run: RunInBalls, evaluated: Evaluated, bits: int) -> tuple[AbstractCertificate | None, int]:
        """A certificate, or none and with how many bits to try again."""
        ar = Arithmetic(bits)
        try:
            if evaluated.grad is None:
                balls, given = [run.value(bits)], [evaluated.value]
            else:
                balls, given = run.hypergradient(bits)[1], jax.tree.leaves(evaluated.grad)
        except Unbounded as error:
            if bits >= self.most_bits:
                raise
            needed = bits * error.needed / max(error.made, 1)
            return None, min(self.most_bits, max(2 * bits, 64 * math.ceil(needed / 64)))
        except (Undecided, TooLarge):
            if bits >= self.most_bits:
                raise
            return None, min(self.most_bits, 2 * bits)
        distances = [ar.distances(ball, np.asarray(h)) for ball, h in zip(balls, given, strict=True)]
        bound = _norm(distances)
        radius = _norm([ball.radius * ar.unit for ball in balls])
        size = _norm([np.abs(np.asarray(h, np.float64)) for h in given])
        unit = float(jnp.finfo(evaluated.value.dtype).eps)
        fine = max(0.01 * bound, 1e-4 * unit * size)
        if radius > fine and bits < self.most_bits:
            lost = math.log2(radius) - math.log2(fine) if fine > 0 else float(bits)
            return None, min(self.most_bits, bits + 32 + 32 * math.ceil(lost / 32))
        return _certified(evaluated, distances, bound, radius, bits), bits


def _certified(evaluated: Evaluated, distances: list[Any], bound: float, radius: float, bits: int) -> Certificate:
    method = f"the run in ball arithmetic of {bits} bits; what random keys draw is taken as it is"
    dtype = evaluated.value.dtype
    terms = {"radius": _up(radius, dtype)}
    if evaluated.grad is None:
        return Certificate(_up(bound, dtype), "certified", VALUE, method, terms)
    leaves, structure = jax.tree.flatten(evaluated.grad)
    entries = [_up(x, h.dtype) for x, h in zip(distances, leaves, strict=True)]
    return Certificate(
        _up(bound, dtype), "certified", HYPERGRADIENT, method, terms, jax.tree.unflatten(structure, entries)
    )


def _norm(parts: list[Any]) -> float:
    return rise([float(x) for part in parts for x in np.ravel(part)])


def _up(x: Any, dtype: Any) -> Array:
    """A bound in the dtype of the answer, rounded up."""
    kind = jnp.finfo(dtype)
    x = np.asarray(x, np.float64)
    return jnp.asarray(np.where(x > 0, x * (1 + 2 * float(kind.eps)) + float(kind.tiny), 0.0), dtype=dtype)
