"""A module of torch as a pure function of JAX."""

from collections.abc import Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._keys import checked_key
from .._objective import described
from ._check import refuse_differences
from ._export import canonical_names, exported
from ._graph import Draws, Graph
from ._tensors import is_tensor, to_jax, to_numpy, to_tensors, torch_for


class _Static:
    """What does not change, compared by identity: graphs of both modes, and the names of `state_dict`."""

    def __init__(self, still: Graph, moving: Graph, names: dict[str, str]):
        self.still, self.moving, self.names = still, moving, names


class TorchFunction(eqx.Module):
    """A module of torch as a pure function: f(params, x), in eval mode, of all derivatives, under `jit` and `vmap`.

    Made by [`hyprax.from_torch`][]; torch is not needed to evaluate it.

    - `params`: the parameters that ask for a gradient, a dictionary by their names in the module; tied ones are one.
    - `buffers`: its buffers (running statistics) and frozen parameters, likewise.
    """

    params: dict[str, Array]
    buffers: dict[str, Array]
    static: _Static = eqx.field(static=True)

    def __call__(self, params: dict[str, Array], *inputs: Any, buffers: dict[str, Array] | None = None) -> PyTree:
        """The module's outputs in eval mode.

        **Arguments:**

        - `params`: the structure of `self.params`.
        - `inputs`: as the example: arrays (or tensors) of its dtypes and of its shapes, but for the leading axis.
        - `buffers`: default `self.buffers`.

        **Raises:** `ValueError` for parameters, buffers or inputs of other names, shapes or dtypes.
        """
        return self._run(self.static.still, params, inputs, buffers, Draws(None))[0]

    def train(
        self,
        params: dict[str, Array],
        *inputs: Any,
        buffers: dict[str, Array] | None = None,
        key: Array | None = None,
    ) -> tuple[PyTree, dict[str, Array]]:
        """The module's outputs in train mode, and the buffers after it: with running statistics moved by this batch.

        **Arguments:**

        - `params`, `inputs`, `buffers`: as for a call.
        - `key`: a JAX random key for dropout; needed if the module has any.

        **Raises:** `ValueError` as a call does, and where a key is needed and not given.
        """
        draws = Draws(None if key is None else checked_key("TorchFunction.train", key))
        outputs, changed = self._run(self.static.moving, params, inputs, buffers, draws)
        return outputs, {**(self.buffers if buffers is None else buffers), **changed}

    def to_torch(self, params: dict[str, Array], buffers: dict[str, Array] | None = None) -> dict[str, Any]:
        """A `state_dict` of tensors, for `module.load_state_dict`: every name of the module, tied ones included.

        **Raises:** `ValueError` for other names, shapes or dtypes; `ModuleNotFoundError` without torch.
        """
        arrays = self._arrays(params, buffers)
        return to_tensors({name: arrays[first] for name, first in self.static.names.items()})

    def _arrays(self, params: dict[str, Array], buffers: dict[str, Array] | None) -> dict[str, Array]:
        buffers = self.buffers if buffers is None else buffers
        for what, given, own in (("params", params, self.params), ("buffers", buffers, self.buffers)):
            if not isinstance(given, dict) or set(given) != set(own):
                got = sorted(given) if isinstance(given, dict) else described(given)
                raise ValueError(f"TorchFunction: {what} must be a dictionary of {sorted(own)}; got {got}.")
            for name, x in given.items():
                if (x.shape, x.dtype) != (own[name].shape, own[name].dtype):
                    raise ValueError(
                        f"TorchFunction: {what}[{name!r}] must be {own[name].dtype}{list(own[name].shape)}; got "
                        f"{x.dtype}{list(x.shape)}. For another precision, convert `module.double()` or `.float()`."
                    )
        return {**params, **buffers}

    def _run(self, graph: Graph, params: Any, inputs: tuple, buffers: Any, draws: Draws) -> Any:
        arrays = self._arrays(params, buffers)
        if len(inputs) != len(graph.inputs):
            raise ValueError(
                f"TorchFunction: inputs must be {len(graph.inputs)}, as in the example; got {len(inputs)}."
            )
        read = [_input(i, place, x) for i, (place, x) in enumerate(zip(graph.inputs, inputs, strict=True))]
        return graph(arrays, read, draws)


