"""Banded ridge: groups of columns with a penalty each, tuned on folds for many targets at once; with a bound."""

import jax
import numpy as np
from sklearn.linear_model import RidgeCV

import hyprax as hx

jax.config.update("jax_enable_x64", True)

rng = np.random.default_rng(0)
bands = np.repeat([0, 1, 2], [10, 40, 40])  # only the first two say anything
X, X_test = rng.standard_normal((2, 150, 90))
true = rng.standard_normal((90, 30)) * np.array([0.5, 0.05, 0.0])[bands][:, None]
Y, Y_test = (x @ true + rng.standard_normal((150, 30)) for x in (X, X_test))

family = hx.families.Squared(X, Y, penalty="penalty", penalty_groups=np.repeat(bands[:, None], 30, axis=1))
folds = hx.CrossValidated(hx.Optimum(family), 5, key=jax.random.key(0))
tuned = hx.tune(folds, {"penalty": hx.Positive(np.full(3, 0.1))}, steps=25)
answer, _ = hx.hypergradient(folds, tuned.best)
weights = np.asarray(folds.refit(tuned.best).params)

ridge = RidgeCV(np.logspace(-2, 4, 25), fit_intercept=False).fit(X, Y)
error, theirs = (float(np.mean((found - Y_test) ** 2)) for found in (X_test @ weights, ridge.predict(X_test)))
print(f"penalties of the bands {np.round(np.asarray(hx.natural(tuned.best)['penalty']), 3)}; {answer.certificate}")
print(f"test error {error:.4f}; one penalty for all {theirs:.4f}")
