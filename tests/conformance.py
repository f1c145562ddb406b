"""What every objective must keep to, as checks that run on any: for whoever writes an objective of their own.

    from conformance import CHECKS, Case

    CASE = Case(MyObjective(...), {"penalty": hx.Positive(1e-3)})

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_objective(check):
        check(CASE)

Each check raises `AssertionError` with what was expected. One that does not concern an objective returns at once: a
noisy objective has no gradient to compare with differences. The module needs JAX, NumPy, optax and hyprax alone.
"""

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import hyprax as hx
from hyprax import core


@dataclasses.dataclass(frozen=True)
class Case:
    """An objective, and how closely it is looked at.

    - `hyper`: hyperparameters at which everything succeeds, and in whose neighbourhood the value is smooth.
    - `rtol`: how closely two computations of one number must agree beyond what their certificates say, and `slope_rtol`
        how closely the hypergradient must agree with differences of the value.
    - `difference`: the step of those differences, in unconstrained coordinates.
    - `accuracy`: for an adaptive objective, two accuracies that it reaches: a loose and a tight one.
    - `traceable`: whether the objective claims to run inside `jax.jit`.
    """

    objective: hx.core.AbstractObjective
    hyper: Any
    rtol: float = 1e-9
    slope_rtol: float = 1e-5
    difference: float = 1e-4
    accuracy: tuple[float, float] = (1e-4, 1e-9)
    traceable: bool = False

    @property
    def start(self) -> Any:
        return self.objective.init(self.hyper)


