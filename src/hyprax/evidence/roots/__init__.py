"""Roots of the curvature of a likelihood: which rows there are."""

from .._roots import Eigen as Eigen, Rows as Rows, StickBreaking as StickBreaking
