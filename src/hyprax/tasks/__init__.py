"""One hyperparameter over many tasks: exact or enclosed dual functions, global tuning, guarantees."""

from . import complexity as complexity
from ._activation import Activation as Activation, activation_dual as activation_dual
from ._box_dual import BoxDual as BoxDual
from ._descent import descent_dual as descent_dual
from ._dual import ReadoutDuals as ReadoutDuals
from ._enclosure import SmoothProblem as SmoothProblem, enclose as enclose
from ._erm import GlobalOptimum as GlobalOptimum, erm as erm
from ._erm_box import BoxOptimum as BoxOptimum, erm_box as erm_box
from ._forecast import Forecast as Forecast, forecast as forecast
from ._graph import graph_dual as graph_dual
from ._guarantees import Guarantee as Guarantee, SampleSize as SampleSize, gap as gap, tasks_needed as tasks_needed
from ._kernel import GaussianKernel as GaussianKernel, PolynomialKernel as PolynomialKernel
from ._lasso import (
    ElasticNetPath as ElasticNetPath,
    elastic_net_dual as elastic_net_dual,
)
from ._linear import huber_dual as huber_dual, logistic_dual as logistic_dual
from ._online import (
    ExponentialForecaster as ExponentialForecaster,
    OnlineRun as OnlineRun,
    dispersion as dispersion,
    play as play,
)
from ._parallel import map_tasks as map_tasks
from ._pieces import BoundedDual as BoundedDual, Extremum as Extremum
from ._piecewise import PiecewiseFunction as PiecewiseFunction
from ._ridge import ridge_dual as ridge_dual
from ._svm import SVMPath as SVMPath, svm_dual as svm_dual
from ._task import Split as Split, Task as Task
from ._trained import TrainedDual as TrainedDual, trained_dual as trained_dual
