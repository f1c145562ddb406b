"""Structures of the curvature: what log|I + K| is reduced to, and what the covariance of a posterior is taken to be."""

from .._structures import (
    EKFAC as EKFAC,
    KFAC as KFAC,
    Diagonal as Diagonal,
    LastLayer as LastLayer,
    TensorBlocks as TensorBlocks,
)
