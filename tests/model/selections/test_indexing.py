"""Indices as people write them, against numpy's own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from paramctl.errors import UsageError
from paramctl.model.selections.indexing import Index, check_index, index_text, parse_index, split_index


@pytest.mark.parametrize(
    ("text", "path", "index"),
    [
        ("0.weight", "0.weight", None),
        ("0.weight[0,:5]", "0.weight", (0, slice(None, 5))),
        ("w[ -1 , ... , ::2 ]", "w", (-1, ..., slice(None, None, 2))),
        ("w[3:1:-1]", "w", (slice(3, 1, -1),)),
        ("w[:]", "w", (slice(None),)),
        ("w[0,]", "w", (0,)),
        ("[0][1].bias[2]", "[0][1].bias", (2,)),
        ("w]", "w]", None),
        ("we[ird", "we[ird", None),
        ("", "", None),
    ],
)
def test_split(text: str, path: str, index: Index | None) -> None:
    assert split_index(text) == (path, index)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w[a]", "'a' in the index [a] is no index"),
        ("w[]", "'' in the index [] is no index"),
        ("w[0,,1]", "'' in the index [0,,1] is no index"),
        ("w[1:2:3:4]", "'1:2:3:4' in the index [1:2:3:4] is no index"),
        ("w[1.5]", "'1.5' in the index [1.5] is no index"),
        ("w[__import__('os')]", "'__import__('os')' in the index [__import__('os')] is no index"),
        ("w[99999999999999999999]", "'99999999999999999999' in the index [99999999999999999999] is no index"),
    ],
)
def test_what_is_no_index(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        split_index(text)
    assert str(error.value) == f"{message}; use whole numbers, slices such as 0:5 or ::2, and '...'"


def test_what_numpy_refuses_too() -> None:
    with pytest.raises(UsageError, match=r"has '...' twice"):
        parse_index("..., ...")
    with pytest.raises(UsageError, match=r"the slice ::0 in the index .* has step 0"):
        parse_index("::0")


@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        ((9,), (8, 4), "index 9 is out of range for axis 0 of 0.weight (8 × 4)"),
        ((..., -5), (8, 4), "index -5 is out of range for axis 1 of 0.weight (8 × 4)"),
        ((0, 0, 0), (8, 4), "0.weight (8 × 4) has 2 axes, and the index [0, 0, 0] has 3"),
        ((slice(None), 0), (8,), "0.weight (8) has 1 axis, and the index [:, 0] has 2"),
        ((0,), (), "0.weight (scalar) has 0 axes, and the index [0] has 1"),
    ],
)
def test_an_index_that_does_not_fit(index: Index, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_index(index, shape, "0.weight")
    assert str(error.value) == message


SHAPES = npst.array_shapes(min_dims=1, max_dims=4, max_side=5)


@given(st.data())
def test_an_index_means_what_it_means_to_numpy(data: st.DataObject) -> None:
    array = np.arange(60 * 5**2).reshape(5, 5, 5, 12)[:3]
    drawn = data.draw(npst.basic_indices(array.shape, allow_newaxis=False))
    index = drawn if isinstance(drawn, tuple) else (drawn,)
    if not index:
        return
    path, parsed = split_index(f"0.w[{index_text(index)}]")
    assert path == "0.w" and parsed is not None
    check_index(parsed, array.shape, path)
    np.testing.assert_array_equal(array[parsed], array[index])


@given(SHAPES, st.lists(st.integers(-6, 6), max_size=5))
def test_what_check_lets_through_numpy_takes(shape: tuple[int, ...], numbers: list[int]) -> None:
    index = tuple(numbers)
    try:
        check_index(index, shape, "w")
    except UsageError:
        with pytest.raises(IndexError):
            np.zeros(shape)[index]
    else:
        np.zeros(shape)[index]
