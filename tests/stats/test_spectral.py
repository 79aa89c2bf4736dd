"""The largest singular value and the stable rank, compared with numpy's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import listing

from paramctl.stats.spectral import Spectrum, spectrum


def found(folder: Path, tensor: torch.Tensor) -> Spectrum | str:
    torch.save({"x": tensor}, folder / "x.pt")
    checkpoint = listing(folder / "x.pt")
    return spectrum(checkpoint, checkpoint.params[0])


def assert_like_numpy(folder: Path, tensor: torch.Tensor) -> None:
    values = tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()
    singular = np.linalg.svd(values.reshape(len(values), -1), compute_uv=False)
    spectrum = found(folder, tensor)
    assert isinstance(spectrum, Spectrum)
    assert spectrum.sigma == pytest.approx(singular[0], rel=1e-6)
    assert spectrum.stable_rank == pytest.approx(float(((singular / singular[0]) ** 2).sum()), rel=1e-6)


SHAPES = [(1, 1), (1, 9), (9, 1), (30, 50), (50, 30), (8, 3, 3, 3), (600, 700), (700, 600)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matrices_and_kernels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert_like_numpy(tmp_path, torch.randn(shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_matrices(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_like_numpy(tmp_path, torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e300])
def test_squares_neither_vanish_nor_overflow(tmp_path: Path, scale: float) -> None:
    assert_like_numpy(tmp_path, torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64) * scale)


@pytest.mark.parametrize("size", [40, 600])
def test_singular_values_of_all_kinds(tmp_path: Path, size: int) -> None:
    random = torch.Generator().manual_seed(2)
    left, right = (torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=random))[0] for _ in range(2))
    steep = torch.logspace(0, -12, size, dtype=torch.float64)
    close = 1 - torch.arange(size) / (1000 * size)
    one = torch.zeros(size, dtype=torch.float64)
    one[0] = 3
    for singular in (steep, close.double(), one, torch.ones(size, dtype=torch.float64)):
        assert_like_numpy(tmp_path, left @ torch.diag(singular) @ right)


def test_rank_one(tmp_path: Path) -> None:
    assert found(tmp_path, torch.ones(700, 600)) == pytest.approx(Spectrum(np.sqrt(420_000), 1.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn], ids=str)
def test_small_dtypes_and_views(tmp_path: Path, dtype: torch.dtype) -> None:
    made = torch.randint(-8, 8, (6, 10), generator=torch.Generator().manual_seed(3)).to(dtype)
    assert_like_numpy(tmp_path, made)
    assert_like_numpy(tmp_path, made.t())


def test_nothing_but_zeros(tmp_path: Path) -> None:
    assert found(tmp_path, torch.zeros(3, 4)) == Spectrum(0.0, 0.0)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (torch.ones(3), "fewer than two dimensions"),
        (torch.tensor(2.0), "fewer than two dimensions"),
        (torch.ones(0, 3), "no values"),
        (torch.tensor([[1.0, float("nan")]]), "NaN or infinite values"),
        (torch.tensor([[1.0, float("inf")]]), "NaN or infinite values"),
        (torch.ones(2, 2, dtype=torch.bool), "bool values"),
        (torch.empty(2, 2, device="meta"), "a meta tensor"),
        (torch.ones(1).expand(10**6, 10**6), "a few values repeated over its shape"),
        (torch.eye(2).to_sparse(), "a sparse_coo tensor"),
    ],
    ids=["vector", "scalar", "empty", "NaN", "infinite", "bool", "meta", "expanded", "sparse"],
)
def test_what_has_none(tmp_path: Path, tensor: torch.Tensor, why: str) -> None:
    assert found(tmp_path, tensor) == why
