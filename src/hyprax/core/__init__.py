"""What every engine and search agrees on: for whoever writes an objective, a certificate or a constrained leaf."""

from .._certificate import AbstractCertificate as AbstractCertificate
from .._hyper import AbstractConstrained as AbstractConstrained
from .._noise import AbstractNoise as AbstractNoise
from .._objective import (
    AbstractObjective as AbstractObjective,
    Value as Value,
    refuse_accuracy as refuse_accuracy,
)
from .._result import (
    Result as Result,
    result_name as result_name,
    succeeded as succeeded,
)
from .._stats import AbstractStats as AbstractStats, Effort as Effort, NamedStats as NamedStats, scalars as scalars
