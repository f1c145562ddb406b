"""Data sets and loaders of torch as batches that can be had at any step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hyprax as hx
from hyprax.torch import arrays, batches

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "hyprax[torch]"')
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler  # noqa: E402

X, Y = torch.arange(20.0).reshape(10, 2), torch.arange(10)


class Pairs(Dataset):
    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"x": X[i].numpy(), "y": int(Y[i])}


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), tuple(a), tuple(b))


@pytest.mark.parametrize("sampler", [None, WeightedRandomSampler(range(1, 11), 10)])
def test_the_batches_are_those_of_the_loader(sampler):
    def loader():
        return DataLoader(TensorDataset(X, Y), 4, sampler=sampler, shuffle=sampler is None, drop_last=True)

    torch.manual_seed(0)
    ours = batches(loader(), 5)
    torch.manual_seed(0)
    again = loader()
    theirs = [batch for _ in range(3) for batch in again.batch_sampler][:5]
    for t in (4, 0, 3, 1, 2):
        same(ours(t), (X[theirs[t]], Y[theirs[t]]))
    same(jax.jit(lambda t: ours(t))(jnp.asarray(2)), ours(2))


def test_examples_of_any_structure_are_stacked():
    found = arrays(Pairs())
    np.testing.assert_array_equal(found["x"], X.numpy())
    np.testing.assert_array_equal(found["y"], Y.numpy())
    part = arrays(torch.utils.data.Subset(TensorDataset(X, Y), [3, 1]))
    np.testing.assert_array_equal(part[0], X[[3, 1]].numpy())


def test_tensors_and_numpy_arrays_are_taken_and_copied():
    x = torch.ones(3, 2)
    steps = hx.Minibatches((x, np.ones(3)), 3, key=jax.random.key(0))
    copied = arrays(TensorDataset(x))
    x.zero_()
    assert float(jnp.sum(copied[0])) == 6.0
    assert steps(0)[0].shape == (3, 2)


@pytest.mark.usefixtures("unchecked")
def test_what_cannot_be_had_at_any_step_is_refused_with_the_reason():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(X)

    class Noisy(Pairs):
        def __getitem__(self, i):
            return X[i] + torch.randn(2)

    class Ragged(Pairs):
        def __getitem__(self, i):
            return torch.ones(i + 1)

    data = TensorDataset(X, Y)
    with pytest.raises(ValueError, match=r"map-style.*a stream cannot give them"):
        batches(DataLoader(Stream(), 2), 3)
    with pytest.raises(ValueError, match="got two different ones"):
        arrays(Noisy())
    with pytest.raises(ValueError, match="examples that torch can stack"):
        arrays(Ragged())
    with pytest.raises(ValueError, match=r"sizes \[2, 4\]. Make the loader with drop_last=True"):
        batches(DataLoader(data, 4), 3)
    with pytest.raises(ValueError, match="default_collate; got"):
        batches(DataLoader(data, 4, collate_fn=list), 3)
    with pytest.raises(ValueError, match="got one with batch_size=None"):
        batches(DataLoader(data, None), 3)
    with pytest.raises(ValueError, match="steps must be an integer >= 1; got 0"):
        batches(DataLoader(data, 4), 0)
    with pytest.raises(ValueError, match="DataLoader; got a list"):
        batches([X], 3)
