"""SOBA: one stochastic step of the inner variable and of the adjoint a call."""

from typing import ClassVar, Unpack

import equinox as eqx
from jaxtyping import PyTree

from ..._objective import Hypergradient
from .._bounds import OuterLoss
from .._optimum import Optimum
from ._base import (
    AbstractSingleLoop,
    Directions,
    Sampling,
    SingleLoopState,
    checked_count,
    directions,
    joint_steps,
    moved,
    terms,
)

DAGREOU = """@inproceedings{dagreou2022framework, author = {Dagr{\\'e}ou, Mathieu and Ablin, Pierre and Vaiter, Samuel
  and Moreau, Thomas}, title = {A framework for bilevel optimization that enables stochastic and global variance
  reduction algorithms}, booktitle = {Advances in Neural Information Processing Systems}, year = {2022},
  note = {arXiv:2201.13409}}"""


class SOBA(AbstractSingleLoop):
    """D_w = ∇_w g_I, D_v = A_I v - ∇_w f_J, D_λ = ∂_λ f_J - B_Iᵀv; w ← w - ρ D_w, v ← v - ρ D_v; the answer is D_λ.

    I and J are minibatches of the inner and the outer data, all three directions are taken at the same (w, v, λ), and
    each is unbiased over the draw of the blocks. With rates ρ_t ~ t^(-1/2) for both loops it converges like stochastic
    gradient descent; with constant ones it ends in a neighbourhood of the optimum. Memory: w and v alone.

    **Arguments:** those of [`hyprax.implicit.AbstractSingleLoop`][], and

    - `steps`: steps of w and v in each call, at fixed λ; the answer is the mean of their D_λ.

    Source: Dagréou, Ablin, Vaiter and Moreau, arXiv 2201.13409 (2022).
    """

    steps: int = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (DAGREOU,)

    def __init__(
        self,
        optimum: Optimum,
        outer_loss: OuterLoss,
        outer_data: PyTree = None,
        *,
        steps: int = 1,
        **sampling: Unpack[Sampling],
    ):
        self.steps = checked_count("SOBA", "steps", steps)
        super().__init__(optimum, outer_loss, outer_data, **sampling)

    def _step(self, hyper: PyTree, state: SingleLoopState) -> tuple[Directions, SingleLoopState]:
        point = (state.params, hyper, state.adjoint)
        inner = terms(self.inner, self.inner.blocks.draw(state.step), *point)
        outer = terms(self.outer, self.outer.blocks.draw(state.step), *point)
        step = directions(inner, outer)
        return step, moved(state, step, self._rates(hyper, state.step))

    def _advance(self, hyper: PyTree, state: SingleLoopState) -> tuple[Hypergradient, SingleLoopState]:
        return joint_steps(self, self._step, hyper, state, self.steps)
