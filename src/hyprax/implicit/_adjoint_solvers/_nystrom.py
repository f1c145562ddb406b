"""The Nyström method: a damped low-rank stand-in for A, solved exactly."""

from typing import ClassVar

import equinox as eqx
from jax.flatten_util import ravel_pytree

from ..._products import product
from ._preconditioners import check_rank, nystrom_sketch
from ._solver import AbstractAdjointSolver, AdjointSystem, LinearSolution, count, unmeasured


class NystromSolver(AbstractAdjointSolver):
    """q = (A_r + ρI)⁻¹∇f = ∇f/ρ - U (1/ρ - 1/(v + ρ)) Uᵀ∇f, A_r = U diag(v) Uᵀ the Nyström approximation of rank r.

    r products, no iteration, no warm start. It solves ANOTHER system, which certificates name: q differs from A⁻¹∇f by
    what the rank leaves out and by the damping. The residual with the true A is measured and reported. In the
    original, A_r is made from r columns of A: with C those columns and M its rows among them, q = ∇f/ρ - ρ⁻²C (M +
    ρ⁻¹CᵀC)⁻¹Cᵀ∇f; here from r random products, which is the same formula in a stable form and needs no single columns.

    **Arguments:**

    - `rank`: r.
    - `damping`: ρ > 0.
    - `seed`: of the random matrix.

    Source: Hataya and Yamada, arXiv 2302.09726 (2023); Frangella, Tropp and Udell, arXiv 2110.02820 (2023).
    """

    rank: int
    damping: float = eqx.field(static=True, default=1e-2)
    seed: int = 0
    tolerance: float | None = None

    truncated: ClassVar[bool] = True
    solves_indefinite: ClassVar[bool] = False
    citations: ClassVar[tuple[str, ...]] = (
        """@inproceedings{hataya2023nystrom, author = {Hataya, Ryuichiro and Yamada, Makoto},
  title = {Nystr{\\"o}m method for accurate and scalable implicit differentiation}, booktitle = {AISTATS},
  year = {2023}, note = {arXiv:2302.09726}}""",
    )

    def __check_init__(self):
        check_rank("NystromSolver", self.rank)
        if not self.damping > 0:
            raise ValueError(f"NystromSolver: damping must be > 0; got {self.damping}.")

    @property
    def system(self) -> str:
        return f"(A_r + {self.damping:g} I) q = ∇f, A_r the Nyström approximation of A of rank {self.rank}"

    def solve(self, system: AdjointSystem) -> LinearSolution:
        flat, unravel = ravel_pytree(system.rhs)
        check_rank("NystromSolver", self.rank, flat.size)
        sketch = nystrom_sketch(system.product, system.rhs, self.rank, self.seed)
        inside = product(sketch.basis.T, flat)
        gain = 1 / (sketch.values + self.damping) - 1 / self.damping
        value = flat / self.damping + product(sketch.basis, gain * inside)
        return LinearSolution(unravel(value), count(self.rank), count(self.rank), unmeasured(system.rhs), self.damping)
