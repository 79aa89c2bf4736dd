"""The tensors of a torch pickle: what torch.save wrote for each kind, as Params, and back.

Reference: torch/_utils.py and torch/_tensor.py, whose `_rebuild_*` functions a pickle names. Nothing is
called; their arguments are read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from paramctl.errors import FormatError, Unsupported
from paramctl.files.content import read
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent, PyString
from paramctl.model import shapes
from paramctl.model.checkpoint import Kind, Param, Quantizer, Storage, contiguous, span
from paramctl.model.dtypes import BY_NAME, DType
from paramctl.model.shapes import MAX_DIMS, Sizes, is_count

WRAPPED = 10  # parameters and subclasses around a tensor that are looked through
MAX_NOTES = 100  # entries of a dict of a tensor's own attributes, of which torch has ten
NESTED_TABLE = 1 << 20  # bytes of a nested tensor's size table that are read to list it


class Stored(NamedTuple):
    """The storage a tensor names: its key, the dtype its class says, its bytes, and its device.

    A storage may be a part of the one with that key, `start` bytes into it.
    """

    key: str
    dtype: DType | None  # None: untyped, the tensor says its dtype itself
    nbytes: int
    device: str
    start: int = 0


class Storages(Protocol):
    """The storages of an archive: `find` takes a pickled id, `open` reads one."""

    def find(self, pid: object) -> Stored: ...
    def open(self, key: str) -> Storage: ...


class Remembered:
    """Storages, and the sizes that were read from them: many tensors may share one table of those."""

    def __init__(self, storages: Storages) -> None:
        self.find = storages.find
        self._open = storages.open
        self._ragged: dict[tuple[str | None, int, Sizes], Sizes] = {}

    def ragged(self, table: Param) -> Sizes:
        """Return the sizes of the tensors in a nested one, row by row in `table`; a size that differs is -1."""
        key = table.storage, table.offset, table.shape
        if key not in self._ragged:
            self._ragged[key] = self._read(table)
        return self._ragged[key]

    def _read(self, table: Param) -> Sizes:
        rows, columns = table.shape
        stored = self._open(str(table.storage))
        pattern = f"{'<' if stored.byteorder == 'little' else '>'}{rows * columns}q"
        found = struct.unpack(pattern, read(stored.content, table.start, table.nbytes))
        distinct = [set(found[i::columns]) for i in range(columns)]
        return tuple(sizes.pop() if len(sizes) == 1 else -1 for sizes in distinct)


class Place(NamedTuple):
    """The place of a tensor in a pickle: its path and kind, its node, and the container that holds it.

    `position` counts as `pickle_writer.write` counts. `module` is the step of the module whose parameter
    it is, or None outside of modules. `depth` counts the tensors wrapped around it; `is_part` says that
    it is a part of another, which has no parts itself: those of parts of parts would be without end.
    """

    path: str
    kind: Kind
    node: Call
    step: Step | None
    position: int
    module: Step | None
    depth: int = 0
    is_part: bool = False


class Step:
    """A container on the way from the root to a tensor, as one path reaches it.

    `position` is where it lies in the container of `parent`.
    """

    __slots__ = ("container", "parent", "position")

    def __init__(self, container: Any, parent: Step | None, position: int) -> None:
        self.container = container
        self.parent = parent
        self.position = position


def is_global(node: object, full: str) -> bool:
    """Return whether a node is the name of that class or function."""
    return isinstance(node, Global) and node.full == full


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
    if node.func.full in _CLASSES:
        return isinstance(state, tuple) and len(state) == 4
    return (isinstance(state, tuple) and len(state) == 5) or bool(node.args and isinstance(node.args[0], Call))


def read_tensor(place: Place, storages: Remembered) -> Param:
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


def untagged(node: object) -> object:
    """Return the value of `restore_type_tag(value, "Dict[str, bool]")`, as torch's C++ writer has lists and dicts."""
    if isinstance(node, Call) and is_global(node.func, "torch.jit._pickle.restore_type_tag") and node.args:
        return node.args[0]
    return node


def dtype_of(node: object, path: str) -> DType:
    """Return the dtype that a global such as `torch.float16` names."""
    name = node.name if isinstance(node, Global) and node.module == "torch" else ""
    if name not in BY_NAME:
        raise FormatError(f"tensor '{path}' has no dtype that torch knows")
    return BY_NAME[name]


