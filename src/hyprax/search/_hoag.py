"""Accuracies on a schedule fixed beforehand, step sizes by an estimated Lipschitz constant."""

import math
from typing import ClassVar, Literal, TypeAlias, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from .._objective import AbstractObjective, Hypergradient
from .._trees import tree_dtype, tree_norm
from ._descent import account, check_positive, descend
from ._search import AbstractSearch, Move

Schedule: TypeAlias = Literal["exponential", "quadratic", "cubic"]


class HOAGState(eqx.Module):
    """The number of the step, the estimate L, and where the last accepted move came to: θ, h, F and its length."""

    step: Int[Array, ""]
    lipschitz: Float[Array, ""]
    origin: PyTree
    grad: PyTree
    value: Float[Array, ""]
    length: Float[Array, ""]


class HOAG(AbstractSearch):
    """θ_{k+1} = θ_k - h_k/L, h_k computed with ‖∇g(x̂)‖₂ <= ε_k and ‖A q - ∇f(x̂)‖₂ <= ε_k, k = 1, 2, ...

        exponential ε_k = ε 0.9^k,    quadratic ε_k = ε/k²,    cubic ε_k = ε/k³

    With Σ ε_k finite the iterates converge to a stationary point wherever L bounds the curvature of F. L is estimated:
    with s the length of the last move, it is multiplied by 0.95 where that move lowered F as a curvature below L would,

        F_k - ε_k <= F_{k-1} + ε_{k-1}(1 + s) - ½ L s²,

    and is kept where F fell all the same. Where F rose the move is taken back, and L doubled, and made large enough to
    halve the move. No certificate is needed. It differs from the publication in three ways:

    1. Values are computed to `floor` at every step: at accuracies that change they could not be compared, and the
       lowest would be that of the loosest.
    2. Moves that raise F are taken back.
    3. A move is at most twice as long as the last that was accepted: L is estimated where F is flat too, and says
       nothing there of where F is steep.

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
            raise ValueError(f"HOAG: schedule must be one of {allowed}; got {self.schedule!r}.")
        check_positive("HOAG", tolerance=self.tolerance, first_move=self.first_move)
        if self.floor is not None:
            check_positive("HOAG", floor=self.floor)

    def accuracy(self, step: int, floor: float = 0.0) -> float:
        """ε_k for k = `step` >= 1, at least `floor`."""
        factor = {"exponential": 0.9**step, "quadratic": step**-2.0, "cubic": step**-3.0}[self.schedule]
        return max(self.tolerance * factor, floor)

    def init(self, hyper: PyTree) -> HOAGState:
        zero = jnp.zeros((), tree_dtype(hyper))
        nothing = jax.tree.map(jnp.zeros_like, hyper)
        return HOAGState(jnp.asarray(1), zero, hyper, nothing, jnp.full_like(zero, jnp.inf), zero)

    def step(
        self, objective: AbstractObjective, hyper: PyTree, search_state: HOAGState, objective_state: PyTree
    ) -> Move:
        spent = account(objective, hyper)
        unit = float(jnp.finfo(tree_dtype(hyper)).eps)
        floor = math.sqrt(unit) if self.floor is None else self.floor
        last, number, lipschitz = search_state, int(search_state.step), float(search_state.lipschitz)
        tolerance = self.accuracy(number, floor)
        answer, now, objective_state = spent.value_and_grad(hyper, objective_state, tolerance, tolerance)
        value = now.value
        if tolerance > floor:
            _, exact, objective_state = spent.value(hyper, objective_state, floor, floor)
            value = exact.value if exact.sound else value
        before, length, first = float(last.value), float(last.length), lipschitz == 0.0
        slack = 8 * unit * abs(value)
        if first:
            lipschitz, longest = now.norm / self.first_move, self.first_move
        elif math.isfinite(value) and value <= before + slack:
            allowed = self.accuracy(number - 1, floor)
            if value - tolerance <= before + allowed * (1 + length) - 0.5 * lipschitz * length**2:
                lipschitz *= 0.95
            longest = 2 * length
        else:  # back to where the move began, and half as far
            longest = length / 2
            norm = float(tree_norm(last.grad))
            lipschitz = 2 * lipschitz
            step_size = min(1 / lipschitz, longest / norm) if norm > 0 else 0.0
            state = HOAGState(
                last.step + 1, spent.array(lipschitz), last.origin, last.grad, last.value, spent.array(step_size * norm)
            )
            moved = descend(last.origin, last.grad, spent.array(step_size))
            return self._move(answer, moved, state, objective_state, value, spent.numbers(step_size=step_size))
        step_size = min(1 / lipschitz, longest / now.norm) if lipschitz > 0 and now.norm > 0 else 0.0
        state = HOAGState(
            last.step + 1,
            spent.array(lipschitz),
            hyper,
            answer.grad,
            spent.array(value),
            spent.array(step_size * now.norm),
        )
        moved = descend(hyper, answer.grad, spent.array(step_size))
        return self._move(answer, moved, state, objective_state, value, spent.numbers(step_size=step_size))

    def _move(
        self, answer: Hypergradient, moved: PyTree, state: HOAGState, inner: PyTree, value: float, numbers: dict
    ) -> Move:
        return Move(answer, moved, state, inner, value=jnp.asarray(value), numbers=numbers)
