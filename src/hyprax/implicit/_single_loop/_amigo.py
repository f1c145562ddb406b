"""AmIGO: a few warm-started stochastic steps of the inner problem, then of the adjoint, then a direction."""

from typing import ClassVar, Unpack

import equinox as eqx
import jax
from jaxtyping import Array, Integer, PyTree

from ..._objective import Hypergradient
from ..._trees import tree_axpy, tree_sub
from .._bounds import OuterLoss
from .._optimum import Optimum
from ._base import AbstractSingleLoop, Sampling, SingleLoopState, checked_count, directions, terms


class AmIGO(AbstractSingleLoop):
    """T steps w ← w - ρ ∇_w g_I; then K steps v ← v - ρ (A_I(w) v - ∇_w f_J(w)); the answer is ∂_λ f_J - B_Iᵀ v.

    Each step draws a new inner block I; one outer block J serves the adjoint and the answer of a call. Both loops start
    from where the last call ended. As T and K grow and batches become all of the data, the answer becomes the
    hypergradient of [`hyprax.ImplicitObjective`][]. Memory: w and v alone.

    **Arguments:** those of [`hyprax.implicit.SOBA`][], and

    - `inner_steps`, `adjoint_steps`: T and K. A rate that is a function of the step is given the number of the call.

    Source: Arbel and Mairal, arXiv 2111.14580 (ICLR 2022).
    """

    inner_steps: int = eqx.field(static=True)
    adjoint_steps: int = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{arbel2022amortized, author = {Arbel, Michael and Mairal, Julien},
  title = {Amortized implicit differentiation for stochastic bilevel optimization},
  booktitle = {International Conference on Learning Representations}, year = {2022}, note = {arXiv:2111.14580}}""",
    )

    def __init__(
        self,
        optimum: Optimum,
        outer_loss: OuterLoss,
        outer_data: PyTree = None,
        *,
        inner_steps: int = 10,
        adjoint_steps: int = 10,
        **sampling: Unpack[Sampling],
    ):
        self.inner_steps = checked_count("AmIGO", "inner_steps", inner_steps)
        self.adjoint_steps = checked_count("AmIGO", "adjoint_steps", adjoint_steps)
        super().__init__(optimum, outer_loss, outer_data, **sampling)

    def _advance(self, hyper: PyTree, state: SingleLoopState) -> tuple[Hypergradient, SingleLoopState]:
        rate, adjoint_rate = self._rates(hyper, state.step)
        count = self.inner_steps + self.adjoint_steps + 1
        inner, outer_block = self.inner, self.outer.blocks.draw(state.step)

        def block(i: Integer[Array, ""] | int) -> Array:
            return inner.blocks.draw(count * state.step + i)

        def descend(i: Integer[Array, ""], params: PyTree) -> PyTree:
            return tree_axpy(-rate, terms(inner, block(i), params, hyper, state.adjoint).gradient, params)

        params = jax.lax.fori_loop(0, self.inner_steps, descend, state.params)
        outer = terms(self.outer, outer_block, params, hyper, state.adjoint)

        def solve(i: Integer[Array, ""], adjoint: PyTree) -> PyTree:
            product = terms(inner, block(self.inner_steps + i), params, hyper, adjoint).second
            return tree_axpy(-adjoint_rate, tree_sub(product, outer.gradient), adjoint)

        adjoint = jax.lax.fori_loop(0, self.adjoint_steps, solve, state.adjoint)
        last = terms(inner, block(count - 1), params, hyper, adjoint)
        # A step of each loop takes one derivative an example, the last block those of a joint step.
        passes = (count - 1) * inner.blocks.rows_of_a_block + inner.passes_of_a_block + self.outer.passes_of_a_block
        new = SingleLoopState(params, adjoint, state.step + 1)
        return self._answer(hyper, state, new, directions(last, outer), passes)
