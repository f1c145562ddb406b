"""Data sets and loaders of torch, as arrays and as batches with random access by step."""

import operator
from typing import Any, SupportsIndex

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Int, Integer, PyTree

from .._objective import described
from ._tensors import to_jax, torch_for


class _LoaderBatches(eqx.Module):
    """B_t = {data[i] : i in table[t]}."""

    data: PyTree[Array]
    table: Int[Array, "t b"]

    def __call__(self, step: Integer[ArrayLike, ""]) -> PyTree[Any]:
        """The batch of step `step`: the structure of `data`, with leading axis b."""
        index = self.table[jnp.asarray(step)]
        return jax.tree.map(lambda leaf: leaf[index], self.data)


def arrays(dataset: Any) -> PyTree[Array]:
    """All examples of a map-style data set of torch, stacked: arrays of JAX with a leading axis over the examples.

    For [`hyprax.Minibatches`][], for validation data, or for example weights beside them. Every example is read once
    and kept in memory, in the structure of `dataset[0]`; tensors and NumPy arrays are copied.

    **Arguments:**

    - `dataset`: has `len(dataset)` and `dataset[i]`, such as a `TensorDataset` or one of torchvision.

    **Returns:** tuples, lists or dictionaries of arrays.

    **Raises:** `ValueError` for an iterable data set, which has no example number i; one that gives an example
    differently when it is read again (augmentations belong in the loss, with a key); an empty one; examples of
    different shapes. `ModuleNotFoundError` without torch.
    """
    torch = torch_for("hyprax.torch.arrays")
    _check_dataset("arrays", dataset, torch)
    if not len(dataset):
        raise ValueError("arrays: dataset must hold at least one example; got none.")
    collate = torch.utils.data.default_collate
    first, again = (jax.tree.map(to_jax, collate([dataset[0]])) for _ in range(2))
    if not eqx.tree_equal(first, again):
        raise ValueError(
            "arrays: dataset must give the same example whenever it is read; got two different ones for dataset[0]. A "
            "step is made more than once: leave random augmentations out here, and put them in the loss, with its key."
        )
    if type(dataset) is torch.utils.data.TensorDataset:
        return tuple(to_jax(tensor) for tensor in dataset.tensors)
    try:
        stacked = collate([dataset[i] for i in range(len(dataset))])
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"arrays: dataset must give examples that torch can stack; it says: {error}") from error
    return jax.tree.map(to_jax, stacked)


def batches(loader: Any, steps: SupportsIndex) -> _LoaderBatches:
    """The batches that a `DataLoader` would give, with random access: a function of the step t, for a training.

    The sampler is asked once for the indices of `steps` batches, over as many epochs as that takes, and they are kept,
    four bytes an example and step. So any sampler does, with its own order: seed torch to have that of another run. The
    examples are kept too, as by [`hyprax.torch.arrays`][]; workers and pinned memory have nothing left to do.

    **Arguments:**

    - `loader`: a `torch.utils.data.DataLoader` of a map-style data set, with torch's own `collate_fn`.
    - `steps`: T, the steps of the training.

    **Returns:** a function of t in 0..T-1.

    **Raises:** `ValueError` for what is no loader, an iterable data set, a `collate_fn` of one's own, batches of
    different sizes (`drop_last=True` leaves the last one out), steps that are no integer or below 1; and as `arrays`
    does.
    """
    torch = torch_for("hyprax.torch.batches")
    if not isinstance(loader, torch.utils.data.DataLoader):
        raise ValueError(f"batches: loader must be a torch.utils.data.DataLoader; got {described(loader)}.")
    try:
        count = operator.index(steps)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"batches: steps must be an integer >= 1; got {steps!r}.")
    _check_dataset("batches", loader.dataset, torch)
    if loader.batch_sampler is None:
        raise ValueError("batches: loader must form batches; got one with batch_size=None.")
    if loader.collate_fn is not torch.utils.data.default_collate:
        raise ValueError(
            f"batches: loader must stack its examples with torch's default_collate; got {loader.collate_fn!r}. Pad or "
            "convert the examples in the data set."
        )
    rows: list[list[int]] = []
    while len(rows) < count:
        epoch = [list(map(int, batch)) for batch in loader.batch_sampler]
        if not epoch:
            raise ValueError("batches: loader must give at least one batch an epoch; got none.")
        rows += epoch
    sizes = sorted({len(row) for row in rows[:count]})
    if len(sizes) != 1:
        raise ValueError(
            f"batches: all batches must have the same size; got sizes {sizes}. Make the loader with drop_last=True."
        )
    return _LoaderBatches(arrays(loader.dataset), jnp.asarray(np.array(rows[:count], np.int32)))


def _check_dataset(owner: str, dataset: Any, torch: Any) -> None:
    iterable = isinstance(dataset, torch.utils.data.IterableDataset)
    if iterable or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"{owner}: dataset must be map-style, with len(dataset) and dataset[i]; got {described(dataset)}. A step "
            "is made more than once, backwards too, so its examples must be had at any time: a stream cannot give them."
        )
