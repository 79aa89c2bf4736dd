"""Compute the count, mean, spread and extremes of many numbers in one pass, without keeping the numbers.

Two results can be merged (Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance), so that
each block of a tensor is read once, however far its mean lies from zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import fsum, isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LARGE, SMALL = 1e130, 1e-130  # beyond them sums of squares, or squares of deviations, may leave what float64 holds
ROW = 512  # numbers of a row whose sum a BLAS makes, several rows at a time


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of `count` numbers, of which `finite` are finite; all but `nan` and `inf` are of the finite ones.

    `squares` is the sum of squared deviations from `mean`; `low` and `high` are the extremes. `mean` and
    `squares` are numpy's longdouble, whose exponent holds the squares of every float64.
    """

    count: int = 0
    finite: int = 0
    mean: Any = 0.0
    squares: Any = 0.0
    low: float = float("inf")
    high: float = float("-inf")
    zeros: int = 0
    nan: int = 0
    inf: int = 0

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n − 1); None for fewer than two numbers."""
        return None if self.finite < 2 else float(_root(self.squares / (self.finite - 1)))

    @property
    def l2(self) -> float:
        """Euclidean norm; infinite if float64 cannot hold it."""
        return float(self.norm)

    @property
    def norm(self) -> Any:
        """Euclidean norm, as numpy's longdouble."""
        return _root(self.squares + self.finite * (self.mean * self.mean))

    def __add__(self, other: Moments) -> Moments:
        """Return the moments of the numbers of both."""
        if not (self.count and other.count):
            return self if self.count else other
        n = self.finite + other.finite
        delta = other.mean - self.mean
        shift = delta * other.finite / max(n, 1)
        return Moments(
            self.count + other.count,
            n,
            self.mean + shift,
            self.squares + other.squares + delta * shift * self.finite,
            min(self.low, other.low),
            max(self.high, other.high),
            self.zeros + other.zeros,
            self.nan + other.nan,
            self.inf + other.inf,
        )

    def scaled(self, factor: float) -> Moments:
        """Return the moments of the numbers multiplied by `factor`, a power of two."""
        return replace(
            self,
            mean=self.mean * factor, squares=self.squares * factor * factor,
            low=self.low * factor, high=self.high * factor,
        )  # fmt: skip

    def times(self, n: int) -> Moments:
        """Return the moments of the numbers repeated `n` times."""
        return replace(
            self,
            count=n * self.count, finite=n * self.finite, squares=n * self.squares,
            zeros=n * self.zeros, nan=n * self.nan, inf=n * self.inf,
        )  # fmt: skip


NONE = Moments()


class Running:
    """Moments of finite numbers, added a block at a time.

    Deviations are taken from the mean of the first block. As that block is part of all numbers, its mean is close
    enough to theirs that squares do not cancel.
    """

    def __init__(self) -> None:
        self._others = NONE
        self._n = self._zeros = 0
        self._low, self._high = float("inf"), float("-inf")
        self._pivot: float | None = None
        self._sum = self._squares = 0.0

    def add(self, values: Array, low: float, high: float, zeros: int) -> None:
        """Add finite float64 `values`, given their extremes and number of zeros; `values` may be overwritten."""
        if _is_extreme(low, high):
            self._others += _moments_of_extremes(values, low, high, zeros)
            return
        if self._pivot is None:
            self._pivot = _pivot(values, low, high)
        if self._pivot:
            values -= self._pivot
        total, squares = _sums(values)
        self._n += values.size
        self._sum += total
        self._squares += squares
        self._zeros += zeros
        self._low, self._high = min(self._low, low), max(self._high, high)

    def without_odd(self, values: Array) -> Array:
        """Count the NaN and infinities among `values`; return a copy of the others, which are not added."""
        import numpy as np

        finite = values[np.isfinite(values)]
        odd = values.size - finite.size
        nan = int(np.count_nonzero(np.isnan(values))) if odd else 0
        self._others += Moments(odd, nan=nan, inf=odd - nan)
        return finite

    @property
    def moments(self) -> Moments:
        """The moments of all added numbers."""
        import numpy as np

        if not self._n:
            return self._others
        apart = np.longdouble(self._sum) / self._n
        squares = max(self._squares - self._sum * apart, np.longdouble(0))
        mean = (self._pivot or 0.0) + apart
        added = Moments(self._n, self._n, mean, squares, self._low, self._high, self._zeros)
        return self._others + added


