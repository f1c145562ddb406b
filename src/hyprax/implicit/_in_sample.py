"""What criteria of a family share whose state is the fit on all rows, from a factor of its Hessian."""

import equinox as eqx
from jaxtyping import Array, PyTree

from .._objective import AbstractObjective, Value
from ._optimum import Optimum, Refit


class AbstractInSample(AbstractObjective[Array]):
    """A criterion of a family's training rows together. The state is w, from which the next fit starts."""

    optimum: eqx.AbstractVar[Optimum]

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        """Nothing is held out."""
        return False

    def init(self, hyper: PyTree) -> Array:
        return self.optimum.params0

    def params(self, state: Array) -> PyTree:
        """The fit on all rows."""
        return state

    def final(self, hyper: PyTree, state: Array) -> tuple[Value, Array]:
        return self.value(hyper, state)

    def refit(self, hyper: PyTree) -> Refit:
        """The fit on all rows at `hyper`."""
        return self.optimum.refit(hyper)
