"""Values as numpy has them: any view, any byte order, any width of element."""

from __future__ import annotations

import tracemalloc
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from stored_params import Order, checkpoint, param, storage, views

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files.content import Extent, read
from paramctl.files.content import Literal as Bytes
from paramctl.files.sources import open_source
from paramctl.model.checkpoint import Checkpoint, Param, Storage, contiguous
from paramctl.model.dtypes import BY_NAME
from paramctl.values.arrays import (
    NewValues,
    cast,
    cells,
    content_of,
    contiguous_copy,
    encode,
    in_machine_order,
    narrow,
    read_index,
    read_values,
    with_values,
)


def bytes_of(held: Storage) -> bytes:
    return bytes(read(held.content, 0, held.nbytes))


# --- views ---------------------------------------------------------------------------------------




@st.composite
def indices(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """An index that numpy's basic indexing takes."""
    bound = st.none() | st.integers(-6, 6)
    items: list[Any] = []
    for n in shape[: draw(st.integers(0, len(shape)))]:
        step = draw(st.none() | st.integers(-3, 3).filter(bool))
        whole = st.builds(slice, bound, bound, st.just(step))
        items.append(draw(whole | st.integers(-n, n - 1) if n else whole))
    if draw(st.booleans()):
        items.append(...)
    return tuple(items)


@given(views(), st.data(), st.sampled_from(["little", "big"]))
@settings(deadline=None, max_examples=150)
def test_reading_is_what_numpy_reads(made: Any, data: st.DataObject, byteorder: Order) -> None:
    view, expected, run = made
    held = storage(run.astype(">i2" if byteorder == "big" else "<i2").tobytes(), byteorder)
    source = checkpoint(view, held)
    assert np.array_equal(read_values(source, view), expected)
    index = data.draw(indices(view.shape))
    assert np.array_equal(read_index(source, view, index), expected[index])
    part = narrow(view, index)
    assert (part.shape, part.numel) == (expected[index].shape, expected[index].size)
    assert bytes(read(content_of(source, view), 0, view.nbytes)) == expected.tobytes()


@given(views(), st.data(), st.sampled_from(["little", "big"]))
@settings(deadline=None, max_examples=150)
def test_writing_is_what_numpy_writes(made: Any, data: st.DataObject, byteorder: Order) -> None:
    view, expected, run = made
    assume(not view.repeats_itself)
    order = ">i2" if byteorder == "big" else "<i2"
    held = storage(run.astype(order).tobytes(), byteorder)
    index = data.draw(indices(view.shape))
    part = narrow(view, index)
    new = np.arange(-1, -1 - part.numel, -1, dtype=np.int16).reshape(part.shape)
    written = with_values(held, NewValues(part, lambda: encode(new, view.dtype)))
    expected[index] = new
    assert np.array_equal(np.frombuffer(bytes_of(written), order), run)
    assert written.nbytes == held.nbytes


@given(st.lists(views(), min_size=1, max_size=4), st.sampled_from(["little", "big"]))
@settings(deadline=None, max_examples=150)
def test_views_of_the_same_bytes_are_written_in_order(made: Any, byteorder: Order) -> None:
    parts = [view for view, _, _ in made if not view.repeats_itself]
    run = max((run for _, _, run in made), key=len)
    order = ">i2" if byteorder == "big" else "<i2"
    held = in_turn = storage(run.astype(order).tobytes(), byteorder)
    changes = [
        NewValues(part, partial(encode, np.full(part.shape, -1 - i, np.int16), part.dtype))
        for i, part in enumerate(parts)
    ]
    assume(changes)
    for change in changes:
        in_turn = with_values(in_turn, change)
    assert bytes_of(with_values(held, *changes)) == bytes_of(in_turn)


def test_interleaved_views_by_the_thousand_are_no_burden() -> None:
    columns = [param("uint8", (4,), (5000,), i) for i in range(5000)]
    held = storage(bytes(20_000))
    written = with_values(held, *(NewValues(column, partial(bytes, [i % 256] * 4)) for i, column in enumerate(columns)))
    assert bytes_of(written) == bytes(i % 256 for i in range(5000)) * 4


@given(views())
@settings(deadline=None, max_examples=100)
def test_copies_are_contiguous_and_alone(made: Any) -> None:
    view, expected, run = made
    assume(not view.repeats_itself)
    for byteorder in ("little", "big"):
        own, held = contiguous_copy(checkpoint(view, storage(run.tobytes())), view, "new", byteorder)
        assert (own.storage, own.offset, own.strides) == ("new", 0, contiguous(view.shape))
        order = ">i2" if byteorder == "big" else "<i2"
        assert bytes_of(held) == expected.astype(order).tobytes()
        assert held.byteorder == byteorder


def test_the_copy_of_an_expanded_view_keeps_its_few_values() -> None:
    view = param("uint8", (4, 2), (0, 1), 1)
    own, held = contiguous_copy(checkpoint(view, storage(b"abc")), view, "new")
    assert (own.shape, own.strides, own.offset, bytes_of(held)) == ((4, 2), (0, 1), 0, b"bc")


# --- elements of every width ---------------------------------------------------------------------


@given(st.sampled_from(["float4_e2m1fn", "float6_e2m3fn", "quint4x2", "quint2x4"]), st.data())
@settings(deadline=None, max_examples=150)
def test_elements_that_share_bytes(name: str, data: st.DataObject) -> None:
    dtype = BY_NAME[name]
    shape = (data.draw(st.integers(1, 3)), 4)
    codes = np.array(data.draw(st.lists(st.integers(0, 2**dtype.bits - 1), min_size=prod(shape), max_size=prod(shape))), np.uint8)
    number = sum(int(code) << i * dtype.bits for i, code in enumerate(codes))
    raw = number.to_bytes(dtype.nbytes(codes.size), "little")
    view = param(name, shape)
    source = checkpoint(view, storage(raw))
    assert np.array_equal(read_values(source, view).view(np.uint8), codes.reshape(shape))
    index = data.draw(indices(shape))
    assert np.array_equal(read_index(source, view, index).view(np.uint8), codes.reshape(shape)[index])
    part = narrow(view, index)
    new = np.full(part.shape, 2**dtype.bits - 1, np.uint8)
    written = with_values(source.storages["s"], NewValues(part, lambda: encode(new, dtype)))
    expected = codes.reshape(shape).copy()
    expected[index] = 2**dtype.bits - 1
    assert np.array_equal(read_values(checkpoint(view, written), view).view(np.uint8), expected)


def test_packed_elements_that_are_not_contiguous_have_no_plain_bytes() -> None:
    view = param("float4_e2m1fn", (2, 4), (1, 2))
    message = "w (float4_e2m1fn) has packed elements that are not contiguous"
    assert refused(Unsupported, content_of, checkpoint(view, storage(bytes(4))), view) == message


@pytest.mark.parametrize(
    ("dtype", "little", "big"),
    [
        ("int64", "0100000000000000", "0000000000000001"),
        ("float32", "0000803f", "3f800000"),
        ("bfloat16", "803f", "3f80"),
        ("complex64", "0000803f00000040", "3f80000040000000"),
        ("complex128", "000000000000f03f0000000000000040", "3ff00000000000004000000000000000"),
        ("complex32", "003c0040", "3c004000"),
        ("float8_e4m3fn", "38", "38"),
        ("bool", "01", "01"),
    ],
)
def test_byte_order(dtype: str, little: str, big: str) -> None:
    view = param(dtype, (1,))
    value = 1 + 2j if dtype.startswith("complex") else 1
    for order, text in (("little", little), ("big", big)):
        held = storage(bytes.fromhex(text), order)  # type: ignore[arg-type]
        found = read_values(checkpoint(view, held), view)
        assert found.tolist() == [value]
        assert bytes(read(content_of(checkpoint(view, held), view), 0, view.nbytes)).hex() == little
        empty = held._replace(content=(Bytes(bytes(held.nbytes)),))
        assert bytes_of(with_values(empty, NewValues(view, lambda: bytes.fromhex(little)))).hex() == text


@pytest.mark.parametrize(("flags", "expected"), [({"conj"}, 1 - 2j), ({"neg"}, -1 - 2j), ({"conj", "neg"}, -1 + 2j)])
@pytest.mark.parametrize("dtype", ["complex32", "complex64", "complex128"])
@pytest.mark.parametrize("order", ["little", "big"])
def test_flags_are_resolved_both_ways(dtype: str, flags: set[str], expected: complex, order: Order) -> None:
    plain = np.array([1, 2], {"complex32": "f2", "complex64": "f4", "complex128": "f8"}[dtype])
    held = storage(plain.astype(plain.dtype.newbyteorder(">" if order == "big" else "<")).tobytes(), order)
    view = param(dtype, (1,), flags=frozenset(flags))
    source = checkpoint(view, held)
    assert read_values(source, view).tolist() == [expected]
    own, copied = contiguous_copy(source, view, "new")
    assert not own.flags
    assert read_values(Checkpoint("x", "x", (own,), {"new": copied}), own).tolist() == [expected]
    part = bytes(read(content_of(source, view), 0, view.nbytes))
    assert bytes_of(with_values(held, NewValues(view, lambda: part))) == bytes_of(held)


# --- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype", "made"),
    [
        ([1.5], "float16", [1.5]),
        ([1.0, 2.0], "int8", [1, 2]),
        ([-128, 127], "int8", [-128, 127]),
        ([2**64 - 1], "uint64", [2**64 - 1]),
        ([0, 1], "bool", [False, True]),
        ([1 + 2j], "complex64", [1 + 2j]),
        ([1.0], "complex128", [1 + 0j]),
        ([3.0], "float8_e5m2", [3.0]),
        ([3.0], "float4_e2m1fn", [3.0]),
        ([3.0], "float6_e2m3fn", [3.0]),
    ],
)
def test_casts(values: list[Any], dtype: str, made: list[Any]) -> None:
    assert cast(np.array(values), BY_NAME[dtype]).tolist() == made


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        ([1.5], "int32", "int32 holds whole numbers only"),
        ([float("nan")], "int32", "int32 holds whole numbers only"),
        ([128], "int8", "values from 128 to 128 do not fit int8"),
        ([-1, 5], "uint8", "values from -1 to 5 do not fit uint8"),
        ([2], "bool", "values from 2 to 2 do not fit bool"),
        ([1j], "float32", "complex values do not fit float32"),
    ],
)
def test_what_does_not_fit(values: list[Any], dtype: str, message: str) -> None:
    assert refused(UsageError, cast, np.array(values), BY_NAME[dtype]) == message


