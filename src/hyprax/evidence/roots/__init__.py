"""Roots of the curvature of a likelihood: which rows there are."""

from .._roots import (
    AbstractRoot as AbstractRoot,
    Eigen as Eigen,
    IgnoredCovariance as IgnoredCovariance,
    Rows as Rows,
    StickBreaking as StickBreaking,
)
