"""Lay out a zip archive as segments: records that are kept, changed or new, and the directory behind them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from paramctl.files.content import Content, Extent, Literal
from paramctl.files.kernel_copy import PAGE
from paramctl.files.segments import Derived, Known, Segment, Summed
from paramctl.formats.containers.zips import (
    CENTRAL,
    END,
    END64,
    HAS_DESCRIPTOR,
    LOCAL,
    LOCATOR,
    MAGIC,
    MAX16,
    MAX32,
    STORED,
    Archive,
    Record,
)

LARGE = 1 << 20  # bytes from which on it counts how a payload is copied
_PADDING_FIELD = b"FB"  # torch's extra field that moves a payload to its alignment


class ZipPiece(NamedTuple):
    """One record of an archive to be written: an old one as it is, or a name with new content."""

    name: str
    old: Record | None
    content: tuple[Content, ...] | None = None
    without_crc: bool = False

    @property
    def nbytes(self) -> int:
        if self.content is not None:
            return sum(part.nbytes for part in self.content)
        assert self.old is not None
        return self.old.nbytes


def layout(archive: Archive | None, pieces: list[ZipPiece], alignment: int) -> Iterator[Segment]:
    """Yield the segments of an archive of `pieces`.

    A record that stays in its place is copied whole, header and all, so that changing values changes
    nothing else. One that moves gets a new header that aligns its payload to `alignment` bytes, a large
    one to where it lay on its page.
    """
    if archive is not None and [piece.name for piece in pieces if piece.content is None] == [*_by_place(archive)]:
        yield Extent(archive.source, 0, archive.source.size)
        return
    at = 0
    entries: list[tuple[ZipPiece, Record]] = []
    for piece in pieces:
        stays = archive is not None and piece.old is not None and piece.old.header == at
        if archive is not None and piece.old is not None and piece.content is None and stays:
            end = archive.ends[at]
            yield Extent(archive.source, at, end - at)
            entries.append((piece, piece.old))
            at = end
            continue
        record, segments = _rewritten(archive, piece, at, alignment, stays)
        for segment in segments:
            yield segment
            at += segment.nbytes
        entries.append((piece, record))
    yield from _directory(archive, _in_order(archive, entries), at)


def _by_place(archive: Archive) -> Iterator[str]:
    """Yield the names of an archive's records in the order in which they lie in the file."""
    return (record.name for record in sorted(archive.records.values(), key=lambda record: record.header))


def _in_order(archive: Archive | None, entries: list[tuple[ZipPiece, Record]]) -> list[tuple[ZipPiece, Record]]:
    """Return the entries in the order of the directory, led by torch's folder; new ones follow their neighbours."""
    rank = {name: i for i, name in enumerate(archive.records)} if archive else {}
    places: list[int] = []
    for piece, _ in entries:
        places.append(rank.get(piece.name, places[-1] if places else 0))
    return [entries[i] for i in sorted(range(len(entries)), key=places.__getitem__)]


def _rewritten(
    archive: Archive | None, piece: ZipPiece, at: int, alignment: int, stays: bool
) -> tuple[Record, list[Segment]]:
    """Return a record with a local header of its own: zeros there, CRC and size in a descriptor behind it."""
    nbytes, raw = piece.nbytes, piece.name.encode("utf-8", "surrogateescape")
    old = piece.old
    if piece.content is None:
        assert archive is not None and old is not None
        record = old._replace(header=at)
        payload: tuple[Content, ...] = (archive.payload(old),)
    else:
        record = Record(piece.name, 0x0800, STORED, 0, nbytes, nbytes, at)
        payload = piece.content
    described = record.packed > 0
    flags = record.flags & ~HAS_DESCRIPTOR | (HAS_DESCRIPTOR if described else 0)
    record = record._replace(flags=flags)
    header = _kept_header(archive, old, record) if stays else None
    if header is None:
        header = _local_header(raw, record, at, *_page_place(archive, old, alignment))
    body: list[Segment] = [Literal(header)]
    if piece.content is None:
        body += payload
        crc: Callable[[Mapping[str, int]], int] = lambda _: record.crc32  # noqa: E731
    elif piece.without_crc:
        body += payload
        crc = lambda _: 0  # noqa: E731
    else:
        body.append(Summed(piece.name, payload, _known(archive, old, record)))
        crc = lambda digests: digests[piece.name]  # noqa: E731
    if described:
        long = record.packed >= MAX32 or at >= MAX32
        pattern = "<4sIQQ" if long else "<4sIII"
        body.append(
            Derived(
                struct.calcsize(pattern),
                lambda digests: struct.pack(pattern, b"PK\x07\x08", crc(digests), record.packed, record.nbytes),
            )
        )
    return record, body


def _known(archive: Archive | None, old: Record | None, new: Record) -> Known | None:
    """Return the bytes that a record's new payload replaces, if the archive says what they sum up to; else None."""
    if archive is None or old is None or not old.has_crc or old.method != STORED or old.nbytes != new.nbytes:
        return None
    return Known(archive.payload(old), old.crc32)


