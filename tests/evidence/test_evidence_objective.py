"""The evidence as an objective of `tune`, and the line that each bad input meets."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax import evidence as ev
from hyprax.evidence import _arrival, _mode

N, D = 30, 4


def linear(params, hyper, x):
    return (x * hyper["scale"]) @ params["w"]


def gaussian(hyper):
    return ev.Gaussian(hyper["noise"])


def prior(hyper):
    return ev.GaussianPrior(hyper["precision"])


def regression(**given):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    y = x[:, :1] * 2.0 + 0.3 * rng.normal(size=(N, 1))
    options: dict[str, Any] = {"estimator": ev.FullData()} | given
    objective = hx.EvidenceObjective(
        linear,
        {"w": jnp.zeros((D, 1))},
        (x, y),
        likelihood=gaussian,
        prior=prior,
        key=jax.random.key(0),
        **options,
    )
    hyper = {"noise": hx.Positive(0.5), "precision": hx.Positive(0.8), "scale": hx.Positive(np.ones(D))}
    return objective, hyper, x, y


def exact(x, y, noise, precision, scale):
    """The log evidence of Bayesian linear regression a datum, from the marginal covariance of y."""
    covariance = noise**2 * np.eye(N) + (x * scale) @ (x * scale).T / precision
    return (
        -(
            0.5 * y[:, 0] @ np.linalg.solve(covariance, y[:, 0])
            + 0.5 * np.linalg.slogdet(covariance)[1]
            + 0.5 * N * np.log(2 * np.pi)
        )
        / N
    )


def test_the_laplace_evidence_of_a_linear_model_is_its_evidence():
    objective, hyper, x, y = regression()
    h = x.T @ x / 0.25 + 0.8 * np.eye(D)
    w = jnp.asarray(np.linalg.solve(h, x.T @ y / 0.25))
    objective = hx.EvidenceObjective(
        linear,
        {"w": w},
        (x, y),
        likelihood=gaussian,
        prior=prior,
        estimator=ev.FullData(),
        key=jax.random.key(0),
    )
    answer = hx.hypergradient(objective, hyper)[0]
    np.testing.assert_allclose(-answer.value, exact(x, y, 0.5, 0.8, np.ones(D)), rtol=1e-10)
    value, _ = objective.value(hyper, objective.init(hyper))
    np.testing.assert_allclose(value.value, answer.value, rtol=1e-12)
    assert isinstance(value.certificate, ev.EvidenceCertificate)
    assert value.certificate.side == "both"
    # At the mode the derivative at fixed weights is that of the evidence itself.
    step = 1e-5
    for name, base in (("noise", 0.5), ("precision", 0.8)):
        moved = [{"noise": 0.5, "precision": 0.8} | {name: base * np.exp(s)} for s in (step, -step)]
        up, down = (-exact(x, y, m["noise"], m["precision"], np.ones(D)) for m in moved)
        np.testing.assert_allclose(answer.grad[name].raw, (up - down) / (2 * step), rtol=1e-5)


def test_at_the_mode_the_gradient_is_that_of_the_evidence_with_its_mode(monkeypatch: pytest.MonkeyPatch):
    """Against differences of the value at the mode of each hyperparameter, for a network whose curvature moves."""
    monkeypatch.setattr("hyprax.evidence._arrival.NEAR", 1e-13)
    monkeypatch.setattr("hyprax.evidence._arrival.NEAR_A_DATUM", 0.0)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(12, 2))
    objective = hx.EvidenceObjective(
        lambda params, hyper, x: jnp.tanh(x @ params["w"]) @ params["v"],
        {"w": jnp.asarray(rng.normal(size=(2, 3))), "v": jnp.asarray(rng.normal(size=(3, 1)))},
        (x, np.sin(2 * x[:, :1]) + 0.1 * rng.normal(size=(12, 1))),
        likelihood=gaussian,
        schedule=ev.Schedule(mode_after=0, newton_steps=400),
        key=jax.random.key(0),
    )

    def at(moved):
        names = {"noise": 0.3, "w": 0.7, "v": 0.4} | moved
        precision = {"w": hx.Positive(names["w"]), "v": hx.Positive(names["v"])}
        return {"noise": hx.Positive(names["noise"]), "precision": precision}

    _, state = objective.value_and_grad(at({}), objective.init(at({})))
    answer, _ = objective.value_and_grad(at({}), state)
    assert answer.stats.decrement < 1e-10
    assert "How the mode moves with the hyperparameters is in the gradient." in answer.certificate.meaning()
    step = 3e-3  # a mode is known to about 1e-7, and the value is of first order in it
    for name, base, got in (
        ("noise", 0.3, answer.grad["noise"].raw),
        ("w", 0.7, answer.grad["precision"]["w"].raw),
        ("v", 0.4, answer.grad["precision"]["v"].raw),
    ):
        up, down = (objective.value_and_grad(at({name: base * np.exp(s)}), state)[0].value for s in (step, -step))
        np.testing.assert_allclose(got, (up - down) / (2 * step), rtol=1e-3)
    fixed, _ = hx.EvidenceObjective(
        objective.apply, state.params, objective.data, likelihood=gaussian, key=jax.random.key(0)
    ).value_and_grad(at({}), objective.init(at({})))
    assert abs(fixed.grad["precision"]["w"].raw / answer.grad["precision"]["w"].raw - 1) > 1e-2


def test_tuning_finds_noise_and_relevant_inputs_from_the_training_data():
    objective, hyper, _, _ = regression(
        estimator=ev.Chain(ev.designs.OneRow(20)),
        schedule=ev.Schedule(every=20),
        optimizer=optax.adam(3e-2),
        batch_size=N,
    )
    tuned = hx.tune(objective, hyper, search=hx.search.Optax(optax.adam(0.1)), steps=150, progress=False)
    last = hx.natural(tuned.last)
    assert 0.2 < float(last["noise"]) < 0.45
    assert float(last["scale"][0]) > 3 * float(jnp.max(last["scale"][1:]))
    row = tuned.history[-1]
    assert np.isfinite(row["noise"])
    assert row["slack"] > 0
    assert row["trained"] == 150 * 20
    assert tuned.hypergradient is not None
    assert tuned.hypergradient.certificate.kind == "none"
    assert tuned.hypergradient.noise.over == "rows drawn for the log-determinant"
    assert tuned.final is not None
    assert tuned.final.noise.norm > 0


def test_the_reported_deviation_is_that_of_the_stochastic_gradient():
    objective, hyper, _, _ = regression(estimator=ev.Chain(ev.designs.OneRow(6)), decay=0.999)
    state = objective.init(hyper)
    answer, state = objective.value_and_grad(hyper, state)
    grads = [np.concatenate([np.ravel(g) for g in jax.tree.leaves(answer.grad)])]
    assert np.isinf(answer.noise.norm)  # of one draw nothing is known
    for _ in range(299):
        answer, state = objective.value_and_grad(hyper, state)
        grads.append(np.concatenate([np.ravel(g) for g in jax.tree.leaves(answer.grad)]))
    want = np.sqrt(np.sum(np.var(np.array(grads), axis=0, ddof=1)))
    np.testing.assert_allclose(answer.noise.norm, want, rtol=0.15)


def test_a_batch_of_the_likelihood_is_unbiased():
    objective, hyper, _, _ = regression()
    some, _, _, _ = regression(likelihood_batch=5)
    state = some.init(hyper)
    values = []
    for _ in range(200):
        answer, state = some.value_and_grad(hyper, state)
        values.append(float(answer.value))
    whole = float(hx.hypergradient(objective, hyper, throw=False)[0].value)
    assert abs(np.mean(values) - whole) < 4 * np.std(values) / np.sqrt(len(values))


@pytest.mark.slow
def test_a_choice_runs_inside_the_objective():
    objective, hyper, _, _ = regression(estimator=ev.Choice((ev.Chain(ev.designs.OneRow(4)), ev.FullData()), refresh=2))
    state = objective.init(hyper)
    for expected in (0, 1, 1):
        answer, state = objective.value_and_grad(hyper, state)
        assert isinstance(answer.stats, ev.EvidenceStats)
        assert answer.stats.estimator is not None
        assert int(answer.stats.estimator) == expected


def test_training_reaches_the_mode_and_never_retraces():
    objective, hyper, x, y = regression(schedule=ev.Schedule(every=1), optimizer=optax.sgd(1e-2), batch_size=N)
    state = objective.train(hyper, objective.init(hyper), 2000)
    h = x.T @ x / 0.25 + 0.8 * np.eye(D)
    np.testing.assert_allclose(state.params["w"], np.linalg.solve(h, x.T @ y / 0.25), rtol=1e-6)


@pytest.mark.parametrize("finish", [False, True])
def test_where_no_matrix_is_cheap_the_decrement_is_measured_once_at_the_end(
    finish: bool, monkeypatch: pytest.MonkeyPatch
):
    """Weights in training are not said to have arrived; after the run they are, or lack the nats of a Newton step."""
    for module in (_arrival, _mode):
        monkeypatch.setattr(module, "exact_side", lambda *_: None)
    objective, hyper, x, y = regression(
        schedule=ev.Schedule(every=2, finish=finish), estimator=ev.Chain(ev.designs.OneRow(8)), batch_size=N
    )
    answer, state = objective.value_and_grad(hyper, objective.init(hyper))
    assert answer.stats.decrement == np.inf
    assert answer.stats.kept == -1
    value, after = objective.final(hyper, state)
    h = x.T @ x / 0.25 + 0.8 * np.eye(D)
    off = after.params["w"] - np.linalg.solve(h, x.T @ y / 0.25)
    left = 0.5 * np.sum(off * (h @ off))  # of a linear model: all that the log joint density lacks
    assert left <= value.stats.decrement <= (10 * (1e-3 + 1e-5 * N) if finish else 1.5 * left)
    assert value.result == (ev.RESULTS.successful if finish else ev.RESULTS.not_at_a_mode)


def classifier(params, hyper, x):
    return x @ params


def call(**changes):
    rng = np.random.default_rng(1)
    arguments = {
        "apply": classifier,
        "likelihood": ev.Categorical(),
        "prior": ev.GaussianPrior(1.0),
        "params": jnp.ones((D, 3)),
        "hyper": None,
        "data": (rng.normal(size=(N, D)), rng.integers(0, 3, N)),
        "estimator": ev.Chain(ev.designs.OneRow(5)),
        "key": jax.random.key(0),
    } | changes
    return ev.log_evidence(**arguments)


def unlike(**changes: Any):
    arguments: Any = {"prior": lambda hyper: ev.GaussianPrior(hyper), "key": jax.random.key(0)} | changes
    return hx.EvidenceObjective(classifier, jnp.ones((D, 3)), (X, LABELS), **arguments)


X = np.random.default_rng(2).normal(size=(N, D))
LABELS = np.arange(N) % 3
LOOSE: Any = ev  # arguments of a wrong type, to be refused


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"apply": lambda p, h, x: (x @ p)[None]}, "shape \\(1, 3\\)"),
        ({"data": (X, LABELS + 1)}, "labels from 1 to 3"),
        ({"data": (X, LABELS - 1)}, "labels from -1 to 1"),
        ({"data": (X, LABELS + 0.5)}, "whole numbers"),
        ({"data": (X, LABELS[:, None])}, "one label each"),
        ({"data": (X, LABELS[:-1])}, "one common length"),
        ({"data": (X[:0], LABELS[:0])}, "one common length"),
        ({"data": (np.where(X > 2, np.nan, X), LABELS)}, "inputs.*NaN"),
        ({"data": X}, "\\(inputs, targets\\)"),
        ({"data": (X, list(LABELS))}, "targets\\[0\\] must be an array; got a single number"),
        ({"data": (X.tolist(), LABELS)}, "inputs\\[0\\]\\[0\\] must be an array"),
        ({"data": [X, LABELS]}, "data must be a pair, the tuple .*got a list"),
        ({"data": (X, LABELS.astype(str))}, "targets must be numbers; got values of type <U"),
        ({"data": ({"x": X.astype(str)}, LABELS)}, "inputs\\['x'\\] must be numbers; got values of type <U"),
        ({"data": (X, LABELS > 0)}, "whole numbers.*bool"),
        ({"likelihood": ev.Gaussian(1.0), "data": (X, np.ones((N, 3), bool))}, "real numbers; got type bool"),
        ({"hyper": {"scale": np.nan}}, "hyper\\['scale'\\].*NaN"),
        ({"hyper": {"scale": jnp.full(2, jnp.inf)}}, "hyper\\['scale'\\].*infinite"),
        ({"prior": ev.GaussianPrior(1.0, np.nan)}, "prior.mean.*NaN"),
        ({"prior": 1.0}, "prior must be .*got a float"),
        ({"prior": lambda hyper: ev.GaussianPrior(1.0)}, "prior must be .*got a function"),
        ({"likelihood": ev.Categorical}, "likelihood must be .*the class Categorical"),
        ({"apply": lambda p, h, x: (x @ p, 1.0)}, "is a tuple"),
        ({"params": {"w": jnp.ones((D, 3)), "none": jnp.zeros(0)}}, "params\\['none'\\] must hold at least one weight"),
        ({"params": jnp.full((D, 3), jnp.nan)}, "params.*NaN"),
        ({"params": {}}, "without weights"),
        ({"apply": lambda p, h, x: (x @ p)[:1], "data": (X, LABELS * 0)}, "use Bernoulli"),
        ({"estimator": ev.Chain(ev.designs.OneRow(N + 1))}, f"from 1 to {N} .*got {N + 1}"),
        ({"estimator": ev.Chain(ev.designs.Rows(2 * N + 1))}, f"integer from 1 to {2 * N}"),
        ({"estimator": ev.Partition(N + 1)}, "Partition: size must"),
        ({"estimator": ev.Chain}, "the class Chain"),
        ({"estimator": ev.Tangent(2 * N + 2)}, "Tangent: size must"),
        ({"batch": N + 1}, "batch"),
        ({"temperature": 0.0}, "temperature must be positive and finite; got 0.0"),
        ({"prior": ev.GaussianPrior(jnp.ones(5))}, "precision of shape \\(5,\\)"),
        ({"prior": ev.GaussianPrior({"w": 1.0})}, "structure"),
        (
            {"estimator": ev.FullData(ev.structures.KFAC()), "prior": ev.GaussianPrior(jnp.ones((D, 3)))},
            "one number for each",
        ),
        ({"likelihood": ev.Gaussian(1.0)}, "one per output"),
        ({"likelihood": ev.Bernoulli(), "data": (X, np.full((N, 3), 2))}, "must be 0 or 1"),
        ({"likelihood": ev.Poisson(), "data": (X, np.full((N, 3), -1))}, "counts"),
        ({"estimator": ev.Chain(ev.designs.OneRow(5), ev.roots.StickBreaking((0, 1, 1)))}, "permutation"),
    ],
)
def test_bad_input_meets_a_clear_line(changes, text):
    with pytest.raises(ValueError, match=text):
        call(**changes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("precision", [0.0, -1.0, np.nan, np.inf, {"w": -2.0}])
def test_a_precision_is_positive(precision):
    with pytest.raises(ValueError, match="must be positive and finite"):
        ev.GaussianPrior(precision)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "make",
    [
        lambda: ev.Partition(5, "some"),  # pyright: ignore[reportArgumentType]  # to be refused
        lambda: ev.Tangent(5),
        lambda: ev.designs.Rows(5, "systematic"),
        lambda: ev.Lanczos(0),
        lambda: ev.Choice(()),
        lambda: ev.Choice(decay=1.0),
        lambda: LOOSE.Choice((ev.Chain(), ev.designs.OneRow(5))),
        lambda: LOOSE.Chain(64),
        lambda: LOOSE.Chain(ev.designs.OneRow),
        lambda: LOOSE.Chain(ev.designs.OneRow(5), "eigen"),
        lambda: ev.designs.OneRow(4, scored=True, first=8),
        lambda: LOOSE.FullData("kfac"),
        lambda: LOOSE.FullData(ev.structures.KFAC),
        lambda: LOOSE.Partition(5, structure="kfac"),
        lambda: LOOSE.Partition(5, root=ev.roots.StickBreaking),
        lambda: call(estimator=LOOSE.Chain(LOOSE.designs.OneRow(2.5))),
        lambda: call(estimator=LOOSE.Chain(LOOSE.designs.OneRow("5"))),
        lambda: call(estimator=LOOSE.Tangent(4.0)),
        lambda: ev.AdaptiveTangent(decay=1.0),
        lambda: ev.AdaptiveTangent(refresh=0),
        lambda: ev.OnlineKFAC(0),
        lambda: ev.Gaussian(0.0),
        lambda: regression(schedule=ev.Schedule(every=-1)),
        lambda: unlike(prior=ev.GaussianPrior(1.0)),
        lambda: unlike(likelihood="categorical"),
        lambda: regression(likelihood_batch=N + 1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"must be|needs|must hold"):
        make()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("estimator", "text"),
    [
        (ev.AdaptiveTangent(4), "learns from past draws"),
        (ev.Choice(), "learns from past"),
        (ev.structures.EKFAC(), "FullData"),
    ],
)
def test_what_is_no_estimator_of_one_draw_is_refused(estimator, text):
    params, data = jnp.ones((D, 3)), (jnp.asarray(X), jnp.asarray(LABELS))
    with pytest.raises(ValueError, match=text):
        ev.log_evidence(
            classifier, params, data, likelihood=ev.Categorical(), prior=ev.GaussianPrior(1.0), estimator=estimator
        )


def test_one_example_and_float32():
    with jax.enable_x64(False):
        answer = ev.log_evidence(
            classifier,
            jnp.ones((D, 3), jnp.float32),
            (jnp.asarray(X[:1], jnp.float32), jnp.asarray(LABELS[:1])),
            likelihood=ev.Categorical(),
            prior=ev.GaussianPrior(jnp.float32(1.0)),
            estimator=ev.Chain(ev.designs.OneRow(1)),
            key=jax.random.key(0),
        )
    assert answer.value.dtype == jnp.float32
    assert np.isfinite(float(answer.value))
