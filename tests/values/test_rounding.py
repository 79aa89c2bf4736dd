"""Values are rounded to narrow floats as torch rounds them, whatever they were before."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from paramctl.model.dtypes import BY_NAME
from paramctl.values.arrays import cast

NARROW = [
    "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
]  # fmt: skip
EDGES = [
    0.0, -0.0, 1.0, 447.9, 448.0, 449.0, 464.0, 464.1, 465.0, 480.0, 1000.0, 240.0, 247.9, 248.0, 249.0, 57344.0, 61439.0, 61440.0,
    65504.0, 65519.0, 65520.0, 3.3895314e38, 3.39e38, 3.4e38, 1e39, 1e300, 2.0**-9, 2.0**-10, 2.0**-11, 2.0**-16, 2.0**-17, 1e-40, 1e-46,
    2.0**-127, 2.0**-126, 1.5 * 2.0**-127, 1.5, 3.0, 6.0, float("inf"), float("nan"),
]  # fmt: skip


def bits(values: torch.Tensor) -> list[int]:
    """Return the bytes of values; of NaN only that it is one."""
    wide = values.float()
    raw = values.view(torch.int16 if values.element_size() == 2 else torch.uint8)
    return [-1 if nan else int(n) for nan, n in zip(wide.isnan().tolist(), raw.tolist(), strict=True)]


def ours(values: np.ndarray[tuple[int], np.dtype[np.generic]], name: str) -> torch.Tensor:
    """Return what `cast` makes, as a tensor of torch."""
    made = cast(values, BY_NAME[name])
    raw = torch.from_numpy(made.view(np.int16 if made.itemsize == 2 else np.uint8).copy())
    return raw.view(getattr(torch, name))


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("source", ["float64", "float32", "int64"])
def test_narrowing_is_torchs(name: str, source: str) -> None:
    rng = np.random.default_rng(3)
    edges = np.array([*EDGES, *(-n for n in EDGES)])
    drawn = np.concatenate([rng.standard_normal(3000) * 10.0 ** rng.integers(-40, 40, 3000), rng.integers(-(2**20), 2**20, 3000)])
    values = np.concatenate([edges, np.nextafter(edges, np.inf), np.nextafter(edges, -np.inf), drawn])
    with np.errstate(all="ignore"):
        values = values[np.isfinite(values) & (abs(values) < 2**62)].astype(np.int64) if source == "int64" else values.astype(source)
    theirs = torch.from_numpy(values).to(getattr(torch, name))
    assert bits(ours(values, name)) == bits(theirs)


@pytest.mark.parametrize("name", NARROW)
def test_every_float_of_16_bits_is_narrowed_as_torch_does(name: str) -> None:
    for wide in (torch.float16, torch.bfloat16):
        values = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(wide).float()
        assert bits(ours(values.numpy(), name)) == bits(values.to(getattr(torch, name)))
