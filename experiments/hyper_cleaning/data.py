"""MNIST with some training labels wrong."""

import dataclasses
import gzip

import numpy as np
from experiments._common import data_file

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Size:
    """How large a run is: numbers of examples, pixels pooled in squares of that side, iterations for each run.

    - `step`: of gradient descent on θ. 10 as published at the published size; dF/dθ_i is of the size of 1/n, so that
      10 · (n/20,000) · (100,000/budget) lets the weights travel as far at any other.
    - `searches`: the products that the searches which need no such step may spend.
    """

    train: int
    validation: int
    pool: int
    budget: int
    searches: int

    @property
    def step(self) -> float:
        return 10 * (self.train / 20_000) * (100_000 / self.budget)


@dataclasses.dataclass(frozen=True)
class Split:
    """Images as pixels in [0, 1] (not pooled), designs (pooled, with a column of ones), and labels."""

    images: np.ndarray
    design: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Cleaning:
    """`train.labels` are those given, some of them wrong where `wrong` says so; `true_labels` are never shown."""

    train: Split
    true_labels: np.ndarray
    wrong: np.ndarray
    validation: Split
    test: Split


def mnist(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `(n, 28, 28)` in [0, 1] and labels of `train` or `t10k`."""
    with gzip.open(data_file(f"mnist/{part}-images-idx3-ubyte.gz")) as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(data_file(f"mnist/{part}-labels-idx1-ubyte.gz")) as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return images / 255, labels.astype(int)


def split(images: np.ndarray, labels: np.ndarray, pool: int) -> Split:
    """Squares of pixels are summed and divided by their side: orthonormal, so that norms stay about what they are."""
    side = 28 // pool
    flat = images.reshape(-1, side, pool, side, pool).sum(axis=(2, 4)).reshape(len(images), -1) / pool
    return Split(images, np.hstack([flat, np.ones((len(flat), 1))]), labels)


def load(size: Size, corrupted: float = 0.1, seed: int = 0) -> Cleaning:
    """The first training images, `corrupted` of them with another label; validation and test from the test set."""
    rng = np.random.default_rng(seed)
    images, labels = mnist("train")
    images, true_labels = images[: size.train], labels[: size.train]
    changed = rng.permutation(size.train)[: int(corrupted * size.train)]
    labels = true_labels.copy()
    labels[changed] = (labels[changed] + rng.integers(1, CLASSES, len(changed))) % CLASSES
    wrong = labels != true_labels
    held, held_labels = mnist("t10k")
    validation = split(held[: size.validation], held_labels[: size.validation], size.pool)
    test = split(held[5000:], held_labels[5000:], size.pool)
    return Cleaning(split(images, labels, size.pool), true_labels, wrong, validation, test)
