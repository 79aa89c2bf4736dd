"""What an output is made of: literal bytes, extents of source files, bytes made when they are needed.

A write is a list of segments, written front to back. None holds a tensor in memory: an extent is read
or copied by the kernel, a computed one exists only while it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

from paramctl.files import checksums
from paramctl.files.content import CHUNK, Buffer, Computed, Content, Extent, Literal, chunks, crc32
from paramctl.files.sources import Source, Window

SMALL = 1 << 15  # bytes of an extent below which it is not worth the kernel's while


class Known(NamedTuple):
    """Bytes that lie in a file already, and their CRC-32."""

    extent: Extent
    crc32: int


class Summed(NamedTuple):
    """Parts whose CRC-32 the writer keeps under `name` for a `Derived` segment further on.

    `before` is what they replace, as many bytes. Where some of it stays, the sum follows from the rest:
    what is not read is not vouched for, and if it was corrupt, that still shows.
    """

    name: str
    parts: tuple[Literal | Extent | Computed, ...]
    before: Known | None = None

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class Derived(NamedTuple):
    """`nbytes` bytes that depend on the CRC-32 of earlier `Summed` segments, by their names."""

    nbytes: int
    make: Callable[[Mapping[str, int]], bytes]


Segment = Content | Summed | Derived


def pieces(segments: Iterable[Segment]) -> Iterator[Extent | Buffer]:
    """What `segments` are when they are written: bytes as they are made, and extents that nobody need read."""
    digests: dict[str, int] = {}
    for segment in joined(segments):
        match segment:
            case Literal(data):
                yield data
            case Extent():
                yield segment
            case Computed():
                yield from _all_of(segment)
            case Summed(name):
                digests[name] = yield from _summed(segment)
            case Derived(nbytes, make):
                data = make(digests)
                if len(data) != nbytes:
                    raise AssertionError(f"a derived segment made {len(data)} bytes, not {nbytes}")
                yield data


def gathered(pieces: Iterable[Extent | Buffer]) -> Iterator[Extent | Buffer]:
    """The same bytes, small pieces read and joined: neither a disk nor a network is asked for a few at a time."""
    held = bytearray()
    windows: dict[Source, Window] = {}
    for piece in pieces:
        nbytes = piece.nbytes if isinstance(piece, Extent) else len(piece)
        if nbytes >= SMALL or len(held) >= CHUNK:
            if held:
                yield held
            held = bytearray()
        if nbytes >= SMALL:
            yield piece
        elif isinstance(piece, Extent):
            window = windows.setdefault(piece.source, Window(piece.source))
            held += window.read(piece.offset, nbytes)
        else:
            held += piece
    if held:
        yield held


def stays(part: Segment, source: Source, offset: int) -> bool:
    """Whether a part is what `source` holds at `offset` already."""
    return isinstance(part, Extent) and part.source is source and part.offset == offset


def read_for(segment: Segment) -> int:
    """Bytes of files that are read, not copied by the kernel, to write a segment."""
    match segment:
        case Computed():
            return segment.reads
        case Summed(_, parts, before):
            kept = _kept(segment)
            through = segment.nbytes - kept if before and kept else kept
            return through + sum(part.reads for part in parts if isinstance(part, Computed))
        case _:
            return 0


def _all_of(part: Content) -> Iterator[Buffer]:
    left = part.nbytes
    for chunk in chunks((part,)):
        left -= len(chunk)
        yield chunk
    if left:
        raise AssertionError(f"a computed segment was {left} bytes short")


def _summed(segment: Summed) -> Generator[Extent | Buffer, None, int]:
    """Its pieces; returns their CRC-32."""
    if segment.before is not None and _kept(segment):
        return (yield from _summed_again(segment.parts, segment.before))
    value = 0
    for part in segment.parts:
        for chunk in _all_of(part):
            value = checksums.crc32(chunk, value)
            yield chunk
    return value


def _summed_again(parts: tuple[Content, ...], before: Known) -> Generator[Extent | Buffer, None, int]:
    """The pieces of parts that change some of the bytes of `before`; of those that stay none is read."""
    source, offset, left = before.extent
    value = before.crc32
    for part in parts:
        if stays(part, source, offset):
            yield part  # type: ignore[misc]
            offset, left = offset + part.nbytes, left - part.nbytes
            continue
        for chunk in _all_of(part):
            offset, left = offset + len(chunk), left - len(chunk)
            was = crc32((Extent(source, offset - len(chunk), len(chunk)),))
            value ^= checksums.followed(was ^ checksums.crc32(chunk), left)
            yield chunk
    return value


def _kept(segment: Summed) -> int:
    """Bytes of its extents; where it is known what they replace, of those that stay where they are."""
    kept = at = 0
    for part in segment.parts:
        before = segment.before
        if before is None:
            kept += part.nbytes if isinstance(part, Extent) else 0
        elif stays(part, before.extent.source, before.extent.offset + at):
            kept += part.nbytes
        at += part.nbytes
    return kept


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


