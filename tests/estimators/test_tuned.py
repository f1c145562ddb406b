"""The tuned linear estimators: strengths as scikit-learn's, folds by closed form, weights, names; its checks."""

import copy
import functools
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from compilations import compilations
from hyprax.implicit._rows import padded
from hyprax.sklearn import TunedHuberRegressor, TunedLogisticRegression, TunedPoissonRegressor, TunedRidge
from hyprax.sklearn._base import copied
from hyprax.sklearn._columns import columns
from hyprax.sklearn._folds import masks
from hyprax.sklearn._penalties import strengths

RNG = np.random.default_rng(0)
N, D = 40, 5
X = RNG.normal(size=(N, D)) * [1.0, 10.0, 0.1, 1.0, 100.0] + [3.0, 0.0, 0.0, -50.0, 0.0]
U = (X[:, 0] - 3) + 0.02 * X[:, 4]
Y = U + RNG.normal(size=N)
CLASS = (Y > 0).astype(int)
KIND = np.digitize(Y, [-0.7, 0.7])
COUNT = RNG.poisson(np.exp(0.5 * U))
PAIRS = list(KFold(3, shuffle=True, random_state=0).split(X))
QUICK = {"cv": PAIRS, "certify": False}
Z = StandardScaler().fit_transform(X)


@functools.cache
def ridge(penalties="one"):
    return TunedRidge(penalties, hold_back=False, **QUICK).fit(X, Y)


@functools.cache
def logistic():
    return TunedLogisticRegression(**QUICK).fit(X, CLASS)


def test_a_strength_is_that_of_ridge_over_the_number_of_rows():
    model = ridge()
    same = Ridge(alpha=N * model.strengths_[0]).fit(Z, Y)
    np.testing.assert_allclose(model.coef_ * X.std(0), same.coef_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X), same.predict(Z), rtol=1e-6)


@pytest.mark.parametrize("targets", [CLASS, pytest.param(KIND, marks=pytest.mark.slow)], ids=("binary", "multinomial"))
def test_a_strength_is_one_over_n_times_that_of_logistic_regression(targets):
    model = logistic() if targets is CLASS else TunedLogisticRegression(**QUICK).fit(X, targets)
    same = LogisticRegression(C=1 / (N * model.strengths_[0]), tol=1e-12, max_iter=100_000).fit(Z, targets)
    np.testing.assert_allclose(model.coef_ * X.std(0), same.coef_, rtol=1e-6, atol=1e-6 * np.abs(same.coef_).max())
    np.testing.assert_allclose(model.predict_proba(X), same.predict_proba(Z), atol=1e-6)
    np.testing.assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X))


@pytest.mark.slow
def test_a_strength_is_that_of_poisson_regression():
    model = TunedPoissonRegressor(**QUICK).fit(X, COUNT)
    same = PoissonRegressor(alpha=model.strengths_[0], tol=1e-12, max_iter=100_000).fit(Z, COUNT)
    np.testing.assert_allclose(model.coef_ * X.std(0), same.coef_, rtol=1e-6, atol=1e-6 * np.abs(same.coef_).max())
    np.testing.assert_allclose(model.predict(X), same.predict(Z), rtol=1e-6)


def criterion(strength, weights=None):
    """The mean squared error over folds of scikit-learn's ridge, with the prior kept: a strength for each column."""
    root = np.sqrt(np.broadcast_to(strength, D))
    squares = np.zeros(N)
    for fit, judge in PAIRS:
        more = {} if weights is None else {"sample_weight": weights[fit]}
        total = N if weights is None else weights.sum()
        model = Ridge(alpha=total).fit(Z[fit] / root, Y[fit], **more)
        squares[judge] = (Y[judge] - model.predict(Z[judge] / root)) ** 2
    return np.average(squares, weights=weights)


