"""Bounds of the rounding of hypergradients, against runs in `decimal` that share no code with the library."""

import dataclasses
from decimal import Decimal, localcontext
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import hyprax as hx
from trainings import make_problem

STEPS = 6
BALLS, ROUNDING = hx.unroll.BallCertifier(), hx.unroll.RoundingCertifier()


def activate(x: Decimal) -> Decimal:
    return 1 - 2 / ((2 * x).exp() + 1)


def outputs(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["hidden"]) @ params["output"]


def loss(params: Any, hyper: Any, data: Any) -> Any:
    x, y = data
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((outputs(params, x) - y) ** 2) + jnp.exp(hyper["log_penalty"]) * squares


def outer(params: Any, hyper: Any, data: Any) -> Any:
    x, y = data
    return jnp.sum((outputs(params, x) - y) ** 2)


def of_erf(params: Any, hyper: Any, data: Any) -> Any:
    return jnp.sum(jax.scipy.special.erf(params["output"]))


class Start(eqx.Module):
    hidden: Any
    output: Any

    def __call__(self, hyper: Any, key: Any) -> Any:
        return {"hidden": hyper["scale"] * self.hidden, "output": hyper["scale"] * self.output}


OPTIMIZERS = {
    "momentum": lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], jnp.asarray(0.75), form="polyak"),
    "adam": lambda hyper: hx.unroll.Adam(hyper["rate"]),
}


@dataclasses.dataclass(frozen=True)
class Small:
    """Three examples of two features, a network of two hidden units, one output, squared errors and a penalty."""

    inputs: np.ndarray
    targets: np.ndarray
    hidden: np.ndarray
    output: np.ndarray
    optimizer: str

    def objective(self, outer_loss: Any = outer, **settings: Any) -> hx.UnrolledObjective:
        start, make = Start(jnp.asarray(self.hidden), jnp.asarray(self.output)), OPTIMIZERS[self.optimizer]
        batches = hx.FullBatch((jnp.asarray(self.inputs), jnp.asarray(self.targets)))
        training = hx.Training(loss, start, make, batches, STEPS)
        data = (jnp.asarray(self.inputs[:2]), jnp.asarray(self.targets[:2]))
        return hx.UnrolledObjective(training, outer_loss, data, key=jax.random.key(0), **settings)

    @property
    def hyper(self) -> dict[str, Any]:
        return {"rate": hx.Positive(0.3), "scale": jnp.asarray(0.8), "log_penalty": jnp.asarray(-4.0)}

    def value(self, rate: Decimal, scale: Decimal, log_penalty: Decimal) -> Decimal:
        """F, by loops over numbers, with the gradient of the network written out."""
        rate, penalty = rate.exp(), log_penalty.exp()
        inputs = [[Decimal(float(v)) for v in row] for row in self.inputs]
        targets = [Decimal(float(v)) for v in self.targets]
        a = [[scale * Decimal(float(v)) for v in row] for row in self.hidden]
        b = [scale * Decimal(float(v)) for v in self.output]
        weights = [a[0][0], a[0][1], a[1][0], a[1][1], b[0], b[1]]
        first, second = [Decimal(0)] * 6, [Decimal(0)] * 6
        b1, b2, small = (Decimal(x) for x in (0.9, 0.999, 1e-8))
        for t in range(STEPS):
            grads = [2 * penalty * w for w in weights]
            for x, y in zip(inputs, targets, strict=True):
                units = [activate(x[0] * weights[j] + x[1] * weights[2 + j]) for j in (0, 1)]
                error = 2 * (units[0] * weights[4] + units[1] * weights[5] - y) / len(targets)
                for j in (0, 1):
                    grads[4 + j] += error * units[j]
                    for i in (0, 1):
                        grads[2 * i + j] += error * weights[4 + j] * (1 - units[j] ** 2) * x[i]
            if self.optimizer == "momentum":
                first = [Decimal("0.75") * v - g for v, g in zip(first, grads, strict=True)]
                weights = [w + rate * v for w, v in zip(weights, first, strict=True)]
            else:
                first = [b1 * m + (1 - b1) * g for m, g in zip(first, grads, strict=True)]
                second = [b2 * v + (1 - b2) * g * g for v, g in zip(second, grads, strict=True)]
                means = [m / (1 - b1 ** (t + 1)) for m in first]
                roots = [(v / (1 - b2 ** (t + 1))).sqrt() for v in second]
                weights = [w - rate * m / (r + small) for w, m, r in zip(weights, means, roots, strict=True)]
        total = Decimal(0)
        for x, y in zip(inputs[:2], targets[:2], strict=True):
            units = [activate(x[0] * weights[j] + x[1] * weights[2 + j]) for j in (0, 1)]
            total += (units[0] * weights[4] + units[1] * weights[5] - y) ** 2
        return total

    def truth(self) -> tuple[Decimal, dict[str, Decimal]]:
        """F and its derivatives in unconstrained coordinates, by central differences in 120 digits."""
        raw = {
            "rate": Decimal(float(self.hyper["rate"].raw)),
            "scale": Decimal(float(self.hyper["scale"])),
            "log_penalty": Decimal(float(self.hyper["log_penalty"])),
        }
        with localcontext() as context:
            context.prec = 120
            step = Decimal(10) ** -40
            slopes = {}
            for name in raw:
                ends = [self.value(**(raw | {name: raw[name] + sign * step})) for sign in (1, -1)]
                slopes[name] = (ends[0] - ends[1]) / (2 * step)
            return self.value(**raw), slopes


