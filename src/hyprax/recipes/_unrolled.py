"""Networks, or a loss of one's own, trained by T steps; hyperparameters differentiated through the run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from .._batches import FullBatch, Minibatches
from .._hyper import natural
from ..unroll import (
    AbstractMode,
    AbstractOptimizer,
    Adam,
    AdamW,
    Checkpointed,
    ForwardMode,
    MomentumSGD,
    Reversible,
    Schedule,
    StoreAll,
    Training as Run,
    Truncated,
    UnrolledObjective,
)
from ._data import Splits, check_batch_size
from ._engine_tables import Training
from ._errors import RecipeError, Source, as_error
from ._functions import as_arrays, own_hyper, own_start
from ._hyper_tables import Augmentation, Inputs
from ._job import Job
from ._leaves import by_layer, leaf, weights
from ._models import Network, network_of, predictor, scaled, shifted
from ._schema import Recipe
from ._sources import MOST_ENTRIES


def losses(outputs: Array, targets: Array, classify: bool) -> Array:
    """-log softmax(f)_y, or ½ (f - y)², of each example."""
    if classify:
        chosen = jnp.take_along_axis(outputs, targets[:, None], axis=1)[:, 0]
        return jax.nn.logsumexp(outputs, axis=1) - chosen
    return 0.5 * jnp.square(outputs[:, 0] - targets)


def unrolled(source: Source, recipe: Recipe, splits: Splits) -> Job:
    """F(λ): the validation loss of a network after T steps of training, λ whatever the tables of [hyper] name."""
    net, asked, classify = network_of(recipe, splits), recipe.training, recipe.model.classifies
    if recipe.hyper.augmentation is not None and recipe.hyper.augmentation.kind == "shift" and not splits.image_shape:
        raise RecipeError(
            'must be "noise" for rows of numbers; got "shift", which is for images', key="hyper.augmentation.kind"
        )
    key = jax.random.key(asked.seed)
    layers = list(jax.eval_shape(net.init, key))
    everything, groups = _hyper(recipe, splits, net, layers)
    tuned = {name: leaves for name, leaves in everything.items() if _moves(recipe, name)}
    fixed = natural({name: leaves for name, leaves in everything.items() if name not in tuned})
    augmentation = recipe.hyper.augmentation
    learned = _labels_of(recipe.hyper.inputs, splits)

    def init(hyper: Any, key: Array) -> PyTree:
        params = net.init(key)
        at = {**fixed, **hyper}
        if "initial_scale" not in at:
            return params
        scale = at["initial_scale"]
        return scaled(params, lambda name: scale[name] if isinstance(scale, dict) else scale)

    def loss(params: PyTree, hyper: Any, batch: Any, key: Array) -> Array:
        at = {**fixed, **hyper}
        inputs, targets, index = batch
        if learned is not None:
            inputs = at["inputs"]
        if augmentation is not None:
            inputs = _disturbed(augmentation, inputs, at["augmentation"], key, splits.image_shape)
        each = losses(jax.vmap(lambda x: net.apply(params, x))(inputs), targets, classify)
        if "weights" in at:
            each = each * (at["weights"][index] if groups is None else at["weights"][jnp.asarray(groups)[index]])
        return jnp.mean(each) + _penalty(at.get("penalty"), params)

    def outer(params: PyTree, hyper: Any, data: Any) -> Array:
        inputs, targets = data
        return jnp.mean(losses(jax.vmap(lambda x: net.apply(params, x))(inputs), targets, classify))

    inputs, targets = as_arrays(splits.train)
    data = (inputs, targets, jnp.arange(len(targets)))
    if learned is not None:
        data = (jnp.zeros((len(learned), 0)), jnp.asarray(learned), jnp.arange(len(learned)))
    training = _run(recipe, loss, init, data, fixed, keyed=True)
    objective = _objective(recipe, training, outer, splits.validation, tuned)
    return Job(source, recipe, splits, objective, tuned, predictor(net))


def unrolled_loss(source: Source, recipe: Recipe, splits: Splits | None) -> Job:
    """F(λ) = outer(w_T(λ), λ, validation), w_T after T steps on the user's loss."""
    if splits is None:
        raise RecipeError('must be given with method = "unroll"', key="data")
    inner, outer, params = own_start(source.path, recipe, splits)
    layers = list(params) if isinstance(params, dict) else []
    for name in ("learning_rate", "momentum"):
        table = getattr(recipe.hyper, name)
        if table is not None and "layer" in table.shape and not layers:
            raise RecipeError(
                f'must be "global" or "step" for weights that are no table; got "{table.shape}"',
                key=f"hyper.{name}.shape",
            )
    everything = own_hyper(recipe) | _rates(recipe, layers)
    tuned = {name: leaves for name, leaves in everything.items() if _moves(recipe, name)}
    fixed = natural({name: leaves for name, leaves in everything.items() if name not in tuned})
    training = _run(recipe, inner, lambda hyper, key: params, as_arrays(splits.train), fixed, keyed=False)
    objective = _objective(recipe, training, outer, splits.validation, tuned)
    return Job(source, recipe, splits, objective, tuned)


