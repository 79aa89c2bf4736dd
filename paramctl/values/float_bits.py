"""Floats by their bits: whether a block holds NaN or infinity, its extremes and zeros, at the price of integers.

Reference: IEEE 754. Sign and magnitude stand apart, so that the patterns of one sign are in the order of
their values.
"""

from __future__ import annotations

import struct
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
        """Return the ends of the values; None if not all of them are finite."""
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
        """Return the values of a few positions."""
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

    def values(self, patterns: Array) -> Array:
        """Return the values in any order, in an array that the next call overwrites.

        Of signalling NaNs numpy warns, unless it is told to ignore what is invalid.
        """
        import numpy as np

        if len(self._values) < patterns.size:
            self._values = np.empty(patterns.size)
        made = self._values[: patterns.size]
        if self._floats.bits != 16:
            np.copyto(made, patterns.view(self._floats.code))
            return made
        half = patterns.size // 2  # two at a time, in numbers of their own width, take half as long
        pairs = np.ascontiguousarray(patterns[: 2 * half]).view(np.uint32)
        if len(self._words) < half:
            self._words = np.empty(half, np.uint32)
        words = self._words[:half]
        np.copyto(made[:half], np.bitwise_and(pairs, np.uint32(0xFFFF0000), out=words).view(np.float32))
        np.copyto(made[half : 2 * half], np.left_shift(pairs, np.uint32(16), out=words).view(np.float32))
        if 2 * half < patterns.size:
            made[-1:] = (patterns[-1:].astype(np.uint32) << np.uint32(16)).view(np.float32)
        return made


def halves(values: Array) -> Array:
    """Return the real and the imaginary part of each complex value, in columns, whatever numpy takes the values for."""
    import numpy as np

    parts: Array = np.ascontiguousarray(values).view(f"f{values.itemsize // 2}").reshape(-1, 2)
    return parts


FLOATS = {
    "bfloat16": Floats(16, 0x7F80, "<f"),
    "float16": Floats(16, 0x7C00, "<e"),
    "float32": Floats(32, 0x7F800000, "<f"),
    "float64": Floats(64, 0x7FF0000000000000, "<d"),
}
BITWISE = {name: floats for name, floats in FLOATS.items() if name != "float16"}  # those that `Widened` takes
