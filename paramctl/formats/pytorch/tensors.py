"""The tensors of a torch pickle: what torch.save wrote for each kind, as Params, and back.

Reference: torch/_utils.py and torch/_tensor.py, whose `_rebuild_*` functions a pickle names. Nothing is
called; their arguments are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import Call, Dict, Global, PyString
from paramctl.formats.pytorch.tensor_nodes import CLASSES, is_global, untagged
from paramctl.formats.pytorch.tensor_places import Remembered, Stored, TensorPlace
from paramctl.model import shapes
from paramctl.model.checkpoint import Kind, Param, Quantizer, contiguous, span
from paramctl.model.dtypes import BY_NAME, DType
from paramctl.model.shapes import MAX_DIMS, Sizes, is_count

WRAPPED = 10  # parameters and subclasses around a tensor that are looked through
MAX_NOTES = 100  # entries of a dict of a tensor's own attributes, of which torch has ten
NESTED_TABLE = 1 << 20  # bytes of a nested tensor's size table that are read to list it


def is_tensor(node: object) -> bool:
    """Return whether a node of a pickle is a tensor of any kind."""
    if not (isinstance(node, Call) and isinstance(node.func, Global)):
        return False
    name = node.func.full
    if name in _WRAPPING:
        return _wraps_a_tensor(node)
    return name in _REBUILDERS or (name in _OLD and _holds_values(node))


def _wraps_a_tensor(node: Call) -> bool:
    """Return whether a parameter or subclass holds a known tensor, not one that only a foreign class rebuilds."""
    held: object = node
    for _ in range(WRAPPED):
        if not (isinstance(held, Call) and isinstance(held.func, Global) and held.func.full in _WRAPPING):
            return True
        if not isinstance(held.args, tuple) or not held.args:
            return True  # which says what is wrong with it when it is read
        first = held.args[0]
        if isinstance(first, Global) and held.func.full in _SUBCLASSES:
            return first.full in _REBUILDERS
        held = first
    return True


def _holds_values(node: Call) -> bool:
    """Return whether an object of a tensor's own class was saved as torch did until 0.3."""
    state = node.state
    if node.func.full in CLASSES:
        return isinstance(state, tuple) and len(state) == 4
    return (isinstance(state, tuple) and len(state) == 5) or bool(node.args and isinstance(node.args[0], Call))


def read_tensor(place: TensorPlace, storages: Remembered) -> Param:
    """Return the param that the node at a place describes. Raises FormatError if it contradicts itself."""
    name, args = place.node.func.full, place.node.args
    if not isinstance(args, tuple):
        raise FormatError(f"tensor '{place.path}' has no arguments for {name}")
    try:
        return _READERS[name](args, place, storages)
    except (IndexError, ValueError):
        raise FormatError(f"tensor '{place.path}' has too few arguments for {name}") from None
    except RecursionError:
        raise FormatError(f"tensor '{place.path}' is wrapped in too many others") from None


def without_size(node: object) -> object:
    """Return the tuple in a `torch.Size` of one, and anything else as it is."""
    if type(node) is not tuple and isinstance(node, Call) and is_global(node.func, "torch.Size"):
        return node.args[0] if isinstance(node.args, tuple) and node.args else None
    return node


def shape_of(node: object, path: str) -> Sizes:
    """Return the shape of a tensor: a tuple of plain integers, or torch.Size of one. Raise FormatError for all else."""
    return shapes.shape(without_size(node), path)


def view_of(size: object, stride: object, path: str) -> tuple[Sizes, Sizes]:
    """Return the shape and strides of a tensor. Raise FormatError where they are none, or not of one length."""
    if type(size) is not tuple or type(stride) is not tuple:
        size, stride = without_size(size), without_size(stride)
    return shapes.view(size, stride, path)


def dtype_of(node: object, path: str) -> DType:
    """Return the dtype that a global such as `torch.float16` names."""
    name = node.name if isinstance(node, Global) and node.module == "torch" else ""
    if name not in BY_NAME:
        raise FormatError(f"tensor '{path}' has no dtype that torch knows")
    return BY_NAME[name]


def _strided(
    at: TensorPlace,
    stored: Stored,
    dtype: DType,
    offset: object,
    size: object,
    stride: object,
    requires_grad: object = None,
    metadata: object = None,
) -> Param:
    path = at.path
    shape, strides = view_of(size, stride, path)
    if not is_count(offset):
        raise FormatError(f"tensor '{path}' has an offset that is not a count")
    rg = requires_grad if isinstance(requires_grad, bool) else None
    param = Param(path, at.kind, dtype, shape, strides, stored.key, offset, rg, stored.device, place=at)
    if metadata is not None:
        param = param._replace(flags=_flags(untagged(metadata), path))
    reach = span(shape, strides)
    if reach and (offset + reach) * dtype.bits > stored.nbytes * 8:
        raise FormatError(f"tensor '{path}' reaches element {offset + reach:,} of a storage of {stored.nbytes:,} bytes")
    return param if not stored.start else param._replace(offset=offset + _elements(stored.start, dtype, path))


