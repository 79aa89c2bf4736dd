"""Several files as one run of bytes: an input of the fuzzer that stands for a folder."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

MAGIC = b"FOLDER\n"
_HEAD = struct.Struct("<HI")  # lengths of a name and of what the file holds
_LONGEST = 200  # bytes of a file name that every file system takes


def packed(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return these files, by name, as one input."""
    names = [(name.encode("utf-8", "surrogateescape"), data) for name, data in files]
    return MAGIC + b"".join(_HEAD.pack(len(name), len(data)) + name + data for name, data in names)


def unpacked(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an input; what is cut off ends the last of them."""
    at = len(MAGIC)
    while at + _HEAD.size <= len(data):
        name_length, length = _HEAD.unpack_from(data, at)
        at += _HEAD.size + name_length
        yield data[at - name_length : at].decode("utf-8", "surrogateescape"), data[at : at + length]
        at += length


def of(folder: Path) -> bytes:
    """Return a folder on the disk as one input."""
    return packed((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))


def lay_out(data: bytes, folder: Path, name: str) -> Path:
    """Write an input below `folder`, and return what a user would open: that folder, or the one file `name`."""
    if not data.startswith(MAGIC):
        path = folder / name
        path.write_bytes(data)
        return path
    place = folder / "set"
    place.mkdir()
    for inner, held in unpacked(data):
        if _is_plain(inner):
            (place / inner).write_bytes(held)
    return place


def _is_plain(name: str) -> bool:
    """Return whether a file of that name can lie in a folder, and nowhere else."""
    return (
        0 < len(name.encode("utf-8", "surrogateescape")) <= _LONGEST
        and name not in (".", "..")
        and not {"/", "\0"} & {*name}
    )
