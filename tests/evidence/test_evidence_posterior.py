"""The posterior and its predictions against dense float64 references, and the scores against their definitions."""

import functools
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from evidence_oracles import curvature, jacobian, softmax
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from hyprax import evidence as ev
from hyprax.evidence._predictive import Outputs, Prediction, log_predictive, predicted
from hyprax.fits import fit_evidence
from thoroughness import slow

N, D, H, C = 12, 3, 4, 3


def mlp(params, hyper, x):
    return jnp.tanh((x * hyper["scale"]) @ params["body"]["w"] + params["body"]["b"]) @ params["head"]


def network(rng, outputs=C):
    return {
        "body": {"w": jnp.asarray(rng.normal(size=(D, H))), "b": jnp.asarray(rng.normal(size=H))},
        "head": jnp.asarray(rng.normal(size=(H, outputs))),
    }


KINDS = {
    "categorical": (ev.Categorical(), lambda rng: rng.integers(0, C, N)),
    "gaussian": (ev.Gaussian(0.3), lambda rng: rng.normal(size=(N, C))),
    "bernoulli": (ev.Bernoulli(), lambda rng: rng.integers(0, 2, (N, C)).astype(float)),
    "poisson": (ev.Poisson(), lambda rng: rng.integers(0, 5, (N, C))),
}
PRECISION = {"body": 2.0, "head": 0.5}


def built(kind, seed=0, temperature=0.7):
    rng = np.random.default_rng(seed)
    likelihood, targets = KINDS[kind]
    data = (rng.normal(size=(N, D)), targets(rng))
    prior = ev.GaussianPrior(PRECISION, mean=0.1)
    return ev.linearise(
        mlp, network(rng), data, {"scale": jnp.ones(D)}, likelihood=likelihood, prior=prior, temperature=temperature
    )


def dense(problem, kind, inputs, weight=1.0, only=slice(None)):
    """Σ [P, P] by inverting P0 + H, and the means and covariances of f at new inputs."""
    precision = np.concatenate([np.full(H, 2.0), np.full(D * H, 2.0), np.full(H * C, 0.5)])
    j = np.asarray(jacobian(mlp, problem.params, problem.hyper, problem.inputs))
    f = np.asarray(jax.vmap(lambda x: mlp(problem.params, problem.hyper, x))(problem.inputs))
    h = np.einsum("ncp,ncd,ndq->pq", j, curvature(kind, f, 0.3), j) * weight / 0.7
    covariance = np.zeros_like(h)
    inside = np.linalg.inv((np.diag(precision) + h)[only, only])
    covariance[only, only] = inside
    star = np.asarray(jacobian(mlp, problem.params, problem.hyper, inputs))
    mean = np.asarray(jax.vmap(lambda x: mlp(problem.params, problem.hyper, x))(inputs))
    return covariance, mean, np.einsum("ncp,pq,ndq->ncd", star, covariance, star)


NEW = np.random.default_rng(9).normal(size=(7, D))


