"""Fits of softmax regression without one row each, enclosed: C x C blocks in place of numbers.

What `_left_out` says holds with these changes. Weights W (p, C) are vectors of d = p C. The Hessian without row i is
that of all rows less x_i x_iᵀ ⊗ S_i, S_i = ω_i (diag p - ppᵀ)/n: with Z_i = H⁻¹(x_i ⊗ I) and h_i = (x_i ⊗ I)ᵀZ_i its
inverse is H⁻¹ + Z_i S_i (I - h_i S_i)⁻¹ Z_iᵀ. |x_kᵀv| becomes osc(x_kᵀV) = max - min over the classes; its supremum
over ‖V‖_H <= 1 is at most the sum of the two largest ‖x_k ⊗ (e_c - 1/C)‖_{H⁻¹}, which lack the direction in which all
classes move alike, where the penalty alone bends. The loss and its slope feel u through osc alone: ½ Σ_c |∇ℓ_c| osc is
a bound of |∇ℓᵀδ|, and probabilities change by a factor of at most e^osc.

The adjoint of a row is that of its own slope, H_i⁻¹(x_i ⊗ ∇ℓ_i), where families with one output keep H_i⁻¹x_i.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float, Int

from .._products import einsum, product
from ._cholesky_bound import factor_of
from ._constants import INFLATION
from ._left_out import Centre, LeftOut, largest_of_others, norms_at, record
from ._left_out_rounds import NEAR, Residual, refined
from ._left_out_sums import Judged
from ._one_step import Slopes
from ._self_concordance import finite_or_infinite
from .families._losses import SoftmaxLoss
from .families._mean_loss import unit_roundoff
from .families._norms import DesignNorms

MOST_COLUMNS = 32  # rows left out at once
ROWS_AT_ONCE = 32


class ClassRows(eqx.Module):
    """Softmax regression at given strengths and example weights. `gauge`: κ_j of a column without penalty, else 0."""

    inputs: Float[Array, "n p"]
    targets: Int[Array, " n"]
    strengths: Float[Array, " d"]
    weights: Float[Array, " n"]
    offset: Float[Array, "n C"]
    gauge: Float[Array, " p"]
    norms: DesignNorms
    loss: SoftmaxLoss

    @property
    def count(self) -> int:
        return self.inputs.shape[0]

    @property
    def classes(self) -> int:
        return self.offset.shape[1]

    @property
    def unit(self) -> float:
        return unit_roundoff(self.inputs)

    @property
    def block(self) -> int:
        return max(8, min(MOST_COLUMNS, (1 << 18) // (self.count * self.classes)))

    @property
    def inverse(self) -> Float[Array, " d"]:
        """1/λ, infinite for a column without penalty."""
        return jnp.where(self.strengths > 0, 1 / jnp.where(self.strengths > 0, self.strengths, 1), jnp.inf)

    def shaped(self, params: Float[Array, " d"]) -> Float[Array, "p C"]:
        return params.reshape(-1, self.classes)

    def reach(self, params: Float[Array, " d"]) -> Float[Array, "n C"]:
        """XW."""
        return product(self.inputs, self.shaped(params))

    def predict(self, params: Float[Array, " d"]) -> Float[Array, "n C"]:
        """XW + o."""
        return self.reach(params) + self.offset

    def pulled(self, params: Float[Array, " d"]) -> Float[Array, " d"]:
        """ΛW, and the gauge of free columns."""
        alike = jnp.mean(self.shaped(params), axis=1, keepdims=True) * self.gauge[:, None]
        return self.strengths * params + jnp.broadcast_to(alike, (alike.shape[0], self.classes)).ravel()

    def pulled_rounding(self, params: Float[Array, " d"]) -> Float[Array, " d"]:
        alike = jnp.mean(jnp.abs(self.shaped(params)), axis=1, keepdims=True) * self.gauge[:, None]
        alike = jnp.broadcast_to(alike, (alike.shape[0], self.classes)).ravel()
        return self.unit * (4 * self.strengths * jnp.abs(params) + (self.classes + 8) * alike)

    def back(self, rows: Float[Array, "n C"]) -> Float[Array, " d"]:
        """XᵀR/n."""
        return product(self.inputs.T, rows).ravel() / self.count

    def gradient(self, params: Float[Array, " d"]) -> tuple[Array, Array]:
        """The probabilities of every row, and ∇g."""
        statistic = self.loss.statistic(self.predict(params), self.targets)
        slope = self.weights[:, None] * self.loss.slope(statistic, self.targets)
        return statistic, self.back(slope) + self.pulled(params)

    def hessian(self, statistic: Float[Array, "n C"]) -> Float[Array, "d d"]:
        (n, p), classes = self.inputs.shape, self.classes
        shares = self.weights / n
        placed = (self.inputs[:, :, None] * statistic[:, None]).reshape(n, p * classes)
        whole = -product((shares[:, None] * placed).T, placed).reshape(p, classes, p, classes)

        def own(one: Array) -> Array:
            return product((self.inputs * (shares * one)[:, None]).T, self.inputs)

        every = jnp.arange(classes)
        whole = whole.at[:, every, :, every].add(jax.lax.map(own, statistic.T))
        columns = jnp.arange(p)
        whole = whole.at[columns, :, columns, :].add((self.gauge / classes)[:, None, None])
        return whole.reshape(p * classes, p * classes) + jnp.diag(self.strengths)

    def product_error(self, params: Float[Array, " d"]) -> tuple[Array, Array]:
        """Bounds, for each row, of every |XW| and of its rounding."""
        size = self.norms.rows * jnp.sqrt(jnp.max(jnp.sum(jnp.square(self.shaped(params)), axis=0)))
        return size, (self.inputs.shape[1] + 12) * self.unit * size

    def prediction_error(self, params: Float[Array, " d"]) -> tuple[Array, Array]:
        """The same for XW + o."""
        size, off = self.product_error(params)
        size = size + jnp.max(jnp.abs(self.offset), axis=1)
        return size, off + 2 * self.unit * size

    def curve_error(self, statistic: Float[Array, "n C"], du: Float[Array, " n"]) -> Float[Array, " n"]:
        """A bound of ‖δD‖, D = diag p - ppᵀ as computed from predictions that are off by du; and of sums with it."""
        n, p = self.inputs.shape
        relative = jnp.expm1(4 * du) + (n + 2 * p + 2 * self.classes + 60) * self.unit
        return relative * jnp.max(self.loss.curve_abs(statistic, jnp.ones_like(statistic)), axis=1)


def centre_at(rows: ClassRows, params: Float[Array, " d"]) -> Centre:
    """The centre at `params`, any point: a better one makes tighter bounds."""
    n, p = rows.inputs.shape
    classes, unit = rows.classes, rows.unit
    predictions = rows.predict(params)
    statistic = rows.loss.statistic(predictions, rows.targets)
    error = rows.weights * rows.curve_error(statistic, rows.prediction_error(params)[1]) / n
    hessian = rows.hessian(statistic)
    off = jnp.sum(jnp.square(rows.norms.rows) * error) + 4 * unit * jnp.max(rows.strengths)
    off = off + (classes + 8) * unit * jnp.max(rows.gauge)
    factor = factor_of(hessian, off, jnp.min(rows.strengths), unit)
    solved = factor.inverse.T.reshape(-1, p, classes)
    # Products over the columns alone, whose classes are then centred: rounding of the size of what is taken away.
    blur = 4 * (p + classes + 20) * unit * jnp.linalg.norm(factor.inverse)

    def one(row: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, q, length = row
        v = einsum("dpc,p->dc", solved, x)
        v = v - jnp.mean(v, axis=1, keepdims=True)
        lost = blur * length
        each = INFLATION * factor.inverse_scale * (jnp.sqrt(jnp.sum(jnp.square(v), axis=0)) + lost)
        curved = v * q[None]
        curved = curved - jnp.sum(curved * q[None], axis=1, keepdims=True) * q[None]
        power = product(curved.T, curved)
        size = jnp.trace(power)
        safe = jnp.where(size > 0, size, 1)
        power = power / safe
        for _ in range(5):  # tr(K^32)^(1/32) >= λ_max(K)
            power = product(power, power)
        top = safe * ((jnp.trace(power) + 1e-30) ** (1 / 32) * (1 + 1e-10) + 1e-12)
        top = factor.inverse_scale * (jnp.sqrt(top) + classes * lost)
        return jnp.sum(jax.lax.top_k(each, 2)[0]), jnp.square(top), jnp.sum(jnp.square(each))

    parts = (rows.inputs, jnp.sqrt(statistic), rows.norms.rows)
    reach, top, trace = jax.lax.map(one, parts, batch_size=ROWS_AT_ONCE)
    each = product(jnp.square(rows.inputs), rows.inverse.reshape(p, classes))
    plain = finite_or_infinite(INFLATION * jnp.square(rows.loss.oscillation_norm(each)))
    squares = jnp.minimum(finite_or_infinite(INFLATION * jnp.square(reach)), plain)
    axes = jnp.minimum(factor.energies(jnp.eye(p * classes, dtype=params.dtype)), INFLATION * jnp.sqrt(rows.inverse))
    columns = rows.norms.columns
    heaviest = jnp.max(rows.inverse.reshape(p, classes), axis=1)
    penalty = finite_or_infinite(INFLATION * jnp.sqrt(jnp.sum(jnp.square(columns) * heaviest)))
    spread = jnp.sum(columns * jnp.sqrt(jnp.sum(jnp.square(axes.reshape(p, classes)), axis=1)))
    return Centre(
        params=params,
        predictions=predictions,
        slopes=rows.weights[:, None] * rows.loss.slope(statistic, rows.targets),
        curves=statistic,
        factor=factor,
        hessian=hessian,
        squares=squares,
        axes=axes,
        leverage=finite_or_infinite(INFLATION * (rows.weights / n * top + error * trace)),
        largest=largest_of_others(rows.weights, squares),
        plain_squares=plain,
        plain_largest=largest_of_others(rows.weights, plain),
        spread=jnp.minimum(INFLATION * spread, penalty),
        spread_penalty=penalty,
        off=off,
    )


class _Downdate(eqx.Module):
    """H_i⁻¹ = H⁻¹ + Z T Zᵀ for one row left out; `kept`: the weights without it."""

    z: Float[Array, "d C"]
    t: Float[Array, "C C"]
    kept: Float[Array, " n"]

    def solve(self, centre: Centre, v: Float[Array, "d B"]) -> Float[Array, "d B"]:
        return centre.nearly(v) + product(self.z, product(self.t, product(self.z.T, v)))


def _placed(x: Float[Array, " p"], v: Float[Array, "C *B"]) -> Float[Array, "d *B"]:
    """x ⊗ v."""
    return (x.reshape(-1, *([1] * v.ndim)) * v[None]).reshape(-1, *v.shape[1:])


def _downdate(rows: ClassRows, centre: Centre, i: Int[Array, ""]) -> _Downdate:
    x, chance = rows.inputs[i], centre.curves[i]
    eye = jnp.eye(rows.classes, dtype=x.dtype)
    z = centre.nearly(_placed(x, eye))
    within = einsum("p,pcb->cb", x, z.reshape(-1, rows.classes, rows.classes))
    curve = rows.weights[i] / rows.count * (jnp.diag(chance) - jnp.outer(chance, chance))
    kept = rows.weights.at[i].set(0)
    return _Downdate(z, product(curve, jnp.linalg.inv(eye - product(within, curve))), kept)


def enclosed(rows: ClassRows, centre: Centre, left: Int[Array, " B"], *, rounds: int) -> LeftOut:
    """The fits without the rows `left`, one each, by one step and `rounds` more with the shared factor."""
    n, unit = rows.count, rows.unit

    def weigh(r: Array) -> Array:
        return jnp.sqrt(jnp.sum(jnp.square(product(centre.factor.inverse.T, r)), axis=0))

    def fitted(i: Array) -> tuple[_Downdate, Array, Array, Array, Array, Array, Array]:
        down = _downdate(rows, centre, i)

        def slopes(w: Array) -> tuple[Array, Array]:
            statistic = rows.loss.statistic(rows.predict(w[:, 0]), rows.targets)
            return statistic, down.kept[:, None] * rows.loss.slope(statistic, rows.targets)

        def gradient(w: Array) -> Array:
            return (rows.back(slopes(w)[1]) + rows.pulled(w[:, 0]))[:, None]

        def solve(r: Array) -> Array:
            return down.solve(centre, r)

        right = _placed(rows.inputs[i], centre.slopes[i] / n)[:, None]
        params, r = refined(solve, gradient, weigh, centre.params[:, None] + solve(right), rounds)
        params, r = params[:, 0], r[:, 0]
        size, du = rows.prediction_error(params)
        statistic, slope = slopes(params[:, None])
        error = rows.loss.slope_rounding(statistic, rows.targets, size[:, None], du[:, None], unit)
        error = down.kept[:, None] * error + (n + 12) * unit * jnp.abs(slope)
        at_centre = rows.prediction_error(centre.params)[1]
        apart = rows.loss.oscillation(rows.predict(params) - centre.predictions) + 2 * (at_centre + du)
        moved = jnp.max(jnp.where(down.kept > 0, apart, 0))
        return down, params, r, jnp.linalg.norm(error) / n, rows.pulled_rounding(params), moved, statistic

    down, params, r, off, more, moved, statistic = jax.vmap(fitted)(left)
    residual = Residual(r.T, off, more.T)
    norms = norms_at(rows, centre, left, moved)
    nu_penalty = residual.penalty_norm(rows, centre)
    nu = jnp.minimum(finite_or_infinite(norms.wider * residual.norm(rows, centre)), nu_penalty)
    settled_already = nu <= 20 * norms.wider * residual.rounding(centre)

    def adjoint_of(i: Array, down: _Downdate, w: Array, statistic: Array) -> tuple[Array, ...]:
        size, du = rows.prediction_error(w)
        own = rows.loss.slope(statistic, rows.targets)[i]
        own_error = rows.loss.slope_rounding(statistic, rows.targets, size[:, None], du[:, None], unit)[i]
        right = _placed(rows.inputs[i], own)

        def curved(a: Array) -> Array:
            bent = down.kept[:, None] * rows.loss.curve(statistic, rows.reach(a[:, 0]))
            return (rows.back(bent) + rows.pulled(a[:, 0]) - right)[:, None]

        def solve(r: Array) -> Array:
            return down.solve(centre, r)

        adjoint, r = refined(solve, curved, weigh, solve(right[:, None]), rounds)
        adjoint, r = adjoint[:, 0], r[:, 0]
        size, dv = rows.product_error(adjoint)
        root = rows.classes**0.5
        reach = jnp.minimum(jnp.max(jnp.abs(rows.reach(adjoint)), axis=1) + dv, size)
        error = rows.curve_error(statistic, du) * reach + rows.loss.top_curvature(statistic) * dv
        error = root * jnp.linalg.norm(down.kept * error) / n
        more = rows.pulled_rounding(adjoint) + 4 * unit * jnp.abs(right)
        return adjoint, r, error, more, 0.5 * jnp.sum(jnp.abs(own)), jnp.sum(own_error + 4 * unit * jnp.abs(own))

    adjoint, r, error, more, steep, lost = jax.vmap(adjoint_of)(left, down, params, statistic)
    off = Residual(r.T, error, more.T)
    of_adjoint = jnp.minimum(finite_or_infinite(norms.wider * off.norm(rows, centre)), off.penalty_norm(rows, centre))
    # Rounding of a slope need not sum to 0 over the classes, and the direction 1 is the one in which H is weakest.
    lost = finite_or_infinite(norms.wider * centre.factor.widest * rows.norms.rows[left] * lost)
    du = jax.vmap(rows.prediction_error)(params)[1][jnp.arange(len(left)), left]

    def changed(radius: Array) -> Array:
        return norms.own * 0.5 * jnp.expm1(radius + 2 * du) + lost

    right = norms.own * steep + lost
    close = (of_adjoint <= NEAR * right) | (of_adjoint <= 20 * norms.wider * off.rounding(centre))
    near = rows.loss.self_concordance * norms.rho * nu
    found = close & ((near <= NEAR) | ((near < 1) & settled_already))
    of_right = (finite_or_infinite(INFLATION * right), changed)
    return record(rows, centre, left, params.T, adjoint.T, norms, nu, nu_penalty, of_adjoint, found, of_right)


def judged(rows: ClassRows, left: Int[Array, " N"], fits: LeftOut) -> Judged:
    """|ℓ(u*) - ℓ(ũ)| <= ½ Σ_c |∇ℓ_c| r + r²/8 for osc(u* - ũ) <= r: a variance is at most a quarter of osc²."""
    unit, loss = rows.unit, rows.loss
    x, y, weights = rows.inputs[left], rows.targets[left], rows.weights[left]
    p, count, classes = x.shape[1], left.shape[0], rows.classes
    shaped = fits.params.reshape(count, p, classes)
    u = jnp.sum(x[:, :, None] * shaped, axis=1) + rows.offset[left]
    longest = jnp.sqrt(jnp.max(jnp.sum(jnp.square(shaped), axis=1), axis=1))
    size = rows.norms.rows[left] * longest + jnp.max(jnp.abs(rows.offset[left]), axis=1)
    du = (p + 14) * unit * size
    r = fits.radius + 2 * du
    statistic = loss.statistic(u, y)
    losses, slopes = loss.value(u, y), loss.slope(statistic, y)
    own = loss.slope_rounding(statistic, y, size[:, None], du[:, None], unit)
    steep = 0.5 * jnp.sum(jnp.abs(slopes) + own, axis=1)
    rounding = (20 + classes) * unit * (loss.value_size(u, y) + size)
    losses_error = finite_or_infinite(INFLATION * (steep * r + 0.125 * jnp.square(r)) + rounding)
    shares = weights / jnp.sum(weights)
    used = weights > 0

    def total(v: Array) -> Array:
        return jnp.sum(jnp.where(used, shares * v, 0))

    return Judged(
        losses=losses,
        losses_error=losses_error,
        slopes=shares,
        slopes_error=jnp.zeros_like(shares),  # the adjoints are of the slopes
        shares=shares,
        used=jnp.sum(used),
        mean=total(losses),
        mean_error=INFLATION * total(losses_error) + (count + 30) * unit * total(loss.value_size(u, y)),
    )


def weight_terms(
    rows: ClassRows, fits: LeftOut, seen: Judged, places: Int[Array, " B"]
) -> tuple[Float[Array, "n B"], Float[Array, "n B"]]:
    """c_i (x_kᵀa_i)ᵀ∇ℓ_k(x_kᵀw_i) for every row k and every row i left out, and bounds of the errors."""

    def one(params: Array, adjoint: Array, far: Array, far_adjoint: Array) -> tuple[Array, Array]:
        size, du = rows.prediction_error(params)
        _, dv = rows.product_error(adjoint)
        statistic = rows.loss.statistic(rows.predict(params), rows.targets)
        slope, v = rows.loss.slope(statistic, rows.targets), rows.reach(adjoint)
        error = rows.loss.slope_rounding(statistic, rows.targets, size[:, None], du[:, None], rows.unit)
        changed = 0.5 * jnp.expm1(far + 2 * du) + jnp.sum(error, axis=1)
        of_v, steep, wide = far_adjoint + 2 * dv, 0.5 * jnp.sum(jnp.abs(slope), axis=1), rows.loss.oscillation(v)
        # What a computed slope does not sum to 0 by meets v itself.
        off = wide * changed + of_v * (steep + changed) + jnp.sum(error, axis=1) * jnp.max(jnp.abs(v), axis=1)
        rounding = (rows.classes + 8) * rows.unit * jnp.sum(jnp.abs(slope * v), axis=1)
        return jnp.sum(slope * v, axis=1), finite_or_infinite(off + rounding)

    parts = (fits.params, fits.adjoint, fits.reach * fits.params_distance, fits.reach * fits.adjoint_distance)
    found, off = jax.vmap(one)(*(part[places] for part in parts))
    shares = seen.slopes[places][None]
    return shares * found.T, shares * off.T


def one_step_slopes(rows: ClassRows, params: Float[Array, " d"], left: Int[Array, " N"]) -> Slopes:
    """The derivative of the one-step criterion: F₁ = Σ_i ω_i ℓ_i(u_i + h_i (I - S_i h_i)⁻¹ω_i∇ℓ_i/n)/Σ_i ω_i."""
    n, p = rows.inputs.shape
    classes = rows.classes

    def criterion(w: Array, strengths: Array, weights: Array) -> Array:
        here = eqx.tree_at(lambda r: (r.strengths, r.weights), rows, (strengths, weights))
        u = rows.predict(w)
        statistic = rows.loss.statistic(u, rows.targets)
        inverse = jnp.linalg.inv(here.hessian(statistic)).reshape(p, classes, p, classes)
        slope = weights[:, None] * rows.loss.slope(statistic, rows.targets) / n

        @jax.checkpoint
        def one(i: Array) -> Array:
            x, chance = rows.inputs[i], statistic[i]
            within = einsum("p,pcqb,q->cb", x, inverse, x)
            curve = weights[i] / n * (jnp.diag(chance) - jnp.outer(chance, chance))
            step = jnp.linalg.solve(jnp.eye(classes, dtype=x.dtype) - product(curve, within), slope[i])
            return rows.loss.value((u[i] + product(within, step))[None], rows.targets[i][None])[0]

        chosen = weights[left]
        losses = jax.lax.map(one, left, batch_size=ROWS_AT_ONCE)
        return jnp.sum(chosen * losses) / jnp.sum(chosen)

    of_params, strengths, weights = jax.grad(criterion, argnums=(0, 1, 2))(params, rows.strengths, rows.weights)
    statistic, _ = rows.gradient(params)
    q = jsl.cho_solve((jnp.linalg.cholesky(rows.hessian(statistic)), True), of_params)
    slope = rows.loss.slope(statistic, rows.targets)
    return Slopes(strengths - q * params, weights - jnp.sum(rows.reach(q) * slope, axis=1) / n)
