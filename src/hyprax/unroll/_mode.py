"""Ways to differentiate a training run: one interface, whatever is stored, recomputed or reversed."""

import abc
from collections.abc import Callable
from typing import Any

from equinox import Module
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate
from .._result import RESULTS
from ._training import Training


class Outer(Module):
    """f(w, λ) = loss(w, λ, data): what the end of the training run is judged by."""

    loss: Callable[[PyTree, PyTree, Any], Float[Array, ""]]
    data: PyTree

    def __call__(self, params: PyTree, hyper: PyTree) -> Float[Array, ""]:
        return self.loss(params, hyper, self.data)


class UnrollReport(Module):
    """What is known of one run.

    - `params`: the weights at its end.
    - `certificate`, `result`: what is known of the error of the hypergradient, and how the run ended.
    - `stats`: numbers by name. Modes with an adjoint give `adjoint_start` and `adjoint_end`, the norms ‖dw_0‖ and
        ‖dw_T‖ of the adjoint of the weights at both ends of the run, from which the gauge of chaos is made.
    - `metrics`: the auxiliary metrics of the training, every leaf with a leading axis over the recorded steps; `None`
        where there are none.
    """

    params: PyTree
    certificate: AbstractCertificate
    result: RESULTS
    stats: dict[str, Array]
    metrics: PyTree = None


class AbstractMode(Module):
    """dF/dλ, F(λ) = f(w_T(λ), λ), through the T steps of a training run.

    `hyper` is in natural units throughout, plain arrays, and so is the gradient; the objective does the rest. Modes
    compile their own steps and run loops on the host: call their methods as they are.
    """

    def after(self, attempts: int) -> "AbstractMode":
        """This mode, for evaluations after one whose `stats` hold so many `attempts`."""
        return self

    @abc.abstractmethod
    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        """F, dF/d hyper (the structure of `hyper`), and what is known of the run."""

    @abc.abstractmethod
    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], UnrollReport]:
        """F alone, from the same weights w_T that `value_and_grad` would end with."""