@pytest.mark.parametrize("form", ["weights", "functions", "auto"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_outputs_have_the_mean_and_covariance_of_the_dense_posterior(kind, form):
    for seed in range(3):
        problem = built(kind, seed)
        got = ev.posterior(problem, form=form, scale=1.0).outputs(NEW, chunk=3)
        _, mean, covariance = dense(problem, kind, NEW)
        np.testing.assert_allclose(got.mean, mean, rtol=1e-10)
        np.testing.assert_allclose(got.covariance, covariance, rtol=1e-8, atol=1e-10 * np.abs(covariance).max())


@pytest.mark.parametrize("form", ["weights", "functions"])
def test_a_last_layer_posterior_is_that_of_its_block_alone(form):
    problem = built("categorical")
    found = ev.posterior(problem, where=lambda p: p["head"], form=form, scale=1.0)
    _, mean, covariance = dense(problem, "categorical", NEW, only=slice(H + D * H, None))
    got = found.outputs(NEW)
    np.testing.assert_allclose(got.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(got.covariance, covariance, rtol=1e-8, atol=1e-10)
    drawn = found.sample(3, key=jax.random.key(0))
    np.testing.assert_array_equal(drawn["body"]["w"], np.stack([problem.params["body"]["w"]] * 3))
    assert np.ptp(drawn["head"], axis=0).min() > 0


def test_tensors_may_be_picked_through_a_view_made_afresh():
    problem = built("categorical")
    want = ev.posterior(problem, where=lambda p: p["body"], scale=1.0).outputs(NEW)
    got = ev.posterior(problem, where=lambda p: list(p["body"].values()), scale=1.0).outputs(NEW)
    again = ev.posterior(problem, where=lambda p: dict(p["body"]), scale=1.0).outputs(NEW)
    np.testing.assert_array_equal(got.covariance, want.covariance)
    np.testing.assert_array_equal(again.covariance, want.covariance)


@pytest.mark.parametrize("form", ["weights", "functions"])
def test_draws_of_the_weights_have_the_posterior_mean_and_covariance(form):
    problem = built("categorical")
    count = 40_000
    drawn = ev.posterior(problem, form=form, scale=1.0).sample(count, key=jax.random.key(1))
    flat = np.concatenate([np.reshape(x, (count, -1)) for x in jax.tree.leaves(drawn)], axis=1)
    mode = np.concatenate([np.ravel(x) for x in jax.tree.leaves(problem.params)])
    want, _, _ = dense(problem, "categorical", NEW)
    deviation = np.sqrt(np.diag(want))
    assert np.all(np.abs(flat.mean(0) - mode) < 5 * deviation / np.sqrt(count))
    error = np.abs(np.cov(flat.T) - want) / np.outer(deviation, deviation)
    assert error.max() < 6 / np.sqrt(count) * np.sqrt(2)


@pytest.mark.slow
def test_a_subset_stands_for_the_whole_and_its_variance_is_on_average_not_too_small():
    problem = built("categorical")
    key = jax.random.key(3)
    found = ev.posterior(problem, size=5, scale=1.0, key=key)
    assert found.problem.size == 5
    part = eqx.tree_at(lambda p: (p.inputs, p.targets), problem, (found.problem.inputs, found.problem.targets))
    _, _, want = dense(part, "categorical", NEW, weight=N / 5)
    np.testing.assert_allclose(found.outputs(NEW).covariance, want, rtol=1e-8, atol=1e-10)
    whole = ev.posterior(problem, scale=1.0).outputs(NEW).variances
    some = np.array(
        [ev.posterior(problem, size=5, scale=1.0, key=jax.random.key(k)).outputs(NEW).variances for k in range(60)]
    )
    assert np.all(some.mean(0) > whole - 3 * some.std(0) / np.sqrt(60))


def plain(params, hyper, x):
    return jnp.tanh(x @ params["body"]) @ params["head"]


@functools.cache
def plain_model():
    """Without biases: every weight is in one product, so the factors of KFAC are written down by hand."""
    rng = np.random.default_rng(3)
    params = {"body": jnp.asarray(rng.normal(size=(D, H))), "head": jnp.asarray(rng.normal(size=(H, C)))}
    data = (rng.normal(size=(N, D)), rng.integers(0, C, N))
    return ev.linearise(plain, params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(PRECISION))


def plain_parts():
    """J [N, C, P], Λ, the diagonal of P0 and J at new inputs."""
    model = plain_model()
    f = np.asarray(jax.vmap(lambda x: plain(model.params, None, x))(model.inputs))
    j, star = (np.asarray(jacobian(plain, model.params, None, x)) for x in (model.inputs, NEW))
    return j, curvature("categorical", f), np.repeat([2.0, 0.5], [D * H, H * C]), star


def kfac_by_hand():
    """A ⊗ G + P0 for both layers."""
    model, (_, bend, _, _) = plain_model(), plain_parts()
    x, body, head = (np.asarray(a) for a in (model.inputs, model.params["body"], model.params["head"]))
    hidden = np.tanh(x @ body)
    slope = head.T[None] * (1 - hidden**2)[:, None]  # [N, C, H]: from the product with `body` to the outputs
    inner = np.einsum("nch,ncd,ndk->hk", slope, bend, slope)
    blocks = [np.kron(x.T @ x / N, inner), np.kron(hidden.T @ hidden / N, bend.sum(0))]
    return np.block([
        [blocks[0] + 2.0 * np.eye(D * H), np.zeros((D * H, H * C))],
        [np.zeros((H * C, D * H)), blocks[1] + 0.5 * np.eye(H * C)],
    ])  # fmt: skip


def in_blocks(matrix, sizes):
    kept, start = np.zeros_like(matrix), 0
    for size in sizes:
        kept[start : start + size, start : start + size] = matrix[start : start + size, start : start + size]
        start += size
    return kept


@pytest.mark.parametrize("name", ["Diagonal", "TensorBlocks", "KFAC", slow("EKFAC"), "LastLayer"])
def test_structures_give_the_posterior_that_they_give_the_evidence_of(name: str):
    """By dense matrices; and log|A| of the same matrix is the structure's log-determinant."""
    model, (j, bend, prior, star) = plain_model(), plain_parts()
    whole = np.diag(prior) + np.einsum("ncp,ncd,ndq->pq", j, bend, j)
    structure = ev.structures.LastLayer(lambda p: p["head"]) if name == "LastLayer" else getattr(ev.structures, name)()
    found = ev.posterior(model, structure=structure, scale=1.0)
    got = found.outputs(NEW).covariance
    if name == "LastLayer":
        precision, star = whole[D * H :, D * H :], star[..., D * H :]
    elif name == "EKFAC":
        units = jax.vmap(lambda k: found.factor.draw(found.problem, k))(jax.random.split(jax.random.key(0), 20_000))
        flat = np.concatenate([np.reshape(x, (20_000, -1)) for x in jax.tree.leaves(units)], axis=1)
        covariance = np.cov(flat.T) / np.sqrt(np.outer(prior, prior))
        want = np.einsum("ncp,pq,ndq->ncd", star, covariance, star)
        np.testing.assert_allclose(got, want, atol=0.05 * np.abs(want).max())
        log_det = ev.FullData(structure)(model, jax.random.key(0)).upper
        pivots = [np.log(block.pivots).sum() for block in getattr(found.factor, "blocks")]  # noqa: B009 (of this kind)
        np.testing.assert_allclose(sum(pivots), log_det, rtol=1e-9)
        return
    else:
        precision = {
            "Diagonal": np.diag(np.diag(whole)), "TensorBlocks": in_blocks(whole, [D * H, H * C]),
            "KFAC": kfac_by_hand() if name == "KFAC" else None,
        }[name]  # fmt: skip
    want = np.einsum("ncp,pq,ndq->ncd", star, np.linalg.inv(precision), star)
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
    drawn = found.sample(4000, key=jax.random.key(1))
    flat = np.concatenate([np.reshape(drawn[k], (4000, -1)) for k in ("body", "head")], axis=1)
    flat = flat[:, D * H :] if name == "LastLayer" else flat
    covariance = np.linalg.inv(precision)
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(np.cov(flat.T) - covariance) / np.outer(deviation, deviation)).max() < 0.12


def test_the_scale_is_chosen_by_predictions_without_the_datum():
    """Each datum's own term taken from P0 + H, its Newton step back, and the best scale of a grid, densely."""
    model, (j, bend, prior, _) = plain_model(), plain_parts()
    whole = np.diag(prior) + np.einsum("ncp,ncd,ndq->pq", j, bend, j)
    f = np.asarray(jax.vmap(lambda x: plain(model.params, None, x))(model.inputs))
    labels, means, variances = np.asarray(model.targets), [], []
    for n in range(N):
        covariance = np.linalg.inv(whole - j[n].T @ bend[n] @ j[n])
        slope = np.eye(C)[labels[n]] - softmax(f[n : n + 1])[0]
        means.append(f[n] - j[n] @ covariance @ j[n].T @ slope)
        variances.append(np.diag(j[n] @ covariance @ j[n].T))
    grid = np.concatenate([[0.0], np.geomspace(1e-3, 10, 41)])
    scores = [
        np.log(softmax(means / np.sqrt(1 + np.pi / 8 * t * np.array(variances)))[np.arange(N), labels]).sum()
        for t in grid
    ]
    found = ev.posterior(model)
    np.testing.assert_allclose(found.scale, grid[np.argmax(scores)], rtol=1e-12)
    outputs = found.outputs(NEW)
    want = softmax(np.asarray(outputs.mean / np.sqrt(1 + np.pi / 8 * found.scale * outputs.variances)))
    np.testing.assert_allclose(found.predict(NEW), want, rtol=1e-10)


def test_predictions_come_with_their_deviation():
    outputs = ev.posterior(built("gaussian")).outputs(NEW)
    _, deviation = ev.posterior(built("gaussian")).predict(NEW, return_std=True)
    np.testing.assert_allclose(deviation, np.sqrt(np.asarray(outputs.variances) + 0.09), rtol=1e-10)
    found = ev.posterior(plain_model(), scale=0.5)
    outputs = found.outputs(NEW)
    mean, deviation = found.predict(NEW, return_std=True, samples=4000)
    np.testing.assert_array_equal(mean, found.predict(NEW))
    rng = np.random.default_rng(0)
    drawn = [rng.multivariate_normal(m, v, 4000) for m, v in zip(outputs.mean, 0.5 * outputs.covariance, strict=True)]
    np.testing.assert_allclose(deviation, softmax(np.stack(drawn)).std(1), atol=0.02)
    _, nothing = found.predict(NEW, "map", return_std=True)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)


def how(approximation, samples=1, scale=1.0):
    return Prediction(approximation, samples, jax.random.key(0), jnp.asarray(scale))


def mean_prediction(likelihood, outputs, way):
    return predicted(likelihood, outputs, way, False)[0]


def gaussians(seed, outputs, m=10):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(m, outputs, outputs)) * rng.uniform(0.05, 1, (m, 1, 1))
    return Outputs(jnp.asarray(rng.normal(size=(m, outputs)) * 2), jnp.asarray(root @ root.swapaxes(1, 2)))


