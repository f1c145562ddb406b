"""The mean of objectives over folds: cross-validation as an objective, with the certificate and noise of the mean."""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._certificate import KINDS, AbstractCertificate, Certificate, NoCertificate, entries_of
from .._keys import checked_key
from .._noise import AbstractNoise, Noise, NoNoise
from .._objective import AbstractObjective, Hypergradient, Value, as_objective, refuse_accuracy
from .._result import Result, succeeded
from .._stats import AbstractStats, Accuracy, Effort
from ._measured import measured

FINAL_DRAWS = 3


@runtime_checkable
class Foldable(Protocol):
    """A problem that can be fitted without some of its rows: [`hyprax.Optimum`][] of a family is one."""

    def labels(self) -> np.ndarray:
        """The targets, one a row: as splitters take them."""
        ...

    def stratify(self) -> bool:
        """Whether the targets are classes, of which every fold should have its share."""
        ...

    def held_out(self, training: np.ndarray, held_out: np.ndarray, **settings: Any) -> AbstractObjective:
        """The objective of one fold."""
        ...

    def refit(self, hyper: PyTree) -> Any:
        """The fit on all rows."""
        ...


class CrossValidatedStats(AbstractStats):
    """What the folds took and reached.

    - `work`: products of all folds together.
    - `inner`, `adjoint`: the largest residuals that a fold reached, infinite where they are not known.
    - `failed_folds`: how many of them did not succeed.
    - `inaccurate`: none failed but for the accuracy asked for.
    """

    work: Float[Array, ""]
    inner: Float[Array, ""]
    adjoint: Float[Array, ""]
    failed_folds: Int[Array, ""]
    inaccurate: Array

    def effort(self) -> Effort:
        return Effort(self.work, Accuracy(self.inner, self.adjoint), self.inaccurate)


class FoldsState(eqx.Module):
    """The states of the folds, and the number of the step, from which folds are redrawn."""

    step: Int[Array, ""]
    states: tuple[PyTree, ...]


