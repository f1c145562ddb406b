"""Problems so small that squares, gradients or values leave the range of the dtype: no certificate says 0."""

from decimal import Decimal, localcontext

import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx

pytestmark = pytest.mark.optimised  # one column: XLA's light way to compile repeats scalars without end
SCALES = {"float64": (1e-155, 1e-160), "float32": (1e-19, 1e-21)}


def one_weight(inputs: np.ndarray, targets: np.ndarray, strength: float) -> tuple[Decimal, Decimal]:
    """F and dF/d log λ of ridge regression on one feature, in closed form: four rows of training, two of validation."""
    with localcontext() as context:
        context.prec = 60
        x, y, penalty = [Decimal(float(v)) for v in inputs], [Decimal(float(v)) for v in targets], Decimal(strength)
        zero = Decimal(0)
        curve = sum((v * v for v in x[:4]), zero) / 4 + penalty
        w = sum((a * b for a, b in zip(x[:4], y[:4], strict=True)), zero) / 4 / curve
        errors = [a * w - b for a, b in zip(x[4:], y[4:], strict=True)]
        slope = sum((a * e for a, e in zip(x[4:], errors, strict=True)), zero) / 2
        return sum((e * e for e in errors), zero) / 4, -penalty * w * slope / curve


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_certificates_hold_where_squares_underflow(dtype):
    rng = np.random.default_rng(0)
    inputs, plain = rng.normal(size=6).astype(dtype), rng.normal(size=6).astype(dtype)
    hyper = {"penalty": hx.Positive(np.asarray(0.5, dtype))}
    strength = float(np.exp(np.asarray(hyper["penalty"].raw, np.float64)))
    for scale in SCALES[dtype]:
        targets = plain * np.asarray(scale, dtype)
        family = hx.families.Squared(inputs[:4, None], targets[:4], penalty="penalty")
        objective = hx.ImplicitObjective(
            hx.Optimum(family), family.mean_loss, (jnp.asarray(inputs[4:, None]), jnp.asarray(targets[4:]))
        )
        answer, state = hx.hypergradient(objective, hyper, throw=False)
        value = objective.value(hyper, state)[0]
        truth = one_weight(inputs, targets, strength)
        for found, exact in ((value.value, truth[0]), (answer.grad["penalty"].raw, truth[1])):
            certificate = value.certificate if found is value.value else answer.certificate
            assert certificate.kind == "certified"
            assert abs(Decimal(float(found)) - exact) <= Decimal(float(certificate.bound))


def test_an_estimate_for_a_gradient_that_is_flushed_to_zero_is_not_zero():
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(6, 1))), jnp.asarray(rng.normal(size=6))
    family = hx.families.Squared(data[0][:4], data[1][:4], penalty="penalty")

    def outer(params, hyper, held_out):
        return jnp.asarray(1e-290) * family.mean_loss(params, hyper, held_out)

    objective = hx.ImplicitObjective(hx.Optimum(family), outer, (data[0][4:], data[1][4:]))
    answer = hx.hypergradient(objective, {"penalty": hx.Positive(0.5)}, throw=False)[0]
    assert answer.certificate.kind == "estimated"
    assert answer.certificate.bound > 1e-290
    assert not answer.relative_bound < 1  # nothing is claimed of the direction
