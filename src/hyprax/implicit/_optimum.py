"""The inner problem: what is minimised, where the search for its optimum starts, and how."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from .._hyper import validated
from .._objective import AbstractObjective
from .._result import Result
from .._trees import tree_dtype, tree_norm
from ._answers import RESULTS
from ._inner_loss import AbstractFunctionLoss, AbstractInnerLoss, AutodiffLoss
from ._inner_solvers import LBFGS, AbstractInnerSolver, CallableSolver, Minimum, Newton
from .families._class_weights import unweighted
from .families._generalised_linear import GeneralisedLinear
from .families._losses import LogisticLoss, SoftmaxLoss
from .families._mean_loss import MeanLoss


def default_tolerance(params: PyTree) -> float:
    """√ε of the parameters' dtype: 1.5e-8 in float64, 3.5e-4 in float32."""
    return float(jnp.finfo(tree_dtype(params)).eps) ** 0.5


def rounding(params: PyTree, scale: Float[Array, ""]) -> Float[Array, ""]:
    """Below what a residual made of terms of the size `scale` says no more: 16 ε of it."""
    dtype = tree_dtype(params)
    return (16 * float(jnp.finfo(dtype).eps) * scale).astype(dtype)


class Optimum(eqx.Module):
    """w*(λ) = argmin_w g(w, λ), for g smooth and strongly convex in w.

    **Arguments:**

    - `inner_loss`: a pure function `inner_loss(params, hyper, data)` to a scalar, hyper in natural units; or a family
        (see [`hyprax.families`][]), which brings its data, its starting point and its constants with it.
    - `params0`: where a cold start begins, a pytree of floating arrays; a family's default is w = 0.
    - `solver`: any [`hyprax.implicit.AbstractInnerSolver`][]; default [`hyprax.implicit.Newton`][] for a family,
        [`hyprax.implicit.LBFGS`][] otherwise. Or a minimiser of yours that JAX can trace, a function
        `fn(value_and_grad, params0, tolerance, max_steps) -> params`: nothing it says is believed, and the gradient
        norm of what it returns is measured.
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
        structured = isinstance(inner_loss, AbstractInnerLoss)
        if structured and data is not None:
            raise ValueError("Optimum: data must not be given beside a family: the family holds its data.")
        loss = inner_loss if isinstance(inner_loss, AbstractInnerLoss) else AutodiffLoss(inner_loss, data)
        self.loss, self.params0 = loss.begin(params0)
        if solver is None:
            solver = LBFGS() if isinstance(self.loss, AbstractFunctionLoss) else Newton()
        self.solver = solver if isinstance(solver, AbstractInnerSolver) else CallableSolver(fn=solver)

    def tolerance(self, asked: Float[Array, ""] | None, hyper: PyTree) -> Float[Array, ""]:
        """The gradient norm to stop at: what was asked, else the solver's, else √ε of the scale of the problem."""
        dtype = tree_dtype(self.params0)
        own = self.solver.tolerance if asked is None else asked
        if own is not None:
            return jnp.asarray(own, dtype)
        return (default_tolerance(self.params0) * self.loss.scale(self.params0, hyper)).astype(dtype)

    def reachable(self, asked: Float[Array, ""] | None, hyper: PyTree) -> Float[Array, ""]:
        """The gradient norm that passes for `tolerance`: at least what rounding leaves of any gradient.

        Searches ask for a share of what the last solve has reached, and an exact one reaches rounding.
        """
        tolerance = self.tolerance(asked, hyper)
        if asked is None:
            return tolerance
        return jnp.maximum(tolerance, rounding(self.params0, self.loss.scale(self.params0, hyper)))

    def find(self, hyper: PyTree, start: PyTree, tolerance: Float[Array, ""]) -> Minimum:
        """Minimise from `start` to ‖∇_w g‖₂ <= `tolerance`."""
        return self.solver.minimise(self.loss, hyper, start, tolerance)

    def labels(self) -> np.ndarray:
        """The targets of a family, one a row: as splitters take them."""
        return np.asarray(family_of(self).targets)

    def stratify(self) -> bool:
        """Whether the targets of a family are classes."""
        return isinstance(unweighted(family_of(self).loss), LogisticLoss | SoftmaxLoss)

    def held_out(self, training: np.ndarray, held_out: np.ndarray, **settings: Any) -> AbstractObjective:
        """F(λ) = (1/m) Σ_{i in S} c_i ℓ(x_iᵀw(λ); y_i), w(λ) the optimum of a family on its training rows T alone.

            w(λ) = argmin_w (1/n) Σ_{i in T} ω_i ℓ(x_iᵀw; y_i) + ½ Σ_j λ_j w_j²,    n = all rows, not those of T

        so that λ means the same on the fold as on all rows: a prior of precision n λ. Rows that are left out are zeros,
        and every fold of a family has the shape of the whole: all share one compiled program.

        **Arguments:**

        - `training`, `held_out`: the rows T to fit on and the m rows S to judge on, booleans `(n,)`.
        - `settings`: of [`hyprax.ImplicitObjective`][]; `noise=`, [`hyprax.implicit.ExampleNoise`][] for the spread
            over the held-out examples (default: not computed); `weights=`, c, `(n,)`, numbers >= 0: what held-out rows
            count. Default 1, also where the family has example weights ω, which are those of the fit.

        **Returns:** an objective.

        **Raises:** `ValueError` for an inner loss that is no family, or masks of another length or without a row.
        """
        from ._held_out import HeldOut  # it is made of an objective, which is made of this

        return HeldOut(self, training, held_out, **settings)

    def together(self, hyper: PyTree, sets: Any) -> Any:
        """The folds of several sets of masks in one program; `None` for families that have none (sparse, large)."""
        from ._folds_together import folds_together  # as above

        return folds_together(self.loss, hyper, sets)

    def shaped(self, flat: Any) -> Any:
        """Weights of `together` in the shape of the family's."""
        return flat.reshape(family_of(self).shape)

    def refit(self, hyper: PyTree) -> "Refit":
        """The optimum on all rows, at strengths tuned on folds: the prior is kept, so they are as they were."""
        hyper = validated(hyper)
        return _refit(self, hyper)


