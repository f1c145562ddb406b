"""An elastic net that drops columns, both of its strengths tuned by gradient, beside ridge regression with one.

Sixty-five columns: ten measurements, their squares and their products. The dots are the coefficients of each.
"""

import numpy as np
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PolynomialFeatures

from hyprax.sklearn import TunedElasticNet, TunedRidge


def main() -> tuple[Figure, Facts]:
    plain, y = load_diabetes(return_X_y=True)
    X = np.asarray(PolynomialFeatures(2, include_bias=False).fit_transform(plain))
    X, X_test, y, y_test = train_test_split(X, y, test_size=1 / 3, random_state=0)
    scale = np.std(X, axis=0)
    figure, axes = canvas()
    facts: Facts = {}
    ridge, net = TunedRidge(certify=False, random_state=0), TunedElasticNet(certify=False, random_state=0)
    for model, name, colour in ((ridge, "ridge", GREY), (net, "elastic net", BLUE)):
        coefficients = model.fit(X, y).coef_ * scale
        axes.plot(np.arange(65), coefficients, "o", color=colour, label=name, markersize=4)
        facts[f"columns kept, {name}"] = int(np.sum(coefficients != 0))
        facts[f"test R², {name}"] = float(model.score(X_test, y_test))
    axes.set(xlabel="column", ylabel="coefficient, standardised")
    axes.legend()
    return figure, facts


if __name__ == "__main__":
    show(main, __file__)
