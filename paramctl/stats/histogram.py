"""Count values in bins that widen as needed, so that one pass over the values is enough.

Each bin is `2**exponent` wide and begins at a multiple of that width. When values fall outside, bins are merged in
pairs until there is room: every count stays exact, and two histograms can be added.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from math import floor, frexp, ldexp
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BINS = 256  # at most; many more than are shown, so that what is shown is hardly off
FINEST = -1020  # exponent of the narrowest bin: the width must be a normal number
MOST = sys.float_info.max
WHOLE = 2.0**52
PIECE = 1 << 15  # values whose bins are found at a time, in a processor's cache
DIGITS = 50  # of a position, in bits: it must be exact as a float


@dataclass(frozen=True, slots=True)
class Histogram:
    """`counts[i]` values v have `first + i <= v / 2**exponent < first + i + 1`."""

    exponent: int = FINEST
    first: int = 0
    counts: tuple[int, ...] = ()

    @property
    def edges(self) -> tuple[float, ...]:
        """The start of each bin, and the end of the last one."""
        bounds = range(self.first, self.first + len(self.counts) + 1) if self.counts else ()
        return tuple(_bin_edge(place, self.exponent) for place in bounds)

    def coarser(self, exponent: int) -> Histogram:
        """Return the same counts in bins of at least `2**exponent`."""
        steps = exponent - self.exponent
        if steps <= 0 or not self.counts:
            return replace(self, exponent=max(exponent, self.exponent))
        first = self.first >> steps
        counts = [0] * (((self.first + len(self.counts) - 1) >> steps) - first + 1)
        for i, count in enumerate(self.counts, self.first):
            counts[(i >> steps) - first] += count
        return Histogram(exponent, first, tuple(counts))

    def within(self, bins: int) -> Histogram:
        """Return the same counts in at most `bins` bins."""
        made = self
        while len(made.counts) > bins:
            made = made.coarser(made.exponent + 1)
        return made

    def __add__(self, other: Histogram) -> Histogram:
        """Return the histogram of the values of both."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        exponent = max(self.exponent, other.exponent)
        while True:
            one, two = self.coarser(exponent), other.coarser(exponent)
            first = min(one.first, two.first)
            last = max(one.first + len(one.counts), two.first + len(two.counts))
            if last - first <= BINS:
                break
            exponent += 1
        counts = [0] * (last - first)
        for part in (one, two):
            for i, count in enumerate(part.counts, part.first - first):
                counts[i] += count
        return Histogram(exponent, first, tuple(counts))

    def times(self, n: int) -> Histogram:
        """Return the histogram of the values repeated `n` times."""
        return replace(self, counts=tuple(n * count for count in self.counts))

    def resampled(self, low: float, high: float, bars: int) -> list[float]:
        """Return the approximate count of values in each of `bars` equal parts from `low` to `high`."""
        if not self.counts or not high - low > 0:
            return [float(sum(self.counts))]
        sums = [0, *accumulate(self.counts)]
        step = high / bars - low / bars  # halves are added below: the whole span may be more than a float holds

        def below(value: float) -> float:
            place = ldexp(value, -self.exponent) - self.first
            i = min(max(floor(place), 0), len(self.counts))
            share = (place - i) * self.counts[i] if 0 <= place < len(self.counts) else 0.0
            return sums[i] + share

        bounds = [0.0, *(below(2 * (low / 2 + i * (step / 2))) for i in range(1, bars)), float(sums[-1])]
        return [after - before for before, after in pairwise(bounds)]


EMPTY = Histogram()


class Binning:
    """Count values in bins, an array at a time."""

    def __init__(self) -> None:
        self._exponent = FINEST
        self._first = 0
        self._counts: Array | None = None

    def add(self, values: Array, low: float, high: float, weights: Array | None = None) -> None:
        """Count finite float64 `values` between `low` and `high`, each `weights` times."""
        import numpy as np

        self._widen(low, high)
        counts = self._counts
        assert counts is not None
        if weights is not None:
            np.add.at(counts, self._bin_numbers(values, np.empty(len(values))), weights)
            return
        room = np.empty(min(len(values), PIECE))
        for start in range(0, len(values), PIECE):
            part = values[start : start + PIECE]
            counts += np.bincount(self._bin_numbers(part, room[: len(part)]), minlength=len(counts))

    def _bin_numbers(self, values: Array, room: Array) -> Array:
        """Return the bin of each value; `room`, which has a float64 for each, is used to compute it."""
        import numpy as np

        if self._scales_by_factor:
            np.multiply(values, ldexp(1.0, -self._exponent), out=room)
        else:
            np.ldexp(values, -self._exponent, out=room)
        if self._exponent > 0:
            room[(values < 0) & (room == 0)] = -1  # too small a quotient for a float: it lies below 0 all the same
        np.floor(room, out=room)
        # Beside 2**52 the lowest bits of a float are a whole number: several times as fast as a cast.
        room += WHOLE - self._first
        places = room.view(np.int64)
        places &= (1 << 52) - 1
        return places

    @property
    def _scales_by_factor(self) -> bool:
        """Whether values can be scaled to bins by a factor that is a normal number."""
        return abs(self._exponent) < 1000

    @property
    def histogram(self) -> Histogram:
        """The counts, without the empty bins at both ends."""
        import numpy as np

        if self._counts is None or not self._counts.any():
            return EMPTY
        held = np.flatnonzero(self._counts)
        counts = self._counts[held[0] : held[-1] + 1]
        return Histogram(self._exponent, self._first + int(held[0]), tuple(counts.tolist()))

    def _widen(self, low: float, high: float) -> None:
        """Make the bins reach from `low` to `high`; the first time, with half of that span to spare at each end."""
        import numpy as np

        found = self.histogram
        if self._counts is None:
            span = high / 2 - low / 2  # half of it: the whole may be more than a float holds
            low, high = max(low - min(span, abs(low)), -MOST), min(high + min(span, abs(high)), MOST)
        elif self._fits(low, high):
            return
        exponent = max(self._exponent if found.counts else FINEST, frexp(max(abs(low), abs(high)))[1] - DIGITS)
        while True:
            old = found.coarser(exponent)
            first, last = _bin_number(low, exponent), _bin_number(high, exponent)
            if old.counts:
                first, last = min(first, old.first), max(last, old.first + len(old.counts) - 1)
            if last - first < BINS:
                break
            exponent += max((last - first).bit_length() - BINS.bit_length(), 1)
        self._exponent, self._first = exponent, first
        self._counts = np.zeros(BINS, np.int64)
        self._counts[old.first - first : old.first - first + len(old.counts)] = old.counts

    def _fits(self, low: float, high: float) -> bool:
        """Return whether the bins reach from `low` to `high`."""
        first, last = _bin_number(low, self._exponent), _bin_number(high, self._exponent)
        return self._first <= first and last < self._first + BINS


def _bin_number(value: float, exponent: int) -> int:
    """Return `floor(value / 2**exponent)`, without overflow."""
    mantissa, power = frexp(value)
    whole, shift = int(ldexp(mantissa, 53)), power - 53 - exponent
    return whole << shift if shift >= 0 else whole >> -shift


def _bin_edge(place: int, exponent: int) -> float:
    """Return `place * 2**exponent`, or the largest float64 if that is too large."""
    try:
        return ldexp(place, exponent)
    except OverflowError:
        return MOST if place > 0 else -MOST