class CrossValidated(AbstractObjective[FoldsState]):
    """F(λ) = Σ_k (m_k/m) F_k(λ), F_k the loss on the m_k rows of fold k of a model fitted without them; m = Σ m_k.

    Every fold is a problem of its own, with its own warm start. Bounds of the mean are the weighted means of the folds'
    bounds, of the weakest kind among them. λ means the same on a fold as on all rows (see
    [`hyprax.Optimum.held_out`][]), so `refit(hyper)` fits all rows with the tuned λ as it is.

    **Arguments:**

    - `problem`: an [`hyprax.Optimum`][] of a family; or a sequence of objectives of equal hyperparameters, one a fold
        (of any engine, such as folds of unrolled runs, or functions of hyper), whose mean is then taken, weighted by
        `sizes`.
    - `folds`: how many (rows are shuffled by `key`, classes are stratified); or pairs of index arrays (training, held
        out); or an object with `split(X, y, groups)`, such as the splitters of scikit-learn.
    - `key`: a JAX random key, for a number of folds.
    - `redraw`: draw new folds at every step, from `key` and the step's number. The objective is then noisy: it keeps an
        optimiser from fitting one set of folds, and searches that compare values refuse it.
    - `groups`: passed to a splitter.
    - `sizes`: the weights of given objectives; default equal.
    - `settings`: of each fold's objective: `adjoint=`, `certifier=`, `noise=hx.implicit.ExampleNoise()`, and
        `weights=`, numbers >= 0 `(n,)`, what rows count where they are held out.

    **Noise:** that of the held-out examples given the fits, where the folds have it: the dependence of folds through
    shared training rows is not in it, and no unbiased estimate of that exists (Bengio and Grandvalet, 2004).

    **Raises:** `ValueError` for folds that are out of range, empty, or redrawn without being a number.
    """

    problem: Any
    parts: tuple[AbstractObjective, ...]
    weights: tuple[float, ...] = eqx.field(static=True)
    key: Array | None
    folds: int = eqx.field(static=True)
    settings: dict[str, Any]
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    def __init__(
        self,
        problem: Foldable | Sequence[AbstractObjective | Callable[[PyTree], Any]],
        folds: Any = None,
        *,
        key: Array | None = None,
        redraw: bool = False,
        groups: Any = None,
        sizes: Sequence[float] | None = None,
        **settings: Any,
    ):
        self.settings, self.key = settings, None
        if isinstance(problem, Foldable):
            folds = 5 if folds is None else folds
            counted = isinstance(folds, int) and not isinstance(folds, bool)
            if redraw and not counted:
                raise ValueError("CrossValidated: folds must be a number where redraw is true; got fixed folds.")
            if counted:
                self.key = checked_key("CrossValidated", key)
            self.problem, self.folds = problem, folds if counted else 0
            if counted and not 2 <= folds <= len(problem.labels()):
                raise ValueError(
                    f"CrossValidated: folds must be between 2 and the number of rows, {len(problem.labels())}; got "
                    f"{folds}."
                )
            masks = self._drawn(0) if counted else given_folds(folds, problem.labels(), groups)
            self.parts, self.weights = self._made(masks)
        else:
            parts = tuple(problem) if isinstance(problem, Iterable) else ()
            if not parts or not all(isinstance(part, AbstractObjective) or callable(part) for part in parts):
                raise ValueError(
                    "CrossValidated: problem must be an hx.Optimum of a family, or a sequence of objectives; got "
                    f"a {type(problem).__name__}."
                )
            if redraw or folds is not None or settings:
                raise ValueError("CrossValidated: folds, redraw and settings must not be given beside objectives.")
            shares = np.ones(len(parts)) if sizes is None else np.asarray(sizes, float)
            if shares.shape != (len(parts),) or not np.all(shares > 0):
                raise ValueError(f"CrossValidated: sizes must be {len(parts)} numbers > 0; got {sizes}.")
            self.problem, self.folds, self.parts = None, 0, tuple(as_objective(part) for part in parts)
            self.weights = tuple((shares / shares.sum()).tolist())
        self.noisy = redraw or any(part.noisy for part in self.parts)
        self.adaptive = all(part.adaptive for part in self.parts)
        self.value_name = f"cross-validated {self.parts[0].value_name}"

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return all(part.measures_noise for part in self.parts)

    def with_noise(self) -> "CrossValidated":
        """The same objective, the noise of its folds measured where they can do so for little."""
        parts = tuple(measured(part) for part in self.parts)
        if not all(part.measures_noise for part in parts):
            return self
        return eqx.tree_at(lambda o: o.parts, self, parts)

    @property
    def redraw(self) -> bool:
        """Whether folds are drawn anew at each step."""
        return self.noisy and self.folds > 0

    def _drawn(self, step: int) -> list[tuple[np.ndarray, np.ndarray]]:
        assert self.key is not None
        labels = self.problem.labels() if self.problem.stratify() else None
        return drawn_folds(self.folds, len(self.problem.labels()), labels, jax.random.fold_in(self.key, step))

    def _made(
        self, masks: Sequence[tuple[np.ndarray, np.ndarray]]
    ) -> tuple[tuple[AbstractObjective, ...], tuple[float, ...]]:
        parts = tuple(self.problem.held_out(training, held, **self.settings) for training, held in masks)
        sizes = np.asarray([held.sum() for _, held in masks], float)
        return parts, tuple((sizes / sizes.sum()).tolist())

    def _at(self, state: FoldsState) -> tuple[tuple[AbstractObjective, ...], tuple[float, ...]]:
        if not self.redraw:
            return self.parts, self.weights
        parts, weights = self._made(self._drawn(int(state.step)))
        return tuple(measured(part) for part in parts) if self.measures_noise else parts, weights

    def init(self, hyper: PyTree) -> FoldsState:
        return FoldsState(jnp.asarray(0), tuple(part.init(hyper) for part in self.parts))

    def value_and_grad(
        self, hyper: PyTree, state: FoldsState, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, FoldsState]:
        self._check(accuracy)
        parts, weights = self._at(state)
        pairs = [part.value_and_grad(hyper, own, accuracy) for part, own in zip(parts, state.states, strict=True)]
        answers = [answer for answer, _ in pairs]
        value, grad, bound, entries, errors, freedom, stats = _mean_of_gradients(
            [_arrays(answer) for answer in answers], jnp.asarray(weights, answers[0].value.dtype)
        )
        first = answers[0].certificate
        certificate = _mean_certificate(answers, bound, entries, first.quantity)
        noise = _mean_noise([answer.noise for answer in answers], errors, freedom)
        result = _worst([answer.result for answer in answers])
        answer = Hypergradient(value, grad, certificate, noise, result, stats)
        return answer, FoldsState(state.step + 1, tuple(own for _, own in pairs))

    def value(self, hyper: PyTree, state: FoldsState, accuracy: Accuracy | None = None) -> tuple[Value, FoldsState]:
        self._check(accuracy)
        parts, weights = self._at(state)
        pairs = [part.value(hyper, own, accuracy) for part, own in zip(parts, state.states, strict=True)]
        answers = [answer for answer, _ in pairs]
        value, bound, stats = _mean_of_values(
            [(answer.value, answer.certificate.bound, answer.stats.effort(), answer.result) for answer in answers],
            jnp.asarray(weights, answers[0].value.dtype),
        )
        certificate = _mean_certificate(answers, bound, None, answers[0].certificate.quantity)
        noise = _mean_noise([answer.noise for answer in answers], None, jnp.zeros(()))
        answer = Value(value, certificate, noise, _worst([answer.result for answer in answers]), stats)
        return answer, FoldsState(state.step + 1, tuple(own for _, own in pairs))

    def params(self, state: FoldsState) -> tuple[PyTree, ...]:
        """The weights of every fold; `refit` gives those to use."""
        return tuple(part.params(own) for part, own in zip(self.parts, state.states, strict=True))

    def final(self, hyper: PyTree, state: FoldsState) -> tuple[Value, FoldsState]:
        """The value; with folds that are redrawn, the mean over three fresh sets of folds, and its standard error."""
        if not self.redraw:
            return self.value(hyper, state)
        answer, state = self.value(hyper, state)
        values = [answer.value]
        for _ in range(FINAL_DRAWS - 1):
            another, state = self.value(hyper, state)
            values.append(another.value)
        drawn = jnp.stack(values)
        error = jnp.std(drawn, ddof=1) / FINAL_DRAWS**0.5
        noise = Noise(error, FINAL_DRAWS - 1, "sets of folds drawn")
        return eqx.tree_at(lambda a: (a.value, a.noise), answer, (jnp.mean(drawn), noise)), state

    def refit(self, hyper: PyTree) -> Any:
        """The fit on all rows at `hyper`.

        **Raises:** `ValueError` for given objectives, whose rows are not known together.
        """
        if self.problem is None:
            raise ValueError("CrossValidated.refit: needs an hx.Optimum of a family; got a sequence of objectives.")
        return self.problem.refit(hyper)

    def _check(self, accuracy: Accuracy | None) -> None:
        if not self.adaptive:
            refuse_accuracy(self, accuracy)


