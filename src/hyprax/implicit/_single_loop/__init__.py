"""Stochastic methods in a single loop: minibatch steps of the inner variable and the adjoint beside a search's."""

from ._amigo import AmIGO as AmIGO
from ._base import AbstractSingleLoop as AbstractSingleLoop, SingleLoopState as SingleLoopState
from ._saba import SABA as SABA
from ._soba import SOBA as SOBA
