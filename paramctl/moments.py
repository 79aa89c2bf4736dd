"""What is known of many numbers without keeping them: how many, their mean and spread, extremes, and odd ones.

Two such summaries can be merged (Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance),
so that each block of a tensor is looked at once, however far its mean lies from zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LARGE, SMALL = 1e130, 1e-130  # beyond them sums of squares, or squares of deviations, may leave what float64 holds
ROW = 4096  # numbers of a row whose sum a BLAS makes, several rows at a time


@dataclass(frozen=True, slots=True)
class Moments:
    """`count` numbers, of which `finite` are neither NaN nor infinite; what else is said is of those.

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
        """Sample standard deviation (n − 1); None of fewer than two numbers."""
        return None if self.finite < 2 else _root(self.squares / (self.finite - 1))

    @property
    def l2(self) -> float:
        """Euclidean norm."""
        return _root(self.squares + self.finite * (self.mean * self.mean))

    def __add__(self, other: Moments) -> Moments:
        """The numbers of both."""
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

    def times(self, n: int) -> Moments:
        """The numbers `n` times over."""
        return replace(
            self,
            count=n * self.count, finite=n * self.finite, squares=n * self.squares,
            zeros=n * self.zeros, nan=n * self.nan, inf=n * self.inf,
        )  # fmt: skip


NONE = Moments()


class Running:
    """Adds up many numbers, a block at a time.

    Deviations are taken from the mean of the first block, which the mean of all cannot be so far away
    from that squares cancel: the first block is among what spreads.
    """

    def __init__(self) -> None:
        self._others = NONE
        self._n = self._zeros = 0
        self._low, self._high = float("inf"), float("-inf")
        self._pivot: float | None = None
        self._sum = self._squares = 0.0

    def add(self, values: Array, low: float, high: float, zeros: int) -> None:
        """Add finite float64 `values`, of which these are the extremes and the number of zeros; they may change."""
        if _is_extreme(low, high):
            self._others += _of_extreme(values, low, high, zeros)
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
        """Count the NaN and infinities among `values`; returns a copy of the others, which are not added."""
        import numpy as np

        finite = values[np.isfinite(values)]
        odd = values.size - finite.size
        nan = int(np.count_nonzero(np.isnan(values))) if odd else 0
        self._others += Moments(odd, nan=nan, inf=odd - nan)
        return finite

    @property
    def moments(self) -> Moments:
        """Of all that was added."""
        import numpy as np

        if not self._n:
            return self._others
        apart = np.longdouble(self._sum) / self._n
        squares = max(self._squares - self._sum * apart, np.longdouble(0))
        mean = (self._pivot or 0.0) + apart
        added = Moments(self._n, self._n, mean, squares, self._low, self._high, self._zeros)
        return self._others + added


def _pivot(values: Array, low: float, high: float) -> float:
    """What to take deviations from: the mean; nothing where that is no further from 0 than values spread."""
    total, squares = _sums(values)
    mean = total / values.size
    if 2 * mean * mean < squares / values.size:
        return 0.0
    return min(max(mean, low), high)  # where all are equal, that value: then none deviates, by rounding either


def _sums(values: Array) -> tuple[float, float]:
    """The sum of float64 values, and that of their squares."""
    whole = values.size // ROW * ROW
    total = float(values[:whole].reshape(-1, ROW).dot(_ones()).sum()) if whole else 0.0
    if whole < values.size:
        total += float(values[whole:].sum())
    return total, float(values.dot(values))


@cache
def _ones() -> Array:
    import numpy as np

    return np.ones(ROW)


def _of_extreme(values: Array, low: float, high: float, zeros: int) -> Moments:
    """The moments of finite values whose squares float64 cannot hold."""
    import numpy as np

    exact = values.astype(np.longdouble)
    mean = exact.mean()
    return Moments(values.size, values.size, mean, ((exact - mean) ** 2).sum(), low, high, zeros)


def of_counts(values: Array, counts: Array) -> Moments:
    """The moments of numbers of which each of the float64 `values` occurs `counts` times."""
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
    largest = max(-low, high)
    return largest > LARGE or 0 < largest < SMALL


def _root(square: Any) -> float:
    """The square root of a longdouble, as a float; 0 where rounding left a trace below it."""
    import numpy as np

    return float(np.sqrt(np.longdouble(square))) if square > 0 else 0.0
