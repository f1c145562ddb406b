"""Hypergradients until 1e-2 and 1e-4 of the fall is left: hx.search.LBFGS beside the L-BFGS-B of SciPy.

`python -m experiments.generalisation.searches` prints one line a problem and search. SciPy gets hypergradients at the
objective's own (tight) tolerances; what it lacks in bounds it is given (log-strengths within those of hx.search.LBFGS).
"""

import sys
import time

import jax
import numpy as np
import scipy.optimize
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", True)

KEY = "penalty"


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
    options = {"maxfun": 60, "maxiter": 60, "ftol": 0, "gtol": 1e-9}
    scipy.optimize.minimize(
        evaluate, np.ravel(start[KEY].raw), jac=True, method="L-BFGS-B", bounds=box, options=options
    )
    return np.array(values), np.cumsum(products)


def own_trace(objective, start):
    stop = hx.search.Stopping(gradient=0.0, patience=None)
    found = hx.tune(objective, start, search=hx.search.LBFGS(), steps=40, stop=stop, progress=False)
    counts = np.cumsum(found.column("gradients")), np.cumsum(found.column("values"))
    return found.column("value"), *counts, np.cumsum(found.column("search_products")), found.message


def reached(values, left, least):
    """The index of the first value with at most a part `left` of the fall left; -1 for none."""
    hits = np.flatnonzero(values - least <= left * (values[0] - least))
    return int(hits[0]) if len(hits) else None


def main(names):
    for name in names or PROBLEMS:
        family, outer, strengths = PROBLEMS[name]()
        objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, outer)
        start = {KEY: hx.Positive(strengths)}
        began = time.perf_counter()
        theirs, their_products = scipy_trace(objective, start)
        middle = time.perf_counter()
        ours, gradients, evaluations, products, message = own_trace(objective, start)
        seconds = middle - began, time.perf_counter() - middle
        least = min(theirs.min(), ours.min())
        print(f"{name}: F {ours[0]:.6f} -> {least:.6f} (scipy {theirs.min():.9f}, ours {ours.min():.9f})")
        for left in (1e-2, 1e-4, 1e-6):
            i, j = reached(np.minimum.accumulate(theirs), left, least), reached(ours, left, least)
            a = "never" if i is None else f"{i + 1} hypergradients, {their_products[i]} products"
            b = (
                "never"
                if j is None
                else f"{gradients[j]} hypergradients + {evaluations[j]} values, {products[j]} products"
            )
            print(f"  {left:g} left: scipy {a}; LBFGS {b}")
        print(
            f"  {len(theirs)} evaluations and {len(ours)} steps in {seconds[0]:.0f} and {seconds[1]:.0f} s; {message}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
