"""The values of a param as people look at them: all of a small one, the edges of a large one.

Only what is shown is read, however large the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise, product
from math import gcd, prod
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.errors import Unsupported
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.selections.indexing import Index
from paramctl.values.arrays import read_index, storage_of
from paramctl.values.blocks import block_indices, positions
from paramctl.values.number_text import plain, words
from paramctl.values.quantized import dequantized, narrowed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

FEW = 1000  # values that are shown without leaving any out
EDGES = (3, 2, 1)  # values kept at each end of an axis: the first that keeps no more than MOST of all
MOST = 2000
NEAR = 4096  # bytes between neighbours of an axis up to which they are read together
QUICK = 64 << 20  # bytes of a storage that are checked even if fewer are shown
BLOCK = 1 << 18  # values that are read at a time where all are shown
SPREAD = 16  # blocks in which a transposed tensor is read, as long as each has
MAX_BLOCK = 1 << 24  # values at most
GAP = "..."


class Preview(NamedTuple):
    """Values of a param, or of the part of it that an index names; of a quantised one, what they stand for.

    `shape` is that of what is shown, and `blocks` reads it, anew each time, as parts in C order. `gaps`
    has for each axis how many values come before those that were left out, 0 where none were.
    `checked` says whether the storage's checksum was found right; None where the file has none.
    """

    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Array]]
    gaps: tuple[int, ...]
    checked: bool | None

    @property
    def is_whole(self) -> bool:
        return not any(self.gaps)

    @property
    def values(self) -> Array:
        """All that is shown, in one array."""
        import numpy as np

        return np.concatenate([block.reshape(-1) for block in self.blocks()]).reshape(self.shape)


def preview(checkpoint: Checkpoint, param: Param, index: Index = (), *, full: bool = False) -> Preview:
    """Return the values of `param[index]`: all, if they are few or `full`, or those at the edges.

    Values that repeat (stride 0) are never all written out. Raises FormatError where a checksum is
    wrong, UsageError where there are no values to read, Unsupported where there are too many axes.
    """
    storage = storage_of(checkpoint, param)
    view = narrowed(param, index)
    few = prod(max(n, 1) for n in view.shape) <= FEW  # an empty tensor may nest as many lists as its file claims
    everything = few or (full and not param.repeats_itself and view.numel > 0)
    checked = None if storage.crc32 is None else False
    if everything and not index and checked is False and (full or storage.nbytes <= QUICK):
        storage.check(str(param.storage))
        checked = True
    if everything and not few:
        return Preview(view.shape, partial(_blocks, checkpoint, view), (0,) * len(view.shape), checked)
    edge = 0 if everything else _edge(param, view.shape)
    kept = [_ends(n, edge) for n in view.shape]
    gaps = tuple(edge if len(ends) < n else 0 for ends, n in zip(kept, view.shape, strict=True))
    picked = _pick(checkpoint, view, kept)
    return Preview(picked.shape, lambda: (picked,), gaps, checked)


def _edge(param: Param, shape: Sequence[int]) -> int:
    """Return how many values to keep at each end of an axis."""
    for edge in EDGES:
        if prod(min(max(n, 1), 2 * edge) for n in shape) <= MOST:
            return edge
    raise Unsupported(f"{param.path or '.'} has too many axes to be shown whole", hint="show a part of it")


def _ends(n: int, edge: int) -> list[int]:
    """Positions on an axis of `n` that are kept; with `edge` 0 all are."""
    return [*range(n)] if not edge or n <= 2 * edge else [*range(edge), *range(n - edge, n)]


def _pick(checkpoint: Checkpoint, view: Param, kept: Sequence[Sequence[int]]) -> Array:
    """Return the values at every combination of the kept positions.

    Positions that lie near one another are read together. Those of elements smaller than a byte are
    read one by one, in the bytes they share.
    """
    import numpy as np

    packed = view.dtype.bits % 8 != 0
    parts = [
        _one_by_one(ends) if packed or abs(step) * view.dtype.itemsize > NEAR else _runs(ends)
        for ends, step in zip(kept, view.strides, strict=True)
    ]
    out: Array | None = None
    for block in product(*parts):
        at = tuple(place for place, _ in block)
        where = tuple(index for _, index in block)
        values = _read(checkpoint, narrowed(view, where))
        if out is None:
            out = np.empty([len(ends) for ends in kept], values.dtype)
        out[at] = values
    return _read(checkpoint, _shortened(view, kept)) if out is None else out


def _shortened(view: Param, kept: Sequence[Sequence[int]]) -> Param:
    """Return an empty view with only so many positions on each axis as are kept."""
    return view._replace(shape=tuple(map(len, kept)))


KeptPart = tuple[int | slice, int | slice]  # a place among what is kept, and in the tensor


def _one_by_one(ends: Sequence[int]) -> list[KeptPart]:
    return [*enumerate(ends)]


def _runs(ends: Sequence[int]) -> list[KeptPart]:
    """Return the kept positions as slices, one for each run of neighbours."""
    cuts = [0, *(i for i in range(1, len(ends)) if ends[i] != ends[i - 1] + 1), len(ends)]
    return [(slice(a, b), slice(ends[a], ends[a] + b - a)) for a, b in pairwise(cuts) if a < b]


def _blocks(checkpoint: Checkpoint, view: Param) -> Iterator[Array]:
    """Yield all values of a view, in C order, many at a time."""
    for where in block_indices(view.shape, _block_size(view)):
        yield _read(checkpoint, narrowed(view, where))


def _block_size(view: Param) -> int:
    """Return how many values are read at a time: more if every block reaches over all of a transposed tensor."""
    steps = [abs(step) for n, step in zip(view.shape, view.strides, strict=True) if n > 1]
    in_order = steps == sorted(steps, reverse=True)
    return BLOCK if in_order else min(max(BLOCK, view.numel // SPREAD), MAX_BLOCK)


def _read(checkpoint: Checkpoint, part: Param) -> Array:
    """Return the values of a part; those of a quantised one dequantised."""
    is_packed_one = part.dtype.bits % 8 != 0 and part.numel == 1
    stored = _packed_one(checkpoint, part) if is_packed_one else read_index(checkpoint, part, ())
    return stored if part.quantizer is None else dequantized(checkpoint, part, stored, ())


def _packed_one(checkpoint: Checkpoint, one: Param) -> Array:
    """Return a single element that is smaller than a byte."""
    together = 8 // gcd(one.dtype.bits, 8)  # elements until one begins with a byte again
    offset = one.offset - one.offset % together
    behind = storage_of(checkpoint, one).nbytes * 8 // one.dtype.bits - offset
    bytes_around = one._replace(offset=offset, shape=(min(together, behind),), strides=(1,))
    return read_index(checkpoint, bytes_around, (one.offset - offset,)).reshape(one.shape)


def nested(shown: Preview) -> object:
    """Return the values as nested lists; a complex one is [re, im], and "..." stands for what is left out."""
    import numpy as np

    values = plain(shown.values)
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], axis=-1)
    return _with_gaps(values.tolist(), shown.gaps)


def _with_gaps(items: object, gaps: tuple[int, ...]) -> object:
    if not any(gaps) or not isinstance(items, list):
        return items
    out: list[object] = [_with_gaps(item, gaps[1:]) for item in items]
    return [*out[: gaps[0]], GAP, *out[gaps[0] :]] if gaps[0] else out


def text_lines(shown: Preview, precision: int, width: int) -> Iterator[str]:
    """Yield the values in brackets as numpy prints them, columns aligned, lines up to `width` characters.

    Lines are made as they are asked for. Numbers are as wide as the widest of all that are shown, so
    that those are gone through before the first line.
    """
    shape = shown.shape
    if 0 in shape:
        yield "[]"
        return
    spelled = words(shown.blocks, precision)
    if not shape:
        yield next(spelled).strip()
        return
    for number, row in enumerate(positions(shape[:-1])):
        closed = _trailing(row, [0] * len(row))  # axes that begin anew with this row
        if number:
            yield from [""] * closed
            yield from _left_out(row, closed, shown.gaps)
        ends = _trailing(row, [n - 1 for n in shape[:-1]])
        opening = ("[" * (closed + 1)).rjust(len(shape))
        closing = "]" * (ends + 1) + ("," if ends < len(row) else "")
        # Every row keeps the room that the brackets of the last one take, so that all break alike.
        yield from _row(islice(spelled, shape[-1]), shown.gaps[-1], opening, closing, width - len(shape))


def _trailing(row: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many of the last positions of a row are those wanted."""
    n = 0
    while n < len(row) and row[-1 - n] == wanted[-1 - n]:
        n += 1
    return n


def _left_out(row: Sequence[int], closed: int, gaps: Sequence[int]) -> Iterator[str]:
    """Yield the lines that stand for what is left out before this row."""
    axis = len(row) - closed - 1
    if row[axis] == gaps[axis]:
        yield f"{' ' * (axis + 1)}{GAP},"
        yield from [""] * closed


def _row(spelled: Iterator[str], gap: int, opening: str, closing: str, width: int) -> Iterator[str]:
    """Yield one row over as many lines as it needs."""
    line = f"{opening}{next(spelled)}"
    for cell in _cells(spelled, gap):
        if len(line) + 2 + len(cell) > width:
            yield f"{line},"
            line = f"{' ' * len(opening)}{cell}"
        else:
            line += f", {cell}"
    yield f"{line}{closing}"


def _cells(spelled: Iterator[str], gap: int) -> Iterator[str]:
    """Yield the words of a row behind its first, with a gap where some are left out."""
    if gap:
        yield from islice(spelled, gap - 1)
        yield GAP
    yield from spelled
