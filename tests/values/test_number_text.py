"""Numbers as words, against those that numpy and torch print."""

from __future__ import annotations

import re
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from paramctl.values.number_text import PIECE, words

Array = NDArray[Any]


def ours(array: Array, precision: int = 4) -> list[str]:
    return list(words(lambda: (array,), precision))


def numpys(array: Array, precision: int = 4) -> list[str]:
    """What numpy prints; as it was before 2.3, when floats of every size were scientific from 1e8 on."""
    text = np.array2string(
        array, sys.maxsize, precision, separator="|", threshold=sys.maxsize, legacy="2.2"  # type: ignore[arg-type]
    )
    return text[1:-1].split("|")


def torchs(tensor: torch.Tensor, precision: int = 4) -> list[str]:
    """What torch prints, without the zeros at the ends."""
    torch.set_printoptions(precision=precision)  # type: ignore[no-untyped-call]
    try:
        inside = re.sub(r"\s", "", str(tensor)).split("[")[1].split("]")[0]
    finally:
        torch.set_printoptions(profile="default")  # type: ignore[no-untyped-call]
    return [re.sub(r"(\.\d*?)0+(?=$|e)", r"\1", word) for word in inside.split(",")]


def without_zeros(found: list[str]) -> list[str]:
    return [re.sub(r"(\.\d*?)0+(?=$|e)", r"\1", word.strip()) for word in found]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("values", "precision", "expected"),
    [
        ([0.5, -1.25, 3], 4, [" 0.5 ", "-1.25", " 3.  "]),
        ([1, 2, 2048], 4, ["1.000e+00", "2.000e+00", "2.048e+03"]),
        ([3, 2048], 4, ["   3.", "2048."]),
        ([1234567, 7654321], 4, ["1234567.", "7654321."]),
        ([1e30, 1, -2.5], 4, [" 1.0e+30", " 1.0e+00", "-2.5e+00"]),
        ([1e8, 1e7], 4, ["1.e+08", "1.e+07"]),
        ([99999999, 1e7], 4, ["99999999.", "10000000."]),
        ([1e-8, 0], 4, ["1.e-08", "0.e+00"]),
        ([0.0001, 0.01], 4, ["0.0001", "0.01  "]),
        ([0.00009, 0.01], 4, ["9.e-05", "1.e-02"]),
        ([0.7, 700], 4, ["7.e-01", "7.e+02"]),
        ([0.7, 699], 4, ["  0.7", "699. "]),
        ([5e-324, 1e-300], 4, ["5.e-324", "1.e-300"]),
        ([5e-324, 1.2345e-300], 4, ["4.9407e-324", "1.2345e-300"]),
        ([1e-100, 1], 4, ["1.e-100", "1.e+000"]),
        ([NAN, 1.5, INF, -INF], 4, [" nan", " 1.5", " inf", "-inf"]),
        ([NAN, INF], 4, ["nan", "inf"]),
        ([NAN, 123.4567], 4, ["     nan", "123.4567"]),
        ([-0.0, 0.0], 4, ["-0.", " 0."]),
        ([-0.0], 4, ["-0."]),
        ([0.0, 0.0], 4, ["0.", "0."]),
        ([9.99996, 1], 4, ["10.", " 1."]),
        ([0.125, 0.375], 2, ["0.12", "0.38"]),
        ([0.5, 1.5, 2.5], 0, ["0.", "2.", "2."]),
        ([1e30, 1.5e20], 0, ["1.e+30", "2.e+20"]),
        ([0.1, 0.2], 20, ["0.1", "0.2"]),
        ([1 / 3, 1], 20, ["0.3333333333333333", "1.                "]),
    ],
)
def test_floats(values: list[float], precision: int, expected: list[str]) -> None:
    array = np.array(values, np.float64)
    assert ours(array, precision) == expected
    assert numpys(array, precision) == expected


