"""Ways to differentiate a training run: one interface, whatever is stored, recomputed or reversed."""

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
from equinox import Module
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, NoCertificate
from .._result import RESULTS as CORE_RESULTS, Result
from .._stats import AbstractStats, Effort
from ._training import Training


class RESULTS(CORE_RESULTS):  # pyright: ignore[reportGeneralTypeIssues]  # an enumeration in layers
    """How an evaluation through a training run ended."""

    if TYPE_CHECKING:  # of the layer below, as members of this one
        successful = ""
        diverged = ""

    chaotic = (
        "The training is chaotic: the adjoint of the weights grew so much on its way back through the steps that the "
        "hypergradient predicts the objective only for vanishingly small steps. Lower the learning rate of the "
        "training or clip its gradients, train for fewer steps, or cut the sweep short with `hx.unroll.Truncated`; "
        "`objective.metasmoothness` measures whether that helped, and `hx.unroll.ChaosGauge` sets the limit."
    )
    not_reversible = (
        "The training run was undone and did not come back to the bits that it started from: the gradient of a step is "
        "not deterministic, or depends on more than weights, hyperparameters and step. Make the loss a pure function, "
        "ask for deterministic operations of the device, or use `hx.unroll.Checkpointed`."
    )
    fixed_point_overflow = (
        "A weight or a state of the optimizer outgrew its fixed-point format: compare `used_bits` with `limit_bits`. "
        "Give the optimizer fewer `fraction_bits` (or `variance_bits`), lower the learning rate, scale the loss down, "
        "or use `hx.unroll.Checkpointed`."
    )
    unresolved = (
        "The states of the optimizer have too few digits in fixed point for the derivatives of its steps: a unit more "
        "in them moves these by `certificate.blurred` of their size. Give the optimizer more `fraction_bits` "
        "(or `variance_bits`), scale the loss up, or use `hx.unroll.Checkpointed`."
    )
    initial_weights_not_finite = (
        "`init` gave weights that are not finite, or that overflow the dtype. Look at the scales of initialisation."
    )
    training_loss_not_finite = (
        "The training loss became infinite or undefined at step `failed_step`, at finite weights. Look at the data of "
        "that batch, and for logarithms and roots of 0 in the loss; or lower the learning rate."
    )
    training_gradient_not_finite = (
        "The gradient of the training loss became infinite or undefined at step `failed_step`, where the loss itself "
        "is finite: typically a square root or a norm at 0. Add a small number inside of it."
    )
    weights_not_finite = (
        "The weights became infinite or undefined in step `failed_step`, from a finite gradient: the training "
        "diverges. Lower the learning rate or the momentum, or bound them with `hx.Interval`."
    )
    state_not_finite = (
        "The state that the training loss returns became infinite or undefined in step `failed_step`, at a finite loss "
        "and gradient. Look at what the loss makes of it, such as a variance of one example."
    )
    outer_loss_not_finite = (
        "The training ended with finite weights, and the outer loss there is infinite or undefined. Look at the "
        "validation data, and for logarithms and roots of 0 in the outer loss."
    )
    derivative_not_finite = (
        "The training and the outer loss are finite, and the derivative is not: something in the loss, the outer "
        "loss or the optimizer has no derivative at a point that the run passes, such as a square root or a norm at 0, "
        "or the adjoint overflowed. Add a small number inside of it, or lower the learning rate."
    )


class Outer(Module):
    """The loss by which the end of a training run is judged: f(w, λ) = loss(w, λ, data), or loss(w, λ, data, m) where
    the training has a state m.

    - `static`: what of the weights is no array, such as the functions of an Equinox module; `None` for plain arrays.
    """

    loss: Callable[..., Float[Array, ""]]
    data: PyTree
    static: PyTree = None

    def __call__(self, params: PyTree, model: PyTree, hyper: PyTree) -> Float[Array, ""]:
        whole = params if self.static is None else eqx.combine(params, self.static)
        return self.loss(whole, hyper, self.data, *(() if model is None else (model,)))


class UnrollStats(AbstractStats):
    """What was measured of a run; `None` for what a mode does not measure.

    - `steps`: T; `gradients`, `products`: how many of the training loss were computed, of the second order the latter.
    - `failed_step`: where the run stopped being finite.
    - `adjoint_start`, `adjoint_end`: ‖dw_0‖ and ‖dw_T‖, the adjoint of the weights, and of the state that the loss
        carries if any, at both ends of the run, for modes that have it; `amplification`: their ratio; `growth`: its
        T-th root.
    - `truncated_steps`: steps left out; `cosine`, `norm_ratio`: to the hypergradient through every step, if asked for.
    - `attempt`: which pair of sweeps the answer is of; `bits_per_parameter_step`, `theory_bits`: what was put away and
        what had to be kept; `stored_bytes`: put away in all; `headroom_bits`: doublings left in the fullest format;
        `used_bits`, `limit_bits`, `resolution`: of each kind of number, by name.
    """

    steps: Array
    gradients: Array | None = None
    products: Array | None = None
    failed_step: Array | None = None
    adjoint_start: Array | None = None
    adjoint_end: Array | None = None
    amplification: Array | None = None
    growth: Array | None = None
    truncated_steps: Array | None = None
    cosine: Array | None = None
    norm_ratio: Array | None = None
    attempt: Array | None = None
    bits_per_parameter_step: Array | None = None
    theory_bits: Array | None = None
    stored_bytes: Array | None = None
    headroom_bits: Array | None = None
    used_bits: dict[str, Array] | None = None
    limit_bits: dict[str, Array] | None = None
    resolution: dict[str, Array] | None = None

    def effort(self) -> Effort:
        return Effort(0.0 if self.products is None else self.products)


class UnrollReport(Module):
    """What is known of one run.

    - `params`: the weights at its end; `state`: the state of the training there, `None` where it has none.
    - `certificate`, `result`: what is known of the error of the hypergradient, and how the run ended.
    - `stats`: what was measured.
    - `metrics`: the auxiliary metrics of the training, every leaf with a leading axis over the recorded steps; `None`
        where there are none.
    - `attempt`: the attempt that succeeded, of a mode that may need several.
    """

    params: PyTree
    certificate: AbstractCertificate
    result: Result
    stats: UnrollStats
    metrics: PyTree = None
    state: PyTree = None
    attempt: int = eqx.field(static=True, default=1)


class AbstractMode(Module):
    """A way to differentiate F(λ) = f(w_T(λ), λ) through the T steps of a training run.

    `hyper` is in natural units throughout, plain arrays, and so is the gradient; the objective does the rest. Modes
    compile their own steps and run loops on the host: call their methods as they are.
    """

    @abc.abstractmethod
    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        """F, dF/d hyper (the structure of `hyper`), and what is known of the run.

        A mode that may need several attempts begins with `attempt`: that of the last report.
        """

    @abc.abstractmethod
    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array, attempt: int = 1
    ) -> tuple[Float[Array, ""], UnrollReport]:
        """F alone, from the same weights w_T that `value_and_grad` would end with."""


def rounding_only(dtype: Any) -> AbstractCertificate:
    """What a mode says that differentiates every step: nothing is cut off, and rounding is not bounded."""
    return NoCertificate("every step is differentiated, and the rounding of that is not bounded", dtype)
