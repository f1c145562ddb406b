"""The data sets of the experiment, by name: rows, columns, targets, and how many rows train."""

import gzip
import itertools
import zlib
from collections.abc import Callable

import numpy as np
from experiments._common import data_file
from sklearn import datasets

Data = tuple[np.ndarray, np.ndarray]


def with_products(x: np.ndarray) -> np.ndarray:
    """Standardised columns, their squares, and their pairwise products."""
    z = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    products = [z[:, i] * z[:, j] for i, j in itertools.combinations_with_replacement(range(z.shape[1]), 2)]
    return np.column_stack([z, *products])


def uci(name: str) -> Data:
    with np.load(data_file(f"uci/{name}.npz"), allow_pickle=False) as arrays:
        names = {key.lower(): key for key in arrays.files}
        x, y = (arrays[names[key]] for key in ("x", "y"))
    return np.asarray(x, float), np.asarray(y, float).ravel()


def bundled(load: Callable) -> Data:
    x, y = load(return_X_y=True)
    return np.asarray(x, float), np.asarray(y, float)


def digit_pair(a: int, b: int) -> Data:
    x, y = datasets.load_digits(return_X_y=True)
    rows = (y == a) | (y == b)
    return x[rows] / 16, (y[rows] == b).astype(float)


def libsvm(name: str) -> Data:
    with np.load(data_file(f"libsvm/{name}.npz"), allow_pickle=False) as arrays:
        return np.asarray(arrays["X"], float), (np.asarray(arrays["y"]).ravel() > 0).astype(float)


def school() -> Data:
    """The pupils of all schools as one table."""
    with np.load(data_file("multitask/school.npz"), allow_pickle=False) as arrays:
        return np.asarray(arrays["X"], float), np.asarray(arrays["y"], float).ravel()


def image_pair(folder: str, a: int, b: int) -> Data:
    """Two classes of the test images of MNIST or Fashion-MNIST, as means over 4 x 4 pixels."""

    def bytes_of(name: str, offset: int) -> np.ndarray:
        with gzip.open(data_file(f"{folder}/t10k-{name}-ubyte.gz")) as stream:
            return np.frombuffer(stream.read(), np.uint8, offset=offset)

    y = bytes_of("labels-idx1", 8)
    x = bytes_of("images-idx3", 16).reshape(len(y), 7, 4, 7, 4).mean((2, 4)).reshape(len(y), 49) / 255
    rows = (y == a) | (y == b)
    return x[rows], (y[rows] == b).astype(float)


def synthetic(kind: str, seed: int) -> Data:
    """3,000 rows, 60 columns: 5 of them matter (`few`), all alike (`alike`), none (`null`), by blocks (`groups`)."""
    rng = np.random.default_rng([zlib.crc32(kind.encode()), seed])
    x = rng.normal(size=(3000, 60))
    w = {
        "few": np.r_[np.ones(5), np.zeros(55)],
        "alike": np.full(60, 0.3),
        "null": np.zeros(60),
        "groups": np.repeat(0.5 ** np.arange(10), 6),
    }[kind]
    u = x @ (w * np.where(np.arange(60) % 2, -1, 1))
    return x, u + 2 * rng.normal(size=3000)


# name -> (the data for a seed, most training rows); squared loss unless the name is in BINARY.
SETS: dict[str, tuple[Callable[[int], Data], int]] = {
    "synthetic few": (lambda seed: synthetic("few", seed), 300),
    "synthetic alike": (lambda seed: synthetic("alike", seed), 300),
    "synthetic null": (lambda seed: synthetic("null", seed), 300),
    "diabetes": (lambda seed: bundled(datasets.load_diabetes), 265),
    "yacht": (lambda seed: uci("yacht"), 184),
    "energy": (lambda seed: uci("energy"), 460),
    "boston": (lambda seed: uci("boston"), 303),
    "concrete": (lambda seed: uci("concrete"), 600),
    "wine red": (lambda seed: uci("wine_red"), 600),
    "naval": (lambda seed: uci("naval"), 600),
    "power": (lambda seed: uci("power"), 600),
    "protein": (lambda seed: uci("protein"), 600),
    "breast cancer": (lambda seed: bundled(datasets.load_breast_cancer), 300),
    "digits 3 or 8": (lambda seed: digit_pair(3, 8), 200),
    "digits 1 or 7": (lambda seed: digit_pair(1, 7), 200),
    "digits 4 or 9": (lambda seed: digit_pair(4, 9), 200),
}
MORE: dict[str, tuple[Callable[[int], Data], int]] = {
    "synthetic groups": (lambda seed: synthetic("groups", seed), 300),
    "school": (lambda seed: school(), 600),
    "adult": (lambda seed: libsvm("adult_a9a"), 600),
    "ijcnn1": (lambda seed: libsvm("ijcnn1"), 600),
    "MNIST 4 or 9": (lambda seed: image_pair("mnist", 4, 9), 300),
    "shirt or T-shirt": (lambda seed: image_pair("fashion-mnist", 0, 6), 300),
}
"""Sets beyond those of the bars and of the estimators."""
BINARY = ("breast cancer", "digits 3 or 8", "digits 1 or 7", "digits 4 or 9", *list(MORE)[2:])
WITH_PRODUCTS = ("diabetes", "yacht", "energy", "boston", "concrete", "wine red")
NAMES = (*SETS, *(f"{name}+int" for name in WITH_PRODUCTS))
EVERY = (*NAMES, *MORE)
SEEDS = tuple(range(10))
MOST_GROUPS = 10


def groups(name: str, count: int) -> np.ndarray:
    """The group of each column: columns, squares and products where they are added; else each column, or ten blocks."""
    if not name.endswith("+int"):
        return np.arange(count) * min(count, MOST_GROUPS) // count
    plain = next(p for p in range(1, count + 1) if p + p * (p + 1) // 2 == count)
    pairs = itertools.combinations_with_replacement(range(plain), 2)
    return np.r_[np.zeros(plain, int), [1 if i == j else 2 for i, j in pairs]]


def split(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test rows of a seed, standardised by the training rows; regression targets too."""
    plain = name.removesuffix("+int")
    load, most = {**SETS, **MORE}[plain]
    x, y = load(seed)
    if name.endswith("+int"):
        x = with_products(x)
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[:most], order[most : most + 3000]
    mean, scale = x[train].mean(0), x[train].std(0)
    x = (x - mean) / np.where(scale > 0, scale, 1)
    if plain in BINARY:
        return np.c_[x[train], np.ones(len(train))], y[train], np.c_[x[test], np.ones(len(test))], y[test]
    centre, spread = y[train].mean(), y[train].std()
    y = (y - centre) / spread
    return x[train], y[train], x[test], y[test]
