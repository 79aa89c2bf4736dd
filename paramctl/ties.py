"""Which params lie over the same bytes: not the same tensor, as tied ones are, but views that intersect."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

from paramctl.checkpoint import Checkpoint, Param

# Pairs that are looked at; an exact test counts for many. Past that, what may overlap counts as
# overlapping, so that a hostile file cannot ask for more work than its size allows.
PATIENCE = 200_000
EXACT = 100
WORK = 10_000  # steps of one exact test


def overlapping(checkpoint: Checkpoint, at: int) -> tuple[int, ...]:
    """Positions in `params` of those that share bytes with the one at `at` without being tied to it."""
    param = checkpoint.params[at]
    if not param.is_plain:
        return ()
    others = (i for i, other in enumerate(checkpoint.params) if other.storage == param.storage)
    tests = _Tests()
    return tuple(i for i in others if i != at and tests.overlap(param, checkpoint.params[i]))


def overlaps(checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...]:
    """Positions in `params` of those that overlap, directly or through others, in the file's order."""
    joined = _Joined()
    tests = _Tests()
    for views in _by_storage(checkpoint):
        _join_overlapping(checkpoint.params, views, joined, tests)
    for at, leader in checkpoint.tied_to.items():
        if leader in joined:
            joined.join(at, leader)
    return joined.groups()


def _by_storage(checkpoint: Checkpoint) -> Iterable[list[int]]:
    """For each storage with several views, one param of each, by where it begins."""
    found: dict[str, list[int]] = {}
    for i, param in enumerate(checkpoint.params):
        if param.is_plain and param.span and i not in checkpoint.tied_to:
            found.setdefault(str(param.storage), []).append(i)
    for views in found.values():
        if len(views) > 1:
            yield sorted(views, key=lambda i: checkpoint.params[i].start)


def _join_overlapping(params: Sequence[Param], views: Iterable[int], joined: _Joined, tests: _Tests) -> None:
    """Join those of `views`, which are sorted by where they begin, that overlap.

    Of the views without gaps that reach past a view's first byte, one is enough: all of them hold it.
    """
    solid: int | None = None
    gappy: list[int] = []
    for i in views:
        start = params[i].start
        if solid is not None and _end(params[solid]) <= start:
            solid = None
        gappy = [j for j in gappy if _end(params[j]) > start]
        for j in gappy if solid is None else (*gappy, solid):
            if tests.overlap(params[i], params[j]):
                joined.join(i, j)
        if not params[i].is_contiguous and tests.left > 0:
            gappy.append(i)
        elif solid is None or _end(params[i]) > _end(params[solid]):
            solid = i


def _end(param: Param) -> int:
    """Byte of its storage after its last element."""
    return param.start + param.dtype.nbytes(param.span)


class _Tests:
    """Tests whether two views intersect, exact as long as there is patience for them."""

    def __init__(self) -> None:
        self.left = PATIENCE

    def overlap(self, a: Param, b: Param) -> bool:
        """Whether two views of one storage share a byte; true where that would take too long to find out."""
        self.left -= 1
        if a.view == b.view or not a.span or not b.span or a.start >= _end(b) or b.start >= _end(a):
            return False
        if self.left < 0 or (a.is_contiguous and b.is_contiguous):
            return True
        if _interleave(a, b):
            return False
        self.left -= EXACT
        return _share(a, b)


def _interleave(a: Param, b: Param) -> bool:
    """Whether all steps of both have a common factor that keeps their elements apart, as columns are."""
    steps = [
        step * param.dtype.itemsize
        for param in (a, b)
        for n, step in zip(param.shape, param.strides, strict=True)
        if n > 1
    ]
    factor = gcd(*steps)
    apart = (a.start - b.start) % factor if factor else 0
    return b.dtype.itemsize <= apart <= factor - a.dtype.itemsize


def _share(a: Param, b: Param) -> bool:
    if a.dtype.bits % 8 or b.dtype.bits % 8:
        return True
    import numpy as np

    try:
        one, other = np.asarray(_Dummy(a)), np.asarray(_Dummy(b))
        return np.shares_memory(one, other, max_work=WORK)  # type: ignore[arg-type]  # any int, says its text
    except (np.exceptions.TooHardError, ValueError):  # too long to find out; too big for numpy
        return True


class _Dummy:
    """An array that lies where the view would, and is never looked into."""

    def __init__(self, param: Param) -> None:
        size = param.dtype.itemsize
        steps = [(n, step * size) for n, step in zip(param.shape, param.strides, strict=True) if n > 1 and step]
        self.__array_interface__ = {
            "version": 3,
            "typestr": f"|V{size}",
            "data": ((1 << 40) + param.start, True),
            "shape": tuple(n for n, _ in steps),
            "strides": tuple(step for _, step in steps),
        }


class _Joined:
    """Positions in groups that can be joined."""

    def __init__(self) -> None:
        self._above: dict[int, int] = {}

    def __contains__(self, i: int) -> bool:
        return i in self._above

    def first(self, i: int) -> int:
        """The lowest position of the group of `i`."""
        while (above := self._above.get(i, i)) != i:
            self._above[i] = self._above.get(above, above)
            i = above
        return i

    def join(self, i: int, j: int) -> None:
        low, high = sorted((self.first(i), self.first(j)))
        self._above[high] = low
        self._above.setdefault(low, low)

    def groups(self) -> tuple[tuple[int, ...], ...]:
        found: dict[int, list[int]] = {}
        for i in sorted(self._above):
            found.setdefault(self.first(i), []).append(i)
        return tuple(tuple(group) for group in found.values())
