"""Hyperparameters from the training data alone: stochastic bounds on the evidence of a Laplace approximation."""

from ._certificate import EvidenceCertificate as EvidenceCertificate
from ._choice import Choice as Choice, ChoiceState as ChoiceState
from ._designs import (
    AbstractDesign as AbstractDesign,
    Blocks as Blocks,
    OneRow as OneRow,
    Sample as Sample,
    ScoredRows as ScoredRows,
    TwoPhase as TwoPhase,
    UniformRows as UniformRows,
)
from ._estimator import (
    AbstractAdaptive as AbstractAdaptive,
    AbstractEstimator as AbstractEstimator,
    Chain as Chain,
    LogDeterminant as LogDeterminant,
    Midpoint as Midpoint,
)
from ._explain import explain as explain
from ._fit import Fitted as Fitted, fit as fit, precisions as precisions
from ._invariance import (
    AffineInvariance as AffineInvariance,
    InputScales as InputScales,
    affine_map as affine_map,
    warp as warp,
)
from ._kernel import kernel as kernel, kernels_by_tensor as kernels_by_tensor
from ._kfac import KFAC as KFAC
from ._lanczos import Lanczos as Lanczos
from ._likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    Gaussian as Gaussian,
    Poisson as Poisson,
)
from ._log_evidence import LogEvidence as LogEvidence, log_evidence as log_evidence, problem as problem
from ._mode import Arrival as Arrival, Decrement as Decrement, decrement as decrement, to_mode as to_mode
from ._objective import EvidenceObjective as EvidenceObjective, EvidenceState as EvidenceState
from ._online_kfac import OnlineKFAC as OnlineKFAC
from ._partitions import FullData as FullData, Partition as Partition
from ._posterior import Posterior as Posterior, posterior as posterior
from ._predictive import Outputs as Outputs
from ._priors import GaussianPrior as GaussianPrior
from ._problem import Problem as Problem
from ._results import RESULTS as RESULTS
from ._roots import (
    AbstractRoot as AbstractRoot,
    Eigen as Eigen,
    IgnoredCovariance as IgnoredCovariance,
    Rows as Rows,
    StickBreaking as StickBreaking,
    stick_order as stick_order,
)
from ._scores import (
    area_under_curve as area_under_curve,
    calibration_error as calibration_error,
    out_of_distribution as out_of_distribution,
    strangeness as strangeness,
)
from ._structures import (
    EKFAC as EKFAC,
    AbstractStructure as AbstractStructure,
    Diagonal as Diagonal,
    Full as Full,
    LastLayer as LastLayer,
    TensorBlocks as TensorBlocks,
)
from ._tangent import AdaptiveTangent as AdaptiveTangent, Tangent as Tangent, TangentState as TangentState
