"""The two final residuals in more than working precision: what makes a bound tight where float64 would drown it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ._constants import INFLATION, UNIT
from ._double_double import DoubleDouble, lifted, total
from ._inner_loss import Point
from ._self_concordance import Residuals
from .families._exact_products import exact_backward, exact_forward, extended_unit
from .families._generalised_linear import GeneralisedLinear
from .families._mean_loss import MeanLoss, OuterData, offset_of, over
from .families._norms import DesignNorms


def _weighted(loss: GeneralisedLinear, rows: DoubleDouble, hyper: PyTree) -> DoubleDouble:
    if loss.weights is None:
        return rows
    omega = over(loss.weights.values(hyper), rows.hi)
    return rows * lifted(jnp.broadcast_to(omega, rows.hi.shape))


def _divided(x: DoubleDouble, count: int) -> DoubleDouble:
    return x / lifted(jnp.full_like(x.hi, float(count)))


def _joined(a: DoubleDouble, b: DoubleDouble, axis: int) -> DoubleDouble:
    """Side by side; a vector is a column."""

    def join(x: Array, y: Array) -> Array:
        wide = axis == 1 and x.ndim == 1
        return jnp.stack([x, y], axis=1) if wide else jnp.concatenate([x, y], axis=axis)

    return jax.tree.map(join, a, b)


def _split(x: DoubleDouble, point: Point) -> tuple[DoubleDouble, DoubleDouble]:
    """The two halves of columns that `_joined` has put side by side."""
    if point.params.ndim == 1:
        return jax.tree.map(lambda a: a[:, 0], x), jax.tree.map(lambda a: a[:, 1], x)
    columns = point.params.shape[1]
    return jax.tree.map(lambda a: a[:, :columns], x), jax.tree.map(lambda a: a[:, columns:], x)


def _pulled(loss: GeneralisedLinear, strengths: DoubleDouble, v: Array) -> DoubleDouble:
    """`loss.pull`."""
    own = strengths * lifted(v)
    if loss.free is None or loss.free.gauge is None:
        return own
    columns, gauge = loss.free.columns, loss.free.gauge
    means = _divided(total(lifted(v[columns]), 1), v.shape[1]) * lifted(gauge[:, None])
    gauged = jax.tree.map(lambda x: jnp.zeros_like(v).at[columns].set(jnp.broadcast_to(x, v[columns].shape)), means)
    return own + gauged


def extended_residuals(
    loss: GeneralisedLinear,
    outer: MeanLoss,
    outer_data: OuterData,
    outer_norms: DesignNorms,
    hyper: PyTree,
    point: Point,
    adjoint: Float[Array, "d *C"],
) -> Residuals:
    """∇g(ŵ) and r = Â q - ∇f(ŵ) in double-double arithmetic, rounded once at the end.

    The errors are those of working precision with a unit roundoff u' of about 2^-80 in place of 2^-53 (see
    `extended_unit`), and |x| 2^-53 of the result x itself. Float64 parameters only; narrower ones are widened first.
    """
    strengths = lifted(loss.strengths(hyper))
    n, m = loss.inputs.shape[0], outer_data[0].shape[0]
    predicted, reach = _split(exact_forward(loss.inputs, _joined(lifted(point.params), lifted(adjoint), axis=1)), point)
    outer_predicted = exact_forward(outer_data[0], lifted(point.params))
    if loss.offset is not None:
        predicted = predicted + lifted(loss.offset)
    outer_offset = offset_of(outer_data)
    if outer_offset is not None:
        outer_predicted = outer_predicted + lifted(outer_offset)
    same = not jax.tree.leaves(loss.loss) and outer.loss == loss.loss  # weights of classes are arrays, and may differ
    if same:  # one evaluation of the same function for both data sets: half the code to compile
        both = _joined(predicted, outer_predicted, axis=0)
        none = lifted(jnp.zeros_like(outer_predicted.hi))
        with jax.numpy_dtype_promotion("standard"):  # labels of two widths, whatever the user has set
            targets = jnp.concatenate([loss.targets, outer_data[1]])
        slopes, curves = loss.loss.extended(both, _joined(reach, none, axis=0), targets)
        slope, curved = jax.tree.map(lambda x: x[:n], (slopes, curves))
        outer_slope = jax.tree.map(lambda x: x[n:], slopes)
    else:
        slope, curved = loss.loss.extended(predicted, reach, loss.targets)
        outer_slope, _ = outer.loss.extended(outer_predicted, outer_predicted, outer_data[1])
    rows = _joined(_weighted(loss, slope, hyper), _weighted(loss, curved, hyper), axis=1)
    of_slope, of_curved = _split(exact_backward(loss.inputs, rows), point)
    gradient = _divided(of_slope, n) + _pulled(loss, strengths, point.params)
    product = _divided(of_curved, n) + _pulled(loss, strengths, adjoint)
    if outer.weights is not None:
        heavy = over(outer.weights.astype(outer_slope.hi.dtype), outer_slope.hi)
        outer_slope = outer_slope * lifted(jnp.broadcast_to(heavy, outer_slope.hi.shape))
    residual = product - _divided(exact_backward(outer_data[0], outer_slope), m)

    unit = extended_unit(max(n, m, point.params.shape[0]))
    rounding = loss.rounding(point, hyper, adjoint, unit)
    of_outer = outer.gradient_rounding(point.params, outer_data, outer_norms, unit)
    return Residuals(
        gradient.hi,
        residual.hi,
        INFLATION * rounding.gradient + 2 * UNIT * jnp.abs(gradient.hi),
        INFLATION * (rounding.product + of_outer) + 2 * UNIT * jnp.abs(residual.hi),
    )
