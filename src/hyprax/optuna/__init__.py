"""Optuna outside, gradients inside: studies whose trials are tuned, and runs shown as studies."""

from ._study import write_run as write_run
from ._trials import Pruning as Pruning, tuned_trial as tuned_trial
