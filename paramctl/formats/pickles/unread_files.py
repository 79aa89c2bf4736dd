"""Pickles in files of formats that are not read: bare ones, and the Python objects in NumPy's arrays.

References: numpy/lib/format.py, and `pickle.load`, which reads what a file begins with and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from paramctl.errors import FormatError, Unsupported
from paramctl.files.content import chunks
from paramctl.files.sources import Source
from paramctl.formats.containers.zips import Archive, Record
from paramctl.formats.pickles import embedded

ARRAY = b"\x93NUMPY"
PICKLE = b"\x80"  # of protocol 2 or later
MAX_HEADER = 1 << 16  # bytes of an array's header that are looked at
BARE = 5  # pickles that may follow one another: torch's old format has as many
MAX_PICKLES = 64 << 20  # bytes of all of them


def code(source: Source) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles that a file begins with, each with its name and a reader; of an array, that of its objects."""
    start = objects_at(source.read(0, min(source.size, MAX_HEADER)))
    if start is not None:
        end = min(source.size, start + MAX_PICKLES)
        yield from embedded.code(source, min(start, end), end, "objects")
        return
    start, end = 0, min(source.size, MAX_PICKLES)
    for number in range(BARE):
        try:
            following = start + embedded.read(source, start, end).end
        except FormatError:
            following = end
        yield f"pickle {number + 1}", partial(source.read, start, following - start)
        start = following
        if start == end:
            return


def are_surely_in(source: Source) -> bool:
    """Return whether a file's first bytes are those of a pickle, or of an array, and of little else."""
    return source.size > 0 and source.read(0, min(source.size, len(ARRAY))).startswith((PICKLE, ARRAY))


def in_archive(archive: Archive, limit: Callable[[Record], int]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickles in the arrays of an .npz archive, each with the name of its record."""
    for name, record in archive.records.items():
        with suppress(FormatError, Unsupported):  # numpy cannot load it either
            start = objects_at(_head(archive, record))
            if start is not None:
                yield name, partial(_behind, archive, record, limit(record), start)


def objects_at(head: bytes) -> int | None:
    """Return where the pickle of an array's objects begins, from the array's first bytes; None if it has none."""
    if len(head) < 12 or not head.startswith(ARRAY):
        return None
    width = "H" if head[6] == 1 else "I"
    (length,) = struct.unpack_from(f"<{width}", head, 8)
    start: int = 8 + struct.calcsize(width) + length
    return start if start > len(head) or b"O" in head[:start] else None


def _head(archive: Archive, record: Record) -> bytes:
    """Return the first bytes of a record, as many as are looked at; no more of it is inflated."""
    return bytes(next(chunks((archive.content(record),)), b"")[:MAX_HEADER])


def _behind(archive: Archive, record: Record, limit: int, start: int) -> bytes:
    return archive.read(record, limit)[start:]
