"""A zip archive read from its first byte to its last: checksums, both headers of each record, and gaps."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from paramctl.errors import FormatError
from paramctl.files import checksums
from paramctl.files.content import chunks
from paramctl.findings import Finding, Level
from paramctl.formats.containers.zips import HAS_DESCRIPTOR, LOCAL, MAX32, Archive, Record
from paramctl.model.checkpoint import Checkpoint
from paramctl.progress import ProgressCallback, ignore

MAX_RATIO = 64  # inflated bytes for one in the file, so that work is bounded by the file's size
FREE = 1 << 24  # inflated bytes beyond that, of all records together
SIGNATURE = b"PK\x07\x08"  # of a descriptor, where it has one
DESCRIPTORS = tuple(map(struct.Struct, ("<4sIQQ", "<4sIII", "<IQQ", "<III")))
SHORTEST, LONGEST = 12, 24  # bytes of a descriptor


def audit(archive: Archive, on_progress: ProgressCallback = ignore) -> Iterator[tuple[str, Finding]]:
    """Yield the findings about each record, with its name: every byte is read, and both of its headers."""
    auditor = _Auditor(archive, on_progress)
    for record in sorted(archive.records.values(), key=lambda record: record.header):
        for level, rule, what in auditor.look_into(record):
            yield record.name, Finding(level, "integrity", rule, None, f"record {record.name!r} {what}")
    if auditor.gaps:
        what = f"{auditor.gaps:,} bytes belong to no record, as an edit that appends leaves them"
        yield "", Finding("note", "integrity", "gap", None, what)
    if archive.records and not any(record.has_crc for record in archive.records.values() if record.nbytes):
        what = "was written without checksums: damage to its values cannot be seen"
        yield "", Finding("note", "integrity", "no-checksums", None, what)


def audit_for(
    checkpoint: Checkpoint, archive: Archive, folder: str, on_progress: ProgressCallback = ignore
) -> Iterator[Finding]:
    """Yield the findings of `audit`, each with the first param whose storage, by its key in `folder`, is the record."""
    users: dict[str, str] = {}
    for param in checkpoint.params:
        for part in (param, *param.components):
            if record := archive.find(f"{folder}{part.storage}"):
                users.setdefault(record.name, param.path)
    for name, finding in audit(archive, on_progress):
        yield finding._replace(path=users.get(name))


class _Auditor:
    """Looks into records in the order in which they lie; `gaps` counts bytes that belong to none."""

    def __init__(self, archive: Archive, on_progress: ProgressCallback) -> None:
        self._archive = archive
        self._on_progress = on_progress
        self._done = 0
        self._free = FREE
        self._at = 0
        self.gaps = 0

    def look_into(self, record: Record) -> Iterator[tuple[Level, str, str]]:
        """Yield the level, the rule and the text of each finding."""
        self.gaps += record.header - self._at
        self._at = self._archive.ends[record.header]
        beyond = max(record.nbytes - MAX_RATIO * record.packed, 0)
        if beyond > self._free:
            claim = f"{record.packed:,} bytes claim to be {record.nbytes:,}"
            yield "warning", "bomb", f"was not checked: {claim}, and many who read it run out of memory"
            return
        self._free -= beyond
        try:
            payload = self._archive.payload(record)
            value = self._crc32(record)
        except FormatError as error:
            yield "error", "record", error.what.removeprefix(f"record {record.name!r} ")
            return
        if record.has_crc and value != record.crc32:
            yield "error", "checksum", "is corrupt: its bytes do not match their CRC-32"
        yield from self._headers(record, payload.offset + payload.nbytes)

    def _crc32(self, record: Record) -> int:
        value, total = 0, self._archive.source.size
        for chunk in chunks((self._archive.content(record),)):
            value = checksums.crc32(chunk, value)
            self._done += len(chunk)
            self._on_progress("checking", self._done, max(self._done, total))
        return value

    def _headers(self, record: Record, end: int) -> Iterator[tuple[Level, str, str]]:
        """Yield where a record's local header, or the descriptor at its end, contradicts the directory."""
        local = LOCAL.unpack(self._archive.source.read(record.header, LOCAL.size))
        if _contradicts(record, local[6], (0, MAX32), *local[7:9]):
            yield "warning", "record", "has another CRC-32 or size in its local header than in the zip directory"
        room = self._at - end
        if record.flags & HAS_DESCRIPTOR and room >= SHORTEST:
            behind = self._archive.source.read(end, min(room, LONGEST))
            size = _descriptor(record, behind)
            if not size:
                yield "warning", "record", "has another CRC-32 or size behind it than in the zip directory"
            room -= size or min(room, len(behind))
        self.gaps += room


def _descriptor(record: Record, behind: bytes) -> int:
    """Return the bytes of the descriptor behind a record, if it agrees with the directory; else 0."""
    for form in DESCRIPTORS:
        if form.size <= len(behind):
            *signature, crc, packed, nbytes = form.unpack_from(behind)
            if signature in ([], [SIGNATURE]) and not _contradicts(record, crc, (), packed, nbytes):
                return form.size
    return 0


def _contradicts(record: Record, crc: int, unknown: tuple[int, ...], packed: int, nbytes: int) -> bool:
    """Return whether sums and sizes differ from those of the directory; a CRC-32 of 0 means that none was computed."""
    pairs = ((packed, record.packed), (nbytes, record.nbytes))
    return (crc or record.crc32) != record.crc32 or any(said not in (real, *unknown) for said, real in pairs)
