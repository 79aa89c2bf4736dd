"""A tensor in blocks: parts that follow one another in C order, each small enough to be held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from paramctl.model.selections.indexing import Index


def block_indices(shape: Sequence[int], most: int) -> Iterator[Index]:
    """Yield indices of parts that together are all of a tensor of `shape`, in C order, of at most `most` values each.

    A part is a run along one axis with everything behind it; an empty tensor has none. `most` is at least 1.
    """
    if not shape:
        yield ()
    if 0 in shape or not shape:
        return
    axis = next(i for i in range(len(shape)) if prod(shape[i + 1 :]) <= most)
    step = max(most // prod(shape[axis + 1 :]), 1)
    for row in positions(shape[:axis]):
        for start in range(0, shape[axis], step):
            yield (*row, slice(start, min(start + step, shape[axis])))


def positions(shape: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield every position in a tensor of `shape`, in C order; none is kept."""
    if not shape:
        yield ()
        return
    for row in positions(shape[:-1]):
        for i in range(shape[-1]):
            yield (*row, i)
