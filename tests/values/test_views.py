"""Every view of every dtype that torch makes reads as torch has it: steps, transposes, expansions, offsets."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from paramctl.check.check import check
from paramctl.compare.diff import diff
from paramctl.compare.duplicates import equal_params
from paramctl.formats import opening
from paramctl.stats.stats import stats
from paramctl.values.arrays import read_index, read_values

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex32, torch.complex64,
    torch.complex128, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64, torch.bool,
]  # fmt: skip
VIEWS = 24


def view_of(base: torch.Tensor, rng: Random) -> torch.Tensor:
    """Return a random view."""
    made = base
    for _ in range(rng.randrange(1, 4)):
        axis = rng.randrange(made.dim()) if made.dim() else 0
        match rng.randrange(6):
            case 0 if made.dim() > 1:
                made = made.transpose(axis, rng.randrange(made.dim()))
            case 1 if made.dim():
                start = rng.randrange(made.shape[axis] + 1)
                made = made[(slice(None),) * axis + (slice(start, None, rng.randrange(1, 4)),)]
            case 2 if made.dim() > 1 and made.shape[axis]:
                made = made.select(axis, rng.randrange(made.shape[axis]))
            case 3:
                made = made.unsqueeze(rng.randrange(made.dim() + 1)).expand(*[-1] * made.dim(), *[-1])
            case 4 if made.dim() < 3:
                made = made[..., None].expand(*made.shape, rng.randrange(1, 4))
            case 5 if made.is_complex() and made.dtype is not torch.complex32:
                made = made.conj()
            case _:
                continue
    return made


def wide(tensor: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """Return the values of a tensor in the widest dtype of their kind."""
    if tensor.is_complex():
        tensor = tensor.resolve_conj().to(torch.complex128)
    elif tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.contiguous().numpy()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_of_views(dtype: torch.dtype, tmp_path: Path) -> None:
    rng = Random(str(dtype))
    base = (torch.arange(5 * 6 * 7) % 120).reshape(5, 6, 7)
    filled = (base + 0.25j * base).to(torch.complex64).to(dtype) if dtype.is_complex else base.to(dtype)
    made = {f"v{i}": view_of(filled, rng) for i in range(VIEWS)}
    torch.save(made, tmp_path / "x.pt")
    checkpoint = opening.open(str(tmp_path / "x.pt"))
    for param, tensor in zip(checkpoint.params, made.values(), strict=True):
        expected = wide(tensor)
        assert np.array_equal(read_values(checkpoint, param).astype(expected.dtype), expected), param
        if tensor.dim() and tensor.shape[0]:
            part = (slice(None, None, 2),)
            assert np.array_equal(read_index(checkpoint, param, part).astype(expected.dtype), expected[part]), param


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_verbs_that_look_take_every_view(dtype: torch.dtype, tmp_path: Path) -> None:
    rng = Random(f"verbs {dtype}")
    base = torch.arange(60).reshape(3, 4, 5)
    filled = (base + 0.25j * base).to(torch.complex64).to(dtype) if dtype.is_complex else base.to(dtype)
    torch.save({f"v{i}": view_of(filled, rng) for i in range(VIEWS)}, tmp_path / "x.pt")
    torch.save({f"v{i}": view_of(filled.clone(), Random(i)) for i in range(VIEWS)}, tmp_path / "y.pt")
    one, other = (opening.open(str(tmp_path / name)) for name in ("x.pt", "y.pt"))
    assert {finding.rule for finding in check(str(tmp_path / "x.pt")).findings} <= {"dead-rows", "constant", "all-zero"}
    rows = list(stats(one, histograms=True))
    assert [row.summary.figures.count for row in rows] == [param.numel for param in one.params]
    assert diff(one, one).equal == len(one.params)
    diff(one, other)
    list(equal_params(one, range(len(one.params))))
