"""The exact leave-one-out loss of random cases and its derivatives, by one refit in long double for each row.

Used by the tests, and by the experiment `coverage`, which runs very many.
"""

import dataclasses

import numpy as np

import hyprax as hx
import oracles
from certificate_cases import CLASSES, FREE, GROUPS, Case, Structure, random_case

LONG = oracles.LONG


def structures() -> list[Structure]:
    """Every family; shapes of penalties, weights and precisions where they change the code."""
    found = []
    for kind in ("squared", "logistic", "poisson", "huber"):
        found += [Structure(kind, "feature"), Structure(kind, "one", dtype="float32")]
        found += [Structure(kind, "group", "each"), Structure(kind, "feature", free=True)]
        found += [Structure(kind, "group", "known")]
    found += [Structure("softmax", "weight"), Structure("softmax", "one", dtype="float32")]
    found += [Structure("softmax", "group", "each"), Structure("softmax", "class", free=True)]
    found += [Structure("softmax", "feature", "known")]
    return found


@dataclasses.dataclass
class Truth:
    """F, ℓ_i for each row left out, and dF/d raw by name of the leaf; in long double."""

    value: np.floating
    losses: np.ndarray
    grad: dict[str, np.ndarray]
    each: np.ndarray


def exact(case: Case, left: np.ndarray | None = None) -> Truth:
    """By `oracles.reference` on all rows but one, for each of the rows `left`."""
    structure, family = case.structure, case.loss
    x, y = np.asarray(family.inputs, float), np.asarray(family.targets)
    y = y if structure.kind == "softmax" else y.astype(float)
    n = len(x)
    left = np.arange(n) if left is None else left
    natural = np.asarray(case.hyper["penalty"].value, float)
    several = structure.kind == "softmax"
    spread = natural[GROUPS] if structure.penalty == "group" else natural
    if several:
        spread = spread[:, None] if structure.penalty == "group" else spread
        full = np.array(np.broadcast_to(spread, (x.shape[1], CLASSES)))
    else:
        full = np.array(np.broadcast_to(spread, x.shape[1]))[:, None]
    offset = np.zeros((n, CLASSES) if several else n)
    if structure.free:
        full[FREE] = 0
        offset = np.asarray(family.offset, float)
    omega = np.ones(n)
    if structure.weights == "each":
        omega = np.asarray(case.hyper["weights"].value, float)
    if structure.weights == "known":
        omega = np.asarray(family.weights.selector, float)
    shares = omega[left].astype(LONG) / omega[left].astype(LONG).sum()
    losses, per_weight, per_example = [], [], []
    for i in left:
        kept = omega.copy()
        kept[i] = 0
        found = oracles.reference(
            structure.kind, x, y, x[i : i + 1], y[i : i + 1], full, kept, (offset, offset[i : i + 1])
        )
        own = found.per_example.copy()
        own[i] = 0  # the row left out does not move its own fit
        losses.append(found.value)
        per_weight.append(found.per_weight if several else found.per_weight[:, 0])
        per_example.append(own)
    losses = np.array(losses)
    value = shares @ losses
    each = np.array(per_weight)
    by_log = np.tensordot(shares, each, 1)
    shape = np.shape(natural)
    if structure.penalty == "group":
        grad = {"penalty": np.array([by_log[np.asarray(GROUPS) == k].sum() for k in range(3)])}
    elif several:
        grad = {"penalty": oracles.sum_to(by_log, shape)}
    else:
        grad = {"penalty": by_log if shape else by_log.sum()}
    if structure.weights == "each":
        direct = np.zeros(n, LONG)
        direct[left] = (losses - value) / omega[left].astype(LONG).sum()
        raw = np.asarray(case.hyper["weights"].raw).astype(LONG)
        slope = 1 / ((1 + np.exp(-raw)) * (1 + np.exp(raw)))
        grad["weights"] = slope * (direct + shares @ np.array(per_example))
    return Truth(value, losses, grad, each)


@dataclasses.dataclass
class Outcome:
    """What one case showed: how many rows there were, how many bounds of losses were violated, how tight they are.

    `grad_violated`: whether a bound of the gradient or of an entry of it was violated.
    """

    rows: int
    violated: int
    loose: int
    refitted: int
    value_error: float
    value_bound: float
    grad_error: float
    grad_bound: float
    mean: float
    grad_norm: float
    grad_violated: bool


def check(case: Case, objective: hx.implicit.LeaveOneOut, truth: Truth) -> Outcome:
    """Compare an answer with the truth: its value, its gradient, and the loss of every row left out."""
    answer, state = objective.value_and_grad(case.hyper, objective.init(case.hyper))
    value, _ = objective.value(case.hyper, state)
    error = max(abs(LONG(float(a.value)) - truth.value) for a in (answer, value))
    violated = int(error > LONG(float(value.certificate.bound)))
    losses, bounds = (np.asarray(part).astype(LONG) for part in objective.losses(case.hyper, state))
    violated += int(np.sum(np.abs(losses - truth.losses) > bounds))
    off = {
        k: np.asarray(getattr(answer.grad[k], "raw", answer.grad[k])).astype(LONG) - g for k, g in truth.grad.items()
    }
    assert isinstance(answer.certificate, hx.Certificate)
    assert answer.certificate.entries is not None
    entries = {k: np.asarray(getattr(e, "raw", e)) for k, e in answer.certificate.entries.items()}
    grad_error = np.sqrt(sum(np.sum(d**2) for d in off.values()))
    wrong = grad_error > LONG(float(answer.certificate.bound))
    wrong = wrong or any(np.any(np.abs(off[k]) > entries[k]) for k in off)
    norm = np.sqrt(sum(np.sum(g**2) for g in truth.grad.values()))
    return Outcome(
        rows=len(truth.losses),
        violated=violated,
        loose=int(answer.stats.loose_rows),
        refitted=int(answer.stats.refitted_rows),
        value_error=float(error),
        value_bound=float(value.certificate.bound),
        grad_error=float(grad_error),
        grad_bound=float(answer.certificate.bound),
        mean=float(truth.value),
        grad_norm=float(norm),
        grad_violated=bool(wrong),
    )


__all__ = ["Outcome", "Truth", "check", "exact", "random_case", "structures"]