def test_half_complex_numbers_are_two_halves() -> None:
    made = cast(np.array([1 + 2j]), BY_NAME["complex32"])
    assert bytes(encode(made, BY_NAME["complex32"])).hex() == "003c0040"


# --- corruption ----------------------------------------------------------------------------------


def test_a_checksum_is_held_against_what_is_used() -> None:
    view = param("uint8", (2,))
    corrupt = storage(b"abcd", crc32=1)
    source = checkpoint(view, corrupt)
    message = "storage s is corrupt: its bytes do not match their CRC-32"
    assert refused(FormatError, read_values, source, view) == message
    assert read_index(source, view, (0,)).tolist() == 97
    assert bytes_of(with_values(corrupt, NewValues(view, lambda: b"xy"))) == b"xycd"
    whole = param("uint8", (4,))
    new = with_values(corrupt, NewValues(whole, lambda: b"wxyz"))
    assert (bytes_of(new), new.crc32) == (b"wxyz", None)


def test_composite_tensors_have_no_values_of_their_own() -> None:
    part = param("float32", (1,))._replace(path="w.values")
    view = Param("w", "tensor", BY_NAME["float32"], (3,), (1,), None, layout="sparse_coo", components=(part,))
    message = "w is sparse_coo: its values are in w.values"
    assert refused(UsageError, read_values, checkpoint(view, storage(b"")), view) == message


