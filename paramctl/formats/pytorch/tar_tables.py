"""The two tables of a torch tar archive: its storages with their values, and its tensors, each by its number.

An entry is a pickle and then plain bytes. Reference: `legacy_load` in torch/serialization.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.files.content import Extent
from paramctl.files.sources import Source
from paramctl.formats.pickles import embedded, writer
from paramctl.formats.pickles.nodes import Call, Global, Persistent
from paramctl.formats.pickles.reader import Pickle
from paramctl.formats.pytorch.old_storages import (
    StoragePart,
    Storages,
    StorageSpan,
    element,
    extent_at,
    key_text,
    part_of,
    size,
    storage_dtype,
    text,
)
from paramctl.formats.pytorch.tensor_places import Stored
from paramctl.model.dtypes import DType
from paramctl.model.shapes import MAX_DIMS, count, is_count

PROTOCOL = 2  # of new pickles
SMALL = 1 << 10  # bytes in which the pickle of an entry lies, mostly

# The node of a tensor that the object names by its number, as later files would write it. It is this very object
# that tells those nodes from one that the pickle itself has.
NUMBERED = Global("torch._utils", "_rebuild_tensor")


class Row(NamedTuple):
    """An entry of the table of tensors: where it lies, the tensor's number, its storage, and its node."""

    entry: Extent
    number: int
    storage: str
    node: Call


class Table(NamedTuple):
    """The storages, the parts of some that have keys of their own, where the list of those lies, and where all end."""

    spots: Mapping[str, StorageSpan]
    parts: Mapping[str, tuple[str, StoragePart]]
    list: Extent
    end: int


class Numbered(Storages):
    """The storages of an archive, which its tensors name by number."""

    def find(self, pid: object) -> Stored:
        """Return a storage as `Storages.find` does, by the id that a later file would have too."""
        key = reference(pid)
        if key is None:
            return super().find(pid)
        if key in self.parts:
            root, part = self.parts[key]
            return part_of(part, self.whole(root))
        return self.whole(key)

    def whole(self, key: str) -> Stored:
        spot = self.spots.get(key)
        if spot is None:
            raise FormatError(f"storage {key!r} is not in the file")
        return Stored(key, spot.dtype, spot.values.nbytes, spot.device)


def reference(node: object) -> str | None:
    """Return the key that a persistent id is: a number, often as text; None if it is no key."""
    pid = node.pid if isinstance(node, Persistent) else None
    return str(pid) if is_count(pid) else text(pid)


def named_by(key: str, dtype: DType, nbytes: int, device: str) -> Persistent:
    """Return the pickled id of a storage: its key alone; the table holds the rest."""
    return Persistent(key)


class _Reader:
    """Takes pickles and numbers from a member, one after the other."""

    def __init__(self, content: Extent) -> None:
        self.source: Source = content.source
        self.at = content.offset
        self.end = content.offset + content.nbytes

    def pickle(self) -> Pickle:
        found = embedded.read(self.source, self.at, self.end, SMALL)
        self.at += found.end
        return found

    def take(self, pattern: str) -> tuple[Any, ...]:
        nbytes = struct.calcsize(pattern)
        if nbytes > self.end - self.at:
            raise FormatError(f"table ends at byte {self.end:,}, in the middle of an entry")
        values = struct.unpack(pattern, self.source.read(self.at, nbytes))
        self.at += nbytes
        return values


def storages(content: Extent) -> Table:
    """Return the table of storages. Raises FormatError if it is damaged, or claims more than it has."""
    reader = _Reader(content)
    number = count(reader.pickle().root, "has no number of storages (member storages)")
    spots: dict[str, StorageSpan] = {}
    for _ in range(number):
        key, spot = _spot(reader)
        if key in spots:
            raise FormatError(f"storage {key!r} is twice in the table of storages")
        spots[key] = spot
    start = reader.at
    parts = dict(_parts(reader.pickle().root)) if reader.at < reader.end else {}
    for key, (root, _) in parts.items():
        if key in spots or root not in spots:
            raise FormatError(f"storage {key!r} is a part of {root!r}, and the table of storages says otherwise")
    return Table(spots, parts, Extent(reader.source, start, reader.at - start), reader.at)


