"""A param as a .npy file: NumPy's own format, which every numerical program reads."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files import file_writer
from paramctl.files.content import Buffer, Computed, Content, Literal
from paramctl.files.file_writer import Target
from paramctl.files.sources import Source, open_source
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.selections.indexing import Index
from paramctl.values.arrays import content_of, narrow, read_index, storage_of

if TYPE_CHECKING:
    import numpy as np

    from paramctl.values.arrays import Array

MAGIC = b"\x93NUMPY"
FIXED = 12  # bytes of magic, version and the longest length of a header
_LENGTHS = {(1, 0): 2, (2, 0): 4, (3, 0): 4}  # bytes of a header's length, by version
PIECE = 1 << 18  # elements converted at a time
REPEATED = 1_000_000  # elements up to which values that repeat (stride 0) are written out


def save(checkpoint: Checkpoint, param: Param, index: Index, target: Target) -> str:
    """Write `param[index]`, and return the name of the dtype it has there.

    What numpy has no dtype for is written in one that holds it exactly: bfloat16 and narrower floats as
    float32, complex32 as complex64. A whole tensor's checksum is verified first. Raises UsageError for
    a tensor of repeated values that would grow without bounds.
    """
    storage = storage_of(checkpoint, param)
    view = narrow(param, index)
    if param.repeats_itself and view.numel > REPEATED:
        raise UsageError(
            f"{param.path or '.'} repeats {storage.nbytes:,} bytes over {view.numel:,} values (stride 0)",
            hint="name a part of it",
        )
    if isinstance(target, file_writer.NewFile):
        file_writer.destination(target)  # refuse before the work, not after it
    if not index:
        storage.check(str(param.storage))
    dtype = _dtype_for(param)
    header = _header(view.shape, dtype)
    nbytes = len(header) + view.numel * dtype.itemsize

    def verify(path: Path) -> None:
        if open_source(str(path)).size != nbytes:
            raise FormatError("the file that was written is not whole", file=str(path))

    content = _content(checkpoint, param, index, dtype)
    file_writer.write((Literal(header), *content), target, checkpoint.sources, verify)
    return dtype.name


def load(source: Source) -> Array:
    """Return the array in a .npy file, none of which is ever unpickled.

    Raises FormatError where it is no such file or not whole, Unsupported where it holds no plain numbers.
    """
    import numpy as np

    if source.read(0, min(len(MAGIC), source.size)) != MAGIC:
        raise FormatError("is no .npy file", hint="write one with numpy.save")
    try:
        shape, fortran, dtype, start = _read_header(source)
    except (ValueError, EOFError, SyntaxError, TokenError) as error:
        reason = str(error.args[0] if error.args else error).partition("\n")[0]
        raise FormatError(f"is no .npy file: {reason}") from None
    if dtype.hasobject:
        raise Unsupported("holds Python objects, which are pickled and never loaded")
    if dtype.kind not in "biufc":
        raise Unsupported(f"holds {dtype}, which are no plain numbers")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes != source.size - start:
        raise FormatError(f"holds {source.size - start:,} bytes of values, and its shape takes {nbytes:,}")
    flat = np.frombuffer(source.read(start, nbytes), dtype)
    return flat.reshape(shape, order="F" if fortran else "C")


def _read_header(source: Source) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return the shape, whether columns come first, the dtype, and where the values begin."""
    from numpy.lib import format

    _check_header_length(source)
    with os.fdopen(os.dup(source.fileno()), "rb") as file:
        file.seek(0)
        version = format.read_magic(file)
        read = format.read_array_header_1_0 if version == (1, 0) else format.read_array_header_2_0
        return (*read(file), file.tell())


def _check_header_length(source: Source) -> None:
    """Raise ValueError unless the header is in a known version and lies in the file: numpy allocates what it claims."""
    fixed = source.read(0, min(FIXED, source.size))
    width = _LENGTHS.get((fixed[6], fixed[7])) if len(fixed) == FIXED else None
    if width is None:
        raise ValueError("its version is none of 1.0, 2.0 and 3.0")
    length = int.from_bytes(fixed[8 : 8 + width], "little")
    left = source.size - 8 - width
    if length > left:
        raise ValueError(f"its header claims {length:,} bytes and {left:,} are left")


def _dtype_for(param: Param) -> np.dtype[Any]:
    """Return the dtype numpy has for a param's values, or the nearest that holds them all."""
    import numpy as np

    if param.dtype.name == "complex32":
        return np.dtype(np.complex64)
    if param.dtype.category == "float" and param.dtype.name not in ("float64", "float32", "float16"):
        return np.dtype(np.float32)
    return param.dtype.to_numpy()


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    from numpy.lib import format

    out = io.BytesIO()
    descr = format.dtype_to_descr(dtype.newbyteorder("<"))
    format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
    return out.getvalue()


def _content(checkpoint: Checkpoint, param: Param, index: Index, dtype: np.dtype[Any]) -> tuple[Content, ...]:
    view = narrow(param, index)
    packed = param.dtype.bits % 8 != 0
    if not packed and dtype == param.dtype.to_numpy() and param.dtype.name != "complex32":
        return content_of(checkpoint, view)
    if view.is_contiguous and not (packed and index):
        return (Computed(view.numel * dtype.itemsize, lambda: _converted(checkpoint, view, dtype)),)

    def whole() -> Iterator[Buffer]:
        yield read_index(checkpoint, param, index).astype(dtype.newbyteorder("<")).tobytes()

    return (Computed(view.numel * dtype.itemsize, whole),)


def _converted(checkpoint: Checkpoint, view: Param, dtype: np.dtype[Any]) -> Iterator[Buffer]:
    """Yield the elements of a contiguous view, a piece at a time."""
    for start in range(0, view.numel, PIECE):
        n = min(PIECE, view.numel - start)
        piece = view._replace(offset=view.offset + start, shape=(n,), strides=(1,))
        yield read_index(checkpoint, piece, ()).astype(dtype.newbyteorder("<")).tobytes()