@pytest.mark.parametrize("penalties", ["one", "feature"])
def test_strengths_minimise_the_loss_over_folds(penalties):
    model = ridge(penalties)
    least = criterion(model.strengths_)
    np.testing.assert_allclose(-model.cv_score_, least, rtol=1e-7)
    for j in range(len(model.strengths_)):
        for factor in (0.7, 1.4):
            assert criterion(np.where(np.arange(len(model.strengths_)) == j, factor, 1) * model.strengths_) > (
                least * (1 - 1e-6)
            )
    assert list(model.penalties_) == (["all"] if penalties == "one" else [f"x{j}" for j in range(D)])


def test_weights_count_in_fit_and_criterion_and_rows_of_weight_zero_are_not_there():
    weights = np.where(np.arange(N) < 30, np.arange(N) % 3 + 1.0, 0.0)
    model = copied(ridge()).fit(X, Y, weights)
    kept = weights > 0
    places = np.cumsum(kept) - 1
    pairs = [(places[fit[kept[fit]]], places[judge[kept[judge]]]) for fit, judge in PAIRS]
    without = copied(ridge()).set_params(cv=pairs).fit(X[kept], Y[kept], weights[kept])
    np.testing.assert_allclose(model.strengths_, without.strengths_, rtol=1e-9)
    np.testing.assert_allclose(model.coef_, without.coef_, rtol=1e-9)
    mean = np.average(X[kept], axis=0, weights=weights[kept])
    spread = np.sqrt(np.average((X[kept] - mean) ** 2, axis=0, weights=weights[kept]))
    same = Ridge(alpha=weights.sum() * model.strengths_[0]).fit((X - mean) / spread, Y, weights)
    np.testing.assert_allclose(model.coef_ * spread, same.coef_, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("make", [TunedLogisticRegression, TunedPoissonRegressor, TunedHuberRegressor])
def test_whole_weights_are_repeated_rows(make):
    weights = np.arange(N) % 3 + 1
    targets = CLASS if make is TunedLogisticRegression else COUNT
    again = np.repeat(np.arange(N), weights)
    pairs = [tuple(np.flatnonzero(np.isin(again, part)) for part in pair) for pair in PAIRS]
    weighted = make(**QUICK, tol=1e-10).fit(X, targets, weights)
    repeated = make(cv=pairs, certify=False, tol=1e-10).fit(X[again], targets[again])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(weighted.cv_score_, repeated.cv_score_, rtol=1e-8)


def nearly_collinear(spread):
    return Z[:, :3] @ np.random.default_rng(7).normal(size=(3, D)) + spread * Z


def test_a_strength_at_its_lower_bound_is_told_and_how_a_search_ended_is_no_proof():
    exact = TunedRidge(**QUICK, tol=0.0).fit(nearly_collinear(1e-4), Z[:, 3])  # without noise none is weak enough
    assert "lies at the lower bound of 1e-10" in exact.message_
    assert "lower bound" not in ridge().message_
    assert ridge().result_ in ("gradient_small_uncertified", "precision_reached")


@pytest.mark.parametrize("make", [TunedRidge, pytest.param(TunedHuberRegressor, marks=pytest.mark.slow)])
def test_nearly_noiseless_targets_get_a_strength_as_weak_as_they_want(make):
    mixed = nearly_collinear(1e-4)
    targets = mixed @ np.ones(D) + Z[:, 3] + 1e-6 * Y
    tuned = make(**QUICK).fit(mixed, targets)
    z, rows = StandardScaler().fit_transform(mixed), N

    def held_out(strength):
        fits = [(Ridge(strength * rows).fit(z[fit], targets[fit]), judge) for fit, judge in PAIRS]
        return np.concatenate([model.predict(z[judge]) - targets[judge] for model, judge in fits])

    tried = {strength: np.mean(held_out(strength) ** 2) for strength in np.logspace(-10, 2, 13)}
    assert min(tried, key=lambda s: tried[s]) < 1e-7
    assert tuned.strengths_[0] < 1e-7
    assert -tuned.cv_score_ < 1.001 * min(tried.values())


def test_a_second_fit_of_about_the_same_size_compiles_nothing():
    ridge()
    with compilations() as compiled:
        pairs = [(fit[fit < 38], judge[judge < 38]) for fit, judge in PAIRS]
        TunedRidge(hold_back=False, certify=False, cv=pairs).fit(X[:38], 2 * Y[:38])
    assert compiled == []


def test_the_settings_of_the_user_are_as_they_were_and_float32_is_taken_at_its_value():
    with jax.enable_x64(False):
        model = copied(ridge()).fit(X.astype(np.float32), Y.astype(np.float32))
        assert not jax.config.read("jax_enable_x64")
    wide = copied(ridge()).fit(X.astype(np.float32).astype(float), Y.astype(np.float32).astype(float))
    assert model.coef_.dtype == np.float64
    np.testing.assert_array_equal(model.coef_, wide.coef_)


def test_units_do_not_matter():
    model = copied(ridge()).fit(X * 1e150, Y * 1e-120)
    np.testing.assert_allclose(model.strengths_, ridge().strengths_, rtol=1e-6)
    np.testing.assert_allclose(model.predict(X * 1e150), ridge().predict(X) * 1e-120, rtol=1e-6)


def test_sparse_columns_and_constant_ones():
    wide = np.column_stack([X, np.full(N, 7.0), np.zeros(N)])
    dense = copied(ridge()).fit(wide, Y)
    np.testing.assert_allclose(dense.coef_[:D], ridge().coef_, rtol=1e-7)
    np.testing.assert_array_equal(dense.coef_[D:], 0)
    found = copied(ridge()).fit(sparse.csr_array(X), Y)
    np.testing.assert_allclose(found.coef_, ridge().coef_, rtol=1e-4)
    assert found.predict(sparse.csr_array(X)).shape == (N,)


def test_several_targets_share_a_strength_or_have_their_own():
    both = np.column_stack([Y, -3 * Y + 1])
    model = TunedRidge("class", **QUICK).fit(X, both)
    assert list(model.penalties_) == ["y0", "y1"]
    np.testing.assert_allclose(model.strengths_, ridge().strengths_[0], rtol=1e-3)
    np.testing.assert_allclose(model.predict(X)[:, 0], ridge().predict(X), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="requires one target"):
        model.predict(X, return_std=True)


def test_deviations_are_those_of_the_posterior():
    model = ridge()
    mean, deviation = model.predict(X, return_std=True)
    np.testing.assert_array_equal(mean, model.predict(X))
    full = np.column_stack([Z, np.ones(N)])
    hessian = full.T @ full / N + np.diag([*np.full(D, model.strengths_[0]), 0])
    inverse = np.linalg.inv(hessian)
    freedom = np.trace(inverse @ full.T @ full / N)
    noise = np.sum((Y - mean) ** 2) / (N - freedom)
    expected = np.sqrt(noise * (1 + np.sum(full @ inverse * full, axis=1) / N))
    np.testing.assert_allclose(deviation, expected, rtol=1e-8)


def test_data_frames_pipelines_searches_and_pickles():
    frame = pd.DataFrame(X, columns=list("abcde"))
    model = TunedRidge("feature", hold_back=False, free=["a"], **QUICK).fit(frame, pd.Series(Y))
    assert list(model.penalties_) == list("bcde")
    assert list(model.feature_names_in_) == list("abcde")
    assert "b:" in model.summary()
    again = copy.deepcopy(model)
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    assert not any(isinstance(value, jax.Array) for value in vars(model).values())
    pipeline = make_pipeline(FunctionTransformer(), TunedRidge(certify=False, cv=3, random_state=0))
    assert cross_val_score(pipeline, frame, Y, cv=2).shape == (2,)
    search = GridSearchCV(TunedRidge(certify=False, cv=3, random_state=0), {"fit_intercept": [True]}, cv=2)
    assert search.fit(frame, Y).best_estimator_.n_features_in_ == D


@pytest.mark.slow
def test_certificate_noise_and_honest_gain_are_names_and_numbers():
    model = TunedRidge("feature", honest=True, random_state=0, cv=4).fit(X, Y)
    assert model.certificate_.kind in ("certified", "estimated")
    assert model.certificate_.bound < 1e-3
    assert model.noise_.standard_errors.shape == (D,)
    assert model.honest_.against == "one strength for all"
    assert model.honest_.gains.shape == (4,)
    assert "standard error" in model.honest_.meaning
    lone = TunedRidge(honest=True, random_state=0, cv=4, certify=False).fit(X, Y)
    assert lone.honest_.gain > 0


@pytest.mark.slow
def test_many_strengths_are_left_where_nothing_is_gained_and_used_where_few_columns_matter():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8))
    null = TunedRidge("feature", random_state=0, certify=False, hold_back=2).fit(x, rng.normal(size=60))
    assert len(set(null.strengths_)) == 1
    assert "Nothing to gain" in null.message_
    few = TunedRidge("feature", random_state=0, certify=False).fit(x, 2 * x[:, 0] + rng.normal(size=60))
    assert few.strengths_[0] < 0.1 * np.median(few.strengths_[1:])


