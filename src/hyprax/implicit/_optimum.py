"""The inner problem: what is minimised, where the search for its optimum starts, and how."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._hyper import as_floating
from .._trees import tree_dtype
from ._inner_loss import AbstractInnerLoss, AutodiffLoss
from ._inner_solvers import LBFGS, AbstractInnerSolver, CallableSolver, Minimum, Newton
from .families import GeneralisedLinear


def default_tolerance(params: PyTree) -> float:
    """√ε of the parameters' dtype: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(tree_dtype(params)).eps) ** 0.5


class Optimum(eqx.Module):
    """w*(λ) = argmin_w g(w, λ), for g smooth and strongly convex in w.

    **Arguments:**

    - `inner_loss`: a pure function `inner_loss(params, hyper, data)` to a scalar, hyper in natural units; or a family
        (see [`hyprax.families`][]), which brings its data, its starting point and its constants with it.
    - `params0`: where a cold start begins, a pytree of floating arrays; a family's default is w = 0.
    - `solver`: any [`hyprax.implicit.AbstractInnerSolver`][], or a minimiser of yours, a function as
        [`hyprax.implicit.CallableSolver`][] takes it; default [`hyprax.implicit.Newton`][] for a family,
        [`hyprax.implicit.LBFGS`][] otherwise.
    - `data`: passed to `inner_loss` as it is; not given with a family.

    **Raises:** `ValueError` for a function without `params0`, a family with `data`, or parameters that are not
    floating.
    """

    loss: AbstractInnerLoss
    params0: PyTree
    solver: AbstractInnerSolver

    def __init__(
        self,
        inner_loss: Callable[[PyTree, PyTree, Any], Float[Array, ""]] | AbstractInnerLoss,
        params0: PyTree = None,
        *,
        solver: AbstractInnerSolver | Callable[..., PyTree] | None = None,
        data: PyTree = None,
    ):
        if isinstance(inner_loss, AbstractInnerLoss):
            if data is not None:
                raise ValueError("Optimum: given a family and `data`, allowed is the family alone: it holds its data.")
            self.loss = inner_loss
            if params0 is None and isinstance(inner_loss, GeneralisedLinear):
                params0 = inner_loss.init()
        else:
            self.loss = AutodiffLoss(inner_loss, data)
        if not jax.tree.leaves(params0):
            raise ValueError("Optimum: given no parameters, allowed is `params0=`, a pytree of floating arrays.")
        self.params0 = jax.tree.map(lambda leaf: as_floating(leaf, "params0"), params0)
        structured = isinstance(self.loss, GeneralisedLinear)
        if isinstance(self.loss, GeneralisedLinear) and jnp.shape(self.params0) != self.loss.shape:
            raise ValueError(f"Optimum: given params0 {jnp.shape(self.params0)}, allowed is {self.loss.shape}.")
        if solver is None:
            solver = Newton() if structured else LBFGS()
        self.solver = solver if isinstance(solver, AbstractInnerSolver) else CallableSolver(fn=solver)

    def tolerance(self, asked: Float[Array, ""] | None) -> Float[Array, ""]:
        """The gradient norm to stop at: what was asked, else the solver's, else the default of the dtype."""
        dtype = tree_dtype(self.params0)
        if asked is not None:
            return jnp.asarray(asked, dtype)
        own = self.solver.tolerance
        return jnp.asarray(default_tolerance(self.params0) if own is None else own, dtype)

    def find(self, hyper: PyTree, start: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        """Minimise from `start` to ‖∇_w g‖₂ <= `tolerance`."""
        return self.solver.minimise(self.loss, hyper, start, tolerance)
