"""A param as the array or the torch tensor that it is: sparse, nested, quantised, expanded."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from paramctl.errors import FormatError, UsageError
from paramctl.files.content import read
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.dtypes import BY_NAME, PAIRS
from paramctl.values.arrays import byte_steps, content_of, read_values, storage_of
from paramctl.values.quantized import dequantized
from paramctl.values.torch_import import import_torch, tensor_of

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Array = NDArray[Any]

_INTEGERS = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}  # what torch makes quantised tensors from


def array(checkpoint: Checkpoint, param: Param) -> Array:
    """Return the values of a param; those that repeat are a view of fewer. Raises UsageError if sparse or nested."""
    import numpy as np

    if param.storage is None and param.components:
        what = f"{param.path or '.'} is a {param.layout} tensor, for which numpy has no word"
        raise UsageError(what, hint="ask for it with .torch()")
    if param.quantizer:
        return dequantized(checkpoint, param, read_values(checkpoint, param), ())
    if not param.repeats_itself:
        return read_values(checkpoint, param)
    line = read_values(checkpoint, _line(param))
    steps = byte_steps(param, line.itemsize)
    return np.lib.stride_tricks.as_strided(line, param.shape, steps, writeable=False)


def tensor(checkpoint: Checkpoint, param: Param) -> torch.Tensor:
    """Return the tensor that a param is. Raises FormatError if its parts do not go together."""
    try:
        return _tensor(checkpoint, param)
    except (RuntimeError, ValueError, TypeError) as error:  # from torch, which has many words for it
        reason = (str(error).splitlines() or ["?"])[0]
        raise FormatError(f"{param.path or '.'}: torch makes no {param.layout} tensor of its parts: {reason}") from None


def _tensor(checkpoint: Checkpoint, param: Param) -> torch.Tensor:
    if param.storage is None and param.components:
        return _composite(param, [_tensor(checkpoint, part) for part in param.components])
    if param.dtype.category == "quantized":
        return _quantized(checkpoint, param)
    if param.repeats_itself:
        return _plain(checkpoint, _line(param)).as_strided(param.shape, param.strides)
    return _plain(checkpoint, param)


def _line(param: Param) -> Param:
    """Return the elements from the first that a param touches to its last, each once."""
    return param._replace(shape=(param.span,), strides=(1,))


def _plain(checkpoint: Checkpoint, param: Param) -> torch.Tensor:
    storage = storage_of(checkpoint, param)
    if param.nbytes < storage.nbytes:
        storage.check(str(param.storage))
    dtype, shape = param.dtype, param.shape
    if dtype.name == "float4_e2m1fn" and shape:
        dtype, shape = BY_NAME[PAIRS], (*shape[:-1], shape[-1] // 2)
    return tensor_of(read(content_of(checkpoint, param), 0, param.nbytes), dtype, shape)


def _composite(param: Param, parts: list[torch.Tensor]) -> torch.Tensor:
    torch = import_torch()
    made: Any
    if param.layout == "sparse_coo":
        made = torch.sparse_coo_tensor(*parts, param.shape, check_invariants=True)
    elif param.layout.startswith("sparse_"):
        layout = getattr(torch, param.layout)
        made = torch.sparse_compressed_tensor(*parts, param.shape, layout=layout, check_invariants=True)
    elif param.layout == "nested":
        buffer, *table = parts
        rows = zip(*(part.tolist() for part in table), strict=True)
        made = torch.nested.nested_tensor([buffer.as_strided(size, step, offset) for size, step, offset in rows])
    elif param.layout == "jagged":
        made = _jagged(param, *parts)
    else:
        raise UsageError(f"{param.path or '.'} is a {param.layout} tensor, which torch makes of parts it does not name")
    return made  # type: ignore[no-any-return]


def _jagged(
    param: Param, values: torch.Tensor, offsets: torch.Tensor, lengths: torch.Tensor | None = None
) -> torch.Tensor:
    """Return a jagged tensor; torch itself does not look where its rows end before it reads them."""
    torch = import_torch()
    axis = param.shape.index(-1)
    ends = offsets.tolist()
    room = [end - start for start, end in pairwise(ends)]
    used = room if lengths is None else lengths.tolist()
    fits = len(used) == len(room) and all(0 <= n <= m for n, m in zip(used, room, strict=True))
    if not fits or ends[0] < 0 or ends[-1] > values.shape[axis - 1]:
        raise FormatError(f"{param.path or '.'} has rows that lie outside of its values")
    made = torch.nested.nested_tensor_from_jagged(values, offsets, lengths, jagged_dim=axis)
    return made  # type: ignore[no-any-return]


def _quantized(checkpoint: Checkpoint, param: Param) -> torch.Tensor:
    """Return a quantised tensor, or its values if torch has no way to make one of integers."""
    torch, rule = import_torch(), param.quantizer
    if rule is None:
        raise UsageError(f"{param.path or '.'} is quantized in a way that is not known, and its integers are no values")
    word = _INTEGERS.get(param.dtype.name)
    if word is None or (param.dtype.name, rule.scheme) == ("qint32", "per_channel_affine_float_qparams"):
        return torch.from_numpy(array(checkpoint, param))  # type: ignore[no-any-return]
    integers = _tensor(checkpoint, param._replace(dtype=BY_NAME[word], quantizer=None, components=()))
    made: Any
    if rule.scale is not None:
        made = torch._make_per_tensor_quantized_tensor(integers, rule.scale, rule.zero_point)
    else:
        scales, zero_points = (_tensor(checkpoint, part) for part in param.components)
        made = torch._make_per_channel_quantized_tensor(integers, scales, zero_points, rule.axis)
    return made  # type: ignore[no-any-return]
