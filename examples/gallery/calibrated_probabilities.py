"""Probabilities that mean what they say: logistic regression with its strength tuned, beside next to no penalty.

Does the illness of a patient go further than that of most? Both models learn from 200 patients and 65 columns. A
calibrated model lies on the diagonal: of 100 test patients given 30 %, 30 get worse.
"""

import numpy as np
from _style import BLUE, GREY, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import PolynomialFeatures

from hyprax.sklearn import TunedLogisticRegression


def main() -> tuple[Figure, Facts]:
    plain, progress = load_diabetes(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(progress))
    fit, test = rows[:200], rows[200:]
    X, y = np.asarray(PolynomialFeatures(2, include_bias=False).fit_transform(plain)), progress > np.median(progress)
    X = (X - X[fit].mean(0)) / X[fit].std(0)
    tuned = TunedLogisticRegression(certify=False, random_state=0)
    loose = LogisticRegression(C=1e4, max_iter=10_000)
    figure, axes = canvas(height=3.4)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    facts: Facts = {}
    for model, name, colour in ((loose, "next to no penalty", ORANGE), (tuned, "tuned strength", BLUE)):
        probability = model.fit(X[fit], y[fit]).predict_proba(X[test])[:, 1]
        share, said = calibration_curve(y[test], probability, n_bins=6, strategy="quantile")
        axes.plot(said, share, "o-", color=colour, label=name)
        facts[f"test log-loss, {name}"] = float(log_loss(y[test], probability))
        facts[f"largest distance from the diagonal, {name}"] = float(np.abs(share - said).max())
    axes.set(xlabel="probability said", ylabel="share that got worse")
    axes.legend()
    return figure, facts


if __name__ == "__main__":
    show(main, __file__)