def drawn(seed: int, optimizer: str) -> Small:
    rng = np.random.default_rng(seed)
    return Small(rng.normal(size=(3, 2)), rng.normal(size=3), rng.normal(size=(2, 2)), rng.normal(size=2), optimizer)


def check(problem: Small, answer: hx.Hypergradient) -> tuple[Decimal, Decimal]:
    """The error and the bound, after a look at the entries."""
    certificate: Any = answer.certificate
    assert certificate.kind == "certified", certificate
    square = Decimal(0)
    for name, slope in problem.truth()[1].items():
        grad, entry = answer.grad[name], certificate.entries[name]
        h, bound = (float(x.raw if isinstance(x, hx.Positive) else x) for x in (grad, entry))
        error = abs(Decimal(h) - slope)
        assert error <= Decimal(bound), name
        square += error**2
    return square.sqrt(), Decimal(float(certificate.bound))


@pytest.mark.parametrize("optimizer", ["momentum", pytest.param("adam", marks=pytest.mark.slow)])
def test_the_bound_holds_and_is_the_error(optimizer):
    """On random problems: the bound is above the error, and by no more than a few hundredths."""

    @settings(max_examples=3)
    @given(st.integers(0, 10**6))
    def holds(seed):
        problem = drawn(seed, optimizer)
        made = problem.objective(certifier=BALLS)
        answer = hx.hypergradient(made, problem.hyper)[0]
        error, bound = check(problem, answer)
        assert error <= bound <= Decimal("1.05") * error + Decimal("1e-25")

    holds()
    problem = drawn(1, optimizer)
    answer, state = hx.hypergradient(problem.objective(certifier=BALLS), problem.hyper)
    value = problem.objective(certifier=BALLS).value(problem.hyper, state)[0]
    assert value.certificate.kind == "certified"
    assert abs(Decimal(float(value.value)) - problem.truth()[0]) <= Decimal(float(value.certificate.bound)) < 1e-13
    assert float(answer.relative_bound) < 1e-13


@pytest.mark.slow
def test_an_estimate_is_near_the_error():
    problem = drawn(1, "momentum")
    proved = hx.hypergradient(problem.objective(certifier=BALLS), problem.hyper)[0].certificate
    guessed = hx.hypergradient(problem.objective(certifier=ROUNDING), problem.hyper)[0].certificate
    assert guessed.kind == "estimated"
    assert proved.bound <= guessed.bound <= 1e3 * proved.bound


@pytest.mark.slow
@pytest.mark.parametrize("mode", [hx.unroll.Reversible(), hx.unroll.Truncated(2), hx.unroll.ForwardMode()])
def test_every_mode_can_be_certified(mode):
    """What reversal rounds and what truncation leaves out are in the bound."""
    problem = drawn(3, "momentum")
    error, bound = check(problem, hx.hypergradient(problem.objective(certifier=BALLS, mode=mode), problem.hyper)[0])
    assert error <= bound <= Decimal("1.05") * error + Decimal("1e-25")
    guessed = hx.hypergradient(problem.objective(certifier=ROUNDING, mode=mode), problem.hyper)[0].certificate
    assert error <= Decimal(float(guessed.bound))


@pytest.mark.slow
@pytest.mark.parametrize(("model", "optimizer", "dtype"), [("mlp", "sgd", "float64"), ("attention", "adam", "float32")])
def test_minibatches_dropout_and_optax(model, optimizer, dtype):
    """The bound is that of rounding: small beside the hypergradient, in any dtype."""
    problem = make_problem(model, optimizer, seed=5, steps=3, dropout=True, dtype=jnp.dtype(dtype))
    answer = hx.hypergradient(problem.objective(hx.unroll.Checkpointed(), certifier=BALLS), problem.hyper)[0]
    assert answer.certificate.kind == "certified", answer.certificate
    assert 0 < float(answer.relative_bound) < 1e3 * float(jnp.finfo(dtype).eps)


def test_why_there_is_no_proof_is_said():
    problem = drawn(0, "momentum")
    few = problem.objective(certifier=hx.unroll.BallCertifier(most_operations=10))
    state = few.init(problem.hyper)
    certificate: Any = few.value(problem.hyper, state)[0].certificate
    assert certificate.kind == "estimated"
    assert "most_operations is 1e+01" in certificate.method
    erf = problem.objective(of_erf, certifier=BALLS)
    certificate = erf.value(problem.hyper, state)[0].certificate
    assert certificate.kind == "estimated"
    assert "there is no proof, because of the operation erf" in certificate.method


@pytest.mark.usefixtures("unchecked")
def test_settings_are_checked():
    problem = drawn(0, "momentum")
    with pytest.raises(ValueError, match=r"certifier must be hx.unroll.BallCertifier\(\)"):
        problem.objective(certifier="balls")
    with pytest.raises(ValueError, match="most_bits must be an integer from 160 to 896; got 64"):
        hx.unroll.BallCertifier(most_bits=64)
    with pytest.raises(ValueError, match="most_operations must be a number > 0"):
        hx.unroll.BallCertifier(most_operations=0)
