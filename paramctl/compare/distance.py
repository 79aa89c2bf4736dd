"""Measure how far the values of two tensors are apart, block by block, with NaN and infinity counted separately."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from paramctl.errors import UsageError
from paramctl.model.dtypes import DType
from paramctl.values.float_bits import halves
from paramctl.values.rounding import numpy_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

QUARTER = 0.25  # of two float64, their distance and the magnitudes of complex ones are never too large for float64


@dataclass(frozen=True, slots=True)
class Tolerance:
    """The rule by which values count as equal: |a − b| ≤ atol + rtol · |b|, or with `exact` only the same bits.

    Raises UsageError if a bound is negative, NaN or infinite: then all values would be equal, or none.
    """

    atol: float = 0.0
    rtol: float = 0.0
    exact: bool = False

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if not (isfinite(value) and value >= 0):
                raise UsageError(f"{name} is {value}, not a tolerance", hint="give a number, 0 or more")


@dataclass(frozen=True, slots=True)
class Distance:
    """The distance between the values of two tensors.

    `count` of the `of` values differ; `nonfinite` of those have no distance, because one of the two is NaN or
    infinite. `max_abs` is the largest distance, `mean_abs` the mean over all values that have one, and
    `max_rel` the largest distance divided by the larger magnitude of the two. A distance that float64 cannot hold
    is infinite; `max_rel` is not.
    """

    max_abs: float
    mean_abs: float
    max_rel: float
    count: int
    of: int
    nonfinite: int


class Tally:
    """The distances of two tensors, added block by block; each value stands for `times` equal ones."""

    def __init__(self, tolerance: Tolerance, times: int = 1, equal: int = 0) -> None:
        self._tolerance = tolerance
        self._times = times
        self._of = equal
        self._count = self._nonfinite = 0
        self._max_abs = self._max_rel = 0.0
        self._sum: Any = 0.0  # numpy's longdouble: no sum of distances is too large

    def add(self, a: Array, b: Array, bits: Array | None = None) -> None:
        """Compare two flat arrays of the same length; `bits` marks the values that are stored as different bits."""
        import numpy as np

        self._of += len(a)
        where = _differing(a, b, self._tolerance.exact, bits)
        if not where.any():
            return
        a, b = a[where], b[where]
        with np.errstate(all="ignore"):
            distance, size, other = _distances(a, b)
            far = np.isinf(distance) | np.isinf(size) | np.isinf(other)
            if far.any():
                self._measure(distance[~far], size[~far], other[~far])
                distance, size, other = _distances(*(_comparable(part[far]) * QUARTER for part in (a, b)))
                self._measure(distance, size, other, QUARTER)
            else:
                self._measure(distance, size, other)

    def _measure(self, distance: Array, size: Array, other: Array, scale: float = 1.0) -> None:
        """Add distances of values of these sizes, all of them multiplied by `scale`."""
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
        """Return the figures of everything added."""
        of, count, nonfinite = (n * self._times for n in (self._of, self._count, self._nonfinite))
        mean = float(self._sum * self._times / (of - nonfinite)) if of > nonfinite else 0.0
        return Distance(self._max_abs, mean, self._max_rel, count, of, nonfinite)


def coarser(one: DType, other: DType) -> DType | None:
    """Return the dtype, of two, that rounds values of the other; None if neither does."""
    kinds = {one.category, other.category}
    if kinds == {"int", "float"}:
        return one if one.category == "float" else other
    if len(kinds) > 1 or kinds.isdisjoint({"float", "complex"}):
        return None
    return min(one, other, key=_kept_bits)


def equal_when_rounded(a: Array, b: Array, rounded: Any) -> bool:
    """Return whether two arrays are equal after both are rounded to that dtype; NaN equals NaN."""
    import numpy as np

    with np.errstate(all="ignore"):
        x, y = _comparable(a).astype(rounded), _comparable(b).astype(rounded)  # not every pair casts directly
        return bool(((x == y) | ((x != x) & (y != y))).all())


def differing_bits(a: Array, b: Array) -> Array:
    """Return where two flat arrays of one dtype hold different bits."""
    import numpy as np

    size = a.dtype.itemsize
    if size <= 8:
        return np.asarray(a.view(f"u{size}") != b.view(f"u{size}"))
    return np.asarray((a.view("u8") != b.view("u8")).reshape(-1, size // 8).any(axis=1))


def _kept_bits(dtype: DType) -> tuple[int, int]:
    """Return the bits of the significand and of the whole dtype: what rounding keeps."""
    if dtype.category == "complex":
        return dtype.bits, dtype.bits
    import ml_dtypes

    return int(ml_dtypes.finfo(numpy_dtype(dtype)).nmant), dtype.bits  # type: ignore[no-untyped-call]


def _differing(a: Array, b: Array, exact: bool, bits: Array | None) -> Array:
    """Return where two flat arrays differ: in bits if `exact`, else in value, where NaN equals NaN."""
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
    """Return values in numpy's own dtypes: integers unchanged, others as float64 or complex128."""
    import numpy as np

    kind = values.dtype.kind
    return values if kind in "biu" else values.astype(np.complex128 if kind == "c" else np.float64)


def _distances(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Return |a − b|, |a| and |b| as float64; for integers the difference is exact before it is rounded."""
    import numpy as np

    x, y = _comparable(a), _comparable(b)
    if x.dtype.kind in "biu" and y.dtype.kind in "biu":
        return _integer_distances(x, y), np.abs(x.astype(np.float64)), np.abs(y.astype(np.float64))
    wide = np.complex128 if "c" in (x.dtype.kind, y.dtype.kind) else np.float64
    x, y = x.astype(wide), y.astype(wide)
    return np.abs(x - y), np.abs(x), np.abs(y)


def _integer_distances(a: Array, b: Array) -> Array:
    """Return the distances of integers: the parts above and below zero each fit 64 bits unsigned."""
    import numpy as np

    above = [np.where(values > 0, values, 0).astype(np.uint64) for values in (a, b)]
    below = [np.where(values < 0, -values.astype(np.int64), 0).astype(np.uint64) for values in (a, b)]
    up, down = (np.where(x > y, x - y, y - x) for x, y in (above, below))
    total: Array = up.astype(np.float64) + down.astype(np.float64)
    return total
