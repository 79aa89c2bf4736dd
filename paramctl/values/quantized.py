"""Quantised tensors: the values that their stored integers stand for.

Reference: torch's `Tensor.dequantize`, whose rounding is followed bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from paramctl.errors import UsageError
from paramctl.files.content import Buffer, Computed
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME
from paramctl.model.selections.indexing import Index
from paramctl.values.arrays import narrow, read_index
from paramctl.values.blocks import block_indices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

PIECE = 1 << 18  # elements converted at a time
REPEATED = 1_000_000  # elements up to which values that repeat (stride 0) are written out


def dequantized(checkpoint: Checkpoint, param: Param, stored: Array, index: Index) -> Array:
    """Return the float32 values of `stored`, the integers of `param[index]`, exactly as torch computes them.

    Of the scales and zero points of channels only those that the index needs are read. `param` has a
    quantizer.
    """
    import numpy as np

    part = narrowed(param, index)
    with np.errstate(all="ignore"):
        if part.quantizer and part.quantizer.scale is not None:
            return _of_tensor(stored, part.quantizer.scale, part.quantizer.zero_point or 0)
        scales, zero_points = (_along_axis(checkpoint, one, part) for one in part.components)
        return _of_channels(stored, scales, zero_points)


def _of_tensor(stored: Array, scale: float, zero_point: int) -> Array:
    import numpy as np

    # In int32 as in torch, where the least qint32 minus a zero point wraps around.
    distance: Array = stored.astype(np.int32) - np.int32(zero_point)
    return distance.astype(np.float32) * np.float32(scale)


def _of_channels(stored: Array, scales: Array, zero_points: Array) -> Array:
    import numpy as np

    # torch keeps scales as float64 beside whole zero points, and as float32 beside fractions.
    factors = scales.astype(np.float64 if zero_points.dtype.kind in "iu" else np.float32)
    distance: Array = stored.astype(np.float32) - zero_points.astype(np.float32)
    values: Array = (distance * factors).astype(np.float32)
    return values


def _along_axis(checkpoint: Checkpoint, component: Param, part: Param) -> Array:
    """Return a number for each channel, in a shape that fits the part's; one for all if it is of one channel."""
    values = read_index(checkpoint, component, ())
    axis = part.quantizer.axis if part.quantizer else None
    return values if axis is None else values.reshape([-1 if i == axis else 1 for i in range(len(part.shape))])


def narrowed(param: Param, index: Index) -> Param:
    """Return the view that `param[index]` is; a quantised one has the scales and zero points of its own channels."""
    view = narrow(param, index)
    if param.quantizer is None or param.quantizer.scale is not None or not index:
        return view
    axis = param.quantizer.axis
    if axis is None:
        return view
    items = _by_axis(index, len(param.shape))
    is_kept = isinstance(items[axis], slice)
    before = sum(isinstance(item, slice) for item in items[:axis])
    return view._replace(
        components=tuple(narrow(part, (items[axis],)) for part in param.components),
        quantizer=param.quantizer._replace(axis=before if is_kept else None),
    )


def _by_axis(index: Index, ndim: int) -> list[Any]:
    """Return an item for each axis, with whole slices for those that the index leaves out."""
    at = index.index(...) if ... in index else len(index)
    items = [item for item in index if item is not ...]
    return [*items[:at], *[slice(None)] * (ndim - len(items)), *items[at:]]


def as_float32(checkpoint: Checkpoint, param: Param) -> tuple[Checkpoint, Param]:
    """`param`, which has a quantizer, as a plain float32 tensor of the same path, in a checkpoint for it alone.

    Its values are computed when they are read, some at a time. Raises UsageError for repeated values that
    would grow without bounds.
    """

    if param.repeats_itself and param.numel > REPEATED:
        what = f"{param.path or '.'} repeats few bytes over {param.numel:,} values (stride 0)"
        raise UsageError(what, hint="name a part of it")

    def values() -> Iterator[Buffer]:
        for index in block_indices(param.shape, PIECE):
            stored = read_index(checkpoint, param, index)
            yield dequantized(checkpoint, param, stored, index).astype("<f4").tobytes()

    key, dtype = "dequantized", BY_NAME["float32"]
    plain = param._replace(
        dtype=dtype, strides=contiguous(param.shape), storage=key, offset=0, layout="strided", components=()
    )._replace(flags=frozenset(), quantizer=None)
    storage = Storage((Computed(plain.nbytes, values, param.nbytes),), plain.nbytes)
    own = Checkpoint(checkpoint.format, checkpoint.file, (plain,), {key: storage}, sources=checkpoint.sources)
    return own, plain
