"""How far values are apart: figures that are kept block by block, and that NaN and infinity never spoil."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from paramctl.errors import UsageError
from paramctl.model.dtypes import DType
from paramctl.values.arrays import numpy_dtype
from paramctl.values.float_bits import halves

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

QUARTER = 0.25  # of two float64, their distance and the magnitudes of complex ones are never too large for float64


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What counts as equal: |a − b| ≤ atol + rtol · |b|, or with `exact` only the same bits.

    Raises UsageError where one is negative, NaN or infinite: then all values would be equal, or none.
    """

    atol: float = 0.0
    rtol: float = 0.0
    exact: bool = False

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if not (isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}, which is no tolerance", hint="give a number from 0 on")


@dataclass(frozen=True, slots=True)
class Distance:
    """How far the values of two tensors are apart.

    `count` of the `of` values differ; `nonfinite` of those have no distance, as one of the two is NaN or
    infinite. `max_abs` is the largest distance, `mean_abs` the mean over all values that have one,
    `max_rel` the largest distance by the larger magnitude of the two. A distance that float64 cannot hold
    is infinite; `max_rel` is not.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    count: int
    of: int
    nonfinite: int


class Tally:
    """Keeps the figures of two tensors; each of their values stands `times` as often as it is added."""

    def __init__(self, tolerance: Tolerance, times: int = 1, equal: int = 0) -> None:
        self._tolerance = tolerance
        self._times = times
        self._of = equal
        self._count = self._nonfinite = 0
        self._max_abs = self._max_rel = 0.0
        self._sum: Any = 0.0  # numpy's longdouble: no sum of distances is too large

    def add(self, a: Array, b: Array, bits: Array | None = None) -> None:
        """Compare flat arrays of as many values; `bits` says which are stored as other bits."""
        import numpy as np

        self._of += len(a)
        where = _apart(a, b, self._tolerance.exact, bits)
        if not where.any():
            return
        a, b = a[where], b[where]
        with np.errstate(all="ignore"):
            distance, size, other = _measured(a, b)
            far = np.isinf(distance) | np.isinf(size) | np.isinf(other)
            if far.any():
                self._measure(distance[~far], size[~far], other[~far])
                distance, size, other = _measured(*(_comparable(part[far]) * QUARTER for part in (a, b)))
                self._measure(distance, size, other, QUARTER)
            else:
                self._measure(distance, size, other)

    def _measure(self, distance: Array, size: Array, other: Array, scale: float = 1.0) -> None:
        """Add distances of values of these sizes, all of them times `scale`."""
        import numpy as np

        finite = np.isfinite(size) & np.isfinite(other)
        if self._tolerance.atol or self._tolerance.rtol:
            out = ~finite | (distance > self._tolerance.atol * scale + self._tolerance.rtol * other)
            distance, size, other, finite = distance[out], size[out], other[out], finite[out]
        self._count += len(finite)
        self._nonfinite += len(finite) - int(finite.sum())
        distance, size = distance[finite], np.maximum(size, other)[finite]
        if len(distance):
            self._sum += distance.sum(dtype=np.longdouble) / scale
            self._max_abs = max(self._max_abs, float(distance.max()) / scale)
            self._max_rel = max(self._max_rel, float((distance / np.where(size == 0, 1, size)).max()))

    def figures(self) -> Distance:
        """The figures of what was added."""
        of, count, nonfinite = (n * self._times for n in (self._of, self._count, self._nonfinite))
        mean = float(self._sum * self._times / (of - nonfinite)) if of > nonfinite else 0.0
        return Distance(self._max_abs, mean, self._max_rel, count, of, nonfinite)


def coarser(one: DType, other: DType) -> DType | None:
    """Which of two dtypes rounds the values of the other; None where neither does."""
    kinds = {one.category, other.category}
    if kinds == {"int", "float"}:
        return one if one.category == "float" else other
    if len(kinds) > 1 or kinds.isdisjoint({"float", "complex"}):
        return None
    return min(one, other, key=_digits)


def agree(a: Array, b: Array, rounded: Any) -> bool:
    """Whether two arrays are equal once both are rounded to that dtype; NaN is equal to NaN."""
    import numpy as np

    with np.errstate(all="ignore"):
        x, y = _comparable(a).astype(rounded), _comparable(b).astype(rounded)  # not every pair casts directly
        return bool(((x == y) | ((x != x) & (y != y))).all())


def differing_bits(a: Array, b: Array) -> Array:
    """Where two flat arrays of one dtype hold other bits."""
    import numpy as np

    size = a.dtype.itemsize
    if size <= 8:
        return np.asarray(a.view(f"u{size}") != b.view(f"u{size}"))
    return np.asarray((a.view("u8") != b.view("u8")).reshape(-1, size // 8).any(axis=1))


def _digits(dtype: DType) -> tuple[int, int]:
    """Bits of the significand, then of the whole: what rounding keeps."""
    if dtype.category == "complex":
        return dtype.bits, dtype.bits
    import ml_dtypes

    return int(ml_dtypes.finfo(numpy_dtype(dtype)).nmant), dtype.bits  # type: ignore[no-untyped-call]


def _apart(a: Array, b: Array, exact: bool, bits: Array | None) -> Array:
    """Where two flat arrays differ: in their bits, or else in what those mean, where NaN is NaN."""
    import numpy as np

    same_kind = a.dtype == b.dtype
    if same_kind:
        found = differing_bits(a, b)
        if exact:
            return found if bits is None else found | bits
        if not found.any():
            return found
    x, y = _comparable(a), _comparable(b)
    if x.dtype.kind == "c" or y.dtype.kind == "c":
        one, other = (halves(values.astype(np.complex128)) for values in (x, y))
        pairs = (one == other) | (np.isnan(one) & np.isnan(other))
        return np.asarray(~pairs.all(axis=1))
    different = x != y
    return np.asarray(different if "f" not in (x.dtype.kind, y.dtype.kind) else different & ((x == x) | (y == y)))


def _comparable(values: Array) -> Array:
    """Values as numbers of numpy's own: whole ones as they are, the others as wide as can be."""
    import numpy as np

    kind = values.dtype.kind
    return values if kind in "biu" else values.astype(np.complex128 if kind == "c" else np.float64)


def _measured(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """|a − b|, |a| and |b| as float64; of whole numbers the distance is exact before it is rounded."""
    import numpy as np

    x, y = _comparable(a), _comparable(b)
    if x.dtype.kind in "biu" and y.dtype.kind in "biu":
        return _between(x, y), np.abs(x.astype(np.float64)), np.abs(y.astype(np.float64))
    wide = np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64
    x, y = x.astype(wide), y.astype(wide)
    return np.abs(x - y), np.abs(x), np.abs(y)


def _between(a: Array, b: Array) -> Array:
    """Distances of integers: those above zero and those below it each fit 64 bits without a sign."""
    import numpy as np

    above = [np.where(values > 0, values, 0).astype(np.uint64) for values in (a, b)]
    below = [np.where(values < 0, -values.astype(np.int64), 0).astype(np.uint64) for values in (a, b)]
    up, down = (np.where(x > y, x - y, y - x) for x, y in (above, below))
    total: Array = up.astype(np.float64) + down.astype(np.float64)
    return total