def _spot(reader: _Reader) -> tuple[str, StorageSpan]:
    start = reader.at
    head = reader.pickle().root
    if not isinstance(head, tuple) or len(head) != 3:
        raise FormatError(f"a storage is not named by key, device and class (byte {start:,})")
    key = key_text(head[0])
    dtype = storage_dtype(head[2], key)
    (numel,) = reader.take("<q")
    nbytes = size(dtype, count(numel, f"storage {key!r} claims {numel:,} elements"))
    values = extent_at(reader.source, reader.at, nbytes, reader.end, key)
    reader.at += nbytes
    return key, StorageSpan(start, values, dtype, text(head[1]) or "cpu")


def _parts(root: object) -> Iterator[tuple[str, tuple[str, StoragePart]]]:
    """Yield each storage that is a part of another, by its key: the other's key, and which part."""
    what = "list of storages that are parts of others is none (member storages)"
    if not isinstance(root, list):
        raise FormatError(what)
    for view in root:
        if not isinstance(view, tuple) or len(view) != 4:
            raise FormatError(what)
        key = key_text(view[0])
        yield key, (key_text(view[1]), StoragePart(key, count(view[2], what), count(view[3], what)))


def rows(content: Extent) -> tuple[list[Row], int]:
    """Return the table of tensors, and its end. Raises FormatError if it is damaged."""
    reader = _Reader(content)
    number = count(reader.pickle().root, "has no number of tensors (member tensors)")
    found = {}
    for _ in range(number):
        row = _row(reader)
        if row.number in found:
            raise FormatError(f"tensor {row.number} is twice in the table of tensors")
        found[row.number] = row
    return list(found.values()), reader.at


def _row(reader: _Reader) -> Row:
    start = reader.at
    head = reader.pickle().root
    if not isinstance(head, tuple) or len(head) != 3:
        raise FormatError(f"a tensor is not named by number, storage and class (byte {start:,})")
    number = count(head[0], f"a tensor has no number (byte {start:,})")
    storage = key_text(head[1])
    (ndim,) = reader.take("<i4x")  # once it had 8 bytes
    if not 0 <= ndim <= MAX_DIMS:
        raise FormatError(f"tensor {number} has {ndim:,} dimensions, and torch allows {MAX_DIMS}")
    sizes, strides, (offset,) = reader.take(f"<{ndim}q"), reader.take(f"<{ndim}q"), reader.take("<q")
    node = Call(NUMBERED, (Persistent(storage), offset, sizes, strides))
    return Row(Extent(reader.source, start, reader.at - start), number, storage, node)


def pickles_in(content: Extent, *, of_storages: bool) -> Iterator[int]:
    """Yield the start of each pickle of a table, up to the first that is damaged."""
    reader = _Reader(content)
    yield reader.at
    try:
        for _ in range(count(reader.pickle().root, "has no number of entries")):
            yield reader.at
            if of_storages:
                _spot(reader)
            else:
                _row(reader)
    except FormatError:
        return
    if of_storages and reader.at < reader.end:
        yield reader.at


def table_start(entries: int) -> bytes:
    """Return the bytes that a table begins with."""
    return writer.write(entries, PROTOCOL)


def storage_start(key: object, dtype: DType, nbytes: int) -> bytes:
    """Return the bytes before the values of a storage."""
    head = (key, "cpu", Global("torch", dtype.storage))
    return writer.write(head, PROTOCOL) + struct.pack("<q", nbytes // element(dtype))


def row(number: int, key: int | str, dtype: DType, node: Call) -> bytes:
    """Return an entry of the table of tensors."""
    _, offset, sizes, strides, *_ = node.args
    head = (number, key, Global("torch", dtype.storage.replace("Storage", "Tensor")))
    ndim = len(sizes)
    return writer.write(head, PROTOCOL) + struct.pack(f"<i4x{2 * ndim}qq", ndim, *sizes, *strides, offset)
