"""Moments: those of parts, merged in any order, are those of the whole."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.stats.running_moments import NONE, Moments, Running, RunningIntegers, moments_of_counts, moments_of_few

floats = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
near = st.integers(-100, 100).map(lambda n: 1e8 + n / 64)
parts = st.lists(st.lists(floats, max_size=8) | st.lists(near, max_size=8), min_size=1, max_size=5)


def running(*arrays: Any) -> Moments:
    """Return the moments of arrays that are added one by one."""
    adding = Running()
    for values in arrays:
        finite = adding.without_odd(np.array(values, np.float64))
        if finite.size:
            adding.add(finite, float(finite.min()), float(finite.max()), int((finite == 0).sum()))
    return adding.moments


def assert_alike(one: Moments, other: Moments) -> None:
    for key in ("count", "finite", "low", "high", "zeros", "nan", "inf"):
        assert getattr(one, key) == getattr(other, key), key
    largest = max(abs(one.low), abs(one.high)) if one.finite else 0.0
    assert math.isclose(one.mean, other.mean, rel_tol=1e-12, abs_tol=1e-14 * largest)
    assert math.isclose(one.std or 0, other.std or 0, rel_tol=1e-9, abs_tol=1e-14 * largest)
    assert math.isclose(one.l2, other.l2, rel_tol=1e-12)


@given(parts)
@settings(max_examples=200)
def test_parts_make_the_whole(made: list[list[float]]) -> None:
    whole = running([value for part in made for value in part])
    assert_alike(running(*made), whole)
    assert_alike(sum((running(part) for part in made), NONE), whole)


@given(parts, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_does_not_matter(made: list[list[float]], random: Any) -> None:
    shuffled = random.sample(made, len(made))
    assert_alike(running(*shuffled), running(*made))
    assert_alike(sum(map(running, shuffled), NONE), sum(map(running, made), NONE))


@given(st.lists(floats, max_size=8), st.integers(0, 5))
@settings(max_examples=100)
def test_times_is_as_often(values: list[float], n: int) -> None:
    if n:
        assert_alike(running(values).times(n), running(*[values] * n))
    assert running(values).times(n).count == n * len(values)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, 3e38, math.nan, math.inf, -math.inf]), max_size=30))
def test_counts_of_values_are_the_values(values: list[float]) -> None:
    each = np.array([0.0, -0.0, 1.5, -2.0, 3e38, math.nan, math.inf, -math.inf])
    patterns = np.array(values, np.float64).view(np.int64)
    counts = np.array([int((patterns == pattern).sum()) for pattern in each.view(np.int64)])
    assert_alike(moments_of_counts(each, counts), running(values))


@given(st.lists(floats | near | st.sampled_from([-0.0, math.nan, math.inf, -math.inf]), max_size=12))
@settings(max_examples=200)
def test_few_are_as_many(values: list[float]) -> None:
    assert_alike(moments_of_few(values), running(values))


def test_few_equal_values_do_not_deviate() -> None:
    assert (moments_of_few([0.1] * 31).std, float(moments_of_few([0.1] * 31).mean)) == (0.0, 0.1)


signed = st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5) | st.integers(2**63 - 9, 2**63 - 1)
unsigned = st.integers(0, 2**64 - 1) | st.integers(0, 5) | st.integers(2**64 - 9, 2**64 - 1)


@given(st.lists(st.lists(signed, max_size=6), max_size=4) | st.lists(st.lists(unsigned, max_size=6), max_size=4))
@settings(max_examples=200)
def test_integers_are_added_without_rounding(made: list[list[int]]) -> None:
    whole = [value for part in made for value in part]
    adding = RunningIntegers()
    for part in made:
        adding.add(np.array(part, np.uint64 if max(whole, default=0) >= 2**63 else np.int64))
    found, n = adding.moments, len(whole)
    assert (found.count, found.finite, found.zeros) == (n, n, whole.count(0))
    if whole:
        mean = Fraction(sum(whole), n)
        assert (float(found.mean), found.low, found.high) == (float(mean), min(whole), max(whole))
        squares = sum((value - mean) ** 2 for value in whole)
        assert math.isclose(found.squares, squares, rel_tol=1e-12)
        assert math.isclose(found.l2, math.sqrt(sum(value * value for value in whole)), rel_tol=1e-12)
    assert adding.moments.scaled(0.25).squares == found.squares / 16


def test_nothing_has_no_figures() -> None:
    assert NONE + NONE == NONE == running([])
    assert (NONE.std, NONE.l2, NONE.count) == (None, 0.0, 0)
    assert running([3.0]).std is None


@pytest.mark.parametrize("scale", [1e-320, 1e-300, 1e-140, 1e-120, 1.0, 1e120, 1e140, 1e300])
def test_no_square_is_too_large_or_too_small(scale: float) -> None:
    values = np.array([1.0, -2.0, 3.0, 7.0]) * scale
    found = running(values, values)
    exact = np.concatenate([values, values]).astype(np.longdouble)
    assert math.isclose(found.std or 0, float(exact.std(ddof=1)), rel_tol=1e-12, abs_tol=5e-324)
    assert math.isclose(found.l2, float(np.sqrt((exact * exact).sum())), rel_tol=1e-12, abs_tol=5e-324)


def test_what_is_longer_than_a_float_is_infinite() -> None:
    assert running(np.full(100, 1.7e308)).l2 == math.inf
    assert running(np.full(100, 1.7e308)).std == 0.0


def test_odd_values_stand_apart() -> None:
    found = running([1.0, math.nan, 3.0, -math.inf], [math.nan], [math.inf, 0.0])
    assert (found.count, found.finite, found.nan, found.inf, found.zeros) == (7, 3, 2, 2, 1)
    assert (float(found.mean), found.low, found.high) == (4 / 3, 0.0, 3.0)
