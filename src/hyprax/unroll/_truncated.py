"""The reverse sweep cut short: the last K steps alone."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate, NoCertificate
from .._trees import tree_dot, tree_norm, tree_sub
from ._checkpointed import Checkpointed
from ._drivers import DriverName, check_driver
from ._mode import AbstractMode, Outer, UnrollReport
from ._runner import Runner, adjoint_norms, run_value
from ._store_all import rounding_only
from ._training import Training


class Truncated(AbstractMode):
    """h_K = ∂_λ f + Σ_{t >= T-K} (∂_λ U_t)ᵀ a_{t+1}: dF/dλ with w_{T-K} taken as a constant.

    Memory K S P + A, time T c + K h. It is biased: what λ did before step T - K is left out, the initial weights
    included, and near a sharp minimum little is lost (Shaban, Cheng, Hatch, Boots 2019, arXiv 1810.10667). The
    certificate is `none`, unless the bias is asked for.

    **Arguments:**

    - `steps`: K >= 1; all T steps where K >= T, and then nothing is left out.
    - `bias`: whether to compute the full hypergradient h too, by checkpointing, and to report
        `cosine` = <h_K, h>/(‖h_K‖ ‖h‖) and `norm_ratio` = ‖h_K‖/‖h‖. The certificate is then the distance
        ‖h_K - h‖, of kind `estimated`: the rounding of h is not bounded.
    - `driver`: `"loop"` for compiled loops, `"host"` for loops on the host, `"auto"` to choose.
    """

    steps: int = eqx.field(static=True)
    bias: bool = eqx.field(static=True, default=False)
    driver: DriverName = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_driver("Truncated", self.driver)
        if self.steps < 1:
            raise ValueError(f"Truncated: given steps {self.steps}, allowed are integers >= 1.")

    def value_and_grad(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], PyTree, UnrollReport]:
        runner = Runner(training, hyper, key, self.driver)
        cut = max(0, training.steps - self.steps)
        carry = runner.advance(runner.start(), 0, cut)
        store, carry = runner.record(runner.driver.empty(carry, training.steps - cut), carry, cut, training.steps)
        value, last, dhyper = runner.end(outer, carry)
        adjoint, grads = runner.reverse(store, cut, training.steps, last, dhyper)
        stats: dict[str, Array] = {"truncated_steps": jnp.asarray(cut)}
        if cut == 0:
            grads = runner.chain(adjoint, grads)
            stats |= adjoint_norms(adjoint, last)
            certificate: AbstractCertificate = rounding_only(value.dtype)
        else:
            certificate = NoCertificate(
                "the steps before the truncation are left out: ask for `bias=True` to see how much they matter",
                value.dtype,
            )
        if self.bias and cut > 0:
            del store
            exact = Checkpointed(driver=self.driver).value_and_grad(training, outer, hyper, key)[1]
            distance, bias = compare(grads, exact)
            stats |= bias
            method = "distance to the hypergradient through every step, in floating point"
            certificate = Certificate(distance, "estimated", "the truncation of the hypergradient", method)
        return value, grads, runner.report(carry[0], certificate, value, grads, stats)

    def value(
        self, training: Training, outer: Outer, hyper: PyTree, key: Array
    ) -> tuple[Float[Array, ""], UnrollReport]:
        return run_value(training, outer, hyper, key, self.driver)


@jax.jit
def compare(grads: PyTree, exact: PyTree) -> tuple[Float[Array, ""], dict[str, Array]]:
    """‖h_K - h‖, and cosine and ratio of norms."""
    norm, whole = tree_norm(grads), tree_norm(exact)
    cosine = tree_dot(grads, exact) / (norm * whole)
    return tree_norm(tree_sub(grads, exact)), {"cosine": cosine, "norm_ratio": norm / whole}