class RunningIntegers:
    """Moments of integers of up to 64 bits, added a block at a time.

    Deviations are taken from the first number before they are rounded to float64, and the sum is exact.
    """

    def __init__(self) -> None:
        self._deviations = Running()
        self._first: Any = None
        self._sum = self._n = self._zeros = 0
        self._low = self._high = 0

    def add(self, values: Array) -> None:
        """Add integers of one dtype."""
        import numpy as np

        if not values.size:
            return
        wide = values.astype(np.uint64 if values.dtype.kind == "u" else np.int64, copy=False)
        low, high = int(wide.min()), int(wide.max())
        if self._first is None:
            self._first, self._low, self._high = wide[0], low, high
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._n += wide.size
        self._sum += _exact_sum(wide, max(-low, high))
        self._zeros += wide.size - int(np.count_nonzero(wide))
        low, high = low - int(self._first), high - int(self._first)
        self._deviations.add(_deviations(wide, self._first, max(-low, high)), float(low), float(high), 0)

    @property
    def moments(self) -> Moments:
        """The moments of all added numbers."""
        import numpy as np

        if not self._n:
            return NONE
        whole, rest = divmod(self._sum, self._n)
        mean = np.longdouble(whole) + np.longdouble(rest) / self._n
        squares = self._deviations.moments.squares
        return Moments(self._n, self._n, mean, squares, self._low, self._high, self._zeros)


def _exact_sum(values: Array, largest: int) -> int:
    """Return the sum of 64-bit integers whose magnitude is at most `largest`."""
    if largest * values.size < 1 << 63:
        return int(values.sum())
    return (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())


def _deviations(values: Array, pivot: Any, furthest: int) -> Array:
    """Return the differences of 64-bit integers from `pivot`, as float64; `furthest` is the largest of them."""
    import numpy as np

    up = values.view(np.uint64) - pivot.astype(np.uint64)  # both wrap around
    if furthest < 1 << 63:
        near: Array = up.view(np.int64).astype(np.float64)
        return near
    made: Array = np.where(values >= pivot, up, 0).astype(np.float64)  # each side fits without a sign
    made -= np.where(values < pivot, 0 - up, 0)
    return made


def _pivot(values: Array, low: float, high: float) -> float:
    """Return the number from which deviations are taken: the mean, or 0 if the mean is small beside the spread."""
    total, squares = _sums(values)
    mean = total / values.size
    if 2 * mean * mean < squares / values.size:
        return 0.0
    return min(max(mean, low), high)  # where all are equal, that value: then none deviates, by rounding either


def _sums(values: Array) -> tuple[float, float]:
    """Return the sum of float64 values and the sum of their squares."""
    whole = values.size // ROW * ROW
    total = float(values[:whole].reshape(-1, ROW).dot(_ones()).sum()) if whole else 0.0
    if whole < values.size:
        total += float(values[whole:].sum())
    return total, float(values.dot(values))


@cache
def _ones() -> Array:
    """Return a row of ones."""
    import numpy as np

    return np.ones(ROW)


def _moments_of_extremes(values: Array, low: float, high: float, zeros: int) -> Moments:
    """Return the moments of finite values whose squares float64 cannot hold."""
    import numpy as np

    exact = values.astype(np.longdouble)
    mean = exact.mean()
    return Moments(values.size, values.size, mean, ((exact - mean) ** 2).sum(), low, high, zeros)


def moments_of_few(values: Sequence[float]) -> Moments:
    """Return the moments of a few numbers, in plain Python: numpy takes longer to start."""
    import numpy as np

    finite = [value for value in values if isfinite(value)]
    count, n = len(values), len(finite)
    nan = sum(value != value for value in values) if n < count else 0
    odd = Moments(count - n, nan=nan, inf=count - n - nan)
    if not n:
        return odd
    low, high, zeros = min(finite), max(finite), finite.count(0)
    if _is_extreme(low, high):
        return odd + _moments_of_extremes(np.array(finite), low, high, zeros)
    pivot = min(max(fsum(finite) / n, low), high)
    apart = [value - pivot for value in finite]
    rest = fsum(apart) / n
    squares = max(fsum([value * value for value in apart]) - n * rest * rest, 0.0)
    return Moments(count, n, np.longdouble(pivot) + rest, squares, low, high, zeros, odd.nan, odd.inf)


def moments_of_counts(values: Array, counts: Array) -> Moments:
    """Return the moments of numbers given as float64 `values` and how often each occurs."""
    import numpy as np

    finite = np.isfinite(values) & (counts > 0)
    total, nan = int(counts.sum()), int(counts[np.isnan(values)].sum())
    kept, weights = values[finite], counts[finite]
    n = int(weights.sum())
    if not n:
        return Moments(total, nan=nan, inf=total - nan)
    mean = np.longdouble((kept * weights).sum()) / n
    apart = (kept - mean).astype(np.longdouble)
    return Moments(
        total, n, mean, (apart * apart * weights).sum(), float(kept.min()), float(kept.max()),
        int(weights[kept == 0].sum()), nan, total - n - nan,
    )  # fmt: skip


def _is_extreme(low: float, high: float) -> bool:
    """Return whether squares of values of that size may leave the range of float64."""
    largest = max(-low, high)
    return largest > LARGE or 0 < largest < SMALL


def _root(square: Any) -> Any:
    """Return the square root of a longdouble; 0 if rounding made it slightly negative."""
    import numpy as np

    return np.sqrt(np.longdouble(square)) if square > 0 else 0.0
