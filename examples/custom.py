"""A loss of one's own for `hyprax tune examples/custom.toml`: pseudo-Huber regression."""

import jax.numpy as jnp

import hyprax as hx


def pseudo_huber(params, data):
    """The mean of √(1 + r²) - 1 over the residuals r, in units of 50 points of the disease score."""
    inputs, targets = data
    residuals = (inputs @ params["slope"] + params["offset"] - targets) / 50
    return jnp.mean(jnp.sqrt(1 + residuals**2) - 1)


def inner_loss(params, hyper, data):
    penalty = jnp.sum(hyper["penalty"] * params["slope"] ** 2) + 1e-8 * params["offset"] ** 2
    return pseudo_huber(params, data) + penalty / 2


def outer_loss(params, hyper, data):
    return pseudo_huber(params, data)


def robust_regression(splits):
    """The objective and where to start: what a recipe with `kind = "custom"` asks for."""
    features = splits.train[0].shape[1]
    params = {"slope": jnp.zeros(features), "offset": jnp.asarray(150.0)}
    objective = hx.ImplicitObjective(hx.Optimum(inner_loss, params, data=splits.train), outer_loss, splits.validation)
    return objective, {"penalty": hx.Positive(jnp.full(features, 1e-4))}
