"""A strength is glmnet's lambda, on columns of its own standardising; where R and glmnet are installed."""

import functools
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import KFold

from hyprax.sklearn import TunedElasticNet, TunedLogisticRegression, TunedPoissonRegressor, TunedRidge

RNG = np.random.default_rng(0)
N, D = 40, 5
X = RNG.normal(size=(N, D)) * [1.0, 10.0, 0.1, 1.0, 100.0] + [3.0, 0.0, 0.0, -50.0, 0.0]
U = (X[:, 0] - 3) + 0.02 * X[:, 4]
Y = 50 * (U + RNG.normal(size=N)) + 1000
QUICK: dict[str, Any] = {"cv": list(KFold(3, shuffle=True, random_state=0).split(X)), "certify": False}
FITTED = """
suppressMessages(library(glmnet))
args <- commandArgs(TRUE)
data <- as.matrix(read.csv(file("stdin"), header = FALSE))
p <- ncol(data)
y <- if (args[1] %in% c("binomial", "multinomial")) factor(data[, p]) else data[, p]
lambda <- as.numeric(args[3])
model <- glmnet(data[, -p], y, family = args[1], alpha = as.numeric(args[2]), lambda = lambda * c(100, 30, 10, 3, 1),
                thresh = 1e-20, maxit = 1e7)
weights <- coef(model, s = lambda)
if (is.list(weights)) weights <- do.call(cbind, lapply(weights, as.matrix))
cat(format(as.matrix(weights), digits = 17))
"""


@functools.cache
def has_glmnet() -> bool:
    program = shutil.which("Rscript")
    if program is None:
        return False
    asked = "cat(requireNamespace('glmnet', quietly = TRUE))"
    return subprocess.run([program, "-e", asked], capture_output=True, text=True, check=False).stdout == "TRUE"


def coefficients(family: str, y: np.ndarray, penalty: float, ratio: float = 0.0) -> np.ndarray:
    """Of each column, in the units of X: (outputs, columns)."""
    table = "\n".join(",".join(map(repr, map(float, row))) for row in np.c_[X, y])
    command = ["Rscript", "-e", FITTED, family, str(ratio), repr(float(penalty))]
    found = subprocess.run(command, input=table, capture_output=True, text=True, check=True)
    return np.array(found.stdout.split(), float).reshape(-1, D + 1)[:, 1:]


def same(model: Any, found: np.ndarray) -> None:
    expected = np.atleast_2d(model.coef_)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected * X.std(0)).max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gaussian", "binomial", "multinomial", "poisson", "elastic net"])
def test_a_strength_is_lambda_of_glmnet(family):
    if not has_glmnet():
        pytest.skip("needs R with glmnet")
    kinds = np.digitize(U + RNG.normal(size=N), [-0.7, 0.7])
    if family == "gaussian":  # glmnet divides the targets by their deviation first
        model = TunedRidge(**QUICK).fit(X, Y)
        same(model, coefficients(family, Y, model.strengths_[0] * Y.std()))
    elif family == "elastic net":
        model = TunedElasticNet(**QUICK).fit(X, Y)
        l1, l2 = model.penalties_["all"], model.penalties_["l2"] * Y.std()
        same(model, coefficients("gaussian", Y, l1 + l2, l1 / (l1 + l2)))
    elif family == "poisson":
        counts = RNG.poisson(3 * np.exp(0.3 * U))
        model = TunedPoissonRegressor(**QUICK).fit(X, counts)
        same(model, coefficients(family, counts, model.strengths_[0]))
    else:
        labels = kinds if family == "multinomial" else kinds > 0
        model = TunedLogisticRegression(**QUICK).fit(X, labels.astype(int))
        same(model, coefficients(family, labels.astype(float), model.strengths_[0]))
