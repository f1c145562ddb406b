"""Deep models in the memory of one block."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree


def scan_blocks(block: Callable[[PyTree, Any], Any], params: PyTree, x: Any) -> Any:
    """x ← block(params[i], x) for i = 0..n-1, each block made again where its derivatives are needed.

    Between steps of a training nothing of a step is kept, but within one its activations are: those of n blocks. Here
    only the inputs of the blocks are, and the activations of one block: about one more forward pass for memory n times
    smaller. A loop is needed: outside one, XLA on CPUs merges what is made again with what was made before.

    **Arguments:**

    - `block`: `block(params_i, x)`, to the same shapes and dtypes as x.
    - `params`: a pytree of arrays with a common leading axis of length n.
    - `x`: a pytree of arrays.

    **Returns:** x after the last block.

    **Raises:** `ValueError` (by JAX) where the leading axes differ.
    """
    again = jax.checkpoint(block, prevent_cse=False)
    return jax.lax.scan(lambda x, params: (again(params, x), None), x, params)[0]
