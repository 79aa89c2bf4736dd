"""Make the pickle nodes of tensors, and change those that a file has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paramctl.errors import Unsupported
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent
from paramctl.model.checkpoint import Param
from paramctl.model.dtypes import DType


def is_global(node: object, full: str) -> bool:
    """Return whether a node is the name of that class or function."""
    return isinstance(node, Global) and node.full == full


def untagged(node: object) -> object:
    """Return the value of `restore_type_tag(value, "Dict[str, bool]")`, as torch's C++ writer has lists and dicts."""
    if isinstance(node, Call) and is_global(node.func, "torch.jit._pickle.restore_type_tag") and node.args:
        return node.args[0]
    return node


_WORDS = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte")
CLASSES = frozenset(f"{module}.{word}Tensor" for module in ("torch", "torch.cuda") for word in _WORDS)
_WRAPPERS = (
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter", "torch.autograd.variable.Variable",
)  # fmt: skip
NameStorage = Callable[[str, DType, int, str], Persistent]  # of key, dtype, nbytes and device, as `storage_id`
_TENSOR = Global("torch._utils", "_rebuild_tensor_v2")
_TENSOR_V3 = Global("torch._utils", "_rebuild_tensor_v3")
_ORDERED = Global("collections", "OrderedDict")


def storage_id(key: str, dtype: DType, nbytes: int, device: str) -> Persistent:
    """Return the pickled id of a storage, as torch.save writes it."""
    if dtype.storage:
        # Of elements smaller than a byte torch counts the bytes.
        word, numel = Global("torch", dtype.storage), nbytes * 8 // max(dtype.bits, 8)
    else:
        word, numel = Global("torch.storage", "UntypedStorage"), nbytes
    return Persistent(("storage", word, key, device, numel))


def tensor_node(param: Param, storage: Persistent) -> Call:
    """Return a new tensor node for `param` over `storage`, as torch.save writes a plain tensor."""
    hooks = Call(_ORDERED, (), None, "reduce")
    args = (storage, param.offset, param.shape, param.strides, bool(param.requires_grad), hooks)
    if not param.dtype.storage:
        return Call(_TENSOR_V3, (*args, Global("torch", param.dtype.name)), None, "reduce")
    return Call(_TENSOR, args, None, "reduce")


def retargeted(node: Call, param: Param, storage: Persistent) -> Call:
    """`node` with its view replaced by that of `param`; class, hooks and attributes stay as they are."""
    name, mutations = node.func.full, node.mutations
    if name in _WRAPPERS and node.args:
        args = (retargeted(node.args[0], param, storage), *node.args[1:])
    elif name.startswith("torch._tensor._rebuild_from_type"):
        inner = retargeted(Call(node.args[0], node.args[2], None, "reduce"), param, storage)
        args = (inner.func, node.args[1], inner.args, *node.args[3:])
    elif name.startswith("torch._utils._rebuild_tensor"):
        held = 7 if name.endswith("_v3") else 6
        if param.flags and len(node.args) < held:
            raise Unsupported(f"{param.path} is saved by {name}, which cannot say that it is a conj or neg view")
        metadata = _flagged(node.args[held:], param.flags)
        args = (storage, param.offset, param.shape, param.strides, *node.args[4:held], *metadata)
    elif name in CLASSES and not param.flags:
        args, mutations = node.args, [("build", (storage, param.offset, param.shape, param.strides))]
    else:
        raise Unsupported(f"{param.path} is saved by {name}, whose storage cannot be replaced")
    copy = Call(node.func, args, node.kwargs, node.how)
    copy.mutations = mutations
    return copy


def _flagged(metadata: tuple[Any, ...], flags: frozenset[str]) -> tuple[Any, ...]:
    """Return the last argument of a tensor: whether its stored values are still to be conjugated or negated."""
    held = untagged(metadata[0]) if metadata else None
    kept = held.pairs if isinstance(held, Dict) else []
    made = Dict()
    made.pairs = [(key, value) for key, value in kept if key not in ("conj", "neg")]
    made.pairs += [(flag, True) for flag in sorted(flags)]
    return (made,) if made.pairs else ()