def _input(i: int, place: Any, x: Any) -> Array:
    """**Raises:** `ValueError` for another shape or kind of number than the example's."""
    x = jnp.asarray(to_numpy(x) if is_tensor(x) else x)
    wanted = jax.dtypes.canonicalize_dtype(jnp.dtype(place.dtype))
    integers = all(jnp.issubdtype(dtype, jnp.integer) for dtype in (x.dtype, wanted))
    if x.dtype != wanted and not integers:
        raise ValueError(
            f"TorchFunction: input {i} must be {wanted}, as in the example; got {x.dtype}. For another "
            "precision, convert `module.double()` or `.float()` with an example of that dtype."
        )
    fits = x.ndim == len(place.shape) and all(b is None or a == b for a, b in zip(x.shape, place.shape, strict=True))
    if not fits:
        free = ", ".join("any" if n is None else str(n) for n in place.shape)
        raise ValueError(f"TorchFunction: input {i} must have the shape ({free}), as in the example; got {x.shape}.")
    return x.astype(wanted)


def _refuse_wide(found: Iterable[str]) -> None:
    """**Raises:** `ValueError` for what is computed in float64 in torch, and would not be here."""
    if not jax.config.read("jax_enable_x64") and (name := next(iter(found), None)) is not None:
        raise ValueError(
            f"from_torch: JAX must have 64-bit numbers for a module in float64 ({name}); got none. Call "
            'jax.config.update("jax_enable_x64", True) before anything else, or convert `module.float()`.'
        )


def from_torch(module: Any, example: Any) -> TorchFunction:
    """A `torch.nn.Module` as a pure function of JAX: f(params, x) = module(x) with the parameters `params`.

    The module is read once, in train and in eval mode, by `torch.export`, and its operators are translated. Then it is
    compared with the original on the example in both modes, in float64, dropout aside: outputs, changed buffers, the
    gradient of a random function of the outputs and a product with its Hessian. One that differs is refused.

    **Arguments:**

    - `module`: parameters and buffers are copied; the module itself is not changed.
    - `example`: a tensor, or a tuple of tensors: the inputs of the module, with two examples or more along the leading
        axis, whose length is free afterwards. All other lengths and the dtypes stay.

    **Returns:** a [`hyprax.torch.TorchFunction`][], with `params`, `buffers`, `train` and `to_torch`.

    **Raises:** `ValueError` for what is no module, a module that `torch.export` cannot read, operators that have no
    translation (by name), a converted module that differs from the original, float64 parameters where JAX has no
    64-bit numbers; `ModuleNotFoundError` without torch.
    """
    torch = torch_for("from_torch")
    if not isinstance(module, torch.nn.Module):
        raise ValueError(f"from_torch: module must be a torch.nn.Module; got {described(module)}.")
    given = example if isinstance(example, tuple) else (example,)
    if not all(isinstance(x, torch.Tensor) for x in given):
        raise ValueError(f"from_torch: example must be a tensor or a tuple of tensors; got {described(example)}.")
    frozen = {name: x for name, x in module.named_parameters() if not x.requires_grad}
    params = {name: to_jax(x) for name, x in module.named_parameters() if x.requires_grad}
    buffers = {name: to_jax(x) for name, x in {**dict(module.named_buffers()), **frozen}.items()}
    _refuse_wide(name for name, x in module.state_dict().items() if x.dtype == torch.float64)
    still, moving = (exported(module, given, train) for train in (False, True))
    _refuse_wide(node.op for graph in (still, moving) for node in graph.nodes if node.dtype == "float64")
    refuse_differences(module, still, given, train=False)
    if (moving.nodes, moving.outputs, moving.changed) != (still.nodes, still.outputs, still.changed):
        refuse_differences(module, moving, given, train=True)
    written = module.state_dict(keep_vars=True)
    names = {name: first for name, first in canonical_names(module).items() if name in written}
    return TorchFunction(params, buffers, _Static(still, moving, names))