@pytest.mark.parametrize(
    ("values", "precision", "expected"),
    [
        ([0.1, 0.7], 20, ["0.1", "0.7"]),
        ([0.7, 700], 4, ["  0.7", "700. "]),
        ([100000.1, 99999.9], 4, ["100000.1", " 99999.9"]),
        ([0.0001, 0.01], 4, ["0.0001", "0.01  "]),
        ([16777216.0, 20000000.0], 4, ["16777216.", "20000000."]),
        ([99999992.0, 1e7], 4, ["99999992.", "10000000."]),
        ([1e-45, 1e-40], 4, ["1.e-45", "1.e-40"]),
        ([1e-45, 1.2345e-40], 4, ["1.4013e-45", "1.2345e-40"]),
        ([3.4e38, -1], 4, [" 3.4e+38", "-1.0e+00"]),
    ],
)
def test_float32_has_no_more_than_was_in_it(values: list[float], precision: int, expected: list[str]) -> None:
    assert ours(np.array(values, np.float32), precision) == expected


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        ("bfloat16", [0.1, 1.2, 3], ["0.1001", "1.2031", "3.    "]),
        ("float16", [0.1, 1.2, 3], ["0.1   ", "1.2002", "3.    "]),
        ("float8_e4m3fn", [0.1, 1.2, 3, NAN], ["0.1016", "1.25  ", "3.    ", "   nan"]),
        ("float8_e5m2", [0.1, 1.2, 3, INF], ["0.0938", "1.25  ", "3.    ", "   inf"]),
        ("float8_e4m3fnuz", [0.1, 1.2, 3], ["0.1016", "1.25  ", "3.    "]),
        ("float8_e5m2fnuz", [0.1, 1.2, 3], ["0.0938", "1.25  ", "3.    "]),
        ("float8_e8m0fnu", [0.125, 1, 2, NAN], ["0.125", "1.   ", "2.   ", "  nan"]),
        ("float6_e2m3fn", [0.1, 1.2, 3], ["0.125", "1.25 ", "3.   "]),
        ("float6_e3m2fn", [0.1, 1.2, 3], ["0.125", "1.25 ", "3.   "]),
        ("float4_e2m1fn", [0.5, 1.5, -6], [" 0.5", " 1.5", "-6. "]),
    ],
)
def test_narrow_floats(dtype: str, values: list[float], expected: list[str]) -> None:
    array = np.array(values, getattr(ml_dtypes, dtype, None) or dtype)
    assert ours(array) == expected
    if hasattr(torch, dtype):
        tensor = torch.from_numpy(array.astype(np.float32)).to(getattr(torch, dtype))
        assert torchs(tensor) == without_zeros(expected)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers(dtype: type[np.generic]) -> None:
    array = np.array([complex(NAN, 1), complex(-INF, -0.0), 1.5 + 2j, complex(0, INF)], dtype)
    assert ours(array) == numpys(array) == [" nan +1.j", "-inf -0.j", " 1.5 +2.j", " 0. +infj"]
    assert ours(np.array([1.5 + 2j, -0.1j], dtype)) == [" 1.5+2.j ", "-0. -0.1j"]
    assert ours(np.array([1e30 + 1j, 1], dtype)) == ["1.e+30+1.j", "1.e+00+0.j"]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_integers(dtype: str) -> None:
    info = np.iinfo(dtype)
    low, high = str(info.min), str(info.max)
    width = max(len(low), len(high))
    assert ours(np.array([info.min, info.max, 7], dtype)) == [low.rjust(width), high.rjust(width), "7".rjust(width)]


def test_truth_values() -> None:
    assert ours(np.array([True, False])) == [" True", "False"]


def test_nothing() -> None:
    assert ours(np.empty(0)) == []


# --- numpy and torch ---------------------------------------------------------------------------

FLOATS = st.one_of(
    st.floats(allow_nan=True),
    st.floats(-10, 10, width=16),
    st.integers(-1000, 1000).map(float),
    st.sampled_from([0.0, -0.0, 1e-4, 1e-8, 1e8, 1e30, 0.1, 99999.99999]),
)
LISTS = st.lists(FLOATS, min_size=1, max_size=12)
PRECISIONS = st.sampled_from([0, 1, 2, 4, 4, 6, 9, 15, 20])


