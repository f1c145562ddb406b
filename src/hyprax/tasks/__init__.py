"""One hyperparameter over many tasks: exact or enclosed dual functions, global tuning, guarantees."""

from ._piecewise import Extremum as Extremum, PiecewiseFunction as PiecewiseFunction
