"""A tensor in blocks: all of it, once, in order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paramctl.values.blocks import block_indices, positions


def test_a_matrix_by_rows() -> None:
    assert list(block_indices((5, 3), 7)) == [(slice(0, 2),), (slice(2, 4),), (slice(4, 5),)]


def test_rows_that_are_too_long() -> None:
    assert list(block_indices((2, 3), 2)) == [
        (0, slice(0, 2)),
        (0, slice(2, 3)),
        (1, slice(0, 2)),
        (1, slice(2, 3)),
    ]


def test_scalars_and_nothing() -> None:
    assert list(block_indices((), 1)) == [()]
    assert list(block_indices((3, 0), 1)) == []
    assert list(positions(())) == [()]


@given(st.lists(st.integers(0, 5), max_size=5), st.integers(1, 50))
def test_blocks_are_all_in_order(shape: list[int], most: int) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    blocks = [array[index].reshape(-1) for index in block_indices(shape, most)]
    assert [n for block in blocks for n in block.tolist()] == list(range(array.size))
    assert all(0 < block.size <= most for block in blocks)


@given(st.lists(st.integers(0, 4), max_size=5))
def test_positions_are_numpys(shape: list[int]) -> None:
    assert list(positions(shape)) == list(np.ndindex(*shape))
