"""Which params of a model an optimizer's numbers stand for, as far as that is certain.

An optimizer knows its params by number: group after group, and within a group in the order in which it
was given them. That order is taken to be the model's. What is not given is which params are in
a group at all: some may be frozen, or in another group. Shapes decide, and only where there is one way to
read them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]
Key = tuple[int, int]  # a group, and a place in it

_FACTORS = frozenset({"row", "col"})  # in the names of what Adafactor remembers of rows and columns
SCALARS = ((), (1,))  # shapes of a count of steps, whatever it counts the steps of
WORK = 4_000_000  # comparisons after which nothing is called certain


class Signature(NamedTuple):
    """The shapes of what is remembered of one param, but for scalars; factors are those of Adafactor's kind."""

    own: frozenset[Shape] = frozenset()
    factors: frozenset[Shape] = frozenset()


def certain(groups: Sequence[Sequence[Signature]], shapes: Sequence[Shape]) -> Mapping[Key, int]:
    """Position in `shapes`, those of the model's params, for each number that can only stand for that one.

    Nothing at all is certain where some group does not fit into the model in its order.
    """
    matching = _Matching(groups, shapes)
    return matching.owners if matching.run() else {}


def unambiguous(kinds: Iterable[Signature], shapes: Iterable[Shape]) -> frozenset[Signature]:
    """Return the kinds that fit exactly one of the params, so that their order does not matter."""
    times = Counter(shapes)
    return frozenset(kind for kind in kinds if sum(n for shape, n in times.items() if fits(kind, shape)) == 1)


def signature(remembered: Iterable[tuple[str, Shape]]) -> Signature:
    """Return the shapes of what is remembered of one param, given with its names."""
    own: set[Shape] = set()
    factors: set[Shape] = set()
    for name, shape in remembered:
        if shape not in SCALARS:
            (own if _FACTORS.isdisjoint(name.split("_")) else factors).add(shape)
    return Signature(frozenset(own), frozenset(factors))


def fits(kind: Signature, shape: Shape) -> bool:
    """Return whether that may be remembered of a param of that shape."""
    return kind.own <= {shape} and (not kind.factors or kind.factors <= _factors(shape))


def _factors(shape: Shape) -> set[Shape]:
    """Return the shapes of a second moment's rows and columns: without one of the last axes, or of size one there."""
    *before, rows, columns = shape if len(shape) > 1 else (0, 0)
    return {(*before, rows), (*before, columns), (*before, rows, 1), (*before, 1, columns)}


class _Matching:
    """Fits the groups into the model again and again, as what is certain of one rules out others."""

    def __init__(self, groups: Sequence[Sequence[Signature]], shapes: Sequence[Shape]) -> None:
        self.groups = groups
        self.shapes = shapes
        self.owners: dict[Key, int] = {}
        self.taken: dict[int, Key] = {}
        self.left = WORK
        self._known: dict[tuple[Signature, Shape], bool] = {}

    def run(self) -> bool:
        """Find all that is certain; False where the groups do not fit, or there is no end of it."""
        before = -1
        while before < len(self.owners):
            before = len(self.owners)
            for number, group in enumerate(self.groups):
                self.left -= 2 * len(self.shapes) + len(group)
                self.match_all_of_a_kind(number)
                if self.left <= 0 or not self.match_in_order(number):
                    return False
        return True

    def match_in_order(self, number: int) -> bool:
        """Claim what a group's first and last fit into the model agree on; False if there is none."""
        size, count = len(self.groups[number]), len(self.shapes)
        first = list(self.fitted(number, range(size), range(count)))
        last = list(self.fitted(number, range(size - 1, -1, -1), range(count - 1, -1, -1)))
        if len(first) < size or len(last) < size:
            return False
        for place, (one, other) in enumerate(zip(first, reversed(last), strict=True)):
            if one == other:
                self.claim((number, place), one)
        return True

    def fitted(self, number: int, places: Sequence[int], params: Sequence[int]) -> Iterator[int]:
        """Yield the first param, in this direction, for each place of a group that is behind the one before it."""
        following = iter(params)
        for place in places:
            at = next((at for at in following if self.admits((number, place), at)), None)
            if at is None:
                return
            yield at

    def match_all_of_a_kind(self, number: int) -> None:
        """Claim, in order, the params that only one kind of numbers fits, where there are as many of both."""
        open_places = [place for place in range(len(self.groups[number])) if (number, place) not in self.owners]
        kinds = Counter(self.groups[number][place] for place in open_places)
        free = Counter(shape for at, shape in enumerate(self.shapes) if at not in self.taken)
        for kind, count in kinds.items():
            self.left -= len(free)
            if self.left <= 0:
                return
            if kind == Signature():
                continue  # nothing is known of the shape
            fitting = {shape for shape in free if self.is_like(kind, shape)}
            if sum(free[shape] for shape in fitting) != count:
                continue
            places = (place for place in open_places if self.groups[number][place] == kind)
            found = [at for at, shape in enumerate(self.shapes) if at not in self.taken and shape in fitting]
            for place, at in zip(places, found, strict=True):
                self.claim((number, place), at)
            free = Counter(shape for at, shape in enumerate(self.shapes) if at not in self.taken)
            self.left -= 2 * len(self.shapes) + len(free)

    def claim(self, key: Key, at: int) -> None:
        self.owners[key] = at
        self.taken[at] = key

    def admits(self, key: Key, at: int) -> bool:
        """Return whether a number may stand for a param, after all that is certain."""
        if key in self.owners or at in self.taken:
            return self.owners.get(key) == at
        return self.is_like(self.groups[key[0]][key[1]], self.shapes[at])

    def is_like(self, kind: Signature, shape: Shape) -> bool:
        pair = kind, shape
        if pair not in self._known:
            self._known[pair] = fits(kind, shape)
        return self._known[pair]
