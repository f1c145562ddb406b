"""The prior of the weights, and the linearised model that an estimator of log|I + K| is given."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._products import einsum
from ._kernel import kernel, uses
from ._likelihoods import AbstractLikelihood, positive


class GaussianPrior(eqx.Module):
    """w ~ N(m, P0⁻¹) with P0 diagonal: one precision, one for each tensor or layer, or one for each weight.

    **Arguments:**

    - `precision`: a number, or a pytree that is a prefix of the weights' (one number for a layer covers all of its
        tensors), each leaf a number or an array of the shape of its tensor. Arrays, so they can be learned.
    - `mean`: m, a prefix in the same way; default 0.

    **Raises:** `ValueError` for a precision that is not positive and finite, or that does not fit the weights.
    """

    precision: PyTree
    mean: PyTree

    def __init__(self, precision: PyTree, mean: PyTree = 0.0):
        self.precision = jax.tree_util.tree_map_with_path(
            lambda path, x: positive(x, "GaussianPrior: precision" + jax.tree_util.keystr(path)), precision
        )
        self.mean = jax.tree.map(jnp.asarray, mean)

    def variances(self, params: PyTree) -> PyTree[Float[Array, "..."]]:
        """1/P0: the structure of the weights, each leaf a scalar or like its tensor."""
        return jax.tree.map(lambda p, w: (1 / p).astype(w.dtype), _fitted("precision", self.precision, params), params)

    def penalty(self, params: PyTree) -> Float[Array, ""]:
        """(w - m)ᵀ P0 (w - m)."""

        def one(w: Array, p: Array, m: Array) -> Array:
            return jnp.sum(p.astype(w.dtype) * jnp.square(w - m.astype(w.dtype)))

        precision, mean = _fitted("precision", self.precision, params), _fitted("mean", self.mean, params)
        terms = jax.tree.leaves(jax.tree.map(one, params, precision, mean))
        return functools.reduce(jnp.add, terms)


def _fitted(name: str, prefix: PyTree, params: PyTree) -> PyTree:
    """`prefix` repeated to the structure of the weights, its shapes checked."""
    try:
        full = jax.tree.broadcast(prefix, params)
    except ValueError as error:
        raise ValueError(
            f"GaussianPrior: {name} must have a structure that is a prefix of the weights', "
            f"{jax.tree.structure(params)}; got {jax.tree.structure(prefix)}."
        ) from error

    def check(path: Any, x: Array, w: Array) -> Array:
        if x.ndim and x.shape != w.shape:
            raise ValueError(
                f"GaussianPrior: {name} must be one number or have the shape of its weights"
                f"{jax.tree_util.keystr(path)}, {w.shape}; got a {name} of shape {x.shape}."
            )
        return x

    return jax.tree_util.tree_map_with_path(check, full, params)


class LinearisedModel(eqx.Module):
    """f = apply(params, hyper, x), its likelihood, prior and data: everything that fixes K = (1/T) Lᵀ J P0⁻¹ Jᵀ L.

    J in R^{NC x P} is the Jacobian of the outputs in the weights, Λ = L Lᵀ the curvature of the likelihood, T the
    temperature. `inputs` is a pytree of arrays, `targets` an array, with a common leading axis of length N.

    Where the model has an output for each of S tokens, an example is a token: `apply` takes (sequence, place), `inputs`
    are the sequences, one for S examples, and `targets` has a leading axis of all tokens.
    """

    apply: Callable[[Any, Any, Any], Array]
    likelihood: AbstractLikelihood
    prior: GaussianPrior
    params: PyTree
    hyper: PyTree
    inputs: PyTree
    targets: Array
    temperature: Float[Array, ""]
    weights: Float[Array, " n"] | None = None
    """What each example counts; `None` for 1."""
    tokens: int = eqx.field(static=True, default=0)
    """S, where an example is one of S tokens of a sequence; else 0."""

    @property
    def size(self) -> int:
        """N."""
        return jax.tree.leaves(self.inputs)[0].shape[0] * max(self.tokens, 1)

    @property
    def count(self) -> int:
        """P."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def outputs(self) -> int:
        """C."""
        return output_shape(self.apply, self.params, self.hyper, self.example)[-1]

    @property
    def example(self) -> PyTree[jax.ShapeDtypeStruct]:
        """The shapes of one example."""
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.inputs)
        return (one, jax.ShapeDtypeStruct((), jnp.int32)) if self.tokens else one

    @property
    def dtype(self) -> Any:
        """The dtype of the weights."""
        return jnp.result_type(*jax.tree.leaves(self.params))

    def logits(self, data: Int[Array, " m"] | None = None, params: PyTree | None = None) -> Float[Array, "m c"]:
        """The outputs for the examples `data`, or for all, at the weights of the model or at others."""
        params = self.params if params is None else params
        if (
            data is None and self.tokens and isinstance(self.apply, OneToken)
        ):  # every sequence once, and not once for each token
            whole = self.apply.apply
            found = jax.vmap(lambda x: whole(params, self.hyper, x))(self.inputs)
            return found.reshape(self.size, -1)
        return jax.vmap(lambda x: self.apply(params, self.hyper, x))(self.examples(data))

    def examples(self, data: Int[Array, " m"] | None) -> PyTree:
        """The inputs of the examples `data`, or of all."""
        if not self.tokens:
            return self.inputs if data is None else jax.tree.map(lambda x: x[data], self.inputs)
        data = jnp.arange(self.size, dtype=jnp.int32) if data is None else data
        sequence, place = jnp.divmod(data, self.tokens)
        return jax.tree.map(lambda x: x[sequence], self.inputs), place.astype(jnp.int32)

    def some(self, data: Int[Array, " m"] | None) -> "LinearisedModel":
        """The model of the examples `data` alone, or of all, each an example of its own."""
        targets, weights = self.targets, self.weights
        if data is not None:
            targets, weights = targets[data], None if weights is None else weights[data]
        return LinearisedModel(
            self.apply, self.likelihood, self.prior, self.params, self.hyper, self.examples(data), targets,
            self.temperature, weights,
        )  # fmt: skip

    def shares(self, data: Int[Array, " m"] | None) -> Float[Array, " m"]:
        """√(w_n/T) for the examples `data`, or for all: what multiplies a root of their curvature."""
        count = self.size if data is None else data.shape[0]
        temperature = self.temperature.astype(self.dtype)
        if self.weights is None:
            return jnp.broadcast_to(jax.lax.rsqrt(temperature), (count,))
        weights = self.weights if data is None else self.weights[data]
        return jnp.sqrt(weights.astype(self.dtype) / temperature)

    def kernel(
        self,
        data: Int[Array, " m"] | None,
        cotangents: Float[Array, "m r c"],
        variances: PyTree | None = None,
    ) -> Float[Array, "rows rows"]:
        """K of the rows that `cotangents` pick at the examples `data` (or at all), [MR, MR]."""
        variances = self.prior.variances(self.params) if variances is None else variances
        return kernel(self.apply, self.params, self.hyper, self.examples(data), cotangents, variances)

    def gradients(
        self, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]
    ) -> PyTree[Float[Array, "m r ..."]]:
        """The rows φ_i = Jᵀ c_i themselves, each scaled by P0^-½: leaves [M, R, *shape]."""

        leaves, structure = jax.tree.flatten(self.params)
        shape = cotangents.shape[:2]
        rows = [jnp.zeros((*shape, leaf.size), leaf.dtype) for leaf in leaves]
        # From the factors of each product: by far faster than a vjp of every example where weights are shared.
        for use in uses(self.apply, self.params, self.hyper, self.examples(data), cotangents):
            if use.rows is not None:
                rows[use.number] += use.rows.reshape(*shape, -1)
            elif use.a is not None and use.g is not None:
                places = np.asarray(use.places).ravel()
                entries = einsum("mbsi,mrbso->mrbio", use.a, use.g).reshape(*shape, -1)
                if places.size == leaves[use.number].size:  # the whole tensor, in another order
                    rows[use.number] += entries[..., np.argsort(places)]
                else:
                    rows[use.number] = rows[use.number].at[..., places].add(entries)
        scales = jax.tree.leaves(self.prior.variances(self.params))
        scaled = [
            (row * jnp.broadcast_to(jnp.sqrt(v), leaf.shape).reshape(1, 1, -1)).reshape(*shape, *leaf.shape)
            for row, v, leaf in zip(rows, scales, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, scaled)

    def rows(self, data: Int[Array, " m"] | None, cotangents: Float[Array, "m r c"]) -> Float[Array, "rows p"]:
        """The same as one matrix."""
        leaves = jax.tree.leaves(self.gradients(data, cotangents))
        return jnp.concatenate([leaf.reshape(leaf.shape[0] * leaf.shape[1], -1) for leaf in leaves], axis=1)

    def log_likelihood(self, data: Int[Array, " m"] | None = None) -> Float[Array, ""]:
        """Σ_n w_n log p(y_n|f_n) over the examples `data`, or over all."""
        targets = self.targets if data is None else self.targets[data]
        each = jax.vmap(self.likelihood.log_likelihood)(self.logits(data), targets)
        if self.weights is not None:
            each = each * (self.weights if data is None else self.weights[data]).astype(each.dtype)
        return jnp.sum(each)

    def constant(self) -> "LinearisedModel":
        """The same problem, through which no derivative flows: for what a draw may depend on."""
        return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, self)

    def validate_numbers(self) -> None:
        """Refuse what is no finite array.

        **Raises:** `ValueError`.
        """
        data = (("inputs", self.inputs), ("targets", self.targets), ("weights", self.weights))
        for name, tree in (("params", self.params), *data):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                where = f"evidence: {name}{jax.tree_util.keystr(path)}"
                if not eqx.is_array(leaf):
                    raise ValueError(f"{where} must be an array; got a {type(leaf).__name__}.")
                if name == "params" and not jnp.issubdtype(leaf.dtype, jnp.floating):
                    raise ValueError(f"{where} must hold floating-point weights; got {leaf.dtype}.")
                if name == "params" and leaf.size == 0:
                    raise ValueError(f"{where} must hold at least one weight; got shape {leaf.shape}.")
                if not _finite(leaf):
                    raise ValueError(f"{where} must be finite; got NaN or infinite entries.")
        for name, tree in (("hyper", self.hyper), ("prior.mean", self.prior.mean)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_array_like)):
                if not _finite(leaf):
                    where = f"evidence: {name}{jax.tree_util.keystr(path)}"
                    raise ValueError(f"{where} must be finite; got NaN or infinite entries.")
        if not jax.tree.leaves(self.params):
            raise ValueError("evidence: params must hold at least one tensor; got a model without weights.")

    def validate(self, outputs: int) -> None:
        """Refuse data and weights that do not fit together, or not C outputs.

        **Raises:** `ValueError`.
        """
        each = [leaf.shape[:1] for leaf in jax.tree.leaves((self.targets, self.weights))]
        each = [shape if not self.tokens else (shape[0] // self.tokens,) for shape in each]
        lengths = {*each, *(leaf.shape[:1] for leaf in jax.tree.leaves(self.inputs))}
        if len(lengths) != 1 or lengths <= {(), (0,)}:
            raise ValueError(
                f"evidence: inputs and targets must have leading axes of one common length >= 1; got {sorted(lengths)}."
            )
        if self.weights is not None and _looked_at(self.weights):
            values = np.asarray(self.weights)
            if values.ndim != 1 or np.any(values < 0) or not np.any(values > 0):
                raise ValueError(
                    "evidence: weights must be one number >= 0 for each example, not all 0; got weights of shape "
                    f"{values.shape} from {values.min():.6g} to {values.max():.6g}."
                )
        if _looked_at(self.targets):
            self.likelihood.validate(self.targets, outputs)
        self.prior.variances(self.params)


@eqx.filter_jit
def called(apply: Callable[[Any, Any, Any], Array], params: PyTree, hyper: PyTree, one: PyTree) -> Any:
    """`apply(params, hyper, one)`, which is traced once for equal shapes, however often it is asked for them."""
    return apply(params, hyper, one)


def output_shape(apply: Callable[[Any, Any, Any], Array], params: PyTree, hyper: PyTree, one: PyTree) -> tuple:
    """(C,), or (S, C) of a model with an output for each token.

    **Raises:** `ValueError` for any other output.
    """
    found = eqx.filter_eval_shape(called, apply, params, hyper, one)
    shape = getattr(found, "shape", None)
    if shape is None or len(shape) not in (1, 2):
        what = f"is a {type(found).__name__}" if shape is None else f"has shape {shape}"
        raise ValueError(
            "evidence: apply must return one array for one example, (C,), or (S, C) for a sequence of S tokens; its "
            f"output {what}."
        )
    return shape


class OneToken(eqx.Module):
    """The outputs (C,) at one place of a sequence, of a model that gives (S, C)."""

    apply: Callable[[Any, Any, Any], Array]

    def __call__(self, params: PyTree, hyper: PyTree, x: tuple[PyTree, Array]) -> Array:
        sequence, place = x
        return self.apply(params, hyper, sequence)[place]


def picked(name: str, params: PyTree, where: Callable[[Any], Any]) -> PyTree[bool]:
    """True for the tensors that `where` picks: found by number, since what it returns may be a view made afresh.

    **Raises:** `ValueError`, of `name`, where it fails or picks anything else.
    """
    leaves, structure = jax.tree.flatten(params)
    try:
        found = set(jax.tree.leaves(where(jax.tree.unflatten(structure, range(len(leaves))))))
    except (KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(
            f"{name}: where must pick tensors of the weights {structure}; it fails with {error!r}."
        ) from error
    if not found or not found <= set(range(len(leaves))):
        raise ValueError(
            f"{name}: where must pick one or more of the {len(leaves)} tensors of the weights {structure}; it picks "
            f"{sorted(found, key=str)}."
        )
    return jax.tree.unflatten(structure, [place in found for place in range(len(leaves))])


class _Part(eqx.Module):
    """A model as a function of some of its tensors."""

    apply: Callable[[Any, Any, Any], Array]
    fixed: PyTree

    def __call__(self, params: PyTree, hyper: PyTree, x: PyTree) -> Array:
        return self.apply(eqx.combine(params, self.fixed), hyper, x)


def restricted(name: str, problem: LinearisedModel, where: Callable[[Any], Any]) -> tuple[LinearisedModel, PyTree]:
    """The problem in the tensors that `where` picks alone, and the others, which are constants of the model."""
    mask = picked(name, problem.params, where)
    chosen, fixed = eqx.partition(problem.params, mask)

    def part(prefix: PyTree) -> PyTree:
        return eqx.filter(jax.tree.broadcast(prefix, problem.params), mask)

    prior = GaussianPrior(part(problem.prior.precision), part(problem.prior.mean))
    apply = _Part(problem.apply, fixed)
    return eqx.tree_at(lambda p: (p.apply, p.prior, p.params), problem, (apply, prior, chosen)), fixed


def widened(tree: PyTree) -> PyTree:
    """Half-precision arrays in single precision, the others as they are: no factorisation exists in half."""

    def one(x: Any) -> Any:
        dtype = getattr(x, "dtype", None)
        half = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32
        return x.astype(jnp.float32) if half else x

    return jax.tree.map(one, tree)


def _looked_at(x: Any) -> bool:
    """Whether there are numbers to look at, as there are not under a transformation."""
    try:
        np.asarray(x)
    except jax.errors.TracerArrayConversionError:
        return False
    return True


def _finite(x: Any) -> bool:
    return not _looked_at(x) or np.asarray(x).dtype.kind != "f" or bool(np.all(np.isfinite(np.asarray(x))))
