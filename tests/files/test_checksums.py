"""CRC-32 from what changed alone, held against zlib's own over everything."""

from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from paramctl.files.checksums import extend_difference


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=40), st.integers(0, 5000))
def test_what_stays_need_not_be_read(before: bytes, old: bytes, new: bytes, after: int) -> None:
    new = new[: len(old)].ljust(len(old), b"x")
    rest = bytes(i % 251 for i in range(after))
    difference = extend_difference(zlib.crc32(old) ^ zlib.crc32(new), after)
    assert zlib.crc32(before + old + rest) ^ difference == zlib.crc32(before + new + rest)


def test_gigabytes_that_follow() -> None:
    value, zeros = zlib.crc32(b"a") ^ zlib.crc32(b"b"), bytes(1 << 20)
    old, new = zlib.crc32(b"a"), zlib.crc32(b"b")
    for _ in range(256):
        old, new = zlib.crc32(zeros, old), zlib.crc32(zeros, new)
    assert extend_difference(value, 256 << 20) == old ^ new
    assert extend_difference(value, 1 << 40) == extend_difference(extend_difference(value, 1 << 39), 1 << 39)
    assert extend_difference(value, 0) == value
