"""Boxes that make up a tensor: whether they do, its values in C order from theirs, and theirs from its own.

Bytes are little-endian elements in C order throughout, in each box and in the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.files import checksums
from paramctl.files.content import CHUNK, Buffer, Computed, Content, clip, fill_buffer, read
from paramctl.files.sources import Spool

BLOCK = 1 << 22  # bytes that are put together at a time
DEEPEST = 16  # cuts across one another that a tiling is looked for with

Sizes = tuple[int, ...]
Read = Callable[[int, int], Buffer]


class Box(NamedTuple):
    """A part of a tensor, from `offsets` on."""

    offsets: Sizes
    sizes: Sizes


def tile(shape: Sizes, boxes: Sequence[Box]) -> bool:
    """Return whether boxes tile a tensor without hole or overlap, in the way that cuts through the whole of it do."""
    return _tile(Box((0,) * len(shape), shape), boxes, DEEPEST)


def _tile(whole: Box, boxes: Sequence[Box], depth: int) -> bool:
    if len(boxes) == 1:
        return boxes[0] == whole
    if not boxes or depth == 0:
        return False
    for axis in range(len(whole.sizes)):
        parts = _cut(boxes, axis)
        if len(parts) == 1:
            continue
        start, ends = whole.offsets[axis], [_end(part, axis) for part in parts]
        if ends[-1] != start + whole.sizes[axis]:
            return False
        bounds = zip([start, *ends], ends, strict=False)
        return all(
            _tile(_along(whole, axis, first, last), part, depth - 1)
            for part, (first, last) in zip(parts, bounds, strict=True)
        )
    return False


def _cut(boxes: Sequence[Box], axis: int) -> list[list[Box]]:
    """Return the boxes in groups that lie one behind the other along an axis."""
    parts: list[list[Box]] = []
    end = 0
    for box in sorted(boxes, key=lambda box: box.offsets[axis]):
        if not parts or box.offsets[axis] >= end:
            parts.append([])
        parts[-1].append(box)
        end = max(end, box.offsets[axis] + box.sizes[axis])
    return parts


def _end(boxes: Sequence[Box], axis: int) -> int:
    return max(box.offsets[axis] + box.sizes[axis] for box in boxes)


def _along(box: Box, axis: int, first: int, last: int) -> Box:
    """Return the part of a box from `first` up to `last` along an axis."""
    offsets, sizes = list(box.offsets), list(box.sizes)
    offsets[axis], sizes[axis] = first, last - first
    return Box(tuple(offsets), tuple(sizes))


class Block(Computed):
    """Some rows of a tensor put together from its boxes, as they are saved."""

    __slots__ = ()


class BoxContent(NamedTuple):
    """The values of a box: what their bytes are, and what those sum up to, where that is known."""

    box: Box
    content: tuple[Content, ...]
    crc32: int | None
    name: str


def is_concatenation(shape: Sizes, boxes: Sequence[Box]) -> bool:
    """Return whether the bytes of boxes, one behind the other, are those of the tensor they tile."""
    axis = next((i for i, n in enumerate(shape) if n > 1), 0)
    return all(box.sizes[axis + 1 :] == shape[axis + 1 :] for box in boxes)


def concatenated(held: Sequence[BoxContent], itemsize: int) -> tuple[tuple[Content, ...], int | None]:
    """Return the bytes of boxes one behind the other, and the CRC-32 of them all, if it is known."""
    content: list[Content] = []
    value: int | None = 0
    for one in sorted(held, key=lambda one: one.box.offsets):
        content += one.content
        nbytes = prod(one.box.sizes) * itemsize
        value = None if value is None or one.crc32 is None else checksums.extend_difference(value, nbytes) ^ one.crc32
    return tuple(content), value


def woven(shape: Sizes, held: Sequence[BoxContent], itemsize: int) -> tuple[Content, ...]:
    """Return the bytes of a tensor whose rows lie in several boxes, BLOCK by BLOCK.

    Whoever reads all of it from front to back learns whether the bytes of the boxes are those that were written.
    """
    strands = [_Strand(one.box, 0, _Checked(one).read) for one in held]
    return tuple(_woven(shape, strands, itemsize))


class _Checked:
    """Reads the bytes of a box, and compares their checksum once they were read from the first to the last."""

    def __init__(self, held: BoxContent) -> None:
        self._held = held
        self._nbytes = sum(part.nbytes for part in held.content)
        self._at = self._value = 0

    def read(self, start: int, nbytes: int) -> Buffer:
        data = read(self._held.content, start, nbytes)
        if start == 0:
            self._at = self._value = 0
        if start == self._at:
            self._value = checksums.crc32(data, self._value)
            self._at += nbytes
            if self._at == self._nbytes and self._held.crc32 not in (None, self._value):
                raise FormatError(f"{self._held.name} is corrupt: its bytes do not match their CRC-32")
        return data


class _Strand(NamedTuple):
    """The part that a box has of some rows of a tensor: its bytes there are one run, which begins at `start`."""

    box: Box
    start: int
    read: Read

    def rows(self, first: int, last: int, itemsize: int) -> _Strand:
        """Return the strand of the rows from `first` up to `last`, counted from `first`."""
        row = prod(self.box.sizes[1:]) * itemsize
        start = self.start + (first - self.box.offsets[0]) * row
        return _Strand(Box((0, *self.box.offsets[1:]), (last - first, *self.box.sizes[1:])), start, self.read)

    def row(self, i: int, itemsize: int) -> _Strand:
        """Return the strand of row `i`, of one dimension less."""
        box = self.rows(i, i + 1, itemsize)
        return _Strand(Box(box.box.offsets[1:], box.box.sizes[1:]), box.start, self.read)


def _woven(shape: Sizes, strands: Sequence[_Strand], itemsize: int) -> Iterator[Content]:
    row = prod(shape[1:]) * itemsize
    for first, last, inside in _bands(strands):
        part = [strand.rows(first, last, itemsize) for strand in inside]
        if len(part) == 1:
            nbytes = (last - first) * row
            for at in range(0, nbytes, BLOCK):
                yield _run(part[0].read, part[0].start + at, min(BLOCK, nbytes - at))
        elif row > BLOCK:
            for i in range(last - first):
                yield from _woven(shape[1:], [strand.row(i, itemsize) for strand in part], itemsize)
        else:
            step = BLOCK // row
            for i in range(0, last - first, step):
                n = min(step, last - first - i)
                rows = [strand.rows(i, i + n, itemsize) for strand in part]
                yield Block(n * row, partial(_joined, (n, *shape[1:]), rows, itemsize), n * row)


def _bands(strands: Sequence[_Strand]) -> Iterator[tuple[int, int, list[_Strand]]]:
    """Yield the rows between two neighbouring cuts, with all strands that have a part of them."""
    ordered = sorted(strands, key=lambda strand: strand.box.offsets[0])
    cuts = sorted({at for box, _, _ in ordered for at in (box.offsets[0], box.offsets[0] + box.sizes[0])})
    inside: list[_Strand] = []
    coming = iter(ordered)
    following = next(coming, None)
    for first, last in pairwise(cuts):
        inside = [strand for strand in inside if strand.box.offsets[0] + strand.box.sizes[0] > first]
        while following is not None and following.box.offsets[0] == first:
            inside.append(following)
            following = next(coming, None)
        yield first, last, list(inside)


def _run(read: Read, start: int, nbytes: int) -> Block:
    return Block(nbytes, lambda: (read(start, nbytes),), nbytes)


def _joined(shape: Sizes, strands: Sequence[_Strand], itemsize: int) -> Iterator[Buffer]:
    """Yield rows that are put together from parts of each of them."""
    import numpy as np

    element = np.dtype((np.void, itemsize))  # no axis of bytes: an array of 64 dimensions takes no more
    out = np.empty(shape, element)
    for box, start, read_strand in strands:
        data = read_strand(start, prod(box.sizes) * itemsize)
        out[_inside(box)] = np.frombuffer(data, element).reshape(box.sizes)
    yield out.reshape(-1).view(np.uint8).data


def _inside(box: Box) -> Any:
    return tuple(slice(at, at + n) for at, n in zip(box.offsets, box.sizes, strict=True))


def made_once(content: Sequence[Content]) -> tuple[Content, ...]:
    """Return the same bytes for readers of several parts: drawn values are drawn once, and kept in a file."""
    out: list[Content] = []
    for part in content:
        if isinstance(part, Computed) and not isinstance(part, Block):
            kept = _Kept(part)
            sizes = (min(CHUNK, part.nbytes - at) for at in range(0, part.nbytes, CHUNK))
            out += (Computed(n, partial(kept.piece, i)) for i, n in enumerate(sizes))
        else:
            out.append(part)
    return tuple(out)


class _Kept:
    """Computed bytes, made when the first CHUNK of them is asked for."""

    def __init__(self, computed: Computed) -> None:
        self._computed = computed
        self._pieces: list[Callable[[], bytes]] = []

    def piece(self, i: int) -> Iterator[Buffer]:
        if not self._pieces:
            spool = Spool("what is drawn for several files")
            buffer = memoryview(bytearray(min(CHUNK, self._computed.nbytes)))
            self._pieces = [spool.keep(data) for data in fill_buffer((self._computed,), buffer)]
        yield self._pieces[i]()


def taken(shape: Sizes, content: Sequence[Content], box: Box, itemsize: int) -> tuple[Content, ...]:
    """Return the bytes of a box, taken from those of the whole tensor."""
    nbytes = prod(box.sizes) * itemsize
    if is_concatenation(shape, [box]):
        start = sum(at * prod(shape[i + 1 :]) for i, at in enumerate(box.offsets)) * itemsize
        return clip(content, start, nbytes)
    parts = clip(content, 0, prod(shape) * itemsize)

    def make() -> Iterator[Buffer]:
        return _taken(shape, lambda start, n: read(parts, start, n), box, itemsize)

    return (Computed(nbytes, make, nbytes),)


def _taken(shape: Sizes, read_at: Read, box: Box, itemsize: int, base: int = 0) -> Iterator[Buffer]:
    import numpy as np

    row = prod(shape[1:]) * itemsize
    first, count = base + box.offsets[0] * row, box.sizes[0]
    if box.sizes[1:] == shape[1:]:
        for at in range(0, count * row, BLOCK):
            yield read_at(first + at, min(BLOCK, count * row - at))
    elif row > BLOCK:
        inner = Box(box.offsets[1:], box.sizes[1:])
        for i in range(count):
            yield from _taken(shape[1:], read_at, inner, itemsize, first + i * row)
    else:
        for i in range(0, count, BLOCK // row):
            n = min(BLOCK // row, count - i)
            data = np.frombuffer(read_at(first + i * row, n * row), np.dtype((np.void, itemsize)))
            rows = data.reshape(n, *shape[1:])
            inside = _inside(Box((0, *box.offsets[1:]), (n, *box.sizes[1:])))
            yield np.ascontiguousarray(rows[inside]).reshape(-1).view(np.uint8).data
