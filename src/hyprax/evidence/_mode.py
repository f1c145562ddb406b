"""How far the weights are from their mode, in nats, and how the mode moves."""

import functools
import math
from collections.abc import Callable
from typing import Literal, TypeAlias

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._jaxprs import equations
from .._products import einsum, product
from ._designs import subset
from ._estimator import cotangents, exact_side
from ._problem import LinearisedModel, called
from ._roots import StickBreaking
from ._structures import accumulate, flat

Way: TypeAlias = Literal["weights", "functions", "conjugate gradients", "sampled"]

MOST_EXAMPLES = 2048
"""Up to so many, all examples are gone through; beyond, a sample of half as many."""
STEPS, STEPS_UNROLLED = 20, 4
"""Of conjugate gradients; the few are for convolutions on a CPU, which are slow in a loop of the compiler's."""


class Decrement(eqx.Module):
    """The Newton decrement ½ gᵀ(P0 + H)⁻¹g, g the gradient of the log joint density: the nats to the mode.

    A Newton step adds as many nats to log p(D|w)^(1/T) p(w) if that is quadratic, as for a linear model with Gaussian
    noise, where it is all that the evidence at these weights lacks; else it is an estimate of that.

    - `value`: the decrement.
    - `slack`: `value` is between `value - slack` and the decrement is at most `value`.
    - `way`: how it was obtained: by a matrix in the space of the weights or of the outputs, by conjugate gradients, or
        by conjugate gradients from a sample of the examples, which is an estimate.
    """

    value: Float[Array, ""]
    slack: Float[Array, ""]
    way: Way = eqx.field(static=True)


def _all_rows(problem: LinearisedModel) -> Float[Array, "m r c"]:
    root = StickBreaking()
    count = root.count(problem.likelihood, problem.outputs, problem.dtype)
    directions = jnp.broadcast_to(jnp.eye(count, dtype=problem.dtype), (problem.size, count, count))
    return cotangents(problem, root, None, directions)


def log_joint(
    problem: LinearisedModel, params: PyTree, data: Int[Array, " m"] | None = None, scale: float = 1.0
) -> Array:
    """(scale/T) Σ log p(y|f) - ½ (w - m)ᵀ P0 (w - m)."""
    at = eqx.tree_at(lambda p: p.params, problem, params)
    fit = at.log_likelihood(data)
    return scale * fit / problem.temperature.astype(fit.dtype) - 0.5 * problem.prior.penalty(params).astype(fit.dtype)