def _strided(
    at: Place,
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


def _v2(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    pid, offset, size, stride = args[:4]
    stored = storages.find(pid)
    if stored.dtype is None:
        raise FormatError(f"tensor '{at.path}' lies in an untyped storage and names no dtype")
    requires_grad = args[4] if len(args) > 4 else None
    metadata = args[6] if len(args) > 6 else None
    return _strided(at, stored, stored.dtype, offset, size, stride, requires_grad, metadata)


def _v3(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    pid, offset, size, stride, requires_grad, _, dtype, *rest = args
    metadata = rest[0] if rest else None
    return _strided(
        at, storages.find(pid), dtype_of(dtype, at.path), offset, size, stride, requires_grad, metadata
    )


def _inner(node: object, at: Place, storages: Remembered, *, kind: Kind | None = None, part: str = "") -> Param:
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


def _parameter(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    data, requires_grad, *_ = args
    own: Kind = at.kind if at.kind in ("optimizer", "buffer") else "parameter"
    param = _inner(data, at, storages, kind=own)
    return param._replace(requires_grad=requires_grad) if isinstance(requires_grad, bool) else param


def _variable(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    """Return a parameter of torch until 0.3: the class called with its tensor, then given its state.

    Older still, the tensor was the first of the five things in that state.
    """
    state = at.node.state if isinstance(at.node.state, tuple) else ()
    data, requires_grad = (state[0], state[3]) if len(state) == 5 else (args[0], state[0] if state else None)
    if at.node.func.full == "torch.nn.parameter.Parameter":
        return _parameter((data, requires_grad), at, storages)
    param = _inner(data, at, storages)
    return param._replace(requires_grad=requires_grad) if isinstance(requires_grad, bool) else param


def _own_class(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    """Return a tensor of torch's oldest files: its class, called with nothing, then given storage and view."""
    return _v2(at.node.state, at, storages)


def _subclass(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    """`_rebuild_from_type_v2(func, type, args, state)`: any of the others, in a subclass or with attributes."""
    func, cls, inner, *_ = args
    name = cls.name if isinstance(cls, Global) else ""
    own: Kind = "parameter" if name == "Parameter" and at.kind == "tensor" else at.kind
    return _inner(Call(func, inner), at, storages, kind=own)


def _sparse(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
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
    components = tuple(
        _inner(part, at, storages, part=name) for name, part in zip(names, parts, strict=True)
    )
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
    at: Place, dtype: DType, shape: tuple[int, ...], layout: str, components: tuple[Param, ...]
) -> Param:
    device = components[0].device if components else None
    plain = contiguous(shape)
    return Param(
        at.path, at.kind, dtype, shape, plain, None, device=device, layout=layout, components=components, place=at
    )


def _quantized(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
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
    return param._replace(
        layout="quantized", components=components, quantizer=_quantizer(quantizer, param, components)
    )


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


def _nested(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    """Return a nested tensor; its sizes are data, so its size table is read. A ragged size is -1."""
    names = ("buffer", "sizes", "strides", "offsets")
    parts = tuple(
        _inner(part, at, storages, part=name) for name, part in zip(names, args, strict=False)
    )
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


def _jagged(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
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


def _meta(args: tuple[object, ...], at: Place, _: Remembered) -> Param:
    dtype, size, stride, requires_grad, *_rest = args
    shape, strides = view_of(size, stride, at.path)
    rg = requires_grad if isinstance(requires_grad, bool) else None
    return Param(at.path, at.kind, dtype_of(dtype, at.path), shape, strides, None, 0, rg, "meta", "meta", place=at)


def _wrapper(args: tuple[object, ...], at: Place, _: Remembered) -> Param:
    cls, dtype, size, stride, _offset, _layout, _device, requires_grad, *_rest = args
    shape, strides = view_of(size, stride, at.path)
    rg = requires_grad if isinstance(requires_grad, bool) else None
    word = cls.name if isinstance(cls, Global) else "subclass"
    return Param(at.path, at.kind, dtype_of(dtype, at.path), shape, strides, None, 0, rg, None, word, place=at)


def _from_numpy(args: tuple[object, ...], at: Place, _: Remembered) -> Param:
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


def _from_cpu(args: tuple[object, ...], at: Place, storages: Remembered) -> Param:
    data, _, device, *_rest = args
    return _inner(data, at, storages)._replace(device=device if isinstance(device, str) else None)


_WORDS = ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte")
_CLASSES = frozenset(f"{module}.{word}Tensor" for module in ("torch", "torch.cuda") for word in _WORDS)
_WRAPPERS = (
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter", "torch.autograd.variable.Variable",
)  # fmt: skip
Rebuild = Callable[[tuple[object, ...], Place, Remembered], Param]
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
    **dict.fromkeys(_CLASSES, _own_class),
}
_READERS: Mapping[str, Rebuild] = {**_REBUILDERS, **_OLD}

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
    elif name in _CLASSES and not param.flags:
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
