"""First-order methods, for the inner problem and for the adjoint system: fixed steps, momentum, truncated series."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._trees import tree_axpy, tree_dtype, tree_norm, tree_scale, tree_sub
from ._adjoint_solvers._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, count, unmeasured
from ._constants import Spectrum
from ._inner_loss import AbstractInnerLoss, Point, Product
from ._inner_solvers._solver import AbstractInnerSolver, Minimum, check_settings
from ._spectrum import check_spectrum, resolve

POLYAK = """@article{polyak1964some, author = {Polyak, Boris T.},
  title = {Some methods of speeding up the convergence of iteration methods},
  journal = {USSR Computational Mathematics and Mathematical Physics},
  volume = {4}, number = {5}, pages = {1--17}, year = {1964}}"""


def heavy_ball_constants(spectrum: Spectrum) -> tuple[Array, Array]:
    """The step 4/(√L + √μ)² and the momentum ((√L - √μ)/(√L + √μ))², best for a quadratic with these constants."""
    low, high = jnp.sqrt(spectrum.lower), jnp.sqrt(spectrum.upper)
    return 4 / jnp.square(high + low), jnp.square((high - low) / (high + low))


def heavy_ball_step(
    now: PyTree, before: PyTree, slope: PyTree, step: Float[Array, ""], momentum: Float[Array, ""]
) -> PyTree:
    """x₊ = x - t r + β (x - x₋), r the gradient at x, or the residual."""
    return jax.tree.map(lambda x, b, r: x - step * r + momentum * (x - b), now, before, slope)


Advance = Callable[[Point, PyTree, Spectrum], tuple[PyTree, PyTree]]
"""(point, memory, μ and L) ↦ (where the next gradient is taken, memory)."""


class _Carry(eqx.Module):
    point: Point
    memory: PyTree
    smoothness: Float[Array, ""]
    moved: Bool[Array, ""]
    steps: Int[Array, ""]


def descend(
    loss: AbstractInnerLoss,
    hyper: PyTree,
    params: PyTree,
    tolerance: Float[Array, ""],
    max_steps: int,
    constants: tuple[float | Array | None, float | Array | None],
    advance: Advance,
) -> Minimum:
    """Steps of `advance` from `params` until ‖∇g‖₂ <= `tolerance`, nothing moves any more, or `max_steps` are made.

    `constants` are μ and L as the user gave them. Where L is an estimate, every step measures it again for nothing: a
    step along which the gradient changes by more than L times its length is taken back, L doubled (or raised to what
    was measured), and the momentum dropped. An accepted step of gradient descent then lowers a convex g.
    """
    start = loss.at(params, hyper)
    known = loss.spectrum(hyper)
    spectrum, guessed, spent = resolve(*constants, known, loss.product(start, hyper), params)
    noise = 1000 * jnp.finfo(start.value.dtype).eps

    def unfinished(carry: _Carry) -> Bool[Array, ""]:
        norm = tree_norm(carry.point.grad)
        return (norm > tolerance) & jnp.isfinite(norm) & carry.moved & (carry.steps < max_steps)

    def step(carry: _Carry) -> _Carry:
        point = carry.point
        target, memory = advance(point, carry.memory, Spectrum(spectrum.lower, carry.smoothness))
        new = loss.at(target, hyper)
        length = tree_norm(tree_sub(new.params, point.params))
        smoothness = carry.smoothness
        if guessed:
            change = tree_norm(tree_sub(new.grad, point.grad))
            too_long = (change > smoothness * length) & (length > noise * tree_norm(point.params))
            too_long = too_long | jnp.logical_not(jnp.isfinite(change))
            measured = jnp.where(jnp.isfinite(change), change / jnp.where(length > 0, length, 1), 0)
            smoothness = jnp.where(too_long, jnp.maximum(2 * smoothness, measured), smoothness)
            back = (point, point.params)
            new, memory = jax.tree.map(lambda a, b: jnp.where(too_long, a, b), back, (new, memory))
            length = jnp.where(too_long, 1, length)  # nothing has moved, and the next step will be another
        return _Carry(new, memory, smoothness, length > 0, carry.steps + 1)

    first = _Carry(start, params, spectrum.upper, jnp.asarray(True), jnp.asarray(0))
    last = jax.lax.while_loop(unfinished, step, first)
    return Minimum(last.point, last.steps, last.steps + 1 + spent)


class _AdjointCarry(eqx.Module):
    value: PyTree
    before: PyTree
    residual: PyTree
    steps: Int[Array, ""]


def iterate(
    system: AdjointSystem,
    step: Float[Array, ""],
    momentum: Float[Array, ""] | None,
    max_steps: int,
    spent: int,
    preconditioner: Product | None = None,
) -> LinearSolution:
    """q₊ = q - step M⁻¹(A q - rhs) + momentum (q - q₋), to the true residual at q, from q₋ = q = start."""
    solve = preconditioner or (lambda v: v)

    def unfinished(carry: _AdjointCarry) -> Bool[Array, ""]:
        norm = tree_norm(carry.residual)
        return (norm > system.residual) & jnp.isfinite(norm) & (carry.steps < max_steps)

    def advance(carry: _AdjointCarry) -> _AdjointCarry:
        if momentum is None:
            new = tree_axpy(-step, solve(carry.residual), carry.value)
        else:
            new = heavy_ball_step(carry.value, carry.before, carry.residual, step, momentum)
        return _AdjointCarry(new, carry.value, tree_sub(system.product(new), system.rhs), carry.steps + 1)

    begun = tree_sub(system.product(system.start), system.rhs)
    last = jax.lax.while_loop(unfinished, advance, _AdjointCarry(system.start, system.start, begun, jnp.asarray(0)))
    return LinearSolution(last.value, last.steps, last.steps + 1 + spent, unmeasured(system.rhs))


class GradientDescent(AbstractInnerSolver, AbstractAdjointSolver):
    """Gradient descent, on the inner problem or on the adjoint system.

        w ← w - t ∇g(w),    q ← q - t (A q - ∇f),    t = 2/(L + μ)

    Both lower the distance to the solution by ((L - μ)/(L + μ))^k. From q = 0, K steps of the adjoint are the truncated
    Neumann series t Σ_{k<K} (I - tA)^k ∇f, and the same numbers as backpropagation through K steps of gradient descent
    on the inner loss with its second derivatives frozen at the last iterate ("inexact automatic differentiation").

    **Arguments:**

    - `tolerance`: what to stop at: ‖∇g‖₂ as inner solver, ‖A q - ∇f‖₂/‖∇f‖₂ as adjoint solver; default the square root
        of the rounding unit (1.5e-8 in float64), of the scale of the problem.
    - `max_steps`: gradients or products, at most.
    - `step`: t, fixed.
    - `smoothness`, `strong_convexity`: L and μ; default those of the family, or else estimates: by Lanczos at the start
        (12 products), and L doubled whenever a step on the inner problem measures more.

    Source: Nesterov, Lectures on Convex Optimization (2018), theorem 2.1.15; Ehrhardt and Roberts, arXiv 2301.04764
    (2023); Grazzi et al., arXiv 2006.16218 (2020).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    step: float | Array | None = None
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@book{nesterov2018lectures, author = {Nesterov, Yurii}, title = {Lectures on convex optimization},
  publisher = {Springer}, year = {2018}, edition = {2nd}}""",
        """@article{ehrhardt2023analyzing, author = {Ehrhardt, Matthias J. and Roberts, Lindon},
  title = {Analyzing inexact hypergradients for bilevel learning}, journal = {IMA Journal of Applied Mathematics},
  year = {2023}, note = {arXiv:2301.04764}}""",
    )

    def __check_init__(self):
        check_settings("GradientDescent", self.tolerance, self.max_steps)
        check_spectrum("GradientDescent", self.strong_convexity, self.smoothness)
        check_spectrum("GradientDescent", None, self.step)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            step = 2 / (spectrum.lower + spectrum.upper) if self.step is None else self.step
            return jax.tree.map(lambda w, g: w - step * g, point.params, point.grad), memory

        # A given step asks for no constants, and 1 in their place costs no estimate.
        constants = (self.strong_convexity, self.smoothness) if self.step is None else (1.0, 1.0)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        if self.step is not None:
            return iterate(system, jnp.asarray(self.step, tree_dtype(system.rhs)), None, self.max_steps, 0)
        known, given = system.spectrum, (self.strong_convexity, self.smoothness)
        spectrum, _, spent = resolve(*given, known, system.product, system.rhs)
        return iterate(system, 2 / (spectrum.lower + spectrum.upper), None, self.max_steps, spent)


class HeavyBall(AbstractInnerSolver, AbstractAdjointSolver):
    """Polyak's heavy ball, on the inner problem or on the adjoint system.

        w₊ = w - t ∇g(w) + β (w - w₋),    q₊ = q - t (A q - ∇f) + β (q - q₋),
        t = 4/(√L + √μ)²,    β = ((√L - √μ)/(√L + √μ))²

    On a quadratic, and so on every adjoint system, the distance to the solution falls by (1 + k(1 + √β)) β^{k/2}: the
    rate of conjugate gradients without their inner products, given L and μ. For other losses it is guaranteed only near
    the optimum. From q = 0 the adjoint gives the same numbers as backpropagation through as many heavy-ball steps on
    the inner loss with its second derivatives frozen at the last iterate.

    **Arguments:**

    - `tolerance`: what to stop at: ‖∇g‖₂ as inner solver, ‖A q - ∇f‖₂/‖∇f‖₂ as adjoint solver; default the square root
        of the rounding unit (1.5e-8 in float64), of the scale of the problem.
    - `max_steps`: gradients or products, at most.
    - `smoothness`, `strong_convexity`: L and μ; default those of the family, or else estimates: by Lanczos at the start
        (12 products), and L doubled whenever a step on the inner problem measures more. An L below half the true one
        makes the adjoint diverge, which the recomputed residual reports.

    Source: Polyak (USSR Comput. Math. Math. Phys. 4, 1964); Ehrhardt and Roberts, arXiv 2301.04764 (2023).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (POLYAK,)

    def __check_init__(self):
        check_settings("HeavyBall", self.tolerance, self.max_steps)
        check_spectrum("HeavyBall", self.strong_convexity, self.smoothness)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            return heavy_ball_step(point.params, memory, point.grad, *heavy_ball_constants(spectrum)), point.params

        constants = (self.strong_convexity, self.smoothness)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)

    def solve(self, system: AdjointSystem) -> LinearSolution:
        known, given = system.spectrum, (self.strong_convexity, self.smoothness)
        spectrum, _, spent = resolve(*given, known, system.product, system.rhs)
        step, momentum = heavy_ball_constants(spectrum)
        return iterate(system, step, momentum, self.max_steps, spent)


