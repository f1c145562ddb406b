"""Ridge regression with a strength for each kind of column, beside one for all, judged on test rows of ten splits.

The table holds ten measurements of 442 patients, their squares and their products. Each dot is a split.
"""

import numpy as np
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import PolynomialFeatures

from hyprax.sklearn import TunedRidge


def main() -> tuple[Figure, Facts]:
    plain, y = load_diabetes(return_X_y=True)
    expansion = PolynomialFeatures(2, include_bias=False).fit(plain)
    X = np.asarray(expansion.transform(plain))
    kinds = np.where(
        expansion.powers_.sum(1) == 1, "columns", np.where(expansion.powers_.max(1) == 2, "squares", "products")
    )
    errors, strengths = [], []
    for split in range(10):
        rows = train_test_split(X, y, test_size=1 / 4, random_state=split)
        fit, test, y_fit, y_test = rows
        one = TunedRidge(certify=False, random_state=0).fit(fit, y_fit)
        each = TunedRidge("group", groups=kinds, certify=False, random_state=0).fit(fit, y_fit)
        errors.append([np.mean((model.predict(test) - y_test) ** 2) ** 0.5 for model in (one, each)])
        strengths.append([each.penalties_[kind] for kind in ("columns", "squares", "products")])
    single, grouped = np.array(errors).T
    figure, axes = canvas(height=3.4)
    ends = [min(single.min(), grouped.min()) - 1, max(single.max(), grouped.max()) + 1]
    axes.plot(ends, ends, color=GREY, linewidth=1)
    axes.plot(single, grouped, "o", color=BLUE)
    axes.text(ends[1], ends[1], " equal", va="top")
    axes.set(xlabel="test error, one strength", ylabel="test error, a strength a kind", aspect="equal")
    columns, squares, products = np.median(strengths, axis=0)
    return figure, {
        "mean test error, one strength": single.mean(),
        "mean test error, a strength a kind": grouped.mean(),
        "splits of ten on which a strength a kind is better": int(np.sum(grouped < single)),
        "median strength of columns": columns,
        "median strength of squares": squares,
        "median strength of products": products,
    }


if __name__ == "__main__":
    show(main, __file__)
