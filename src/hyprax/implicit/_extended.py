"""The two final residuals in more than working precision: what makes a bound tight where float64 would drown it."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._double_double import DoubleDouble, lifted
from ._inner_loss import Point
from ._self_concordance import INFLATION, Residuals
from .families import (
    Design,
    DesignNorms,
    GeneralisedLinear,
    MeanLoss,
    exact_backward,
    exact_forward,
    extended_unit,
    over,
)

UNIT = 2.0**-53


def _weighted(loss: GeneralisedLinear, rows: DoubleDouble, hyper: PyTree) -> DoubleDouble:
    if loss.weights is None:
        return rows
    omega = over(loss.weights.values(hyper), rows.hi)
    return rows * lifted(jnp.broadcast_to(omega, rows.hi.shape))


def _divided(x: DoubleDouble, count: int) -> DoubleDouble:
    return x / lifted(jnp.full_like(x.hi, float(count)))


def extended_residuals(
    loss: GeneralisedLinear,
    outer: MeanLoss,
    outer_data: tuple[Design, Array],
    outer_norms: DesignNorms,
    hyper: PyTree,
    point: Point,
    adjoint: Float[Array, "d *C"],
) -> Residuals:
    """∇g(ŵ) and r = Â q - ∇f(ŵ) in double-double arithmetic, rounded once at the end.

    The errors are those of working precision with a unit roundoff u' of about 2^-80 in place of 2^-53 (see
    `extended_unit`), and |x| 2^-53 of the result x itself. Float64 parameters only; narrower ones are widened first.
    """
    params, strengths = lifted(point.params), lifted(loss.strengths(hyper))
    v = lifted(adjoint)
    slope, curved = loss.loss.extended(exact_forward(loss.inputs, params), exact_forward(loss.inputs, v), loss.targets)
    n, m = loss.inputs.shape[0], outer_data[0].shape[0]
    gradient = _divided(exact_backward(loss.inputs, _weighted(loss, slope, hyper)), n) + strengths * params
    product = _divided(exact_backward(loss.inputs, _weighted(loss, curved, hyper)), n) + strengths * v
    predicted = exact_forward(outer_data[0], params)
    outer_slope, _ = outer.loss.extended(predicted, predicted, outer_data[1])
    residual = product - _divided(exact_backward(outer_data[0], outer_slope), m)

    unit = extended_unit(max(n, m, params.hi.shape[0]))
    rounding = loss.rounding(point, hyper, adjoint, unit)
    of_outer = outer.gradient_rounding(point.params, outer_data, outer_norms, unit)
    return Residuals(
        gradient.hi,
        residual.hi,
        INFLATION * rounding.gradient + 2 * UNIT * jnp.abs(gradient.hi),
        INFLATION * (rounding.product + of_outer) + 2 * UNIT * jnp.abs(residual.hi),
    )
