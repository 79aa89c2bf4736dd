"""Params and storages made in memory, for tests of values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from hypothesis import strategies as st

from paramctl.files.content import Literal as Bytes
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME

Order = Literal["little", "big"]


def storage(data: bytes, byteorder: Order = "little", crc32: int | None = None) -> Storage:
    return Storage((Bytes(data),), len(data), byteorder, crc32)


def param(
    dtype: str, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0, **more: Any
) -> Param:
    return Param(
        "w", "tensor", BY_NAME[dtype], shape, contiguous(shape) if strides is None else strides, "s", offset, **more
    )


def checkpoint(made: Param, held: Storage) -> Checkpoint:
    return Checkpoint("x", "x", (made,), {"s": held})


@st.composite
def views(draw: st.DrawFn) -> tuple[Param, np.ndarray[Any, np.dtype[np.int16]], np.ndarray[Any, np.dtype[np.int16]]]:
    """A view of a run of int16, as a Param and as numpy has it, and the run."""
    rank = draw(st.integers(0, 4))
    shape = tuple(draw(st.lists(st.integers(0, 4), min_size=rank, max_size=rank)))
    steps = tuple(draw(st.lists(st.integers(0, 7), min_size=rank, max_size=rank)))
    if draw(st.booleans()):
        order = draw(st.permutations(range(rank)))
        plain = contiguous(tuple(shape[i] for i in order))
        steps = tuple(plain[order.index(i)] for i in range(rank))
    offset = draw(st.integers(0, 3))
    run = np.arange(
        offset + 1 + sum(max(n - 1, 0) * step for n, step in zip(shape, steps, strict=True)), dtype=np.int16
    )
    view = np.lib.stride_tricks.as_strided(run[offset:], shape, tuple(2 * step for step in steps))
    return param("int16", shape, steps, offset), view, run
