"""How far weights are from their mode, the way there, and the results that name what is not as it should be."""

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from evidence_oracles import softmax

from hyprax import evidence as ev
from hyprax.evidence import _arrival, _estimator, _mode, _truncated_newton
from thoroughness import slow

N, D, H, C = 12, 3, 5, 3


def network(params, hyper, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def built(weights: float = 1.0, precision: float = 0.7) -> ev.LinearisedModel:
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(weights * rng.normal(size=(D, H))), "v": jnp.asarray(weights * rng.normal(size=(H, C)))}
    data = (rng.normal(size=(N, D)), rng.integers(0, C, N))
    return ev.linearise(
        network, params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(precision), temperature=1.2
    )


def dense(problem: ev.LinearisedModel) -> float:
    """½ gᵀ(P0 + H)⁻¹g from dense Jacobians."""
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    f = jax.vmap(lambda x: network(unravel(flat), None, x))
    jacobian = jax.jacobian(lambda w: jax.vmap(lambda x: network(unravel(w), None, x))(problem.inputs))(flat)
    p = softmax(np.asarray(f(problem.inputs)))
    curvature = np.einsum("nc,cd->ncd", p, np.eye(C)) - p[:, :, None] * p[:, None]
    precision, t = float(problem.prior.precision), float(problem.temperature)
    h = np.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian) / t + precision * np.eye(flat.size)
    g = np.einsum("ncp,nc->p", jacobian, np.eye(C)[np.asarray(problem.targets)] - p) / t - precision * np.asarray(flat)
    return 0.5 * float(g @ np.linalg.solve(h, g))


@pytest.mark.parametrize("way", [slow("functions"), "weights", "conjugate gradients"])
def test_the_decrement_is_that_of_the_dense_newton_step(way: str, monkeypatch: pytest.MonkeyPatch):
    problem = built()
    if way in ("weights", "functions"):
        monkeypatch.setattr(_mode, "exact_side", lambda *_: way)
    elif way == "conjugate gradients":
        monkeypatch.setattr(_mode, "exact_side", lambda *_: None)
    found, want = _mode.decrement(problem), dense(problem)
    assert found.way == way
    assert found.value - found.slack <= want * (1 + 1e-9)
    assert found.value >= want * (1 - 1e-9)
    np.testing.assert_allclose(found.value, want, rtol=1e-2 if way == "conjugate gradients" else 1e-9)


@pytest.mark.slow
def test_a_sampled_decrement_is_near_the_whole(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_mode, "exact_side", lambda *_: None)
    monkeypatch.setattr(_mode, "MOST_EXAMPLES", 200)
    rng = np.random.default_rng(1)
    data = (rng.normal(size=(400, D)), rng.normal(size=(400, 1)) + 2.0)
    problem = ev.linearise(
        lambda p, h, x: x @ p[:D] + p[D], jnp.zeros((D + 1, 1)), data,
        likelihood=ev.Gaussian(1.0), prior=ev.GaussianPrior(1.0),
    )  # fmt: skip
    found = _mode.decrement(problem, jax.random.key(0))
    assert found.way == "sampled"
    np.testing.assert_allclose(found.value, _mode.decrement(problem).value, rtol=0.3)


def test_a_linear_model_arrives_in_one_step_and_lacks_its_decrement():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(N, D)), 5 * rng.normal(size=(N, 1))

    def at(params):
        return ev.log_evidence(
            lambda p, h, x: x @ p, params, (x, y), likelihood=ev.Gaussian(0.5), prior=ev.GaussianPrior(2.0)
        )

    start = jnp.ones((D, 1))
    far = at(start)
    model = ev.linearise(lambda p, h, x: x @ p, start, (x, y), likelihood=ev.Gaussian(0.5), prior=ev.GaussianPrior(2.0))
    arrival = ev.to_mode(model)
    want = np.linalg.solve(x.T @ x / 0.25 + 2 * np.eye(D), x.T @ y / 0.25)
    np.testing.assert_allclose(arrival.params, want, rtol=1e-9)
    near = at(arrival.params)
    np.testing.assert_allclose(near.value - far.value, far.decrement.value, rtol=1e-9)
    assert far.result == ev.RESULTS.not_at_a_mode
    assert f"decrement = {float(far.decrement.value):.4g}" in far.message
    assert near.result == ev.RESULTS.successful
    assert near.message == ""
    assert near.certificate.side == "both"
    assert near.certificate.bound < 1e-10


