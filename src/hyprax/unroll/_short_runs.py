"""A short training run and its derivative in ball arithmetic: where the hypergradient lies in real numbers.

The step is differentiated as a whole, by `jax.vjp` of (w_t, s_t, m_t, λ) ↦ (w_{t+1}, s_{t+1}, m_{t+1}), and not by the
formulas of the modes, so that what is compared with a mode is no copy of it. From one step to the next radii grow by a
factor that the absolute values of the Jacobian give, which is more than errors do; but they begin at 2^-p, and p is
free.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PyTree

from .._hyper import natural
from ._ball_jaxprs import BallProgram
from ._balls import Arithmetic, Ball
from ._drivers import index
from ._given import operations
from ._mode import Outer
from ._step import Program, advance, first, movable, outer_and_grads
from ._training import Training


class Unbounded(ArithmeticError):
    """Balls grew until nothing was known: at which step, of how many that were made and are to be made."""

    def __init__(self, made: int, needed: int):
        super().__init__(f"the balls grew without bound after {made} of {needed} steps")
        self.made, self.needed = made, needed


class Traced:
    """A function of pytrees as a program in balls, of the shapes of its arguments; floating arrays may be balls."""

    def __init__(self, function: Callable[..., Any], *shapes: PyTree):
        closed, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
        moving = [np.issubdtype(x.dtype, np.inexact) for x in jax.tree.leaves(shapes)]
        self.program, self.structure, self.shape = BallProgram(closed, moving), jax.tree.structure(out), out
        self.operations = operations(closed.jaxpr)

    def __call__(self, arithmetic: Arithmetic, *arguments: Any) -> Any:
        return jax.tree.unflatten(self.structure, self.program(arithmetic, *jax.tree.leaves(arguments)))


class RunInBalls:
    """F and dF/dλ of one run, λ in unconstrained coordinates, at as many bits as are asked for."""

    def __init__(self, training: Training, outer: Outer, hyper: PyTree, key: Array):
        self.training, self.hyper = training, hyper

        def program(plain: PyTree) -> Program:
            return Program(training, plain, key)

        def back(plain: PyTree, carry: PyTree, t: Array, adjoint: PyTree, dhyper: PyTree) -> tuple[PyTree, PyTree]:
            moving, fixed = eqx.partition(carry, eqx.is_inexact_array)

            def step(moving: PyTree, plain: PyTree) -> PyTree:
                return movable(advance(program(plain), eqx.combine(moving, fixed), t))

            before, direct = jax.vjp(step, moving, plain)[1](adjoint)
            return before, jax.tree.map(jax.numpy.add, dhyper, direct)

        def origin(plain: PyTree, adjoint: PyTree, dhyper: PyTree) -> PyTree:
            (direct,) = jax.vjp(lambda plain: movable(first(program(plain))), plain)[1](adjoint)
            return jax.tree.map(jax.numpy.add, dhyper, direct)

        self.natural = Traced(natural, hyper)
        plain = self.natural.shape
        self.start = Traced(lambda plain: first(program(plain)), plain)
        carry, t = self.start.shape, index(0)
        adjoint = eqx.filter(carry, lambda x: np.issubdtype(x.dtype, np.inexact))
        self.step = Traced(lambda plain, carry, t: advance(program(plain), carry, t), plain, carry, t)
        self.judge = Traced(lambda params, model, plain: outer(params, model, plain), carry[0], carry[2], plain)
        self.end = Traced(lambda *end: outer_and_grads(outer, *end), carry[0], carry[2], plain)
        self.back = Traced(back, plain, carry, t, adjoint, plain)
        self.origin = Traced(origin, plain, adjoint, plain)
        self.pull = Traced(lambda hyper, dplain: jax.vjp(natural, hyper)[1](dplain)[0], hyper, plain)

    def operations(self, derivative: bool) -> int:
        """About how many multiplications of balls there are."""
        steps, end = self.step.operations, self.judge.operations
        if derivative:
            steps, end = steps + self.back.operations, self.end.operations
        return self.training.steps * steps + end

    def value(self, bits: int) -> Ball:
        """F."""
        ar, plain, carries = self._forward(bits)
        return self._known(self.judge(ar, carries[-1][0], carries[-1][2], plain))

    def hypergradient(self, bits: int) -> tuple[Ball, list[Ball]]:
        """F, and dF/dλ leaf by leaf."""
        ar, plain, carries = self._forward(bits)
        params, state, model = carries[-1]
        value, dparams, dmodel, dhyper = self.end(ar, params, model, plain)
        still = jax.tree.map(lambda x: ar.exact(np.zeros(x.shape)), movable_balls(state), is_leaf=_is_ball)
        adjoint = (dparams, still, dmodel)
        for t in reversed(range(self.training.steps)):
            adjoint, dhyper = self.back(ar, plain, carries[t], index(t), adjoint, dhyper)
            self._check((adjoint, dhyper), 2 * self.training.steps - t)
        grads = self.pull(ar, self._exact(ar), self.origin(ar, plain, adjoint, dhyper))
        leaves = jax.tree.leaves(grads, is_leaf=_is_ball)
        return self._known(value), [self._known(x) for x in leaves]

    def bits(self, steps: int, bits: int) -> int:
        """How many bits the run is likely to need, by what so many steps of it lose at `bits`."""
        if self.training.steps <= 2 * steps:
            return bits
        radii = [x.radius.max(initial=1.0) for x in self._balls(self._forward(bits, steps)[2][-1])]
        return bits + math.ceil(1.1 * math.log2(max(radii)) / steps * self.training.steps)

    def _exact(self, ar: Arithmetic) -> PyTree:
        return jax.tree.map(ar.exact, self.hyper)

    def _forward(self, bits: int, steps: int | None = None) -> tuple[Arithmetic, PyTree, list[PyTree]]:
        """The arithmetic, λ in natural units, and (w_t, s_t, m_t) for t = 0..T, or to an earlier step."""
        ar = Arithmetic(bits)
        plain = self.natural(ar, self._exact(ar))
        carries = [self.start(ar, plain)]
        for t in range(self.training.steps if steps is None else steps):
            carries.append(self.step(ar, plain, carries[-1], index(t)))
            self._check(carries[-1], t + 1)
        return ar, plain, carries

    def _check(self, tree: PyTree, made: int) -> None:
        """**Raises:** `Unbounded` where nothing is known of a number any more."""
        if not all(np.all(np.isfinite(x.radius)) for x in self._balls(tree)):
            raise Unbounded(made, 2 * self.training.steps)

    def _balls(self, tree: PyTree) -> list[Ball]:
        return [x for x in jax.tree.leaves(tree, is_leaf=_is_ball) if isinstance(x, Ball)]

    def _known(self, x: Ball) -> Ball:
        self._check(x, 2 * self.training.steps)
        return x


def _is_ball(x: Any) -> bool:
    return isinstance(x, Ball)


def movable_balls(tree: PyTree) -> PyTree:
    """The balls of a tree, `None` in the place of what is given, such as counters."""
    return jax.tree.map(lambda x: x if _is_ball(x) else None, tree, is_leaf=_is_ball)


def rise(numbers: Sequence[float]) -> float:
    """The Euclidean norm, rounded up."""
    return math.sqrt(math.fsum(x * x for x in numbers)) * (1 + 2.0**-48) + 2.0**-500