def test_skops_keeps_a_model(tmp_path):
    skops = pytest.importorskip("skops.io")
    skops.dump(ridge(), tmp_path / "model.skops")
    kinds = skops.get_untrusted_types(file=tmp_path / "model.skops")
    again = skops.load(tmp_path / "model.skops", trusted=kinds)
    np.testing.assert_array_equal(again.predict(X), ridge().predict(X))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalties": "each"}, "penalties must be one of 'one', 'feature', 'group', 'class', 'weight'; got 'each'"),
        ({"penalties": "group"}, "requires groups"),
        ({"penalties": "class"}, "must have several columns of weights"),
        ({"criterion": "likelihood"}, "criterion must be one of 'folds', 'holdout', 'leave_one_out', 'evidence' for"),
        ({"hold_back": -1}, "hold_back must be 'auto', True, False or a number > 0"),
        ({"max_iter": 0}, "max_iter must be an integer >= 1; got 0"),
        ({"cv": 1}, "cv must be an integer >= 2"),
        ({"free": ["x9"]}, "free must name columns of X; got 'x9'"),
        ({"free": list(range(D))}, "free must leave at least one column"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TunedRidge(**{"cv": PAIRS, **settings}).fit(X, Y)


@pytest.mark.parametrize(
    ("make", "data", "message"),
    [
        (TunedRidge, (X[:1], Y[:1]), "1 sample"),
        (TunedRidge, (np.where(X > 3, np.nan, X), Y), "NaN"),
        (TunedRidge, (X, Y, np.zeros(N)), "non-zero"),
        (TunedLogisticRegression, (X, np.zeros(N)), "two classes or more; got one class"),
        (TunedLogisticRegression, (X[:3], np.arange(3)), "every class has a single row"),
        (TunedPoissonRegressor, (X, Y), "must be numbers >= 0"),
    ],
)
def test_data_that_do_not_fit_are_refused(make, data, message):
    with pytest.raises(ValueError, match=message):
        make().fit(*data)


NAMES = ["num__a", "num__b", "cat__x", "cat__y"]


@pytest.mark.parametrize(
    ("groups", "index", "names"),
    [
        ("auto", [0, 0, 1, 1], ("num", "cat")),
        (["p", "q", "q", "p"], [0, 1, 1, 0], ("p", "q")),
        ({"a": ["cat__y", 0], "rest": slice(1, 3)}, [0, 1, 1, 0], ("a", "rest")),
    ],
)
def test_groups_are_found(groups, index, names):
    # The order of the groups is that of their columns.
    found = strengths("group", NAMES, groups, None, None)
    assert found.index.tolist() == index
    assert found.names == names


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": [0, 1], "b": [1, 2, 3]}, "groups must not overlap; got 'num__b' in 'a' and in 'b'"),
        ({"a": [0, 1]}, "groups must hold every column; got none for 'cat__x', 'cat__y'"),
        (["p"], "a label for each of the 4 columns"),
        ({"a": ["z"]}, r"groups\['a'\] must name columns of X"),
    ],
)
def test_groups_that_do_not_fit_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        strengths("group", NAMES, groups, None, None)
    with pytest.raises(ValueError, match="block__column"):
        strengths("group", ["a", "b"], "auto", None, None)


