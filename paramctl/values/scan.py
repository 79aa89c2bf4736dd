"""The values of params, block by block in bounded memory: how every verb looks at more than a few of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from paramctl.errors import Unsupported
from paramctl.files import checksums
from paramctl.files.content import Computed, Content, Keeper, Literal, clip, fill_buffer, read
from paramctl.model.checkpoint import Checkpoint, Param, Storage
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import cells, decoded, in_machine_order, narrow, storage_of, stored
from paramctl.values.blocks import block_indices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BLOCK = 3 << 18  # bytes: whole elements of every size, and few enough to stay in a processor's cache
TILE = 1 << 25  # bytes of a view whose elements lie apart that are gathered at a time, in C order
PIECE = 1 << 22  # the same where the order does not matter, and no byte is read twice for it
OFTEN = 64  # times that each byte of a storage is read for params that share it; a model has no more
SLICE = 1 << 12  # values that are compared at a time: larger arrays are mapped afresh each time, page by page
FREE = 1 << 24  # bytes that may be read of a storage, however small it is


class Scan:
    """Reads params of one checkpoint, each storage's CRC-32 checked once, and no storage endlessly often.

    Each block is overwritten by the next. `on_progress` is told how many of `total` bytes are done. With `trust`
    the checksums are known to be right.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        on_progress: ProgressCallback = ignore,
        total: int | None = None,
        *,
        trust: bool = False,
    ) -> None:
        self._checkpoint = checkpoint
        self._trust = trust
        self._on_progress = on_progress
        self._total = total
        self._done = 0
        self._buffer = memoryview(bytearray(BLOCK))
        self._checked: set[str] = set()
        self._read: dict[str, int] = {}

    def values(self, param: Param, *, in_order: bool = True) -> Iterator[Array]:
        """Yield the values of a param as flat arrays, in C order or, which may be cheaper, in any.

        Quantized ones are what their integers stand for. Raises as `stored` does.
        """
        if param.quantizer is None:
            for block in self.stored(param, in_order=in_order):
                yield decoded(block, param).reshape(-1)
            return
        from paramctl.values.quantized import dequantized

        storage = _at_hand(self._admitted(param), param)
        for index in block_indices(param.shape, max(BLOCK // max(param.dtype.itemsize, 1), 1)):
            part = narrow(param, index)
            integers = decoded(stored(storage, part), part)
            yield dequantized(self._checkpoint, param, integers, index).reshape(-1)
            self._tell(part.nbytes)

    def stored(self, param: Param, *, in_order: bool = True) -> Iterator[Array]:
        """Yield the elements of a param as they are stored, as flat arrays of unsigned integers (see `values.stored`).

        Raises FormatError behind the last where a checksum is wrong, UsageError where there are none
        (meta and composite tensors), Unsupported where too many params share a storage.
        """
        view = param if in_order or param.is_contiguous else _as_it_lies(param)
        if view.is_contiguous and view.offset * view.dtype.bits % 8 == 0:
            yield from self._streamed(view)
            return
        storage = _at_hand(self._admitted(view), view)
        if view.dtype.bits % 8:
            if view.span * view.dtype.bits // 8 > TILE:
                raise Unsupported(f"{param.path} ({param.dtype.name}) has packed elements that are not contiguous")
            yield stored(storage, view).reshape(-1)
            return
        for index in block_indices(view.shape, (TILE if in_order else PIECE) // view.dtype.itemsize):
            part = narrow(view, index)
            yield stored(storage, part).reshape(-1)
            self._tell(part.nbytes)

    def _streamed(self, param: Param) -> Iterator[Array]:
        """Yield the elements of a param that lie one behind the other."""
        whole = param.nbytes == storage_of(self._checkpoint, param).nbytes
        storage = self._admitted(param, check=not whole)
        checked = whole and not self._trust and storage.crc32 is not None
        value, left = 0, param.numel
        content = storage.content if whole else clip(storage.content, param.start, param.nbytes)
        for data in fill_buffer(content, self._buffer):
            if checked:
                value = checksums.crc32(data, value)
            block = cells(data, param.dtype)[:left]  # the last byte may hold more
            left -= block.size
            yield in_machine_order(block, param.dtype, storage.byteorder)
            self._tell(len(data))
        if checked:
            storage.check_sum(value, str(param.storage))
            self._checked.add(str(param.storage))

    def _admitted(self, param: Param, check: bool = True) -> Storage:
        """Return the storage of a param, the whole of it checked, unless it was read too often already."""
        storage, key = storage_of(self._checkpoint, param), str(param.storage)
        cost = storage.nbytes if _is_made(storage) else param.nbytes
        done = self._read[key] = self._read.get(key, 0) + cost
        if done > OFTEN * storage.nbytes + FREE:
            what = f"{param.path or '.'} lies in a storage that was read {OFTEN} times over for others"
            raise Unsupported(what, hint="name it alone")
        if check and not self._trust and storage.crc32 is not None and key not in self._checked:
            storage.check(key)
            self._checked.add(key)
        return storage

    def _tell(self, nbytes: int) -> None:
        self._done += nbytes
        self._on_progress("reading", self._done, self._total)


def _is_made(storage: Storage) -> bool:
    """Return whether a storage is not read but made, or inflated, from its first byte on, whatever is asked of it."""
    return any(isinstance(part, Computed) and not isinstance(part.chunks, Keeper) for part in storage.content)


def _at_hand(storage: Storage, param: Param) -> Storage:
    """Return a storage of which many parts are read: one that is made from its first byte on each time is held."""
    if any(isinstance(part, Computed) for part in storage.content) and not _is_made(storage):
        return storage._replace(content=tuple(map(_kept, storage.content)))
    if not _is_made(storage):
        return storage
    if storage.nbytes > TILE:
        raise Unsupported(f"{param.path or '.'} lies here and there in a storage that is compressed")
    return storage._replace(content=(Literal(bytes(read(storage.content, 0, storage.nbytes))),))


def _kept(part: Content) -> Content:
    """Return inflated bytes as they lie in a file: parts of them are read alone."""
    return part.chunks.kept() if isinstance(part, Computed) and isinstance(part.chunks, Keeper) else part


def _as_it_lies(param: Param) -> Param:
    """Return the view of the same elements in the order in which they lie."""
    order = sorted(range(len(param.shape)), key=lambda axis: -abs(param.strides[axis]))
    shape, strides = (tuple(sizes[axis] for axis in order) for sizes in (param.shape, param.strides))
    return param._replace(shape=shape, strides=strides)


def distinct(param: Param) -> tuple[Param, int]:
    """Return the view that has each value of expanded axes (stride 0) once, and how often each stands there.

    Raises Unsupported where its elements share bytes in other ways so often that reading them would not end.
    """
    if 0 not in param.strides and param.is_contiguous:
        return param, 1
    axes = [n > 1 and step == 0 for n, step in zip(param.shape, param.strides, strict=True)]
    shape = tuple(1 if repeated else n for n, repeated in zip(param.shape, axes, strict=True))
    times = prod(n for n, repeated in zip(param.shape, axes, strict=True) if repeated)
    view = param._replace(shape=shape)
    if view.numel > OFTEN * view.span:
        raise Unsupported(f"{param.path or '.'} repeats a few values over its shape")
    return view, times


def aligned(*streams: Iterator[Array], most: int = SLICE) -> Iterator[tuple[Array, ...]]:
    """Streams of as many values, cut at the same places, `most` values at a time; each is read to its end."""
    held: list[Any] = [()] * len(streams)
    while True:
        held = [part if len(part) else next(stream, ()) for part, stream in zip(held, streams, strict=True)]
        n = min(most, *map(len, held))
        if not n:
            return
        yield tuple(part[:n] for part in held)
        held = [part[n:] for part in held]
