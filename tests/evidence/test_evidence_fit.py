"""Online training: what it keeps, that it repeats, that it compiles once, and what it says when it fails."""

import functools
import io
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hyprax as hx
from hyprax import evidence as ev

N, D = 60, 3


def linear(params, hyper, x):
    return x @ params["w"]


def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, D))
    w = np.array([[1.5], [-0.7], [0.4]])
    return x, x @ w + 0.3 * rng.normal(size=(N, 1))


def noise(hyper):
    return ev.Gaussian(hyper["noise"])


def regression(apply=linear, points=None, **changes):
    options = {
        "likelihood": noise,
        "estimator": ev.Chain(ev.designs.OneRow(20)),
        "epochs": 40,
        "burn_in": 10,
        "every": 2,
        "hyper_steps": 5,
        "optimiser": optax.adam(3e-2),
        "batch_size": N,
        "draws": 20,
        "progress": False,
        "key": jax.random.key(0),
    } | changes
    hyper = {"noise": hx.Positive(1.0)}
    return hx.search.fit_evidence(
        apply, {"w": jnp.zeros((D, 1))}, data() if points is None else points, hyper, **options
    )


@functools.cache
def usual():
    return regression()


def exact(noise, precision):
    x, y = data()
    covariance = noise**2 * np.eye(N) + x @ x.T / precision
    return -0.5 * (
        y[:, 0] @ np.linalg.solve(covariance, y[:, 0]) + np.linalg.slogdet(covariance)[1] + N * np.log(2 * np.pi)
    )


def test_the_fit_of_a_linear_model_finds_its_greatest_evidence():
    from scipy.optimize import minimize

    fitted = regression(estimator=ev.FullData(), epochs=400, hyper_steps=3, every=3)
    best = minimize(lambda t: -exact(*np.exp(t)), np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8})
    found = hx.natural(fitted.hyper)
    np.testing.assert_allclose(found["noise"], np.exp(best.x[0]), rtol=2e-2)
    np.testing.assert_allclose(found["precision"]["w"], np.exp(best.x[1]), rtol=5e-2)
    # At the mode the Laplace evidence of a linear model is its evidence.
    np.testing.assert_allclose(fitted.log_evidence, exact(found["noise"], found["precision"]["w"]), rtol=1e-4)
    assert fitted.standard_error < 1e-10
    assert fitted.certificate.bound == 0
    assert fitted.certificate.side == "lower"
    assert fitted.result == hx.RESULTS.successful
    assert fitted.message == ""


def full(fitted: hx.search.EvidenceFit) -> float:
    """The Laplace evidence at what was kept, without approximation."""
    kept = fitted.problem
    answer = ev.log_evidence(
        linear, fitted.params, data(), kept.hyper, likelihood=kept.likelihood, prior=kept.prior, estimator=ev.FullData()
    )
    return float(answer.value)


def test_the_final_estimate_is_a_bound_within_its_standard_error():
    fitted = usual()
    assert fitted.standard_error > 0
    assert fitted.log_evidence <= full(fitted) + 3 * fitted.standard_error
    assert fitted.certificate.kind == "estimated"
    assert fitted.certificate.slack > 0


def test_by_default_few_data_give_a_row_each():
    kept = usual().problem
    parts = (linear, kept.likelihood, kept.prior, usual().params, kept.hyper, data())
    assert float(ev.log_evidence(*parts).value) == float(ev.log_evidence(*parts, ev.Chain(ev.designs.OneRow(N))).value)


def test_what_is_kept_has_the_best_smoothed_bound():
    fitted = usual()
    smoothed, past, weight = [], 0.0, 0.0
    for row in fitted.history:
        past, weight = 0.5 * past + 0.5 * row["value"], 0.5 * weight + 0.5
        smoothed.append(past / weight)
    np.testing.assert_allclose([row["smoothed"] for row in fitted.history], smoothed, rtol=1e-12)
    best = fitted.history[int(np.argmin(smoothed))]
    assert fitted.epoch == best["epoch"]
    np.testing.assert_array_equal(best["hyper"]["noise"], hx.natural(fitted.hyper)["noise"])
    assert [row["epoch"] for row in fitted.history] == list(range(11, 41, 2))


