"""The values of a param: read as numpy arrays, and put back as bytes of its storage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import gcd
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from paramctl.errors import Unsupported, UsageError
from paramctl.files import checksums
from paramctl.files.content import Buffer, Computed, Content, Patch, chunks, clip, patched, read
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous, dims
from paramctl.model.dtypes import DType
from paramctl.values import rounding
from paramctl.values.rounding import numpy_dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

Index = tuple[int | slice | EllipsisType, ...]

NEAR = 1 << 16  # bytes that are read at once, whatever of them is asked for
SPARSE = 4  # times as many bytes as are asked for are read at once
AT_ONCE = 1 << 24  # bytes that are read at once where elements lie near one another


def read_values(checkpoint: Checkpoint, param: Param) -> Array:
    """Return every value of `param`, in its shape, as a new array in C order.

    The CRC-32 of the whole storage is checked first where the file has one. Raises FormatError if it
    does not match, UsageError where there are no values to read (meta and composite tensors).
    """
    storage_of(checkpoint, param).check(str(param.storage))
    return read_index(checkpoint, param, ())


def read_index(checkpoint: Checkpoint, param: Param, index: Index) -> Array:
    """Return the values of `param[index]`, reading little more than those; no CRC is checked."""
    storage = storage_of(checkpoint, param)
    part = narrow(param, index)
    return decoded(stored(storage, part), part)


def narrow(param: Param, index: Index) -> Param:
    """Return the view that `param[index]` is, by numpy's basic indexing. The index must fit the shape."""
    filled = _without_ellipsis(index, len(param.shape))
    offset, shape, strides = param.offset, [], []
    for item, n, step in zip(filled, param.shape, param.strides, strict=True):
        if isinstance(item, slice):
            start, stop, stride = item.indices(n)
            shape.append(len(range(start, stop, stride)))
            strides.append(step * stride)
            offset += start * step if shape[-1] else 0
        else:
            offset += (item + n if item < 0 else item) * step
    return param._replace(offset=offset, shape=tuple(shape), strides=tuple(strides))


def content_of(checkpoint: Checkpoint, param: Param) -> tuple[Content, ...]:
    """Return the param's bytes as every other format wants them: little-endian, in C order, nothing else."""
    storage = storage_of(checkpoint, param)
    whole = param.nbytes == storage.nbytes and storage.crc32 is not None
    if param.is_contiguous and storage.byteorder == "little" and not param.flags:
        if whole:
            return (Computed(param.nbytes, lambda: _checked(storage, str(param.storage)), param.nbytes),)
        return clip(storage.content, param.start, param.nbytes)
    if param.dtype.bits % 8:
        raise Unsupported(f"{param.path} ({param.dtype.name}) has packed elements that are not contiguous")

    def make() -> Iterator[Buffer]:
        if whole:
            storage.check(str(param.storage))
        yield _bytes_of(_resolve(stored(storage, param), param))

    return (Computed(param.nbytes, make, bytes_under(param)[1] if param.numel else 0),)


def _checked(storage: Storage, key: str) -> Iterator[Buffer]:
    """Yield a storage's bytes. Raises FormatError behind the last if they are not those that were written."""
    value = 0
    for chunk in chunks(storage.content):
        value = checksums.crc32(chunk, value)
        yield chunk
    storage.check_sum(value, key)


class NewValues(NamedTuple):
    """The new elements of `view`; `reads` is how many bytes of files `make` reads for them."""

    view: Param
    make: Callable[[], Buffer]
    reads: int = 0


def with_values(storage: Storage, *changes: NewValues) -> Storage:
    """`storage` in which the elements of each view are what its function returns, one after the other.

    A function is called when the bytes are needed; it returns them little-endian in C order. Whatever
    else lies in the storage stays as it is and is not read: where it is corrupt, that still shows.
    """
    patches = [_patch(storage, *change) for change in changes]
    return storage._replace(content=patched(storage.content, patches), crc32=None)


