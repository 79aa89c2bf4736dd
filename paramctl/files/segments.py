"""Describe an output file as segments, and turn them into the pieces that are written.

A write is a list of segments, written front to back: literal bytes, extents of source files, bytes that
are computed, and bytes that depend on checksums of earlier ones. No segment holds a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

from paramctl.files import checksums
from paramctl.files.content import CHUNK, Buffer, Computed, Content, Extent, Literal, chunks, crc32
from paramctl.files.sources import Source, Window

SMALL = 1 << 15  # bytes of an extent below which it is not worth the kernel's while


class Known(NamedTuple):
    """Bytes of a file, and their CRC-32."""

    extent: Extent
    crc32: int


class Summed(NamedTuple):
    """Parts whose CRC-32 is stored under `name`, for a `Derived` segment further on.

    `before` are the bytes that the parts replace, the same number of them. If some parts are unchanged, the
    new checksum is computed from the old one and the changed parts. Unchanged parts are not read and not
    verified; if they were corrupt before, the checksum still shows it.
    """

    name: str
    parts: tuple[Literal | Extent | Computed, ...]
    before: Known | None = None

    @property
    def nbytes(self) -> int:
        """The number of bytes of all parts."""
        return sum(part.nbytes for part in self.parts)


class Derived(NamedTuple):
    """`nbytes` bytes that depend on the CRC-32 of earlier `Summed` segments, by their names."""

    nbytes: int
    make: Callable[[Mapping[str, int]], bytes]


Segment = Content | Summed | Derived


def pieces(segments: Iterable[Segment]) -> Iterator[Extent | Buffer]:
    """Yield `segments` as they are written: made bytes, and extents that the kernel can copy."""
    digests: dict[str, int] = {}
    for segment in merge_extents(segments):
        match segment:
            case Literal(data):
                yield data
            case Extent():
                yield segment
            case Computed():
                yield from _whole_chunks(segment)
            case Summed(name):
                digests[name] = yield from _sum_pieces(segment)
            case Derived(nbytes, make):
                data = make(digests)
                if len(data) != nbytes:
                    raise AssertionError(f"a derived segment made {len(data)} bytes, not {nbytes}")
                yield data


def join_small_pieces(pieces: Iterable[Extent | Buffer]) -> Iterator[Extent | Buffer]:
    """Yield the same bytes with small pieces read and joined, so that a disk or network gets few large requests."""
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


def is_unchanged(part: Segment, source: Source, offset: int) -> bool:
    """Return whether a part is the bytes that `source` already holds at `offset`."""
    return isinstance(part, Extent) and part.source is source and part.offset == offset


def bytes_read_for(segment: Segment) -> int:
    """Return the number of bytes read from files (not copied by the kernel) to write a segment."""
    match segment:
        case Computed():
            return segment.reads
        case Summed(_, parts, before):
            kept = _unchanged_bytes(segment)
            through = segment.nbytes - kept if before and kept else kept
            return through + sum(part.reads for part in parts if isinstance(part, Computed))
        case _:
            return 0


def _whole_chunks(part: Content) -> Iterator[Buffer]:
    """Yield the bytes of a part. Raises AssertionError if there are fewer than announced."""
    left = part.nbytes
    for chunk in chunks((part,)):
        left -= len(chunk)
        yield chunk
    if left:
        raise AssertionError(f"a computed segment was {left} bytes short")


def _sum_pieces(segment: Summed) -> Generator[Extent | Buffer, None, int]:
    """Yield the pieces of a segment and return their CRC-32."""
    if segment.before is not None and _unchanged_bytes(segment):
        return (yield from _update_sum(segment.parts, segment.before))
    value = 0
    for part in segment.parts:
        for chunk in _whole_chunks(part):
            value = checksums.crc32(chunk, value)
            yield chunk
    return value


def _update_sum(parts: tuple[Content, ...], before: Known) -> Generator[Extent | Buffer, None, int]:
    """Yield the pieces of parts that change some bytes of `before`, and return the new CRC-32.

    Unchanged parts are not read.
    """
    source, offset, left = before.extent
    value = before.crc32
    for part in parts:
        if is_unchanged(part, source, offset):
            yield part  # type: ignore[misc]
            offset, left = offset + part.nbytes, left - part.nbytes
            continue
        for chunk in _whole_chunks(part):
            offset, left = offset + len(chunk), left - len(chunk)
            was = crc32((Extent(source, offset - len(chunk), len(chunk)),))
            value ^= checksums.extend_difference(was ^ checksums.crc32(chunk), left)
            yield chunk
    return value


def _unchanged_bytes(segment: Summed) -> int:
    """Return the bytes of the segment's extents; if `before` is known, only of those that keep their place."""
    kept = at = 0
    for part in segment.parts:
        before = segment.before
        if before is None:
            kept += part.nbytes if isinstance(part, Extent) else 0
        elif is_unchanged(part, before.extent.source, before.extent.offset + at):
            kept += part.nbytes
        at += part.nbytes
    return kept


def merge_extents(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Yield the same bytes with neighbouring extents merged, so that each copy is as long as possible."""
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