@given(st.integers(0, 10_000))
@settings(max_examples=5)
@pytest.mark.slow
def test_two_classes_by_probit_are_near_the_integral(seed):
    outputs = gaussians(seed, 1)
    got = mean_prediction(ev.Bernoulli(), outputs, how("probit"))
    for mean, variance, p in zip(outputs.mean[:, 0], outputs.covariance[:, 0, 0], got[:, 0], strict=True):
        deviation = float(np.sqrt(variance))
        want = integrate.quad(lambda t, m=mean, s=deviation: stats.norm.pdf(t) / (1 + np.exp(-(m + s * t))), -12, 12)[0]
        assert abs(p - want) < 0.02  # MacKay's approximation: at most about 0.018 away


@pytest.mark.parametrize("outputs_count", [slow(2), 3, slow(10)])
def test_monte_carlo_is_the_mean_over_draws_and_the_others_are_near_it(outputs_count):
    outputs = gaussians(outputs_count, outputs_count)
    rng = np.random.default_rng(0)
    draws = np.stack(
        [rng.multivariate_normal(m, v, 10_000) for m, v in zip(outputs.mean, outputs.covariance, strict=True)]
    )
    want = softmax(draws).mean(1)
    got = {
        a: np.asarray(mean_prediction(ev.Categorical(), outputs, how(a, 10_000)))
        for a in ("monte_carlo", "probit", "bridge", "map")
    }
    np.testing.assert_allclose(got["monte_carlo"], want, atol=0.025)
    for a in got:
        np.testing.assert_allclose(got[a].sum(1), 1, rtol=1e-10)
    # Both approximations are nearer to the integral than the plain mode is.
    gaps = {a: np.abs(p - want).mean() for a, p in got.items()}
    assert gaps["probit"] < gaps["map"]
    labels = jnp.asarray(rng.integers(0, outputs_count, len(want)))
    for a in ("monte_carlo", "probit", "bridge"):
        log_p = log_predictive(ev.Categorical(), outputs, labels, how(a, 10_000))
        np.testing.assert_allclose(np.exp(log_p), got[a][np.arange(len(want)), labels], rtol=1e-8)


