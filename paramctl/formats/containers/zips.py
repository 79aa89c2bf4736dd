"""Read zip archives by their central directory; `zip_layout` lays them out again around what changed.

Reference: PKWARE's APPNOTE.TXT, miniz.c, and caffe2/serialize/inline_container.cc, by which torch uses miniz.

Readers of zip files disagree about odd ones. Each place that is known, and what is done here:

- *Letter case.* miniz compares names without regard to the case of ASCII letters, Python's zipfile exactly.
  Records are found as miniz finds them (`Archive.find`); names that differ in nothing else are refused.
- *One name twice.* miniz takes either (a binary search of its sorted directory), zipfile the last. Refused.
- *A NUL in a name.* zipfile cuts the name there, torch cuts the name it looks for, miniz does neither. Refused.
- *Marked as a folder* (by a slash at the end, or the DOS attribute). miniz leaves the memory for such a record as it
  is, zipfile reads the bytes. Refused if it has bytes.
- *Names of over 511 bytes.* torch's list of all records cuts them, and looking one up does not. Only whether a file is
  TorchScript depends on that list, and no name that is looked for is as long.
- *Local header against directory.* miniz and zipfile take size, method and place from the directory; zipfile
  compares the names, miniz only the magic. Names and methods must agree here.
- *Where the directory is.* miniz takes the last end record and its absolute offset, whatever follows; zipfile allows
  bytes in front of an archive, and moves all offsets. An archive must fill its file here.
- *zip64.* miniz takes the long end record wherever there is one, zipfile only where the short one says so. Both must
  say the same here.
- *Checksums.* zipfile checks CRC-32, torch's miniz is built not to, and a 0 of theirs means "not computed". A wrong one
  is an error here; `check` judges the pickle as torch would run it all the same.
- *Overlapping records* are fine for miniz and refused here, as Python does since 3.11.8.
- *Compressed storages*. torch.load(mmap=True) takes their packed bytes for values, and without mmap inflates
  them, as is done here.
- *Which archive is torch's.* torch.load looks for the magic of a local header in the first 4 bytes, zipfile.is_zipfile
  for an end record: one with something in front is none for torch, and none here. Its folder is that of the first
  name in the directory (`torch_archives.folder_of`); torch.load refuses a record outside it, or in one of another
  case, and torch.jit.load does not. `.data/version` counts before `version`.

`zip_pickles` reads what is refused here as miniz would, and only to judge it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from string import ascii_uppercase
from typing import NamedTuple

from paramctl.errors import FormatError, TwoReadings, Unsupported
from paramctl.files import checksums
from paramctl.files.content import CHUNK, Buffer, Computed, Content, Extent, Keeper
from paramctl.files.sources import Source, Window

MAGIC = b"PK\x03\x04"
STORED, DEFLATED = 0, 8
LOCAL = struct.Struct("<4s5H3I2H")
CENTRAL = struct.Struct("<4s6H3I5H2I")
END = struct.Struct("<4s4H2IH")
END64 = struct.Struct("<4sQ2H2I4Q")
LOCATOR = struct.Struct("<4sIQI")
MAX32, MAX16 = 0xFFFFFFFF, 0xFFFF
HAS_DESCRIPTOR, _ENCRYPTED, _STRONG, _PATCHED = 0x0008, 0x0001, 0x0040, 0x0020
_FOLDER = 0x10  # the attribute of folders in DOS


class Record(NamedTuple):
    """One entry of the central directory. Sizes and offsets count bytes; `crc32` 0 may mean unknown."""

    name: str
    flags: int
    method: int
    crc32: int
    packed: int
    nbytes: int
    header: int

    @property
    def has_crc(self) -> bool:
        """Writers that skip checksums leave 0, so 0 says nothing unless there is nothing to sum."""
        return self.crc32 != 0


@dataclass(frozen=True)
class Archive:
    """The records of a zip file, in the directory's order, and where its parts lie."""

    source: Source
    records: Mapping[str, Record]
    directory: int  # offset of the central directory
    directory_end: int
    comment: bytes

    def payload(self, record: Record) -> Extent:
        """Return the place of a record's bytes, after a local header that agrees with the directory."""
        fields = self._window.read(record.header, LOCAL.size)
        magic, _, flags, method, *_, name_length, extra_length = LOCAL.unpack(fields)
        name = self._window.read(record.header + LOCAL.size, name_length) if magic == MAGIC else b""
        if magic != MAGIC or _decode(name, flags) != record.name or method != record.method:
            raise FormatError(f"record {record.name!r} has a local header that contradicts the directory")
        start = record.header + LOCAL.size + name_length + extra_length
        if start + record.packed > self.ends[record.header]:
            raise FormatError(f"record {record.name!r} runs into what follows it")
        return Extent(self.source, start, record.packed)

    def content(self, record: Record) -> Content:
        """Return a record's bytes: a deflated one is inflated when it is read, and kept if it is read again."""
        if record.method == STORED:
            return self.payload(record)
        if record.name not in self._keepers:
            make = partial(self._inflated, record)
            self._keepers[record.name] = Keeper(record.nbytes, make, "what is compressed in the file")
        return Computed(record.nbytes, self._keepers[record.name])

    def _inflated(self, record: Record) -> Iterator[Buffer]:
        return _inflated(self.payload(record), record)

    @cached_property
    def _keepers(self) -> dict[str, Keeper]:
        return {}

    def read(self, record: Record, limit: int) -> bytes:
        """Return all bytes of a small record, its CRC checked. Raises FormatError if it is over `limit` bytes."""
        if record.nbytes > limit:
            raise FormatError(f"record {record.name!r} takes {record.nbytes:,} bytes, over the limit of {limit:,}")
        content = self.content(record)
        if isinstance(content, Computed):
            data = b"".join(content.chunks())
        else:
            data = self.source.read(content.offset, content.nbytes)  # type: ignore[union-attr]
        if record.has_crc and checksums.crc32(data) != record.crc32:
            raise FormatError(f"record {record.name!r} is corrupt: its bytes do not match their CRC-32")
        return data

    def find(self, name: str) -> Record | None:
        """Return the record that torch finds under a name: the case of ASCII letters does not matter."""
        return self.records.get(name) or self.folded.get(folded(name))

    @cached_property
    def folded(self) -> Mapping[str, Record]:
        """Each record under its name in lower case, by which torch compares names."""
        names = folded("\0".join(self.records)).split("\0")
        return dict(zip(names, self.records.values(), strict=True)) if self.records else {}

    @cached_property
    def _window(self) -> Window:
        return Window(self.source)

    @cached_property
    def ends(self) -> Mapping[int, int]:
        """Offset of each record's header → offset at which whatever follows the record begins."""
        starts = sorted(record.header for record in self.records.values())
        return dict(zip(starts, [*starts[1:], self.directory], strict=True))


