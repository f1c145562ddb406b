"""Accuracies on a schedule fixed beforehand, step sizes by an estimated Lipschitz constant."""

import math
from typing import ClassVar, Literal, TypeAlias, get_args

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._objective import AbstractObjective
from .._trees import tree_dtype
from ._descent import account, check_positive, descend
from ._search import AbstractSearch, Move

Schedule: TypeAlias = Literal["exponential", "quadratic", "cubic"]


class HOAGState(eqx.Module):
    """The number of the step, the estimate L, and of the last step: its value and the length of its move."""

    step: Int[Array, ""]
    lipschitz: Float[Array, ""]
    last_value: Float[Array, ""]
    last_length: Float[Array, ""]


class HOAG(AbstractSearch):
    """θ_{k+1} = θ_k - h_k/L, h_k computed with ‖∇g(x̂)‖₂ <= ε_k and ‖A q - ∇f(x̂)‖₂ <= ε_k, k = 1, 2, ...

        exponential ε_k = ε 0.9^k,    quadratic ε_k = ε/k²,    cubic ε_k = ε/k³

    With Σ ε_k finite the iterates converge to a stationary point wherever L bounds the curvature of F. L is estimated:
    with s the length of the last move, it is multiplied by 0.95 where that move lowered F as a curvature below L would,

        F_k - ε_k <= F_{k-1} + ε_{k-1}(1 + s) - ½ L s²,

    is kept where F fell all the same, and is doubled where F rose. Nothing is rejected and no certificate is needed.

    **Arguments:**

    - `schedule`: `"exponential"`, `"quadratic"` or `"cubic"`.
    - `tolerance`: ε, an absolute norm; 0.1 as published.
    - `first_move`: the length of the first move, in unconstrained coordinates: L starts at ‖h₁‖/first_move.
    - `floor`: the smallest ε_k; default the square root of the rounding unit (1.5e-8 in float64), below which a solver
        may not get.

    **Raises:** `ValueError` for another schedule, or settings that are not finite and positive.

    Source: Pedregosa, Hyperparameter optimization with approximate gradient, ICML 2016 (arXiv 1602.02355).
    """

    needs_accuracy: ClassVar[bool] = True
    needs_determinism: ClassVar[bool] = True

    schedule: Schedule = "exponential"
    tolerance: float = 0.1
    first_move: float = 1.0
    floor: float | None = None

    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{pedregosa2016hyperparameter, author = {Pedregosa, Fabian},
  title = {Hyperparameter optimization with approximate gradient},
  booktitle = {International Conference on Machine Learning}, pages = {737--746}, year = {2016},
  note = {arXiv:1602.02355}}""",
    )

    def __check_init__(self):
        if self.schedule not in get_args(Schedule):
            allowed = ", ".join(repr(name) for name in get_args(Schedule))
            raise ValueError(f"HOAG: given schedule {self.schedule!r}, allowed are {allowed}.")
        check_positive("HOAG", tolerance=self.tolerance, first_move=self.first_move)
        if self.floor is not None:
            check_positive("HOAG", floor=self.floor)

    def accuracy(self, step: int, floor: float = 0.0) -> float:
        """ε_k for k = `step` >= 1, at least `floor`."""
        factor = {"exponential": 0.9**step, "quadratic": step**-2.0, "cubic": step**-3.0}[self.schedule]
        return max(self.tolerance * factor, floor)

    def init(self, hyper: PyTree) -> HOAGState:
        zero = jnp.zeros((), tree_dtype(hyper))
        return HOAGState(jnp.asarray(1), zero, zero, zero)

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: HOAGState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        unit = float(jnp.finfo(tree_dtype(hyper)).eps)
        floor = math.sqrt(unit) if self.floor is None else self.floor
        number, lipschitz = int(search_state.step), float(search_state.lipschitz)
        tolerance = self.accuracy(number, floor)
        answer, now, objective_state = spent.value_and_grad(hyper, objective_state, tolerance, tolerance)
        if lipschitz == 0.0:  # nothing has moved yet
            lipschitz = now.norm / self.first_move
        else:
            before, length = float(search_state.last_value), float(search_state.last_length)
            allowed = self.accuracy(number - 1, floor)
            if now.value - tolerance <= before + allowed * (1 + length) - 0.5 * lipschitz * length**2:
                lipschitz *= 0.95
            elif not now.value <= before:
                lipschitz *= 2
        step_size = 1 / lipschitz if lipschitz > 0 else 0.0
        state = HOAGState(
            search_state.step + 1,
            spent.array(lipschitz),
            spent.array(now.value),
            spent.array(step_size * now.norm),
        )
        moved = descend(hyper, answer.grad, spent.array(step_size))
        return Move(answer, moved, state, objective_state, numbers=spent.numbers(step_size=step_size))
