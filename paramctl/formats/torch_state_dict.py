"""A checkpoint from elsewhere as the object that torch saves: an OrderedDict of tensors."""

from __future__ import annotations

from paramctl.checkpoint import Checkpoint, Entry, Leaf, Param, Storage, View, contiguous
from paramctl.dtypes import BY_NAME
from paramctl.errors import UsageError
from paramctl.formats.pickle_nodes import Call, Global, Persistent
from paramctl.formats.torch_tensors import NameStorage, storage_id, tensor_node
from paramctl.values import contiguous_copy

_ORDERED = Global("collections", "OrderedDict")


def no_place(entry: Entry) -> str:
    """Why an entry cannot be written anew; empty if it can."""
    if isinstance(entry, Leaf):
        return "object" if entry.is_object else "scalar"
    if not entry.is_plain:
        return f"{entry.layout} tensor"
    if entry.dtype.name.startswith("float6_"):
        return f"{entry.dtype.name}, which torch has no dtype for"
    if entry.dtype.name == "float4_e2m1fn" and (not entry.shape or entry.shape[-1] % 2):
        return "float4_e2m1fn with an odd last dimension, and torch has pairs"
    return ""


def state_dict(checkpoint: Checkpoint, name: NameStorage = storage_id) -> tuple[Call, list[Storage]]:
    """An OrderedDict of the params, tied ones over one storage, and the storages, whose keys count from 0.

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


def _as_torch(param: Param) -> Param:
    """A param in a dtype torch has: pairs of 4-bit floats are one element."""
    if param.dtype.name == "float4_e2m1fn" and param.shape and param.shape[-1] % 2 == 0:
        shape = (*param.shape[:-1], param.shape[-1] // 2)
        return param._replace(dtype=BY_NAME["float4_e2m1fn_x2"], shape=shape, strides=contiguous(shape))
    return param


def _check_unique(checkpoint: Checkpoint) -> None:
    paths = [param.path for param in checkpoint.params]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UsageError(f"two tensors print as '{twice}', and a state_dict has one name for each")
