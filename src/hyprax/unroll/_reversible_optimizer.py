"""Optimisers that can be undone bit for bit: what one has to say of itself, one vector of the weights at a time."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._optimizer import AbstractOptimizer, PerWeight, Schedule, is_said, per_leaf
from ._scales import LARGEST, SMALLEST

Coefficients: TypeAlias = dict[str, Array]
"""Scalars of one step and one group, by name."""
WEIGHTS = "weights"


FINER = 34
"""The bits of a fraction that states of two limbs have beyond those of the weights."""

Words: TypeAlias = dict[str, Any]
"""One vector in fixed point, by name: int64 words of the weights and of what only undoes a step, a `Long` a state."""


class AbstractReversibleOptimizer(AbstractOptimizer):
    """An optimiser whose step is a bijection of fixed-point words, given the gradient.

    A step in fixed point multiplies the units of states (`_scales`), adds increments computed from the gradient to
    their words, and moves the weights by an increment computed from the states. Increments are roundings of products,
    quotients and roots, of nothing that a compiler may contract, so both directions compute the same ones in whatever
    program they stand.
    """

    said: ClassVar[bool] = True
    states: ClassVar[Mapping[str, int]]
    """The names of the states, in the order of `init`, and the limbs of their numbers (`_fixed_point.Long`)."""
    pullback_needs_gradient: ClassVar[bool]
    """Whether the derivative of a step with respect to the gradient depends on the gradient."""
    codes: ClassVar[tuple[str, ...]] = ()
    """The names of words that only undo a step, and have no part in the one in floating point."""
    by_leaf: ClassVar[bool] = False
    """Whether a step looks at the shape of a leaf, so that no leaves are joined in a vector."""
    rated: ClassVar[tuple[str, ...]] = ("rate", "move")
    """The coefficients of `tables` and `increments` in proportion to the learning rate, which may then differ from
    weight to weight: where they stand for all that it does."""

    @abc.abstractmethod
    def fraction_bits(self) -> dict[str, int]:
        """F for the weights and for each state: they are multiples of 2^-F."""

    @abc.abstractmethod
    def hyperparameters(self) -> dict[str, PyTree]:
        """The hyperparameters by name."""

    @abc.abstractmethod
    def tables(self, hyper: Coefficients, steps: int) -> Coefficients:
        """The coefficients of `apply`; arrays (rows, groups), rows 1 or T."""

    @abc.abstractmethod
    def factors(self, tables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a step multiplies, by name, from the tables. **Raises:** `ValueError` for what cannot be undone."""

    @abc.abstractmethod
    def increments(self, tables: Mapping[str, np.ndarray], units: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The coefficients of a step in fixed point, from the tables and the units after the step."""

    @abc.abstractmethod
    def apply(
        self, c: Coefficients, gradient: Array, states: dict[str, Array], weights: Array
    ) -> tuple[dict[str, Array], Array]:
        """The states and the weights after a step, in floating point: what is differentiated."""

    @abc.abstractmethod
    def forward(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        """The words after a step, in units after it: those before it with increments added."""

    @abc.abstractmethod
    def undo_weights(self, k: Coefficients, words: Words) -> Words:
        """The weights before the step, from everything after it."""

    @abc.abstractmethod
    def undo_states(self, k: Coefficients, gradient: Array, words: Words) -> Words:
        """The states before the step, given the gradient there."""

    def check_reversible(self) -> None:
        """**Raises:** `ValueError` where these settings cannot be undone."""
        return

    def init(self, params: PyTree) -> PyTree:
        return {name: jax.tree.map(jnp.zeros_like, params) for name in self.states}

    def _update_leaves(
        self, coefficients: dict[str, PyTree], grads: PyTree, states: dict[str, PyTree], params: PyTree
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """`apply` on every leaf; coefficients are prefixes of the tree of weights."""
        weights, structure = jax.tree.flatten(params)
        c = {name: jax.tree.leaves(per_leaf(value, params)) for name, value in coefficients.items()}
        gradients = jax.tree.leaves(grads)
        flat = {name: jax.tree.leaves(states[name]) for name in self.states}
        made = [
            self.apply(
                {name: c[name][i] for name in c}, gradients[i], {name: flat[name][i] for name in flat}, weights[i]
            )
            for i in range(len(weights))
        ]
        new = {name: structure.unflatten([states[name] for states, _ in made]) for name in self.states}
        return structure.unflatten([weights for _, weights in made]), new


def positive_factors(name: str, values: np.ndarray) -> np.ndarray:
    """`values`, all of which can be undone."""
    bad = ~((values >= SMALLEST) & (values <= LARGEST))
    if np.any(bad):
        raise ValueError(
            f"{name} must be between {SMALLEST:g} and {LARGEST:g} with hx.unroll.Reversible; got "
            f"{values[bad].ravel()[0]:.6g}. A step with a factor near 0 forgets what was before it: use "
            "hx.unroll.Checkpointed."
        )
    return values


def leaf_groups(prefixes: dict[str, PyTree], params: PyTree) -> tuple[dict[str, list[int]], list[int]]:
    """Which groups of weights share all hyperparameters.

    **Returns:** by name, for every group the index of the leaf of that prefix which it takes; and the group of every
    leaf of `params`.
    """
    columns = []
    for prefix in prefixes.values():
        leaves, structure = jax.tree.flatten(prefix)
        indices = structure.unflatten(list(range(len(leaves))))
        spread = jax.tree.map(lambda i, sub: jax.tree.map(lambda _, i=i: i, sub), indices, params)
        columns.append(jax.tree.leaves(spread))
    combined = list(zip(*columns, strict=True))
    groups = list(dict.fromkeys(combined))
    chosen = {name: [group[i] for group in groups] for i, name in enumerate(prefixes)}
    return chosen, [groups.index(leaf) for leaf in combined]


def checked_bits(name: str, bits: int) -> int:
    """**Raises:** `ValueError` for bits of a fraction that leave too little of a word on either side."""
    if not 16 <= bits <= 58:
        raise ValueError(f"{name}: fraction_bits must be between 16 and 58; got {bits}.")
    return bits


def decay_factors(decay: np.ndarray) -> np.ndarray:
    """1 - α λ, all of which can be undone."""
    if not np.all((decay >= 0) & (1 - decay >= SMALLEST)):
        raise ValueError(
            f"learning_rate times weight_decay must be between 0 and {1 - SMALLEST:g} with hx.unroll.Reversible; "
            f"got {decay.min():.6g} to {decay.max():.6g}."
        )
    return 1 - decay


def plain(optimizer: AbstractReversibleOptimizer) -> dict[str, PyTree]:
    """The hyperparameters, with arrays of shape [] or [T] in the place of numbers and schedules.

    A learning rate for each weight is 1 here: `rates` has it.

    **Raises:** `ValueError` for one entry a weight of anything else.
    """
    decays = "weight_decay" in optimizer.hyperparameters()
    return {
        name: _plain(name, value, rates=name == "learning_rate" and not decays)
        for name, value in optimizer.hyperparameters().items()
    }


def rates(optimizer: AbstractReversibleOptimizer, params: PyTree) -> PyTree | None:
    """The learning rates in the shapes of the weights, 1 where they are those of a group; `None` where all are."""
    value = optimizer.hyperparameters().get("learning_rate")
    if not any(isinstance(leaf, PerWeight) for leaf in jax.tree.leaves(value, is_leaf=is_said)):
        return None
    alone = jax.tree.map(lambda x: x if isinstance(x, PerWeight) else jnp.ones(()), value, is_leaf=is_said)
    return jax.tree.map(lambda x, w: jnp.broadcast_to(x, w.shape), per_leaf(alone, params), params)


def _plain(name: str, value: PyTree, *, rates: bool) -> PyTree:
    def leaf(x: Any) -> Any:
        if isinstance(x, PerWeight):
            if rates:
                return jnp.ones((), jnp.result_type(*jax.tree.leaves(x.values)))
            raise ValueError(
                f"{name} must be a number, a Schedule or a tree of those, one a group of weights, with "
                "hx.unroll.Reversible; got a PerWeight. Only a learning rate may be one there, of an optimizer "
                "without weight decay: use hx.unroll.Checkpointed."
            )
        return x.values if isinstance(x, Schedule) else jnp.asarray(x)

    return jax.tree.map(leaf, value, is_leaf=is_said)


def columns(prefixes: dict[str, PyTree], chosen: dict[str, list[int]], steps: int) -> Coefficients:
    """Hyperparameters as arrays (rows, groups): one row where nothing is a schedule, T otherwise."""
    table = {}
    for name, prefix in prefixes.items():
        leaves = jax.tree.leaves(prefix)
        rows = steps if any(leaf.ndim for leaf in leaves) else 1
        table[name] = jnp.stack([jnp.broadcast_to(leaves[i], (rows,)) for i in chosen[name]], axis=1)
    return table
