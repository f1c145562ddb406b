import jax
import numpy as np
from sklearn.datasets import load_digits

import hyprax as hx

jax.config.update("jax_enable_x64", True)  # certified bounds need float64

X, y = load_digits(return_X_y=True)
family = hx.families.Softmax(X[:600] / 16, y[:600], penalty="penalty")
objective = hx.ImplicitObjective(hx.Optimum(family), family.mean_loss, (X[600:1200] / 16, y[600:1200]))
start = {"penalty": hx.LogInterval(np.full((64, 10), 1e-4), 1e-5, 1e-3)}  # one strength for each weight
tuned = hx.tune(objective, start, steps=15)
print(f"validation loss {tuned.history[0]['value']:.4f} -> {tuned.best_value:.4f}", tuned.hypergradient, sep="\n")