def read(source: Source) -> Archive:
    """Return the directory of a zip file, checked against the file's size and itself."""
    count, size, directory, end, comment = _end_of_directory(source)
    if directory + size != end:
        raise FormatError("zip directory is damaged: its size and place do not meet its end record")
    records = _records(source.read(directory, size), count)
    _check_extents(records, directory)
    archive = Archive(source, records, directory, directory + size, comment)
    if len(archive.folded) < len(records):
        raise TwoReadings(f"zip names {_alike(records)} differ in case only, and torch takes either for the other")
    return archive


def folded(name: str) -> str:
    """Return a name as torch compares names: ASCII letters in lower case, all others as they are."""
    return name.lower() if name.isascii() else name.translate(_LOWER)


_LOWER = {ord(letter): letter.lower() for letter in ascii_uppercase}


def _alike(records: Mapping[str, Record]) -> str:
    """Name the first two records whose names differ in case only."""
    first: dict[str, str] = {}
    other = next(name for name in records if first.setdefault(folded(name), name) != name)
    return f"{first[folded(other)]!r} and {other!r}"


def directory(source: Source) -> bytes:
    """Return the bytes of the directory, unparsed, for a first look at the names in it."""
    _, size, start, end, _ = _end_of_directory(source)
    if start + size != end:
        raise FormatError("zip directory is damaged: its size and place do not meet its end record")
    return source.read(start, size)


def _end_of_directory(source: Source) -> tuple[int, int, int, int, bytes]:
    """Return the number of records, size and offset of the directory, offset of its end records, and the comment."""
    window = min(source.size, END.size + MAX16)
    tail = source.read(source.size - window, window)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < END.size:
        raise FormatError("is truncated or damaged: the zip directory at its end is missing")
    _, disk, first_disk, here, count, size, directory, comment = END.unpack_from(tail, at)
    if at + END.size + comment != len(tail):
        raise FormatError("has bytes after the end of its zip directory", hint="it may be two files in one")
    if disk or first_disk or here != count:
        disks = {disk, first_disk} - {0, MAX16}
        if disks or here != count:
            raise FormatError("is one part of a zip archive split over several disks")
    end = source.size - window + at
    text = tail[at + END.size :]
    locator = end - LOCATOR.size
    if locator >= 0 and source.read(locator, 4) == b"PK\x06\x07":
        return (*_end64(source, locator, (count, size, directory)), text)
    if MAX32 in (size, directory) or count == MAX16:
        raise FormatError("zip directory is damaged: it needs a zip64 end record and has none")
    return count, size, directory, end, text


def _end64(source: Source, locator: int, short: tuple[int, int, int]) -> tuple[int, int, int, int]:
    _, disk, end, disks = LOCATOR.unpack(source.read(locator, LOCATOR.size))
    if disk or disks > 1 or end + END64.size > locator:
        raise FormatError("zip directory is damaged: its zip64 locator points nowhere")
    magic, size64, *_, count, total, size, directory = END64.unpack(source.read(end, END64.size))
    if magic != b"PK\x06\x06" or end + 12 + size64 != locator or count != total:
        raise FormatError("zip directory is damaged: its zip64 end record is not where it should be")
    for long, brief, unknown in zip((count, size, directory), short, (MAX16, MAX32, MAX32), strict=True):
        if brief not in (long, unknown):
            raise FormatError("zip directory is damaged: its two end records contradict each other")
    return count, size, directory, end


