"""Hyperparameters from the training data alone: stochastic bounds on the evidence of a Laplace approximation."""

from . import designs as designs, roots as roots, structures as structures
from ._arrival import to_mode as to_mode
from ._certificate import (
    RESULTS as RESULTS,
    EvidenceCertificate as EvidenceCertificate,
    EvidenceStats as EvidenceStats,
)
from ._chain import LogDeterminant as LogDeterminant
from ._estimator import AbstractEstimator as AbstractEstimator, Chain as Chain
from ._invariance import (
    AffineInvariance as AffineInvariance,
    InputScales as InputScales,
)
from ._likelihoods import (
    AbstractLikelihood as AbstractLikelihood,
    Bernoulli as Bernoulli,
    Categorical as Categorical,
    Gaussian as Gaussian,
    HeteroscedasticGaussian as HeteroscedasticGaussian,
    Poisson as Poisson,
)
from ._log_evidence import LogEvidence as LogEvidence, linearise as linearise, log_evidence as log_evidence
from ._objective import EvidenceObjective as EvidenceObjective
from ._online import Schedule as Schedule
from ._partitions import FullData as FullData, Lanczos as Lanczos, OnlineKFAC as OnlineKFAC, Partition as Partition
from ._plan import kernel_plan as kernel_plan
from ._posterior import Posterior as Posterior, posterior as posterior
from ._predictive import calibration_error as calibration_error
from ._problem import GaussianPrior as GaussianPrior, LinearisedModel as LinearisedModel
from ._standardise import precisions as precisions
from ._tangent import AdaptiveTangent as AdaptiveTangent, Choice as Choice, Tangent as Tangent
