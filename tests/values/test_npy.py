"""Arrays from .npy files: a header is read only if it lies in the file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import refused
from numpy.lib import format

from paramctl.errors import FormatError
from paramctl.files.sources import open_source
from paramctl.values import npy


def npy_bytes(array: np.ndarray[Any, Any], version: tuple[int, int]) -> bytes:
    """Return an array as numpy writes it in a version of its format."""
    out = io.BytesIO()
    format.write_array(out, array, version=version)
    return out.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.ones((3, 2), ">i2")), np.array(7)])
def test_every_version_is_read_as_numpy_reads_it(tmp_path: Path, version: tuple[int, int], array: Any) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy_bytes(array, version))
    read = npy.load(open_source(str(path)))
    assert read.dtype == array.dtype
    assert np.array_equal(read, np.load(path))


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_a_header_longer_than_the_file_is_never_allocated(tmp_path: Path, version: tuple[int, int]) -> None:
    whole = bytearray(npy_bytes(np.ones(2), version))
    width = 2 if version == (1, 0) else 4
    whole[8 : 8 + width] = b"\xff" * width
    path = tmp_path / "x.npy"
    path.write_bytes(whole)
    claimed, left = 256**width - 1, len(whole) - 8 - width
    what = f"is no .npy file: its header claims {claimed:,} bytes and {left:,} are left"
    assert what in refused(FormatError, npy.load, open_source(str(path)))


@pytest.mark.parametrize("version", [(0, 0), (1, 1), (1, 39), (2, 1), (4, 0), (255, 255)])
def test_other_versions_are_refused(tmp_path: Path, version: tuple[int, int]) -> None:
    whole = bytearray(npy_bytes(np.ones(2), (1, 0)))
    whole[6:8] = bytes(version)
    path = tmp_path / "x.npy"
    path.write_bytes(whole)
    assert "is no .npy file: its version is none of" in refused(FormatError, npy.load, open_source(str(path)))


def test_every_cut_of_a_file_is_one_error(tmp_path: Path) -> None:
    whole = npy_bytes(np.ones((2, 3)), (1, 0))
    path = tmp_path / "x.npy"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        assert refused(FormatError, npy.load, open_source(str(path)))
