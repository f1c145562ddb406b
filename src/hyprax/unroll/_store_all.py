"""All states of the run kept: the fewest operations, the most memory."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, NoCertificate
from ._drivers import DriverName, check_driver
from ._mode import AbstractMode, Outer, UnrollReport
from ._runner import Runner, adjoint_norms, run_value
from ._training import Training


def rounding_only(dtype: Any) -> AbstractCertificate:
    """What a mode says that differentiates every step: nothing is cut off, and rounding is not bounded."""
    return NoCertificate("every step is differentiated, so only rounding separates it from the truth, unbounded", dtype)


class StoreAll(AbstractMode):
    """dF/dλ by reverse mode; (w_t, s_t) kept for every t, activations never.

    Memory T S P + A: S P the words of weights and optimiser state, A the activations of one step, made again in the
    reverse sweep by the same forward-over-reverse product that they are needed for. Time T (c + h): c a gradient, h the
    gradient and second-order product together, about 2 c. Exact in exact arithmetic.

    **Arguments:**

    - `driver`: `"loop"` for one compiled loop, `"host"` for a loop on the host, `"auto"` to choose.
    """

    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("StoreAll", self.driver)

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, hyper, key, self.driver)
        carry = runner.start()
        store, carry = runner.record(runner.driver.empty(carry, training.steps), carry, 0, training.steps)
        value, last, dhyper = runner.end(outer, carry)
        adjoint, dhyper = runner.reverse(store, 0, training.steps, last, dhyper)
        grads = runner.chain(adjoint, dhyper)
        return (
            value,
            grads,
            runner.report(carry[0], rounding_only(value.dtype), value, grads, adjoint_norms(adjoint, last)),
        )

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)
