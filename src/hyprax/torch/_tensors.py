"""Between tensors of torch and arrays of JAX."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def torch_for(owner: str) -> Any:
    """The package torch.

    **Raises:** `ModuleNotFoundError`, in the name of `owner`, where it is not installed.
    """
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{owner} needs PyTorch, which is not installed: pip install "hyprax[torch]"', name="torch"
        ) from error


def is_tensor(x: Any) -> bool:
    """Whether x is a tensor of torch, which need not be installed."""
    return any(cls.__module__ == "torch" and cls.__name__ == "Tensor" for cls in type(x).__mro__)


def to_numpy(x: Any) -> np.ndarray:
    """A tensor's values, or those of anything array-like; they may be shared."""
    if not is_tensor(x):
        return np.asarray(x)
    x = x.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if str(x.dtype) == "torch.bfloat16":
        return np.asarray(jnp.from_dlpack(x))
    return x.numpy()


def to_jax(x: Any) -> jax.Array:
    """A copy of a tensor or array: what torch does to its own afterwards is not seen.

    Through DLPack for what is on an accelerator, so that it stays there.
    """
    if is_tensor(x) and x.device.type != "cpu":
        return jnp.array(jnp.from_dlpack(x.detach().contiguous()), copy=True)
    return jnp.array(to_numpy(x), copy=True)


def to_tensors(tree: PyTree) -> PyTree:
    """Arrays of JAX or NumPy as tensors, copied: torch may write into its own."""
    torch = torch_for("to_torch")
    return jax.tree.map(lambda x: torch.from_dlpack(np.array(x)) if x.dtype != jnp.bfloat16 else _wide(torch, x), tree)


def _wide(torch: Any, x: Any) -> Any:
    return torch.from_numpy(np.array(x, np.float32)).to(torch.bfloat16)
