"""The families by name: data checked, the loss chosen."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Array

from ..._processes import here
from ._class_weights import WeightedLogisticLoss, WeightedSoftmaxLoss
from ._design import Design, as_design
from ._generalised_linear import GeneralisedLinear
from ._losses import AbstractPointLoss, LogisticLoss, PoissonLoss, PseudoHuberLoss, SoftmaxLoss, SquaredLoss
from ._selection import Selector


def _checked(
    name: str, inputs: Any, targets: Any, loss: AbstractPointLoss, ndims: tuple[int, ...] = (1,), **options: Any
) -> tuple[Design, Array]:
    inputs = as_design(inputs, f"{name}: inputs")
    targets = loss.as_targets(targets, f"{name}: targets", **options)
    if targets.ndim not in ndims:
        allowed = " or ".join("(n,)" if k == 1 else "(n, C)" for k in ndims)
        raise ValueError(f"{name}: targets must have the shape {allowed}; got {targets.shape}.")
    if targets.shape[0] != inputs.shape[0]:
        raise ValueError(
            f"{name}: inputs and targets must have the same length; got {inputs.shape[0]} and {targets.shape[0]}."
        )
    return inputs, targets


def _positive(name: str, weights: Sequence[float], classes: int) -> Sequence[float]:
    if len(weights) != classes or not all(math.isfinite(x) and x > 0 for x in weights):
        raise ValueError(f"{name}: class_weights must be {classes} finite numbers > 0; got {list(weights)}.")
    return weights


def _two_classes(name: str, targets: Array) -> None:
    found = np.unique(np.asarray(here(targets)))
    if found.size < 2:
        raise ValueError(f"{name}: targets must hold two classes or more; got a single class, {found[0]}.")


class Softmax(GeneralisedLinear):
    """Multinomial logistic regression with an l2 penalty.

        g(W, λ, ω) = -(1/n) Σ_i ω_i log softmax(Wᵀx_i + o_i)_{y_i} + ½ Σ_jc λ_jc W_jc²

    **Arguments:**

    - `inputs`: X, `(n, d)`, finite; an array, a `scipy.sparse` matrix or a [`hyprax.families.Chunked`][] one. No
        intercept is added: append a column of ones, and name it in `free`, or it is penalised like any feature.
    - `targets`: y, `(n,)`, integers 0..C-1, at least two classes.
    - `penalty`: the strengths: a key or attribute of the hyperparameters (`"penalty"`), or a function of them that
        returns a leaf, applied to natural values and to the constrained tree alike. Its shape broadcasts to `(d, C)`:
        `()` one, `(C,)` a class, `(d, 1)` a feature, `(d, C)` a weight. Strengths must be > 0. Numbers are strengths
        that are not tuned. Strengths that a function computes from leaves are taken, but not certified.
    - `penalty_groups`: integers `(d,)` or `(d, C)`, the group of each feature or weight; the leaf is then `(groups,)`.
    - `weights`: the example weights ω >= 0, picked in the same way: a leaf of shape `(n,)`, e.g.
        `hx.Interval(x, 0, 1)`; or numbers `(n,)` that are not tuned. Certificates hold as they do without. Default 1.
        Validation rows count by `mean_loss.weighted(c)`.
    - `weight_groups`: integers `(n,)`, the group of each example (its source, say); the leaf is then `(groups,)`.
    - `classes`: C; default the largest label plus one.
    - `class_weights`: a number > 0 for each class, which multiplies the loss of its examples, in the fit and in
        `mean_loss` alike; default 1. They are part of the loss, and certificates hold as they do without.
    - `free`: the columns without penalty, as booleans `(d,)` or as places (`free=[-1]` for the last): λ is exactly 0
        there for all classes. The leaf of strengths is spread over all d columns as ever, and the entries that fall on
        free columns alone act on nothing and have a derivative of exactly 0; of `penalty_groups` the numbers at free
        columns are not looked at. Moving all classes of a free column alike changes no prediction: of these optima the
        one with Σ_c W_jc = 0 is taken. The free columns must be independent, and must not separate the classes: else
        there is no optimum, and answers have the result `no_optimum`.
    - `offset`: o, `(n,)` or one for each part of a prediction, added to the predictions; validation data then bring
        their own, `(inputs, targets, offset)`.

    Its parameters are `(d, C)`. Problems of equal shapes share one compiled program where strengths are picked by key
    or by one named function; every new `lambda` compiles anew.

    **Raises:** `ValueError` for data of other shapes or dtypes, non-finite entries, labels out of range, or a single
    class.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        penalty: Selector,
        penalty_groups: Any = None,
        weights: Selector | None = None,
        weight_groups: Any = None,
        free: Any = None,
        offset: Any = None,
        classes: int | None = None,
        class_weights: Sequence[float] | None = None,
    ):
        inputs, targets = _checked("Softmax", inputs, targets, SoftmaxLoss(), outputs=classes)
        _two_classes("Softmax", targets)
        classes = int(targets.max()) + 1 if classes is None else classes
        loss: AbstractPointLoss = SoftmaxLoss()
        if class_weights is not None:
            loss = WeightedSoftmaxLoss(_positive("Softmax", class_weights, classes))
        super().__init__(
            (inputs, targets), loss, classes, (penalty, penalty_groups, weights, weight_groups), free, offset
        )


