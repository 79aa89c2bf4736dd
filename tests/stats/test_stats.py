"""Figures of tensors, compared with numpy's and torch's in float64 for every dtype, view and layout."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import file_of, listing, records, refused, rezipped
from safetensors.torch import save_file
from stored_params import checkpoint, param, storage

from paramctl.errors import FormatError
from paramctl.model.checkpoint import Checkpoint
from paramctl.stats.running_moments import Moments
from paramctl.stats.stats import Row, stats

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning"),
]


def expected(values: Any) -> dict[str, Any]:
    """Return the figures as numpy has them: sums in numpy's longest float, around the mean."""
    flat = np.asarray(values, np.float64).reshape(-1)
    finite = flat[np.isfinite(flat)].astype(np.longdouble)
    n = finite.size
    mean = finite.sum() / max(n, 1)
    return {
        "count": flat.size,
        "mean": float(mean) if n else None,
        "std": float(np.sqrt(((finite - mean) ** 2).sum() / (n - 1))) if n > 1 else None,
        "min": float(finite.min()) if n else None,
        "max": float(finite.max()) if n else None,
        "l2": float(np.sqrt((finite * finite).sum())) if n else None,
        "zeros": int((flat == 0).sum()),
        "nan": int(np.isnan(flat).sum()),
        "inf": int(np.isinf(flat).sum()),
    }


def told(moments: Moments) -> dict[str, Any]:
    some = moments.finite > 0
    return {
        "count": moments.count,
        "mean": float(moments.mean) if some else None,
        "std": moments.std,
        "min": moments.low if some else None,
        "max": moments.high if some else None,
        "l2": moments.l2 if some else None,
        "zeros": moments.zeros,
        "nan": moments.nan,
        "inf": moments.inf,
    }


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Require the same figures, except what a sum in float64 may be off; counts and extremes to the last bit."""
    scale = max(abs(wanted["min"] or 0), abs(wanted["max"] or 0))
    for key, value in wanted.items():
        if key == "mean" and value is not None:
            assert math.isclose(found[key], value, rel_tol=1e-10, abs_tol=1e-15 * scale), (key, found, wanted)
        elif key in ("std", "l2") and value is not None:
            assert math.isclose(found[key], value, rel_tol=1e-9), (key, found, wanted)
        else:
            assert (None if found[key] is None else float(found[key])) == value, (key, found, wanted)


def rows_of(checkpoint: Checkpoint, **how: Any) -> dict[str, Row]:
    return {row.path: row for row in stats(checkpoint, **how)}


def assert_figures(checkpoint: Checkpoint, wanted: dict[str, Any]) -> None:
    """Require those figures of all params, with histograms and without; each finite value is in one bin."""
    for histograms in (False, True):
        found = rows_of(checkpoint, histograms=histograms)
        assert list(found) == list(wanted)
        for path, values in wanted.items():
            summary = found[path].summary
            assert summary.why == ""
            assert_close(told(summary.moments), expected(values))
            assert sum(summary.histogram.counts) == (summary.moments.finite if histograms else 0)
            if summary.histogram.counts:
                edges = summary.histogram.edges
                assert edges[0] <= summary.moments.low and summary.moments.high <= edges[-1]


def saved(folder: Path, made: Any, name: str = "x.pt") -> Checkpoint:
    torch.save(made, folder / name)
    return listing(folder / name)


def wide(tensor: torch.Tensor) -> Any:
    """Return the values of any tensor as float64, magnitudes of complex ones."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.is_complex():
        return np.abs(plain.to(torch.complex128).numpy())
    if plain.dtype in (torch.int64, torch.uint64):
        return plain.numpy().astype(np.float64)
    return plain.to(torch.float64).numpy()


FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
]  # fmt: skip
INTEGERS = [
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
]  # fmt: skip