def drawn_folds(folds: int, rows: int, labels: np.ndarray | None, key: Array) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks (training, held out) of shuffled folds; with `labels`, each class is dealt out over the folds in turn."""
    return dealt_folds(folds, np.asarray(jax.random.permutation(key, rows)), labels)


def dealt_folds(folds: int, order: np.ndarray, labels: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows in their order dealt out over the folds; with `labels`, class after class."""
    if labels is not None:
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    fold = np.empty(len(order), int)
    fold[order] = np.arange(len(order)) % folds
    return [(fold != k, fold == k) for k in range(folds)]


def given_folds(folds: Any, labels: np.ndarray, groups: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks (training, held out) of index pairs, or of an object with `split`."""
    rows = len(labels)
    if hasattr(folds, "split") and not isinstance(folds, str | bytes):
        folds = list(folds.split(np.zeros((rows, 1)), labels, groups))
    elif isinstance(folds, int | str | bytes) or not isinstance(folds, Iterable):
        raise ValueError(
            "CrossValidated: folds must be a number, pairs of index arrays (training, held out), or an object with "
            f"`split`; got {folds!r}."
        )
    masks = []
    for number, pair in enumerate(folds):
        parts = []
        for name, index in zip(("training", "held-out"), pair, strict=True):
            index = np.asarray(index)
            if index.dtype == bool and index.shape == (rows,):
                index = np.flatnonzero(index)
            if index.ndim != 1 or index.dtype.kind not in "iu" or index.size == 0:
                raise ValueError(f"CrossValidated: the {name} rows of fold {number} must be a list of row numbers.")
            if index.min() < 0 or index.max() >= rows or len(np.unique(index)) != index.size:
                raise ValueError(
                    f"CrossValidated: the {name} rows of fold {number} must be different numbers from 0 to {rows - 1}."
                )
            mask = np.zeros(rows, bool)
            mask[index] = True
            parts.append(mask)
        if np.any(parts[0] & parts[1]):
            raise ValueError(f"CrossValidated: fold {number} must not judge on rows that it is fitted on.")
        masks.append((parts[0], parts[1]))
    if not masks:
        raise ValueError("CrossValidated: folds must not be empty.")
    return masks


def _summed(terms: Sequence[Array]) -> Array:
    return functools.reduce(operator.add, terms)


def _arrays(answer: Hypergradient) -> tuple:
    noise = answer.noise
    known = (noise.standard_errors, noise.degrees_of_freedom) if isinstance(noise, Noise) else None
    entries = entries_of(answer.certificate)
    return (
        answer.value, answer.grad, answer.certificate.bound, entries, known, answer.stats.effort(), answer.result
    )  # fmt: skip


@eqx.filter_jit
def _mean_of_gradients(answers: list[tuple], weights: Float[Array, " K"]) -> tuple:
    values, grads, bounds, entries, noises, efforts, results = zip(*answers, strict=True)
    value = jnp.sum(weights * jnp.stack(values))
    unit = jnp.finfo(value.dtype).eps

    def mean(*leaves: Array) -> Array:
        return _summed([w.astype(x.dtype) * x for w, x in zip(weights, leaves, strict=True)])

    grad = jax.tree.map(mean, *grads)
    size = jax.tree.map(lambda *leaves: mean(*map(jnp.abs, leaves)), *grads)
    rounding = (len(values) + 4) * unit
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(size)))
    bound = (1 + rounding) * mean(*bounds) + rounding * norm.astype(bounds[0].dtype)
    single = None
    if all(entry is not None for entry in entries):
        single = jax.tree.map(
            lambda s, *leaves: (1 + rounding) * mean(*leaves) + rounding * s.astype(leaves[0].dtype), size, *entries
        )
    errors, freedom = None, jnp.zeros(())
    if all(noise is not None for noise in noises):
        squares = [jax.tree.map(jnp.square, noise[0]) for noise in noises]
        errors = jax.tree.map(
            lambda *leaves: jnp.sqrt(
                _summed([w.astype(x.dtype) ** 2 * x for w, x in zip(weights, leaves, strict=True)])
            ),
            *squares,
        )
        freedom = sum(noise[1] for noise in noises)
    return value, grad, bound, single, errors, freedom, _stats(efforts, results)


@eqx.filter_jit
def _mean_of_values(answers: list[tuple], weights: Float[Array, " K"]) -> tuple:
    values, bounds, efforts, results = zip(*answers, strict=True)
    stacked = jnp.stack(values)
    rounding = (len(values) + 4) * jnp.finfo(stacked.dtype).eps
    bound = _summed([w.astype(x.dtype) * x for w, x in zip(weights, bounds, strict=True)])
    size = jnp.sum(weights * jnp.abs(stacked)).astype(bound.dtype)
    return jnp.sum(weights * stacked), (1 + rounding) * bound + rounding * size, _stats(efforts, results)


def _stats(efforts: Sequence[Effort], results: Sequence[Result]) -> CrossValidatedStats:
    failed = jnp.stack([jnp.logical_not(succeeded(result)) for result in results])
    inaccurate = jnp.stack([effort.inaccurate for effort in efforts])
    infinite = jnp.asarray(jnp.inf)
    reached = [Accuracy(infinite) if effort.reached is None else effort.reached for effort in efforts]
    inner, adjoint = (
        jnp.max(jnp.stack([getattr(each, name).astype(infinite.dtype) for each in reached]))
        for name in ("inner", "adjoint")
    )
    work = sum((effort.work for effort in efforts), jnp.zeros(()))
    all_usable = jnp.any(failed) & jnp.all(jnp.logical_not(failed) | inaccurate)
    return CrossValidatedStats(work, inner, adjoint, jnp.sum(failed), all_usable)


def _mean_certificate(
    answers: Sequence[Hypergradient | Value], bound: Array, entries: PyTree | None, quantity: str
) -> AbstractCertificate:
    weakest = max((answer.certificate for answer in answers), key=lambda c: KINDS.index(c.kind))
    if weakest.kind == "none":
        reason = weakest.reason if isinstance(weakest, NoCertificate) else "it has no bound"
        return NoCertificate(f"of a fold nothing is known ({reason})", bound.dtype)
    method = f"the mean of the bounds of {len(answers)} folds, rounding included"
    return Certificate(bound, weakest.kind, quantity, method, entries=entries)


def _mean_noise(noises: Sequence[AbstractNoise], errors: PyTree | None, freedom: Array) -> AbstractNoise:
    first = noises[0]
    if errors is not None:
        return Noise(errors, freedom, f"held-out examples of {len(noises)} folds, given the fits")
    return first if isinstance(first, NoNoise) else NoNoise("of a mean over folds it is not known", first.over)


def _worst(results: Sequence[Result]) -> Result:
    """The first result that is not a success."""
    return next((result for result in results if not bool(succeeded(result))), results[0])
