"""The storages of torch's old files, one behind the other, and the ids by which their pickles name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.files.content import Content, Extent
from paramctl.files.segments import Segment
from paramctl.files.sources import Source
from paramctl.formats.pickles.nodes import Global, Persistent, PyString
from paramctl.formats.pytorch.tensor_places import Stored
from paramctl.model.checkpoint import Storage
from paramctl.model.dtypes import BY_STORAGE, DType
from paramctl.model.shapes import count

PREFIX = 8  # bytes before a storage's values: its number of elements


class StoragePart(NamedTuple):
    """A part of a storage that has a key of its own; offset and numel count elements."""

    key: str
    offset: int
    numel: int


class Named(NamedTuple):
    """The facts that a persistent id gives of a storage."""

    key: str
    dtype: DType | None  # None: untyped, its elements are bytes
    numel: int
    device: str
    part: StoragePart | None

    @property
    def nbytes(self) -> int:
        return size(self.dtype, self.numel)


class StorageSpan(NamedTuple):
    """The place of a storage: its values, and all that belongs to it from `start` on."""

    start: int
    values: Extent
    dtype: DType | None
    device: str = "cpu"


class Storages(Mapping[str, Storage]):
    """The storages of a file by their keys, each made when it is asked for; `parts` are views of others."""

    def __init__(self, spots: Mapping[str, StorageSpan], parts: Mapping[str, tuple[str, StoragePart]]) -> None:
        self.spots = spots
        self.parts = parts

    def __getitem__(self, key: str) -> Storage:
        values = self.spots[key].values
        return Storage((values,), values.nbytes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.spots)

    def __len__(self) -> int:
        return len(self.spots)

    def open(self, key: str) -> Storage:
        """Return the storage with that key."""
        return self[key]

    def find(self, pid: object) -> Stored:
        """Return the storage, or the part of one, that a persistent id names. Raises FormatError if it is not there."""
        named = storage_named(pid)
        spot = self.spots.get(named.key)
        if spot is None:
            raise FormatError(f"storage {named.key!r} is not in the file")
        if named.nbytes != spot.values.nbytes:
            raise FormatError(contradiction(named, spot.values.nbytes))
        if named.part is None:
            return Stored(named.key, named.dtype, named.nbytes, named.device)
        return part_of(named.part, Stored(named.key, named.dtype, named.nbytes, named.device))


def part_of(part: StoragePart, whole: Stored) -> Stored:
    """Return a part of a storage as tensors name it. Raises FormatError if it does not lie in the storage."""
    start, nbytes = size(whole.dtype, part.offset), size(whole.dtype, part.numel)
    if start + nbytes > whole.nbytes:
        what = f"storage {part.key!r} is a view of bytes {start:,} to {start + nbytes:,}"
        raise FormatError(f"{what} of storage {whole.key!r}, which has {whole.nbytes:,}")
    return whole._replace(nbytes=nbytes, start=start)


def storage_named(node: object) -> Named:
    """Return the facts that a storage's persistent id gives. Raises FormatError if it is no such id."""
    pid = node.pid if isinstance(node, Persistent) else node
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or text(pid[0]) != "storage":
        raise FormatError("a tensor names no storage: its persistent id is not ('storage', …)")
    key = key_text(pid[2])
    dtype = storage_dtype(pid[1], key)
    numel = count(pid[4], f"storage {key!r} has a number of elements that is none")
    view = pid[5] if len(pid) == 6 else None
    return Named(key, dtype, numel, text(pid[3]) or "cpu", None if view is None else _part(view, key))


def _part(view: object, key: str) -> StoragePart:
    what = f"storage {key!r} has a view that is not key, offset and size"
    if not isinstance(view, tuple) or len(view) != 3:
        raise FormatError(what)
    return StoragePart(key_text(view[0]), count(view[1], what), count(view[2], what))


def storage_dtype(word: object, key: str) -> DType | None:
    """Return the dtype that a storage's class stands for; None for one of bytes. Raises FormatError if unknown."""
    if not isinstance(word, Global):
        raise FormatError(f"storage {key!r} has a class that is not named by a global")
    dtype = BY_STORAGE.get(word.name)
    if dtype is None and word.name not in ("UntypedStorage", "_UntypedStorage"):
        raise FormatError(f"storage {key!r} is of the unknown class {word.full}")
    return dtype


def key_text(node: object) -> str:
    """Return a storage's key as text, whatever type it has. Raises FormatError if it is no key."""
    found = text(node)
    if found is not None:
        return found
    if isinstance(node, bytes):
        return node.decode("latin-1")
    return str(count(node, "a storage has a key that is neither text nor a number"))


def text(node: object) -> str | None:
    """Return the text of a node, or None if it is no text."""
    return node.text if isinstance(node, PyString) else node if isinstance(node, str) else None


def element(dtype: DType | None) -> int:
    """Bytes that torch counts as one element of a storage: of smaller ones it counts the bytes."""
    return max(dtype.itemsize, 1) if dtype else 1


def size(dtype: DType | None, numel: int) -> int:
    """Bytes of so many elements of a storage."""
    return numel * element(dtype)


def contradiction(named: Named, nbytes: int) -> str:
    """Return the error text for a storage that has another size than its id says."""
    return f"storage {named.key!r} has {nbytes:,} bytes, and its id says {named.nbytes:,} ({named.numel:,} elements)"


def with_changes(whole: Extent, changes: Iterable[tuple[Extent, Iterable[Content]]]) -> Iterator[Segment]:
    """`whole` with some extents of it, in their order, replaced by other content of the same size."""
    at, end = whole.offset, whole.offset + whole.nbytes
    for extent, content in changes:
        yield Extent(whole.source, at, extent.offset - at)
        yield from content
        at = extent.offset + extent.nbytes
    yield Extent(whole.source, at, end - at)


def extent_at(source: Source, start: int, nbytes: int, end: int, key: str) -> Extent:
    """Return the place of a storage's values. Raises FormatError if they do not end before `end`."""
    if nbytes > end - start:
        left = max(end - start, 0)
        raise FormatError(f"storage {key!r} claims {nbytes:,} bytes from byte {start:,} on, and {left:,} are left")
    return Extent(source, start, nbytes)
