"""The methods of `implicit`, run in workers: each a compiled function of the log-strengths and of a tolerance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array

import hyprax as hx
from benchmarks.harness.cells import Arrays
from benchmarks.harness.implicit import STRENGTH, classes, groups

Run = Callable[..., dict[str, Any]]


class Problem:
    """The problem in JAX, in the dtype of its arrays."""

    def __init__(self, data: Arrays):
        x, y, vx, vy = (jnp.asarray(data[name]) for name in ("x", "y", "vx", "vy"))
        self.train, self.validation, self.outputs = (x, y), (vx, vy), classes(data)
        d, self._groups = x.shape[1], groups(data)
        self.start = jnp.full(int(self._groups.max()) + 1, np.log(STRENGTH), x.dtype)
        self.zero = jnp.zeros(d if self.outputs == 1 else (d, self.outputs), x.dtype)

    def _fit(self, w: Array, data: tuple[Array, Array]) -> Array:
        x, y = data
        u = x @ w
        if self.outputs == 1:
            return jnp.mean(jax.nn.softplus(u) - y * u)
        picked = jnp.take_along_axis(u, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(u, axis=1) - picked)

    def strengths(self, log_strengths: Array) -> Array:
        strengths = jnp.exp(log_strengths)[self._groups]
        return strengths if self.outputs == 1 else strengths[:, None]

    def inner(self, w: Array, log_strengths: Array) -> Array:
        strengths = self.strengths(log_strengths)
        return self._fit(w, self.train) + 0.5 * jnp.sum(strengths * w**2)

    def outer(self, w: Array) -> Array:
        return self._fit(w, self.validation)

    def family(self) -> hx.families.Softmax | hx.families.Logistic:
        shared: Any = {} if len(self.start) == len(self._groups) else {"penalty_groups": self._groups}
        if self.outputs == 1:
            return hx.families.Logistic(*self.train, penalty=lambda hyper: hyper, **shared)
        return hx.families.Softmax(*self.train, penalty=lambda hyper: hyper, classes=self.outputs, **shared)


def _unfolded(start: Any) -> Any:
    """The start, hidden from the compiler, which would work out the first gradient while it compiles."""
    return jax.lax.optimization_barrier(start)


def _differentiated(problem: Problem, value: Callable[[Array, Array], Array]) -> Run:
    compiled = jax.jit(jax.value_and_grad(value))

    def run(tolerance: float) -> dict[str, Any]:
        found, grad = compiled(problem.start, jnp.asarray(tolerance, problem.start.dtype))
        return {"value": found, "grad": grad}

    return run


def jaxopt_lbfgs(data: Arrays) -> Run:
    import jaxopt
    from jaxopt.linear_solve import solve_cg

    problem = Problem(data)

    def value(log_strengths: Array, tolerance: Any) -> Array:
        def solve(matvec: Any, b: Any, **_: Any) -> Any:
            return solve_cg(matvec, b, tol=tolerance)

        solver = jaxopt.LBFGS(problem.inner, tol=tolerance, maxiter=2000, implicit_diff_solve=solve)
        return problem.outer(solver.run(_unfolded(problem.zero), log_strengths).params)

    return _differentiated(problem, value)


def optimistix_minimiser(data: Arrays, minimiser: str) -> Run:
    problem = Problem(data)

    def value(log_strengths: Array, tolerance: Any) -> Array:
        solution = optx.minimise(
            problem.inner,
            getattr(optx, minimiser)(rtol=tolerance, atol=tolerance),
            _unfolded(problem.zero),
            log_strengths,
            max_steps=2000,
            throw=False,
            adjoint=optx.ImplicitAdjoint(lx.CG(rtol=tolerance, atol=tolerance)),
            tags=frozenset([lx.positive_semidefinite_tag]),
        )
        return problem.outer(solution.value)

    return _differentiated(problem, value)


def _ours(data: Arrays, certifier: hx.implicit.AbstractCertifier) -> Run:
    problem = Problem(data)
    family = problem.family()
    objective = hx.ImplicitObjective(
        hx.Optimum(family, solver=hx.implicit.Newton()), family.mean_loss, problem.validation, certifier=certifier
    )
    state = objective.init(None)

    @jax.jit
    def compiled(log_strengths: Array, tolerance: Array) -> Any:
        strengths = jnp.exp(log_strengths)
        hyper = hx.Positive(strengths if problem.outputs == 1 else strengths[:, None])
        answer, _ = objective.value_and_grad(hyper, _unfolded(state), hx.Accuracy(tolerance))
        return answer.value, answer.grad.raw.ravel(), answer.certificate.bound, answer.stats.products

    def run(tolerance: float) -> dict[str, Any]:
        value, grad, bound, products = compiled(problem.start, jnp.asarray(tolerance, problem.start.dtype))
        return {"value": value, "grad": grad, "bound": bound, "products": products}

    return run


def uncertified(data: Arrays) -> Run:
    return _ours(data, hx.implicit.NoCertifier())


def certified(data: Arrays, relative: float) -> Run:
    # Inside `jax.jit`; outside, extended precision is compiled by the first answer that needs it, which here is none.
    return _ours(data, hx.implicit.LookAhead(relative=relative, extended=False))


def products(data: Arrays, tolerance: float) -> Run:
    """The gradients and Hessian products that the uncertified answer takes, and nothing else."""
    problem, count = Problem(data), int(uncertified(data)(tolerance)["products"])

    @jax.jit
    def compiled(w: Array, log_strengths: Array) -> Array:
        _, product = jax.linearize(lambda w: jax.grad(problem.inner)(w, log_strengths), w)
        return jax.lax.fori_loop(0, count, lambda _, v: product(v) / 2, w)

    return lambda: {"last": compiled(problem.zero + 1, problem.start)}