def _run(
    recipe: Recipe, loss: Callable[..., Any], init: Callable[..., Any], data: PyTree, fixed: PyTree, *, keyed: bool
) -> Run:
    asked, size = recipe.training, len(jax.tree.leaves(data)[0])
    check_batch_size(asked.batch_size, size, "training.batch_size")
    order = jax.random.fold_in(jax.random.key(asked.seed), 1)
    batches = FullBatch(data) if asked.batch_size is None else Minibatches(data, asked.batch_size, key=order)
    return Run(loss, init, lambda hyper: optimizer(asked, {**fixed, **hyper}), batches, asked.steps, keyed=keyed)


def _objective(recipe: Recipe, training: Run, outer: Any, validation: Any, tuned: PyTree) -> UnrolledObjective:
    asked = recipe.training
    objective = UnrolledObjective(
        training,
        outer,
        as_arrays(validation),
        key=jax.random.key(asked.seed),
        mode=mode(asked),
        resample=asked.resample,
    )
    try:
        objective.init(tuned)  # looks at shapes and types alone
    except ValueError as error:
        raise RecipeError(as_error(error), key="training") from None
    return objective


def optimizer(asked: Training, at: PyTree) -> AbstractOptimizer:
    """The optimiser by its name, its rates and momenta tuned or as they stand."""
    rate, momentum = _by_step(at["learning_rate"]), _by_step(at["momentum"])
    match asked.optimizer:
        case "momentum":
            return MomentumSGD(rate, momentum, form="polyak")
        case "nesterov":
            return MomentumSGD(rate, momentum, form="nesterov")
        case "adam":
            return Adam(rate, momentum)
        case _:
            return AdamW(rate, momentum, weight_decay=asked.weight_decay)


def _by_step(value: PyTree) -> PyTree:
    """Schedules where the recipe asks for one entry a step."""
    return jax.tree.map(lambda leaf: Schedule(leaf) if jnp.ndim(leaf) else leaf, value)


def mode(asked: Training) -> AbstractMode:
    """The way to differentiate, by its name."""
    match asked.mode:
        case "checkpointed":
            return Checkpointed()
        case "reversible":
            return Reversible()
        case "store-all":
            return StoreAll()
        case "forward":
            return ForwardMode()
        case _:
            assert asked.truncate is not None  # the schema asks for it
            return Truncated(asked.truncate)


def _moves(recipe: Recipe, name: str) -> bool:
    """Whether a hyperparameter of this name is tuned, rather than fixed."""
    if name in (recipe.hyper.own or {}):
        return True
    table = getattr(recipe.hyper, name)
    return table is not None and getattr(table, "tuned", True)