def _patch(storage: Storage, param: Param, make: Callable[[], Buffer], reads: int) -> Patch:
    """Return the patch that puts the values that `make()` returns into the bytes of a view."""
    if not (param.is_contiguous and fills_bytes(param)):
        return Patch(*bytes_under(param), lambda span: _scatter(span, storage, param, make()), None, reads)

    def whole() -> Buffer:
        return _to_stored(make(), param, storage)

    def put(span: memoryview) -> None:
        span[:] = whole()

    return Patch(param.start, param.nbytes, put, whole, reads)


def storage_of(checkpoint: Checkpoint, param: Param) -> Storage:
    """Return the storage that holds a param's values. Raises UsageError if the file has none."""
    if param.storage is None:
        what = "is a meta tensor: no values are saved for it"
        if param.components:
            what = f"is {param.layout}: its values are in " + ", ".join(c.path for c in param.components)
        raise UsageError(f"{param.path or '.'} {what}")
    return checkpoint.storages[param.storage]


def cast(values: Array, dtype: DType) -> Array:
    """Return `values` in `dtype`, rounded as torch does. Raises UsageError if it cannot hold one of them."""
    import numpy as np

    values = np.asarray(values)
    if values.dtype.kind == "c" and dtype.category != "complex":
        raise UsageError(f"complex values do not fit {dtype.name}")
    if dtype.category in ("int", "bool", "quantized", "bits"):
        _check_fits(values, dtype)
    with np.errstate(all="ignore"):
        if dtype.name == "complex32":
            return _halves(values)
        if dtype.category == "float" and dtype.bits < 32:
            return rounding.narrowed(values, dtype)
        return values.astype(numpy_dtype(dtype))


def encode(values: Array, dtype: DType) -> Buffer:
    """Return the little-endian bytes of `values`, which are of `dtype` already."""
    import numpy as np

    values = np.ascontiguousarray(values)
    return _packed(values.view(np.uint8), dtype.bits) if dtype.bits % 8 else _bytes_of(values)


def _halves(values: Array) -> Array:
    import numpy as np

    flat = values.reshape(-1)
    parts = np.stack([flat.real, flat.imag], axis=-1).astype(np.float32).astype(np.float16)
    return parts.view(np.uint32).reshape(values.shape)


def _check_fits(values: Array, dtype: DType) -> None:
    import numpy as np

    wide = values.astype(np.float64) if values.dtype.kind == "V" else values
    if wide.dtype.kind == "f" and not (np.isfinite(wide).all() and (wide == np.floor(wide)).all()):
        raise UsageError(f"{dtype.name} holds whole numbers only")
    low, high = _limits(dtype)
    if wide.size and (int(wide.min()) < low or int(wide.max()) > high):
        raise UsageError(f"values from {wide.min()} to {wide.max()} do not fit {dtype.name}")


