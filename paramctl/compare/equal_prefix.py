"""Count how many leading bytes of two checkpoints are equal; only the rest is decoded."""

from __future__ import annotations

from collections.abc import Iterator

from paramctl.errors import Unsupported
from paramctl.files.content import Content, Extent, clip, fill_buffer
from paramctl.files.sources import Source
from paramctl.model.checkpoint import Checkpoint, Param, Storage, blamed
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import bytes_under, fills_bytes
from paramctl.values.scan import FREE, OFTEN

BLOCK = 1 << 18  # bytes of each file that are compared at a time, in a processor's cache


class EqualPrefix:
    """Compare the bytes of two checkpoints in constant memory, without decoding values.

    `on_progress` is told how many of `total` bytes are done.
    """

    def __init__(
        self, a: Checkpoint, b: Checkpoint, on_progress: ProgressCallback = ignore, total: int | None = None
    ) -> None:
        self._a, self._b = a, b
        self._on_progress, self._total = on_progress, total
        self._done = 0
        self._same_start = 0  # bytes at the start of both files that are known to be equal
        self._read: dict[tuple[bool, str | None], int] = {}
        self._one, self._other = bytearray(BLOCK), bytearray(BLOCK)

    def same_files(self) -> bool:
        """Return whether both are files of the same bytes; remember the equal bytes at their start if not."""
        one, other = _only_source(self._a), _only_source(self._b)
        if one is None or other is None or one.size != other.size:
            return False
        if one.identity == other.identity:
            return True
        files = [(Extent(source, 0, source.size),) for source in (one, other)]
        self._same_start = self._equal_bytes(files[0], files[1])
        return self._same_start == one.size

    def equal_elements(self, a: Param, b: Param) -> int:
        """Return how many leading elements of two params of one shape are known to be equal by their bytes.

        Raises Unsupported if too many params share a storage, FormatError if equal bytes have two checksums.
        """
        if not a.numel:
            return 0
        one, other = self._a.storages[str(a.storage)], self._b.storages[str(b.storage)]
        if not self._same_meaning(a, b) or (a.dtype.itemsize > 1 and one.byteorder != other.byteorder):
            return 0
        in_line = all(param.is_contiguous and fills_bytes(param) for param in (a, b))
        if not in_line and _element_layout(a) != _element_layout(b):
            return 0
        until = self._equal_bytes(self._bytes_of(True, a, one), self._bytes_of(False, b, other))
        if until == bytes_under(a)[1]:
            self._check_sums((self._a, a, one), (self._b, b, other))
            return a.numel
        if not in_line or a.quantizer is not None:
            return 0
        return until * 8 // a.dtype.bits // 8 * 8  # a multiple of 8 begins with a byte in every dtype

    def advance(self, nbytes: int) -> None:
        """Report that `nbytes` more bytes are done."""
        self._done += nbytes
        self._on_progress("comparing", self._done, self._total)

    def _same_meaning(self, a: Param, b: Param) -> bool:
        """Return whether equal bytes of the two params mean equal values."""
        if a.dtype != b.dtype or a.flags != b.flags or a.quantizer != b.quantizer:
            return False
        parts = zip(a.components, b.components, strict=False)  # the scales of channels
        return len(a.components) == len(b.components) and all(
            one.shape == other.shape and self.equal_elements(one, other) == one.numel for one, other in parts
        )

    def _bytes_of(self, first: bool, param: Param, storage: Storage) -> tuple[Content, ...]:
        """Return the bytes that a view touches. Raises Unsupported if its storage was read too often."""
        start, nbytes = bytes_under(param)
        key = first, param.storage
        self._read[key] = self._read.get(key, 0) + nbytes
        if self._read[key] > OFTEN * storage.nbytes + FREE:
            with blamed(self._a if first else self._b):
                what = f"{param.path or '.'} lies in a storage that was read {OFTEN} times over for others"
                raise Unsupported(what, hint="compare fewer with --layer")
        return clip(storage.content, start, nbytes)

    def _equal_bytes(self, one: tuple[Content, ...], other: tuple[Content, ...]) -> int:
        """Return how many leading bytes are equal, in whole blocks."""
        until = self._already_compared(one, other)
        if until:
            one, other = (clip(content, until, _nbytes(content) - until) for content in (one, other))
        pairs = zip(self._blocks(self._a, one, self._one), self._blocks(self._b, other, self._other), strict=True)
        for x, y in pairs:
            # Only whole bytearrays are compared at memory's speed, not views of them.
            full = len(x) == BLOCK
            if not (self._one == self._other if full else bytes(x) == bytes(y)):
                return until
            until += len(x)
            self.advance(len(x))
        return until

    def _already_compared(self, one: tuple[Content, ...], other: tuple[Content, ...]) -> int:
        """Return how many leading bytes the comparison of the whole files found equal."""
        match one, other:
            case (Extent(_, start, nbytes),), (Extent(_, same, _),) if start == same:
                return min(max(self._same_start - start, 0), nbytes)
        return 0

    @staticmethod
    def _blocks(checkpoint: Checkpoint, content: tuple[Content, ...], buffer: bytearray) -> Iterator[memoryview]:
        """Yield the content, a block at a time."""
        with blamed(checkpoint):
            yield from fill_buffer(content, memoryview(buffer))

    @staticmethod
    def _check_sums(*sides: tuple[Checkpoint, Param, Storage]) -> None:
        """Raise FormatError if equal storages have two checksums: then one of them is corrupt."""
        sums = {storage.crc32 for _, param, storage in sides if param.nbytes == storage.nbytes}
        if len(sums - {None}) > 1:
            for checkpoint, param, storage in sides:
                with blamed(checkpoint):
                    storage.check(str(param.storage))


def _element_layout(param: Param) -> tuple[object, ...]:
    """Return how the elements of a view are laid out, wherever it begins."""
    return param.strides, param.offset * param.dtype.bits % 8


def _only_source(checkpoint: Checkpoint) -> Source | None:
    """Return the file of a checkpoint if it is one file without edits, else None."""
    return checkpoint.sources[0] if len(checkpoint.sources) == 1 and not checkpoint.edited else None


def _nbytes(content: tuple[Content, ...]) -> int:
    """Return the number of bytes of a content."""
    return sum(part.nbytes for part in content)
