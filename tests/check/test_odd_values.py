"""How many values are NaN, infinite, zero, denormal: what numpy and torch count, by their bits."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers import listing
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file

from paramctl.check.odd_values import ValueCounts, count_values, is_zero
from paramctl.model.dtypes import BY_NAME
from paramctl.values.scan import Scan

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def counted(tmp_path: Path, tensor: torch.Tensor) -> ValueCounts:
    torch.save(tensor, tmp_path / "x.pt")
    checkpoint = listing(tmp_path / "x.pt")
    return count_values(Scan(checkpoint), checkpoint.params[0])


def expected(tensor: torch.Tensor) -> tuple[int, int, int, int]:
    """Return the counts of NaN, infinite, zero and denormal values by torch."""
    tiny = torch.finfo(tensor.dtype).tiny
    kinds = (tensor.isnan(), tensor.isinf(), tensor == 0, (tensor != 0) & (tensor.abs() < tiny))
    return tuple(int(kind.sum()) for kind in kinds)  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_of_every_kind(tmp_path: Path, dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    odd = [0.0, -0.0, info.tiny, -info.tiny, info.smallest_normal / 2, info.max, info.min, 1.0]
    infinite = [float("inf"), float("-inf"), float("nan"), -float("nan")]
    tensor = torch.tensor(odd + infinite, dtype=torch.float64).to(dtype).repeat(5).reshape(5, 12)
    found = counted(tmp_path, tensor)
    assert (found.nan, found.inf, found.zeros, found.denormal) == expected(tensor) == (10, 10, 10, 5)
    assert found == ValueCounts(60, 10, 10, 10, 5) == counted(tmp_path, tensor.t()) == counted(tmp_path, tensor.t().contiguous())


@given(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=50))
@example([0x7C01, 0x7F81])
def test_any_bits_of_16(bits: list[int]) -> None:
    for dtype, name in ((np.dtype(np.float16), "float16"), (np.dtype(ml_dtypes.bfloat16), "bfloat16")):
        raw = np.array(bits, np.uint16)
        with np.errstate(invalid="ignore"):  # of a signalling NaN
            zero = raw.view(dtype).astype(np.float64) == 0
        assert (is_zero(raw, BY_NAME[name]) == zero).all()


SMALL = [name for name, dtype in BY_NAME.items() if dtype.category == "float" and dtype.bits <= 8 and hasattr(torch, name)]


@pytest.mark.parametrize("name", SMALL)
def test_all_values_of_a_small_dtype(tmp_path: Path, name: str) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(getattr(torch, name))
    save_file({"x": every}, tmp_path / "x.safetensors")
    checkpoint = listing(tmp_path / "x.safetensors")
    values = every.to(torch.float32)
    found = count_values(Scan(checkpoint), checkpoint.params[0])
    expected = ValueCounts(256, int(values.isnan().sum()), int(values.isinf().sum()), int((values == 0).sum()), 0)
    if name == "float8_e8m0fnu":  # its smallest, 2**-127, is not zero, whatever float32 makes of it
        expected = ValueCounts(256, 1, 0, 0, 0)
    assert found == expected


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.complex32], ids=str)
def test_complex_values(tmp_path: Path, dtype: torch.dtype) -> None:
    nan, inf = float("nan"), float("inf")
    tensor = torch.tensor([0, complex(-0.0, 0), 1j, complex(nan, 1), complex(inf, 0), complex(nan, inf), complex(0, -inf)])
    assert counted(tmp_path, tensor.to(dtype)) == ValueCounts(7, 2, 2, 2, 0)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.complex64, torch.complex128], ids=str)
def test_all_values_are_one_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    same = torch.full((3, 200), 0.5).to(dtype)
    assert counted(tmp_path, same).constant
    assert counted(tmp_path, torch.full((3,), float("nan")).to(dtype)).constant
    same[2, 199] = 1
    assert not counted(tmp_path, same).constant
    assert not counted(tmp_path, torch.tensor([0.0, -0.0]).to(dtype)).constant


def test_a_difference_far_behind_the_first_block(tmp_path: Path) -> None:
    values = torch.ones(300_000)
    values[-1] = 2
    assert counted(tmp_path, values) == ValueCounts(300_000, constant=False)
    assert counted(tmp_path, torch.ones(300_000)) == ValueCounts(300_000, constant=True)


def test_none_at_all(tmp_path: Path) -> None:
    assert counted(tmp_path, torch.zeros(0, 3)) == ValueCounts()


def test_a_mask_holds_zeros_and_infinities() -> None:
    assert ValueCounts(4, inf=1, zeros=3).is_mask
    assert not ValueCounts(4, inf=1, zeros=2).is_mask
    assert not ValueCounts(4, nan=1, inf=1, zeros=2).is_mask
    assert not ValueCounts(4, inf=4).is_mask
    assert not ValueCounts(4, zeros=4).is_mask


def test_elements_of_four_and_six_bits(tmp_path: Path) -> None:
    header = b'{"f4":{"dtype":"F4","shape":[4],"data_offsets":[0,2]},"f6":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[2,5]}}'
    data: NDArray[np.uint8] = np.array([0x80, 0x21, 0x00, 0x28, 0x04], np.uint8)
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data.tobytes())
    checkpoint = listing(tmp_path / "x.safetensors")
    four, six = (count_values(Scan(checkpoint), param) for param in checkpoint.params)
    assert (four, six) == (ValueCounts(4, zeros=2), ValueCounts(4, zeros=2))
