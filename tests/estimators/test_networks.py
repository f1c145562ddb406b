"""The networks tuned by the evidence: what they refuse, what they find, and their uncertainty."""

import copy

import jax
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

from hyprax.sklearn import EvidenceMLPClassifier, EvidenceMLPRegressor

NETWORKS = (EvidenceMLPClassifier, EvidenceMLPRegressor)
RNG = np.random.default_rng(0)
X = RNG.uniform(-3, 3, size=(60, 1))
Y = 5 * np.sin(X[:, 0]) + 3 + 0.5 * RNG.normal(size=60)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes must be integers >= 1"),
        ({"activation": "relu"}, "activation must be one of 'tanh', 'gelu', 'softplus'; got 'relu'"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1, or None; got 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvidenceMLPRegressor(**settings).fit(X, Y)
    with pytest.raises(ValueError, match="two classes or more"):
        EvidenceMLPClassifier().fit(X, np.zeros(60))


def test_predictions_before_a_fit_are_refused_as_scikit_learn_does():
    for asked in (
        EvidenceMLPRegressor().predict,
        EvidenceMLPClassifier().predict,
        EvidenceMLPClassifier().predict_proba,
    ):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            asked(X)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_curve_is_found_with_its_noise_and_is_less_sure_beyond_the_data():
    model = EvidenceMLPRegressor((10,), random_state=0, max_iter=30, mode_steps=20).fit(X, Y)
    assert model.score(X, Y) > 0.95
    assert 0.35 < model.noise_level_ < 0.7  # 0.5
    _, (inside, outside) = model.predict([[0.0], [9.0]], return_std=True)
    assert inside < 1.3 * model.noise_level_ < outside
    assert model.variance_scale_ == 1
    assert set(model.penalties_) == {"w0", "b0", "w1", "b1"}
    again = copy.deepcopy(model)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    assert not any(isinstance(value, jax.Array) for value in vars(model).values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_classes_are_found_and_probabilities_are_softer_than_at_the_mode():
    labels = np.where(X[:, 0] > 0.5, "up", "down")
    model = EvidenceMLPClassifier((4,), random_state=0, max_iter=30, mode_steps=5).fit(X, labels)
    assert list(model.classes_) == ["down", "up"]
    assert model.score(X, labels) > 0.9
    soft = model.predict_proba(X)
    assert 0 <= model.variance_scale_ <= 1
    scale, model.variance_scale_ = model.variance_scale_, 1.0
    wide = model.predict_proba(X)
    model.variance_scale_ = scale
    truth = labels == "up"
    losses = [-np.log(p[np.arange(60), truth.astype(int)]).mean() for p in (soft, wide)]
    assert losses[0] <= losses[1] + 1e-12  # the labels chose the scale
    np.testing.assert_allclose(soft.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), soft)
    del model.covariance_
    np.testing.assert_array_less(soft.max(axis=1), model.predict_proba(X).max(axis=1) + 1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([make((2,), max_iter=2, mode_steps=0) for make in NETWORKS])
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)
