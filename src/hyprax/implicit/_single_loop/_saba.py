"""SABA: SOBA with the variance reduction of SAGA in all three directions."""

from typing import ClassVar, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer, PyTree

from ..._objective import Hypergradient
from ..._trees import tree_all_finite, tree_axpy, tree_sub
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
)
from ._soba import DAGREOU
from ._sums import AbstractSum, Terms, block_codes, mean_terms


class Memory(eqx.Module):
    """The last code of every block, and the mean of what they decode to."""

    codes: PyTree
    mean: Terms


def _remembered(part: AbstractSum, codes: PyTree, params: PyTree, hyper: PyTree) -> Memory:
    return Memory(codes, mean_terms(part, codes, params, hyper))


def _reduced(
    part: AbstractSum,
    memory: Memory,
    step: Integer[Array, ""],
    params: PyTree,
    hyper: PyTree,
    adjoint: PyTree,
) -> tuple[Terms, Memory]:
    """a_k - m_k + m̄ with the exact part, and the memory with m_k ← a_k; a code that is not finite is not remembered.

    The mean is worked out anew from the codes at the start of every epoch, so rounding does not build up in it.
    """
    mean = jax.lax.cond(
        step % part.blocks.count == 0,
        lambda: mean_terms(part, memory.codes, params, hyper),
        lambda: memory.mean,
    )
    block = part.blocks.draw(step)
    old = jax.tree.map(lambda leaf: leaf[block], memory.codes)
    new = part.code(block, params, hyper, adjoint)
    change = part.decode(block, tree_sub(new, old), params, hyper)
    estimate = jax.tree.map(lambda a, b, c: a + b + c, change, mean, part.exact(params, hyper, adjoint))
    finite = tree_all_finite((new, change))
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    codes = jax.tree.map(lambda leaf, code: leaf.at[block].set(code), memory.codes, kept)
    share = finite.astype(jax.tree.leaves(change)[0].dtype) / part.blocks.count
    change = jax.tree.map(lambda leaf: jnp.where(finite, leaf, jnp.zeros_like(leaf)), change)
    return estimate, Memory(codes, tree_axpy(share, change, mean))


class SABA(AbstractSingleLoop):
    """D = a_k - m_k + (1/N) Σ_l m_l for each of D_w, D_v, D_λ of SOBA; m_k ← a_k, the last contribution of block k.

    The variance of the directions vanishes as the iterates settle, so with constant rates it converges to the optimum,
    at a linear rate where the outer problem is strongly convex, at the cost per step of SOBA.

    Memory, beside w and v: for a family 2C numbers for each inner example and C for each outer one of a mean loss (C
    the parts of a prediction; a penalty needs none, and is exact at every step); for a function N (2|w| + |λ|) and M
    (|w| + |λ| + 1) numbers, N and M the numbers of inner and outer blocks. `init` fills it in one pass over the data.

    **Arguments:** those of [`hyprax.implicit.SOBA`][], and

    - `steps`: steps of w and v in each call, at fixed λ; the answer is the mean of their D_λ, with a noise as in SOBA.
    - `donate`: whether a call may use up the state it is given and update the memory in place. Worth while where the
        memory is large; the state passed to a call cannot be used again.

    Source: Dagréou, Ablin, Vaiter and Moreau, arXiv 2201.13409 (2022); Defazio, Bach and Lacoste-Julien (SAGA, 2014).
    """

    steps: int = eqx.field(static=True)
    donate: bool = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        DAGREOU,
        """@inproceedings{defazio2014saga, author = {Defazio, Aaron and Bach, Francis and Lacoste-Julien, Simon},
  title = {{SAGA}: a fast incremental gradient method with support for non-strongly convex composite objectives},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2014}}""",
    )

    def __init__(
        self,
        optimum: Optimum,
        outer_loss: OuterLoss,
        outer_data: PyTree = None,
        *,
        steps: int = 1,
        donate: bool = False,
        **sampling: Unpack[Sampling],
    ):
        self.steps, self.donate = checked_count("SABA", "steps", steps), donate
        super().__init__(optimum, outer_loss, outer_data, **sampling)

    @property
    def _in_place(self) -> bool:
        return self.donate

    def _remember(self, params: PyTree, hyper: PyTree, adjoint: PyTree) -> PyTree:
        return tuple(
            _remembered(part, block_codes(part, params, hyper, adjoint), params, hyper)
            for part in (self.inner, self.outer)
        )

    def _step(self, hyper: PyTree, state: SingleLoopState) -> tuple[Directions, SingleLoopState]:
        point = (state.params, hyper, state.adjoint)
        inner, inner_memory = _reduced(self.inner, state.memory[0], state.step, *point)
        outer, outer_memory = _reduced(self.outer, state.memory[1], state.step, *point)
        step = directions(inner, outer)
        return step, moved(state, step, self._rates(hyper, state.step), (inner_memory, outer_memory))

    def _advance(self, hyper: PyTree, state: SingleLoopState) -> tuple[Hypergradient, SingleLoopState]:
        return joint_steps(self, self._step, hyper, state, self.steps)
