"""Modules, data sets and losses of PyTorch under hyprax. Torch itself is imported by the first call that needs it."""

from ._function import TorchFunction as TorchFunction, from_torch as from_torch
from ._loaders import arrays as arrays, batches as batches
from ._oracle import oracle as oracle
