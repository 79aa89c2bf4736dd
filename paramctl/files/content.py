"""Describe bytes without holding them: literal, computed when needed, or an extent of a source file.

Contents are clipped and patched as descriptions; bytes are read or computed when they are asked for.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

from paramctl.errors import FileError, FormatError
from paramctl.files import checksums
from paramctl.files.sources import Source, Spool

Buffer = bytes | bytearray | memoryview
CHUNK = 1 << 20  # bytes read at a time; larger chunks gain nothing and cost memory


class Literal(NamedTuple):
    """Bytes known already: headers, small rewritten records."""

    data: bytes

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return len(self.data)


class Extent(NamedTuple):
    """`nbytes` bytes of `source` from `offset` on, unchanged."""

    source: Source
    offset: int
    nbytes: int


class Computed(NamedTuple):
    """`nbytes` bytes that `chunks()` makes when they are needed; every call makes the same bytes.

    `reads` is the number of bytes read from files to make them, as far as it is known in advance.
    """

    nbytes: int
    chunks: Callable[[], Iterable[Buffer]]
    reads: int = 0


class Keeper:
    """Makes the bytes of a `Computed` segment, and keeps them in a temporary file if they are asked for again.

    So many parts of what can only be made from its first byte on cost no more than two passes over it. Where
    making them fails, it fails again at once.
    """

    def __init__(self, nbytes: int, make: Callable[[], Iterable[Buffer]], what: str) -> None:
        self._nbytes = nbytes
        self._make = make
        self._what = what
        self._was_asked = False
        self._kept: Extent | None = None
        self._error: FormatError | None = None

    def __call__(self) -> Iterable[Buffer]:
        """Return all of the bytes."""
        return self.part(0, self._nbytes)

    def part(self, start: int, nbytes: int) -> Iterator[Buffer]:
        """Yield the `nbytes` bytes from `start` on."""
        if self._error is not None:
            raise FormatError(self._error.what, hint=self._error.hint)
        again, self._was_asked = self._was_asked, True
        kept = self._kept_if_there_is_room() if again else None
        if kept is None:
            yield from _slice_chunks(self._noted(), start, nbytes)
            return
        yield from chunks((kept._replace(offset=kept.offset + start, nbytes=nbytes),))

    def kept(self) -> Extent:
        """Return all of the bytes in a file. Raises FileError if there is no room for them."""
        if self._kept is None:
            spool = Spool(self._what)
            for chunk in self._noted():
                spool.keep(memoryview(chunk))
            self._kept = Extent(spool.source, 0, self._nbytes)
        return self._kept

    def _kept_if_there_is_room(self) -> Extent | None:
        try:
            return self.kept()
        except FormatError:
            raise
        except FileError:
            return None

    def _noted(self) -> Iterator[Buffer]:
        """Yield the bytes as they are made; an error is noted."""
        try:
            yield from self._make()
        except FormatError as error:
            self._error = error
            raise


class Patch(NamedTuple):
    """A change of the `nbytes` bytes from `start` on; `put` applies it to a buffer that holds them.

    If the change overwrites all of them, `make` returns the new bytes, and the old ones need not be read.
    `reads` is the number of bytes read from files to make the change.
    """

    start: int
    nbytes: int
    put: Callable[[memoryview], None]
    make: Callable[[], Buffer] | None = None
    reads: int = 0


Content = Literal | Extent | Computed


def chunks(content: Iterable[Content]) -> Iterator[Buffer]:
    """Yield the bytes of `content`, at most CHUNK bytes of a source file at a time."""
    for part in content:
        match part:
            case Literal(data):
                yield data
            case Extent(source, offset, nbytes):
                for start in range(0, nbytes, CHUNK):
                    yield source.read(offset + start, min(CHUNK, nbytes - start))
            case Computed():
                yield from part.chunks()


def clip(content: Iterable[Content], start: int, nbytes: int) -> tuple[Content, ...]:
    """Return the parts of `content` that hold its bytes `start` to `start + nbytes`; nothing is read."""
    return _parts(content).clip(start, start + nbytes)


def patched(content: Iterable[Content], patches: Iterable[Patch]) -> tuple[Content, ...]:
    """Return `content` with all `patches` applied in order; patches that share bytes become one computed part."""
    parts = _parts(content)
    out: list[Content] = []
    at = 0
    for start, end, group in _overlapping_groups(patches):
        out += parts.clip(at, start)
        out.append(_patched(parts.clip(start, end), start, end - start, group))
        at = end
    return _Parts((*out, *parts.clip(at, parts.starts[-1])))


def read(content: Iterable[Content], start: int, nbytes: int) -> bytearray:
    """Return bytes `start` to `start + nbytes` of `content`."""
    out = bytearray(nbytes)
    at = 0
    view = memoryview(out)
    for part in clip(content, start, nbytes):
        if isinstance(part, Extent):
            part.source.read_into(part.offset, view[at : at + part.nbytes])
            at += part.nbytes
            continue
        for chunk in chunks((part,)):
            view[at : at + len(chunk)] = chunk
            at += len(chunk)
    return out


def fill_buffer(content: Iterable[Content], buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of `content` in `buffer`: full each time except the last, and overwritten by the next step."""
    at, size = 0, len(buffer)
    for part in content:
        for piece in (part,) if isinstance(part, Extent) else chunks((part,)):
            done, nbytes = 0, piece.nbytes if isinstance(piece, Extent) else len(piece)
            while done < nbytes:
                n = min(nbytes - done, size - at)
                if isinstance(piece, Extent):
                    piece.source.read_into(piece.offset + done, buffer[at : at + n])
                else:
                    buffer[at : at + n] = memoryview(piece)[done : done + n]
                done, at = done + n, at + n
                if at == size:
                    yield buffer
                    at = 0
    if at:
        yield buffer[:at]


