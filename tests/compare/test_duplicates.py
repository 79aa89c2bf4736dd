"""Params with equal values that are not tied: groups of them, bit for bit."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import file_of, listing, record_of, records, refused, rezipped
from safetensors.torch import save_file

from paramctl.compare.duplicates import EqualParams, equal_params
from paramctl.errors import FormatError
from paramctl.files.content import CHUNK
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.digest import digest
from paramctl.values.scan import Scan

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.complex128,
    torch.int64, torch.int32, torch.int8, torch.uint8, torch.uint16, torch.bool,
]  # fmt: skip


def saved(tmp_path: Path, obj: object) -> Checkpoint:
    torch.save(obj, tmp_path / "x.pt")
    return listing(tmp_path / "x.pt")


def groups(checkpoint: Checkpoint) -> list[list[str]]:
    found = equal_params(checkpoint, range(len(checkpoint.params)))
    return [[checkpoint.params[i].path for i in one.members] for one in found]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_values_of_each_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(6).reshape(2, 3).to(dtype)
    other = values.clone()
    other[1, 2] = 0
    checkpoint = saved(tmp_path, {"a": values, "b": values.clone(), "c": other, "d": values.reshape(3, 2)})
    assert groups(checkpoint) == [["a", "b"]]
    assert equal_params(checkpoint, [0, 2, 3]) == ()


def test_what_is_equal_as_numbers_but_not_as_bits(tmp_path: Path) -> None:
    zeros = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([-0.0, 1.0]), "c": torch.tensor([0.0, 1.0])}
    assert groups(saved(tmp_path, zeros)) == [["a", "c"]]
    assert groups(saved(tmp_path, {"a": torch.ones(2), "b": torch.ones(2).double(), "c": torch.ones(2).int()})) == []
    assert groups(saved(tmp_path, {"a": torch.ones(2, dtype=torch.int16), "b": torch.ones(2).half().view(torch.int16)})) == []


def test_nan_is_equal_to_itself_but_not_to_one_of_another_payload(tmp_path: Path) -> None:
    one, other = (torch.tensor([bits, 1], dtype=torch.int32).view(torch.float32) for bits in (0x7FC00000, 0x7FC00001))
    assert one.isnan()[0] and other.isnan()[0]
    assert groups(saved(tmp_path, {"a": one, "b": other, "c": one.clone(), "d": other.clone()})) == [["a", "c"], ["b", "d"]]


def test_however_they_lie_in_their_storages(tmp_path: Path) -> None:
    values = torch.arange(12.0).reshape(3, 4)
    wide = torch.zeros(3, 6)
    wide[:, 1:5] = values
    state = {"a": values, "t": values.t().contiguous().t(), "slice": wide[:, 1:5], "long": torch.cat([values, wide[:, :4]])[:3]}
    assert groups(saved(tmp_path, state)) == [["a", "t", "slice", "long"]]


def test_big_endian_files_are_compared_among_themselves(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([1.0, 2]), "b": torch.tensor([1.0, 2]), "c": torch.tensor([2.0, 1])}, tmp_path / "x.pt")
    held = {**records(tmp_path / "x.pt"), "x/byteorder": b"big"}
    held |= {f"x/data/{i}": struct.pack(">2f", *values) for i, values in enumerate([(1, 2), (1, 2), (2, 1)])}
    assert groups(listing(rezipped(tmp_path / "y.pt", held))) == [["a", "b"]]


def test_deflated_ones(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(9.0), "b": torch.arange(9.0)}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", records(tmp_path / "x.pt"), 8)
    assert groups(listing(path)) == [["a", "b"]]


def test_stored_bits_that_are_still_to_be_conjugated_are_other_values(tmp_path: Path) -> None:
    values = torch.tensor([1j, 2 + 1j])
    assert groups(saved(tmp_path, {"a": values, "b": values.clone().conj(), "c": values.clone()})) == [["a", "c"]]


def test_ties_count_once(tmp_path: Path) -> None:
    one, other = torch.arange(4.0), torch.arange(4.0)
    checkpoint = saved(tmp_path, {"a": one, "a2": one, "b": other, "b2": other, "lone": torch.ones(4)})
    assert equal_params(checkpoint, range(5)) == (EqualParams((0, 2), 16, False),)
    assert equal_params(checkpoint, [1, 3]) == (EqualParams((0, 2), 16, False),)
    assert equal_params(checkpoint, [0, 1]) == ()


def test_constants_are_marked(tmp_path: Path) -> None:
    values = {"a": torch.zeros(4), "b": torch.zeros(4), "c": torch.arange(4.0), "d": torch.arange(4.0), "e": torch.zeros(4)}
    checkpoint = saved(tmp_path, values)
    assert equal_params(checkpoint, range(5)) == (EqualParams((0, 1, 4), 32, True), EqualParams((2, 3), 16, False))
    nan = torch.full((3,), float("nan"))
    assert [one.constant for one in equal_params(saved(tmp_path, {"a": nan, "b": nan.clone()}), [0, 1])] == [True]


def test_what_is_left_out(tmp_path: Path) -> None:
    state = {
        "scalars": [torch.tensor(1.0), torch.tensor(1.0)],
        "single": [torch.ones(1), torch.ones(1)],
        "empty": [torch.ones(0, 3), torch.ones(0, 3)],
        "expanded": [torch.ones(1).expand(3), torch.ones(1).expand(3)],
        "sparse": [torch.eye(2).to_sparse(), torch.eye(2).to_sparse()],
        "meta": [torch.empty(2, device="meta"), torch.empty(2, device="meta")],
    }
    assert groups(saved(tmp_path, state)) == []


def with_crc(data: bytes, crc: int) -> bytes:
    """Return `data` with its last four bytes changed so that its CRC-32 is the given one."""
    table = [zlib.crc32(bytes([i ^ 0xFF])) ^ 0xFF000000 for i in range(256)]
    back = {entry >> 24: i for i, entry in enumerate(table)}
    state = crc ^ 0xFFFFFFFF
    for _ in range(4):
        i = back[state >> 24]
        state = ((state ^ table[i]) << 8 | i) & 0xFFFFFFFF
    start = zlib.crc32(data[:-4]) ^ 0xFFFFFFFF
    return data[:-4] + (state ^ start).to_bytes(4, "little")


def test_an_equal_crc_and_an_equal_beginning_are_not_equal_values(tmp_path: Path) -> None:
    one = np.arange(1000, dtype=np.int32).tobytes()
    other = with_crc(one[:3000] + b"other" + one[3005:], zlib.crc32(one))
    assert zlib.crc32(one) == zlib.crc32(other) and one[:3000] == other[:3000] and one != other
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.int32) for data in (one, other, other)]
    assert groups(saved(tmp_path, dict(zip("abc", tensors, strict=True)))) == [["b", "c"]]


def test_a_corrupt_one_is_an_error(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(400.0), "b": torch.arange(400.0)}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[record_of(tmp_path / "x.pt", "data/1").payload + 1500] ^= 1
    path = file_of(tmp_path, bytes(data), "y.pt")
    what = "storage 1 is corrupt: its bytes do not match their CRC-32"
    assert refused(FormatError, groups, listing(path)) == what


def test_a_digest_is_of_values_not_of_how_they_lie(tmp_path: Path) -> None:
    values = torch.randn(300, 500)
    checkpoint = saved(tmp_path, {"a": values, "b": values.t().contiguous().t(), "c": values + 1})
    a, b, c = (digest(Scan(checkpoint), param) for param in checkpoint.params)
    assert a == b != c


def test_many_equal_ones(tmp_path: Path) -> None:
    save_file({f"layer.{i}.bias": torch.ones(2) for i in range(20_000)}, tmp_path / "x.safetensors")
    checkpoint = listing(tmp_path / "x.safetensors")
    (found,) = equal_params(checkpoint, range(20_000))
    assert found == EqualParams(tuple(range(20_000)), 19_999 * 8, True)


def test_memory_is_bounded(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {"a": torch.ones(1 << 23), "b": torch.ones(1 << 23)})
    tracemalloc.start()
    assert groups(checkpoint) == [["a", "b"]]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * CHUNK


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    checkpoint = saved(tmp_path, {"a": torch.ones(4), "b": torch.ones(4), "c": torch.ones(5)})
    equal_params(checkpoint, range(3), lambda *news: told.append(news))
    assert told == [("reading", 16, 32), ("reading", 32, 32)]
