"""Floats by their bits: whether a block holds NaN or infinity, its extremes and zeros, at the price of integers.

Reference: IEEE 754. Sign and magnitude stand apart, so that the patterns of one sign are in the order of
their values.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Floats(NamedTuple):
    """A dtype of `bits` bits; `infinity` is the pattern of its positive infinity.

    Each value is also one of the wider `code`, as struct and numpy call it: its pattern, then zeros.
    """

    bits: int
    infinity: int
    code: str

    def extremes(self, patterns: Array) -> tuple[float, float, int] | None:
        """The lowest and highest of the values and how many are zero; None if not all are finite."""
        import numpy as np

        sign = 1 << (self.bits - 1)
        highest, lowest = int(patterns.view(f"i{self.bits // 8}").max()), int(patterns.max())
        if highest >= self.infinity or lowest >= sign + self.infinity:
            return None
        if highest < 0:
            highest = int(patterns.min())
        if lowest < sign:
            lowest = int(patterns.min())
        low, high = self._value(lowest), self._value(highest)
        if not low <= 0 <= high:
            return low, high, 0
        magnitudes = patterns & patterns.dtype.type(sign - 1)
        return low, high, 0 if magnitudes.min() else patterns.size - int(np.count_nonzero(magnitudes))

    def values(self, patterns: Array) -> Iterator[Array]:
        """The values as float64 arrays, in any order."""
        import numpy as np

        if self.bits != 16:
            yield patterns.view(self.code).astype(np.float64)
            return
        even = patterns.size // 2 * 2  # two at a time, in numbers of their own width, take half as long
        pairs = patterns[:even].view(np.uint32)
        yield (pairs & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
        yield (pairs << np.uint32(16)).view(np.float32).astype(np.float64)
        if even < patterns.size:
            yield (patterns[-1:].astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)

    def _value(self, pattern: int) -> float:
        nbytes = struct.calcsize(self.code)
        value: float = struct.unpack(self.code, (pattern << (8 * nbytes - self.bits)).to_bytes(nbytes, "little"))[0]
        return value


BITWISE = {
    "bfloat16": Floats(16, 0x7F80, "<f"),
    "float32": Floats(32, 0x7F800000, "<f"),
    "float64": Floats(64, 0x7FF0000000000000, "<d"),
}
