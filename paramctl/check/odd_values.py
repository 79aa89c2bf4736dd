"""Count NaN, infinite, zero and denormal values by their bits, and find constant params."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from paramctl.model.checkpoint import Param
from paramctl.model.dtypes import DType
from paramctl.values.digest import is_repeated
from paramctl.values.float_bits import FLOATS, Floats, halves
from paramctl.values.scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """Counts of odd values; `constant` tells that all values are equal bit for bit (and that there are some)."""

    count: int = 0
    nan: int = 0
    inf: int = 0
    zeros: int = 0
    denormal: int = 0
    constant: bool = False

    @property
    def is_mask(self) -> bool:
        """True if all values are zero or infinite, as in a mask that is added to attention scores."""
        return self.inf > 0 and self.zeros > 0 and self.zeros + self.inf == self.count


def count_values(scan: Scan, param: Param) -> ValueCounts:
    """Count the odd values of a param of floats or complex numbers. Raises the same errors as `Scan.stored`."""
    tally = _Tally()
    for block in scan.stored(param, in_order=False):
        tally.add(block, param.dtype)
    return tally.counts


class _Tally:
    """Counts of odd values, added block by block."""

    def __init__(self) -> None:
        self._counts = [0, 0, 0, 0, 0]
        self._first: Any = None
        self._constant = True

    def add(self, block: Array, dtype: DType) -> None:
        """Count a block of stored elements."""
        if not block.size:
            return
        if self._first is None:
            self._first = block[:1].copy()
        self._constant = self._constant and is_repeated(block, self._first)
        found = (block.size, *_odd(block, dtype))
        self._counts = [count + more for count, more in zip(self._counts, found, strict=True)]

    @property
    def counts(self) -> ValueCounts:
        """The counts of all added blocks."""
        count, nan, inf, zeros, denormal = self._counts
        return ValueCounts(count, nan, inf, zeros, denormal, self._constant and self._first is not None)


def _odd(block: Array, dtype: DType) -> tuple[int, int, int, int]:
    """Return how many values of a block are NaN, infinite, zero, denormal."""
    if dtype.category == "complex":
        return _odd_complex(block, dtype)
    if dtype.name in FLOATS:
        return _odd_floats(block, FLOATS[dtype.name])
    import numpy as np

    counts = np.bincount(block, minlength=1 << dtype.bits)
    nan, inf, zero = (int(counts[kind].sum()) for kind in _kinds(dtype))
    return nan, inf, zero, 0  # the smallest dtypes are made for denormals


def _odd_floats(block: Array, floats: Floats) -> tuple[int, int, int, int]:
    """Return the counts of a block of IEEE floats."""
    import numpy as np

    number = block.dtype.type
    magnitude = block & number(floats.magnitude)
    infinity, normal = floats.infinity, floats.normal
    nan = inf = zeros = denormal = 0
    if int(magnitude.max()) >= infinity:
        nan = int(np.count_nonzero(magnitude > number(infinity)))
        inf = int(np.count_nonzero(magnitude == number(infinity)))
    if int(magnitude.min()) < normal:
        zeros = block.size - int(np.count_nonzero(magnitude))
        denormal = int(np.count_nonzero(magnitude < number(normal))) - zeros
    return nan, inf, zeros, denormal


def _odd_complex(block: Array, dtype: DType) -> tuple[int, int, int, int]:
    """Return the counts of a block of complex numbers."""
    import numpy as np

    parts = halves(block)
    nan = np.isnan(parts).any(axis=1)
    inf = np.isinf(parts).any(axis=1) & ~nan
    return int(nan.sum()), int(inf.sum()), int(is_zero(block, dtype).sum()), 0


def is_zero(block: Array, dtype: DType) -> Array:
    """Return which stored elements are zero, of either sign."""
    zero: Array
    if dtype.category == "complex":
        zero = (halves(block) == 0).all(axis=1)
    elif dtype.name in FLOATS:
        zero = block & block.dtype.type(FLOATS[dtype.name].magnitude) == 0
    else:
        zero = _kinds(dtype)[2][block]
    return zero


@lru_cache
def _kinds(dtype: DType) -> tuple[Array, Array, Array]:
    """Return which bit patterns of a small dtype are NaN, infinite, zero."""
    import numpy as np

    from paramctl.values.arrays import raw_dtype
    from paramctl.values.rounding import numpy_dtype

    with np.errstate(invalid="ignore"):  # signalling NaNs
        values = np.arange(1 << dtype.bits).astype(raw_dtype(dtype)).view(numpy_dtype(dtype)).astype(np.float64)
    return np.isnan(values), np.isinf(values), values == 0