def crc32(content: Iterable[Content]) -> int:
    """Return the CRC-32 of all bytes of `content`, in constant memory."""
    value = 0
    for chunk in chunks(content):
        value = checksums.crc32(chunk, value)
    return value


class _Parts(tuple[Content, ...]):
    """Parts in sequence, found by their start by binary search."""

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The start of each part, and the end of the last one."""
        return (0, *accumulate(part.nbytes for part in self))

    def clip(self, start: int, end: int) -> tuple[Content, ...]:
        """Return the parts that hold the bytes from `start` up to `end`."""
        out: list[Content] = []
        for i in range(max(bisect_right(self.starts, start) - 1, 0), len(self)):
            first, last = max(start, self.starts[i]), min(end, self.starts[i + 1])
            if self.starts[i] >= end:
                break
            if first < last:
                out.append(_clip_part(self[i], first - self.starts[i], last - first))
        return tuple(out)


def _parts(content: Iterable[Content]) -> _Parts:
    """Return `content` as `_Parts`, so that a part can be found by its start."""
    return content if isinstance(content, _Parts) else _Parts(content)


def _overlapping_groups(patches: Iterable[Patch]) -> Iterator[tuple[int, int, list[Patch]]]:
    """Yield the start, the end and the patches of each group that shares bytes, directly or through other patches."""
    group: list[tuple[int, Patch]] = []
    start = end = 0
    for order, patch in sorted(enumerate(patches), key=lambda pair: pair[1].start):
        if not patch.nbytes:
            continue
        if group and patch.start >= end:
            yield start, end, _by_request(group)
            group = []
        start = start if group else patch.start
        end = max(end, patch.start + patch.nbytes)
        group.append((order, patch))
    if group:
        yield start, end, _by_request(group)


def _by_request(group: list[tuple[int, Patch]]) -> list[Patch]:
    """Return the patches in the order in which they were requested."""
    return [patch for _, patch in sorted(group, key=itemgetter(0))]


def _patched(content: tuple[Content, ...], start: int, nbytes: int, patches: list[Patch]) -> Computed:
    """Return the bytes of `content`, which starts at `start`, with patches that cover it from end to end."""
    whole = patches[0].make if len(patches) == 1 else None
    reads = sum(patch.reads for patch in patches)
    if whole is not None:
        return Computed(nbytes, lambda: (whole(),), reads)

    def make() -> Iterator[Buffer]:
        made = read(content, 0, nbytes)
        for patch in patches:
            patch.put(memoryview(made)[patch.start - start :][: patch.nbytes])
        yield made

    return Computed(nbytes, make, nbytes + reads)


def _clip_part(part: Content, start: int, nbytes: int) -> Content:
    """Return `nbytes` bytes of one part, from its byte `start` on."""
    if nbytes == part.nbytes:
        return part
    match part:
        case Literal(data):
            return Literal(data[start : start + nbytes])
        case Extent(source, offset, _):
            return Extent(source, offset + start, nbytes)
        case Computed(_, make, reads):
            if isinstance(make, Keeper):
                return Computed(nbytes, lambda: make.part(start, nbytes), reads)
            return Computed(nbytes, lambda: _slice_chunks(make(), start, nbytes), reads)


def _slice_chunks(made: Iterable[Buffer], start: int, nbytes: int) -> Iterator[Buffer]:
    """Yield `nbytes` bytes of a sequence of chunks, from its byte `start` on."""
    for chunk in made:
        if nbytes <= 0:
            return
        if start < len(chunk):
            piece = memoryview(chunk)[start : start + nbytes]
            yield piece
            nbytes -= len(piece)
        start = max(start - len(chunk), 0)
    if nbytes > 0:
        raise FormatError("computed bytes ended early")