def test_a_network_arrives_where_no_step_is_left():
    problem = built(2.0, 0.3)
    arrival = ev.to_mode(problem, steps=200)
    left = _mode.decrement(eqx.tree_at(lambda p: p.params, problem, arrival.params))
    assert left.value < 1e-3
    assert _mode.decrement(problem).value > 0.1


def test_a_network_arrives_at_a_maximum_whatever_its_start():
    """The gradient is 0 and the dense Hessian of the log joint density negative."""
    for scale in (0.1, 1.0, 3.0):
        arrival = ev.to_mode(built(scale, 0.05), steps=500, tolerance=1e-10)
        problem = eqx.tree_at(lambda p: p.params, built(scale, 0.05), arrival.params)
        flat, unravel = jax.flatten_util.ravel_pytree(problem.params)

        def joint(w: jax.Array, problem=problem, unravel=unravel) -> jax.Array:
            return _mode.log_joint(problem, unravel(w))

        assert arrival.decrement <= 1e-10
        assert np.max(np.abs(jax.grad(joint)(flat))) < 1e-5
        assert np.max(np.linalg.eigvalsh(jax.hessian(joint)(flat))) < 0


def two_factors(a: float, b: float, dtype: str = "float64") -> tuple[ev.LinearisedModel, float]:
    """f = a b x of targets x: (0, 0) is a saddle of the log joint density. The model, and a b at its modes."""
    x, precision = np.linspace(-1, 1, 9, dtype=dtype)[:, None], 0.3
    problem = ev.linearise(
        lambda p, h, x: p["a"] * p["b"] * x, {"a": jnp.asarray(a, dtype), "b": jnp.asarray(b, dtype)}, (x, x),
        likelihood=ev.Gaussian(jnp.asarray(0.5, dtype)), prior=ev.GaussianPrior(jnp.asarray(precision, dtype)),
    )  # fmt: skip
    return problem, 1 - 0.25 * precision / float(np.sum(x**2))  # |a| = |b|, a b = 1 - σ² P0/Σx²


def test_a_saddle_is_left_where_gauss_newton_stays():
    problem, product = two_factors(1e-6, -2e-6)
    arrival = ev.to_mode(problem)
    np.testing.assert_allclose(abs(arrival.params["a"] * arrival.params["b"]), product, rtol=1e-5)
    stopped = ev.to_mode(problem, steps=1)
    assert np.isinf(stopped.decrement)


def test_the_acceleration_is_that_of_the_dense_second_derivative():
    """-(I + ΦᵀΦ)⁻¹ Φᵀ Lᵀ D²f[s, s] in the coordinates P0^½ w, from dense derivatives of the outputs."""
    problem = built(1.0)
    flat, unravel = jax.flatten_util.ravel_pytree(problem.params)
    scale = float(problem.prior.precision) ** -0.5

    def outputs(u: jax.Array) -> jax.Array:
        return jax.vmap(lambda x: network(unravel(scale * u), None, x))(problem.inputs)

    u, s = flat / scale, np.random.default_rng(3).normal(size=flat.size)
    p = softmax(np.asarray(outputs(u)))
    curvature = (np.einsum("nc,cd->ncd", p, np.eye(C)) - p[:, :, None] * p[:, None]) / float(problem.temperature)
    jacobian = np.asarray(jax.jacobian(outputs)(u))
    bend = np.einsum("ncpq,p,q->nc", np.asarray(jax.jacfwd(jax.jacrev(outputs))(u)), s, s)
    matrix = np.eye(s.size) + np.einsum("ncp,ncd,ndq->pq", jacobian, curvature, jacobian)
    want = -np.linalg.solve(matrix, np.einsum("ncp,ncd,nd->p", jacobian, curvature, bend))
    step = unravel(jnp.asarray(s))
    found = _truncated_newton._acceleration(problem, _mode.factored(problem), step)
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(found)[0], want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", [2, 4])
def test_a_narrow_bent_valley_is_gone_through(seed: int):
    """Ten points and little noise: straight steps, which soon climb the walls of the valley, take 500 and more."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(10, 2))
    y = np.sin(2 * x[:, :1]) * x[:, 1:] + 0.01 * rng.normal(size=(10, 1))
    params = {"w": jnp.asarray(rng.normal(size=(2, 20))), "v": jnp.asarray(rng.normal(size=(20, 1)))}
    problem = ev.linearise(network, params, (x, y), likelihood=ev.Gaussian(1e-3), prior=ev.GaussianPrior(0.1))
    arrival = ev.to_mode(problem, steps=400, tolerance=1e-5)
    assert arrival.decrement <= 1e-5
    left = _mode.decrement(eqx.tree_at(lambda p: p.params, problem, arrival.params))
    assert left.value < 1e-4


WAYS = ["newton", "gauss-newton", "quasi-newton"]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`to_mode` goes this way, whatever the model."""
    if request.param == "gauss-newton":
        monkeypatch.setattr(_arrival, "unrolled", lambda _: True)
    elif request.param == "quasi-newton":
        monkeypatch.setattr(_arrival, "exact_side", lambda *_: None)
        monkeypatch.setattr(_arrival, "EXAMPLES", 5)
    return request.param


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.usefixtures("way")
def test_weights_exactly_at_a_saddle_do_not_count_as_arrived(dtype: str):
    problem, product = two_factors(0.0, 0.0, dtype)
    arrival = ev.to_mode(problem)
    assert arrival.decrement <= 1e-4
    np.testing.assert_allclose(abs(arrival.params["a"] * arrival.params["b"]), product, rtol=2e-2)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("start", ["zero", "alike"])