def test_the_bridge_is_its_formula():
    outputs = gaussians(5, 4)
    got = mean_prediction(ev.Categorical(), outputs, how("bridge"))
    for mean, v, p in zip(np.asarray(outputs.mean), np.asarray(outputs.covariance), got, strict=True):
        ones = np.ones(4)
        f = mean - v @ ones * mean.sum() / (ones @ v @ ones)
        v = v - np.outer(v @ ones, ones @ v) / (ones @ v @ ones)
        alpha = (1 - 2 / 4 + np.exp(f) * np.exp(-f).sum() / 16) / np.diag(v)
        np.testing.assert_allclose(p, alpha / alpha.sum(), rtol=1e-8)
        # The bridge's Dirichlet has the logits' own mode as its mean, up to the flat part.
        assert np.argmax(alpha * np.diag(v)) == np.argmax(f)


def test_gaussian_targets_have_their_exact_predictive_density():
    problem = built("gaussian")
    found = ev.posterior(problem)
    y = np.random.default_rng(4).normal(size=(7, C))
    _, mean, covariance = dense(problem, "gaussian", NEW)
    want = [
        stats.multivariate_normal(m, v + 0.09 * np.eye(C)).logpdf(t)
        for m, v, t in zip(mean, covariance, y, strict=True)
    ]
    np.testing.assert_allclose(found.log_likelihood(NEW, y), want, rtol=1e-8)
    np.testing.assert_allclose(found.predict(NEW), mean, rtol=1e-10)
    assert found.log_likelihood(NEW, y, "map").shape == (7,)


