"""Sequences, soft labels, noise that the model gives, weights, batches, adapters: against dense float64 references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evidence_oracles import curvature, jacobian
from scipy import stats

import hyprax as hx
from hyprax import evidence as ev
from hyprax._jaxprs import equations

N, D, H, C, S = 6, 3, 4, 3, 2
RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(N, S, D)), RNG.normal(size=(2, S, D))
LABELS = np.array([[0, 2], [1, -1], [2, 2], [0, 1], [1, 0], [2, -1]])
PARAMS = {"v": jnp.asarray(RNG.normal(size=(H, C))), "w": jnp.asarray(RNG.normal(size=(D, H)))}
PRECISION = {"v": 0.5, "w": 2.0}
PRIOR = ev.GaussianPrior(PRECISION)


def network(params, hyper, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def sequences(params, hyper, x):
    """A token sees those before it."""
    seen = jnp.cumsum(x, axis=0) / jnp.arange(1.0, S + 1)[:, None]
    return jnp.tanh(seen @ params["w"]) @ params["v"]


def flat(apply):
    return lambda params, hyper, x: apply(params, hyper, x).ravel()


def outputs(apply, x, params=PARAMS):
    return np.asarray(jax.vmap(lambda z: apply(params, None, z))(x))


def dense(apply, x, fit, bend, params=PARAMS, precision=PRECISION):
    """log q(D) by its definition from Λ [N, C, C]; and the covariance of the weights."""
    prior = np.concatenate([np.full(params[k].size, precision[k]) for k in sorted(params)])
    j = np.asarray(jacobian(apply, params, None, x))
    total = np.diag(prior) + np.einsum("ncp,ncd,ndq->pq", j, bend, j)
    w = np.concatenate([np.ravel(params[k]) for k in sorted(params)])
    log_det = np.linalg.slogdet(total)[1] - np.log(prior).sum()
    return fit - 0.5 * prior @ w**2 - 0.5 * log_det, np.linalg.inv(total)


def found(apply, data, likelihood, params=PARAMS, prior=PRIOR, **options):
    return ev.log_evidence(apply, params, data, likelihood=likelihood, prior=prior, **options)


def log_softmax(f):
    return f - np.log(np.exp(f).sum(-1, keepdims=True))


@functools.cache
def of_tokens():
    f = outputs(sequences, X)
    known = LABELS >= 0
    fit = np.take_along_axis(log_softmax(f), np.maximum(LABELS, 0)[..., None], 2)[..., 0][known].sum()
    blocks = curvature("categorical", f.reshape(-1, C)).reshape(N, S, C, C) * known[..., None, None]
    bend = np.zeros((N, S, C, S, C))
    for s in range(S):
        bend[:, s, :, s] = blocks[:, s]
    return dense(flat(sequences), X, fit, bend.reshape(N, S * C, S * C))


def test_every_token_is_an_example_and_padding_counts_nothing():
    value, _ = of_tokens()
    got = found(sequences, (X, LABELS), ev.Categorical())
    np.testing.assert_allclose(got.value, value, rtol=1e-11)
    np.testing.assert_allclose(found(sequences, (X, LABELS), ev.Categorical(), estimator=ev.FullData()).value, value)
    with pytest.raises(ValueError, match=rf"its output has shape \({S}, {C}\), and the targets \({N},\)"):
        found(sequences, (X, LABELS[:, 0]), ev.Categorical())


@pytest.mark.slow
def test_rows_of_tokens_are_sampled():
    """One row of each of some tokens: in the mean at least the truth, and with all rows the truth itself."""
    value, _ = of_tokens()
    whole = ev.Chain(ev.designs.Rows(N * S * (C - 1), "uniform"))
    got = found(sequences, (X, LABELS), ev.Categorical(), estimator=whole, key=jax.random.key(0))
    np.testing.assert_allclose(got.value, value, rtol=1e-11)
    some = ev.Chain(ev.designs.OneRow(6))
    values = [
        float(found(sequences, (X, LABELS), ev.Categorical(), estimator=some, key=jax.random.key(k)).value)
        for k in range(30)
    ]
    assert np.mean(values) < value + 3 * np.std(values) / np.sqrt(30)


def test_a_vocabulary_needs_no_matrix_of_its_square():
    """Neither the rows drawn nor the decrement make V x V numbers of a token, nor do their derivatives."""
    vocabulary, rng = 300, np.random.default_rng(5)
    x, y = rng.normal(size=(40, 2)), rng.integers(0, vocabulary, 40)
    params = {"w": jnp.asarray(0.1 * rng.normal(size=(2, 4))), "v": jnp.asarray(rng.normal(size=(4, vocabulary)))}

    def value(params):
        return ev.log_evidence(
            network, params, (x, y), likelihood=ev.Categorical(), prior=PRIOR, key=jax.random.key(0)
        ).value

    largest = max(
        int(np.prod(leaf.aval.shape))  # pyright: ignore[reportAttributeAccessIssue]  # of an array, as all are here
        for equation in equations(jax.make_jaxpr(jax.grad(value))(params).jaxpr)
        for leaf in equation.outvars
    )
    assert largest < vocabulary**2
    assert np.isfinite(value(params))


@pytest.mark.slow
def test_sequences_are_predicted_token_by_token():
    model = ev.linearise(sequences, PARAMS, (X, LABELS), likelihood=ev.Categorical(), prior=PRIOR)
    _, covariance = of_tokens()
    j = np.asarray(jacobian(flat(sequences), PARAMS, None, NEW))
    want = np.einsum("ncp,pq,ndq->ncd", j, covariance, j).reshape(2, S, C, S, C)
    for form in ("weights", "functions"):
        post = ev.posterior(model, form=form)
        got = post.outputs(NEW)
        for s in range(S):
            np.testing.assert_allclose(
                np.asarray(got.covariance).reshape(2, S, C, C)[:, s], want[:, s, :, s], rtol=1e-8
            )
    assert post.predict(NEW).shape == (2, S, C)
    scores = post.log_likelihood(NEW, np.array([[0, -1], [1, 2]]))
    assert scores.shape == (2, S)
    assert scores[0, 1] == 0


@pytest.mark.slow
def test_a_language_head_is_trained_by_its_tokens():
    objective = hx.EvidenceObjective(
        sequences, PARAMS, (X, LABELS), schedule=ev.Schedule(every=2), batch_size=3, key=jax.random.key(0)
    )
    hyper = {"precision": ev.precisions(PARAMS)}
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    model = objective.model(hyper, state)
    assert model.size == N * S
    value = found(sequences, (X, LABELS), ev.Categorical(), state.params, ev.GaussianPrior(1.0)).value
    np.testing.assert_allclose(answer.value, -value / (N * S), rtol=1e-9)


def test_soft_labels_and_smoothing():
    x, y = X[:, 0], LABELS[:, 0]
    f = log_softmax(outputs(network, x))
    soft = np.random.default_rng(1).dirichlet(np.ones(C), N)
    smooth = 0.9 * np.eye(C)[y] + 0.1 / C
    bend = curvature("categorical", f)
    value, _ = dense(network, x, (soft * f).sum(), bend)
    np.testing.assert_allclose(found(network, (x, soft), ev.Categorical()).value, value, rtol=1e-11)
    value, _ = dense(network, x, (smooth * f).sum(), bend)
    np.testing.assert_allclose(found(network, (x, y), ev.Categorical(smoothing=0.1)).value, value, rtol=1e-11)
    np.testing.assert_allclose(found(network, (x, smooth), ev.Categorical()).value, value, rtol=1e-11)


def test_weights_are_repetitions():
    x, y, counts = X[:, 0], LABELS[:, 0], np.array([1.0, 2, 0, 3, 1, 1])
    f = outputs(network, x)
    fit = (counts * log_softmax(f)[np.arange(N), y]).sum()
    value, covariance = dense(network, x, fit, counts[:, None, None] * curvature("categorical", f))
    got = found(network, (x, y, counts), ev.Categorical())
    np.testing.assert_allclose(got.value, value, rtol=1e-11)
    model = ev.linearise(network, PARAMS, (x, y, counts), likelihood=ev.Categorical(), prior=PRIOR)
    j = np.asarray(jacobian(network, PARAMS, None, NEW[:, 0]))
    want = np.einsum("ncp,pq,ndq->ncd", j, covariance, j)
    np.testing.assert_allclose(ev.posterior(model).outputs(NEW[:, 0]).covariance, want, rtol=1e-8)
    with pytest.raises(ValueError, match="weights must be one number >= 0"):
        found(network, (x, y, -counts), ev.Categorical())


def test_batches_are_joined():
    x, y = X[:, 0], LABELS[:, 0]
    want = found(network, (x, y), ev.Categorical()).value
    loader = ([x[i : i + 4], y[i : i + 4]] for i in (0, 4))  # as PyTorch's gives them
    assert found(network, loader, ev.Categorical()).value == want
    assert found(network, hx.Minibatches((x, y), 2, key=jax.random.key(0)), ev.Categorical()).value == want


@pytest.mark.slow
def test_the_model_may_give_its_noise():
    def heads(params, hyper, x):
        return network(params, hyper, x)[:2]

    x = X[:, 0]
    f = outputs(heads, x)
    y = RNG.normal(size=(N, 1))
    scale = np.exp(f[:, 1])
    fit = stats.norm.logpdf(y[:, 0], f[:, 0], scale).sum()
    bend = np.stack([np.diag([s**-2, 2.0]) for s in scale])
    value, covariance = dense(heads, x, fit, bend)
    likelihood = ev.HeteroscedasticGaussian()
    np.testing.assert_allclose(found(heads, (x, y), likelihood).value, value, rtol=1e-11)
    post = ev.posterior(ev.linearise(heads, PARAMS, (x, y), likelihood=likelihood, prior=ev.GaussianPrior(PRECISION)))
    j = np.asarray(jacobian(heads, PARAMS, None, NEW[:1, 0]))[0]
    v, m = j @ covariance @ j.T, outputs(heads, NEW[:1, 0])[0]

    u, v_u = np.linspace(-7, 7, 801), np.linalg.cholesky(v)
    grid = np.stack(np.meshgrid(u, u, indexing="ij"), -1)
    at = m + grid @ v_u.T
    mass = stats.norm.pdf(grid).prod(-1) * (u[1] - u[0]) ** 2
    want = np.sum(mass * stats.norm.pdf(0.3, at[..., 0], np.exp(at[..., 1])))
    got = post.log_likelihood(NEW[:1, 0], np.array([[0.3]]))
    np.testing.assert_allclose(got, [np.log(want)], atol=1e-3)
    mean, deviation = post.predict(NEW[:1, 0], return_std=True)
    np.testing.assert_allclose(mean, [[m[0]]])
    np.testing.assert_allclose(deviation, [[np.sqrt(v[0, 0] + np.exp(2 * m[1] + 2 * v[1, 1]))]], rtol=1e-8)


@pytest.mark.slow
def test_an_adapter_is_random_and_the_rest_is_fixed():
    """LoRA: the evidence of A and B in x (W + A B), W a constant of the model."""
    base = jnp.asarray(RNG.normal(size=(D, C)))
    low = {"a": jnp.asarray(RNG.normal(size=(D, 1))), "b": jnp.asarray(RNG.normal(size=(1, C)))}

    def adapted(base, params, hyper, x):
        return x @ (base + params["a"] @ params["b"])

    x, y = X[:, 0], LABELS[:, 0]
    f = outputs(functools.partial(adapted, base), x, low)
    fit = log_softmax(f)[np.arange(N), y].sum()
    precision = {"a": 1.0, "b": 1.0}
    value, _ = dense(functools.partial(adapted, base), x, fit, curvature("categorical", f), low, precision)
    got = found(jax.tree_util.Partial(adapted, base), (x, y), ev.Categorical(), low, ev.GaussianPrior(precision))
    np.testing.assert_allclose(got.value, value, rtol=1e-11)
