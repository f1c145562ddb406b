"""Short training runs in `decimal`, by loops over numbers: the truth that bounds of hypergradients are held against."""

import dataclasses
from decimal import Decimal, localcontext
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import hyprax as hx

STEPS = 6


def activate(x: Decimal) -> Decimal:
    return 1 - 2 / ((2 * x).exp() + 1)


def outputs(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["hidden"]) @ params["output"]


def loss(params: Any, hyper: Any, data: Any) -> Any:
    x, y = data
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
    return jnp.mean((outputs(params, x) - y) ** 2) + jnp.exp(hyper["log_penalty"]) * squares


def outer(params: Any, hyper: Any, data: Any) -> Any:
    x, y = data
    return jnp.sum((outputs(params, x) - y) ** 2)


def of_erf(params: Any, hyper: Any, data: Any) -> Any:
    return jnp.sum(jax.scipy.special.erf(params["output"]))


class Start(eqx.Module):
    hidden: Any
    output: Any

    def __call__(self, hyper: Any, key: Any) -> Any:
        return {"hidden": hyper["scale"] * self.hidden, "output": hyper["scale"] * self.output}


OPTIMIZERS = {
    "momentum": lambda hyper: hx.unroll.MomentumSGD(hyper["rate"], 0.75, form="polyak"),
    "adam": lambda hyper: hx.unroll.Adam(
        hyper["rate"], *(jnp.asarray(x, hyper["rate"].dtype) for x in (0.9, 0.999, 1e-8))
    ),
}


@dataclasses.dataclass(frozen=True)
class Small:
    """Three examples of two features, a network of two hidden units, one output, squared errors and a penalty."""

    inputs: np.ndarray
    targets: np.ndarray
    hidden: np.ndarray
    output: np.ndarray
    optimizer: str
    dtype: str = "float64"

    def objective(self, outer_loss: Any = outer, **settings: Any) -> hx.UnrolledObjective:
        inputs, targets, *weights = map(jnp.asarray, (self.inputs, self.targets, self.hidden, self.output))
        training = hx.Training(
            loss, Start(*weights), OPTIMIZERS[self.optimizer], hx.FullBatch((inputs, targets)), STEPS
        )
        data = (inputs[:2], targets[:2])
        return hx.UnrolledObjective(training, outer_loss, data, key=jax.random.key(0), **settings)

    @property
    def hyper(self) -> dict[str, Any]:
        rate, scale, log_penalty = (np.asarray(x, self.dtype) for x in (0.3, 0.8, -4.0))
        return {"rate": hx.Positive(rate), "scale": jnp.asarray(scale), "log_penalty": jnp.asarray(log_penalty)}

    def value(self, rate: Decimal, scale: Decimal, log_penalty: Decimal) -> Decimal:
        """F, by loops over numbers, with the gradient of the network written out."""
        rate, penalty = rate.exp(), log_penalty.exp()
        inputs = [[Decimal(float(v)) for v in row] for row in self.inputs]
        targets = [Decimal(float(v)) for v in self.targets]
        a = [[scale * Decimal(float(v)) for v in row] for row in self.hidden]
        b = [scale * Decimal(float(v)) for v in self.output]
        weights = [a[0][0], a[0][1], a[1][0], a[1][1], b[0], b[1]]
        first, second = [Decimal(0)] * 6, [Decimal(0)] * 6
        b1, b2, small = (Decimal(float(np.asarray(x, self.dtype))) for x in (0.9, 0.999, 1e-8))
        for t in range(STEPS):
            grads = [2 * penalty * w for w in weights]
            for x, y in zip(inputs, targets, strict=True):
                units = [activate(x[0] * weights[j] + x[1] * weights[2 + j]) for j in (0, 1)]
                error = 2 * (units[0] * weights[4] + units[1] * weights[5] - y) / len(targets)
                for j in (0, 1):
                    grads[4 + j] += error * units[j]
                    for i in (0, 1):
                        grads[2 * i + j] += error * weights[4 + j] * (1 - units[j] ** 2) * x[i]
            if self.optimizer == "momentum":
                first = [Decimal("0.75") * v - g for v, g in zip(first, grads, strict=True)]
                weights = [w + rate * v for w, v in zip(weights, first, strict=True)]
            else:
                first = [b1 * m + (1 - b1) * g for m, g in zip(first, grads, strict=True)]
                second = [b2 * v + (1 - b2) * g * g for v, g in zip(second, grads, strict=True)]
                means = [m / (1 - b1 ** (t + 1)) for m in first]
                roots = [(v / (1 - b2 ** (t + 1))).sqrt() for v in second]
                weights = [w - rate * m / (r + small) for w, m, r in zip(weights, means, roots, strict=True)]
        total = Decimal(0)
        for x, y in zip(inputs[:2], targets[:2], strict=True):
            units = [activate(x[0] * weights[j] + x[1] * weights[2 + j]) for j in (0, 1)]
            total += (units[0] * weights[4] + units[1] * weights[5] - y) ** 2
        return total

    def truth(self) -> tuple[Decimal, dict[str, Decimal]]:
        """F and its derivatives in unconstrained coordinates, by central differences in 120 digits."""
        raw = {
            "rate": Decimal(float(self.hyper["rate"].raw)),
            "scale": Decimal(float(self.hyper["scale"])),
            "log_penalty": Decimal(float(self.hyper["log_penalty"])),
        }
        with localcontext() as context:
            context.prec = 120
            step = Decimal(10) ** -40
            slopes = {}
            for name in raw:
                ends = [self.value(**(raw | {name: raw[name] + sign * step})) for sign in (1, -1)]
                slopes[name] = (ends[0] - ends[1]) / (2 * step)
            return self.value(**raw), slopes


def drawn(seed: int, optimizer: str, dtype: str = "float64") -> Small:
    rng = np.random.default_rng(seed)
    a, b, c, d = (rng.normal(size=shape).astype(dtype) for shape in ((3, 2), 3, (2, 2), 2))
    return Small(a, b, c, d, optimizer, dtype)


def errors(problem: Small, answer: hx.Hypergradient) -> tuple[float, dict[str, tuple[float, float]]]:
    """The error of a hypergradient, and of each entry the error with its bound, if there is one."""
    entries: Any = getattr(answer.certificate, "entries", None)
    found, square = {}, Decimal(0)
    for name, slope in problem.truth()[1].items():
        places = [answer.grad[name], entries[name] if entries else np.inf]
        h, bound = (float(x.raw if isinstance(x, hx.Positive) else x) for x in places)
        error = abs(Decimal(h) - slope)
        square += error**2
        found[name] = (float(error), bound)
    return float(square.sqrt()), found
