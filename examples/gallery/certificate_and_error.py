"""The bound of a certificate beside the true error, as the solvers are asked for more and more accuracy.

Logistic regression on 300 patients with a strength for each of 30 columns. The truth is a dense computation in NumPy
that shares no code with hyprax. A bound lies above the error, always.
"""

import jax
import numpy as np
from _style import BLUE, GREEN, GREY, ORANGE, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer

import hyprax as hx

jax.config.update("jax_enable_x64", True)
X, y = (np.asarray(part) for part in load_breast_cancer(return_X_y=True))
X = (X - X[:300].mean(0)) / X[:300].std(0)
STRENGTHS = np.full(30, 0.01)


def truth() -> np.ndarray:
    """d(validation loss)/d(log strengths) by Newton's method to rounding and one dense solve."""
    fit, signs, w = X[:300], 2.0 * y - 1, np.zeros(30)
    hessian = np.eye(30)

    def slope(scores: np.ndarray, signs: np.ndarray) -> np.ndarray:
        return -signs / (1 + np.exp(signs * scores)) / len(signs)

    for _ in range(50):
        p = 1 / (1 + np.exp(-fit @ w))
        hessian = fit.T @ (fit * (p * (1 - p))[:, None]) / 300 + np.diag(STRENGTHS)
        w -= np.linalg.solve(hessian, fit.T @ slope(fit @ w, signs[:300]) + STRENGTHS * w)
    adjoint = np.linalg.solve(hessian, X[300:].T @ slope(X[300:] @ w, signs[300:]))
    return -STRENGTHS * w * adjoint


def main() -> tuple[Figure, Facts]:
    exact, family = truth(), hx.families.Logistic(X[:300], y[:300], penalty="penalty")
    certifiers = {
        "Ehrhardt and Roberts": (hx.implicit.EhrhardtRoberts(), ORANGE),
        "residual": (hx.implicit.ResidualCertifier(), GREEN),
        "look-ahead": (hx.implicit.LookAhead(), BLUE),
    }
    figure, axes = canvas(height=3.6)
    tolerances, facts, below = 10.0 ** -np.arange(1, 11), {}, 0
    for name, (certifier, colour) in certifiers.items():
        optimum = hx.Optimum(family, solver=hx.implicit.FISTA())
        objective = hx.ImplicitObjective(optimum, family.mean_loss, (X[300:], y[300:]), certifier=certifier)
        bounds, errors = [], []
        for tolerance in tolerances:
            accuracy = hx.Accuracy(inner=tolerance * 1e-1, adjoint=tolerance)
            answer, _ = hx.hypergradient(objective, {"penalty": hx.Positive(STRENGTHS)}, accuracy=accuracy)
            bounds.append(float(answer.certificate.bound))
            errors.append(float(np.linalg.norm(np.asarray(answer.grad["penalty"].raw) - exact)))
        axes.loglog(tolerances, bounds, "o-", color=colour, markersize=4, label=f"bound: {name}")
        axes.loglog(tolerances, errors, "--", color=colour, linewidth=1)
        below += int(np.sum(np.array(errors) > bounds))
        facts[f"bound over error at a tolerance of 1e-6, {name}"] = bounds[5] / errors[5]
    axes.plot([], [], "--", color=GREY, label="true error of each")
    axes.set(xlabel="tolerance of the solvers", ylabel="error of the hypergradient")
    axes.set_ylim(1e-15)
    axes.invert_xaxis()
    axes.legend(loc="lower left")
    return figure, {"errors above their bound, of 30": below, **facts}


if __name__ == "__main__":
    show(main, __file__)