def copied(tree: Any) -> Any:
    """The same arrays in memory of their own: an objective may use up the state that it is given."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True) if isinstance(x, jax.Array) else x, tree)


def same_bits(a: Any, b: Any) -> bool:
    """Whether two trees have one structure and the same arrays; NaN equals NaN."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False

    def bits(x: Any) -> bytes:
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return np.asarray(x).tobytes()

    return all(bits(x) == bits(y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def slack(case: Case, *answers: Any) -> float:
    """How far values may lie apart: by what their certificates say, and by rounding."""
    bounds = [float(answer.certificate.bound) for answer in answers if isinstance(answer, core.Value)]
    return sum(b for b in bounds if math.isfinite(b)) + case.rtol * max(1.0, *(abs(float(a.value)) for a in answers))


def is_sentence(text: str) -> bool:
    return text[:1].isupper() and text.rstrip().endswith((".", "!", "?", ")"))


def check_statement(answer: Any) -> None:
    """The parts that a `Value` and a `Hypergradient` share."""
    assert isinstance(answer.value, jax.Array), type(answer.value)
    assert jnp.issubdtype(answer.value.dtype, jnp.floating), answer.value.dtype
    assert answer.value.shape == (), answer.value.shape
    assert math.isfinite(answer.value), answer.value
    certificate = answer.certificate
    assert isinstance(certificate, core.AbstractCertificate), certificate
    assert certificate.kind in ("certified", "estimated", "none"), certificate.kind
    assert jnp.shape(certificate.bound) == (), jnp.shape(certificate.bound)
    assert certificate.bound >= 0, certificate.bound
    assert certificate.kind != "none" or math.isinf(certificate.bound), "of kind none, and yet a bound"
    assert certificate.quantity, "what is bounded, in words"
    assert is_sentence(certificate.meaning()), certificate.meaning()
    assert isinstance(answer.noise, core.AbstractNoise), answer.noise
    assert is_sentence(answer.noise.meaning()), answer.noise.meaning()
    assert bool(core.succeeded(answer.result)), core.result_name(answer.result)
    assert isinstance(answer.stats, core.AbstractStats), answer.stats
    effort = answer.stats.effort()
    assert isinstance(effort, core.Effort), effort
    assert effort.work >= 0, effort
    assert not effort.inaccurate, "at its own settings an objective reaches what it asks for"
    for name, number in core.scalars(answer.stats).items():
        assert np.asarray(number).dtype.kind in "biuf", (name, number)


def check_declarations(case: Case) -> None:
    """`noisy`, `adaptive`, `measures_noise` and `value_name` are said, and are no arrays."""
    objective = case.objective
    assert isinstance(objective, core.AbstractObjective), type(objective)
    assert type(objective.noisy) is bool, "a plain truth value: a static field"
    assert type(objective.adaptive) is bool, "a plain truth value: a static field"
    assert type(objective.measures_noise) is bool, "a plain truth value: a static field"
    assert isinstance(objective.value_name, str), objective.value_name
    assert objective.value_name, "the value has a name"


def check_state(case: Case) -> None:
    """A state is a pytree of arrays, whose structure, shapes and dtypes never change."""
    state = case.start
    assert all(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(state)), jax.tree.leaves(state)
    for evaluate in (case.objective.value_and_grad, case.objective.value, case.objective.final):
        _, after = evaluate(case.hyper, copied(state))
        assert jax.tree.structure(after) == jax.tree.structure(state), evaluate
        assert shapes(after) == shapes(state), evaluate


def check_hypergradient(case: Case) -> None:
    """The answer says what it must, and its gradient has the structure of hyper."""
    answer, _ = case.objective.value_and_grad(case.hyper, case.start)
    assert isinstance(answer, hx.Hypergradient), type(answer)
    check_statement(answer)
    assert jax.tree.structure(answer.grad) == jax.tree.structure(case.hyper), "in the structure of hyper"
    assert shapes(answer.grad) == shapes(case.hyper), "in the shapes and dtypes of hyper"
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(answer.grad)), answer.grad
    if case.objective.measures_noise:
        assert isinstance(answer.noise, hx.Noise), "declared to measure noise"
    if isinstance(answer.noise, hx.Noise):
        assert jax.tree.structure(answer.noise.standard_errors) == jax.tree.structure(answer.grad), "entry by entry"
        assert jax.tree.map(jnp.shape, answer.noise.standard_errors) == jax.tree.map(jnp.shape, answer.grad)
    assert answer.message == "", answer.message
    assert repr(answer)


def check_value(case: Case) -> None:
    """A value alone says what it must; its enclosure holds that of `value_and_grad` where that is the same number."""
    found, _ = case.objective.value(case.hyper, case.start)
    assert isinstance(found, core.Value), type(found)
    check_statement(found)
    assert found.lower <= found.value <= found.upper
    if isinstance(found.noise, hx.Noise):
        assert jnp.shape(found.noise.standard_errors) == ()
    if not case.objective.noisy:
        answer, _ = case.objective.value_and_grad(case.hyper, case.start)
        assert abs(float(answer.value) - float(found.value)) <= 2 * slack(case, found, answer)


def check_final(case: Case) -> None:
    """`final` gives a value to report, and `params` the weights that it is of."""
    _, state = case.objective.value_and_grad(case.hyper, case.start)
    final, after = case.objective.final(case.hyper, copied(state))
    assert isinstance(final, core.Value), type(final)
    check_statement(final)
    weights = case.objective.params(after)
    assert jax.tree.structure(weights) == jax.tree.structure(case.objective.params(state))
    if not case.objective.noisy:
        value, _ = case.objective.value(case.hyper, copied(state))
        assert abs(float(final.value) - float(value.value)) <= slack(case, final, value)


def check_same_bits(case: Case) -> None:
    """The same hyperparameters and state give the same bits, and objectives hold no state of their own."""
    for evaluate in (case.objective.value_and_grad, case.objective.value):
        first = evaluate(case.hyper, copied(case.start))
        second = evaluate(case.hyper, copied(case.start))
        assert same_bits(first, second), evaluate


def check_noisy(case: Case) -> None:
    """Called again from the next state: another answer if `noisy`, the same within its certificate if not."""
    first, state = case.objective.value_and_grad(case.hyper, case.start)
    second, _ = case.objective.value_and_grad(case.hyper, copied(state))
    if case.objective.noisy:
        assert not same_bits(first.grad, second.grad), "declared noisy, but draws nothing anew"
        return
    a, b = ravelled(first.grad), ravelled(second.grad)
    bounds = [float(answer.certificate.bound) for answer in (first, second)]
    allowed = sum(bound for bound in bounds if math.isfinite(bound))
    assert np.linalg.norm(a - b) <= allowed + case.slope_rtol * np.linalg.norm(a), "declared deterministic"


def check_slope(case: Case) -> None:
    """The hypergradient of a deterministic objective is the slope of its value, along a random direction."""
    objective, hyper = case.objective, case.hyper
    if objective.noisy:
        return
    accuracy = hx.Accuracy(case.accuracy[1]) if objective.adaptive else None
    answer, state = objective.value_and_grad(hyper, case.start, accuracy)
    flat = ravelled(answer.grad)
    direction = np.random.default_rng(0).normal(size=flat.shape)
    direction /= np.linalg.norm(direction)
    values, error = [], 0.0
    for sign in (1, -1):
        there = moved(hyper, sign * case.difference * direction)
        found, _ = objective.value(there, copied(state), accuracy)
        values.append(float(found.value))
        error += slack(case, found)
    slope = (values[0] - values[1]) / (2 * case.difference)
    bound = float(answer.certificate.bound)
    allowed = case.slope_rtol * np.linalg.norm(flat) + (bound if math.isfinite(bound) else 0.0)
    assert abs(slope - flat @ direction) <= allowed + error / (2 * case.difference), (slope, flat @ direction)


def check_accuracy(case: Case) -> None:
    """An accuracy is honoured, and said to be reached; or refused, in the name of the objective."""
    objective = case.objective
    if not objective.adaptive:
        for evaluate in (objective.value_and_grad, objective.value):
            text = "nothing: see hx.core.refuse_accuracy"
            try:
                evaluate(case.hyper, case.start, hx.Accuracy(1e-6))
            except ValueError as error:
                text = str(error)
            assert f"{type(objective).__name__}: accuracy" in text, f"not adaptive, and yet it says {text}"
        return
    loose, tight = case.accuracy
    work = []
    for asked in (loose, tight):
        answer, _ = objective.value_and_grad(case.hyper, case.start, hx.Accuracy(asked))
        assert bool(core.succeeded(answer.result)), answer.message
        effort = answer.stats.effort()
        assert effort.reached is not None, "adaptive: the accuracy reached is to be said"
        assert effort.reached.inner <= asked, (effort.reached.inner, asked)
        assert effort.reached.adjoint <= 2 * asked, (effort.reached.adjoint, asked)
        work.append(float(effort.work))
    assert work[0] <= work[1], "a tighter accuracy for less work"


def check_resumption(case: Case) -> None:
    """A run that was cut off, and taken up from its record, gives the bits of one that was not."""

    def run(folder: Path, *steps: int) -> hx.TuneResult:
        search = hx.search.Optax(optax.adam(0.01))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", hx.search.TuningWarning)
            found = [
                hx.tune(case.objective, case.hyper, search=search, steps=n, run=hx.Run(folder), progress=False)
                for n in steps
            ]
        return found[-1]

    with tempfile.TemporaryDirectory() as folder:
        whole, again = run(Path(folder) / "whole", 4), run(Path(folder) / "again", 2, 4)
    assert len(whole.history) == len(again.history)
    for name in ("value", "gradient_norm", "certificate_bound", "noise"):
        assert np.array_equal(whole.column(name), again.column(name), equal_nan=True), name
    assert same_bits((whole.best, whole.last), (again.best, again.last))
    assert whole.best_value == again.best_value


def check_traceable(case: Case) -> None:
    """Inside `jax.jit` the answer is the same, where that is claimed."""
    if not case.traceable:
        return
    inside = eqx.filter_jit(lambda hyper, state: case.objective.value_and_grad(hyper, state)[0].grad)
    answer, _ = case.objective.value_and_grad(case.hyper, case.start)
    a, b = ravelled(answer.grad), ravelled(inside(case.hyper, case.start))
    assert np.linalg.norm(a - b) <= case.slope_rtol * np.linalg.norm(a), (a, b)


def ravelled(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(leaf, float)) for leaf in jax.tree.leaves(tree)])


def moved(hyper: Any, step: np.ndarray) -> Any:
    """hyper + step in unconstrained coordinates."""
    leaves, structure = jax.tree.flatten(hyper)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = zip(leaves, np.split(step, ends), strict=True)
    return structure.unflatten([x + jnp.asarray(d.reshape(np.shape(x)), jnp.result_type(x)) for x, d in parts])


CHECKS: tuple[Callable[[Case], None], ...] = (
    check_declarations,
    check_state,
    check_hypergradient,
    check_value,
    check_final,
    check_same_bits,
    check_noisy,
    check_slope,
    check_accuracy,
    check_resumption,
    check_traceable,
)
