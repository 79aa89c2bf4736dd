"""Compute CRC-32 checksums quickly, and update one when only some of its bytes changed.

CRC-32 is linear: the checksums of two texts of the same length differ by a value that depends only on
where and how the texts differ; bytes that follow multiply it by a power of x. Reference: crc32_combine
of zlib.
"""

from __future__ import annotations

from functools import lru_cache

try:
    from isal.isal_zlib import crc32  # nine times as fast as zlib's, where the processor can multiply without carry
except ImportError:  # no wheels of it for this kind of machine
    from zlib import crc32

__all__ = ["crc32", "extend_difference"]

_POLYNOMIAL = 0xEDB88320  # of CRC-32; the coefficient of x**0 is the highest of its 32 bits
_ONE = 1 << 31


def extend_difference(difference: int, nbytes: int) -> int:
    """Return the difference of two CRC-32s after `nbytes` more bytes, the same in both texts, have followed."""
    return _product(_power(nbytes * 8), difference)


@lru_cache(1024)  # a strided change has many gaps of one length
def _power(exponent: int) -> int:
    """Return x ** exponent, modulo the polynomial."""
    square, result = _ONE >> 1, _ONE
    while exponent:
        if exponent & 1:
            result = _product(square, result)
        square = _product(square, square)
        exponent >>= 1
    return result


def _product(a: int, b: int) -> int:
    """Return the product of two polynomials, modulo the polynomial."""
    result = 0
    while a:
        if a & _ONE:
            result ^= b
        a = a << 1 & 0xFFFFFFFF
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return result