def _kept_header(archive: Archive | None, old: Record | None, new: Record) -> bytes | None:
    """Return the old local header, if it says all that a new one would; else None."""
    if archive is None or old is None or (old.flags, old.method) != (new.flags, new.method):
        return None
    start = archive.payload(old).offset
    header = archive.source.read(old.header, start - old.header)
    same_room = archive.ends[old.header] - start == _room_after(new)
    return header if header[14:26] == bytes(12) and same_room else None


def _page_place(archive: Archive | None, old: Record | None, alignment: int) -> tuple[int, int]:
    """Return where a payload is to begin: a remainder, and the number to divide by.

    A large one keeps its place on a page of memory, where that is aligned too: then the kernel copies, or
    shares, whole pages of it.
    """
    if archive is None or old is None or old.packed < LARGE:
        return 0, alignment
    offset = archive.payload(old).offset
    return (0, alignment) if offset % alignment or alignment > PAGE else (offset % PAGE, PAGE)


def _room_after(record: Record) -> int:
    """Return the bytes from the start of a payload to the end of its descriptor, as `_rewritten` lays it out."""
    if not record.packed:
        return 0
    return record.packed + (24 if max(record.packed, record.header) >= MAX32 else 16)


def _local_header(name: bytes, record: Record, at: int, remainder: int, alignment: int) -> bytes:
    """Return a local header with zeros for CRC and sizes, padded so that the payload begins where it should."""
    zip64 = struct.pack("<2H2Q", 1, 16, 0, 0) if max(record.packed, at) >= MAX32 else b""
    start = at + LOCAL.size + len(name) + len(zip64) + 4
    padding = (remainder - start) % alignment
    extra = zip64 + _PADDING_FIELD + struct.pack("<H", padding) + b"Z" * padding
    size = MAX32 if zip64 else 0
    fields = (MAGIC, 45 if zip64 else 0, record.flags, record.method, 0, 0, 0, size, size, len(name), len(extra))
    return LOCAL.pack(*fields) + name + extra


def _directory(archive: Archive | None, entries: list[tuple[ZipPiece, Record]], at: int) -> Iterator[Segment]:
    """Yield the central directory and its end records. Only CRCs depend on what was written before."""
    originals = _central_entries(archive) if archive else {}
    parts = [_central(originals, piece, record) for piece, record in entries]
    size = sum(len(part) for part in parts)

    def make(digests: Mapping[str, int]) -> bytes:
        for (piece, _), part in zip(entries, parts, strict=True):
            if piece.name in digests:
                struct.pack_into("<I", part, 16, digests[piece.name])
        return b"".join(parts)

    yield Derived(size, make)
    if archive and at == archive.directory and at + size == archive.directory_end:
        yield Extent(archive.source, archive.directory_end, archive.source.size - archive.directory_end)
        return
    yield Literal(_end_records(len(parts), size, at, archive.comment if archive else b""))


def _central_entries(archive: Archive) -> dict[str, bytes]:
    data = archive.source.read(archive.directory, archive.directory_end - archive.directory)
    found: dict[str, bytes] = {}
    at = 0
    for name in archive.records:
        lengths = struct.unpack_from("<3H", data, at + 28)
        end = at + 46 + sum(lengths)
        found[name] = data[at:end]
        at = end
    return found


def _central(originals: Mapping[str, bytes], piece: ZipPiece, record: Record) -> bytearray:
    """Return a directory entry: the old one's bytes if its sizes and place still hold, else a new one."""
    old = piece.old
    if old is not None and old._replace(crc32=0) == record._replace(crc32=0):
        return bytearray(originals[piece.name])
    name = piece.name.encode("utf-8", "surrogateescape")
    values = (record.nbytes, record.packed, record.header)
    long = [value for value in values if value >= MAX32]
    extra = struct.pack(f"<2H{len(long)}Q", 1, 8 * len(long), *long) if long else b""
    nbytes, packed, header = (min(value, MAX32) for value in values)
    crc = record.crc32 if piece.content is None else 0
    fields = (b"PK\x01\x02", 0, 45 if long else 0, record.flags, record.method, 0, 0, crc, packed, nbytes)
    return bytearray(CENTRAL.pack(*fields, len(name), len(extra), 0, 0, 0, 0, header) + name + extra)


def _end_records(count: int, size: int, directory: int, comment: bytes) -> bytes:
    """Return both end records, long and short, as torch writes them even for small files."""
    end = directory + size
    long = END64.pack(b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, size, directory)
    locator = LOCATOR.pack(b"PK\x06\x07", 0, end, 1)
    brief = min(count, MAX16), min(count, MAX16), min(size, MAX32), min(directory, MAX32)
    return long + locator + END.pack(b"PK\x05\x06", 0, 0, *brief, len(comment)) + comment
