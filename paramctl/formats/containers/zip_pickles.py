"""The pickles of a zip archive as torch finds them, however damaged the archive is; nothing is listed from these.

`zips.read` refuses what readers disagree about. Whether loading the file is harmless is asked all the same, and the
answer must be about the bytes that torch would run: miniz takes the last end record, the offsets in it as they are,
every entry up to the first that is none, and no checksum. What is refused there is read here, and judged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.files.sources import Source
from paramctl.formats.containers.zips import CENTRAL, DEFLATED, END, END64, LOCAL, LOCATOR, MAGIC, MAX16, MAX32, folded

MAX_PICKLE = 256 << 20  # bytes of a pickle, inflated
MAX_RATIO = 64  # inflated bytes for one in the file, so that work is bounded by the file's size
FREE = 64 << 10  # inflated bytes beyond that
SUFFIX = ".pkl"


class Entry(NamedTuple):
    """A record as the directory names it; `header` is where its local header is said to be."""

    name: str
    method: int
    packed: int
    nbytes: int
    header: int


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield each pickle of an archive by the name of its record, in any case of letters, and what reads it.

    Records that share their bytes are read once. Raises FormatError where there is no directory.
    """
    left, seen = source.size, set[Entry]()
    for entry in entries(source):
        place = entry._replace(name="")
        if not folded(entry.name.partition("\0")[0]).endswith(SUFFIX) and not folded(entry.name).endswith(SUFFIX):
            continue
        if place in seen:
            continue
        seen.add(place)
        left -= entry.packed
        if left < 0:
            raise FormatError(f"record {entry.name!r} lies over the bytes of others")
        yield entry.name, partial(read, source, entry)


def entries(source: Source) -> Iterator[Entry]:
    """Yield the entries of the directory, as far as they are some, each name as often as it is there."""
    start, nbytes = _directory(source)
    data = source.read(start, max(min(nbytes, source.size - start), 0)) if start < source.size else b""
    at = 0
    while at + CENTRAL.size <= len(data):
        magic, _, _, _, method, _, _, _, packed, size, n, extra, note, _, _, _, header = CENTRAL.unpack_from(data, at)
        if magic != b"PK\x01\x02":
            return
        name = data[at + CENTRAL.size : at + CENTRAL.size + n]
        field = data[at + CENTRAL.size + n : at + CENTRAL.size + n + extra]
        if MAX32 in (packed, size, header):
            packed, size, header = _long(field, packed, size, header)
        yield Entry(name.decode("utf-8", "surrogateescape"), method, packed, size, header)
        at += CENTRAL.size + n + extra + note


def read(source: Source, entry: Entry) -> bytes:
    """Return the bytes of a record, of a damaged one those up to the damage. Raises FormatError for too many."""
    limit = min(MAX_PICKLE, MAX_RATIO * entry.packed + FREE)
    if entry.nbytes > limit:
        raise FormatError(f"record {entry.name!r} takes {entry.nbytes:,} bytes, over the limit of {limit:,}")
    with suppress(FormatError, OverflowError):
        magic, *_, name, extra = LOCAL.unpack(source.read(entry.header, LOCAL.size))
        start = entry.header + LOCAL.size + name + extra
        if magic == MAGIC and start < source.size:
            data = source.read(start, min(entry.packed, source.size - start))
            return (_inflated(data, limit) if entry.method == DEFLATED else data)[: entry.nbytes]
    raise FormatError(f"record {entry.name!r} has no local header where the directory says")


def _inflated(data: bytes, limit: int) -> bytes:
    """Return what deflated bytes hold, at most `limit` bytes, up to what is damaged."""
    try:
        return zlib.decompressobj(-15).decompress(data, limit)
    except zlib.error:
        pass
    machine, made = zlib.decompressobj(-15), bytearray()
    with suppress(zlib.error):
        for i in range(len(data)):  # byte by byte: what one call makes before it fails is lost
            made += machine.decompress(data[i : i + 1], limit - len(made)) if len(made) < limit else b""
    return bytes(made)


def _directory(source: Source) -> tuple[int, int]:
    """Return where the last end record says that the directory lies, and its size."""
    window = min(source.size, END.size + MAX16)
    tail = source.read(source.size - window, window)
    at = tail.rfind(b"PK\x05\x06", 0, max(len(tail) - END.size + 4, 0))
    if at < 0:
        raise FormatError("is truncated or damaged: the zip directory at its end is missing")
    *_, size, start, _ = END.unpack_from(tail, at)
    locator = source.size - window + at - LOCATOR.size
    with suppress(FormatError, OverflowError):
        magic, _, long, _ = LOCATOR.unpack(source.read(max(locator, 0), LOCATOR.size))
        if magic == b"PK\x06\x07" and long + END64.size <= source.size:
            magic, *_, size64, start64 = END64.unpack(source.read(long, END64.size))
            if magic == b"PK\x06\x06":
                return start64, size64
    return start, size


def _long(extra: bytes, packed: int, nbytes: int, header: int) -> tuple[int, int, int]:
    """Return sizes and place of an entry with those of its zip64 field, as far as there is one."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + size]
            numbers = (value for (value,) in struct.iter_unpack("<Q", field[: len(field) // 8 * 8]))
            nbytes, packed, header = (
                next(numbers, value) if value == MAX32 else value for value in (nbytes, packed, header)
            )
            break
        at += 4 + size
    return packed, nbytes, header