def test_counts_are_integrated_by_draws_and_their_mean_is_exact():
    problem = built("poisson")
    found = ev.posterior(problem)
    outputs = found.outputs(NEW)
    y = np.round(np.exp(outputs.mean)).astype(int)
    want = np.exp(np.asarray(outputs.mean) + 0.5 * np.asarray(outputs.variances))
    np.testing.assert_allclose(found.predict(NEW), want, rtol=1e-10)
    rng = np.random.default_rng(1)
    got = found.log_likelihood(NEW, y, "monte_carlo", samples=20_000, key=jax.random.key(0))
    for m, v, t, log_p in zip(outputs.mean, outputs.covariance, y, got, strict=True):
        rates = np.exp(rng.multivariate_normal(m, v, 20_000))
        want = np.log(stats.poisson.pmf(t, rates).prod(1).mean())
        np.testing.assert_allclose(log_p, want, atol=0.1)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e6])
def test_certain_and_wild_outputs_give_finite_probabilities(scale):
    mean = jnp.asarray([[300.0, -300.0, 0.0], [0.0, 0.0, 0.0]], jnp.float32)
    outputs = Outputs(mean, jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32) * scale, (2, 3, 3)).astype(jnp.float32))
    for a in ("monte_carlo", "probit", "bridge", "map"):
        p = mean_prediction(ev.Categorical(), outputs, how(a, 10))
        assert np.all(np.isfinite(p)), a
        np.testing.assert_allclose(np.sum(p, 1), 1, rtol=1e-5)