def _records(data: bytes, count: int) -> dict[str, Record]:
    records: dict[str, Record] = {}
    at = 0
    try:
        while at < len(data):
            fields = CENTRAL.unpack_from(data, at)
            magic, _, _, flags, method, _, _, crc, packed, nbytes, n, extra, note, _, _, mode, header = fields
            if magic != b"PK\x01\x02":
                raise FormatError(f"zip directory is damaged at entry {len(records) + 1}")
            name = _decode(data[at + 46 : at + 46 + n], flags)
            end = at + 46 + n + extra + note
            if end > len(data):
                raise FormatError(f"zip directory is cut off in entry {len(records) + 1}")
            if MAX32 in (packed, nbytes, header):
                field = data[at + 46 + n : at + 46 + n + extra]
                packed, nbytes, header = _zip64(name, field, packed, nbytes, header)
            if name in records:
                raise TwoReadings(f"zip names {name!r} twice, and readers disagree which one counts")
            if nbytes and (mode & _FOLDER or name.endswith("/")):
                raise TwoReadings(f"record {name!r} is marked as a folder and has content, which torch does not read")
            records[name] = Record(name, flags, method, crc, packed, nbytes, header)
            at = end
    except struct.error:
        raise FormatError(f"zip directory is cut off after entry {len(records)}") from None
    if "\0" in "".join(records):
        name = next(name for name in records if "\0" in name)
        raise TwoReadings(f"record {name!r} has a NUL in its name, and readers disagree where that ends")
    if len(records) != count:
        raise FormatError(f"zip directory lists {len(records):,} records and claims {count:,}")
    return records


def _zip64(name: str, extra: bytes, packed: int, nbytes: int, header: int) -> tuple[int, int, int]:
    """Return the sizes and the offset, those that do not fit 32 bits from the extra field that holds them."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            missing = [value == MAX32 for value in (nbytes, packed, header)]
            if size < 8 * sum(missing) or at + 4 + size > len(extra):
                break
            found = iter(struct.unpack_from(f"<{sum(missing)}Q", extra, at + 4))
            nbytes, packed, header = (
                next(found) if lacks else value
                for lacks, value in zip(missing, (nbytes, packed, header), strict=True)
            )
            return packed, nbytes, header
        at += 4 + size
    raise FormatError(f"record {name!r} lacks the zip64 field its sizes need")


def _decode(name: bytes, flags: int) -> str:
    """Return a record's name; bytes that are not UTF-8 keep their place as lone surrogates."""
    return name.decode("utf-8", "surrogateescape")


def _check_extents(records: Mapping[str, Record], directory: int) -> None:
    """Raise FormatError if records overlap, lie behind the directory, or are of an unsupported kind."""
    last, previous = 0, ""
    for record in sorted(records.values(), key=lambda record: record.header):
        if record.header < last:
            raise FormatError(f"records {previous!r} and {record.name!r} overlap")
        last = record.header + LOCAL.size + len(record.name) + record.packed
        previous = record.name
        if last > directory:
            raise FormatError(f"record {record.name!r} runs past the end of the data")
        if record.flags & (_ENCRYPTED | _STRONG | _PATCHED):
            raise Unsupported(f"record {record.name!r} is encrypted or patched (zip flags {record.flags:#06x})")
        if record.method not in (STORED, DEFLATED):
            raise Unsupported(f"record {record.name!r} uses zip compression method {record.method}")
        if record.method == STORED and record.packed != record.nbytes:
            raise FormatError(f"record {record.name!r} is stored, yet its two sizes differ")
        if record.nbytes > record.packed * 1032 + 64:  # deflate's best ratio
            raise FormatError(f"record {record.name!r} claims {record.nbytes:,} bytes, more than it can hold")


def _inflated(packed: Extent, record: Record) -> Iterator[Buffer]:
    """Yield the bytes of a deflated record, exactly as many as the directory says."""
    machine = zlib.decompressobj(-15)
    made = at = 0
    try:
        while not machine.eof:
            data = machine.unconsumed_tail
            if not data:
                if at >= packed.nbytes:
                    break
                data = packed.source.read(packed.offset + at, min(CHUNK, packed.nbytes - at))
                at += len(data)
            chunk = machine.decompress(data, CHUNK)
            made += len(chunk)
            if made > record.nbytes:
                break
            if chunk:
                yield chunk
    except zlib.error as error:
        raise FormatError(f"record {record.name!r} is corrupt: {error}") from None
    if made != record.nbytes or not machine.eof:
        raise FormatError(f"record {record.name!r} does not inflate to the {record.nbytes:,} bytes it claims")
