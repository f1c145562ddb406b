"""The families by name: data checked, the loss chosen."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ._design import Design, as_design
from ._generalised_linear import GeneralisedLinear
from ._losses import AbstractPointLoss, LogisticLoss, PoissonLoss, PseudoHuberLoss, SoftmaxLoss, SquaredLoss

Selector = Callable[[PyTree], Any]


def _checked(name: str, inputs: Any, targets: Any) -> tuple[Design, np.ndarray]:
    inputs = as_design(inputs, name)
    targets = np.asarray(targets)
    if targets.shape[:1] != inputs.shape[:1]:
        raise ValueError(
            f"{name}: given {inputs.shape[0]} inputs and {targets.shape[:1]} targets, allowed are as many."
        )
    if targets.dtype.kind == "f" and not np.all(np.isfinite(targets)):
        raise ValueError(f"{name}: given targets with NaN or infinite entries, allowed are finite numbers.")
    return inputs, targets


def _numbers(name: str, inputs: Any, targets: Any, ndims: tuple[int, ...]) -> tuple[Design, Array, np.ndarray]:
    inputs, targets = _checked(name, inputs, targets)
    if targets.ndim not in ndims or targets.dtype.kind not in "fiu":
        allowed = " or ".join("(n,)" if k == 1 else "(n, C)" for k in ndims)
        raise ValueError(f"{name}: given targets {targets.dtype}{targets.shape}, allowed are numbers {allowed}.")
    return inputs, jnp.asarray(targets, inputs.dtype), targets


Terms: TypeAlias = tuple[Selector | float, Any, Selector | None, Any]
"""`penalty`, `penalty_groups`, `weights` and `weight_groups`, as every family is given them."""


def _family(
    inputs: Design, targets: Array, loss: AbstractPointLoss, outputs: int | None, terms: Terms
) -> GeneralisedLinear:
    penalty, groups, weights, weight_groups = terms
    return GeneralisedLinear(
        inputs,
        targets,
        loss,
        outputs,
        penalty=penalty,
        penalty_groups=groups,
        weights=weights,
        weight_groups=weight_groups,
    )


def Softmax(
    inputs: Any,
    targets: Any,
    *,
    penalty: Selector | float,
    penalty_groups: Any = None,
    weights: Selector | None = None,
    weight_groups: Any = None,
    classes: int | None = None,
) -> GeneralisedLinear:
    """g(W, λ, ω) = -(1/n) Σ_i ω_i log softmax(Wᵀx_i)_{y_i} + ½ Σ_jc λ_jc W_jc²: multinomial logistic regression.

    **Arguments:**

    - `inputs`: X, `(n, d)`, finite; an array, a `scipy.sparse` matrix or a [`hyprax.families.SparseDesign`][]. A
        column of ones makes an intercept; it is penalised like any feature.
    - `targets`: y, `(n,)`, integers 0..C-1, at least two classes.
    - `penalty`: a selector of the strengths from the hyperparameters, e.g. `lambda hyper: hyper["penalty"]`. It is
        applied to natural values and to the constrained tree alike, and must return a leaf, of a shape that
        broadcasts to `(d, C)`: `()` one, `(C,)` a class, `(d, 1)` a feature, `(d, C)` a weight. Strengths must be >
        0. A number is a strength that is not tuned.
    - `penalty_groups`: integers `(d,)` or `(d, C)`, the group of each feature or weight; the leaf is then `(groups,)`.
    - `weights`: a selector of the example weights ω >= 0, a leaf of shape `(n,)`, e.g. `hx.Interval(x, 0, 1)`;
        default 1.
    - `weight_groups`: integers `(n,)`, the group of each example (its source, say); the leaf is then `(groups,)`.
    - `classes`: C; default the largest label plus one.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d, C)`.

    **Raises:** `ValueError` for data of other shapes, non-finite entries, labels out of range, or a single class.
    """
    inputs, targets = _checked("Softmax", inputs, targets)
    SoftmaxLoss().check_targets("Softmax", targets, classes)
    classes = int(targets.max()) + 1 if classes is None else classes
    if classes < 2 or np.all(targets == targets[0]):
        raise ValueError("Softmax: given a single class, allowed are two or more.")
    labels = jnp.asarray(targets)
    return _family(inputs, labels, SoftmaxLoss(), classes, (penalty, penalty_groups, weights, weight_groups))


def Logistic(
    inputs: Any,
    targets: Any,
    *,
    penalty: Selector | float,
    penalty_groups: Any = None,
    weights: Selector | None = None,
    weight_groups: Any = None,
) -> GeneralisedLinear:
    """g(w, λ, ω) = (1/n) Σ_i ω_i [log(1 + e^{u_i}) - y_i u_i] + ½ Σ_j λ_j w_j², u = Xw: binary logistic regression.

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, each 0 or 1, both present.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)`.
    """
    inputs, targets = _checked("Logistic", inputs, targets)
    LogisticLoss().check_targets("Logistic", targets, None)
    if np.all(targets == targets[0]):
        raise ValueError("Logistic: given a single class, allowed are both.")
    numbers = jnp.asarray(targets, inputs.dtype)
    return _family(inputs, numbers, LogisticLoss(), None, (penalty, penalty_groups, weights, weight_groups))


def Squared(
    inputs: Any,
    targets: Any,
    *,
    penalty: Selector | float,
    penalty_groups: Any = None,
    weights: Selector | None = None,
    weight_groups: Any = None,
) -> GeneralisedLinear:
    """g(w, λ, ω) = (1/2n) Σ_i ω_i |x_iᵀw - y_i|² + ½ Σ_j λ_j w_j²: ridge regression.

    **Arguments:**

    - `inputs`, `penalty`, `penalty_groups`, `weights`, `weight_groups`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)` or `(n, C)`, finite.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)` or `(d, C)`.
    """
    inputs, numbers, targets = _numbers("Squared", inputs, targets, (1, 2))
    outputs = None if targets.ndim == 1 else targets.shape[1]
    return _family(inputs, numbers, SquaredLoss(), outputs, (penalty, penalty_groups, weights, weight_groups))


def Poisson(
    inputs: Any,
    targets: Any,
    *,
    penalty: Selector | float,
    penalty_groups: Any = None,
    weights: Selector | None = None,
    weight_groups: Any = None,
) -> GeneralisedLinear:
    """g(w, λ, ω) = (1/n) Σ_i ω_i [e^{u_i} - y_i u_i] + ½ Σ_j λ_j w_j², u = Xw: Poisson regression with a log link.

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, numbers >= 0 (counts).
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)`. The curvature e^u has no global
    bound, so only bounds by self-concordance are finite; [`hyprax.implicit.EhrhardtRoberts`][] is infinite.
    """
    inputs, numbers, targets = _numbers("Poisson", inputs, targets, (1,))
    PoissonLoss().check_targets("Poisson", targets, None)
    return _family(inputs, numbers, PoissonLoss(), None, (penalty, penalty_groups, weights, weight_groups))


def PseudoHuber(
    inputs: Any,
    targets: Any,
    *,
    penalty: Selector | float,
    penalty_groups: Any = None,
    weights: Selector | None = None,
    weight_groups: Any = None,
    delta: float = 1.0,
) -> GeneralisedLinear:
    """g(w, λ, ω) = (δ²/n) Σ_i ω_i [√(1 + ((u_i - y_i)/δ)²) - 1] + ½ Σ_j λ_j w_j², u = Xw: robust regression.

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, finite.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.
    - `delta`: δ > 0, the residual beyond which the loss grows linearly, in units of y.

    **Returns:** a [`hyprax.families.GeneralisedLinear`][]; its parameters are `(d,)`.
    """
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"PseudoHuber: given delta {delta}, allowed are finite numbers > 0.")
    inputs, numbers, _ = _numbers("PseudoHuber", inputs, targets, (1,))
    loss = PseudoHuberLoss(float(delta))
    return _family(inputs, numbers, loss, None, (penalty, penalty_groups, weights, weight_groups))