def _rates(recipe: Recipe, layers: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("learning_rate", "momentum"):
        start, table = getattr(recipe.training, name), getattr(recipe.hyper, name)
        if table is None:
            found[name] = jnp.asarray(start, jnp.result_type(float))
        else:
            found[name] = by_layer(table, start, table.shape, layers, recipe.training.steps)
    return found


def _hyper(recipe: Recipe, splits: Splits, net: Network, layers: list[str]) -> tuple[dict[str, Any], np.ndarray | None]:
    """Every hyperparameter by its name, tuned or not; and the group of each example, where weights have groups."""
    asked, found, groups = recipe.hyper, _rates(recipe, layers), None
    if asked.penalty is not None:
        table, strength = asked.penalty, recipe.start
        assert strength is not None  # a network has no grid
        if asked.penalty.shape == "weight":
            shapes = jax.eval_shape(net.init, jax.random.key(0))
            found["penalty"] = jax.tree.map(lambda x: leaf(table, np.full(x.shape, strength)), shapes)
        else:
            found["penalty"] = by_layer(asked.penalty, strength, asked.penalty.shape, layers)
    if asked.weights is not None:
        found["weights"], groups = weights(asked.weights, splits)
    if asked.initial_scale is not None:
        found["initial_scale"] = by_layer(
            asked.initial_scale, asked.initial_scale.start, asked.initial_scale.shape, layers
        )
    if asked.augmentation is not None:
        shape = (len(splits.features),) if asked.augmentation.shape == "feature" else ()
        found["augmentation"] = leaf(asked.augmentation, np.full(shape, asked.augmentation.start))
    if asked.inputs is not None:
        found["inputs"] = _first_inputs(asked.inputs, splits, recipe.training.seed)
    return found, groups


def _labels_of(asked: Inputs | None, splits: Splits) -> np.ndarray | None:
    """The classes of tuned training rows, in order."""
    return None if asked is None else np.repeat(np.arange(len(splits.classes)), asked.rows_per_class)


def _first_inputs(asked: Inputs, splits: Splits, seed: int) -> Array:
    inputs, labels = splits.train
    random = np.random.default_rng(seed)
    if asked.rows_per_class * len(splits.classes) * inputs.shape[1] > MOST_ENTRIES:
        raise RecipeError(
            f"must give at most {MOST_ENTRIES} numbers to tune; got {asked.rows_per_class} rows of each class",
            key="hyper.inputs.rows_per_class",
        )
    wanted = _labels_of(asked, splits)
    assert wanted is not None
    if asked.start == "noise":
        return jnp.asarray(inputs.mean(0) + inputs.std(0) * random.normal(size=(len(wanted), inputs.shape[1])))
    rows = []
    for label, name in enumerate(splits.classes):
        there = np.flatnonzero(labels == label)
        if len(there) < asked.rows_per_class:
            raise RecipeError(
                f"must be at most {len(there)}, the rows of class {name}; got {asked.rows_per_class}",
                key="hyper.inputs.rows_per_class",
            )
        rows.append(random.choice(there, asked.rows_per_class, replace=False))
    return jnp.asarray(inputs[np.concatenate(rows)])


def _disturbed(
    asked: Augmentation, inputs: Array, strength: Array, key: Array, image_shape: tuple[int, int] | None
) -> Array:
    strength = strength.astype(inputs.dtype)
    if asked.kind == "noise":
        noise = jax.random.normal(key, inputs.shape, inputs.dtype)
        return inputs + jnp.broadcast_to(strength, inputs.shape[1:])[None] * noise
    assert image_shape is not None  # `unrolled` has looked
    distances = strength * jax.random.normal(key, (len(inputs), 2), inputs.dtype)
    return jax.vmap(lambda x, d: shifted(x, d, image_shape))(inputs, distances)


def _penalty(strengths: Any, params: PyTree) -> Array:
    """½ Σ λ w², λ one number, one for each layer, or one for each weight."""
    if strengths is None:
        return jnp.zeros(())
    spread = jax.tree.broadcast(strengths, params)
    parts = jax.tree.map(lambda s, w: 0.5 * jnp.sum(s.astype(w.dtype) * jnp.square(w)), spread, params)
    return sum(jax.tree.leaves(parts), jnp.zeros(()))
