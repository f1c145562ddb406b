"""Hyprax: hyperparameters tuned by gradient, with a certificate on every answer."""

from ._batches import Minibatches as Minibatches
from ._certificate import (
    AbstractCertificate as AbstractCertificate,
    ErrorBound as ErrorBound,
    NoCertificate as NoCertificate,
)
from ._citation import citation as citation
from ._hyper import (
    AbstractConstrained as AbstractConstrained,
    Interval as Interval,
    Positive as Positive,
    Simplex as Simplex,
    natural as natural,
)
from ._objective import (
    AbstractObjective as AbstractObjective,
    Accuracy as Accuracy,
    Hypergradient as Hypergradient,
    HypergradientError as HypergradientError,
    Value as Value,
    hypergradient as hypergradient,
)
from ._result import RESULTS as RESULTS, explain as explain

__version__ = "0.1.0"
