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
    natural as natural,
    Positive as Positive,
    Simplex as Simplex,
)
from ._objective import (
    AbstractObjective as AbstractObjective,
    Accuracy as Accuracy,
    Hypergradient as Hypergradient,
    hypergradient as hypergradient,
    HypergradientError as HypergradientError,
    Value as Value,
)
from ._result import explain as explain, RESULTS as RESULTS

__version__ = "0.1.0"
