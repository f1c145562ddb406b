"""Estimators for scikit-learn whose penalties are tuned: one, or one a feature, a group, a class, a weight."""

import importlib.util

if importlib.util.find_spec("sklearn") is None:
    raise ModuleNotFoundError(
        'hyprax.sklearn needs scikit-learn, which is not installed: pip install "hyprax[sklearn]"', name="sklearn"
    )

from ._elastic_net import TunedElasticNet as TunedElasticNet
from ._evidence import (
    EvidenceMLPClassifier as EvidenceMLPClassifier,
    EvidenceMLPRegressor as EvidenceMLPRegressor,
)
from ._linear import (
    TunedHuberRegressor as TunedHuberRegressor,
    TunedLogisticRegression as TunedLogisticRegression,
    TunedPoissonRegressor as TunedPoissonRegressor,
    TunedRidge as TunedRidge,
)
from ._shared_penalty import SharedPenalty as SharedPenalty
