"""Compute the largest singular value and the stable rank of matrices.

The stable rank is ‖A‖F² / σ² (Rudelson & Vershynin 2007, Sampling from large matrices: an approach through
geometric functional analysis); it is at most the rank, and small singular values hardly change it. A tensor of more
than two dimensions, such as the kernel of a convolution, counts as the matrix of its first dimension by all others.
"""

from __future__ import annotations

from math import isfinite, prod
from typing import TYPE_CHECKING, NamedTuple

from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.values.torch_import import import_torch

if TYPE_CHECKING:
    import torch

EXACT = 512  # rows or columns up to which all singular values are computed
STEPS = 300  # of the Lanczos process at most
PRECISION = 1e-9  # relative change of the largest singular value between steps at which it stands


class Spectrum(NamedTuple):
    """The largest singular value of a matrix, and its stable rank."""

    sigma: float
    stable_rank: float


def spectrum(checkpoint: Checkpoint, param: Param) -> Spectrum | str:
    """Return the spectrum of a param of two or more dimensions, or the reason why it has none.

    All of the param is held in memory, as float64 or complex128. Raises FormatError if a checksum is wrong.
    """
    from paramctl.values.arrays import read_values

    if why := _why_none(param):
        return why
    import numpy as np

    values = read_values(checkpoint, param).astype(np.complex128 if param.dtype.category == "complex" else np.float64)
    if not np.isfinite(values).all():
        return "NaN or infinite values"
    scale = float(np.abs(values).max())
    if not scale:
        return Spectrum(0.0, 0.0)
    rows = param.shape[0]
    matrix = import_torch().from_numpy(values.reshape(rows, prod(param.shape[1:])) / scale)
    sigma = _largest(matrix)
    if not isfinite(sigma):
        return "no singular value was found"
    return Spectrum(sigma * scale, float((matrix.abs() ** 2).sum()) / (sigma * sigma))


def _why_none(param: Param) -> str:
    """Return the reason why a param has no spectrum, whatever its values are; "" if it may have one."""
    if not param.is_plain:
        return f"a {param.layout} tensor"
    if len(param.shape) < 2:
        return "fewer than two dimensions"
    if not param.numel:
        return "no values"
    if param.dtype.category not in ("float", "int", "complex"):
        return f"{param.dtype.category} values"
    return "a few values repeated over its shape" if param.repeats_itself else ""


def _largest(matrix: torch.Tensor) -> float:
    """Return the largest singular value."""
    torch = import_torch()
    if min(matrix.shape) <= EXACT:
        return float(torch.linalg.svdvals(matrix)[0])
    return _lanczos(matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mH)


def _lanczos(matrix: torch.Tensor) -> float:
    """Return the largest singular value, by bidiagonalisation (Golub & Kahan 1965), fully reorthogonalised."""
    torch = import_torch()
    generator = torch.Generator().manual_seed(0)
    right = torch.randn(matrix.shape[1], dtype=matrix.dtype, generator=generator)
    rights = [right / right.norm()]
    lefts = rights[:0]
    diagonal: list[float] = []
    beside: list[float] = []
    sigma = 0.0
    for _ in range(min(STEPS, matrix.shape[1])):
        left = _orthogonal(matrix @ rights[-1], lefts)
        diagonal.append(float(left.norm()))
        if not diagonal[-1]:
            break
        lefts.append(left / diagonal[-1])
        right = _orthogonal(matrix.mH @ lefts[-1], rights)
        beside.append(float(right.norm()))
        before, sigma = sigma, _of_bidiagonal(diagonal, beside)
        if not beside[-1] or abs(sigma - before) <= PRECISION * sigma:
            break
        rights.append(right / beside[-1])
    return sigma


def _orthogonal(vector: torch.Tensor, others: list[torch.Tensor]) -> torch.Tensor:
    """Return the part of a vector orthogonal to unit vectors; two passes are enough against rounding."""
    torch = import_torch()
    if others:
        basis = torch.stack(others)
        for _ in range(2):
            vector = vector - basis.T @ (basis.conj() @ vector)
    return vector


def _of_bidiagonal(diagonal: list[float], beside: list[float]) -> float:
    """Return the largest singular value of a bidiagonal matrix."""
    torch = import_torch()
    made = torch.zeros(len(diagonal), len(diagonal) + 1, dtype=torch.float64)
    for i, (on, off) in enumerate(zip(diagonal, beside, strict=True)):
        made[i, i], made[i, i + 1] = on, off
    return float(torch.linalg.svdvals(made)[0])