@given(LISTS, st.sampled_from(["float32", "float64"]), PRECISIONS)
def test_floats_are_numpys(values: list[float], dtype: str, precision: int) -> None:
    with np.errstate(over="ignore"):
        array = np.array(values).astype(dtype)
    found = numpys(array, precision)
    if array.dtype == np.float32 and any(n > 1e7 for n in np.abs(array[np.isfinite(array)])) and "e" not in found[0]:
        return  # where whole float32 numbers print exactly, and those of numpy in the digits they need
    assert ours(array, precision) == found


@given(LISTS, LISTS, st.sampled_from(["complex64", "complex128"]), PRECISIONS)
def test_complex_numbers_are_numpys(real: list[float], imag: list[float], dtype: str, precision: int) -> None:
    n = min(len(real), len(imag))
    array = np.empty(n, dtype)
    with np.errstate(over="ignore"):
        array.real, array.imag = real[:n], imag[:n]
    large = np.abs(np.concatenate([array.real, array.imag]))
    if dtype == "complex64" and (large[np.isfinite(large)] > 1e7).any():
        return
    assert ours(array, precision) == numpys(array, precision)


@given(
    st.sampled_from(["int8", "uint8", "int64", "uint64", "bool"]).flatmap(
        lambda dtype: npst.arrays(dtype, st.integers(1, 12))
    )
)
def test_other_numbers_are_numpys(array: Array) -> None:
    assert ours(array) == numpys(array)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("precision", [0, 1, 4])
def test_narrow_numbers_are_torchs(dtype: str, precision: int) -> None:
    torch.manual_seed(0)
    for scale in (1.0, 1e-2, 1e2):
        tensor = (torch.rand(40) + 0.1).mul(scale).to(getattr(torch, dtype))
        wide = tensor.double() if dtype == "float64" else tensor.float()
        array = wide.numpy().astype(getattr(ml_dtypes, dtype, None) or dtype)
        assert without_zeros(ours(array, precision)) == [
            word if "." in word else f"{word}." for word in torchs(tensor, precision)
        ]


@given(LISTS, st.sampled_from(["float16", "bfloat16", "float32", "float64"]), PRECISIONS)
def test_words_are_the_values_within_the_precision(values: list[float], dtype: str, precision: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):
        array = np.array(values).astype(getattr(ml_dtypes, dtype, None) or dtype)
    wide = array.astype(np.float64 if dtype == "float64" else np.float32)
    found = ours(array, precision)
    assert len({len(word) for word in found}) == 1
    for word, value in zip(found, wide, strict=True):
        if not np.isfinite(value):
            assert word.strip() == str(float(value))
            continue
        exponent = int(word.partition("e")[2] or 0)
        # What tells a value from its neighbours may lie half their distance from it.
        step = max(10.0 ** (exponent - precision), float(np.abs(value - np.nextafter(value, type(value)(0)))))
        read = np.spacing(abs(float(value)))  # what float64 itself may be off when the word is read
        assert abs(float(word) - float(value)) <= step * 0.500001 + read / 2 or np.isinf(float(word))
        assert np.signbit(float(word)) == np.signbit(value)


# --- many values -------------------------------------------------------------------------------


def test_blocks_are_spelled_alike() -> None:
    blocks = (np.array([0.5, 2.0]), np.array([[100.25], [-3.0]]), np.array([np.nan]))
    assert list(words(lambda: blocks, 4)) == ["  0.5 ", "  2.  ", "100.25", " -3.  ", "   nan"]


def test_one_large_value_decides_for_all() -> None:
    many = np.arange(3 * PIECE, dtype=np.float32) / 8 + 1
    many[-1] = 1e30
    found = ours(many)
    assert (found[0], found[1], found[-1]) == ("1.0000e+00", "1.1250e+00", "1.0000e+30")
    assert len(found) == many.size and {len(word) for word in found} == {10}


def test_the_last_value_may_need_the_most_digits() -> None:
    many = np.ones(3 * PIECE, np.float32)
    many[-1] = 1.25
    assert ours(many)[0] == "1.  " and ours(many)[-1] == "1.25"
