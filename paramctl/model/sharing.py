"""Which params lie over the same bytes: not the same tensor, as tied ones are, but views that intersect."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from math import gcd

from paramctl.model.checkpoint import Checkpoint, Param

# Pairs that are looked at; an exact test counts for many. Past that, what may overlap counts as
# overlapping, so that a hostile file cannot ask for more work than its size allows.
PATIENCE = 200_000
EXACT = 100
WORK = 10_000  # steps of one exact test


def overlapping(checkpoint: Checkpoint, at: int) -> tuple[int, ...]:
    """Positions in `params` of those that share bytes with the one at `at` without being tied to it."""
    if not checkpoint.params[at].is_plain:
        return ()
    return checkpoint.derived(_everything).overlapping(at, _Tests())


def overlaps(checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...]:
    """Positions in `params` of those that overlap, directly or through others, in the file's order."""
    return checkpoint.derived(_overlaps)


class Outside:
    """The params outside a choice that share bytes with it: of a group of ties, all or none are chosen."""

    def __init__(self, checkpoint: Checkpoint, indices: Iterable[int], chosen: set[int]) -> None:
        group_of = checkpoint.derived(_group_of)
        groups = {group[0]: group for i in indices if (group := group_of.get(i))}
        torn = [group for group in groups.values() if not chosen.issuperset(group)]
        self._others = _Ranges(checkpoint.params, [i for group in torn for i in group if i not in chosen])
        self._tests = _Tests()

    def overlapping(self, at: int) -> tuple[int, ...]:
        """Positions in `params` of those beyond the chosen that share bytes with the one at `at`."""
        return self._others.overlapping(at, self._tests)


def _everything(checkpoint: Checkpoint) -> _Ranges:
    return _Ranges(checkpoint.params, range(len(checkpoint.params)))


def _group_of(checkpoint: Checkpoint) -> dict[int, tuple[int, ...]]:
    """Position in `params` → all that overlap it, directly or through others."""
    return {i: group for group in overlaps(checkpoint) for i in group}


def _overlaps(checkpoint: Checkpoint) -> tuple[tuple[int, ...], ...]:
    joined = _Joined()
    tests = _Tests()
    for views in _by_storage(checkpoint):
        _join_overlapping(checkpoint.params, views, joined, tests)
    for at, leader in checkpoint.tied_to.items():
        if leader in joined:
            joined.join(at, leader)
    return joined.groups()


def _by_storage(checkpoint: Checkpoint) -> Iterable[list[int]]:
    """Return, for each storage with several views, one param of each, by its first byte."""
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
        if tests.left <= 0:  # from here on the one that reaches furthest stands for all
            reaching = [*gappy, i] if solid is None else [*gappy, i, solid]
            for j in reaching:
                joined.join(i, j)
            solid, gappy = max(reaching, key=lambda j: _end(params[j])), []
        elif not params[i].is_contiguous:
            gappy.append(i)
        elif solid is None or _end(params[i]) > _end(params[solid]):
            solid = i


def _end(param: Param) -> int:
    """Byte of its storage after its last element."""
    return param.start + param.dtype.nbytes(param.span)


class _Ranges:
    """The places of some params: the storages one after the other, in each the params by their first byte.

    Above them stands a binary tree of where those below each node end at last, so that finding the
    ones that touch a range takes no look at the others.
    """

    def __init__(self, params: Sequence[Param], positions: Iterable[int]) -> None:
        self._params = params
        found = [i for i in positions if params[i].storage is not None and params[i].span]
        lengths: dict[str | None, int] = {}
        for i in found:
            lengths[params[i].storage] = max(lengths.get(params[i].storage, 0), _end(params[i]))
        self._bounds = dict(zip(lengths, pairwise(accumulate(lengths.values(), initial=0)), strict=True))
        ranges = sorted((*self._range(i), i) for i in found)
        self._order = [i for _, _, i in ranges]
        self._firsts = [first for first, _, _ in ranges]
        self._leaves = 1 << max(len(found) - 1, 0).bit_length()
        self._last = [0] * (2 * self._leaves)
        self._last[self._leaves : self._leaves + len(found)] = [last for _, last, _ in ranges]
        for node in reversed(range(1, self._leaves)):
            self._last[node] = max(self._last[2 * node], self._last[2 * node + 1])

    def overlapping(self, at: int, tests: _Tests) -> tuple[int, ...]:
        """Positions of those that share bytes with the param at `at` and are not tied to it."""
        if self._params[at].storage not in self._bounds:
            return ()
        touching = sorted(self._touching(*self._range(at)))
        return tuple(i for i in touching if i != at and tests.overlap(self._params[at], self._params[i]))

    def _range(self, at: int) -> tuple[int, int]:
        """Return the first byte and the end of a param, as far as its storage is known here."""
        param = self._params[at]
        base, end = self._bounds[param.storage]
        return base + param.start, min(base + _end(param), end)

    def _touching(self, first: int, last: int) -> Iterator[int]:
        """Positions of those with a byte from `first` up to `last`."""
        stop = bisect_left(self._firsts, last)
        waiting = [(1, 0, self._leaves)]  # a node and the leaves below it
        while waiting:
            node, low, high = waiting.pop()
            if self._last[node] <= first or low >= stop:
                continue
            if node >= self._leaves:
                yield self._order[low]
                continue
            middle = (low + high) // 2
            waiting += ((2 * node, low, middle), (2 * node + 1, middle, high))


class _Tests:
    """Tests whether two views intersect, exact as long as there is patience for them."""

    def __init__(self) -> None:
        self.left = PATIENCE

    def overlap(self, a: Param, b: Param) -> bool:
        """Return whether two views of one storage share a byte; True if that would take too long to find out."""
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
    """Return whether all steps of both have a common factor that keeps their elements apart, as columns are."""
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
        """Return the lowest position of the group of `i`."""
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


pass


def group_of(checkpoint: Checkpoint, index: int) -> tuple[int, ...]:
    """Positions of all params tied to the one at `index`, itself included, the first one first."""
    leader = checkpoint.tied_to.get(index, index)
    return checkpoint.groups_by_first.get(leader, (leader,))


def also_tied(checkpoint: Checkpoint, index: int) -> tuple[str, ...]:
    """Paths of the others that are tied to a param."""
    return tuple(checkpoint.labels[i] for i in group_of(checkpoint, index) if i != index)


def with_tied(checkpoint: Checkpoint, indices: Iterable[int]) -> set[int]:
    """Positions of params and of all that are tied to them."""
    tied, groups = checkpoint.tied_to, checkpoint.groups_by_first
    leaders = {tied.get(i, i) for i in indices}
    return {i for leader in leaders for i in groups.get(leader, (leader,))}
