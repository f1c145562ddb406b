"""Hypergradients until 1e-2 and 1e-4 of the fall is left: hx.search.LBFGS beside the L-BFGS-B of SciPy.

`python -m experiments.generalisation.searches [PROBLEM ...]` writes searches.md beside this file. SciPy gets
hypergradients at the objective's own (tight) tolerances, and the bounds of hx.search.LBFGS on log-strengths.
"""

import sys
from pathlib import Path

import jax
import numpy as np
import scipy.optimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", True)

KEY = "penalty"
MOST = 40  # evaluations of SciPy, and steps of ours


def halves(x, y, first, last):
    """Standardised by the first part, with an intercept column."""
    mean, scale = x[:first].mean(0), x[:first].std(0)
    x = np.c_[(x - mean) / np.where(scale > 0, scale, 1), np.ones(len(x))]
    return x[:first], y[:first], x[first:last], y[first:last]


def digits():
    x, y = load_digits(return_X_y=True)
    family = hx.families.Softmax(x[:600] / 16, y[:600], penalty=KEY)
    return family, (x[600:1200] / 16, y[600:1200]), np.full((64, 10), 1e-4)


def breast_cancer():
    x, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    a, b, c, d = halves(x[order], y[order].astype(float), 200, 400)
    return hx.families.Logistic(a, b, penalty=KEY), (c, d), np.full(a.shape[1], 1e-2)


def ridge():
    x, y = load_diabetes(return_X_y=True)
    a, b, c, d = halves(x, (y - y.mean()) / y.std(), 200, 400)
    return hx.families.Squared(a, b, penalty=KEY), (c, d), np.asarray(1e-2)


PROBLEMS = {"digits, 640 penalties": digits, "breast cancer, per feature": breast_cancer, "ridge, one penalty": ridge}


def scipy_trace(objective, start):
    """(value after each evaluation, products in all)."""
    shape, values = start[KEY].raw.shape, []
    state = [objective.init(start)]

    def evaluate(raw):
        hyper = jax.tree.map(lambda _: jax.numpy.asarray(raw.reshape(shape)), start)
        answer, state[0] = objective.value_and_grad(hyper, state[0])
        products.append(int(answer.stats.effort().work))
        values.append(float(answer.value))
        return values[-1], np.ravel(answer.grad[KEY].raw)

    products = []
    box = [tuple(np.log(hx.search.LBFGS().strengths))] * max(1, start[KEY].raw.size)
    options = {"maxfun": MOST, "maxiter": MOST, "ftol": 0, "gtol": 1e-9}
    scipy.optimize.minimize(
        evaluate, np.ravel(start[KEY].raw), jac=True, method="L-BFGS-B", bounds=box, options=options
    )
    return np.array(values), np.cumsum(products)


def own_trace(objective, start):
    stop = hx.search.Stopping(gradient=0.0, patience=None)
    found = hx.tune(objective, start, search=hx.search.LBFGS(), steps=MOST, stop=stop, progress=False)
    counts = np.cumsum(found.column("gradients")), np.cumsum(found.column("values"))
    return found.column("value"), *counts, np.cumsum(found.column("search_products")), found.message


def reached(values, left, least):
    """The index of the first value with at most a part `left` of the fall left; -1 for none."""
    hits = np.flatnonzero(values - least <= left * (values[0] - least))
    return int(hits[0]) if len(hits) else None


def main(names):
    lines = [
        "# Hypergradients until a part of the fall is left",
        "",
        f"`python -m experiments.generalisation.searches`; at most {MOST} evaluations and steps, so the end of the",
        "fall is the lowest value that either has found. Products: with the inner Hessian, or what costs as much.",
        "",
        "| problem | left | SciPy: hypergradients, products | hx.search.LBFGS: hypergradients + values, products |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in names or PROBLEMS:
        family, outer, strengths = PROBLEMS[name]()
        objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer)
        start = {KEY: hx.Positive(strengths)}
        theirs, their_products = scipy_trace(objective, start)
        ours, gradients, evaluations, products, message = own_trace(objective, start)
        least = min(theirs.min(), ours.min())
        for left in (1e-2, 1e-4):
            i, j = reached(np.minimum.accumulate(theirs), left, least), reached(ours, left, least)
            a = "not reached" if i is None else f"{i + 1}, {their_products[i]}"
            b = "not reached" if j is None else f"{gradients[j]:.0f} + {evaluations[j]:.0f}, {products[j]:.0f}"
            lines.append(f"| {name} | {left:g} | {a} | {b} |")
        print(*lines[-2:], f"{ours[0]:.6g} -> {theirs.min():.9g} and {ours.min():.9g}. {message}", sep="\n", flush=True)
        (Path(__file__).parent / "searches.md").write_text("\n".join([*lines, ""]))


if __name__ == "__main__":
    main(sys.argv[1:])
