"""A part of a file read as if it were a file of its own, and what is laid out from it put back into the whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from paramctl.errors import FormatError
from paramctl.files.content import Content, Extent
from paramctl.files.segments import Derived, Segment, Summed
from paramctl.files.sources import Source


class Section(Source):
    """`nbytes` bytes of `whole` from `start` on; what is beyond them is not there."""

    __slots__ = ("start", "whole")

    def __init__(self, whole: Source, start: int, nbytes: int) -> None:
        self._fd = -1  # the whole file has the descriptor, and closes it
        self.whole = whole
        self.start = start
        self.size = nbytes
        self.name = whole.name
        self.path = whole.path
        self.identity = whole.identity

    def fileno(self) -> int:
        return self.whole.fileno()

    def read(self, offset: int, nbytes: int) -> bytes:
        self._check(offset, nbytes)
        return self.whole.read(self.start + offset, nbytes)

    def read_into(self, offset: int, view: memoryview) -> None:
        self._check(offset, len(view))
        self.whole.read_into(self.start + offset, view)

    def check_unchanged(self, so: str = "nothing was written") -> None:
        self.whole.check_unchanged(so)

    def _check(self, offset: int, nbytes: int) -> None:
        if missing := max(offset + nbytes - self.size, 0):
            raise FormatError(f"part of the file ends at byte {self.size:,}, {missing:,} bytes early")


class Held(Source):
    """Bytes that are in memory, read as if they were a file of their own: those of a record that was inflated, say."""

    __slots__ = ("_data",)

    def __init__(self, whole: Source, data: bytes) -> None:
        self._fd = -1
        self._data = data
        self.size = len(data)
        self.name = whole.name
        self.path = whole.path
        self.identity = whole.identity

    def read(self, offset: int, nbytes: int) -> bytes:
        data = self._data[offset : offset + nbytes]
        if len(data) < nbytes:
            raise FormatError(f"part of the file ends at byte {self.size:,}, {nbytes - len(data):,} bytes early")
        return data

    def read_into(self, offset: int, view: memoryview) -> None:
        view[:] = self.read(offset, len(view))


def in_whole(content: Iterable[Content]) -> tuple[Content, ...]:
    """Return the same bytes, with the sections among them given by their places in the whole file."""
    return tuple(_placed(part) if isinstance(part, Extent) else part for part in content)


def spliced(segments: Iterable[Segment], name: str) -> Iterator[Segment]:
    """Yield segments laid out from a section as a part of a file, whose other parts may name their sums alike."""
    for segment in segments:
        match segment:
            case Extent():
                yield _placed(segment)
            case Summed(own, parts, before):
                known = before and before._replace(extent=_placed(before.extent))
                yield Summed(f"{name}/{own}", in_whole(parts), known)
            case Derived(nbytes, make):
                yield Derived(nbytes, lambda digests, make=make: make(_Own(digests, name)))  # type: ignore[misc]
            case _:
                yield segment


def _placed(extent: Extent) -> Extent:
    source = extent.source
    return Extent(source.whole, source.start + extent.offset, extent.nbytes) if isinstance(source, Section) else extent


class _Own(Mapping[str, int]):
    """The sums of one part of a file, under the names it knows them by."""

    def __init__(self, digests: Mapping[str, int], name: str) -> None:
        self._digests = digests
        self._name = name

    def __getitem__(self, own: str) -> int:
        return self._digests[f"{self._name}/{own}"]

    def __iter__(self) -> Iterator[str]:
        start = f"{self._name}/"
        return (name.removeprefix(start) for name in self._digests if name.startswith(start))

    def __len__(self) -> int:
        return sum(1 for _ in self)
