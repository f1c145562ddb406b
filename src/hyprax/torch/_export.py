"""A module of torch, read by torch.export, as a `Graph`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from . import _entries, _layers, _operators, _recurrent  # noqa: F401  # their operators are in the table
from ._graph import TABLE, Graph, Input, Node, Ref
from ._recurrent import WHOLE
from ._tensors import to_numpy, torch_for

KEPT = (*WHOLE, "scaled_dot_product_attention.default", "linear.default", "detach.default")
"""Operators that are translated whole, or would be lost. Everything else made of others arrives as core ATen ones."""


@contextmanager
def mode_of(module: Any, train: bool) -> Iterator[None]:
    """The module in train or eval mode, and then each of its parts as it was."""
    before = [(part, part.training) for part in module.modules()]
    try:
        module.train(train)
        yield
    finally:
        for part, mode in before:
            part.training = mode


def exported(module: Any, example: tuple, train: bool) -> Graph:
    """The module's forward pass in one mode; leading axes of the inputs are free where the module lets them be.

    **Raises:** `ValueError` for a module that torch.export cannot read, and for operators that have no translation, by
    their names.
    """
    torch = torch_for("from_torch")
    free = tuple({0: torch.export.Dim.AUTO} if x.ndim else {} for x in example)
    signature = (free,) if _takes_many(module) else free
    with mode_of(module, train), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's, about parts of itself
        try:
            program = torch.export.export(module, example, dynamic_shapes=signature, strict=False)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"from_torch: module must be one that torch.export can read in {_name(train)} mode; it says: {reason} "
                "Branches and loops that depend on values are what it usually cannot."
            ) from error
        table = torch.export.default_decompositions()
        for name in KEPT:
            packet, overload = name.split(".")
            table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
        _detach_where_no_gradients_are(torch, program)
        program = program.run_decompositions(table)
    _refuse_unknown(program.graph, train)
    return _graph(program, module)


def _detach_where_no_gradients_are(torch: Any, program: Any) -> None:
    """What is read under `torch.no_grad()` is detached there, since that region will be made one with the rest."""
    region = torch.ops.higher_order.wrap_with_set_grad_enabled
    for node in program.graph.nodes:
        if node.op != "call_function" or node.target is not region or node.args[0]:
            continue
        inside = getattr(program.graph_module, node.args[1].target)
        for place in inside.graph.find_nodes(op="placeholder"):
            value = place.meta.get("val")
            readers = [user for user in place.users if not _writes_to(user, place)]
            if readers and isinstance(value, torch.Tensor) and value.is_floating_point():
                with inside.graph.inserting_before(readers[0]):
                    still = inside.graph.call_function(torch.ops.aten.detach.default, (place,))
                still.meta["val"] = value
                for reader in readers:
                    reader.replace_input_with(place, still)
        inside.recompile()


def _writes_to(node: Any, place: Any) -> bool:
    """Whether an operation changes this argument in place."""
    arguments = getattr(getattr(node.target, "_schema", None), "arguments", ())
    written = {x.name for x in arguments if x.alias_info is not None and x.alias_info.is_write}
    given = dict(zip((x.name for x in arguments), node.args, strict=False)) | dict(node.kwargs)
    return any(given.get(name) is place for name in written)


def _takes_many(module: Any) -> bool:
    """Whether forward is written with *inputs, for which torch.export wants the shapes of all as one."""
    code = module.forward.__code__ if hasattr(module.forward, "__code__") else None
    return code is not None and bool(code.co_flags & 0x04) and code.co_argcount <= 1


def _name(train: bool) -> str:
    return "train" if train else "eval"


def _op(target: Any) -> str:
    """The name by which the table has an operator: "aten.add.Tensor", "operator.mul"."""
    text = str(target)
    if text.startswith("aten."):
        return text
    home = getattr(target, "__module__", "").removeprefix("_")
    return f"{home}.{getattr(target, '__name__', text)}"


def _refuse_unknown(graph: Any, train: bool) -> None:
    places: dict[str, str] = {}
    for node in graph.nodes:
        name = _op(node.target)
        if name == "operator.getitem" and node.args[1] in (1, 2) and node.users:
            parent = _op(node.args[0].target)
            if parent.removeprefix("aten.").startswith(_layers.FIRST_ONLY):
                places.setdefault(f"result {node.args[1] + 1} of {parent}", "")
        if node.op == "call_function" and name not in TABLE:
            lines = [x.strip() for x in (node.meta.get("stack_trace") or "").splitlines() if x.strip()]
            places.setdefault(name, f" ({lines[-1]})" if lines else "")
        elif node.op not in ("call_function", "placeholder", "output"):
            places.setdefault(f"{node.op} {node.target}", "")
    if places:
        found = ", ".join(f"{name}{place}" for name, place in sorted(places.items()))
        raise ValueError(
            f"from_torch: module must be made of operators that hyprax translates; in {_name(train)} mode it has "
            f"{found}. Write that part with other operations, or leave it out of the module."
        )


def _graph(program: Any, module: Any) -> Graph:
    torch = torch_for("from_torch")
    kinds = torch.export.graph_signature
    names = canonical_names(module)
    arrays: dict[str, str] = {}
    constants: dict[str, Any] = {}
    inputs = []
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        node = spec.arg.name
        if spec.kind in (kinds.InputKind.PARAMETER, kinds.InputKind.BUFFER):
            arrays[node] = names[spec.target]
        elif spec.kind == kinds.InputKind.USER_INPUT:
            value = placeholders[node].meta["val"]
            shape = tuple(n if isinstance(n, int) else None for n in value.shape)
            inputs.append(Input(node, shape, _dtype_name(value.dtype)))
        else:
            constants[node] = to_numpy(program.constants[spec.target])
    changed, outputs = {}, []
    (output,) = (node for node in program.graph.nodes if node.op == "output")
    for spec, value in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        if spec.kind == kinds.OutputKind.BUFFER_MUTATION:
            changed[names[spec.target]] = _plain(value)
        elif spec.kind == kinds.OutputKind.USER_OUTPUT:
            outputs.append(_plain(value))
        else:
            raise ValueError(f"from_torch: module must change nothing but its buffers; it changes {spec.target}.")
    tree = torch.utils._pytree.tree_unflatten(list(range(len(outputs))), program.call_spec.out_spec)
    structure = jax.tree.structure(tree)
    if structure.num_leaves != len(outputs):
        raise ValueError(
            "from_torch: module must return tensors, in tuples, lists or dictionaries; got "
            f"{type(tree).__name__}. Wrap it in a module that returns what you need of it."
        )
    nodes = tuple(
        Node(node.name, _op(node.target), _plain(tuple(node.args)), _keywords(node.kwargs), _result(node))
        for node in program.graph.nodes
        if node.op == "call_function"
    )
    return Graph(nodes, arrays, constants, tuple(inputs), tuple(outputs), structure, changed)


def canonical_names(module: Any) -> dict[str, str]:
    """Every name of a parameter or buffer -> the first name of the same tensor: tied weights are one."""
    first: dict[int, str] = {}
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def _dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    """Arguments without torch: nodes as references, containers of torch.fx as those of Python."""
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value)) if type(value) in (tuple, list) else [_plain(x) for x in value]
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    return Ref(value.name) if hasattr(value, "name") else None  # a dtype or a device


# Where and how a tensor lies; its dtype is known from the result.
_NO_MATTER = ("device", "layout", "pin_memory", "memory_format", "dtype", "non_blocking")


def _keywords(kwargs: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in kwargs.items() if name not in _NO_MATTER}


def _result(node: Any) -> str | None:
    value = node.meta.get("val")
    value = value[0] if isinstance(value, tuple | list) and value else value
    dtype = getattr(value, "dtype", None)
    return None if dtype is None else _dtype_name(dtype)
