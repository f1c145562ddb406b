"""Patches of BSD68 to learn from, crops of the rest and of Set12 to test on, and noise; grey levels in [0, 1]."""

import dataclasses

import numpy as np
from experiments._common import data_file

HALF = 34


@dataclasses.dataclass(frozen=True)
class Patches:
    """Clean and noisy patches, `(count, side, side)`."""

    clean: np.ndarray
    noisy: np.ndarray


def _images(name: str) -> list[np.ndarray]:
    with np.load(data_file(f"images/{name}.npz")) as file:
        return [file[key] / 255.0 for key in sorted(file.files)]


def noised(clean: np.ndarray, sigma: float, seed: int) -> Patches:
    """With independent Gaussian noise of deviation `sigma` grey levels of 255."""
    noise = np.random.default_rng(seed).normal(size=clean.shape)
    return Patches(clean, clean + sigma / 255 * noise)


def training(count: int, side: int, sigma: float) -> Patches:
    """A random patch of each of the first `count` images of BSD68, at most 34: the other half is for tests."""
    rng, found = np.random.default_rng(0), []
    for image in _images("bsd68")[: min(count, HALF)]:
        row, column = (rng.integers(0, size - side + 1) for size in image.shape)
        found.append(image[row : row + side, column : column + side])
    return noised(np.stack(found), sigma, seed=1)


def testing(name: str, count: int, side: int, sigma: float) -> Patches:
    """The centres of the first `count` images of the second half of BSD68, or of Set12."""
    found = []
    for image in (_images("bsd68")[HALF:] if name == "bsd68" else _images(name))[:count]:
        row, column = ((size - side) // 2 for size in image.shape)
        found.append(image[row : row + side, column : column + side])
    return noised(np.stack(found), sigma, seed=2)


def psnr(images: np.ndarray, clean: np.ndarray) -> float:
    """-10 log10 of the mean squared error, the mean over images, in dB."""
    errors = np.mean((np.asarray(images) - clean) ** 2, axis=(1, 2))
    return float(np.mean(-10 * np.log10(errors)))
