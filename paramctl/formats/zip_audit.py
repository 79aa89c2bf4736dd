"""A zip archive read from its first byte to its last: checksums, both headers of each record, and gaps."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from paramctl.errors import FormatError
from paramctl.findings import Finding
from paramctl.formats.zips import HAS_DESCRIPTOR, LOCAL, MAX32, Archive, Record
from paramctl.segments import Extent, chunks
from paramctl.watch import Watch, nobody

MAX_RATIO = 64  # inflated bytes for one in the file, so that work is bounded by the file's size
FREE = 1 << 24  # inflated bytes that are looked into in any case


def audit(archive: Archive, watch: Watch = nobody) -> Iterator[tuple[str, Finding]]:
    """What is wrong with each record, by its name: every byte is read, and both of its headers."""
    done, total = 0, archive.source.size
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        value = 0
        if record.nbytes > MAX_RATIO * record.packed + FREE:
            what = f"record {record.name!r} was not looked into: {record.packed:,} bytes claim to be {record.nbytes:,}"
            yield record.name, Finding("warning", "integrity", "bomb", None, what)
            continue
        try:
            payload = archive.payload(record)
            for chunk in chunks((archive.content(record),)):
                value = zlib.crc32(chunk, value)
                done += len(chunk)
                watch("checking", done, max(done, total))
        except FormatError as error:
            yield record.name, Finding("error", "integrity", "record", None, error.what)
            continue
        if record.has_crc and value != record.crc32:
            what = f"record {record.name!r} is corrupt: its bytes do not match their CRC-32"
            yield record.name, Finding("error", "integrity", "checksum", None, what)
        if contradiction := _contradiction(archive, record, payload):
            yield record.name, Finding("warning", "integrity", "record", None, contradiction)
    if gaps := _gaps(archive):
        what = f"{gaps:,} bytes belong to no record, as an edit that appends leaves them"
        yield "", Finding("note", "integrity", "gap", None, what)
    if archive.records and not any(record.has_crc for record in archive.records.values() if record.nbytes):
        what = "was written without checksums: damage to its values cannot be seen"
        yield "", Finding("note", "integrity", "no-checksums", None, what)


def _contradiction(archive: Archive, record: Record, payload: Extent) -> str:
    """What a record's local header or its descriptor says against the directory; empty if nothing."""
    local = LOCAL.unpack(archive.source.read(record.header, LOCAL.size))
    crc, packed, nbytes = local[6:9]
    if (crc or record.crc32) != record.crc32:
        return f"record {record.name!r} has another CRC-32 in its local header than in the directory"
    for found, expected in ((packed, record.packed), (nbytes, record.nbytes)):
        if found not in (0, MAX32, expected):
            return f"record {record.name!r} has another size in its local header than in the directory"
    end = payload.offset + payload.nbytes
    room = archive.ends[record.header] - end
    if record.flags & HAS_DESCRIPTOR and room >= 16 and archive.source.read(end, 4) == b"PK\x07\x08":
        (said,) = struct.unpack("<I", archive.source.read(end + 4, 4))
        if (said or record.crc32) != record.crc32:
            return f"record {record.name!r} has another CRC-32 behind it than in the directory"
    return ""


def _gaps(archive: Archive) -> int:
    """Bytes between records that are neither theirs nor a descriptor's."""
    at = gaps = 0
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        gaps += record.header - at
        at = archive.ends[record.header]
        try:
            payload = archive.payload(record)
        except FormatError:
            continue
        room = at - payload.offset - payload.nbytes
        described = record.flags & HAS_DESCRIPTOR and room >= 12
        gaps += max(room - 24, 0) if described else room
    return gaps
