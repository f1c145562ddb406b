"""The comparison that a job ends in, against models fitted by other means."""

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from hyprax.recipes import carry_out, prepare

RECIPE = """
[data]
source = "sklearn"
name = "{name}"
scale = "standard"
intercept = true
[split]
seed = 3
criterion = "hold-out"
[model]
kind = "{kind}"
[hyper.penalty]
start = "grid"
constraint = "log-interval"
lo = 1e-3
hi = 10
[search]
steps = 8
learning_rate = 0.3
[baseline]
lo = 1e-4
hi = 10.0
points = 6
"""


def fitted(kind: str, X: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """The weights (d, C) that minimise the mean loss + strength/2 |w|^2, by a normal equation or by scipy.

    The last column, an intercept, is not penalised.
    """
    n, d = X.shape
    strengths = np.where(np.arange(d) < d - 1, strength, 0.0)
    if kind == "ridge":
        return np.linalg.solve(X.T @ X / n + np.diag(strengths), X.T @ y / n)[:, None]
    targets = np.eye(int(y.max()) + 1)[y.astype(int)] if kind == "softmax" else y[:, None].astype(float)
    shape = (d, targets.shape[1])

    def loss(flat):
        w = flat.reshape(shape)
        u = X @ w
        p = scipy.special.softmax(u, axis=1) if kind == "softmax" else scipy.special.expit(u)
        grad = X.T @ (p - targets) / n + strengths[:, None] * w
        return mean_loss(kind, u, y) + np.sum(strengths[:, None] * w**2) / 2, grad.ravel()

    options = {"maxiter": 10_000, "gtol": 1e-10, "ftol": 1e-16}
    found = scipy.optimize.minimize(loss, np.zeros(np.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(shape)


def mean_loss(kind: str, u: np.ndarray, y: np.ndarray) -> float:
    if kind == "ridge":
        return float(0.5 * np.mean((u[:, 0] - y) ** 2))
    if kind == "softmax":
        return float(np.mean(scipy.special.logsumexp(u, axis=1) - u[np.arange(len(y)), y.astype(int)]))
    return float(np.mean(np.logaddexp(0, u[:, 0]) - y * u[:, 0]))


def score(kind: str, u: np.ndarray, y: np.ndarray) -> float:
    if kind == "ridge":
        return float(1 - np.mean((y - u[:, 0]) ** 2) / np.var(y))
    return float(np.mean((np.argmax(u, axis=1) if kind == "softmax" else u[:, 0] > 0) == y))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ridge", "diabetes"),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in (("softmax", "wine"), ("logistic", "breast_cancer"))),
    ],
)
def test_the_comparison_holds_against_models_fitted_by_other_means(kind, name, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(kind=kind, name=name))
    job = prepare(path)
    assert job.splits is not None
    (X, y), (validation, targets), (test, labels) = job.splits.train, job.splits.validation, job.splits.test
    outcome = carry_out(job, None, progress=False)
    single, tuned = outcome.contestants

    strengths = np.geomspace(10.0, 1e-4, 6)
    losses = [mean_loss(kind, validation @ fitted(kind, X, y, s), targets) for s in strengths]
    best = strengths[int(np.argmin(losses))]
    w = fitted(kind, X, y, best)
    assert f"{best:.2g}" in single.name
    np.testing.assert_allclose(single.validation_loss, min(losses), rtol=1e-5)
    np.testing.assert_allclose(single.test_score, score(kind, test @ w, labels), atol=1e-6)

    (found,) = outcome.tuned.best.values()
    w = fitted(kind, X, y, float(found.value))
    np.testing.assert_allclose(tuned.validation_loss, mean_loss(kind, validation @ w, targets), rtol=1e-5)
    np.testing.assert_allclose(tuned.test_score, score(kind, test @ w, labels), atol=1e-6)
    assert tuned.validation_loss <= single.validation_loss * (1 + 1e-6)  # it starts there, within the bounds
    assert tuned.evaluations == len(outcome.tuned.history)
    relative = outcome.tuned.column("certificate_bound") / outcome.tuned.column("gradient_norm")
    np.testing.assert_allclose(tuned.relative_bound, relative.max(), rtol=1e-12)

    # Refitted on training and validation rows with the prior kept: a strength a row of the training part.
    assert outcome.judgement is not None
    both, known = np.concatenate([X, validation]), np.concatenate([y, targets])
    losses = []
    for model, strength in zip(outcome.judgement.models[1:], (best, float(found.value)), strict=True):
        w = fitted(kind, both, known, strength * len(X) / len(both))
        losses.append(np.array([mean_loss(kind, test[i : i + 1] @ w, labels[i : i + 1]) for i in range(len(test))]))
        np.testing.assert_allclose(model.losses, losses[-1], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(model.score, score(kind, test @ w, labels), atol=1e-6)
    gains = losses[0] - losses[1]
    error = gains.std(ddof=1) / len(gains) ** 0.5
    np.testing.assert_allclose(outcome.judgement.gain.value, gains.mean(), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(outcome.judgement.gain.standard_error, error, rtol=1e-3, atol=1e-8)
