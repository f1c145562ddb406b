"""The published protocol at fixed tolerances, and searches that choose accuracies or steps themselves."""

import dataclasses
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hyprax as hx
from hyprax.implicit._objective import ImplicitState
from hyprax.search import AbstractSearch, Stopping

from .data import CLASSES, Cleaning, Size

STRENGTH = 2e-3
"""λ of ½ λ‖w‖²: a ridge of 1e-3 ‖w‖². It is the constant of strong convexity, too."""
TOLERANCES = ((0.1, 0.1), (0.1, 0.01), (0.01, 0.1), (0.01, 0.01))
"""Of the distance to the optimum (‖∇g‖/μ), and of the adjoint's residual."""
LOWER = {"GD": hx.implicit.GradientDescent, "HB": hx.implicit.HeavyBall, "FISTA": hx.implicit.FISTA}
ADJOINT = {"GD": hx.implicit.GradientDescent, "HB": hx.implicit.HeavyBall, "CG": hx.implicit.CG}


@dataclasses.dataclass(frozen=True)
class Track:
    """Iterations (or products) spent and the validation loss along a run, and the hyperparameters at its end."""

    spent: np.ndarray
    loss: np.ndarray
    hyper: dict
    seconds: float


class Problem:
    """The family, the data, and how an objective is made of them."""

    def __init__(self, data: Cleaning):
        self.data = data
        self.family = hx.families.Softmax(
            data.train.design,
            data.train.labels,
            penalty=STRENGTH,
            weights=lambda hyper: hyper["weights"],
            classes=CLASSES,
        )
        self.validation = (jnp.asarray(data.validation.design), jnp.asarray(data.validation.labels))
        self.squares = jnp.asarray(np.sum(data.train.design**2, axis=1))

    def start(self) -> dict:
        """All weights at the middle, σ(0)."""
        return {"weights": hx.Interval(jnp.full(len(self.squares), 0.5), 0, 1)}

    def objective(self, solver=None, adjoint=None, certifier=None) -> hx.ImplicitObjective:
        """Default solvers and certificate where none are given."""
        return hx.ImplicitObjective(
            hx.Optimum(self.family, solver=solver),
            self.family.mean_loss,
            self.validation,
            adjoint=adjoint,
            certifier=certifier,
        )

    def exact(self, hyper: dict) -> tuple[float, jax.Array]:
        """The validation loss at the optimum for these weights, and that optimum."""
        objective = self.objective(certifier=hx.implicit.NoCertifier())
        answer, state = objective.value(hyper, objective.init(hyper), hx.Accuracy(jnp.asarray(1e-10), jnp.asarray(1.0)))
        return float(answer.value), state.params


@eqx.filter_jit
def _constants(weights: jax.Array, squares: jax.Array) -> jax.Array:
    """L = (1/n) Σ ω_i ‖x_i‖² + λ, the published bound of the curvature, for the weights as they are."""
    return jnp.mean(weights * squares) + STRENGTH


def published(problem: Problem, lower: str, adjoint: str, tolerances: tuple[float, float], size: Size) -> Track:
    """Gradient descent with the published step, tolerances, constants, warm and cold starts, and counting.

    The lower level starts at its last solution, the adjoint at 0. Counted are iterations of both; the lower level stops
    where the budget is spent.
    """
    budget, plain = size.budget, {"preconditioner": False} if adjoint == "CG" else {}
    adjoint_solver = ADJOINT[adjoint](max_steps=budget, **plain)
    first = problem.objective(LOWER[lower](max_steps=budget, smoothness=1.0), adjoint_solver, hx.implicit.NoCertifier())
    accuracy = hx.Accuracy(jnp.asarray(STRENGTH * tolerances[0]), jnp.asarray(tolerances[1]))
    hyper = evaluated = problem.start()
    state = first.init(hyper)
    total, spent, loss, began = 0, [], [], time.perf_counter()
    while total < budget:
        constant, left = _constants(hyper["weights"].value, problem.squares), jnp.asarray(budget - total)
        objective = _with_constants(first, constant, left, adjoint != "CG")
        cold = ImplicitState(state.params, jnp.zeros_like(state.adjoint))
        answer, state = objective.value_and_grad(hyper, cold, accuracy)
        value, inner, outer = jax.device_get((answer.value, answer.stats.inner_steps, answer.stats.adjoint_steps))
        spent.append(total + int(inner))
        loss.append(float(value))
        evaluated, total = hyper, total + int(inner) + int(outer)
        hyper = _moved(hyper, answer.grad, size.step)
    return Track(np.array(spent), np.array(loss), evaluated, time.perf_counter() - began)


@eqx.filter_jit
def _moved(hyper: dict, grad: dict, step: float) -> dict:
    return jax.tree.map(lambda x, h: x - step * h, hyper, grad)


def _with_constants(
    objective: hx.ImplicitObjective, constant: jax.Array, left: jax.Array, stationary: bool
) -> hx.ImplicitObjective:
    """The same objective with L, and the iterations left, as arrays: so nothing is compiled again."""

    def fields(o: Any) -> tuple:
        return o.optimum.solver.smoothness, o.optimum.solver.max_steps, o.adjoint.max_steps

    def constants(o: Any) -> tuple:
        return o.adjoint.smoothness, o.adjoint.strong_convexity

    objective = eqx.tree_at(fields, objective, (constant, left, left))
    if not stationary:
        return objective
    given = (constant, jnp.asarray(STRENGTH))
    return eqx.tree_at(constants, objective, given, is_leaf=lambda x: x is None)


def searched(
    problem: Problem, objective: hx.ImplicitObjective, search: AbstractSearch, budget: int, until: float = -math.inf
) -> Track:
    """A search until it has spent the budget in products, gradients of g and Hessian products, or reached a loss."""
    total, spent, loss, evaluated = 0.0, [], [], problem.start()

    def look(step) -> bool:
        nonlocal total, evaluated
        evaluated = step.hyper
        spent.append(total)
        loss.append(step.value)
        total += step.stats.search_products
        return total > budget or step.value <= until

    began = time.perf_counter()
    hx.tune(
        objective,
        problem.start(),
        search=search,
        steps=budget,
        stop=Stopping(gradient=0.0, patience=None),
        callbacks=[look],
        progress=False,
    )
    return Track(np.array(spent), np.array(loss), evaluated, time.perf_counter() - began)
