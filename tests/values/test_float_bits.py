"""Floats by their bits, compared with what numpy says of the same floats."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from paramctl.values.float_bits import BITWISE, Widened

NUMPY = {"bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
SPECIAL = [0, 1, -1, 0x8000, 0x7F80, 0xFF80, 0x7F7F, 0xFF7F, 0x7FC0, 0x3F80, 0xBF80]  # of 16 bits


@st.composite
def patterns(draw: st.DrawFn) -> tuple[str, NDArray[Any]]:
    name = draw(st.sampled_from(sorted(BITWISE)))
    bits = BITWISE[name].bits
    special = st.sampled_from(SPECIAL).map(lambda n: (n % (1 << 16)) << (bits - 16))
    drawn = draw(st.lists(special | st.integers(0, (1 << bits) - 1), min_size=1, max_size=9))
    sign = draw(st.sampled_from([None, 0, 1]))
    if sign is not None:  # all of one sign
        half = 1 << (bits - 1)
        drawn = [n % half + sign * half for n in drawn]
    return name, np.array(drawn, f"u{bits // 8}")


@given(patterns())
@settings(max_examples=400)
def test_extremes_and_values_are_numpys(made: tuple[str, NDArray[Any]]) -> None:
    name, bits = made
    with np.errstate(invalid="ignore"):
        values = bits.view(NUMPY[name]).astype(np.float64)
    ends = BITWISE[name].extremes(bits)
    if np.isfinite(values).all():
        assert ends == (values.min(), values.max(), (values == 0).sum())
    else:
        assert ends is None
    with np.errstate(invalid="ignore"):  # signalling NaNs
        found = Widened(BITWISE[name]).values(bits).copy()
    assert np.array_equal(np.sort(found), np.sort(values), equal_nan=True)
    assert np.array_equal(BITWISE[name].listed(bits), values, equal_nan=True)


def test_values_of_a_column_and_of_blocks_that_grow() -> None:
    bits = np.arange(0x3F80, 0x3F80 + 60, dtype=np.uint16)
    widened = Widened(BITWISE["bfloat16"])
    for part in (bits[:1], bits[:7], bits[::3], bits, bits[:0], bits[5:8]):
        assert sorted(widened.values(part).tolist()) == sorted(part.view(ml_dtypes.bfloat16).astype(np.float64).tolist())


@pytest.mark.parametrize("name", sorted(BITWISE))
def test_numpys_zeros_are_both_zero(name: str) -> None:
    values = np.array([0.0, -0.0, -0.0]).astype(NUMPY[name])
    assert BITWISE[name].extremes(values.view(f"u{values.itemsize}")) == (0.0, 0.0, 3)