def dot(a: PyTree, b: PyTree) -> Array:
    parts = [jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    return functools.reduce(jnp.add, parts)


def deviations(problem: LinearisedModel) -> PyTree[Float[Array, "..."]]:
    """P0^-½, like the weights: w / P0^-½ are the coordinates in which the prior is N(m, I)."""
    variances = problem.prior.variances(problem.params)
    return jax.tree.map(lambda v, w: jnp.broadcast_to(jnp.sqrt(v), w.shape), variances, problem.params)


def scaled_gradient(problem: LinearisedModel, data: Int[Array, " m"] | None = None, scale: float = 1.0) -> PyTree:
    grad = jax.grad(lambda w: log_joint(problem, w, data, scale))(problem.params)
    return jax.tree.map(jnp.multiply, grad, deviations(problem))


def rows_times(problem: LinearisedModel, data: Int[Array, " m"] | None, scale: float = 1.0) -> tuple:
    """v -> Φ v, and its transpose, Φ = √scale Lᵀ J P0^-½: without the rows themselves, C x C numbers a datum."""
    scales = deviations(problem)
    f, shares = problem.logits(data), math.sqrt(scale) * problem.shares(data)
    transposed = jax.vmap(problem.likelihood.transposed_root_times)

    def contracted(scaled: PyTree) -> Array:
        w = jax.tree.map(jnp.multiply, scaled, scales)
        return shares.astype(f.dtype)[:, None] * transposed(f, problem.logits(data, w))

    at = jax.tree.map(jnp.divide, problem.params, scales)
    _, forward = jax.linearize(contracted, at)
    backward = jax.linear_transpose(forward, at)
    return forward, lambda c: backward(c)[0]


def _contracted_with(problem: LinearisedModel, rows: Float[Array, "m r c"]) -> tuple:
    """The same of rows at hand, which are of all data."""
    scales = deviations(problem)

    def contracted(scaled: PyTree) -> Array:
        w = jax.tree.map(jnp.multiply, scaled, scales)
        return einsum("mrc,mc->mr", rows, problem.logits(None, w)).ravel()

    at = jax.tree.map(jnp.divide, problem.params, scales)
    _, forward = jax.linearize(contracted, at)
    backward = jax.linear_transpose(forward, at)
    return forward, lambda c: backward(c)[0]


def _solved(matrix: Array, vector: Array) -> Array:
    """(matrix)⁻¹ vector, the matrix at least I."""
    return jax.scipy.linalg.cho_solve((_root(matrix), True), vector)


def _root(matrix: Array) -> Array:
    """The Cholesky factor of a matrix that is at least I; with a little added where rounding spoils it."""
    root = jnp.linalg.cholesky(matrix)
    added = 4 * matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(jnp.diagonal(matrix))
    fails = ~jnp.isfinite(root[-1, -1])
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.lax.cond(fails, lambda m: jnp.linalg.cholesky(m + added * identity), lambda m: root, matrix)


def newton(problem: LinearisedModel, damping: Float[Array, ""], key: Array | None = None) -> tuple[PyTree, Decrement]:
    """d = P0^-½ ((1 + μ) I + ΦᵀΦ)⁻¹ P0^-½ g, and ½ gᵀd: the Newton step at μ = 0.

    With a key, a sample stands for more than 2,048 examples where no matrix of the smaller side is cheap.
    """
    problem = problem.constant()
    one = 1 + damping.astype(problem.dtype)
    side = exact_side(problem.count, problem.size, problem.outputs)
    zero = jnp.zeros((), problem.dtype)
    if side == "weights":
        g = scaled_gradient(problem)
        curvature = accumulate(problem, None, _all_rows(problem), _second_moment)
        vector, unravel = jax.flatten_util.ravel_pytree(g)
        x = unravel(_solved(curvature + one * jnp.eye(vector.size, dtype=vector.dtype), vector))
        slack, way = zero, "weights"
    elif side == "functions":
        g = scaled_gradient(problem)
        rows = _all_rows(problem)
        forward, backward = _contracted_with(problem, rows)
        kernel = problem.kernel(None, rows)
        solved = _solved(kernel + one * jnp.eye(kernel.shape[0], dtype=kernel.dtype), forward(g))
        x = jax.tree.map(lambda a, b: (a - b) / one, g, backward(solved))
        slack, way = zero, "functions"
    else:
        drawn = problem.size > MOST_EXAMPLES and key is not None
        data, scale = None, 1.0
        if drawn:
            assert key is not None
            data = subset(MOST_EXAMPLES // 2, problem.size, key)
            scale = problem.size / data.shape[0]
            # Two halves that know nothing of each other: the product of their gradients has no bias from their noise.
            first, second = data[::2], data[1::2]
            g, other = (scaled_gradient(problem, half, 2 * scale) for half in (first, second))
        else:
            g = other = scaled_gradient(problem)
        forward, backward = rows_times(problem, data, scale)

        def matvec(v: PyTree) -> PyTree:
            return jax.tree.map(lambda a, b: one * a + b, v, backward(forward(v)))

        x, beyond = _conjugate_gradients(matvec, g, one, unrolled(problem))
        if drawn:
            value = jnp.maximum(0.5 * dot(other, x), 0.0)
            return x, Decrement(value.astype(problem.dtype), zero, "sampled")
        slack, way = 0.5 * beyond, "conjugate gradients"
    value = jnp.maximum(0.5 * dot(g, x), 0.0) + slack
    step = jax.tree.map(jnp.multiply, x, deviations(problem))
    return step, Decrement(value.astype(problem.dtype), slack.astype(problem.dtype), way)


def unrolled(problem: LinearisedModel) -> bool:
    if jax.default_backend() != "cpu":
        return False
    closed = eqx.filter_make_jaxpr(called)(problem.apply, problem.params, problem.hyper, problem.example)[0]
    return any(eqn.primitive.name == "conv_general_dilated" for eqn in equations(closed.jaxpr))


def radau(share: Array, alpha: Array, beta: Array, least: Array | float) -> Array:
    """θ of rᵀA⁻¹r <= θ rᵀr after one more step of conjugate gradients, A >= `least`: θ' = (θ - α)/(a (θ - α) + β).

    From θ = 1/a. gᵀA⁻¹g = gᵀx + rᵀA⁻¹r for conjugate gradients from 0, and the rest is bounded by the quadrature of
    Gauss and Radau with a node at a (Meurant and Tichý 2013, Numerical Algorithms 62): by far nearer than rᵀr/a.
    """
    further = jnp.maximum(share - alpha, 0)
    below = least * further + beta
    return jnp.where(below > 0, further / jnp.where(below > 0, below, 1), 1 / least)


def _conjugate_gradients(
    matvec: Callable[[PyTree], PyTree], b: PyTree, least: Array, unrolled: bool
) -> tuple[PyTree, Array]:
    """x of A x = b from 0, A >= `least`, and a bound of rᵀA⁻¹r; stops at a residual of 1e-4 of b."""
    start = dot(b, b)
    share = (1 / least).astype(start.dtype)
    carry = (jax.tree.map(jnp.zeros_like, b), b, b, start, jnp.zeros((), jnp.int32), share)
    enough = jnp.asarray(1e-8, start.dtype) * start

    def step(carry: tuple) -> tuple:
        x, r, p, square, count, share = carry
        q = matvec(p)
        curved = dot(p, q)
        alpha = jnp.where(curved > 0, square / jnp.where(curved > 0, curved, 1), 0)
        x = jax.tree.map(lambda x, p: x + alpha.astype(x.dtype) * p, x, p)
        r = jax.tree.map(lambda r, q: r - alpha.astype(r.dtype) * q, r, q)
        new = dot(r, r)
        beta = jnp.where(square > 0, new / jnp.where(square > 0, square, 1), 0)
        p = jax.tree.map(lambda r, p: r + beta.astype(r.dtype) * p, r, p)
        return x, r, p, new, count + 1, radau(share, alpha, beta, least.astype(share.dtype)).astype(share.dtype)

    if unrolled:
        for _ in range(STEPS_UNROLLED):
            carry = step(carry)
    else:
        carry = jax.lax.while_loop(lambda c: (c[3] > enough) & (c[4] < STEPS), step, carry)
    return carry[0], carry[5] * carry[3]


def decrement(problem: LinearisedModel, key: Array | None = None) -> Decrement:
    """½ gᵀ(P0 + H)⁻¹g of the weights of `problem`, with no derivative.

    In a matrix of the smaller side where that is small enough; else by conjugate gradients, whose value here is from
    above, over all examples up to 2,048 and over a sample of 1,024 beyond, where there is a key.
    """
    return jax.lax.stop_gradient(newton(problem, jnp.zeros((), problem.dtype), key)[1])


def way_of_mode(
    joint: Callable[[PyTree, PyTree], Array], hyper: PyTree, problem: LinearisedModel, slope: PyTree
) -> PyTree:
    """(dw*/dλ)ᵀ `slope`, w*(λ) the mode of `joint(λ, w)`, near the weights of `problem`.

    A⁻¹ by conjugate gradients, A the Hessian of -joint, with P0 + H in a matrix of the smaller side as preconditioner.
    Where A is not positive along the way, as it can be before the mode, the solution is that of P0 + H.
    """
    scales, params = deviations(problem), problem.params

    def times(v: PyTree) -> PyTree:
        along = jax.tree.map(jnp.multiply, v, scales)
        found = jax.jvp(jax.grad(functools.partial(joint, hyper)), (params,), (along,))[1]
        return jax.tree.map(lambda x, s: -x * s, found, scales)

    b = jax.tree.map(jnp.multiply, slope, scales)
    x = jax.tree.map(jnp.multiply, _preconditioned(times, factored(problem), b), scales)
    return jax.grad(lambda h: jax.jvp(functools.partial(joint, h), (params,), (x,))[1])(hyper)


def factored(problem: LinearisedModel) -> Callable[[PyTree], PyTree]:
    """v -> (I + ΦᵀΦ)⁻¹ v, in a matrix of the smaller side, factored once."""
    rows = _all_rows(problem)
    if problem.count <= problem.size * problem.outputs:
        matrix = accumulate(problem, None, rows, _second_moment)
        root = _root(matrix + jnp.eye(matrix.shape[0], dtype=matrix.dtype))

        def solve(v: PyTree) -> PyTree:
            vector, unravel = jax.flatten_util.ravel_pytree(v)
            return unravel(jax.scipy.linalg.cho_solve((root, True), vector))

        return solve
    forward, backward = _contracted_with(problem, rows)
    kernel = problem.kernel(None, rows)
    root = _root(kernel + jnp.eye(kernel.shape[0], dtype=kernel.dtype))

    def solve_in_outputs(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, v, backward(jax.scipy.linalg.cho_solve((root, True), forward(v))))

    return solve_in_outputs


def _second_moment(rows: PyTree) -> Array:
    matrix = flat(rows)
    return product(matrix.T, matrix)


def _preconditioned(matvec: Callable[[PyTree], PyTree], inverse: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
    """x of A x = b by preconditioned conjugate gradients; M⁻¹ b where A is not positive along the way."""
    z = inverse(b)
    start = dot(b, z)
    least = jnp.finfo(start.dtype).eps * start
    carry = (jax.tree.map(jnp.zeros_like, b), b, z, start, jnp.zeros((), jnp.int32), jnp.asarray(True))

    def step(carry: tuple) -> tuple:
        x, r, p, square, count, _ = carry
        q = matvec(p)
        curved = dot(p, q)
        alpha = square / jnp.where(curved > 0, curved, 1)
        x = jax.tree.map(lambda x, p: x + alpha.astype(x.dtype) * p, x, p)
        r = jax.tree.map(lambda r, q: r - alpha.astype(r.dtype) * q, r, q)
        y = inverse(r)
        new = dot(r, y)
        p = jax.tree.map(lambda y, p: y + (new / square).astype(y.dtype) * p, y, p)
        return x, r, p, new, count + 1, curved > 0

    def goes_on(carry: tuple) -> Array:
        return carry[5] & (carry[3] > least) & (carry[4] < 2 * STEPS)

    x, *_, positive = jax.lax.while_loop(goes_on, step, carry)
    return jax.tree.map(lambda a, b: jnp.where(positive, a, b), x, z)
