"""Every objective of the library keeps to what an objective must, at the smallest size; and the checks can fail."""

import functools
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from conformance import CHECKS, Case, check_accuracy, check_hypergradient, check_noisy, check_slope, check_state
from hyprax._objective import FunctionObjective

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3))
Y = X @ np.asarray([1.0, -2.0, 0.5]) + 0.3 * RNG.normal(size=24)
TRAIN, VALIDATION = (X[:16], Y[:16]), (X[16:], Y[16:])
PENALTY = {"penalty": hx.Positive(0.3)}


def mean_square(w, data):
    return jnp.mean(jnp.square(data[0] @ w - data[1]))


def family() -> hx.families.Squared:
    return hx.families.Squared(*TRAIN, penalty=lambda hyper: hyper["penalty"])


def implicit() -> Case:
    inner = family()
    certifier = hx.implicit.EhrhardtRoberts()  # proved, and compiled in a fraction of the default's time
    objective = hx.ImplicitObjective(hx.Optimum(inner), inner.mean_loss, VALIDATION, certifier=certifier)
    return Case(objective, PENALTY, traceable=True)


def single_loop() -> Case:
    inner = family()
    objective = hx.implicit.SOBA(
        hx.Optimum(inner), inner.mean_loss, VALIDATION, batch_size=4, outer_batch_size=4, key=jax.random.key(0)
    )
    return Case(objective, PENALTY)


def unrolled() -> Case:
    training = hx.Training(
        loss=lambda w, hyper, batch: mean_square(w, batch) + 0.5 * hyper["penalty"] * jnp.sum(jnp.square(w)),
        init=lambda hyper, key: jnp.zeros(3),
        optimizer=lambda hyper: hx.unroll.OptaxOptimizer(optax.sgd(0.1)),
        batches=hx.FullBatch(TRAIN),
        steps=4,
    )
    objective = hx.UnrolledObjective(
        training,
        lambda w, hyper, data: mean_square(w, data),
        VALIDATION,
        mode=hx.unroll.StoreAll(),
        key=jax.random.key(0),
    )
    return Case(objective, PENALTY)


def evidence() -> Case:
    objective = hx.EvidenceObjective(
        lambda w, hyper, x: (x @ w)[None],
        jnp.zeros(3),
        (TRAIN[0], TRAIN[1][:, None]),
        likelihood=hx.evidence.Gaussian(0.5),
        prior=lambda hyper: hx.evidence.GaussianPrior(hyper["precision"]),
        estimator=hx.evidence.Chain(hx.evidence.designs.OneRow(8, pilot=4)),
        schedule=hx.evidence.Schedule(every=1),
        key=jax.random.key(0),
    )
    return Case(objective, {"precision": hx.Positive(0.8)})


def function() -> Case:
    return Case(FunctionObjective(lambda hyper: jnp.square(hyper["penalty"] - 1.0)), PENALTY, traceable=True)


CASES = (implicit, single_loop, unrolled, evidence, function)
made: Callable[[Callable[[], Case]], Case] = functools.lru_cache(lambda make: make())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_objectives_keep_to_the_waist(make, check):
    check(made(make))


class Faulty(FunctionObjective):
    """A plain function, with one promise broken."""

    fault: str = eqx.field(static=True)

    def __init__(self, fault: str):
        super().__init__(lambda hyper: jnp.square(hyper["penalty"]))
        self.fault = fault
        self.adaptive = fault == "unreached"
        self.noisy = fault == "quiet"

    def init(self, hyper):
        return 3 if self.fault == "number" else ()

    def value_and_grad(self, hyper, state, accuracy=None):
        plain = FunctionObjective(self.fn)
        answer, state = plain.value_and_grad(hyper, state)
        if self.fault == "slope":
            answer = eqx.tree_at(lambda a: a.grad, answer, jax.tree.map(lambda g: 1.01 * g, answer.grad))
        if self.fault == "structure":
            answer = eqx.tree_at(lambda a: a.grad, answer, list(answer.grad.values()))
        return answer, state


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("number", check_state),
        ("structure", check_hypergradient),
        ("slope", check_slope),
        ("quiet", check_noisy),
        ("deaf", check_accuracy),
        ("unreached", check_accuracy),
    ],
)
def test_a_broken_promise_is_found(fault, check):
    with pytest.raises(AssertionError):
        check(Case(Faulty(fault), PENALTY))