def _flags(metadata: object, path: str) -> frozenset[str]:
    """Return which flags the last argument of a tensor sets."""
    if not isinstance(metadata, Dict):
        return frozenset()
    if len(metadata.pairs) > MAX_NOTES:
        raise FormatError(f"tensor '{path}' has {len(metadata.pairs):,} notes on its values, and torch knows two")
    return frozenset(flag for flag in ("conj", "neg") if metadata.get(flag) is True)


def _elements(nbytes: int, dtype: DType, path: str) -> int:
    """Return how many elements lie before that byte of a storage."""
    count, rest = divmod(nbytes * 8, dtype.bits)
    if rest:
        raise FormatError(f"tensor '{path}' begins in the middle of an element of its storage")
    return count


def _v2(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    pid, offset, size, stride = args[:4]
    stored = storages.find(pid)
    if stored.dtype is None:
        raise FormatError(f"tensor '{at.path}' lies in an untyped storage and names no dtype")
    requires_grad = args[4] if len(args) > 4 else None
    metadata = args[6] if len(args) > 6 else None
    return _strided(at, stored, stored.dtype, offset, size, stride, requires_grad, metadata)


def _v3(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    pid, offset, size, stride, requires_grad, _, dtype, *rest = args
    metadata = rest[0] if rest else None
    return _strided(at, storages.find(pid), dtype_of(dtype, at.path), offset, size, stride, requires_grad, metadata)


def _inner(node: object, at: TensorPlace, storages: Remembered, *, kind: Kind | None = None, part: str = "") -> Param:
    """Return the tensor that another wraps; or one of its parts, which has a path of its own and no place."""
    if not is_tensor(node) or not isinstance(node, Call) or not isinstance(node.args, tuple):
        raise FormatError(f"parameter '{at.path}' wraps something that is not a tensor")
    if at.depth >= WRAPPED:
        raise FormatError(f"tensor '{at.path}' is wrapped in too many others")
    if part and at.is_part:
        raise FormatError(f"tensor '{at.path}' is a part of another, and made of parts itself")
    path = f"{at.path}.{part}" if part else at.path
    inner = at._replace(
        node=node, kind=kind or at.kind, path=path, depth=at.depth + 1, is_part=at.is_part or bool(part)
    )
    return read_tensor(inner, storages)._replace(place=None if part else at)


def _parameter(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    data, requires_grad, *_ = args
    own: Kind = at.kind if at.kind in ("optimizer", "buffer") else "parameter"
    param = _inner(data, at, storages, kind=own)
    return param._replace(requires_grad=requires_grad) if isinstance(requires_grad, bool) else param


def _variable(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    """Return a parameter of torch until 0.3: the class called with its tensor, then given its state.

    Older still, the tensor was the first of the five things in that state.
    """
    state = at.node.state if isinstance(at.node.state, tuple) else ()
    data, requires_grad = (state[0], state[3]) if len(state) == 5 else (args[0], state[0] if state else None)
    if at.node.func.full == "torch.nn.parameter.Parameter":
        return _parameter((data, requires_grad), at, storages)
    param = _inner(data, at, storages)
    return param._replace(requires_grad=requires_grad) if isinstance(requires_grad, bool) else param


def _own_class(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    """Return a tensor of torch's oldest files: its class, called with nothing, then given storage and view."""
    return _v2(at.node.state, at, storages)


def _subclass(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    """`_rebuild_from_type_v2(func, type, args, state)`: any of the others, in a subclass or with attributes."""
    func, cls, inner, *rest = args
    name = cls.name if isinstance(cls, Global) else ""
    own: Kind = "parameter" if name == "Parameter" and at.kind == "tensor" else at.kind
    whole = _inner(Call(func, inner), at, storages, kind=own)
    if name != "DTensor" or not rest or (local := _local_part(rest[0])) is None:
        return whole
    part = _inner(local, at, storages)
    return part if part.shape == whole.shape else part._replace(global_shape=whole.shape)


def _local_part(state: object) -> Call | None:
    """Return the tensor that a DTensor's state holds for this rank; None if there is none."""
    parts = state if isinstance(state, tuple) else (state,)
    found = [part.get("_local_tensor") for part in parts if isinstance(part, Dict)]
    return next((local for local in found if isinstance(local, Call) and is_tensor(local)), None)


def _sparse(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    layout, data, *rest = args
    word = _layout_name(layout)
    if isinstance(layout, int):  # torch's C++ writer has layout, size, requires_grad, the parts, and hooks
        data = (*filter(is_tensor, rest), data)
    if not isinstance(data, tuple) or len(data) < 3:
        raise FormatError(f"sparse tensor '{at.path}' has no indices and values")
    if word == "sparse_coo":
        names, parts, size = ["indices", "values"], data[:2], data[2]
    else:
        names, parts, size = [*_COMPRESSED.get(word, ("compressed", "plain")), "values"], data[:3], data[3]
    components = tuple(_inner(part, at, storages, part=name) for name, part in zip(names, parts, strict=True))
    return _composite(at, components[-1].dtype, shape_of(size, at.path), word, components)


_LAYOUTS = ("sparse", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
_COMPRESSED = {
    "sparse_csr": ("crow_indices", "col_indices"),
    "sparse_csc": ("ccol_indices", "row_indices"),
    "sparse_bsr": ("crow_indices", "col_indices"),
    "sparse_bsc": ("ccol_indices", "row_indices"),
}


def _layout_name(node: object) -> str:
    """`sparse_coo` from the call `_get_layout("torch.sparse_coo")`, or from its number in C++."""
    if isinstance(node, int):
        return _LAYOUTS[node] if 0 <= node < len(_LAYOUTS) else "sparse"
    name = node.args[0] if isinstance(node, Call) and node.args else None
    text = name.text if isinstance(name, PyString) else name
    return text.removeprefix("torch.") if isinstance(text, str) else "sparse"


def _composite(
    at: TensorPlace, dtype: DType, shape: tuple[int, ...], layout: str, components: tuple[Param, ...]
) -> Param:
    device = components[0].device if components else None
    plain = contiguous(shape)
    return Param(
        at.path, at.kind, dtype, shape, plain, None, device=device, layout=layout, components=components, place=at
    )


def _quantized(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    pid, offset, size, stride, quantizer, requires_grad, *_ = args
    stored = storages.find(pid)
    if stored.dtype is None or not isinstance(quantizer, tuple):
        raise FormatError(f"quantized tensor '{at.path}' has no quantizer or no dtype")
    param = _strided(at, stored, stored.dtype, offset, size, stride, requires_grad)
    names = ("scales", "zero_points")
    components = tuple(
        _inner(part, at, storages, part=name)
        for name, part in zip(names, quantizer[1:3], strict=False)
        if is_tensor(part)
    )
    return param._replace(layout="quantized", components=components, quantizer=_quantizer(quantizer, param, components))


def _quantizer(args: tuple[object, ...], param: Param, components: tuple[Param, ...]) -> Quantizer | None:
    """Return what the stored integers mean; None for a scheme that torch cannot load, or scales kept in lists."""
    scheme = args[0].name if args and isinstance(args[0], Global) and args[0].module == "torch" else ""
    if scheme == "per_tensor_affine":
        _, scale, zero_point, *_ = args
        if type(scale) is not float or type(zero_point) is not int or not -(1 << 31) <= zero_point < 1 << 31:
            raise FormatError(f"quantized tensor '{param.path}' has a scale or zero point that is no number")
        return Quantizer(scheme, scale, zero_point)
    if not scheme.startswith("per_channel_affine") or (args[1:3] and isinstance(args[1], list)):
        return None
    axis = args[3]
    if type(axis) is not int or not 0 <= axis < len(param.shape):
        raise FormatError(f"quantized tensor '{param.path}' has channels along an axis it does not have")
    if len(components) != 2 or not all(_is_per_channel(part, param.shape[axis]) for part in components):
        raise FormatError(f"quantized tensor '{param.path}' has no scale and zero point for each of its channels")
    # torch.save writes per_channel_affine for both; whether the zero points are fractions tells them apart.
    exact = components[1].dtype.category == "int"
    return Quantizer("per_channel_affine" if exact else "per_channel_affine_float_qparams", axis=axis)


def _is_per_channel(part: Param, channels: int) -> bool:
    """Return whether a component is one plain number a channel; scales are never whole numbers."""
    fits = part.dtype.category == "float" or (part.dtype.category == "int" and part.path.endswith(".zero_points"))
    return fits and part.is_plain and part.shape == (channels,)


def _nested(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    """Return a nested tensor; its sizes are data, so its size table is read. A ragged size is -1."""
    names = ("buffer", "sizes", "strides", "offsets")
    parts = tuple(_inner(part, at, storages, part=name) for name, part in zip(names, args, strict=False))
    buffer, sizes = parts[0], parts[1]
    if sizes.dtype.name != "int64" or len(sizes.shape) != 2 or not sizes.is_plain or not sizes.is_contiguous:
        raise FormatError(f"nested tensor '{at.path}' has no table of sizes")
    if sizes.shape[1] >= MAX_DIMS:  # a column each; a table of no rows has room for any number
        raise FormatError(f"nested tensor '{at.path}' has {sizes.shape[1]:,} sizes in a row, over {MAX_DIMS - 1}")
    if sizes.nbytes > NESTED_TABLE:
        raise FormatError(f"nested tensor '{at.path}' has a table of {sizes.nbytes:,} bytes for its sizes")
    shape = _ragged_shape((sizes.shape[0], *storages.ragged(sizes)), at.path)
    return _composite(at, buffer.dtype, shape, "nested", parts)._replace(strides=())


def _ragged_shape(shape: Sizes, path: str) -> Sizes:
    """Return a shape in which a size that differs is -1. Raise FormatError where another is no count."""
    shapes.shape([0 if n == -1 else n for n in shape], path)
    return shape


def _jagged(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    """Return a nested tensor of the jagged layout: its rows one after the other, and the start of each."""
    state = args[0]
    if not isinstance(state, Dict) or len(state.pairs) > MAX_NOTES:
        raise FormatError(f"nested tensor '{at.path}' has no values and offsets")
    names = ["values", "offsets", *(["lengths"] if state.get("lengths") is not None else [])]
    parts = tuple(_inner(state.get(name), at, storages, part=name) for name in names)
    values, offsets = parts[:2]
    axis = state.get("_ragged_idx", 1)
    if len(offsets.shape) != 1 or not offsets.numel or type(axis) is not int or not 0 < axis <= len(values.shape):
        raise FormatError(f"nested tensor '{at.path}' has no offsets along one of its axes")
    shape = _ragged_shape((offsets.numel - 1, *values.shape[: axis - 1], -1, *values.shape[axis:]), at.path)
    requires_grad = state.get("requires_grad")
    made = _composite(at, values.dtype, shape, "jagged", parts)
    return made._replace(strides=(), requires_grad=requires_grad if isinstance(requires_grad, bool) else None)


def _meta(args: tuple[object, ...], at: TensorPlace, _: Remembered) -> Param:
    dtype, size, stride, requires_grad, *_rest = args
    shape, strides = view_of(size, stride, at.path)
    rg = requires_grad if isinstance(requires_grad, bool) else None
    return Param(at.path, at.kind, dtype_of(dtype, at.path), shape, strides, None, 0, rg, "meta", "meta", place=at)


def _wrapper(args: tuple[object, ...], at: TensorPlace, _: Remembered) -> Param:
    cls, dtype, size, stride, _offset, _layout, _device, requires_grad, *_rest = args
    shape, strides = view_of(size, stride, at.path)
    rg = requires_grad if isinstance(requires_grad, bool) else None
    word = cls.name if isinstance(cls, Global) else "subclass"
    return Param(at.path, at.kind, dtype_of(dtype, at.path), shape, strides, None, 0, rg, None, word, place=at)


def _from_numpy(args: tuple[object, ...], at: TensorPlace, _: Remembered) -> Param:
    """Return a tensor of a device that torch copies through numpy: its bytes lie inside the pickle."""
    array, dtype, device, requires_grad, *_rest = args
    shape = _numpy_shape(array, at.path)
    rg = requires_grad if isinstance(requires_grad, bool) else None
    name = device.text if isinstance(device, PyString) else str(device)
    element = dtype_of(dtype, at.path)
    return Param(at.path, at.kind, element, shape, contiguous(shape), None, 0, rg, name, "numpy", place=at)


def _numpy_shape(node: object, path: str) -> tuple[int, ...]:
    state = node.state if isinstance(node, Call) else None
    if not isinstance(state, tuple) or len(state) < 2:
        raise FormatError(f"tensor '{path}' holds no numpy array")
    return shape_of(state[1], path)


def _from_cpu(args: tuple[object, ...], at: TensorPlace, storages: Remembered) -> Param:
    data, _, device, *_rest = args
    return _inner(data, at, storages)._replace(device=device if isinstance(device, str) else None)


Rebuild = Callable[[tuple[object, ...], TensorPlace, Remembered], Param]
_REBUILDERS: Mapping[str, Rebuild] = {
    "torch._utils._rebuild_tensor": _v2,
    "torch._utils._rebuild_tensor_v2": _v2,
    "torch._utils._rebuild_tensor_v3": _v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_sparse_csr_tensor": _sparse,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_nested_tensor": _nested,
    "torch.nested._internal.nested_tensor._rebuild_njt": _jagged,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_wrapper_subclass": _wrapper,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}
_SUBCLASSES = frozenset({"torch._tensor._rebuild_from_type", "torch._tensor._rebuild_from_type_v2"})
_WRAPPING = _SUBCLASSES | {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
_OLD: Mapping[str, Rebuild] = {
    "torch.nn.parameter.Parameter": _variable,
    "torch.autograd.variable.Variable": _variable,
    **dict.fromkeys(CLASSES, _own_class),
}
_READERS: Mapping[str, Rebuild] = {**_REBUILDERS, **_OLD}
