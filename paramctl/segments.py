"""What an output is made of: literal bytes, extents of source files, bytes made when they are needed.

A write is a list of segments, written front to back. None holds a tensor in memory: an extent is read
or copied by the kernel, a computed one exists only while it is written.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from paramctl.errors import FormatError

if TYPE_CHECKING:
    from paramctl.sources import Source

Buffer = bytes | bytearray | memoryview

CHUNK = 1 << 20  # bytes read at a time; larger chunks gain nothing and cost memory


class Literal(NamedTuple):
    """Bytes known already: headers, small rewritten records."""

    data: bytes

    @property
    def nbytes(self) -> int:
        return len(self.data)


class Extent(NamedTuple):
    """`nbytes` bytes of `source` from `offset` on, unchanged."""

    source: Source
    offset: int
    nbytes: int


class Computed(NamedTuple):
    """`nbytes` bytes that `chunks()` makes when they are needed; every call makes the same bytes."""

    nbytes: int
    chunks: Callable[[], Iterable[Buffer]]


class Summed(NamedTuple):
    """Parts whose CRC-32 the writer keeps under `name` for a `Derived` segment further on."""

    name: str
    parts: tuple[Literal | Extent | Computed, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class Derived(NamedTuple):
    """`nbytes` bytes that depend on the CRC-32 of earlier `Summed` segments, by their names."""

    nbytes: int
    make: Callable[[Mapping[str, int]], bytes]


Content = Literal | Extent | Computed
Segment = Content | Summed | Derived


def chunks(content: Iterable[Content]) -> Iterator[Buffer]:
    """The bytes of `content`, at most about CHUNK of a source file at a time."""
    for part in content:
        match part:
            case Literal(data):
                yield data
            case Extent(source, offset, nbytes):
                for start in range(0, nbytes, CHUNK):
                    yield source.read(offset + start, min(CHUNK, nbytes - start))
            case Computed(_, make):
                yield from make()


def clip(content: Iterable[Content], start: int, nbytes: int) -> tuple[Content, ...]:
    """The segments that hold bytes `start` to `start + nbytes` of `content`; nothing is read."""
    out: list[Content] = []
    for part in content:
        first, last = max(start, 0), min(start + nbytes, part.nbytes)
        if first < last:
            out.append(_clip_part(part, first, last - first))
        start -= part.nbytes
    return tuple(out)


def splice(content: Iterable[Content], start: int, new: Content) -> tuple[Content, ...]:
    """`content` with the bytes from `start` on replaced by `new`."""
    content = tuple(content)
    total = sum(part.nbytes for part in content)
    end = start + new.nbytes
    return (*clip(content, 0, start), new, *clip(content, end, total - end))


def read(content: Iterable[Content], start: int, nbytes: int) -> bytearray:
    """Bytes `start` to `start + nbytes` of `content`."""
    out = bytearray(nbytes)
    at = 0
    view = memoryview(out)
    for part in clip(content, start, nbytes):
        if isinstance(part, Extent):
            part.source.read_into(part.offset, view[at : at + part.nbytes])
            at += part.nbytes
            continue
        for chunk in chunks((part,)):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
    return out


def crc32(content: Iterable[Content]) -> int:
    """CRC-32 of all bytes of `content`, in constant memory."""
    value = 0
    for chunk in chunks(content):
        value = zlib.crc32(chunk, value)
    return value


def joined(segments: Iterable[Segment]) -> Iterator[Segment]:
    """The same bytes with neighbouring extents made one, so that each copy is as long as it can be."""
    held: Extent | None = None
    for segment in segments:
        if segment.nbytes == 0 and not isinstance(segment, Summed):
            continue
        if isinstance(segment, Extent):
            if held and held.source is segment.source and held.offset + held.nbytes == segment.offset:
                held = held._replace(nbytes=held.nbytes + segment.nbytes)
                continue
            if held:
                yield held
            held = segment
            continue
        if held:
            yield held
            held = None
        yield segment
    if held:
        yield held


def _clip_part(part: Content, start: int, nbytes: int) -> Content:
    if nbytes == part.nbytes:
        return part
    match part:
        case Literal(data):
            return Literal(data[start : start + nbytes])
        case Extent(source, offset, _):
            return Extent(source, offset + start, nbytes)
        case Computed(_, make):
            return Computed(nbytes, lambda: _window(make(), start, nbytes))


def _window(made: Iterable[Buffer], start: int, nbytes: int) -> Iterator[Buffer]:
    for chunk in made:
        if nbytes <= 0:
            return
        if start < len(chunk):
            piece = memoryview(chunk)[start : start + nbytes]
            yield piece
            nbytes -= len(piece)
        start = max(start - len(chunk), 0)
    if nbytes > 0:
        raise FormatError("computed bytes ended early")