class Logistic(GeneralisedLinear):
    """Binary logistic regression with an l2 penalty.

        g(w, λ, ω) = (1/n) Σ_i ω_i [log(1 + e^{u_i}) - y_i u_i] + ½ Σ_j λ_j w_j²,    u = Xw + o

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`, `free`, `offset`, `class_weights`: as in
        [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, each 0 or 1, both present.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.

    Its parameters are `(d,)`.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        penalty: Selector,
        penalty_groups: Any = None,
        weights: Selector | None = None,
        weight_groups: Any = None,
        free: Any = None,
        offset: Any = None,
        class_weights: Sequence[float] | None = None,
    ):
        data = _checked("Logistic", inputs, targets, LogisticLoss())
        _two_classes("Logistic", data[1])
        loss: AbstractPointLoss = LogisticLoss()
        if class_weights is not None:
            loss = WeightedLogisticLoss(_positive("Logistic", class_weights, 2))
        super().__init__(data, loss, None, (penalty, penalty_groups, weights, weight_groups), free, offset)


class Squared(GeneralisedLinear):
    """Ridge regression.

        g(w, λ, ω) = (1/2n) Σ_i ω_i |x_iᵀw + o_i - y_i|² + ½ Σ_j λ_j w_j²

    **Arguments:**

    - `inputs`, `penalty`, `penalty_groups`, `weights`, `weight_groups`, `free`, `offset`: as in
        [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)` or `(n, C)`, finite.

    Its parameters are `(d,)` or `(d, C)`.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        penalty: Selector,
        penalty_groups: Any = None,
        weights: Selector | None = None,
        weight_groups: Any = None,
        free: Any = None,
        offset: Any = None,
    ):
        data = _checked("Squared", inputs, targets, SquaredLoss(), (1, 2))
        outputs = None if data[1].ndim == 1 else data[1].shape[1]
        super().__init__(data, SquaredLoss(), outputs, (penalty, penalty_groups, weights, weight_groups), free, offset)


class Poisson(GeneralisedLinear):
    """Poisson regression with a log link and an l2 penalty.

        g(w, λ, ω) = (1/n) Σ_i ω_i [e^{u_i} - y_i u_i] + ½ Σ_j λ_j w_j²,    u = Xw + o

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`, `free`, `offset`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, numbers >= 0 (counts); for counts over unequal exposures give the logarithms of the
        exposures as `offset`.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.

    Its parameters are `(d,)`; a cold start predicts the logarithm of the mean count. The curvature e^u has no global
    bound, so only bounds by self-concordance are finite; [`hyprax.implicit.EhrhardtRoberts`][] is infinite.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        penalty: Selector,
        penalty_groups: Any = None,
        weights: Selector | None = None,
        weight_groups: Any = None,
        free: Any = None,
        offset: Any = None,
    ):
        data = _checked("Poisson", inputs, targets, PoissonLoss())
        super().__init__(data, PoissonLoss(), None, (penalty, penalty_groups, weights, weight_groups), free, offset)


class PseudoHuber(GeneralisedLinear):
    """Robust regression by the pseudo-Huber loss, with an l2 penalty.

        g(w, λ, ω) = (δ²/n) Σ_i ω_i [√(1 + ((u_i - y_i)/δ)²) - 1] + ½ Σ_j λ_j w_j²,    u = Xw + o

    **Arguments:**

    - `inputs`, `penalty_groups`, `weights`, `weight_groups`, `free`, `offset`: as in [`hyprax.families.Softmax`][].
    - `targets`: y, `(n,)`, finite.
    - `penalty`: as in [`hyprax.families.Softmax`][]; shapes `()` or `(d,)`.
    - `delta`: δ > 0, the residual beyond which the loss grows linearly, in units of y.

    Its parameters are `(d,)`; a cold start predicts the median of the targets.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any,
        *,
        penalty: Selector,
        penalty_groups: Any = None,
        weights: Selector | None = None,
        weight_groups: Any = None,
        free: Any = None,
        offset: Any = None,
        delta: float = 1.0,
    ):
        if not (math.isfinite(delta) and delta > 0):
            raise ValueError(f"PseudoHuber: delta must be a finite number > 0; got {delta}.")
        loss = PseudoHuberLoss(float(delta))
        data = _checked("PseudoHuber", inputs, targets, loss)
        super().__init__(data, loss, None, (penalty, penalty_groups, weights, weight_groups), free, offset)
