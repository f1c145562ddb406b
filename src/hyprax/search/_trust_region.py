"""Steps within a region in which a quasi-Newton model is trusted, the region sized by what values prove of it."""

import math
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PyTree

from ._quasi_newton import MOST_TRIALS, AbstractQuasiNewton, Local, QuasiNewtonState, Taken, Walk, localised

MOST_PRODUCTS = 50


def _any_curvature(move: Array, turn: Array) -> Bool[Array, ""]:
    return jnp.linalg.norm(move) > 0


class _Model(eqx.Module):
    """m(s) = hᵀs + ½ sᵀBs, B = σI + Ψ M⁻¹ Ψᵀ: the symmetric rank-one matrix of the pairs, negative curvature and all.

    With moves S and turns Y, Ψ = Y - σS and M = SᵀY - σSᵀS (its lower triangle, mirrored). M⁻¹ is taken on the
    eigenvalues that are well away from 0: the others are pairs whose formula would divide by rounding.
    """

    grad: Float[Array, " N"]
    sigma: Float[Array, ""]
    psi: Float[Array, "m N"]
    middle: Float[Array, "m m"]

    def curved(self, s: Float[Array, " N"]) -> Float[Array, " N"]:
        """B s."""
        return self.sigma * s + (self.middle @ (self.psi @ s)) @ self.psi

    def __call__(self, s: Float[Array, " N"]) -> Float[Array, ""]:
        return jnp.vdot(self.grad, s) + 0.5 * jnp.vdot(s, self.curved(s))


def _model(local: Local, state: QuasiNewtonState) -> _Model:
    """The model on the free coordinates."""
    used = (jnp.arange(state.moves.shape[0]) < state.stored).astype(local.grad.dtype)
    s, y = (pairs * local.free[None] * used[:, None] for pairs in (state.moves, state.turns))
    along = s @ y.T
    product, steep = jnp.diagonal(along), jnp.sum(y * y, axis=1)
    convex = (product > 1e-8 * jnp.linalg.norm(s, axis=1) * jnp.sqrt(steep)) & (used > 0)
    newest = jnp.argmax(convex)
    sigma = jnp.where(jnp.any(convex), steep[newest] / jnp.where(convex[newest], product[newest], 1), 0.0)
    psi = y - sigma * s
    # The pairs stand newest first: above the diagonal are newer moves with older turns, as the compact form takes them.
    lower = jnp.triu(along) - sigma * jnp.triu(s @ s.T)
    values, vectors = jnp.linalg.eigh(lower + jnp.triu(lower, 1).T)
    kept = jnp.abs(values) > 1e-8 * jnp.maximum(jnp.max(jnp.abs(values)), 1e-300)
    middle = (vectors * jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)[None]) @ vectors.T
    return _Model(local.grad * local.free, sigma.astype(psi.dtype), psi, middle)


def _to_the_edge(s: Array, p: Array, radius: Array) -> Array:
    """s + τ p on the sphere, τ >= 0."""
    a, b, c = jnp.vdot(p, p), jnp.vdot(s, p), jnp.vdot(s, s) - radius**2
    root = jnp.sqrt(jnp.maximum(b * b - a * c, 0))
    return s + jnp.where(b > 0, -c / (b + root), (root - b) / jnp.where(a > 0, a, 1)) * p


def _within(model: _Model, radius: Array) -> Array:
    """The model's minimiser in ‖s‖ <= radius by Steihaug: conjugate gradients, to the edge if they leave it or bend."""
    g = model.grad
    tolerance = jnp.minimum(0.1, jnp.sqrt(jnp.linalg.norm(g))) * jnp.linalg.norm(g)

    def go_on(carry: tuple) -> Array:
        _, r, _, done, count = carry
        return ~done & (jnp.linalg.norm(r) > tolerance) & (count < MOST_PRODUCTS)

    def step(carry: tuple) -> tuple:
        s, r, p, _, count = carry
        curved = model.curved(p)
        bend = jnp.vdot(p, curved)
        alpha = jnp.vdot(r, r) / jnp.where(bend > 0, bend, 1)
        leaves = (bend <= 1e-14 * jnp.vdot(p, p)) | (jnp.linalg.norm(s + alpha * p) >= radius)
        after = jnp.where(leaves, _to_the_edge(s, p, radius), s + alpha * p)
        residual = r + alpha * curved
        beta = jnp.vdot(residual, residual) / jnp.maximum(jnp.vdot(r, r), 1e-300)
        return after, residual, beta * p - residual, leaves, count + 1

    start = (jnp.zeros_like(g), g, -g, jnp.asarray(False), jnp.asarray(0))
    return jax.lax.while_loop(go_on, step, start)[0]


@eqx.filter_jit
def _planned(
    state: QuasiNewtonState, hyper: PyTree, grad: PyTree
) -> tuple[Local, QuasiNewtonState, tuple[_Model, Array]]:
    """The model, and a first radius: a move of 1 in the largest coordinate along -h."""
    local, state = localised(state, hyper, grad, _any_curvature)
    model = _model(local, state)
    return local, state, (model, local.norm / jnp.maximum(jnp.max(jnp.abs(model.grad)), 1e-300))


