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
    """One stochastic step of the inner variable and of the adjoint a call, g and f means over examples.

        D_w = ∇_w g_I,  D_v = A_I v - ∇_w f_J,  D_λ = ∂_λ f_J - B_Iᵀv;   w ← w - ρ D_w,  v ← v - ρ D_v;   answer D_λ

    I and J are minibatches of the inner and the outer data, all three directions are taken at the same (w, v, λ), and
    each is unbiased over the draw of the blocks. With rates ρ_t ~ t^(-1/2) for both loops it converges like stochastic
    gradient descent; with constant ones it ends in a neighbourhood of the optimum. Memory: w and v alone.

    **Arguments:** `optimum`, `outer_loss` and `outer_data` as for [`hyprax.ImplicitObjective`][], and

    - `rate`: the step size of the inner variable, a number or a function of the step (an optax schedule). Default for
        a family: 1/(2(𝓛 + λ_j)) for the j-th weight, 𝓛 the expected smoothness of the loss over a minibatch (Gower et
        al. 2019) and λ_j its present strength: one large strength does not slow down the other weights. Must be given
        for a function, for Poisson losses and for example weights, whose smoothness is not known.
    - `adjoint_rate`: that of the adjoint; default the same, since both steps are with the same Hessian.
    - `batch_size`, `outer_batch_size`: the most examples in a batch, for the inner and the outer loss; the outer
        default is the inner's, or all examples where there are fewer. Data are dense. Batches are fixed blocks of
        examples, drawn at random once, and gone through in a new random order each epoch.
    - `key`: a JAX random key, for the batches.
    - `steps`: steps of w and v in each call, at fixed λ; the answer is the mean of their D_λ. From 8 steps the answer
        has a noise, the spread of the draws by batch means: it says nothing of how far w and v are from the optimum.

    A call does not advance the hyperparameters: that is what the search does, such as
    `search.Optax(optax.sgd(0.01))`, at a rate small beside that of the inner problem.

    The certificate is `none`: the answer is a stochastic direction at a point that is not an optimum. `value` of an
    answer is the outer loss as the method has estimated it, noisy; `tune` reports the value of `final`, an exact solve
    on all data at the last hyperparameters. `full_batch()` gives the same problem as an `ImplicitObjective`.

    `stats`: `inner_direction_norm` ‖D_w‖, `adjoint_direction_norm` ‖D_v‖, the (largest) `inner_rate`, and
    `example_passes`: how many gradients, Hessian products and mixed products of one example's loss the call took.

    **Raises:** `ValueError` for an inner or outer loss that is not a mean over examples (seen at `init`), rates
    or sizes out of range, or an `accuracy` other than `None`: one step has no accuracy to be asked for.

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
