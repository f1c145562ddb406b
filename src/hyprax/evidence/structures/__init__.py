"""Structures of the curvature: what log|I + K| is reduced to."""

from .._structures import (
    EKFAC as EKFAC,
    KFAC as KFAC,
    AbstractStructure as AbstractStructure,
    Diagonal as Diagonal,
    Full as Full,
    LastLayer as LastLayer,
    TensorBlocks as TensorBlocks,
)
