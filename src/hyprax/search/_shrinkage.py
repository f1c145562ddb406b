"""Holding back by a prior on hyperparameters: `Towards`, and the path of its strengths chosen on nested folds."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from .._certificate import AbstractCertificate, Certificate
from .._hyper import validated
from .._keys import checked_key
from .._noise import NoNoise
from .._objective import AbstractObjective, Hypergradient, Value
from .._progress import ProgressBar
from .._stats import Accuracy
from ._cross_validated import CrossValidated, Foldable, drawn_folds, given_folds
from ._lbfgs import LBFGS
from ._tune import Stopping, tune

HANDFUL = 3
"""So many hyperparameters are tuned freely where folds judge them; more are held back by default."""
LEAST_GAIN = 1e-3
"""A smaller share of the held-out loss is no reason for many strengths."""
STRENGTHS = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.001, 0.0)


class Towards(AbstractObjective[PyTree]):
    """F(λ) + (τ/2) [Σ_j (θ_j - mean of its group)² + Σ_g n_g (group's mean - mean)²]: coordinates held together.

    θ are the unconstrained coordinates (logarithms of strengths) of all leaves. A large τ makes them one, τ = 0 leaves
    them free. With groups the two parts have strengths of their own.

    **Arguments:**

    - `objective`: F.
    - `strength`: τ >= 0, within groups (all one group by default).
    - `between`: the strength of the second part; default τ.
    - `groups`: integers, one a coordinate in the order of the leaves; default all in one group.

    Certificate and noise are those of F, the former wider by the rounding of the sum: the prior is known exactly.
    """

    objective: AbstractObjective
    strength: Float[Array, ""]
    between: Float[Array, ""]
    groups: Array | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(self, objective: AbstractObjective, strength: Any, *, between: Any = None, groups: Any = None):
        self.objective = objective
        self.strength = jnp.asarray(strength, float)
        self.between = self.strength if between is None else jnp.asarray(between, float)
        if not (float(self.strength) >= 0 and float(self.between) >= 0):
            raise ValueError(f"Towards: strength must be numbers >= 0; got {strength} and {between}.")
        self.groups = None if groups is None else jnp.asarray(groups)
        self.noisy, self.adaptive = objective.noisy, objective.adaptive
        self.value_name = f"{objective.value_name} with a prior"

    def init(self, hyper: PyTree) -> PyTree:
        return self.objective.init(hyper)

    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        answer, state = self.objective.value_and_grad(hyper, state, accuracy)
        value, grad, _, off = _held(hyper, self.strength, self.between, self.groups, answer.value, answer.grad)
        certificate = _widened(answer.certificate, off)
        return dataclasses.replace(answer, value=value, grad=grad, certificate=certificate), state

    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        answer, state = self.objective.value(hyper, state, accuracy)
        return self._with_prior(hyper, answer), state

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        answer, state = self.objective.final(hyper, state)
        return self._with_prior(hyper, answer), state

    def _with_prior(self, hyper: PyTree, answer: Value) -> Value:
        value, _, off, _ = _held(hyper, self.strength, self.between, self.groups, answer.value, hyper)
        return dataclasses.replace(answer, value=value, certificate=_widened(answer.certificate, off))


@eqx.filter_jit
def _held(
    hyper: PyTree, strength: Array, between: Array, groups: Any, value: Array, grad: PyTree
) -> tuple[Array, PyTree, Array, Array]:
    """With the prior: the value, the gradient, and bounds of the rounding of both sums."""

    def prior(hyper: PyTree) -> Array:
        theta = ravel_pytree(hyper)[0]
        overall = jnp.mean(theta)
        if groups is None:
            return 0.5 * strength.astype(theta.dtype) * jnp.sum((theta - overall) ** 2)
        count = theta.size
        sizes = jax.ops.segment_sum(jnp.ones_like(theta), groups, num_segments=count)
        means = jax.ops.segment_sum(theta, groups, num_segments=count) / jnp.maximum(sizes, 1)
        within = jnp.sum((theta - means[groups]) ** 2)
        apart = jnp.sum((means[groups] - overall) ** 2)
        return 0.5 * (strength.astype(theta.dtype) * within + between.astype(theta.dtype) * apart)

    more, slope = jax.value_and_grad(prior)(hyper)
    total, sums = value + more.astype(value.dtype), jax.tree.map(lambda a, b: a + b.astype(a.dtype), grad, slope)
    theta = ravel_pytree(hyper)[0]
    unit = (theta.size + 20) * jnp.finfo(theta.dtype).eps
    # Differences of coordinates are off by units of the largest of them, times the strengths.
    steep = (strength + between).astype(theta.dtype) * theta.size**0.5 * jnp.max(jnp.abs(theta))
    off = unit * (steep + jnp.linalg.norm(ravel_pytree(sums)[0]))
    width = theta.size**0.5 * jnp.max(jnp.abs(theta))
    return total, sums, unit * (steep * width + jnp.abs(total)), off


def _widened(certificate: AbstractCertificate, off: Array) -> AbstractCertificate:
    """The same certificate, of an answer to which something was added that is known up to `off`."""
    if certificate.kind == "none":
        return certificate
    bound = certificate.bound + off.astype(certificate.bound.dtype)
    return Certificate(bound, certificate.kind, certificate.quantity, "with a prior that is known up to rounding")


class Together(AbstractObjective[PyTree]):
    """F(λ with one number for all coordinates, or one a group): θ_j = t_{g(j)}, for the t given as hyperparameters."""

    objective: AbstractObjective
    like: PyTree
    groups: Array | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(self, objective: AbstractObjective, like: PyTree, groups: Any = None):
        self.objective, self.like = objective, like
        self.groups = None if groups is None else jnp.asarray(groups)
        self.noisy, self.adaptive, self.value_name = objective.noisy, objective.adaptive, objective.value_name

    def spread(self, t: Array) -> PyTree:
        """The hyperparameters of F."""
        raw, restore = ravel_pytree(self.like)
        return restore(jnp.broadcast_to(t[0], raw.shape) if self.groups is None else t[self.groups])

    def summed(self, tree: PyTree, t: Array) -> Array:
        """Sums over the coordinates of each number."""
        raw = ravel_pytree(tree)[0]
        index = jnp.zeros(raw.size, int) if self.groups is None else self.groups
        return jax.ops.segment_sum(raw, index, num_segments=t.size)

    def init(self, hyper: PyTree) -> PyTree:
        return self.objective.init(self.spread(hyper))

    def value_and_grad(
        self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, PyTree]:
        answer, state = self.objective.value_and_grad(self.spread(hyper), state, accuracy)
        certificate = answer.certificate
        if certificate.kind != "none":  # a sum of n entries is off by at most √n times what their norm is off by
            most = jnp.sqrt(jnp.max(self.summed(jax.tree.map(jnp.ones_like, self.like), hyper)))
            size = jnp.linalg.norm(self.summed(jax.tree.map(jnp.abs, answer.grad), hyper))
            unit = (2 * ravel_pytree(self.like)[0].size + 20) * jnp.finfo(size.dtype).eps
            bound = (1 + unit) * most * certificate.bound.astype(size.dtype) + unit * size
            certificate = Certificate(bound, certificate.kind, certificate.quantity, "of sums of its entries")
        noise = NoNoise("not known for sums of entries", answer.noise.over)
        grad = self.summed(answer.grad, hyper)
        return Hypergradient(answer.value, grad, certificate, noise, answer.result, answer.stats), state

    def value(self, hyper: PyTree, state: PyTree, accuracy: Accuracy | None = None) -> tuple[Value, PyTree]:
        return self.objective.value(self.spread(hyper), state, accuracy)

    def params(self, state: PyTree) -> PyTree:
        return self.objective.params(state)

    def final(self, hyper: PyTree, state: PyTree) -> tuple[Value, PyTree]:
        return self.objective.final(self.spread(hyper), state)


@dataclasses.dataclass(frozen=True)
class ShrinkagePath:
    """Tuned hyperparameters from one strength for all (τ = ∞) to free ones, and the τ that nested folds chose.

    - `strengths`: τ, falling, infinite first; `hypers`: the hyperparameters at each, tuned on all rows.
    - `criteria`: the cross-validated loss at each.
    - `gains`: `(outer folds, strengths)`, held-out loss at τ = ∞ less that at τ; they chose τ, so they are optimistic
      and no honest number: that is `honest` around the whole rule.
    - `chosen`: the index of the τ chosen.
    - `steps`: the hypergradients taken, of single folds.
    """

    strengths: tuple[float, ...]
    hypers: list[PyTree]
    criteria: np.ndarray
    gains: np.ndarray
    chosen: int
    steps: int

    @property
    def hyper(self) -> PyTree:
        """The hyperparameters at the τ chosen."""
        return self.hypers[self.chosen]


def choose(gains: np.ndarray, errors: float, least: float = 0.0) -> int:
    """The column with the largest mean gain among those above `errors` standard errors and `least`; else 0."""
    folds = len(gains)
    mean, error = gains.mean(axis=0), gains.std(axis=0, ddof=1) / folds**0.5
    good = (mean - errors * error > 0) & (mean >= least)
    good[0] = False
    return int(np.argmax(np.where(good, mean, -np.inf))) if good.any() else 0


def shrinkage_path(
    problem: Foldable,
    hyper: PyTree,
    *,
    key: Array | None = None,
    strengths: Sequence[float] = STRENGTHS,
    folds: Any = 5,
    outer_folds: int = 5,
    errors: float = 1.0,
    groups: Any = None,
    steps: int = 25,
    progress: bool = True,
    **settings: Any,
) -> ShrinkagePath:
    """Tune many hyperparameters held together by a prior, whose strength τ is chosen on nested folds.

    F is the cross-validated loss with [`hyprax.search.Towards`][]; the path goes from the best single strength (one a
    group, with groups) to small τ, each warm-started from the last. The whole path is computed on each outer training
    part and judged on its held-out part: the largest mean gain over τ = ∞ that exceeds `errors` standard errors over
    the outer folds is taken, and the single strength where there is none. Then the path is computed on all rows.

    **Arguments:**

    - `problem`: an [`hyprax.Optimum`][] of a family.
    - `hyper`: where to start: the mean of its coordinates is what counts.
    - `key`: a JAX random key, for numbers of folds.
    - `strengths`: τ, falling.
    - `folds`, `outer_folds`: inner and outer, numbers. Given `folds` (pairs of index arrays or masks, or a splitter, as
        in [`hyprax.search.CrossValidated`][]) are outer and inner at once: inside fold k the others are used, less its
        rows; a fold that leaves none to judge on is not an outer one, and with fewer than two outer folds the single
        strength is kept.
    - `errors`: 1 for the rule of one standard error; 2 leaves the single strength more rarely. A gain below a
        thousandth of the held-out loss is none in any case.
    - `groups`: integers, one a coordinate.
    - `steps`: the most steps at each τ.
    - `progress`: a bar on standard error, after two seconds and on a terminal only.
    - `settings`: of each fold's objective.

    Costs (outer_folds + 1) paths of inner folds. All folds share one compiled program.
    """
    hyper = validated(hyper)
    rows = len(problem.labels())
    labels = problem.labels() if problem.stratify() else None
    if isinstance(folds, int):
        outer_key, inner_key = jax.random.split(checked_key("shrinkage_path", key))
        inner = drawn_folds(folds, rows, labels, inner_key)
        outer = drawn_folds(outer_folds, rows, labels, outer_key)
    else:
        inner = outer = given_folds(folds, problem.labels(), None)
    nested = []
    for training, held in outer:
        parts = [(training & fit, training & judge) for fit, judge in inner]
        parts = [(fit, judge) for fit, judge in parts if fit.any() and judge.any()]
        if parts:
            nested.append((training, held, parts))
    taken, gains, simple = 0, [], []
    each = 1 + len(strengths)
    bar = ProgressBar((len(nested) + 1) * each) if progress else None
    for part, (training, held, parts) in enumerate(nested):
        told = _told(bar, part * each, f"outer fold {part + 1} of {len(nested)}")
        hypers, _, count = _path(problem, parts, hyper, strengths, groups, steps, settings, told)
        judge = problem.held_out(training, held, **settings)
        losses = [float(judge.value(found, judge.init(found))[0].value) for found in hypers]
        gains.append(losses[0] - np.asarray(losses))
        simple.append(losses[0])
        taken += count
    told = _told(bar, len(nested) * each, "all rows")
    hypers, criteria, count = _path(problem, inner, hyper, strengths, groups, steps, settings, told)
    if bar is not None:
        bar.close()
    table = np.stack(gains) if len(gains) > 1 else np.zeros((2, len(hypers)))
    least = LEAST_GAIN * abs(float(np.mean(simple))) if simple else 0.0
    return ShrinkagePath((np.inf, *strengths), hypers, criteria, table, choose(table, errors, least), taken + count)


def _told(bar: ProgressBar | None, before: int, label: str) -> Callable[[int], None]:
    """What a path tells of its searches: how many are done."""
    return lambda done: None if bar is None else bar.show(before + done, f"held back: {label}")


def _path(
    problem: Foldable,
    masks: Sequence[tuple[np.ndarray, np.ndarray]],
    hyper: PyTree,
    strengths: Sequence[float],
    groups: Any,
    steps: int,
    settings: dict[str, Any],
    told: Callable[[int], None],
) -> tuple[list[PyTree], np.ndarray, int]:
    objective = CrossValidated(problem, masks, **settings)
    stop = Stopping(gradient=1e-6, patience=3, improvement=1e-4)
    count = 1 if groups is None else int(np.max(groups)) + 1
    together = Together(objective, hyper, groups)
    raw = ravel_pytree(hyper)[0]
    sizes = together.summed(jax.tree.map(jnp.ones_like, hyper), jnp.zeros(count))
    begin = together.summed(hyper, jnp.zeros(count, raw.dtype)) / sizes.astype(raw.dtype)
    found = tune(together, begin, search=LBFGS(), steps=steps, stop=stop, progress=False)
    hypers, criteria, taken = [together.spread(found.best)], [found.best_value], len(found.history)
    told(1)
    for number, strength in enumerate(strengths):
        held = Towards(objective, strength, groups=groups)
        found = tune(held, hypers[-1], search=LBFGS(), steps=steps, stop=stop, progress=False)
        hypers.append(found.best)
        criteria.append(float(objective.value(found.best, objective.init(found.best))[0].value))
        taken += len(found.history)
        told(number + 2)
    return hypers, np.asarray(criteria), taken * len(masks)