def test_weights_have_strengths_of_their_own_where_they_are_penalised():
    found = strengths("weight", ["a", "b"], None, ["a"], ("u", "v"))
    assert found.index.tolist() == [[-1, -1], [0, 1]]
    assert found.names == ("b, u", "b, v")
    assert found.free.tolist() == [True, False]


def test_folds_keep_groups_whole_and_classes_in_training():
    groups = np.arange(N) // 4
    for training, held in masks(5, "folds", N, Y, False, groups, 0):
        assert not set(groups[training]) & set(groups[held])
    own = masks(GroupKFold(5), "folds", N, Y, False, groups, 0)
    assert len(own) == 5
    labels = np.array([0] * 20 + [1] * 3 + [2] * 2)
    found = masks(None, "folds", 25, labels, True, None, 0)
    assert all(set(labels[training]) == {0, 1, 2} for training, _ in found)
    assert not any(2 in labels[held] for _, held in found)
    with pytest.raises(ValueError, match="must leave every class"):
        masks([(np.arange(20), np.arange(20, 25))], "folds", 25, labels, True, None, 0)


def test_few_sizes_of_tables():
    sizes = [padded(n, 64, 4) for n in range(1, 5000)]
    assert all(n <= size <= max(n + 63, 1.3 * n) for n, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 40


def test_columns_far_from_zero_are_scaled_and_constant_ones_are_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 3)) * [1e-3, 1e8, 0] + [1e6, 1e300, 0.1]
    found = columns(x, None, True, True)
    assert found.scale[2] == 1
    scaled = found.apply(x[:, :])
    np.testing.assert_allclose(scaled[:, 0].std(), 1, rtol=1e-4)
    np.testing.assert_array_equal(scaled[:, 2], 0)