@pytest.mark.slow
def test_a_fit_hands_its_posterior_over():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2))
    y = (x[:, 0] > 0).astype(int)
    fitted = fit_evidence(
        lambda p, h, x: x @ p,
        jnp.zeros((2, 2)),
        (x, y),
        epochs=30,
        burn_in=10,
        optimizer=optax.adam(3e-2),
        progress=False,
        key=jax.random.key(0),
    )
    p = fitted.predict(x)
    assert np.mean(np.argmax(p, 1) == y) > 0.9
    far = fitted.posterior().predict(x * 100)
    assert np.mean(stats.entropy(far, axis=1)) < np.mean(stats.entropy(p, axis=1))  # a linear model is surer far away


@pytest.mark.parametrize("bins", [1, 7, 15])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10)
def test_the_calibration_error_is_its_definition(bins, seed):
    rng = np.random.default_rng(seed)
    p = softmax(2 * rng.normal(size=(50, 4)))
    labels = rng.integers(0, 4, 50)
    confidence, right, want = p.max(1), p.argmax(1) == labels, 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            want += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    np.testing.assert_allclose(ev.calibration_error(jnp.asarray(p), jnp.asarray(labels), bins), want, atol=1e-12)


def test_the_calibration_error_of_known_predictions():
    sure = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    assert ev.calibration_error(sure, jnp.asarray([0, 1])) == 0
    assert ev.calibration_error(sure, jnp.asarray([1, 0])) == 1


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ev.posterior(built("categorical"), size=N + 1), f"got {N + 1}"),
        (lambda: ev.posterior(built("categorical"), form=cast(Any, "both")), "form must be .*'both'"),
        (lambda: ev.posterior(built("poisson")).log_likelihood(NEW, np.ones((7, C))), "for Poisson"),
        (lambda: ev.posterior(built("bernoulli")).predict(NEW, "bridge"), "for Bernoulli"),
        (lambda: ev.posterior(built("categorical")).log_likelihood(NEW, np.full(7, C)), f"labels from {C}"),
        (lambda: ev.posterior(built("gaussian")).predict(NEW, cast(Any, "exact")), "approximation must be .*'exact'"),
        (lambda: ev.posterior(built("categorical")).predict(NEW, samples=0), "samples must be .* 0"),
        (lambda: ev.posterior(built("categorical")).outputs(NEW[:0]), "got 0 examples"),
        (lambda: ev.posterior(built("categorical")).outputs(NEW[0]), rf"shape \(m, {D}\) .*got shape \(3,\)"),
        (lambda: ev.posterior(built("categorical")).outputs(NEW[:, :2]), rf"shape \(m, {D}\) .*got shape \(7, 2\)"),
        (lambda: ev.posterior(built("categorical")).outputs({"x": NEW}), "inputs must have the structure"),
        (lambda: ev.posterior(built("categorical")).log_likelihood(NEW, np.zeros(6, int)), "7 inputs and 6 targets"),
        (lambda: ev.posterior(built("categorical"), where=lambda p: p["tail"]), "'tail'"),
        (lambda: ev.posterior(built("categorical"), where=lambda p: None), "picks \\[\\]"),
        (lambda: ev.posterior(built("categorical"), where=lambda p: "head"), "picks \\['head'\\]"),
        (lambda: ev.calibration_error(jnp.ones((3, 2)), jnp.zeros(3, int)), "must be probabilities"),
        (lambda: ev.calibration_error(jnp.ones((3, 1)), jnp.zeros(2, int)), "labels must have shape"),
        (lambda: ev.calibration_error(jnp.ones((3, 1)), jnp.zeros(3, int), 0), "bins must be .* 0"),
        (
            lambda: ev.calibration_error(jnp.ones((3, 1)), [0, 0, 5]),
            "labels must be whole numbers .*from 0 to 5",
        ),
    ],
)
def test_bad_requests_are_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