def family_of(optimum: Optimum) -> GeneralisedLinear:
    if not isinstance(optimum.loss, GeneralisedLinear):
        raise ValueError(
            "hx.Optimum: folds and refits need a family (hx.families), which knows its rows; got an inner loss of "
            "unknown structure. Give hx.search.CrossValidated one objective a fold instead."
        )
    return optimum.loss


class Refit(eqx.Module):
    """A family fitted on all of its rows at given hyperparameters.

    - `params`: the weights.
    - `gradient_norm`, `tolerance`: ‖∇g‖ at them, and what was asked for.
    - `result`: `successful` where it was reached.
    """

    params: PyTree
    gradient_norm: Float[Array, ""]
    tolerance: Float[Array, ""]
    result: Result


@eqx.filter_jit
def _refit(optimum: Optimum, hyper: PyTree) -> Refit:
    tolerance = optimum.tolerance(None, hyper)
    found = optimum.find(hyper, optimum.params0, tolerance)
    norm = tree_norm(found.point.grad)
    result = RESULTS.where(norm <= tolerance, RESULTS.successful, RESULTS.inner_not_converged)
    result = RESULTS.where(undetermined(optimum.loss), RESULTS.no_optimum, result)
    return Refit(found.point.params, norm, tolerance, result)


def undetermined(loss: AbstractInnerLoss) -> Bool[Array, ""]:
    """Whether a family's columns without penalty are known to have no single optimum."""
    if isinstance(loss, GeneralisedLinear) and loss.free is not None:
        return jnp.logical_not(loss.free.determined)
    return jnp.asarray(False)


def matched(optimum: Optimum, outer_loss: Any, outer_data: PyTree) -> tuple[Optimum, Any, PyTree]:
    """The inner problem, the outer loss and its data in one dtype, the data as arrays that have been looked at.

    **Raises:** `ValueError` for outer data that are no arrays, or that a family's mean loss cannot take.
    """
    if isinstance(outer_loss, MeanLoss):
        outer_data = outer_loss.arrays(outer_data, optimum.params0)
        added = isinstance(optimum.loss, GeneralisedLinear) and optimum.loss.offset is not None
        if added != (len(outer_data) == 3):
            had, found = ("an offset", "none") if added else ("no offset", "one")
            raise ValueError(
                f"outer_data must be as the family is: the family has {had}, outer_data {found}. Give (inputs, "
                "targets, offset) beside a family with offset=, and (inputs, targets) beside one without."
            )
        loss, params0 = optimum.loss.begin(optimum.params0.astype(outer_data[0].dtype))
        optimum = eqx.tree_at(lambda o: (o.loss, o.params0), optimum, (loss, params0))
        return optimum, outer_loss.of_rows(outer_data), outer_data

    def array(path: Any, leaf: Any) -> Any:
        kept = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if kept.dtype.kind in "OSUM":
            where = "outer_data" + jax.tree_util.keystr(path)
            raise ValueError(f"{where} must be an array of numbers; got {type(leaf).__name__} of dtype {kept.dtype}.")
        return jnp.asarray(kept)

    return optimum, outer_loss, jax.tree_util.tree_map_with_path(array, outer_data)