@eqx.filter_jit
def _displaced(local: Local, state: QuasiNewtonState, model: _Model, radius: Array) -> tuple[PyTree, Array, Array]:
    """The point that the model prefers within the radius and the bounds, the fall it predicts, and the move's length.

    A bound may spoil the model's step; a step along -h that keeps to the bounds is taken where it promises more.
    """
    low, high = (ravel_pytree(bound)[0] for bound in (state.low, state.high))

    def kept(s: Array) -> Array:
        return jnp.clip(local.point + s, low, high) - local.point

    best = kept(_within(model, radius))
    bend = jnp.vdot(model.grad, model.curved(model.grad))
    steepest = jnp.where(bend > 0, local.norm**2 / jnp.where(bend > 0, bend, 1), jnp.inf)
    plain = kept(-jnp.minimum(steepest, radius / local.norm) * model.grad)
    move = jnp.where(model(best) <= model(plain), best, plain)
    return ravel_pytree(state.last_hyper)[1](local.point + move), -model(move), jnp.linalg.norm(move)


class TrustRegion(AbstractQuasiNewton):
    """θ ← θ + argmin {hᵀs + ½ sᵀBs : ‖s‖ <= Δ}, B of rank-one updates, Δ sized by how well the model foretells F.

    For criteria that are not convex: unlike [`hyprax.search.LBFGS`][] it uses negative curvature, and where a step is
    refused it turns as it shortens. Nothing is to be tuned. A step takes one hypergradient and, as a rule, one value.

    1. *Accuracy* is chosen as by [`hyprax.search.LBFGS`][]: as loose as certificates allow, tightened where a step
       cannot be judged.
    2. *Step.* The model is minimised in the ball by truncated conjugate gradients (Steihaug), in unconstrained
       coordinates, clipped to the bounds; coordinates that rest at a bound and would leave it stand still.
    3. *Judgement.* ρ = fall of F / fall of the model. The step is accepted where ρ >= `acceptance`, provably where
       values have certificates. Δ is halved, or more, below ρ = ¼ and doubled above ¾ if the step reached the edge.

    **Arguments:**

    - `memory`, `strengths`, `relative_error`: as for [`hyprax.search.LBFGS`][].
    - `acceptance`: the least ρ of a step.
    - `longest`: the longest that Δ becomes, in units of the square root of the number of hyperparameters.

    A run ends with `precision_reached` where no step lowers F by more than values are known to. Noisy objectives are
    refused.

    **Raises:** `ValueError` for settings out of range.

    Source: Conn, Gould and Toint, Math. Programming 50 (1991), for rank-one updates in a trust region; Byrd, Nocedal
    and Schnabel, Math. Programming 63 (1994), for their compact form; Steihaug, SIAM J. Numer. Anal. 20 (1983).
    """

    memory: int = 10
    strengths: tuple[float, float] = (1e-8, 1e6)
    relative_error: float = 0.03
    acceptance: float = 1e-3
    longest: float = 5.0

    citations: ClassVar[tuple[str, ...]] = (
        """@article{conn1991convergence, author = {Conn, Andrew R. and Gould, Nicholas I. M. and Toint, Philippe L.},
  title = {Convergence of quasi-{Newton} matrices generated by the symmetric rank one update}, journal = {Mathematical
  Programming}, volume = {50}, pages = {177--195}, year = {1991}}""",
    )

    def __check_init__(self):
        if not 0 < self.acceptance < 0.25:
            raise ValueError(f"TrustRegion: acceptance must lie between 0 and 0.25; got {self.acceptance}.")

    def _planned(self, state: QuasiNewtonState, hyper: PyTree, grad: PyTree) -> tuple[Local, QuasiNewtonState, PyTree]:
        return _planned(state, hyper, grad)

    def _taken(self, walk: Walk, local: Local, state: QuasiNewtonState, plan: PyTree) -> Taken | None:
        model, first = plan
        base = walk.begin()
        radius = walk.radius if walk.radius > 0 else float(first)
        for _ in range(MOST_TRIALS):
            moved, *numbers = _displaced(local, state, model, walk.spent.array(radius))
            predicted, length = map(float, jax.device_get(numbers))
            trial, trial_state = walk.value(moved, walk.state)
            if not (trial.sound and math.isfinite(trial.value)):
                radius = length / 8
                continue
            fall, (width, rounding) = base.value - trial.value, walk.width(trial)
            asked = self.acceptance * predicted
            wanted = 0.3 * max(abs(fall - asked), 0.1 * predicted)
            if abs(fall - asked) <= width and walk.tightened(trial, wanted):
                base = walk.begun()
                continue
            accepted = fall >= asked and fall > rounding
            if fall < 0.25 * predicted:
                shorter = 0.5 * predicted / max(predicted - fall, 1e-300)  # the foot of a parabola
                radius = length * min(max(shorter, 0.1), 0.5)
            elif fall > 0.75 * predicted and length > 0.8 * radius:
                radius = min(2 * radius, self.longest * math.sqrt(local.point.size))
            walk.radius = radius
            if accepted:
                return Taken(moved, length, fall - width, trial_state)
            if predicted <= width:  # below what the values can tell
                break
        walk.radius = 0.0
        return None
