"""Values block by block: together they are what torch and numpy hold, and checksums are never passed over."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from helpers import listing, records, refused, rezipped, source_of
from hypothesis import given
from hypothesis import strategies as st
from stored_params import checkpoint, param, storage, views

from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files.content import Buffer, Extent, read
from paramctl.files.content import Literal as Bytes
from paramctl.formats.containers import zips
from paramctl.model.checkpoint import Checkpoint, Storage
from paramctl.values import scan
from paramctl.values.arrays import content_of, read_values
from paramctl.values.scan import BLOCK, Scan, distinct


def joined(source: Checkpoint, at: int = 0, **how: Any) -> Any:
    """The values of a param, all blocks one behind the other."""
    blocks = [block.copy() for block in Scan(source).values(source.params[at], **how)]
    return np.concatenate(blocks) if blocks else np.empty(0)


@given(views(), st.sampled_from(["little", "big"]))
def test_blocks_are_the_values(made: Any, byteorder: Literal["little", "big"]) -> None:
    view, expected, run = made
    source = checkpoint(view, storage(run.astype(">i2" if byteorder == "big" else "<i2").tobytes(), byteorder))
    assert joined(source).tolist() == expected.reshape(-1).tolist()
    assert sorted(joined(source, in_order=False).tolist()) == sorted(expected.reshape(-1).tolist())


@pytest.mark.parametrize("numel", [1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 7])
def test_blocks_end_anywhere(tmp_path: Path, numel: int) -> None:
    data = np.random.default_rng(numel).integers(0, 256, numel, np.uint8).tobytes()
    made = param("uint8", (numel,))
    for content in ((Bytes(data),), (Extent(source_of(tmp_path, data), 0, numel),), (Bytes(data[:5]), Bytes(data[5:]))):
        source = checkpoint(made, Storage(content, numel))
        blocks = [bytes(block) for block in Scan(source).values(made)]
        assert b"".join(blocks) == data
        assert [len(block) for block in blocks[:-1]] == [BLOCK] * (len(blocks) - 1)


@pytest.mark.parametrize("dtype", ["float4_e2m1fn", "float6_e2m3fn", "quint2x4", "quint4x2"])
@pytest.mark.parametrize("numel", [1, 2, 3, 5, 64, 1001])
def test_elements_smaller_than_a_byte(dtype: str, numel: int) -> None:
    made = param(dtype, (numel,))
    source = checkpoint(made, storage(bytes(np.random.default_rng(0).integers(0, 256, made.nbytes, np.uint8))))
    assert joined(source).tobytes() == read_values(source, made).tobytes()


def test_a_storage_of_which_the_last_byte_is_half_used_may_be_large() -> None:
    numel = 2 * scan.TILE + 3
    made = param("float4_e2m1fn", (numel,))
    source = checkpoint(made, storage(b"\x21" * made.nbytes))
    assert sum(block.size for block in Scan(source).stored(made)) == numel


def test_packed_views_that_lie_apart_are_refused_where_they_are_large() -> None:
    made = param("float4_e2m1fn", (2 * scan.TILE // 3 + 2, 2), (3, 1))
    source = checkpoint(made, storage(bytes(scan.TILE + 6)))
    assert refused(Unsupported, list, Scan(source).stored(made)) == "w (float4_e2m1fn) has packed elements that are not contiguous"


def test_meta_tensors_have_no_values() -> None:
    made = param("float32", (2,))._replace(storage=None)
    message = "w is a meta tensor: no values are saved for it"
    assert refused(UsageError, list, Scan(checkpoint(made, storage(b""))).values(made)) == message


# --- checksums -----------------------------------------------------------------------------------

CORRUPT = "storage s is corrupt: its bytes do not match their CRC-32"


@pytest.mark.parametrize("shape, strides, offset", [((8,), (1,), 0), ((3,), (1,), 2), ((2, 2), (1, 2), 0), ((4,), (2,), 1)])
def test_a_wrong_checksum_shows_whatever_is_read(shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> None:
    data = bytes(range(8))
    made = param("uint8", shape, strides, offset)
    right = checkpoint(made, storage(data, crc32=zlib.crc32(data)))
    wrong = checkpoint(made, storage(data, crc32=zlib.crc32(data) ^ 1))
    assert joined(right).size == made.numel
    assert refused(FormatError, list, Scan(wrong).values(made)) == CORRUPT
    assert sum(block.size for block in Scan(wrong, trust=True).values(made)) == made.numel


# --- bounded work --------------------------------------------------------------------------------


def test_no_storage_is_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "FREE", 1000)
    made = param("uint8", (100,))
    source = checkpoint(made, storage(bytes(100)))
    reader = Scan(source)
    for _ in range(scan.OFTEN + 10):
        assert sum(block.size for block in reader.values(made)) == 100
    message = "w lies in a storage that was read 64 times over for others; name it alone"
    assert refused(Unsupported, list, reader.values(made)) == message


def deflated(folder: Path, made: dict[str, torch.Tensor]) -> Checkpoint:
    torch.save(made, folder / "x.pt")
    rezipped(folder / "x.pt", records(folder / "x.pt"), zipfile.ZIP_DEFLATED)
    return listing(folder / "x.pt")


def test_a_deflated_storage_is_inflated_twice_for_many_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inflated: list[str] = []
    inflate = zips._inflated

    def counted(packed: Extent, record: zips.Record) -> Iterator[Buffer]:
        inflated.append(record.name)
        return inflate(packed, record)

    monkeypatch.setattr(zips, "_inflated", counted)
    base = torch.arange(2.0**18)  # 1 MiB, which is inflated from its start for each part
    source = deflated(tmp_path, {str(i): base[i : i + 10] for i in range(100)})
    reader = Scan(source)
    for i, one in enumerate(source.params):
        assert [value for block in reader.values(one) for value in block.tolist()] == list(range(i, i + 10))
        assert read(content_of(source, one), 0, 40) == base[i : i + 10].numpy().tobytes()
    assert inflated.count("x/data/0") == 2


def test_views_of_a_deflated_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.arange(1000 * 100.0).reshape(1000, 100)
    source = deflated(tmp_path, {"column": base[:, 3], "stepped": base[::300, ::7], "transposed": base.t()})
    for i, wanted in enumerate([base[:, 3], base[::300, ::7], base.t()]):
        assert joined(source, i).tolist() == wanted.reshape(-1).tolist()
    monkeypatch.setattr(scan, "TILE", 399_999)  # bytes up to which what is made anew each time would be held
    assert joined(source, 0).tolist() == base[:, 3].tolist()
    assert joined(source, 2, in_order=False).size == 100_000


def test_watching(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int | None]] = []
    made = param("uint8", (BLOCK + 5,))
    source = checkpoint(made, storage(bytes(BLOCK + 5)))
    for _ in Scan(source, lambda *args: heard.append(args), 2 * BLOCK).values(made):
        pass
    assert heard == [("reading", BLOCK, 2 * BLOCK), ("reading", BLOCK + 5, 2 * BLOCK)]


# --- repeats -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, strides, wanted, times",
    [
        ((3, 4), (4, 1), (3, 4), 1),
        ((3, 4), (0, 1), (1, 4), 3),
        ((3, 4), (0, 0), (1, 1), 12),
        ((1, 4), (0, 1), (1, 4), 1),
        ((), (), (), 1),
        ((0, 4), (0, 1), (0, 4), 1),
        ((5, 8), (3, 1), (5, 8), 1),
    ],
)
def test_what_is_expanded_is_there_once(shape: Any, strides: Any, wanted: Any, times: int) -> None:
    view, often = distinct(param("float32", shape, strides))
    assert (view.shape, view.strides, often) == (wanted, strides, times)


def test_endless_overlaps_are_refused() -> None:
    made = param("float32", (500, 500), (1, 1))
    assert refused(Unsupported, distinct, made) == "w repeats a few values over its shape"