def test_units_that_are_alike_part_where_the_density_is_higher(start: str, way: str):
    """All weights 0, and five equal units: gradients keep them so, the dense Hessian says whether that is a mode."""
    problem = built(2.0, 0.01)
    first = jax.tree.map(jnp.zeros_like, problem.params)
    if start == "alike":
        first = {"w": jnp.tile(problem.params["w"][:, :1], (1, H)), "v": jnp.tile(problem.params["v"][:1], (H, 1))}
    problem = eqx.tree_at(lambda p: p.params, problem, first)
    tolerance = 1e-4 if way == "gauss-newton" else 1e-8  # which arrives slowly where the Hessian is another
    arrival = ev.to_mode(problem, steps=300, tolerance=tolerance)
    flat, unravel = jax.flatten_util.ravel_pytree(arrival.params)
    hessian = np.asarray(jax.hessian(lambda w: _mode.log_joint(problem, unravel(w)))(flat))
    assert arrival.decrement <= tolerance
    assert np.max(np.linalg.eigvalsh(hessian)) < 1e-6
    assert _mode.log_joint(problem, arrival.params) > _mode.log_joint(problem, first) + 1


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_zero_weights_are_believed_where_they_are_the_mode(way: str):
    """Under a prior that is strong enough nothing is learned, and that is the maximum."""
    problem = built(0.0, 100.0)
    arrival = ev.to_mode(problem)
    assert arrival.decrement <= 1e-4
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(arrival.params))


def test_weights_near_a_saddle_are_not_at_a_mode():
    x = np.linspace(-1, 1, 9)[:, None]
    objective = ev.EvidenceObjective(
        lambda p, h, x: p["a"] * p["b"] * x, {"a": jnp.asarray(1e-6), "b": jnp.asarray(-2e-6)}, (x, x),
        likelihood=ev.Gaussian(0.5), schedule=ev.Schedule(mode_after=0, newton_steps=1), key=jax.random.key(0),
    )  # fmt: skip
    hyper = {"precision": ev.precisions(objective.initial, 0.3)}
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    assert answer.result == ev.RESULTS.not_at_a_mode
    assert "near a saddle" in answer.message
    assert not np.isfinite(state.kept.value)


@pytest.fixture
def no_matrix(monkeypatch: pytest.MonkeyPatch):
    """Models as if no matrix of a side were cheap, their examples gone through in three chunks of two sizes."""
    for module in (_mode, _arrival):
        monkeypatch.setattr(module, "exact_side", lambda *_: None)
    monkeypatch.setattr(_arrival, "EXAMPLES", 5)


