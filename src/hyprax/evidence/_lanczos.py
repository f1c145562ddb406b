"""The full log-determinant without forming any matrix: stochastic Lanczos quadrature."""

import importlib

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._estimator import AbstractEstimator, EstimatorKind, LogDeterminant, cotangents
from ._kernel import kernel_matvec
from ._problem import Problem
from ._roots import StickBreaking


class Lanczos(AbstractEstimator):
    """log|I + K| ≈ (1/S) Σ_s ‖z_s‖² e_1ᵀ log(T_s) e_1, T_s the tridiagonal matrix of k Lanczos steps from z_s = ±1.

    K v = J (P0⁻¹ (Jᵀ v)) over all data, one forward and one reverse pass, so memory grows with neither N² nor P².
    Neither side is proved: the quadrature and the samples err both ways. Needs the package `matfree`
    (`pip install hyprax[lanczos]`).

    **Arguments:**

    - `steps`: k, the products for each sample; at most the number of rows.
    - `samples`: S.

    Source: Ubaru, Chen and Saad 2017; gradients of Krämer et al. 2024 (arXiv 2405.17277).
    """

    steps: int = eqx.field(static=True, default=30)
    samples: int = eqx.field(static=True, default=10)

    def __check_init__(self):
        if self.steps < 1 or self.samples < 1:
            raise ValueError(f"Lanczos: given steps {self.steps}, samples {self.samples}, allowed are integers >= 1.")
        try:
            importlib.import_module("matfree")
        except ImportError as error:
            raise ImportError("Lanczos needs the package matfree: pip install hyprax[lanczos].") from error

    @property
    def kind(self) -> EstimatorKind:
        return "estimated"

    def __call__(self, problem: Problem, key: Array) -> LogDeterminant:
        from matfree import decomp, funm, stochtrace

        root = StickBreaking()
        count = root.count(problem.likelihood, problem.outputs, problem.dtype)
        directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (problem.size, count, count))
        rows = cotangents(problem, root, None, directions)
        total = problem.size * count
        if self.steps > total:
            raise ValueError(f"Lanczos: given steps {self.steps}, allowed are 1 to {total} (the rows).")

        def product(vector: Float[Array, " rows"], parameters: tuple) -> Float[Array, " rows"]:
            params, hyper, inputs, rows, variances = parameters
            return vector + kernel_matvec(problem.apply, params, hyper, inputs, rows, variances, vector)

        parameters = (problem.params, problem.hyper, problem.inputs, rows, problem.prior.variances(problem.params))
        integrand = funm.monte_carlo_funm_sym_logdet(decomp.tridiag_sym(self.steps))
        sampler = stochtrace.sampler_signs(jnp.ones(total, problem.dtype), num=self.samples)
        return LogDeterminant(stochtrace.estimator_monte_carlo(integrand, sampler)(product, key, parameters))
