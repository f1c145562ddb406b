"""The elastic net with strengths of its own for every column, as a problem for folds and as an objective."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from .._certificate import Certificate
from .._hyper import AbstractConstrained, AbstractElementwise, natural
from .._noise import AbstractNoise, Noise
from .._objective import AbstractObjective, Hypergradient, Value, refuse_accuracy
from .._result import Result
from .._stats import AbstractStats, Accuracy, Effort
from .._trees import tree_norm
from ._answers import RESULTS
from ._constants import INFLATION
from ._elastic_net_bound import Judged, adjoint, count, judged
from ._elastic_net_solver import Moments, Solved, moments_of, on_support, solved
from ._held_out import NOT_ASKED
from ._noise import ExampleNoise
from ._objective import promoted
from .families._design import real_numbers

METHOD = "duality of the elastic net: residual over strong convexity, on a proved support"


class ElasticNetFit(eqx.Module):
    """An elastic net fitted at given strengths.

    - `params`: the weights `(d,)`, zeros where a column is dropped; `intercept`.
    - `residual`: the distance of 0 from the subdifferential; `result`: `successful` where it is rounding alone.
    """

    params: Float[Array, " d"]
    intercept: Float[Array, ""]
    residual: Float[Array, ""]
    result: Result


class ElasticNetStats(AbstractStats):
    """What the fit took and reached.

    - `support`: the number of weights that are not zero; `proved`: whether the support is that of the exact optimum.
    - `residual`: the distance of 0 from the subdifferential at the weights.
    - `rounds`: of ten sweeps over the coordinates and solves on the support.
    """

    support: Int[Array, ""]
    proved: Bool[Array, ""]
    residual: Float[Array, ""]
    rounds: Int[Array, ""]

    def effort(self) -> Effort:
        return Effort(self.rounds.astype(self.residual.dtype))


class ElasticNet(eqx.Module):
    """min_w (1/2n) Σ_i ω_i (y_i - b - x_iᵀw)² + Σ_j α_j |w_j| + ½ Σ_j λ_j w_j², its strengths in the hyperparameters.

    A problem for [`hyprax.search.CrossValidated`][], which tunes α and λ by the loss of held-out rows. A fold keeps the
    prior: 1/n counts all rows. Strengths above 0 in λ make the optimum unique; where it is differentiable, with S its
    support and s its signs,

        dF/dα_j = -s_j q_j,  dF/dλ_j = -w_j q_j  for j in S, and 0 elsewhere,   (XᵀX/n + Λ)_SS q = ∇_S F.

    **Arguments:**

    - `inputs`: `(n, d)`, dense; `targets`: `(n,)`.
    - `l1`, `l2`: the names of α and λ in the hyperparameters, each a number for all columns, one for each column, or
        one for each group.
    - `groups`: the number of the group of each column, from 0.
    - `intercept`: b, without a penalty: the columns and the targets are centred on the training rows.
    - `weights`: ω `(n,)`, numbers > 0; n is then their sum. Held-out rows count by them too.

    **Certificate:** with r the distance of 0 from the subdifferential and μ a proved lower bound of the least
    eigenvalue of XᵀX/n + Λ, ‖ŵ - w‖ <= r/μ. Where that leaves every active weight its sign and every inactive one
    inside its threshold, the support is proved and the hypergradient `certified`; else it is `estimated`, since F may
    have a kink there. Values are `certified` in any case. In float64 alone.

    **Raises:** `ValueError` for inputs of other shapes, or numbers that are not finite.

    Source: Zou and Hastie (JRSS B 67, 2005); hypergradients on the support: Bertrand et al. (JMLR 23, 2022).
    """

    inputs: Float[Array, "n d"]
    targets: Float[Array, " n"]
    weights: Float[Array, " n"]
    groups: Int[Array, " d"] | None
    l1: str = eqx.field(static=True)
    l2: str = eqx.field(static=True)
    intercept: bool = eqx.field(static=True)

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        l1: str = "l1",
        l2: str = "l2",
        groups: Any = None,
        intercept: bool = True,
        weights: Any = None,
    ):
        x = np.asarray(real_numbers(inputs, "ElasticNet: inputs"))
        y = np.asarray(real_numbers(targets, "ElasticNet: targets"))
        if x.ndim != 2 or y.shape != (len(x),) or x.size == 0:
            raise ValueError(f"ElasticNet: inputs must be (n, d) and targets (n,); got {x.shape} and {y.shape}.")
        if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
            raise ValueError("ElasticNet: inputs and targets must be finite; got NaN or an infinite number.")
        dtype = jnp.result_type(float)
        self.inputs, self.targets = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
        omega = np.ones(len(y)) if weights is None else np.asarray(weights, float)
        if omega.shape != y.shape or not np.all((omega > 0) & (omega < np.inf)):
            raise ValueError(f"ElasticNet: weights must be {len(y)} finite numbers > 0; got {omega}.")
        self.weights = jnp.asarray(omega, dtype)
        self.groups = None
        if groups is not None:
            numbers = np.asarray(groups)
            if numbers.shape != x.shape[1:] or numbers.dtype.kind not in "iu" or numbers.min() < 0:
                raise ValueError(f"ElasticNet: groups must be {x.shape[1]} whole numbers >= 0; got {numbers}.")
            self.groups = jnp.asarray(numbers)
        self.l1, self.l2, self.intercept = l1, l2, bool(intercept)

    def labels(self) -> np.ndarray:
        """The targets: as splitters take them."""
        return np.asarray(self.targets)

    def stratify(self) -> bool:
        """Targets are numbers, no classes."""
        return False

    def held_out(self, training: np.ndarray, held_out: np.ndarray, **settings: Any) -> AbstractObjective:
        """The loss on some rows of the net fitted on others; masks are booleans."""
        return ElasticNetHeldOut(self, training, held_out, **settings)

    def refit(self, hyper: PyTree) -> ElasticNetFit:
        """The net fitted on all rows."""
        self.check(hyper)
        moments = self.moments(np.ones(len(self.targets), bool))
        found = solved(moments, *self.strengths(hyper), jnp.zeros_like(moments.cross))
        result = RESULTS.where(found.converged, RESULTS.successful, RESULTS.inner_not_converged)
        intercept = moments.level - jnp.sum(moments.centre * found.params)
        return ElasticNetFit(found.params, intercept, found.residual, result)

    def strengths(self, hyper: PyTree) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """α and λ of every column."""
        values, columns = natural(promoted(hyper, self.inputs)), self.inputs.shape[1]

        def each(name: str) -> Array:
            x = jnp.asarray(values[name], self.inputs.dtype)
            if x.ndim and self.groups is not None:
                return x[self.groups]
            return jnp.broadcast_to(x, (columns,))

        return each(self.l1), each(self.l2)

    def check(self, hyper: PyTree) -> None:
        """Refuse hyperparameters that are not those of the net."""
        columns = self.inputs.shape[1]
        groups = columns if self.groups is None else int(self.groups.max()) + 1
        for name in (self.l1, self.l2):
            if not isinstance(hyper, dict) or name not in hyper:
                raise ValueError(f"ElasticNet: the hyperparameters must be a dictionary with {name!r}; got {hyper}.")
            leaf = hyper[name]
            if isinstance(leaf, AbstractConstrained) and not isinstance(leaf, AbstractElementwise):
                raise ValueError(f"ElasticNet: {name!r} must be numbers, such as hx.Positive; got {leaf}.")
            shape = np.shape(natural({name: leaf})[name])
            if shape not in ((), (groups,)):
                raise ValueError(f"ElasticNet: {name!r} must be one number or {groups}; got the shape {shape}.")

    def moments(self, training: np.ndarray) -> Moments:
        """Of the training rows, centred on them."""
        x, y, omega = (np.asarray(z) for z in (self.inputs, self.targets, self.weights))
        return moments_of(x, y, omega, training, self.intercept)


class ElasticNetHeldOut(AbstractObjective[Array]):
    """F(α, λ) = (1/2m) Σ_{i of m held out} ω_i (y_i - b - x_iᵀw)² of an elastic net fitted on the training rows."""

    problem: ElasticNet
    fit: Moments
    held: Float[Array, " n"]
    noise: ExampleNoise | None
    noisy: bool = eqx.field(static=True)
    adaptive: bool = eqx.field(static=True)
    value_name: str = eqx.field(static=True)

    citations: ClassVar[tuple[str, ...]] = (
        """@article{zou2005regularization, author = {Zou, Hui and Hastie, Trevor},
  title = {Regularization and variable selection via the elastic net},
  journal = {Journal of the Royal Statistical Society B}, volume = {67}, pages = {301--320}, year = {2005}}""",
        """@article{bertrand2022implicit, author = {Bertrand, Quentin and Klopfenstein, Quentin and Massias, Mathurin
  and Blondel, Mathieu and Vaiter, Samuel and Gramfort, Alexandre and Salmon, Joseph},
  title = {Implicit differentiation for fast hyperparameter selection in non-smooth convex learning},
  journal = {Journal of Machine Learning Research}, volume = {23}, year = {2022}}""",
    )

    def __init__(self, problem: ElasticNet, training: Any, held_out: Any, *, noise: ExampleNoise | None = None):
        rows = len(problem.labels())
        masks = [np.asarray(mask) for mask in (training, held_out)]
        for name, mask in zip(("training", "held_out"), masks, strict=True):
            if mask.dtype != bool or mask.shape != (rows,) or not mask.any():
                raise ValueError(
                    f"ElasticNet: {name} must be booleans ({rows},), some of them true; got {mask.dtype}"
                    f"{list(mask.shape)}."
                )
        self.problem, self.fit, self.noise = problem, problem.moments(masks[0]), noise
        self.held = jnp.where(jnp.asarray(masks[1]), problem.weights, 0)
        self.noisy, self.adaptive, self.value_name = False, False, "held-out loss"

    @property
    def measures_noise(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # known from its parts, where others hold a field
        return self.noise is not None

    def init(self, hyper: PyTree) -> Array:
        self.problem.check(hyper)
        return jnp.zeros_like(self.fit.cross)

    def value_and_grad(
        self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None
    ) -> tuple[Hypergradient, Array]:
        refuse_accuracy(self, accuracy)
        value, grad, entries, errors, stats, result, state = self._evaluated(hyper, state)
        kind = "certified" if bool(stats.proved) and value.dtype == jnp.float64 else "estimated"
        bound = INFLATION * tree_norm(entries)
        certificate = Certificate(bound, kind, "|hypergradient - exact|", METHOD, None, entries)
        noise: AbstractNoise = NOT_ASKED
        if errors is not None:
            noise = Noise(errors, jnp.sum(self.held > 0) - 1, "held-out examples")
        return Hypergradient(value, grad, certificate, noise, result, stats), state

    @eqx.filter_jit
    def _evaluated(self, hyper: PyTree, start: Array) -> tuple:
        (l1, l2), back = jax.vjp(self.problem.strengths, hyper)
        found = solved(self.fit, l1, l2, start)
        w, active = found.params, found.params != 0
        loss = self._judged(found, l2)
        q, proved, of_l1, of_l2 = adjoint(self.fit, found, l1, l2, loss)
        (grad,) = back((-jnp.sign(w) * q, -w * q))
        (entries,) = back((of_l1, of_l2))
        (sizes,) = back((jnp.abs(q), jnp.abs(w * q)))
        entries = jax.tree.map(
            lambda e, x: (1 + 8 * jnp.finfo(x.dtype).eps) * (e + (w.size + 8) * 8 * jnp.finfo(x.dtype).eps * x),
            entries,
            sizes,
        )
        errors = None if self.noise is None else self._spread(back, l2, active, w, loss.off)
        stats = ElasticNetStats(jnp.sum(active), proved, found.residual, found.rounds)
        return loss.value, grad, entries, errors, stats, self._result(found, l1, l2), w

    def _judged(self, found: Solved, l2: Array) -> Judged:
        return judged(self.problem.inputs, self.problem.targets, self.held, self.fit, found, l2)

    def _spread(self, back: Any, l2: Array, active: Array, w: Array, off: Array) -> PyTree:
        """Standard errors of the entries over the held-out rows."""
        m, root = count(self.held), jnp.sqrt(self.held)
        left = root[:, None] * (self.problem.inputs - self.fit.centre[None, :])
        each = jax.vmap(lambda row: on_support(self.fit, l2, active, row))(-left * off[:, None])
        found = jax.vmap(lambda q: back((-jnp.sign(w) * q, -w * q))[0])(each)  # each times the weight of its row

        def error(h: Array) -> Array:
            share = self.held.reshape(-1, *(1,) * (h.ndim - 1))
            mean = jnp.sum(h, axis=0, keepdims=True) / jnp.sum(self.held)
            return jnp.sqrt(jnp.sum(jnp.square(h - share * mean), axis=0) * m / (m - 1)) / m

        return jax.tree.map(error, found)

    def _result(self, found: Solved, l1: Array, l2: Array) -> RESULTS:
        result = RESULTS.where(found.converged, RESULTS.successful, RESULTS.inner_not_converged)
        return RESULTS.where(jnp.all(l2 > 0) & jnp.all(l1 >= 0), result, RESULTS.unpenalised)

    def value(self, hyper: PyTree, state: Array, accuracy: Accuracy | None = None) -> tuple[Value, Array]:
        refuse_accuracy(self, accuracy)
        value, bound, stats, result, state = self._valued(hyper, state)
        kind = "certified" if value.dtype == jnp.float64 else "estimated"
        return Value(value, Certificate(bound, kind, "|value - exact|", METHOD), NOT_ASKED, result, stats), state

    @eqx.filter_jit
    def _valued(self, hyper: PyTree, start: Array) -> tuple:
        l1, l2 = self.problem.strengths(hyper)
        found = solved(self.fit, l1, l2, start)
        loss = self._judged(found, l2)
        support = jnp.sum(found.params != 0)
        stats = ElasticNetStats(support, jnp.asarray(False), found.residual, found.rounds)
        return loss.value, loss.value_error, stats, self._result(found, l1, l2), found.params

    def params(self, state: Array) -> PyTree:
        """The weights on the training rows."""
        return state

    def final(self, hyper: PyTree, state: Array) -> tuple[Value, Array]:
        return self.value(hyper, state)
