"""Boxes that make up a tensor, against numpy."""

from __future__ import annotations

import zlib
from math import prod
from typing import Any

import numpy as np
import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st

from paramctl.errors import FormatError
from paramctl.files.content import Buffer, Computed, Content, Literal, chunks, read
from paramctl.formats.sets import chunk_grid
from paramctl.formats.sets.chunk_grid import (
    Box,
    BoxContent,
    concatenated,
    is_concatenation,
    made_once,
    taken,
    tile,
    woven,
)

SHAPES = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


def cut(draw: st.DrawFn, box: Box, times: int) -> list[Box]:
    """A box in two, and each of them again."""
    axes = [axis for axis, n in enumerate(box.sizes) if n > 1]
    if not axes or not times:
        return [box]
    axis = draw(st.sampled_from(axes))
    at = draw(st.integers(1, box.sizes[axis] - 1))
    low, high, beyond = list(box.sizes), list(box.sizes), list(box.offsets)
    low[axis], high[axis], beyond[axis] = at, box.sizes[axis] - at, box.offsets[axis] + at
    one, other = Box(box.offsets, tuple(low)), Box(tuple(beyond), tuple(high))
    return [*cut(draw, one, times - 1), *cut(draw, other, draw(st.integers(0, times - 1)))]


@st.composite
def tilings(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    shape = draw(SHAPES)
    boxes = cut(draw, Box((0,) * len(shape), shape), draw(st.integers(0, 4)))
    return shape, draw(st.permutations(boxes))


def within(box: Box) -> tuple[slice, ...]:
    return tuple(slice(at, at + n) for at, n in zip(box.offsets, box.sizes, strict=True))


def held(values: Any, boxes: list[Box]) -> list[BoxContent]:
    data = [values[within(box)].tobytes() for box in boxes]
    return [BoxContent(box, (Literal(one),), zlib.crc32(one), "chunk") for box, one in zip(boxes, data, strict=True)]


def bytes_of(content: tuple[Content, ...]) -> bytes:
    return b"".join(chunks(content))


@given(tilings())
def test_cuts_through_a_tensor_tile_it(tiling: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = tiling
    assert tile(shape, boxes)
    assert not tile(shape, boxes[1:])
    assert not tile(shape, [*boxes, boxes[0]])


def test_a_box_beyond_the_end_does_not_tile() -> None:
    assert not tile((4,), [Box((0,), (2,)), Box((2,), (3,))])
    assert not tile((4,), [Box((0,), (2,)), Box((3,), (1,))])
    assert not tile((4,), [Box((0,), (3,)), Box((2,), (2,))])
    assert not tile((4, 2), [Box((0, 0), (4, 1))])


@pytest.mark.parametrize("block", [1 << 22, 40, 1])
@given(tilings())
def test_boxes_are_woven_together_and_taken_apart(
    block: int, tiling: tuple[tuple[int, ...], list[Box]]
) -> None:
    shape, boxes = tiling
    values = np.arange(prod(shape), dtype=np.int16).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk_grid, "BLOCK", block)
        content = woven(shape, held(values, boxes), 2)
        assert bytes_of(content) == values.tobytes()
        half = values.nbytes // 2
        assert read(content, half, values.nbytes - half) == values.tobytes()[half:]
        for box in boxes:
            assert bytes_of(taken(shape, content, box, 2)) == values[within(box)].tobytes()


@given(st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_boxes_of_whole_rows_are_one_behind_the_other(width: int, heights: list[int]) -> None:
    shape = (sum(heights), width)
    boxes = [Box((sum(heights[:i]), 0), (n, width)) for i, n in enumerate(heights)]
    values = np.arange(prod(shape), dtype=np.int32).reshape(shape)
    assert is_concatenation(shape, boxes)
    content, crc32 = concatenated(held(values, boxes)[::-1], 4)
    assert bytes_of(content) == values.tobytes()
    assert crc32 == zlib.crc32(values.tobytes())


def test_a_sum_that_is_not_known_is_none_of_the_whole() -> None:
    one = BoxContent(Box((0,), (1,)), (Literal(b"a"),), None, "a")
    assert concatenated([one], 1) == ((Literal(b"a"),), None)


def test_damage_shows_once_all_of_a_box_was_read() -> None:
    values = np.arange(8, dtype=np.uint8).reshape(2, 4)
    boxes = [Box((0, 0), (2, 2)), Box((0, 2), (2, 2))]
    good, bad = held(values, boxes)
    content = woven((2, 4), [good, bad._replace(crc32=1)], 1)
    assert refused(FormatError, bytes_of, content) == "chunk is corrupt: its bytes do not match their CRC-32"


def test_what_is_drawn_is_drawn_once() -> None:
    drawn: list[int] = []

    def draw() -> list[Buffer]:
        drawn.append(1)
        return [bytes(range(200)), bytes(range(100))]

    kept = made_once((Literal(b"x"), Computed(300, draw)))
    whole = b"x" + bytes(range(200)) + bytes(range(100))
    assert [bytes_of(kept), bytes_of(kept), bytes(read(kept, 150, 100))] == [whole, whole, whole[150:250]]
    assert drawn == [1]
