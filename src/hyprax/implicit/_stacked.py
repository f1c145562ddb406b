"""Several problems of one shape as one, for `vmap`."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp

from ._objective import ImplicitObjective


def stacked(objectives: Sequence[ImplicitObjective]) -> ImplicitObjective:
    """(F_1, ..., F_m) with every array of the problems stacked along a new first axis.

    The result is for `equinox.filter_vmap`, which evaluates all problems at once, each at its hyperparameters:

        together = hx.implicit.stacked(objectives)
        states = eqx.filter_vmap(lambda o, hyper: o.init(hyper))(together, hypers)
        answers, states = eqx.filter_vmap(lambda o, hyper, state: o.value_and_grad(hyper, state))(
            together, hypers, states
        )

    Every answer has its own certificate, result and statistics. Loops run until the slowest problem is done.

    **Raises:** `ValueError` for no objectives, or objectives that differ in anything but the entries of their arrays:
    shapes, solvers and their settings, losses, penalties (the same function, not two equal lambdas).
    """
    parts = [eqx.partition(objective, eqx.is_array) for objective in objectives]
    if not parts:
        raise ValueError("stacked: at least one objective is required; got none.")
    first, static = parts[0]
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), arrays) for arrays, _ in parts]
    for index, (_, other) in enumerate(parts):
        if shapes[index] != shapes[0] or not eqx.tree_equal(static, other):
            raise ValueError(
                f"stacked: objectives must differ in the entries of their arrays alone; objective {index} differs from "
                "the first in shapes, solvers, losses or penalties."
            )
    arrays = jax.tree.map(lambda *leaves: jnp.stack(leaves), first, *(arrays for arrays, _ in parts[1:]))
    return eqx.combine(arrays, static)
