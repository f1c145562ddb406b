"""A converted module beside its original, in double precision, on the example with which it was converted."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._export import canonical_names, mode_of
from ._graph import Draws, Graph
from ._tensors import to_numpy, torch_for

TOLERANCE = 1e-6
"""Of a difference relative to the largest entry: rounding leaves 1e-12, a module that computes in float32 1e-7."""
STEP = 1e-5
"""Of central differences of a gradient."""


def differences(
    module: Any, graph: Graph, example: tuple, train: bool, *, arithmetic: str = "float64"
) -> dict[str, float]:
    """The largest difference of outputs, changed buffers, gradient and Hessian product, relative to the largest entry.

    Gradient and product are of φ(w) = Σ c·sin(output), with fixed random numbers c, and of φ along one direction; both
    sides compute in `arithmetic`, with dropout that keeps everything.
    """
    torch = torch_for("from_torch")
    dtype = getattr(torch, arithmetic)
    try:
        twin = copy.deepcopy(module).to(dtype)
    except RuntimeError as error:  # of torch, about weights that a hook computes
        raise ValueError(
            f"from_torch: module must be one that copy.deepcopy copies; torch says: {_line(error)} For computed "
            "weights use torch.nn.utils.parametrizations."
        ) from error
    example = tuple(x.detach().to(dtype) if x.is_floating_point() else x for x in example)
    names = canonical_names(twin)
    every = {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
    moving = sorted(name for name, x in twin.named_parameters() if x.requires_grad)
    rng = np.random.default_rng(0)
    direction = {name: rng.normal(size=tuple(every[name].shape)).astype(arithmetic) for name in moving}

    keep = _keep_everything(torch)
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)  # the one of all derivatives
    with mode_of(twin, train), keep, plain, _made_in(torch, dtype):

        def evaluated(shift: float) -> tuple[list[Any], list[Any], dict[str, Any], Any]:
            """Outputs, the weights w + shift·direction, all tensors afterwards, and ∇φ there."""
            tensors = {name: x.detach().clone() for name, x in every.items()}
            for name in moving:
                tensors[name] += shift * torch.from_numpy(direction[name])
            weights = [tensors[name].requires_grad_() for name in moving]
            given = {name: tensors[first] for name, first in names.items() if first in tensors}
            outputs = torch.func.functional_call(twin, given, example, tie_weights=False)
            leaves = [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]
            smooth = [x for x in leaves if x.is_floating_point()]
            phi = sum((torch.from_numpy(_weights(i, x)).to(dtype) * torch.sin(x)).sum() for i, x in enumerate(smooth))
            return leaves, weights, tensors, _derivatives(torch, phi, weights, create_graph=True)

        try:
            leaves, weights, tensors, grads = evaluated(0.0)
        except RuntimeError as error:
            raise ValueError(
                f"from_torch: module must be one that torch differentiates in {arithmetic}; torch says: "
                f"{_line(error)} Where a dtype is at fault, make tensors with dtype=x.dtype."
            ) from error
        theirs = {"outputs": leaves, "buffers": [tensors[name] for name in sorted(graph.changed)], "gradient": grads}
        pairs = zip(evaluated(STEP)[3], evaluated(-STEP)[3], strict=True)
        by_differences = [(high - low).detach() / (2 * STEP) for high, low in pairs]
        try:
            along = sum((torch.from_numpy(direction[n]) * g).sum() for n, g in zip(moving, grads, strict=True))
            theirs["product"] = _derivatives(torch, along, weights)
        except (NotImplementedError, RuntimeError):  # torch has no second derivative of every operator
            theirs["product"] = by_differences

    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(to_numpy(x)) for name, x in every.items()}
        inputs = [jnp.asarray(to_numpy(x)) for x in example]

        def field(moved: dict[str, Array]) -> tuple[Array, Any]:
            outputs, changed = graph({**arrays, **moved}, inputs, Draws(None, off=True), wide=arithmetic == "float64")
            leaves = [x for x in jax.tree.leaves(outputs) if isinstance(x, jax.Array)]
            smooth = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
            terms = [jnp.sum(jnp.asarray(_weights(i, x), x.dtype) * jnp.sin(x)) for i, x in enumerate(smooth)]
            return sum(terms, jnp.zeros((), arithmetic)), (leaves, [changed[name] for name in sorted(changed)])

        def all_of(moved: dict[str, Array], tangent: dict[str, Array]) -> dict[str, Any]:
            grads, products, (leaves, buffers) = jax.jvp(
                jax.grad(field, has_aux=True), (moved,), (tangent,), has_aux=True
            )
            listed = {"gradient": grads, "product": products}
            return {"outputs": leaves, "buffers": buffers} | {k: [x[n] for n in moving] for k, x in listed.items()}

        tangent = {name: jnp.asarray(x) for name, x in direction.items()}
        quickly = jax.jit(all_of, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
        ours = quickly({name: arrays[name] for name in moving}, tangent)
        found = {what: _furthest(ours[what], [to_numpy(x) for x in theirs[what]]) for what in theirs}
        if found["product"] > TOLERANCE and arithmetic == "float64":  # nor a right one: not of torch's weight norm
            found["product"] = min(found["product"], _furthest(ours["product"], [to_numpy(x) for x in by_differences]))
        return found


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _made_in(torch: Any, dtype: Any) -> Iterator[None]:
    """Tensors that a module makes for itself, such as a first state of zeros, have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _weights(i: int, x: Any) -> Any:
    """Fixed random numbers for output i."""
    return np.random.default_rng(i).normal(size=tuple(x.shape))


def _derivatives(torch: Any, value: Any, weights: list[Any], create_graph: bool = False) -> list[Any]:
    """Zeros where a weight is not used."""
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return [torch.zeros_like(x) for x in weights]
    found = torch.autograd.grad(value, weights, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(x) if d is None else d for d, x in zip(found, weights, strict=True)]


def _furthest(ours: list[Any], theirs: list[Any]) -> float:
    """max |a - b| / max |b|, over all arrays together; infinite where shapes differ or one is not finite."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    worst, largest = 0.0, 0.0
    for a, b in zip(ours, theirs, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        gap = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
        if not np.all(np.isfinite(gap)):
            return float("inf")
        worst = max(worst, float(np.max(gap, initial=0.0)))
        largest = max(largest, float(np.max(np.abs(b), initial=0.0, where=np.isfinite(b))))
    return worst / largest if largest else worst


def _keep_everything(torch: Any) -> Any:
    """A mode in which dropout keeps everything: what it draws is put to the probability by which it then divides."""

    class Keep(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(func)
            if name == "aten.bernoulli_.float":
                return args[0].fill_(args[1] if len(args) > 1 else 0.5)
            if name == "aten.bernoulli.p":
                return torch.full_like(args[0], args[1])
            if name == "aten.native_dropout.default":
                return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
            return func(*args, **(kwargs or {}))

    return Keep()


def refuse_differences(module: Any, graph: Graph, example: tuple, train: bool) -> None:
    """**Raises:** `ValueError` where the converted module computes something else than the original."""
    found = differences(module, graph, example, train)
    worst = max(found, key=lambda what: found[what])
    if not found[worst] <= TOLERANCE:
        operators = sorted({node.op for node in graph.nodes})
        raise ValueError(
            "from_torch: the converted module must agree with the original on the example; in "
            f"{'train' if train else 'eval'} mode its {worst} "
            f"differs by {found[worst]:.1e} of the largest entry. A random number that is not "
            f"dropout's, a backward pass of its own, or an operator at fault: {', '.join(operators)}."
        )
