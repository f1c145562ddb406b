"""Networks whose weight decay and noise are found by the evidence of the training rows: no validation rows needed."""

import abc
import functools
import itertools
import numbers
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.special import log_softmax, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Bunch, check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .._certificate import details
from .._hyper import Positive, natural
from .._result import result_name
from ..evidence import Categorical, Gaussian
from ..fits import fit_evidence
from ._base import LARGEST, arithmetic, forget, mean_and_spread, whole
from ._columns import Columns, columns

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {"tanh": jnp.tanh, "gelu": jax.nn.gelu, "softplus": jax.nn.softplus}


@functools.cache
def network(depth: int, activation: str) -> Callable[[Any, Any, Any], Any]:
    """`apply(params, hyper, x)` of a multilayer perceptron: one object for equal networks, which then compile once."""
    bend = ACTIVATIONS[activation]

    def apply(params: Any, hyper: Any, x: Any) -> Any:
        for layer in range(depth):
            x = x @ params[f"w{layer}"] + params[f"b{layer}"]
            x = bend(x) if layer < depth - 1 else x
        return x

    return apply


class AbstractEvidenceMLP(BaseEstimator, abc.ABC):
    """What the networks share; see [`hyprax.sklearn.EvidenceMLPRegressor`][] for the arguments."""

    def __init__(
        self,
        hidden_layer_sizes: Any = (20,),
        *,
        activation: Any = "tanh",
        max_iter: Any = None,
        mode_steps: Any = 50,
        random_state: Any = None,
    ):
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.max_iter = max_iter
        self.mode_steps = mode_steps
        self.random_state = random_state

    def _sizes(self) -> tuple[int, ...]:
        sizes = self.hidden_layer_sizes
        sizes = (sizes,) if isinstance(sizes, numbers.Integral) else tuple(sizes)
        if not all(whole(size, 1) for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be integers >= 1; got {self.hidden_layer_sizes!r}.")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(map(repr, ACTIVATIONS))}; got {self.activation!r}.")
        if self.max_iter is not None and not whole(self.max_iter, 1):
            raise ValueError(f"max_iter must be an integer >= 1, or None; got {self.max_iter!r}.")
        if not whole(self.mode_steps, 0):
            raise ValueError(f"mode_steps must be an integer >= 0; got {self.mode_steps!r}.")
        return tuple(map(int, sizes))

    def _train(self, X: np.ndarray, targets: np.ndarray, outputs: int, likelihood: Any, hyper: Any) -> Any:
        """Fit weights and hyperparameters, which are given back in natural units."""
        forget(self, "covariance_", "variance_scale_")
        sizes = (X.shape[1], *self._sizes(), outputs)
        rng = check_random_state(self.random_state)
        scaled = columns(X, None, True, True)
        inputs = scaled.apply(X)
        params = {}
        for layer, (wide, narrow) in enumerate(itertools.pairwise(sizes)):
            params[f"w{layer}"] = rng.normal(size=(wide, narrow)) / np.sqrt(wide)
            params[f"b{layer}"] = np.zeros(narrow)
        apply = network(len(sizes) - 1, self.activation)
        with arithmetic():
            fit = fit_evidence(
                apply,
                jax.tree.map(jnp.asarray, params),
                (jnp.asarray(inputs), jnp.asarray(targets)),
                hyper,
                likelihood=likelihood,
                standardise=False,
                epochs=None if self.max_iter is None else int(self.max_iter),
                mode_steps=int(self.mode_steps),
                progress=False,
                key=jax.random.key(int(rng.randint(np.iinfo(np.int32).max))),
            )
            found = jax.tree.map(np.asarray, natural(fit.hyper))
            self.coefs_ = [np.asarray(fit.params[f"w{layer}"]) for layer in range(len(sizes) - 1)]
            self.intercepts_ = [np.asarray(fit.params[f"b{layer}"]) for layer in range(len(sizes) - 1)]
            if self._keep_covariance(inputs, found):
                self.variance_scale_ = float(fit.posterior().scale)
            self.certificate_ = Bunch(**details(fit.certificate))
            self.noise_ = Bunch(type=type(fit.noise).__name__, meaning=fit.noise.meaning())
        self.centre_, self.scale_ = scaled.centre, scaled.scale
        self.penalties_ = {name: float(value) for name, value in found["precision"].items()}
        self.log_evidence_ = float(fit.log_evidence)
        self.n_iter_ = max(len(fit.history), 1)
        self.result_, self.message_ = result_name(fit.result), fit.message
        if fit.message:
            warnings.warn(f"{type(self).__name__}: {fit.message}", ConvergenceWarning, stacklevel=3)
        return found

    def _params(self) -> dict[str, Any]:
        pairs = enumerate(zip(self.coefs_, self.intercepts_, strict=True))
        return {f"{kind}{layer}": x for layer, pair in pairs for kind, x in zip("wb", pair, strict=True)}

    def _jacobian(self, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Outputs (n, C) and their derivatives in all weights (n, C, P)."""
        apply = network(len(self.coefs_), self.activation)
        flat, restore = ravel_pytree(jax.tree.map(jnp.asarray, self._params()))

        def outputs(flat: Any, x: Any) -> Any:
            return apply(restore(flat), None, x)

        each = jnp.asarray(inputs)
        return np.asarray(jax.vmap(outputs, (None, 0))(flat, each)), np.asarray(
            jax.vmap(jax.jacrev(outputs), (None, 0))(flat, each)
        )

    @abc.abstractmethod
    def _curvature(self, outputs: np.ndarray, found: Any) -> np.ndarray:
        """The Hessian of the negative log likelihood in the outputs, (n, C, C)."""

    def _keep_covariance(self, inputs: np.ndarray, found: Any) -> bool:
        """Whether there are few enough weights for it."""
        params = self._params()
        if sum(x.size for x in params.values()) > LARGEST:
            return False
        outputs, slopes = self._jacobian(inputs)
        prior = ravel_pytree({name: np.full(x.shape, found["precision"][name]) for name, x in params.items()})[0]
        curved = np.einsum("ncp,ncd->ndp", slopes, self._curvature(outputs, found))
        precision = np.einsum("ndp,ndq->pq", curved, slopes) + np.diag(np.asarray(prior))
        self.covariance_ = np.linalg.inv(precision)
        return True

    def _outputs(self, X: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Outputs at the mode, and their variances where the covariance is kept, times `variance_scale_`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        inputs = Columns(self.centre_, self.scale_).apply(X)
        if not hasattr(self, "covariance_"):
            for layer, (w, b) in enumerate(zip(self.coefs_, self.intercepts_, strict=True)):
                inputs = inputs @ w + b
                if layer < len(self.coefs_) - 1:
                    with arithmetic():
                        inputs = np.asarray(ACTIVATIONS[self.activation](jnp.asarray(inputs)))
            return inputs, None
        with arithmetic():
            outputs, slopes = self._jacobian(inputs)
        variances = np.einsum("ncp,pq,ncq->nc", slopes, self.covariance_, slopes, optimize=True)
        return outputs, self.variance_scale_ * variances


class EvidenceMLPRegressor(RegressorMixin, AbstractEvidenceMLP):
    """A network for numbers, its weight decay and noise found by the evidence of the training rows.

    Weights w are at the maximum of Σ_i log N(y_i; f(x_i; w), σ²) - ½ Σ_t δ_t ‖w_t‖² (a precision δ_t for each tensor t
    of weights); δ and σ maximise the Laplace approximation of the marginal likelihood. No row is held out.

    **Arguments:**

    - `hidden_layer_sizes`: as in `MLPRegressor`; `activation`: `"tanh"`, `"gelu"` or `"softplus"` (smooth, as the
        approximation needs).
    - `max_iter`: epochs of the weights, the precisions moving on the way; default as many as make 2,000 steps, at least
        100. `mode_steps`: the most steps of the precisions with the weights at their mode after that.
    - `random_state`: of the first weights and of batches.

    **Attributes:** `coefs_`, `intercepts_`, `penalties_` (δ by tensor: `w0`, `b0`, ...), `noise_level_` (σ in units of
    y), `log_evidence_`, `certificate_`, `noise_`, `result_`, `message_`, `n_iter_`, `covariance_` (of the weights, for
    at most 2,000). `predict(return_std=True)` adds the standard deviation of a new observation: that of the linearised
    posterior, plus σ².

    Source: Immer et al. 2021 (arXiv 2104.04975).
    """

    def fit(self, X: Any, y: Any) -> "EvidenceMLPRegressor":
        """Fit weights and precisions to the rows; y is (n,)."""
        self._sizes()
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, ensure_min_samples=2)
        y = np.asarray(y, float)
        self.shift_, self.unit_ = (float(x) for x in mean_and_spread(y, None, True))
        hyper = {"noise": Positive(np.asarray(1.0))}
        found = self._train(X, ((y - self.shift_) / self.unit_)[:, None], 1, _gaussian, hyper)
        self.noise_level_ = float(found["noise"]) * self.unit_
        return self

    def _curvature(self, outputs: np.ndarray, found: Any) -> np.ndarray:
        return np.full((len(outputs), 1, 1), 1 / float(found["noise"]) ** 2)

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictions (n,); with `return_std` a pair with the standard deviations of new observations."""
        outputs, variances = self._outputs(X)
        mean = self.shift_ + self.unit_ * outputs[:, 0]
        if not return_std:
            return mean
        if variances is None:
            raise ValueError(f"return_std requires at most {LARGEST} weights.")
        return mean, np.sqrt(self.unit_**2 * variances[:, 0] + self.noise_level_**2)


class EvidenceMLPClassifier(ClassifierMixin, AbstractEvidenceMLP):
    """A network for classes, its weight decay found by the evidence of the training rows.

    As [`hyprax.sklearn.EvidenceMLPRegressor`][], with a softmax. `predict_proba` is that of the linearised posterior by
    the probit approximation, softmax(f_c/√(1 + π τ v_c/8)), v_c the variance of output c: less sure far from the data.
    τ, `variance_scale_`, is that under which the training labels, each left out in turn, are most likely (see
    [`hyprax.evidence.posterior`][]): by itself, τ = 1, the approximation is too unsure on small sets. For more than
    2,000 weights the prediction is that of the mode.

    **Attributes:** those of [`hyprax.sklearn.EvidenceMLPRegressor`][] but for the noise, and `classes_`.
    """

    def fit(self, X: Any, y: Any) -> "EvidenceMLPClassifier":
        """Fit weights and precisions to the rows; y is (n,), of two classes or more."""
        self._sizes()
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs rows of two classes or more; got one class, {self.classes_[0]}."
            )
        self._train(X, labels, len(self.classes_), Categorical(), None)
        return self

    def _curvature(self, outputs: np.ndarray, found: Any) -> np.ndarray:
        p = softmax(outputs, axis=1)
        return p[:, :, None] * np.eye(p.shape[1]) - p[:, :, None] * p[:, None, :]

    def _scores(self, X: Any) -> np.ndarray:
        outputs, variances = self._outputs(X)
        return outputs if variances is None else outputs / np.sqrt(1 + np.pi / 8 * variances)

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest class of every row."""
        found = self._scores(X).argmax(axis=1)
        return self.classes_[found]

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of every class, (n, classes)."""
        return softmax(self._scores(X), axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """The logarithms of `predict_proba`."""
        return log_softmax(self._scores(X), axis=1)


def _gaussian(hyper: Any) -> Gaussian:
    return Gaussian(hyper["noise"])