CHECKED = [
    make(certify=False, max_iter=20, cv=3)
    for make in (TunedRidge, TunedLogisticRegression, TunedPoissonRegressor, TunedHuberRegressor)
]


AT_THE_BOUND = (
    "the classes of this check are separable, so strengths end at the lower bound of the search, where weights are "
    "known to 1e-5: whole weights are compared with repeated rows above, on other data"
)


def known(estimator):
    """The checks that are expected to fail, and why."""
    if not isinstance(estimator, TunedLogisticRegression):
        return {}
    return {f"check_sample_weight_equivalence_on_{kind}_data": AT_THE_BOUND for kind in ("dense", "sparse")}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@parametrize_with_checks(CHECKED, expected_failed_checks=known)
def test_checks_of_scikit_learn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.slow
def test_a_second_fit_keeps_nothing_of_the_first():
    model = copied(ridge()).fit(X, Y)
    assert len(model.predict(X, return_std=True)) == 2
    model.fit(X, np.stack([Y, -Y], axis=1))  # no deviations for several targets: those of the first fit are not theirs
    with pytest.raises(ValueError, match="return_std requires one target"):
        model.predict(X, return_std=True)


def test_a_score_is_reported_and_gradients_use_the_loss():
    scored = TunedLogisticRegression(scoring="roc_auc", **QUICK).fit(X, CLASS)
    np.testing.assert_array_equal(logistic().coef_, scored.coef_)
    areas = []
    for fit, judge in PAIRS:
        same = LogisticRegression(C=1 / (N * scored.strengths_[0]), tol=1e-10, max_iter=10_000).fit(Z[fit], CLASS[fit])
        areas.append(roc_auc_score(CLASS[judge], same.decision_function(Z[judge])))
    np.testing.assert_allclose(scored.cv_score_, np.mean(areas), rtol=1e-9)
    with pytest.raises(ValueError, match="scoring"):
        TunedRidge(scoring="no such", **QUICK).fit(X, Y)
