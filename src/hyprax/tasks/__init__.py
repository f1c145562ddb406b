"""One hyperparameter over many tasks: exact or enclosed dual functions, global tuning, guarantees."""

from ._activation import (
    ABSOLUTE as ABSOLUTE,
    HARD_SIGMOID as HARD_SIGMOID,
    HARD_TANH as HARD_TANH,
    IDENTITY as IDENTITY,
    RELU as RELU,
    RELU2 as RELU2,
    Activation as Activation,
    activation_dual as activation_dual,
    leaky_relu as leaky_relu,
)
from ._bounds import (
    crossing_bound as crossing_bound,
    empirical_bernstein_bound as empirical_bernstein_bound,
    hoeffding_bound as hoeffding_bound,
    lipschitz_bound as lipschitz_bound,
    rademacher_bound as rademacher_bound,
    wealth_bound as wealth_bound,
)
from ._brackets import Complexity as Complexity, clip as clip, rademacher_complexity as rademacher_complexity
from ._complexity import (
    Bounded as Bounded,
    Intervals as Intervals,
    LassoKinks as LassoKinks,
    Lipschitz as Lipschitz,
    Oscillations as Oscillations,
    Pieces as Pieces,
    PseudoDimension as PseudoDimension,
    Rational as Rational,
    RidgeRank as RidgeRank,
    Structure as Structure,
    pseudo_dimension as pseudo_dimension,
)
from ._dual import ReadoutDuals as ReadoutDuals
from ._enclosure import Chord as Chord, InnerProblem as InnerProblem, SmoothProblem as SmoothProblem, enclose as enclose
from ._erm import (
    BoundedDual as BoundedDual,
    GlobalOptimum as GlobalOptimum,
    MeanDual as MeanDual,
    tune as tune,
)
from ._graph import label_propagation_dual as label_propagation_dual, sgc_dual as sgc_dual
from ._guarantees import (
    Guarantee as Guarantee,
    SampleSize as SampleSize,
    gap as gap,
    tasks_needed as tasks_needed,
)
from ._kernel import GaussianKernel as GaussianKernel, PolynomialKernel as PolynomialKernel
from ._lasso import (
    ElasticNetPath as ElasticNetPath,
    elastic_net_dual as elastic_net_dual,
    elastic_net_path as elastic_net_path,
    lasso_dual as lasso_dual,
)
from ._linear import huber_dual as huber_dual, logistic_dual as logistic_dual, softmax_dual as softmax_dual
from ._network_losses import (
    NetworkLosses as NetworkLosses,
    activation_losses as activation_losses,
    gcn_losses as gcn_losses,
)
from ._networks import (
    ActivationInterpolation as ActivationInterpolation,
    GraphKernel as GraphKernel,
    PiecewisePolynomial as PiecewisePolynomial,
    ValidationOptimum as ValidationOptimum,
    published_order as published_order,
)
from ._online import (
    Density as Density,
    ExponentialForecaster as ExponentialForecaster,
    ForecasterState as ForecasterState,
    OnlineRun as OnlineRun,
    dispersion as dispersion,
    learning_rate as learning_rate,
    play as play,
)
from ._parallel import map_tasks as map_tasks
from ._piecewise import Extremum as Extremum, PiecewiseFunction as PiecewiseFunction
from ._ridge import ridge_dual as ridge_dual
from ._split import (
    SplitCertificate as SplitCertificate,
    split_excess_bound as split_excess_bound,
    split_risk_bound as split_risk_bound,
)
from ._svm import SVMPath as SVMPath, svm_dual as svm_dual, svm_path as svm_path
from ._task import Split as Split, Task as Task
from ._trained import TrainedDual as TrainedDual, trained_dual as trained_dual
from ._zero_one import zero_one_loss as zero_one_loss