# --- elements that lie apart ---------------------------------------------------------------------


def test_a_column_does_not_keep_what_lies_between_its_elements(tmp_path: Path) -> None:
    """The bytes that numpy allocates at most, for ten columns of a matrix of 64 MiB."""
    with (tmp_path / "x.bin").open("wb") as file:
        file.truncate(1 << 26)
        file.seek(5)
        file.write(b"\x07")
    held = Storage((Extent(open_source(str(tmp_path / "x.bin")), 0, 1 << 26),), 1 << 26)
    view = param("uint8", (1 << 11, 10), (1 << 15, 1), 3)
    tracemalloc.start()
    values = read_values(checkpoint(view, held), view)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (values.sum(), values[0, 2]) == (7, 7)
    assert most < 1 << 25
    small = view._replace(shape=(1 << 11, 10), strides=(1, 1 << 15))
    assert read_values(checkpoint(small, held), small)[2, 0] == 7


@pytest.mark.parametrize("dtype, numel, wanted", [("float4_e2m1fn", 3, 4), ("float6_e2m3fn", 5, 5), ("quint2x4", 3, 4), ("int16", 3, 3)])
def test_cells_are_one_number_for_each_element(dtype: str, numel: int, wanted: int) -> None:
    whole = sum((i + 1) << BY_NAME[dtype].bits * i for i in range(numel))
    found = cells(whole.to_bytes(BY_NAME[dtype].nbytes(numel), "little"), BY_NAME[dtype])
    assert found[:numel].tolist() == [(i + 1) % (1 << BY_NAME[dtype].bits) for i in range(numel)]
    assert len(found) == wanted


@pytest.mark.parametrize("dtype", ["complex128", "complex64", "complex32", "float64", "bfloat16", "uint8", "bool"])
def test_elements_of_a_big_endian_machine_are_turned_round(dtype: str) -> None:
    """A complex element part by part."""
    size = BY_NAME[dtype].itemsize // (2 if BY_NAME[dtype].category == "complex" else 1)
    data = bytes(range(1, 1 + 3 * BY_NAME[dtype].itemsize))
    turned = b"".join(data[i : i + size][::-1] for i in range(0, len(data), size))
    found = in_machine_order(cells(turned, BY_NAME[dtype]), BY_NAME[dtype], "big")
    assert found.tobytes() == data
    assert in_machine_order(cells(data, BY_NAME[dtype]), BY_NAME[dtype], "little").tobytes() == data