def test_the_same_key_gives_the_same_bits_and_another_key_others():
    first, again, other = usual(), regression(), regression(key=jax.random.key(1))
    assert first.log_evidence == again.log_evidence
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    assert [r["value"] for r in first.history] == [r["value"] for r in again.history]
    assert first.log_evidence != other.log_evidence


def test_nothing_is_traced_after_the_first_steps():
    counts = []
    for epochs in (4, 40):
        traces = []

        def counted(params, hyper, x, traces=traces):
            traces.append(1)
            return linear(params, hyper, x)

        regression(counted, epochs=epochs, burn_in=2, every=1, draws=2 if epochs == 4 else 9)
        counts.append(len(traces))
    assert counts[0] == counts[1]


def test_fits_of_the_same_shapes_share_what_is_compiled():
    traces = []

    def counted(params, hyper, x):
        traces.append(1)
        return linear(params, hyper, x)

    x, y = data()
    options = {
        "estimator": ev.FullData(), "epochs": 3, "burn_in": 1, "draws": 2,
        "optimiser": optax.adam(1e-2), "hyper_optimizer": optax.adam(1e-1),
    }  # fmt: skip
    regression(counted, **options)
    first = len(traces)
    regression(counted, points=(x + 1, y - 1), **options)
    assert len(traces) - first < first / 2
    assert len(traces) - first <= 3  # the shape of an output is asked for when data are looked at