def _limits(dtype: DType) -> tuple[int, int]:
    if dtype.category == "bool":
        return 0, 1
    signed = dtype.numpy.startswith("int")
    return (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if signed else (0, (1 << dtype.bits) - 1)


def _without_ellipsis(index: Index, ndim: int) -> list[int | slice]:
    items = [item for item in index if not isinstance(item, EllipsisType)]
    missing = [slice(None)] * (ndim - len(items))
    at = next((i for i, item in enumerate(index) if isinstance(item, EllipsisType)), len(items))
    return [*items[:at], *missing, *items[at:]]


def _reach(param: Param) -> tuple[int, int]:
    """First element of the storage that a view touches, and how many lie from there to its last.

    Where elements share a byte, both ends move out to whole bytes.
    """
    steps = [(n - 1) * step for n, step in zip(param.shape, param.strides, strict=True)]
    low = param.offset + sum(step for step in steps if step < 0)
    end = param.offset + sum(step for step in steps if step > 0) + 1
    together = 8 // gcd(param.dtype.bits, 8)
    low, end = low - low % together, end + -end % together
    return low, end - low


def bytes_under(param: Param) -> tuple[int, int]:
    """Return the first byte in its storage that a view touches, and how many bytes it spans."""
    first, count = _reach(param)
    return first * param.dtype.bits // 8, count * param.dtype.bits // 8


def fills_bytes(param: Param) -> bool:
    """Return whether no byte holds both elements of a contiguous view and others."""
    bits, numel = param.dtype.bits, param.numel
    return numel == 0 or (param.offset * bits % 8 == 0 and numel * bits % 8 == 0)


def stored(storage: Storage, param: Param) -> Array:
    """Return a view's elements as they are stored, unsigned integers in the machine's order where swapped.

    What lies between its elements is not read where that is much.
    """
    import numpy as np

    if param.numel == 0:
        return _empty(param)
    if parts := _apart(param):
        # Copies, which do not keep what was read between the elements.
        return np.concatenate([np.ascontiguousarray(stored(storage, part)) for part in parts], axis=_widest(param))
    data = cells(read(storage.content, *bytes_under(param)), param.dtype)
    return in_machine_order(_strided(data, param), param.dtype, storage.byteorder)


def _empty(param: Param) -> Array:
    """Return the elements of an empty view. Raise Unsupported where its sizes are more than numpy counts."""
    import numpy as np

    try:
        return np.empty(param.shape, raw_dtype(param.dtype))
    except ValueError:  # sizes beside a 0 may be anything
        what = f"{param.path or '.'} ({dims(param.shape)}) is empty, and of a shape that numpy has no array of"
        raise Unsupported(what) from None


def in_machine_order(data: Array, dtype: DType, byteorder: str) -> Array:
    """Elements of a storage in that order, as little-endian ones; a complex element is swapped part by part."""
    import numpy as np

    size = dtype.itemsize // 2 if dtype.category == "complex" else dtype.itemsize
    if byteorder == "little" or size <= 1:
        return data
    raw = np.ascontiguousarray(data)
    return raw.view(f"u{size}").byteswap().view(data.dtype).reshape(data.shape)


def _apart(param: Param) -> list[Param]:
    """Return the parts of a view that are better read one by one, along its widest axis; none if it is read at once.

    That is where most of the bytes from its first element to its last are not its own, or too many.
    """
    nbytes, axis = bytes_under(param)[1], _widest(param)
    if axis < 0 or param.dtype.bits % 8 or nbytes <= max(NEAR, SPARSE * param.nbytes):
        return []
    n, step = param.shape[axis], abs(param.strides[axis]) * param.dtype.itemsize
    if step < NEAR and nbytes <= AT_ONCE:
        return []
    many = 1 if step >= NEAR else -(-n // 2)
    return [narrow(param, (*[slice(None)] * axis, slice(i, i + many))) for i in range(0, n, many)]


def _widest(param: Param) -> int:
    """Return the axis whose neighbours lie furthest apart; -1 if there are none."""
    steps = [abs(step) if n > 1 else 0 for n, step in zip(param.shape, param.strides, strict=True)]
    return steps.index(max(steps)) if any(steps) else -1


def _strided(data: Array, param: Param) -> Array:
    """Return the view of the elements from the first one it touches on."""
    import numpy as np

    first, size = _reach(param)[0], data.dtype.itemsize
    strides = byte_steps(param, size)
    return np.lib.stride_tricks.as_strided(data[param.offset - first :], param.shape, strides)


def byte_steps(param: Param, itemsize: int) -> tuple[int, ...]:
    """Return strides in bytes; 0 along an axis of one element, where a file may claim any, and none is used."""
    return tuple(step * itemsize if n > 1 else 0 for n, step in zip(param.shape, param.strides, strict=True))


def _scatter(span: memoryview, storage: Storage, param: Param, data: Buffer) -> None:
    """Put `data` into those of the bytes under a view that are its elements."""
    there = cells(span, param.dtype)
    values = cells(_to_stored(data, param, storage), param.dtype)[: param.numel]
    _strided(there, param)[...] = values.reshape(param.shape)
    if param.dtype.bits % 8:
        span[:] = _packed(there, param.dtype.bits)


def cells(data: Buffer, dtype: DType) -> Array:
    """Return one number for each element; those smaller than a byte, the first in the lowest bits, are copies."""
    import numpy as np

    if dtype.bits % 8 == 0:
        return np.frombuffer(data, raw_dtype(dtype))
    if dtype.bits == 4:
        pairs = np.frombuffer(data, np.uint8)
        return np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(-1)
    flags = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    whole = flags[: len(flags) // dtype.bits * dtype.bits]
    return np.packbits(whole.reshape(-1, dtype.bits), axis=1, bitorder="little").reshape(-1)


def _packed(elements: Array, bits: int) -> bytes:
    """Elements of a few bits each, one behind the other."""
    import numpy as np

    flags = np.unpackbits(elements.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(flags.reshape(-1), bitorder="little").tobytes()


def raw_dtype(dtype: DType) -> np.dtype[Any]:
    """Return an element as bytes that numpy can always move, whatever they mean."""
    import numpy as np

    return np.dtype("complex128" if dtype.itemsize == 16 else f"u{max(dtype.itemsize, 1)}")


def decoded(data: Array, param: Param) -> Array:
    """Return stored elements of `param` as its values."""
    import numpy as np

    flat = _resolve(data, param).reshape(-1)
    if param.dtype.name == "complex32":
        flat = np.ascontiguousarray(flat)  # a view with steps is still one when it is flat
        return flat.view(np.float16).astype(np.float32).view(np.complex64).reshape(data.shape)
    return flat.view(numpy_dtype(param.dtype)).reshape(data.shape)


def _resolve(data: Array, param: Param) -> Array:
    """Conjugate or negate stored elements that are flagged so; each undoes itself."""
    import numpy as np

    if not param.flags:
        return data
    part = {"complex128": "f8", "complex64": "f4", "complex32": "f2"}.get(param.dtype.name)
    parts = np.array(data, order="C")
    view = parts.reshape(-1, 1).view(part or param.dtype.to_numpy())  # flat: an array of 64 dimensions takes no more
    if "conj" in param.flags:
        view[:, 1] = -view[:, 1]
    if "neg" in param.flags:
        np.negative(view, out=view)
    return parts


def _to_stored(data: Buffer, param: Param, storage: Storage) -> Buffer:
    import numpy as np

    if len(data) != param.nbytes:
        raise AssertionError(f"{param.path}: {len(data)} bytes for {param.nbytes}")
    if not param.flags and storage.byteorder == "little":
        return data
    values = np.frombuffer(data, raw_dtype(param.dtype)).reshape(param.shape)
    return _bytes_of(in_machine_order(_resolve(values, param), param.dtype, storage.byteorder))


def _bytes_of(values: Array) -> Buffer:
    import numpy as np

    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def contiguous_copy(
    checkpoint: Checkpoint, param: Param, key: str, byteorder: Literal["little", "big"] = "little"
) -> tuple[Param, Storage]:
    """`param` as the only user of a new storage `key` that holds just its values.

    An expanded one keeps its few values and its strides.
    """
    if param.repeats_itself:
        line = param._replace(shape=(param.span,), strides=(1,))
        _, storage = contiguous_copy(checkpoint, line, key, byteorder)
        return param._replace(storage=key, offset=0, flags=frozenset()), storage
    content = content_of(checkpoint, param)
    own = param._replace(storage=key, offset=0, strides=contiguous(param.shape), flags=frozenset())
    if byteorder == "little":
        return own, Storage(content, param.nbytes)
    values = NewValues(own, lambda: read(content, 0, param.nbytes), param.nbytes)
    return own, with_values(Storage((), param.nbytes, byteorder), values)
