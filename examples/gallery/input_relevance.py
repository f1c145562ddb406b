"""Which columns matter to a network? A scale for each input, found by the evidence of the training rows.

Ten measurements of patients, and five probes: measurements shuffled over the patients, which say nothing. A column that
does not matter gets a small scale.
"""

import jax
import jax.numpy as jnp
import numpy as np
from _style import BLUE, GREY, Facts, canvas, show
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

import hyprax as hx
from hyprax import evidence as ev
from hyprax.fits import fit_evidence

jax.config.update("jax_enable_x64", True)


def apply(params, hyper, x):
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def main() -> tuple[Figure, Facts]:
    rng = np.random.default_rng(0)
    table, y = map(np.asarray, load_diabetes(return_X_y=True))
    X = np.hstack([table, rng.permuted(table[:, :5], axis=0)])
    names = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6", *(f"probe {i + 1}" for i in range(5))]
    sizes = {"w": (15, 6), "b": 6, "v": (6, 1)}
    fitted = fit_evidence(
        ev.InputScales(apply),
        {name: jnp.asarray(0.3 * rng.normal(size=size)) for name, size in sizes.items()},
        (X, y[:, None]),
        {"noise": hx.Positive(1.0), "input_scales": hx.Positive(np.ones(15))},
        likelihood=lambda hyper: ev.Gaussian(hyper["noise"]),
        epochs=60,
        mode_steps=60,
        progress=False,
        key=jax.random.key(0),
    )
    scales = np.asarray(hx.natural(fitted.hyper)["input_scales"])
    scales = scales / scales.max()
    figure, axes = canvas(height=3.6)
    axes.barh(names, scales, color=[BLUE] * 10 + [GREY] * 5)
    axes.invert_yaxis()
    axes.set(xlabel="scale, of the largest")
    order = np.argsort(-scales)
    return figure, {
        "largest scale of a probe": float(scales[10:].max()),
        "measurements above every probe": int(np.sum(scales[:10] > scales[10:].max())),
        **{f"scale of {names[i]}": float(scales[i]) for i in order[:4]},
    }


if __name__ == "__main__":
    show(main, __file__)
