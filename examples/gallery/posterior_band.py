"""A small network whose noise and weight decay come from 60 training points alone, with a band of two deviations.

The band of the function is narrow where there are data and widens where there are none. The noise was 0.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

jax.config.update("jax_enable_x64", True)


def apply(params, hyper, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"] + params["c"]


def main() -> tuple[Figure, Facts]:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-3, -0.5, 30), rng.uniform(1, 3, 30)])[:, None]
    y = np.sin(2 * x) + 0.1 * rng.normal(size=x.shape)
    sizes = {"w": (1, 8), "b": 8, "v": (8, 1), "c": 1}
    fitted = fit_evidence(
        apply,
        {name: jnp.asarray(rng.normal(size=size)) for name, size in sizes.items()},
        (x, y),
        {"noise": hx.Positive(1.0)},
        likelihood=lambda hyper: ev.Gaussian(hyper["noise"]),
        epochs=300,
        mode_steps=60,
        progress=False,
        key=jax.random.key(0),
    )
    line = np.linspace(-5, 5, 201)
    outputs = fitted.posterior().outputs(jnp.asarray(line[:, None]))
    mean, spread = np.ravel(outputs.mean), np.ravel(outputs.variances) ** 0.5
    figure, axes = canvas()
    axes.plot(x, y, ".", color=GREY)
    axes.plot(line, mean, color=BLUE)
    axes.fill_between(line, mean - 2 * spread, mean + 2 * spread, color=BLUE, alpha=0.25, linewidth=0)
    axes.set(xlabel="x", ylabel="y")
    return figure, {
        "noise found": float(hx.natural(fitted.hyper)["noise"]),
        "deviation of the function among the data, at -2": float(np.interp(-2, line, spread)),
        "in the gap, at 0.25": float(np.interp(0.25, line, spread)),
        "outside, at 5": float(spread[-1]),
        "log evidence": fitted.log_evidence,
    }


if __name__ == "__main__":
    show(main, __file__)
