"""Random cases for certificates: families, structures of hyperparameters, conditioning, accuracy, precision; checked.

Used by the tests, and by the experiment `coverage`, which runs very many.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import hyprax as hx
import oracles
from hyprax import implicit
from hyprax.implicit._answers import STATUS
from hyprax.implicit.families._design import SparseDesign

N, D, CLASSES, GROUPS = 40, 5, 3, np.array([0, 1, 1, 2, 0])
FREE = np.array([1, 4])  # a column like the others, and one of ones; groups and strengths there must not matter
FAMILIES = {
    "squared": hx.families.Squared,
    "logistic": hx.families.Logistic,
    "softmax": hx.families.Softmax,
    "poisson": hx.families.Poisson,
    "huber": functools.partial(hx.families.PseudoHuber, delta=oracles.HUBER),
}


def select_penalty(hyper):
    """One selector for all, so that cases of one structure share one compilation."""
    return hyper["penalty"]


def select_weights(hyper):
    return hyper["weights"]


@dataclasses.dataclass(frozen=True)
class Structure:
    """`penalty`: one, class, feature, weight or group; `weights`: none, each, group or known; `free`: columns `FREE`
    and o. Known weights are numbers, of the rows of both losses, and some of them are 0.
    """

    kind: str
    penalty: str
    weights: str = "none"
    sparse: bool = False
    dtype: str = "float64"
    free: bool = False

    def __str__(self) -> str:
        words = [self.kind, self.penalty, f"weights-{self.weights}"]
        words += ["sparse" * self.sparse, "free" * self.free, self.dtype]
        return "-".join(word for word in words if word)


PENALTIES = {"softmax": ("one", "class", "feature", "weight", "group")}


def structures() -> list[Structure]:
    """Every family with every penalty, with and without weights; float32 and sparse data where they change the code."""
    found = []
    for kind in FAMILIES:
        for penalty in PENALTIES.get(kind, ("one", "feature", "group")):
            found += [Structure(kind, penalty), Structure(kind, penalty, dtype="float32")]
        found += [Structure(kind, "feature", "each"), Structure(kind, "group", "group")]
        found += [Structure(kind, "one", "each", dtype="float32"), Structure(kind, "feature", "group", sparse=True)]
        found += [Structure(kind, "feature", free=True), Structure(kind, "group", "each", free=True)]
        found += [Structure(kind, "feature", "known"), Structure(kind, "group", "known", dtype="float32")]
        found += [Structure(kind, "feature", "known", free=True), Structure(kind, "one", "known", sparse=True)]
        found += [
            Structure(kind, "one", dtype="float32", free=True),
            Structure(kind, "feature", sparse=True, free=True),
        ]
    return found


def few_structures() -> list[Structure]:
    """A choice that meets both kinds of weights, both precisions, sparse data, free columns, shapes of penalties."""
    return [
        Structure("softmax", "class", "each", free=True),
        Structure("poisson", "one", "group", dtype="float32"),
        Structure("huber", "feature", "each", sparse=True),
        Structure("logistic", "feature", "known"),
    ]


@dataclasses.dataclass
class Case:
    """A problem, its exact answer, and by name the exact hypergradient with respect to each raw leaf.

    `assembled`: (w, q), each (d, C), to the hypergradient that they make, in long double.
    """

    structure: Structure
    loss: Any
    outer: Any
    outer_data: tuple[Any, Any]
    hyper: dict[str, Any]
    truth: oracles.Reference
    grad: dict[str, np.ndarray]
    hessian: np.ndarray
    assembled: Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


def _leaf_shape(structure: Structure, c: int) -> tuple[int, ...]:
    wide = structure.kind == "softmax"
    shapes = {"one": (), "class": (c,), "feature": (D, 1) if wide else (D,), "weight": (D, c), "group": (3,)}
    return shapes[structure.penalty]


def random_case(rng: np.random.Generator, structure: Structure) -> Case:
    """Features of scales e^-3 to e, some correlated, doubled or zero; the smallest strength from 1e-6 to 0.1."""
    kind, dtype = structure.kind, structure.dtype
    c = CLASSES if kind == "softmax" else 1
    mix = rng.normal(size=(D, D)) if rng.random() < 0.5 else np.eye(D)
    scales = np.exp(rng.uniform(-3, 1, D) * (rng.random() < 0.5))
    x, xv = (rng.normal(size=(m, D)) @ mix * scales for m in (N, N // 2))
    if rng.random() < 0.1 and not structure.sparse:  # where it would change the number of entries, and compile anew
        x[:, 0], xv[:, 0] = 0.0, 0.0
    elif rng.random() < 0.1:
        x[:, 1], xv[:, 1] = x[:, 0], xv[:, 0]
    if kind == "poisson":
        x, xv = x / np.abs(x).max(), xv / np.abs(xv).max()
    if structure.free:
        x[:, 4], xv[:, 4] = 1, 1
    x, xv = x.astype(dtype), xv.astype(dtype)
    both = np.concatenate([x, xv]).astype(float)
    w = rng.normal(size=D)
    if kind == "softmax":
        targets = np.concatenate([np.arange(c), rng.integers(0, c, N + N // 2 - c)])
    elif kind == "logistic":
        targets = np.concatenate([[0, 1], rng.integers(0, 2, N + N // 2 - 2)]).astype(dtype)
    elif kind == "poisson":
        targets = rng.poisson(np.exp(np.clip(both @ w, -5, 3))).astype(dtype)
    else:
        targets = (both @ w + rng.standard_t(3, size=len(both))).astype(dtype)
    y, yv = targets[:N], targets[N:]

    low = rng.uniform(np.log(1e-6), np.log(0.1))
    strengths = np.exp(low + rng.uniform(0, rng.uniform(0, 4), size=_leaf_shape(structure, c)))
    hyper: dict[str, Any] = {"penalty": hx.Positive(jnp.asarray(strengths, dtype))}
    options: dict[str, Any] = {"penalty": select_penalty}
    if structure.penalty == "group":
        options["penalty_groups"] = GROUPS
    of_example, known, outer_known = np.zeros(N, int), None, None
    if structure.weights == "known":
        known, outer_known = (np.exp(1.5 * rng.normal(size=m)).astype(dtype) for m in (N, N // 2))
        outer_known[rng.random(N // 2) < 0.1] = 0
        if not structure.free:  # there rows of weight 0 may leave the others without an optimum
            known[rng.random(N) < 0.1] = 0
        options["weights"] = known
    elif structure.weights != "none":
        options["weights"] = select_weights
        of_example = np.arange(N)
        if structure.weights == "group":
            of_example = np.arange(N) % 7
            options["weight_groups"] = of_example
        omega = rng.uniform(0.02, 0.98, of_example.max() + 1)
        hyper["weights"] = hx.Interval(jnp.asarray(omega, dtype), 0.0, 1.0)
    if kind == "softmax":
        options["classes"] = c
    offsets = None
    if structure.free:
        parts = (c,) if kind == "softmax" else ()
        offsets = tuple(rng.uniform(-1, 1, (m, *parts)).astype(dtype) for m in (N, N // 2))
        options.update(free=FREE, offset=offsets[0])
    inputs: Any = scipy.sparse.csr_array(x) if structure.sparse else x
    loss = FAMILIES[kind](inputs, y, **options)

    natural = np.asarray(hyper["penalty"].value).astype(float)
    of_weight = np.broadcast_to(GROUPS[:, None], (D, c))
    if structure.penalty == "group":
        full = natural[of_weight]
    else:
        full = np.array(np.broadcast_to(natural[:, None] if natural.shape == (D,) else natural, (D, c)))
    full[FREE if structure.free else []] = 0
    weights = known
    if "weights" in hyper:
        weights = np.asarray(hyper["weights"].value).astype(float)[of_example]
    exact = [a.astype(float) for a in (x, xv)]
    exact_y = [a if kind == "softmax" else a.astype(float) for a in (y, yv)]
    added = None if offsets is None else (offsets[0].astype(float), offsets[1].astype(float))
    truth = oracles.reference(kind, exact[0], exact_y[0], exact[1], exact_y[1], full, weights, added, outer_known)

    def leaves(per_weight: np.ndarray, per_example: np.ndarray) -> dict[str, np.ndarray]:
        if structure.penalty == "group":
            found = {"penalty": np.array([per_weight[of_weight == k].sum() for k in range(3)])}
        else:
            wide = (D, 1) if natural.shape == (D,) else natural.shape
            found = {"penalty": oracles.sum_to(per_weight, wide).reshape(natural.shape)}
        if "weights" in hyper:
            raw = np.asarray(hyper["weights"].raw).astype(oracles.LONG)
            slope = 1 / ((1 + np.exp(-raw)) * (1 + np.exp(raw)))
            found["weights"] = slope * np.array([per_example[of_example == k].sum() for k in range(len(raw))])
        return found

    def assembled(w: np.ndarray, q: np.ndarray) -> dict[str, np.ndarray]:
        xl, wl, ql = (a.astype(oracles.LONG) for a in (exact[0], w, q))
        base = 0 if added is None else added[0].reshape(N, -1).astype(oracles.LONG)
        rows = oracles.slopes(kind, xl @ wl + base, exact_y[0]) * (xl @ ql)
        return leaves(-full.astype(oracles.LONG) * wl * ql, -np.sum(rows, axis=1) / N)

    grad = leaves(truth.per_weight, truth.per_example)
    base = 0 if added is None else added[0].reshape(N, -1)
    hessian = oracles.hessian(kind, exact[0], exact_y[0], truth.params.astype(float), full, weights, base)
    outer_inputs: Any = SparseDesign.from_scipy(scipy.sparse.csr_array(xv)) if structure.sparse else xv
    outer_data = jax.tree.map(jnp.asarray, (outer_inputs, yv, *(() if offsets is None else offsets[1:])))
    outer = loss.mean_loss if outer_known is None else loss.mean_loss.weighted(outer_known).of_rows(outer_data)
    return Case(structure, loss, outer, outer_data, hyper, truth, grad, hessian, assembled)


def random_point(rng: np.random.Generator, case: Case) -> tuple[jax.Array, jax.Array]:
    """(ŵ, q) around (w*, q*): in a random direction or one that A⁻¹ stretches, from 10 % off to beyond float64."""
    shape, dtype = case.truth.params.shape, case.structure.dtype

    def near(exact: np.ndarray, low: float) -> jax.Array:
        direction = rng.normal(size=exact.size)
        if rng.random() < 0.5:
            direction = np.linalg.solve(case.hessian, direction)
        size = 10.0 ** rng.uniform(low, -1) * (float(np.linalg.norm(exact.astype(float))) + 1e-9)
        off = size * direction / np.linalg.norm(direction)
        found = (exact + off.reshape(shape)).astype(dtype)
        return jnp.asarray(found if case.structure.kind == "softmax" else found[:, 0])

    return near(case.truth.params, -8), near(case.truth.adjoint, -10)


def prepared(bounds: dict[str, Any], case: Case) -> dict[str, Any]:
    """The bounds with what depends on the data of the case."""
    return {name: bound.prepare(case.loss, case.outer, case.outer_data) for name, bound in bounds.items()}


@eqx.filter_jit
def certify(
    bounds: dict[str, Any], loss: Any, outer: Any, outer_data: Any, hyper: Any, params: Any, adjoint: Any
) -> dict:
    """What each bound says at (ŵ, q): the certified hypergradient, and the certificate of the value; and the value."""
    point = loss.at(params, hyper)
    value, outer_grad = jax.value_and_grad(lambda w: outer(w, hyper, outer_data))(params)
    residual = loss.product(point, hyper)(adjoint) - outer_grad
    direct = jax.tree.map(jnp.zeros_like, hyper)
    e = implicit.Evaluation(loss, outer, outer_data, hyper, point, outer_grad, direct, adjoint, residual)
    found = {name: (bound.certify(e), bound.value(e)) for name, bound in bounds.items()}
    return {"value": value, "found": found}


@dataclasses.dataclass
class Outcome:
    """`violations`: the names of the statements that did not hold. `ratio`: upper bound over error, of h."""

    violations: list[str]
    relative: float
    ratio: dict[str, float]
    proved: bool


def _distance(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum((a[k] - b[k]) ** 2) for k in a)))


def check(case: Case, rng: np.random.Generator, bounds: dict[str, Any]) -> Outcome:
    """One point of one case: every statement of every bound against the truth."""
    ready = prepared(bounds, case)
    params, adjoint = random_point(rng, case)
    answer = certify(ready, case.loss, case.outer, case.outer_data, case.hyper, params, adjoint)
    columns = case.truth.params.shape
    first = case.assembled(np.asarray(params).reshape(columns), np.asarray(adjoint).reshape(columns))
    norm, error = _distance(case.grad, {k: 0 * v for k, v in case.grad.items()}), _distance(first, case.grad)
    # The first answer is assembled anew here, exactly: a bound from both sides is of the one assembled in float64.
    same = 1e-14 * float(np.sum(np.abs(case.truth.per_weight)) + np.sum(np.abs(case.truth.per_example)))
    off_value = abs(float(oracles.LONG(float(answer["value"])) - case.truth.value))
    violations, ratio, proved = [], {}, False
    for name, (certified, of_value) in answer["found"].items():
        certificate = certified.certificate
        found = {k: np.asarray(certified.grad[k].raw).astype(oracles.LONG) for k in case.grad}
        own = _distance(found, case.grad)
        bound = float(certificate.bound)
        if certificate.kind != "certified" or not own <= bound:
            violations.append(f"{name}: error {own:.3e} bound {bound:.3e}")
        if not off_value <= float(of_value.bound):
            violations.append(f"{name}: value off by {off_value:.3e} bound {float(of_value.bound):.3e}")
        ratio[name] = bound / max(own, 1e-300)
        if isinstance(certificate, hx.implicit.TwoSidedCertificate):
            lower, upper = float(certificate.lower), float(certificate.upper)
            if not lower - same <= error <= upper + same:
                violations.append(f"{name}: error {error:.3e} outside {lower:.3e} .. {upper:.3e}")
            for k, v in found.items():
                if not np.all(np.abs(v - case.grad[k]) <= np.asarray(certificate.entries[k].raw)):
                    violations.append(f"{name}: an entry of {k}")
            proved = bool(certificate.status == STATUS.effectivity_proved)
            if proved and not upper <= 3 * error * (1 + 1e-5) + same:
                violations.append(f"{name}: effectivity {upper / error:.3g} said to be at most 3")
            ratio[name] = upper / max(error, 1e-300)
    return Outcome(violations, error / max(norm, 1e-300), ratio, proved)