def test_a_classifier_in_single_precision_learns_a_precision_for_each_tensor():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(N, D)).astype(np.float32)
    y = (x[:, 0] + 0.3 * rng.normal(size=N) > 0).astype(np.int32)
    params = {"w": jnp.zeros((D, 2), jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    fitted = hx.search.fit_evidence(
        lambda p, h, x: x @ p["w"] + p["b"], params, (x, y), epochs=30, every=2, batch_size=20,
        optimizer=optax.adam(1e-2), progress=False, key=jax.random.key(0),
    )  # fmt: skip
    assert fitted.params["w"].dtype == jnp.float32
    assert set(hx.natural(fitted.hyper)["precision"]) == {"w", "b"}
    assert fitted.log_evidence > N * np.log(0.5) + 5
    assert fitted.history[-1]["value"] < fitted.history[0]["value"]


def test_a_choice_of_estimators_is_carried_along():
    fitted = regression(estimator=ev.Choice((ev.Chain(ev.designs.OneRow(10)), ev.FullData())))
    assert np.isfinite(fitted.log_evidence)


def test_the_tangent_of_past_draws_is_carried_along_and_repeats():
    options = {"estimator": ev.AdaptiveTangent(20), "hyper_optimizer": optax.adam(1e-1)}
    first, again = regression(**options), regression(**options)
    assert [row["value"] for row in first.history] == [row["value"] for row in again.history]
    assert first.certificate.side == "lower"
    truth = full(first)
    assert truth - 0.05 * N < first.log_evidence < truth + 3 * first.standard_error


def test_online_kfac_moves_as_kfac_of_all_data_does():
    """With the prior precision alone the factors are the same at all hyper-steps of an epoch."""
    rng = np.random.default_rng(3)
    points = rng.normal(size=(N, D)), rng.integers(0, 2, N)
    params = {"w": jnp.asarray(rng.normal(size=(D, 2))), "b": jnp.zeros(2)}

    def run(estimator):
        return hx.search.fit_evidence(
            lambda p, h, x: x @ p["w"] + p["b"], params, points, estimator=estimator, epochs=12, burn_in=2,
            hyper_steps=3, batch_size=20, optimizer=optax.adam(1e-2), progress=False, key=jax.random.key(0),
        )  # fmt: skip

    online, usual = run(ev.OnlineKFAC(25)), run(ev.FullData(ev.structures.KFAC()))
    for name in ("w", "b"):
        got, want = (hx.natural(fitted.hyper)["precision"][name] for fitted in (online, usual))
        np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(online.log_evidence, usual.log_evidence, rtol=1e-9)
    assert online.certificate.side == "unknown"


@pytest.mark.parametrize("where", ["noise", "model"])
def test_online_kfac_refuses_what_its_factors_are_functions_of(where: str):
    options = {"estimator": ev.OnlineKFAC(), "likelihood": noise if where == "noise" else ev.Gaussian(0.3)}
    model = linear if where == "noise" else lambda p, h, x: linear(p, h, h["noise"] * x)
    with pytest.raises(ValueError, match=r"given hyper\['noise'\].* prior precisions alone"):
        regression(model, **options)


def test_a_number_that_is_not_finite_is_named_and_what_was_kept_stands():
    fitted = regression(
        estimator=ev.FullData(), optimizer=optax.sgd(lambda t: jnp.where(jnp.less(t, 30), 1e-2, jnp.nan))
    )
    assert fitted.result == hx.RESULTS.diverged
    assert "weights['w'], in epoch 31" in fitted.message
    assert np.all(np.isfinite(fitted.params["w"]))
    assert fitted.history[-1]["epoch"] == 29
    assert np.isfinite(fitted.log_evidence)
    early = regression(estimator=ev.FullData(), optimizer=optax.sgd(jnp.nan))
    assert early.epoch == 0
    assert early.history == []

    def breaks(params, hyper, x):
        return linear(params, hyper, x) * jnp.where(hyper["noise"] < 0.9, jnp.nan, 1.0)

    broken = regression(breaks, estimator=ev.FullData())
    assert "in epoch" in broken.message
    assert np.isfinite(broken.log_evidence)


def test_an_interrupt_ends_the_run_after_its_epoch_and_what_was_kept_stands(monkeypatch):
    class Bar:
        def __init__(self, total):
            pass

        def show(self, epoch, text):
            if epoch == 21:
                signal.raise_signal(signal.SIGINT)

        def close(self):
            pass

    monkeypatch.setattr("hyprax.evidence._fit.ProgressBar", Bar)
    stopped = regression(estimator=ev.FullData(), progress=True)
    assert stopped.result == hx.RESULTS.interrupted
    assert "Ctrl-C" in stopped.message
    assert [row["epoch"] for row in stopped.history] == [11, 13, 15, 17, 19, 21]
    assert stopped.epoch in (11, 13, 15, 17, 19, 21)
    assert np.isfinite(stopped.log_evidence)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_to_a_terminal_only(monkeypatch):
    clock = iter(range(0, 10000, 3))
    monkeypatch.setattr("hyprax._progress.time.monotonic", lambda: float(next(clock)))
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        regression(progress=True, epochs=15, estimator=ev.FullData())
        assert ("15/15" in stream.getvalue()) == shown
        assert ("slack" in stream.getvalue()) == shown


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 10}, "burn_in 10, epochs 10"),
        ({"burn_in": -1}, "burn_in -1"),
        ({"every": 0}, "every = 0"),
        ({"hyper_steps": 0}, "hyper_steps = 0"),
        ({"draws": 1}, "draws = 1"),
        ({"smoothing": 1.0}, "smoothing 1.0"),
        ({"batch_size": N + 1}, f"batch_size {N + 1}"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"points": (data()[0], data()[1] * np.nan)}, "NaN"),
        ({"points": data()[0]}, "pair"),
        ({"estimator": ev.structures.EKFAC()}, "FullData\\(EKFAC"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, text):
    with pytest.raises(ValueError, match=text):
        regression(**changes)


@pytest.mark.usefixtures("unchecked")
def test_hyper_without_names_needs_a_prior():
    with pytest.raises(ValueError, match="allowed is a mapping"):
        hx.search.fit_evidence(linear, {"w": jnp.zeros((D, 1))}, data(), hx.Positive(1.0), key=jax.random.key(0))