@pytest.mark.parametrize("histograms", [False, True])
def test_integers_far_from_zero_are_exact(tmp_path: Path, histograms: bool) -> None:
    made = {
        "top": np.array([2**63 - 1, 2**63 - 2, 2**63 - 3]),
        "unsigned": np.array([2**64 - 1, 2**64 - 2], np.uint64),
        "many": 2**53 + np.arange(1000),
        "blocks": np.concatenate([np.full(200_000, -(2**62)), -(2**62) + np.arange(3), [2**62] * 5]),
        "ends": np.array([2**63 - 1, -(2**63), 0, 1]),
        "small": np.array([2**31 - 1, 2**31 - 2, -5], np.int32),
        "wide": np.array([2**32 - 1, 2**32 - 3, 0], np.uint32),
        "one": np.array([-(2**63)]),
    }
    found = rows_of(saved(tmp_path, {name: torch.from_numpy(values) for name, values in made.items()}), histograms=histograms)
    for name, values in made.items():
        whole = [int(value) for value in values]
        mean = Fraction(sum(whole), len(whole))
        figures = found[name].summary.figures
        assert figures.mean == float(mean)
        assert (figures.count, figures.min, figures.max, figures.zeros) == (len(whole), min(whole), max(whole), whole.count(0))
        if len(whole) > 1:
            variance = sum((value - mean) ** 2 for value in whole) / (len(whole) - 1)
            assert figures.std == pytest.approx(float(variance) ** 0.5, rel=1e-12)
        assert figures.l2 == pytest.approx(float(sum(value * value for value in whole)) ** 0.5, rel=1e-12)
    together = [row.summary.figures for row in stats(saved(tmp_path, {name: torch.from_numpy(made[name]) for name in ("top", "one")}), by_layer=True)]
    assert together[0].mean == float(Fraction(3 * 2**63 - 6 - 2**63, 4))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_floats_of_every_width(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    normal = torch.randn(1001).to(dtype)
    made = {"normal": normal, "positive": normal.float().abs().to(dtype), "negative": (-normal.float().abs()).to(dtype)}
    made |= {"zeros": torch.zeros(7).to(dtype), "one": normal[:1].clone(), "two": normal[3:5].clone(), "scalar": normal[5].clone()}
    made["some zeros"] = (normal.float() * (torch.arange(1001) % 3 == 1)).to(dtype)
    made["empty"] = torch.zeros(0, 3).to(dtype)
    wanted = {path: wide(tensor) for path, tensor in made.items()}
    assert_figures(saved(tmp_path, made), wanted)
    save_file(made, tmp_path / "x.safetensors")
    source = listing(tmp_path / "x.safetensors")
    assert_figures(source, {one.path: wanted[one.path] for one in source.params})


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, *FLOATS[4:], torch.float8_e8m0fnu], ids=str
)
def test_every_pattern_of_a_small_float(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    patterns = torch.arange(1 << 8 * size).to(torch.uint8 if size == 1 else torch.uint16).view(dtype)
    wanted = wide(patterns)
    assert_figures(saved(tmp_path, {"all": patterns, "finite": patterns[np.isfinite(wanted)].clone()}), {"all": wanted, "finite": wanted[np.isfinite(wanted)]})


def test_patterns_of_larger_floats(tmp_path: Path) -> None:
    patterns = torch.randint(-(2**31), 2**31, (70_001,), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    made = patterns.view(torch.float32)
    source = saved(tmp_path, {"all": made})
    (row,) = stats(source, histograms=True)
    with np.errstate(invalid="ignore"):
        assert_close(told(row.summary.moments), expected(made.numpy()))
    assert sum(row.summary.histogram.counts) == row.summary.moments.finite


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_keep_their_extremes(tmp_path: Path, dtype: torch.dtype) -> None:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    made = {"ends": torch.tensor([low, high, 0, 5], dtype=dtype), "few": torch.tensor([3, 1, 2], dtype=dtype)}
    source = saved(tmp_path, made)
    assert_figures(source, {path: wide(tensor) for path, tensor in made.items()})
    moments = rows_of(source)["ends"].summary.moments
    assert [(value, type(value)) for value in (moments.low, moments.high)] == [(low, int), (high, int)]


def test_whole_numbers_that_no_float_tells_apart(tmp_path: Path) -> None:
    made = {"a": torch.tensor([2**63 - 1, 2**63 - 2]), "b": torch.tensor([2**64 - 1, 2**64 - 3], dtype=torch.uint64)}
    found = rows_of(saved(tmp_path, made))
    assert [(row.summary.moments.low, row.summary.moments.high) for row in found.values()] == [
        (2**63 - 2, 2**63 - 1),
        (2**64 - 3, 2**64 - 1),
    ]


def test_truth_values_are_noughts_and_ones(tmp_path: Path) -> None:
    made = {"a": torch.tensor([True, False, True, True]), "b": torch.tensor([True])}
    assert_figures(saved(tmp_path, made), {"a": [1, 0, 1, 1], "b": [1]})


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64, torch.complex32], ids=str)
def test_complex_values_count_by_their_magnitude(tmp_path: Path, dtype: torch.dtype) -> None:
    inf, nan = math.inf, math.nan
    values = torch.tensor([3 + 4j, -1j, 0, complex(inf, 1), complex(nan, 1), complex(inf, nan), complex(1, nan)], dtype=torch.complex128)
    made = {"a": values.to(torch.complex64).to(dtype)}
    assert_figures(saved(tmp_path, made), {"a": [5, 1, 0, inf, nan, nan, nan]})


