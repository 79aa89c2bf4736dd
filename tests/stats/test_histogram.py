"""Histograms: nothing is lost and every value lies in its bin, whatever comes in whatever order."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.stats.histogram import BINS, EMPTY, Binning, Histogram

MOST = sys.float_info.max
# Values that vanish beside the width of a bin may count as 0, on whose side of it they lie.
floats = st.floats(-1e100, 1e100).filter(lambda value: value == 0 or abs(value) > 1e-100)
lists = st.lists(floats | st.integers(-5, 5).map(float), min_size=1, max_size=12)


def binned(*arrays: Sequence[float]) -> Histogram:
    binning = Binning()
    for values in arrays:
        if len(values):
            binning.add(np.array(values), min(values), max(values))
    return binning.histogram


def in_bins(values: Sequence[float], like: Histogram) -> dict[int, int]:
    """Return how many values lie in each bin of a histogram, by exact arithmetic."""
    counts: dict[int, int] = {}
    for value in values:
        place = math.floor(Fraction(value) / Fraction(2) ** like.exponent)
        counts[place] = counts.get(place, 0) + 1
    return counts


def told(histogram: Histogram) -> dict[int, int]:
    return {i: count for i, count in enumerate(histogram.counts, histogram.first) if count}


@given(st.lists(lists, min_size=1, max_size=5))
@settings(max_examples=200)
def test_every_value_lies_in_its_bin(made: list[list[float]]) -> None:
    found = binned(*made)
    values = [value for part in made for value in part]
    assert told(found) == in_bins(values, found)
    assert len(found.counts) <= BINS and found.counts[0] and found.counts[-1]
    assert found.edges[0] <= min(values) and max(values) < found.edges[-1]


@given(st.lists(lists, min_size=1, max_size=4), st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_parts_make_the_whole_in_any_order(made: list[list[float]], random: Any) -> None:
    values = [value for part in made for value in part]
    found = sum(map(binned, random.sample(made, len(made))), EMPTY)
    assert told(found) == in_bins(values, found)
    assert len(found.counts) <= BINS


@given(lists, st.integers(0, 40))
@settings(max_examples=100)
def test_coarser_bins_hold_the_same(values: list[float], steps: int) -> None:
    found = binned(values)
    coarser = found.coarser(found.exponent + steps)
    assert told(coarser) == in_bins(values, coarser)
    assert coarser.exponent == found.exponent + steps
    few = found.within(7)
    assert len(few.counts) <= 7 and told(few) == in_bins(values, few)


@given(lists, st.integers(1, 20))
@settings(max_examples=100)
def test_bars_share_out_all_values(values: list[float], bars: int) -> None:
    shown = binned(values).resampled(min(values), max(values), bars)
    assert len(shown) == (bars if max(values) > min(values) else 1)
    assert all(count >= 0 for count in shown)
    assert math.isclose(sum(shown), len(values))


def test_bars_are_nearly_those_of_numpy() -> None:
    values = np.random.default_rng(0).normal(size=50_000)
    shown = binned(list(values)).resampled(values.min(), values.max(), 12)
    wanted, _ = np.histogram(values, 12)
    assert np.abs(np.array(shown) - wanted).max() < 0.02 * wanted.max()


@given(lists, st.integers(1, 9))
@settings(max_examples=50)
def test_weights_count_as_often(values: list[float], n: int) -> None:
    binning = Binning()
    binning.add(np.array(values), min(values), max(values), np.full(len(values), n))
    assert binning.histogram == binned(values).times(n)


@pytest.mark.parametrize(
    "values",
    [
        [MOST, -MOST], [MOST], [-MOST, 0.0], [5e-324], [5e-324, 1.0], [5e-324, MOST], [-5e-324, 5e-324], [0.0, -0.0],
        [1e300, 1.0], [2.0**1023], [1e-308, 2e-308],
    ],
)  # fmt: skip
def test_the_ends_of_what_a_float_holds(values: list[float]) -> None:
    for made in ([values], [[value] for value in values], [[value] for value in reversed(values)]):
        found = binned(*made)
        assert sum(found.counts) == len(values)
        assert found.edges[0] <= min(values) and max(values) <= found.edges[-1]
        assert all(map(math.isfinite, found.edges))


def test_nothing() -> None:
    assert (EMPTY.edges, EMPTY.counts, EMPTY.within(3), EMPTY + EMPTY) == ((), (), EMPTY, EMPTY)
    assert Binning().histogram == EMPTY
    assert EMPTY.times(4) == EMPTY


def test_a_small_one_as_it_is() -> None:
    found = binned([0.0, 1.0, 2.0, 3.0]).within(4)
    assert (found.edges, found.counts) == ((0.0, 1.0, 2.0, 3.0, 4.0), (1, 1, 1, 1))


@pytest.mark.parametrize("power", [0, 100, 200, 220, 250, 300, 308])
def test_values_of_all_sizes_lie_on_their_side_of_zero(power: int) -> None:
    rng = np.random.default_rng(power)
    small = rng.choice([-1.0, 1.0], 400) * 10.0 ** rng.uniform(-323, power, 400)
    values = np.concatenate([[10.0**power, -(10.0**power), 0.0, -0.0, 5e-324, -5e-324], small])
    bins = Binning()
    bins.add(values, float(values.min()), float(values.max()))
    found = bins.histogram
    edges = np.array(found.edges)
    expected = [int(((values >= low) & (values < high)).sum()) for low, high in itertools.pairwise(edges)]
    assert list(found.counts) == expected
