"""A checkpoint from elsewhere as the object that torch saves: an OrderedDict of tensors, or the dicts they were in."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from paramctl.errors import UsageError
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent
from paramctl.formats.pytorch.tensor_nodes import NameStorage, storage_id, tensor_node
from paramctl.model.checkpoint import Checkpoint, Entry, Leaf, Loss, Param, Storage, View, contiguous
from paramctl.model.dtypes import BY_NAME, PAIRS
from paramctl.model.keys import nested
from paramctl.values.arrays import contiguous_copy

_ORDERED = Global("collections", "OrderedDict")


def no_place(entry: Entry, keys: Container[str]) -> str:
    """Why an entry cannot be written anew; empty if it can. A scalar needs `keys` that lead to it: it is in a dict."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "" if entry.path in keys else "scalar"
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if entry.dtype.name.startswith("float6_"):
        return f"{entry.dtype.name}, which torch has no dtype for"
    if entry.dtype.name == "float4_e2m1fn" and (not entry.shape or entry.shape[-1] % 2):
        return "float4_e2m1fn with an odd last dimension, and torch has pairs"
    return ""


def losses(checkpoint: Checkpoint, keys: Container[str], *, without_class: str = "") -> list[Loss]:
    """Return the entries that a new state_dict would not hold, with the reasons.

    `without_class` is the reason in a format that has a class for each storage: newer dtypes have none.
    """
    return [
        Loss(entry, why)
        for entry in checkpoint.entries
        if (why := no_place(entry, keys) or (without_class and _no_class(entry, without_class)))
    ]


def _no_class(entry: Entry, why: str) -> str:
    """Return the reason `why` for a tensor of a dtype whose storages have no class of their own, else ""."""
    return f"{entry.dtype.name}, {why}" if isinstance(entry, Param) and not entry.dtype.storage else ""


def saved_object(checkpoint: Checkpoint, name: NameStorage = storage_id) -> tuple[object, list[Storage]]:
    """Return the object that is saved of a checkpoint, and the storages, as `state_dict` does.

    Where keys lead to its entries, they are in dicts and lists as before; else it is a state_dict.
    """
    root, storages = state_dict(checkpoint, name)
    nodes = {id(param): node for param, (_, (_, node)) in zip(checkpoint.params, root.mutations or (), strict=True)}
    keys = [checkpoint.keys.get(entry.path, ()) for entry in checkpoint.entries]
    if len(nodes) == len(keys) and all(len(each) == 1 and isinstance(each[0], str) for each in keys if each):
        return root, storages
    values = (entry.value if isinstance(entry, Leaf) else nodes[id(entry)] for entry in checkpoint.entries)
    found = nested(zip(keys, values, strict=True))
    return (root if found is None else _as_nodes(found)), storages


def state_dict(checkpoint: Checkpoint, name: NameStorage = storage_id) -> tuple[Call, list[Storage]]:
    """Return an OrderedDict of the params, tied ones over one storage, and the storages, whose keys count from 0.

    `name` makes their ids. Raises UsageError where two params have one path.
    """
    root = Call(_ORDERED, (), None, "reduce")
    root.mutations = []
    written: dict[View, tuple[Param, Persistent]] = {}
    storages: list[Storage] = []
    for param in checkpoint.params:
        if param.view not in written or not param.numel:
            own, storage = contiguous_copy(checkpoint, _as_torch(param), str(len(storages)))
            written[param.view] = own, name(str(own.storage), own.dtype, storage.nbytes, "cpu")
            storages.append(storage)
        root.mutations.append(("items", (param.path, tensor_node(*written[param.view]))))
    _check_unique(checkpoint)
    return root, storages


def _as_nodes(value: Any) -> Any:
    """Dicts as a pickle has them, in one another no deeper than `nested` makes them."""
    if isinstance(value, dict):
        made = Dict()
        made.pairs = [(key, _as_nodes(each)) for key, each in value.items()]
        return made
    return type(value)(map(_as_nodes, value)) if type(value) in (list, tuple) else value


def _as_torch(param: Param) -> Param:
    """Return a param in a dtype that torch has: pairs of 4-bit floats are one element."""
    if param.dtype.name == "float4_e2m1fn" and param.shape and param.shape[-1] % 2 == 0:
        shape = (*param.shape[:-1], param.shape[-1] // 2)
        return param._replace(dtype=BY_NAME[PAIRS], shape=shape, strides=contiguous(shape))
    return param


def _check_unique(checkpoint: Checkpoint) -> None:
    paths = [param.path for param in checkpoint.params]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"two tensors print as '{twice}', and a state_dict has one name for each")