def tensors_file(folder: Path, dtype: str, numel: int, data: bytes) -> Checkpoint:
    """Write a .safetensors of one tensor, its header made by hand."""
    header = json.dumps({"w": {"dtype": dtype, "shape": [numel], "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    return listing(file_of(folder, len(header).to_bytes(8, "little") + header + data, "x.safetensors"))


FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


@pytest.mark.parametrize("numel", [2, 16, 1000])
def test_four_bits_a_value(tmp_path: Path, numel: int) -> None:
    codes = np.random.default_rng(0).integers(0, 16, numel)
    data = bytes((codes[::2] | codes[1::2] << 4).astype(np.uint8))
    assert_figures(tensors_file(tmp_path, "F4", numel, data), {"w": np.array(FP4)[codes]})


def test_two_values_of_four_bits_in_each_element(tmp_path: Path) -> None:
    made = torch.tensor([0x21, 0x7F, 0x08], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert_figures(saved(tmp_path, {"w": made}), {"w": [0.5, 1, -6, 6, -0.0, 0]})


@pytest.mark.parametrize("dtype, exponent, mantissa, bias", [("F6_E2M3", 2, 3, 1), ("F6_E3M2", 3, 2, 3)])
def test_six_bits_a_value(tmp_path: Path, dtype: str, exponent: int, mantissa: int, bias: int) -> None:
    def value(code: int) -> float:
        sign, e, m = code >> 5, code >> mantissa & ((1 << exponent) - 1), code & ((1 << mantissa) - 1)
        size = math.ldexp((m + (1 << mantissa) * (e > 0)), max(e, 1) - bias - mantissa)
        return -size if sign else size

    codes = [*range(64), 1, 2, 3, 63]
    whole = sum(code << 6 * i for i, code in enumerate(codes))
    source = tensors_file(tmp_path, dtype, len(codes), whole.to_bytes(len(codes) * 6 // 8, "little"))
    assert_figures(source, {"w": [value(code) for code in codes]})


@pytest.mark.parametrize("name", ["bits8", "bits16", "bits1x8"])
def test_bits_mean_nothing(tmp_path: Path, name: str) -> None:
    made = torch.arange(4, dtype=torch.uint8).view(getattr(torch, name))
    (row,) = stats(saved(tmp_path, {"a": made}))
    assert (told(row.summary.moments), row.summary.why) == (told(Moments()), f"a is {name}, whose bits have no defined meaning")


def views(base: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return views of one storage of 4 × 6 elements."""
    return {
        "base": base,
        "row": base[1],
        "column": base[:, 2],
        "stepped": base[::2, 1::2],
        "transposed": base.t(),
        "permuted": base.reshape(2, 2, 6).permute(2, 0, 1),
        "expanded": base[0].expand(5, 6),
        "expanded inside": base[:, :1].expand(4, 7),
        "one, often": base[0, 0].expand(3, 4, 5),
        "overlapping": base.reshape(-1).as_strided((5, 8), (3, 1)),
        "overlapping more": base.reshape(-1).as_strided((20, 5), (1, 1)),
        "empty": base[4:],
        "scalar": base[2, 3],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.int32, torch.float16, torch.complex64], ids=str)
def test_views(tmp_path: Path, dtype: torch.dtype) -> None:
    made = views((torch.arange(24.0) - 7).to(dtype).reshape(4, 6))
    source = saved(tmp_path, made)
    assert_figures(source, {path: wide(tensor) for path, tensor in made.items()})


def test_views_that_are_still_to_be_conjugated_or_negated(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4).to(torch.complex64) * (1 + 2j)
    for made in (base.conj(), base.conj().imag, base.conj().imag.t(), base.conj()[:, 1:], base.real, base.imag[:, 2]):
        assert_figures(saved(tmp_path, {"x": made}), {"x": wide(made)})


def test_a_negative_view_of_a_small_dtype(tmp_path: Path) -> None:
    base = torch.arange(6.0).to(torch.complex32)
    made = {"neg": torch._neg_view(base.real), "whole": torch._neg_view(torch.arange(5, dtype=torch.int8))}
    assert_figures(saved(tmp_path, made), {"neg": -np.arange(6.0), "whole": -np.arange(5)})


def test_a_value_expanded_without_end_costs_one(tmp_path: Path) -> None:
    made = {"a": torch.tensor([2.0]).expand(10**6, 10**6), "b": torch.tensor([1, 3], dtype=torch.int8)[:, None].expand(2, 10**15)}
    found = rows_of(saved(tmp_path, made), histograms=True)
    assert told(found["a"].summary.moments) == {
        "count": 10**12, "mean": 2.0, "std": 0.0, "min": 2.0, "max": 2.0, "l2": 2e6, "zeros": 0, "nan": 0, "inf": 0,
    }  # fmt: skip
    assert found["a"].summary.histogram.counts == (10**12,)
    assert (found["b"].summary.moments.count, found["b"].summary.moments.mean) == (2 * 10**15, 2)


def test_values_that_overlap_themselves_endlessly_are_refused(tmp_path: Path) -> None:
    made = {"a": torch.zeros(1000).as_strided((500, 500), (1, 1)), "b": torch.ones(2)}
    found = rows_of(saved(tmp_path, made))
    assert found["a"].summary.why == "a repeats a few values over its shape"
    assert told(found["b"].summary.moments) == told(Moments(2, 2, 1.0, 0.0, 1.0, 1.0))


def test_params_that_share_a_storage_are_read_a_bounded_number_of_times(tmp_path: Path) -> None:
    base = torch.arange(2.0**18)
    made = {str(i): base[i % 2 :] for i in range(400)} | {str(i): base[i:] for i in range(400, 500)}
    found = rows_of(saved(tmp_path, made))
    whys = [row.summary.why for row in found.values()]
    assert whys[:450] == [""] * 450  # the first 400 are two, tied
    assert whys[-1] == "499 lies in a storage that was read 64 times over for others"


def test_big_endian(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int16, torch.complex64, torch.bool]
    made = {str(dtype): torch.arange(-3, 9).to(dtype).reshape(3, 4) for dtype in dtypes}
    torch.save(made, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    for i, dtype in enumerate(dtypes):
        size = made[str(dtype)].element_size() // (2 if dtype.is_complex else 1)
        held[f"x/data/{i}"] = np.frombuffer(held[f"x/data/{i}"], f"u{size}").byteswap().tobytes()
    rezipped(tmp_path / "x.pt", {**held, "x/byteorder": b"big"})
    assert_figures(listing(tmp_path / "x.pt"), {path: wide(tensor) for path, tensor in made.items()})


def test_deflated(tmp_path: Path) -> None:
    base = torch.arange(100_000.0)
    made = {"a": base, "b": base[5:], "c": base.reshape(1000, 100)[:, 3], "d": base.reshape(1000, 100).t()}
    torch.save(made, tmp_path / "x.pt")
    rezipped(tmp_path / "x.pt", records(tmp_path / "x.pt"), zipfile.ZIP_DEFLATED)
    assert_figures(listing(tmp_path / "x.pt"), {path: wide(tensor) for path, tensor in made.items()})


@pytest.mark.parametrize("part", [slice(None), slice(1, 3)], ids=["whole", "slice"])
def test_corrupt_values_are_never_summed_up(tmp_path: Path, part: slice) -> None:
    torch.save({"a": torch.arange(100.0)[part]}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    at = data.index(torch.arange(100.0).numpy().tobytes())
    data[at + 399] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    source = listing(tmp_path / "x.pt")
    message = "storage 0 is corrupt: its bytes do not match their CRC-32"
    assert refused(FormatError, list, stats(source)) == message


DENSE = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0], [0.0, 5.0, 0.0, -6.0]])


@pytest.mark.parametrize(
    "make",
    [
        DENSE.to_sparse,
        lambda: DENSE.to_sparse(1),
        DENSE.to_sparse_csr,
        DENSE.to_sparse_csc,
        lambda: DENSE.to_sparse_bsr((2, 2)),
        lambda: DENSE.to_sparse_bsc((2, 2)),
        lambda: DENSE.to(torch.bfloat16).to_sparse(),
        lambda: torch.stack([DENSE, DENSE]).to_sparse_csr(),
        lambda: torch.zeros(3, 3).to_sparse(),
    ],
    ids=["coo", "hybrid", "csr", "csc", "bsr", "bsc", "bfloat16", "batch", "nothing"],
)
def test_what_a_sparse_tensor_does_not_store_is_zero(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    made = make()
    assert_figures(saved(tmp_path, {"x": made}), {"x": wide(made.to_dense())})


def test_zeros_that_are_not_stored_are_of_the_same_kind(tmp_path: Path) -> None:
    made = {"f": torch.tensor([0.0, 2.0]).to_sparse(), "i": torch.tensor([0, 2]).to_sparse()}
    lows = [row.summary.moments.low for row in stats(saved(tmp_path, made))]
    assert [(low, type(low)) for low in lows] == [(0.0, float), (0, int)]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32], ids=str)
def test_quantized_values_are_what_they_stand_for(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.linspace(-2, 3, 24).reshape(4, 6)
    scales, zero_points = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1, 2, 3, 4])
    made = {
        "tensor": torch.quantize_per_tensor(values, 0.05, 40, dtype),
        "channels": torch.quantize_per_channel(values, scales, zero_points, 0, dtype),
        "transposed": torch.quantize_per_tensor(values, 0.05, 40, dtype).t(),
        "scalar": torch.quantize_per_tensor(torch.tensor(1.0), 0.05, 40, dtype),
        "empty": torch.quantize_per_tensor(torch.zeros(0, 2), 0.05, 40, dtype),
    }
    assert_figures(saved(tmp_path, made), {path: wide(tensor.dequantize()) for path, tensor in made.items()})


def test_two_quantized_values_in_a_byte(tmp_path: Path) -> None:
    values = torch.linspace(-1, 1, 30).reshape(5, 6)
    made = torch.quantize_per_channel(values, torch.full((5,), 0.1), torch.zeros(5), 0, torch.quint4x2)
    assert_figures(saved(tmp_path, {"x": made}), {"x": wide(made.dequantize())})


def test_integers_of_which_nobody_says_what_they_stand_for() -> None:
    made = param("qint8", (3,))
    (row,) = stats(checkpoint(made, storage(bytes(3))))
    assert (row.summary.moments.count, row.summary.why) == (0, "w is qint8 with an unknown quantizer")


def test_nested_and_meta_tensors(tmp_path: Path) -> None:
    made = {"n": torch.nested.nested_tensor([torch.ones(2, 3), torch.full((4, 3), 2.0)]), "m": torch.empty(2, 3, device="meta")}
    found = rows_of(saved(tmp_path, made))
    assert_close(told(found["n"].summary.moments), expected([1.0] * 6 + [2.0] * 12))
    assert told(found["m"].summary.moments) == told(Moments())
    assert found["m"].summary.why == "m is a meta tensor: no values are saved for it"


RNG = np.random.default_rng(5)
NORMAL = RNG.normal(size=300_000)  # several blocks
FAR = {
    "far from 0": 1e8 + NORMAL,
    "very far": 1e15 + np.round(8 * NORMAL),
    "near each other": 1e8 + 1e-6 * NORMAL,
    "zeros first": np.concatenate([np.zeros(200_000), 1e8 + NORMAL]),
    "one first": np.concatenate([np.full(200_000, np.nan), [0.0], np.full(99_999, np.nan), 1e8 + NORMAL]),
    "sorted": np.sort(NORMAL) + 1e4,
    "sorted down": np.sort(NORMAL)[::-1] * 1e3,
    "equal": np.full(300_000, 0.1),
    "equal, negative": np.full(300_000, -1e-3),
    "minus nought": np.full(1000, -0.0),
    "noughts": np.array([0.0, -0.0, 0.0]),
    "one other": np.concatenate([np.full(300_000, 0.1), [0.2]]),
    "huge": 1e300 * NORMAL,
    "largest": np.array([1.7e308, -1.7e308, 1.7e308]),
    "large, many": 1e149 * NORMAL,
    "tiny": 1e-300 * NORMAL,
    "tiny and near": 1e-140 * (1 + 1e-9 * NORMAL),
    "denormal": 5e-324 * np.arange(1000.0),
    "some denormal": np.concatenate([5e-324 * np.arange(1000.0), [1.0, 2.0]]),
    "alternating": np.where(np.arange(200_000) % 2, 1e30, -1e30),
    "huge and small": np.concatenate([[1e300], np.ones(1000)]),
    "blocks of all sizes": np.concatenate([1e-200 * NORMAL[:200_000], 1e200 * NORMAL[:200_000], NORMAL]),
    "one NaN": np.concatenate([1e8 + NORMAL, [np.nan], 1e8 + NORMAL]),
    "NaN": np.full(10, np.nan),
    "infinite": np.array([np.inf, -np.inf, np.inf]),
    "of all kinds": np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -2.0, 5e-324, np.nan]),
    "empty": np.zeros(0),
    "one": np.array([-3.5]),
}


@pytest.mark.parametrize("case", FAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_hard_numbers(tmp_path: Path, case: str, dtype: torch.dtype) -> None:
    made = torch.from_numpy(FAR[case].copy()).to(dtype)
    assert_figures(saved(tmp_path, {"x": made}), {"x": wide(made)})


@pytest.mark.parametrize("value", [0.1, -0.3, 1e-3, 1e300, 1e-300, 3e-310, 7.0])
def test_equal_values_do_not_spread_at_all(tmp_path: Path, value: float) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        made = torch.full((250_001,), value, dtype=torch.float64).to(dtype)
        (row,) = stats(saved(tmp_path, {"x": made}))
        moments = row.summary.moments
        if moments.finite:
            assert (moments.std, moments.low, moments.high) == (0.0, float(made[0]), float(made[0]))
            assert float(moments.mean) == float(made[0])


SIZES = [1, 2, 3, 4095, 4096, 4097, 8191, 8193, 98_303, 98_304, 98_305, 196_607, 196_608, 196_609, 393_215, 393_217]


@pytest.mark.parametrize("size", SIZES)
def test_blocks_that_end_anywhere(tmp_path: Path, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(size)) + 3
    made = {str(dtype): values.to(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8)}
    assert_figures(saved(tmp_path, made), {path: wide(tensor) for path, tensor in made.items()})


def test_one_tensor_costs_one(tmp_path: Path) -> None:
    """Only what was named is read: the rest may be corrupt."""
    made = {"a": torch.arange(4.0), "b": torch.arange(100.0), "c": torch.ones(3)}
    torch.save(made, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[data.index(made["b"].numpy().tobytes()) + 50] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    found = [(row.path, told(row.summary.moments)["mean"]) for row in stats(listing(tmp_path / "x.pt"), [2, 0])]
    assert found == [("a", 1.5), ("c", 1.0)]


def test_tied_params_have_the_same_figures_and_are_read_once(tmp_path: Path) -> None:
    weight = torch.arange(6.0)
    heard: list[tuple[int, int | None]] = []
    source = saved(tmp_path, {"a": {"w": weight, "b": torch.ones(2)}, "c": weight})
    found = list(stats(source, on_progress=lambda _, done, total: heard.append((done, total))))
    assert [(row.path, row.at, row.tensors) for row in found] == [("a.w", 0, 1), ("a.b", 1, 1), ("c", 2, 1)]
    assert found[0].summary is found[2].summary
    assert heard == [(24, 32), (32, 32)]


def test_layers_add_up_their_own(tmp_path: Path) -> None:
    shared = torch.arange(6.0)
    made = {"a": {"w": shared, "again": shared, "b": torch.full((3,), 7.0)}, "top": torch.ones(2), "b": {"c": {"w": shared}}}
    found = list(stats(saved(tmp_path, made), by_layer=True, histograms=True))
    assert [(row.path, row.at, row.tensors) for row in found] == [("a", None, 3), ("", None, 1), ("b.c", None, 1)]
    assert_close(told(found[0].summary.moments), expected([*range(6), 7, 7, 7]))
    assert sum(found[0].summary.histogram.counts) == 9
    assert_close(told(found[1].summary.moments), expected([1, 1]))
    assert_close(told(found[2].summary.moments), expected(range(6)))


def test_a_layer_says_what_it_leaves_out(tmp_path: Path) -> None:
    made = {"a": {"w": torch.arange(4.0), "m": torch.empty(2, device="meta")}}
    (row,) = stats(saved(tmp_path, made), by_layer=True)
    assert_close(told(row.summary.moments), expected(range(4)))
    assert row.summary.why == "a.m is a meta tensor: no values are saved for it"


def test_selected_members_of_a_layer(tmp_path: Path) -> None:
    made = {"a": {"w": torch.arange(4.0), "b": torch.ones(3)}, "c": {"w": torch.ones(1)}}
    found = list(stats(saved(tmp_path, made), [1], by_layer=True))
    assert [(row.path, row.tensors, row.summary.moments.count) for row in found] == [("a", 1, 3)]


def test_counters_do_not_count_among_the_values_of_their_layer(tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm1d(3).state_dict()
    norm["num_batches_tracked"].fill_(10_000)
    made = {"1": norm, "steps": {"a": torch.tensor([1, 2, 3])}}
    found = {row.path: row for row in stats(saved(tmp_path, made), by_layer=True)}
    assert found["1"].tensors == 4
    assert found["1"].summary.figures.max == 1
    assert found["steps"].summary.figures.max == 3