@pytest.mark.usefixtures("no_matrix")
def test_without_a_matrix_the_mode_is_that_of_scipy():
    """Softmax regression, whose mode is the only one; weighted, tempered, with a precision for each weight."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(N, D)), rng.integers(0, C, N)
    counts, precision, mean, t = rng.uniform(0.5, 2, N), 10.0 ** rng.uniform(-3, 1, (D, C)), 0.3, 1.2

    def negative(w: np.ndarray) -> tuple[float, np.ndarray]:
        f, off = x @ w.reshape(D, C), w.reshape(D, C) - mean
        log_p = f - scipy.special.logsumexp(f, axis=1, keepdims=True)
        slope = x.T @ (counts[:, None] * (np.exp(log_p) - np.eye(C)[y])) / t + precision * off
        return -counts @ log_p[np.arange(N), y] / t + 0.5 * np.sum(precision * off**2), slope.ravel()

    want = scipy.optimize.minimize(negative, np.zeros(D * C), jac=True, method="BFGS", options={"gtol": 1e-9})
    problem = ev.linearise(
        lambda p, h, x: x @ p, jnp.asarray(rng.normal(size=(D, C))), (x, y, counts),
        likelihood=ev.Categorical(), prior=ev.GaussianPrior(precision, mean), temperature=t,
    )  # fmt: skip
    arrival = ev.to_mode(problem, tolerance=1e-14)
    np.testing.assert_allclose(arrival.params.ravel(), want.x, rtol=1e-5, atol=1e-6)
    assert arrival.decrement <= 1e-14
    assert 0 < arrival.steps < 500


@pytest.mark.usefixtures("no_matrix")
@pytest.mark.parametrize("steps", [1, 50])
def test_what_is_left_is_bounded_from_above_whether_or_not_the_weights_arrived(steps: int):
    problem = built(2.0, 0.3)
    arrival = ev.to_mode(problem, steps=steps, tolerance=1e-6)
    left = dense(eqx.tree_at(lambda p: p.params, problem, arrival.params))
    assert left <= arrival.decrement * (1 + 1e-6)
    assert (arrival.decrement <= 1e-6) == (steps == 50)
    if steps == 1:
        assert arrival.steps == 10
        assert arrival.decrement <= 1.5 * left


def test_the_rest_of_conjugate_gradients_is_bounded_at_every_step():
    """θ rᵀr >= rᵀA⁻¹r for A >= 1, by far nearer than rᵀr where A is large."""
    rng = np.random.default_rng(6)
    basis = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    a = basis * np.geomspace(1.0, 1e4, 30) @ basis.T
    x, r, share = np.zeros(30), rng.normal(size=30), jnp.asarray(1.0)
    p = r
    for _ in range(12):
        q = a @ p
        alpha = r @ r / (p @ q)
        x, new = x + alpha * p, r - alpha * q
        beta = new @ new / (r @ r)
        r, p = new, new + beta * p
        share = _mode.radau(share, jnp.asarray(alpha), jnp.asarray(beta), 1.0)
        assert float(share) * (r @ r) >= r @ np.linalg.solve(a, r) * (1 - 1e-9)
    assert float(share) < 0.1


def test_a_last_layer_is_one_set_of_weights_in_one_formula():
    """Penalty, log-determinant and decrement of the head alone: the body is a constant, whatever its precision."""
    problem = built()

    def value(log_precision, structure):
        prior = ev.GaussianPrior({"w": jnp.exp(log_precision[0]), "v": jnp.exp(log_precision[1])})
        found = ev.log_evidence(
            network, problem.params, (problem.inputs, problem.targets), likelihood=ev.Categorical(), prior=prior,
            estimator=structure, key=jax.random.key(0),
        )  # fmt: skip
        return found.value, found

    body = problem.params["w"]
    alone = ev.log_evidence(
        lambda p, h, x: network({"w": body, "v": p}, h, x), problem.params["v"], (problem.inputs, problem.targets),
        likelihood=ev.Categorical(), prior=ev.GaussianPrior(2.0),
    )  # fmt: skip
    last = ev.structures.LastLayer(lambda p: p["v"])
    at = jnp.asarray([0.3, np.log(2.0)])
    grad, found = jax.grad(value, has_aux=True)(at, ev.FullData(last))
    np.testing.assert_allclose(found.value, alone.value, rtol=1e-10)
    np.testing.assert_allclose(found.decrement.value, alone.decrement.value, rtol=1e-9)
    assert grad[0] == 0
    part = jax.grad(value, has_aux=True)(at, ev.Partition(N, structure=last))[0]
    np.testing.assert_allclose(part, grad, rtol=1e-9)


ESTIMATORS = {
    "full": ev.FullData(),
    "blocks": ev.FullData(ev.structures.TensorBlocks()),
    "kfac": ev.FullData(ev.structures.KFAC()),
    "chain": ev.Chain(ev.designs.OneRow(6)),
    "partition": ev.Partition(5),
    "tangent": ev.Tangent(6),
}


@pytest.mark.parametrize(
    "name", [n if n in ("full", "chain") else pytest.param(n, marks=pytest.mark.slow) for n in ESTIMATORS]
)
def test_one_precision_has_its_derivative_where_the_others_are_constants(name: str):
    problem, estimator = built(), ESTIMATORS[name]

    @jax.jit
    def value(log_precision, other):
        prior = ev.GaussianPrior({"w": jnp.exp(log_precision), "v": jnp.exp(other)})
        moved = eqx.tree_at(lambda p: p.prior, problem, prior)
        return estimator(moved, jax.random.key(0)).upper

    alone = jax.jit(jax.grad(lambda s: value(s, 0.1)))(0.2)
    np.testing.assert_allclose(alone, jax.jit(jax.grad(value))(0.2, 0.1), rtol=1e-10)


def small_noise(noise: float, estimator: ev.AbstractEstimator, dtype=jnp.float32) -> ev.LogEvidence:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(60, 4)), rng.normal(size=(4, 1))
    with jax.enable_x64(dtype == jnp.float64):
        return ev.log_evidence(
            lambda p, h, x: x @ p, jnp.asarray(w, dtype), (jnp.asarray(x, dtype), jnp.asarray(x @ w, dtype)),
            likelihood=ev.Gaussian(jnp.asarray(noise, dtype)), prior=ev.GaussianPrior(jnp.asarray(1.0, dtype)),
            estimator=estimator, key=jax.random.key(0),
        )  # fmt: skip


@pytest.mark.parametrize("estimator", [ev.Chain(ev.designs.OneRow(60)), ev.FullData()], ids=("chain", "full"))
def test_small_noise_is_borne_in_single_precision(estimator: ev.AbstractEstimator):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    for noise in (0.1, 1e-3, 3e-4):
        want = np.linalg.slogdet(np.eye(4) + x.T @ x / noise**2)[1]
        np.testing.assert_allclose(small_noise(noise, estimator).log_determinant, want, rtol=2e-6)


def test_a_kernel_too_large_for_its_precision_is_still_a_bound_and_says_so():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 4)) @ rng.normal(size=(4, 40))
    kernel = (kernel @ kernel.T * 1e8).astype(np.float32)
    found = _estimator.chain(jnp.asarray(kernel), jnp.ones(40, jnp.float32))
    want = np.sum(np.log1p(np.maximum(np.linalg.eigvalsh(kernel.astype(float)), 0)))
    assert np.isfinite(float(found.upper))
    assert found.rounding > 1
    assert float(found.upper) > 0.9 * want


def test_half_precision_is_computed_with_in_single():
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(N, D)), jnp.bfloat16), rng.integers(0, C, N)
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        found = ev.log_evidence(
            lambda p, h, x: x @ p, jnp.ones((D, C), jnp.bfloat16), (x, y),
            likelihood=ev.Categorical(), prior=ev.GaussianPrior(1.0),
        )  # fmt: skip
    assert found.value.dtype == jnp.float32
    assert np.isfinite(float(found.value))


@pytest.mark.parametrize(
    ("noise", "precision", "result"),
    [(1e-5, 1.0, "noise_vanishing"), (1.0, 1e9, "precision_running_away"), (1.0, 1e-9, "precision_running_away")],
)
def test_what_runs_away_is_named(noise: float, precision: float, result: str):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(N, D)), rng.normal(size=(N, 1))
    weights = np.linalg.solve(x.T @ x / noise**2 + precision * np.eye(D), x.T @ y / noise**2)
    found = ev.log_evidence(
        lambda p, h, x: x @ p, jnp.asarray(weights), (x, y),
        likelihood=ev.Gaussian(noise), prior=ev.GaussianPrior(precision),
    )  # fmt: skip
    assert found.result == getattr(ev.RESULTS, result)
    assert "fix" in found.message