class FISTA(AbstractInnerSolver):
    """x₊ = y - ∇g(y)/L, y₊ = x₊ + β (x₊ - x), β = (√L - √μ)/(√L + √μ), from y = x = w.

    For every L-smooth, μ-strongly convex g: g(x_k) - g* <= (1 - √(μ/L))^k (L + μ)/2 ‖x_0 - x*‖². The gradient is
    measured at y, and y is what is returned.

    **Arguments:**

    - `tolerance`: ‖∇g‖₂ to stop at; default the square root of the rounding unit (1.5e-8 in float64).
    - `max_steps`: gradients, at most.
    - `smoothness`, `strong_convexity`: L and μ of g in w; default those of the family, or else estimates: by Lanczos at
        the start (12 products), L doubled whenever a step measures more.

    Source: Beck and Teboulle (SIAM J. Imaging Sci. 2, 2009); for strongly convex g Nesterov, Lectures on Convex
    Optimization (2018), section 2.2; Chambolle and Pock (Acta Numerica 25, 2016).
    """

    tolerance: float | None = None
    max_steps: int = 10_000
    smoothness: float | Array | None = None
    strong_convexity: float | Array | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@article{beck2009fast, author = {Beck, Amir and Teboulle, Marc},
  title = {A fast iterative shrinkage-thresholding algorithm for linear inverse problems},
  journal = {SIAM Journal on Imaging Sciences}, volume = {2}, pages = {183--202}, year = {2009}}""",
        """@article{chambolle2016introduction, author = {Chambolle, Antonin and Pock, Thomas},
  title = {An introduction to continuous optimization for imaging}, journal = {Acta Numerica},
  volume = {25}, pages = {161--319}, year = {2016}}""",
    )

    def __check_init__(self):
        check_settings("FISTA", self.tolerance, self.max_steps)
        check_spectrum("FISTA", self.strong_convexity, self.smoothness)

    def minimise(self, loss: AbstractInnerLoss, hyper: PyTree, params: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        def advance(point: Point, memory: PyTree, spectrum: Spectrum) -> tuple[PyTree, PyTree]:
            low, high = jnp.sqrt(spectrum.lower), jnp.sqrt(spectrum.upper)
            momentum = (high - low) / (high + low)
            x = jax.tree.map(lambda y, g: y - g / spectrum.upper, point.params, point.grad)
            return jax.tree.map(lambda new, old: new + momentum * (new - old), x, memory), x

        constants = (self.strong_convexity, self.smoothness)
        return descend(loss, hyper, params, tolerance, self.max_steps, constants, advance)


def _step_of(step: float | Array | None, system: AdjointSystem) -> tuple[Array, int]:
    """The step given, or 1/L."""
    if step is not None:
        return jnp.asarray(step, tree_dtype(system.rhs)), 0
    spectrum, _, spent = resolve(None, None, system.spectrum, system.product, system.rhs)
    return 1 / spectrum.upper, spent


class Neumann(AbstractAdjointSolver):
    """Truncated adjoints of fixed work: the first K terms of a series of A⁻¹∇f.

        q = t Σ_{k<K} (I - tA)^k ∇f,    which converges for 0 < t < 2/L

    No warm start is used; what is missing, (I - tA)^K A⁻¹∇f, is measured by its residual, which is part of every bound.
    The part of the system that is left stands in `stats.adjoint_left`, and more than half of it is reported as
    `adjoint_truncated`. One term, q = t ∇f, is one-step differentiation: good where one inner step (t A ≈ I) nearly
    solves the problem, and wrong by a constant factor where it does not.

    **Arguments:**

    - `terms`: K; K - 1 products.
    - `step`: t; default 1/L with the family's L, or else a Lanczos estimate (12 products).
    - `preconditioned`: whether the steps are with the preconditioner M of the inner loss in place of t, where it has
        one: Σ_{k<K} (I - M⁻¹A)^k M⁻¹∇f, for K = 1 the adjoint of one step of a (quasi-)Newton method.

    Source: Lorraine, Vicol and Duvenaud, arXiv 1911.02590 (2020); Bolte, Pauwels and Vaiter, arXiv 2305.13768 (2023).
    """

    terms: int
    step: float | Array | None = None
    preconditioned: bool = False
    tolerance: float | None = None

    truncated: ClassVar[bool] = True
    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{lorraine2020optimizing, author = {Lorraine, Jonathan and Vicol, Paul and Duvenaud, David},
  title = {Optimizing millions of hyperparameters by implicit differentiation}, booktitle = {AISTATS}, year = {2020},
  note = {arXiv:1911.02590}}""",
        """@inproceedings{bolte2023onestep, author = {Bolte, J{\\'e}r{\\^o}me and Pauwels, Edouard and Vaiter, Samuel},
  title = {One-step differentiation of iterative algorithms}, booktitle = {NeurIPS}, year = {2023},
  note = {arXiv:2305.13768}}""",
    )

    def __check_init__(self):
        if self.terms < 1:
            raise ValueError(f"Neumann: terms must be an integer >= 1; got {self.terms}.")
        check_spectrum("Neumann", None, self.step)

    @property
    def system(self) -> str:
        steps = "preconditioned steps" if self.preconditioned else "terms of the Neumann series"
        return f"A q = ∇f by {self.terms} {steps}, truncated"

    def solve(self, system: AdjointSystem) -> LinearSolution:
        if self.preconditioned:
            if system.preconditioner is None:
                raise ValueError("Neumann: preconditioned=True requires a family as inner loss.")
            step, spent = jnp.ones((), tree_dtype(system.rhs)), 0
            term = system.preconditioner(system.rhs)
        else:
            step, spent = _step_of(self.step, system)
            term = tree_scale(step, system.rhs)
        # The first term is a step from 0, which needs no product; the rest are gradient steps that never stop early.
        if self.terms == 1:
            return LinearSolution(term, count(1), count(spent), unmeasured(system.rhs))
        whole = AdjointSystem(system.product, system.rhs, jnp.zeros_like(system.residual), term)
        solve = system.preconditioner if self.preconditioned else None
        found = iterate(whole, step, None, self.terms - 1, spent, solve)
        return LinearSolution(found.value, found.steps + 1, found.products, found.curvature)
