"""Networks whose prior, and noise, are tuned by the Laplace evidence of the training part alone."""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from .._hyper import natural
from ..evidence import (
    AbstractEstimator,
    AdaptiveTangent,
    Categorical,
    Chain,
    Choice,
    EvidenceObjective,
    FullData,
    Gaussian,
    GaussianPrior,
    Lanczos,
    Partition,
    Schedule,
    Tangent,
)
from ..evidence._standardise import standardised
from ..evidence.designs import OneRow
from ..evidence.structures import EKFAC, KFAC, Diagonal, LastLayer
from ._data import Splits, check_batch_size
from ._engine_tables import Evidence, Training
from ._errors import RecipeError, Source, as_error
from ._hyper_tables import Noise, Precision
from ._job import Job
from ._leaves import by_layer, leaf
from ._models import Network, network_of, predictor
from ._schema import Recipe


def evidenced(source: Source, recipe: Recipe, splits: Splits) -> Job:
    """F(δ, σ): the negative log evidence per example, δ the precisions of the prior and σ the noise of numbers."""
    net, asked = network_of(recipe, splits), recipe.training
    key = jax.random.key(asked.seed)
    params = net.init(jax.random.fold_in(key, 0))
    inputs, targets = splits.train
    data = (jnp.asarray(inputs), jnp.asarray(targets if recipe.model.classifies else targets[:, None]))
    size = len(inputs)
    try:
        apply, spread = _in_units(net, recipe, splits, *data)
    except ValueError as error:
        raise RecipeError(as_error(error), key="data") from None
    everything = _hyper(recipe, params, spread)
    tables: dict[str, Any] = {"precision": recipe.hyper.precision, "noise": recipe.hyper.noise}
    tuned = {name: x for name, x in everything.items() if tables[name] is None or tables[name].tuned}
    fixed = natural({name: x for name, x in everything.items() if name not in tuned})

    def likelihood(hyper: Any) -> Any:
        return Gaussian({**fixed, **hyper}["noise"])

    check_batch_size(asked.batch_size, size, "training.batch_size")
    try:
        objective = EvidenceObjective(
            apply,
            params,
            data,
            likelihood=Categorical() if recipe.model.classifies else likelihood,
            prior=lambda hyper: GaussianPrior({**fixed, **hyper}["precision"]),
            temperature=recipe.evidence.temperature,
            estimator=estimator(recipe.evidence, size, net.last),
            schedule=Schedule(every=asked.steps, mode_after=recipe.evidence.mode_after),
            optimizer=transformation(asked),
            batch_size=size if asked.batch_size is None else asked.batch_size,
            key=jax.random.fold_in(key, 1),
        )
        objective.init(tuned)
    except ValueError as error:
        raise RecipeError(as_error(error), key="evidence") from None
    whole = dataclasses.replace(net, apply=lambda params, x: apply(params, None, x))
    return Job(source, recipe, splits, objective, tuned, predictor(whole))


def _in_units(net: Network, recipe: Recipe, splits: Splits, inputs: Any, targets: Any) -> tuple[Any, float]:
    """The network between standardised columns and targets, as `fit_evidence` has it, and the spread of the targets.

    Columns that the recipe scales otherwise are left as they are, and so are images.
    """

    def apply(params: Any, hyper: Any, x: Any) -> Any:
        return net.apply(params, x)

    as_read = splits.image_shape is None and recipe.data is not None and recipe.data.scale == "none"
    columns = inputs if as_read else jnp.zeros(1)  # no table, so nothing is done to it
    return standardised(apply, columns, None if recipe.model.classifies else targets)


def _hyper(recipe: Recipe, params: PyTree, spread: float) -> dict[str, Any]:
    """The precisions of the prior, and of numbers the noise, which starts at their spread if it is not told."""
    table = Precision() if recipe.hyper.precision is None else recipe.hyper.precision
    if table.shape == "parameter":
        precision = jax.tree.map(lambda x: leaf(table, np.full(x.shape, table.start)), params)
    else:
        precision = by_layer(table, table.start, table.shape, list(params))
    if recipe.model.classifies:
        return {"precision": precision}
    noise = Noise() if recipe.hyper.noise is None else recipe.hyper.noise
    start = noise.start if "start" in noise.model_fields_set else noise.start * spread
    return {"precision": precision, "noise": leaf(noise, start)}


def estimator(asked: Evidence, examples: int, last: str) -> AbstractEstimator | AdaptiveTangent | Choice | None:
    """The estimator by its name, `None` for the engine's own choice.

    For a training part of so many examples, and a network with this last layer.

    **Raises:** `RecipeError` for one that needs a package that is not there.
    """
    size = min(asked.size, examples)
    chain = Chain(OneRow(size))
    match asked.estimator:
        case "auto":
            return chain if "size" in asked.model_fields_set else None
        case "chain":
            return chain
        case "midpoint":
            return Chain(OneRow(size), midpoint=True)
        case "partition":
            return Partition(size)
        case "tangent":
            return AdaptiveTangent(size)
        case "choice":
            return Choice((chain, Tangent(size)))
        case "full":
            return FullData()
        case "ekfac":
            return FullData(EKFAC())
        case "kfac":
            return FullData(KFAC())
        case "diagonal":
            return FullData(Diagonal())
        case "last-layer":
            return FullData(LastLayer(where=lambda params: params[last]))
        case _:
            if importlib.util.find_spec("matfree") is None:
                raise RecipeError('given "lanczos", which needs the package matfree', key="evidence.estimator")
            return Lanczos()


def transformation(asked: Training) -> optax.GradientTransformation:
    """The optimizer of the weights, of optax."""
    match asked.optimizer:
        case "momentum":
            return optax.sgd(asked.learning_rate, momentum=asked.momentum)
        case "nesterov":
            return optax.sgd(asked.learning_rate, momentum=asked.momentum, nesterov=True)
        case "adam":
            return optax.adam(asked.learning_rate, b1=asked.momentum)
        case _:
            return optax.adamw(asked.learning_rate, b1=asked.momentum, weight_decay=asked.weight_decay)
