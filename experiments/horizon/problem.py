"""A small language model and what its training can be told: weights of files, a schedule, decays."""

import functools
import sysconfig
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from experiments._transformer import Size, init, mean_loss, row_losses

import hyprax as hx

KNOTS, RATE, DECAY = 10, 1e-3, 0.1
"""Places of the schedule, and the rate and decay at which everything begins."""
KINDS = ("weights", "schedule", "decay")
KEY = 0


class Problem:
    """Files of Python's standard library: some to train on, others for validation, others for the test.

    - `size`: of the transformer, with T, the steps of a whole training.
    - `files`, `rows`: files to train on, and rows of each; a step draws its rows from all of them.
    """

    def __init__(self, size: Size, files: int, rows: int):
        self.size, self.files, self.rows = size, files, rows
        held = files // 4
        texts = _texts(files + 2 * held, rows, size.context + 1)
        self.train = np.concatenate(texts[:files])
        self.group = np.repeat(np.arange(files), rows)
        few = max(1, rows // 8)
        self.validation, self.test = (
            np.concatenate([text[:few] for text in texts[start : start + held]]) for start in (files, files + held)
        )

    def start(self) -> dict[str, Any]:
        """Each file counts once; a constant rate; the same decay of every tensor."""
        tensors = len(jax.tree.leaves(jax.eval_shape(lambda key: init(self.size, 1.0, key), jax.random.key(0))))
        shapes = {"weights": self.files, "schedule": KNOTS, "decay": tensors}
        return {name: np.full(count, float(name == "weights"), np.float32) for name, count in shapes.items()}

    def objective(self, steps: int, mode: hx.unroll.AbstractMode) -> hx.UnrolledObjective:
        """The loss on the validation files after so many steps.

        Schedule and decays are factors in logarithms: of the rate, interpolated between knots that are spread over the
        training, however long it is, and of the decay, one for each tensor.
        """
        size = self.size
        places = np.linspace(0, KNOTS - 1, steps)
        between = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(KNOTS))).astype(np.float32)

        def start(hyper: Any, key: Any) -> Any:
            return init(size, 0.5, key)

        def loss(params: Any, hyper: Any, batch: Any) -> Any:
            rows, group = batch
            return jnp.mean(hyper["weights"][group] * row_losses(size, params, rows))

        def optimizer(hyper: Any) -> hx.unroll.AbstractOptimizer:
            structure = jax.tree.structure(jax.eval_shape(start, hyper, jax.random.key(0)))
            decays = jax.tree.unflatten(structure, list(np.float32(DECAY) * jnp.exp(hyper["decay"])))
            rates = np.float32(RATE) * jnp.exp(jnp.dot(between, hyper["schedule"], precision="highest"))
            return hx.unroll.AdamW(hx.unroll.Schedule(rates), np.float32(0.9), np.float32(0.99), weight_decay=decays)

        data = jnp.asarray(self.train), jnp.asarray(self.group)
        batches = hx.Minibatches(data, size.batch, key=jax.random.key(KEY))
        return hx.UnrolledObjective(
            hx.Training(loss, start, optimizer, batches, steps),
            lambda params, hyper, rows: mean_loss(size, params, rows),
            jnp.asarray(self.validation),
            key=jax.random.key(KEY + 1),
            mode=mode,
        )

    @functools.cached_property
    def trained(self) -> hx.UnrolledObjective:
        """A whole training, forwards alone."""
        return self.objective(self.size.steps, hx.unroll.StoreAll())

    def losses(self, hyper: dict[str, Any]) -> dict[str, float]:
        """Train whole with these hyperparameters: nats a byte on the validation files and on the test files."""
        params = self.trained.report(hyper).params
        return {name: float(self._loss(params, getattr(self, name))) for name in ("validation", "test")}

    @functools.cached_property
    def _loss(self) -> Any:
        return jax.jit(functools.partial(mean_loss, self.size))


def _texts(count: int, rows: int, length: int) -> list[np.ndarray]:
    """So many files that are long enough, tables of encodings among them, in an order of their own."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for kind, wanted in (("*.py", count - count // 4), ("encodings/*.py", count // 4)):
        paths = [p for p in sorted(folder.glob(kind)) if p.stat().st_size >= rows * length]
        if len(paths) < wanted:
            raise FileNotFoundError(f"{folder / kind}: {wanted} files of {rows * length} bytes are needed.")
        found += [paths[i] for i in np.linspace(0, len(paths) - 1, wanted).astype(int)]
    order = np.random.default_rng(0).permutation(len(found))
    return [np.frombuffer(found[i].read_bytes()[: rows * length], np.uint8).reshape(rows, length) for i in order]
