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


class Ends(NamedTuple):
    """The lowest and highest of many values, and how many are zero."""

    low: float
    high: float
    zeros: int


class Floats(NamedTuple):
    """A dtype of `bits` bits; `infinity` is the pattern of its positive infinity.

    Each value is also one of the wider `code`, as struct and numpy call it: its pattern, then zeros.
    """

    bits: int
    infinity: int
    code: str

    @property
    def magnitude(self) -> int:
        """The bits of a pattern but for its sign."""
        return (1 << (self.bits - 1)) - 1

    @property
    def normal(self) -> int:
        """The pattern of the smallest number that is not denormal: the lowest bit of the exponent."""
        return self.infinity & -self.infinity

    def extremes(self, patterns: Array) -> Ends | None:
        """Those of the values; None if not all of them are finite."""
        import numpy as np

        sign = 1 << (self.bits - 1)
        signed = patterns.view(f"i{self.bits // 8}")
        highest, lowest = int(np.maximum.reduce(signed)), int(np.maximum.reduce(patterns))
        if highest >= self.infinity or lowest >= sign + self.infinity:
            return None
        least, most_negative = int(np.minimum.reduce(patterns)), int(np.minimum.reduce(signed))
        zeros = 0
        if least == 0 or most_negative == -sign:  # the patterns of 0 and of -0
            zeros = patterns.size - int(np.count_nonzero(patterns << 1))
        low = self._value(lowest if lowest >= sign else least)
        return Ends(low, self._value(highest if highest >= 0 else least), zeros)

    def listed(self, patterns: Array) -> list[float]:
        """The values of a few."""
        import numpy as np

        whole = self.bits == 8 * struct.calcsize(self.code)
        wider = patterns if whole else patterns.astype(np.uint32) << np.uint32(16)
        values: list[float] = wider.view(self.code).tolist()
        return values

    def _value(self, pattern: int) -> float:
        nbytes = struct.calcsize(self.code)
        value: float = struct.unpack(self.code, (pattern << (8 * nbytes - self.bits)).to_bytes(nbytes, "little"))[0]
        return value


class Widened:
    """The values of many blocks of patterns as float64, made where those of the block before were."""

    def __init__(self, floats: Floats) -> None:
        import numpy as np

        self._floats = floats
        self._words = np.empty(0, np.uint32)
        self._values = np.empty(0)

    def values(self, patterns: Array) -> Iterator[Array]:
        """The values in any order, as arrays of which each is overwritten by the next.

        Of signalling NaNs numpy warns, unless it is told to ignore what is invalid.
        """
        import numpy as np

        if self._floats.bits != 16:
            yield self._float64(patterns.view(self._floats.code))
            return
        even = patterns.size // 2 * 2  # two at a time, in numbers of their own width, take half as long
        if even:
            pairs = np.ascontiguousarray(patterns[:even]).view(np.uint32)
            if len(self._words) < len(pairs):
                self._words = np.empty(len(pairs), np.uint32)
            words = self._words[: len(pairs)]
            yield self._float64(np.bitwise_and(pairs, np.uint32(0xFFFF0000), out=words).view(np.float32))
            yield self._float64(np.left_shift(pairs, np.uint32(16), out=words).view(np.float32))
        if even < patterns.size:
            yield self._float64((patterns[-1:].astype(np.uint32) << np.uint32(16)).view(np.float32))

    def _float64(self, values: Array) -> Array:
        import numpy as np

        if len(self._values) < len(values):
            self._values = np.empty(len(values))
        made = self._values[: len(values)]
        np.copyto(made, values)
        return made


def halves(values: Array) -> Array:
    """The real and the imaginary part of each complex value, in columns, whatever numpy takes the values for."""
    parts: Array = values.view(f"f{values.itemsize // 2}").reshape(-1, 2)
    return parts


FLOATS = {
    "bfloat16": Floats(16, 0x7F80, "<f"),
    "float16": Floats(16, 0x7C00, "<e"),
    "float32": Floats(32, 0x7F800000, "<f"),
    "float64": Floats(64, 0x7FF0000000000000, "<d"),
}
BITWISE = {name: floats for name, floats in FLOATS.items() if name != "float16"}  # those that `Widened` takes
