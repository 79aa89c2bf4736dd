"""What differs between two checkpoints, held against torch and plain Python."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import warnings
from dataclasses import astuple
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import changed_bytes, record_of, records, refused, rezipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from verb_files import mlp, opened, saved

from paramctl.compare.diff import ChangedEntry, Chosen, Difference, TieChange, diff
from paramctl.compare.distance import Distance, Tolerance, coarser
from paramctl.compare.equal_prefix import BLOCK, EqualPrefix
from paramctl.compare.param_pairs import Changed, ParamComparison
from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.formats import opening
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.dtypes import BY_NAME, BY_SAFETENSORS
from paramctl.model.path_renames import parse
from paramctl.values.arrays import read_values

NAN, INF = math.nan, math.inf
EXACT = Tolerance(exact=True)


def pair(folder: Path, a: Any, b: Any, **how: Any) -> Difference:
    """Return the differences between two states that torch saved."""
    return diff(opened(folder, a, "a.pt"), opened(folder, b, "b.pt"), **how)


def values(path: str, *figures: float) -> Changed:
    return Changed(path, "tensor", "values", figures=Distance(*figures))  # type: ignore[arg-type]


def numbers(tensor: torch.Tensor) -> list[Any]:
    """Return the values of a tensor in C order, as Python's own numbers, which are exact."""
    if tensor.dtype == torch.complex32:
        tensor = tensor.to(torch.complex64)
    exact = tensor.is_complex() or not tensor.is_floating_point()
    return (tensor if exact else tensor.double()).reshape(-1).tolist()


def expected(a: torch.Tensor, b: torch.Tensor, atol: float = 0, rtol: float = 0) -> Distance:
    """Return the figures by their definitions."""
    distances, relative, count, nonfinite = [], [], 0, 0
    pairs = list(zip(numbers(a), numbers(b), strict=True))
    for x, y in pairs:
        if same(x, y):
            continue
        if not (finite(x) and finite(y)):
            count, nonfinite = count + 1, nonfinite + 1
            continue
        if (atol or rtol) and abs(x - y) <= atol + rtol * abs(y):
            continue
        count += 1
        distances.append(float(abs(x - y)))
        relative.append(abs(x - y) / max(abs(x), abs(y)))
    mean = math.fsum(distances) / (len(pairs) - nonfinite) if len(pairs) > nonfinite else 0
    return Distance(max(distances, default=0), mean, max(relative, default=0), count, len(pairs), nonfinite)


def same(x: Any, y: Any) -> bool:
    if isinstance(x, complex) or isinstance(y, complex):
        x, y = complex(x), complex(y)
        return same(x.real, y.real) and same(x.imag, y.imag)
    return bool(x == y or (x != x and y != y))


def finite(x: Any) -> bool:
    return not isinstance(x, float | complex) or (math.isfinite(x.real) and math.isfinite(x.imag))


def check(found: Distance | None, a: torch.Tensor, b: torch.Tensor, **tolerance: float) -> None:
    want = expected(a, b, **tolerance)
    if not want.count:
        assert found is None or found == want
        return
    assert found is not None
    assert (found.count, found.of, found.nonfinite) == (want.count, want.of, want.nonfinite)
    assert found.max_abs == want.max_abs or found.max_abs == pytest.approx(want.max_abs, 1e-15)
    assert found.mean_abs == pytest.approx(want.mean_abs, 1e-12)
    assert found.max_rel == pytest.approx(want.max_rel, 1e-12)


def figures(found: Difference) -> Distance | None:
    return found.changed[0].figures if found.changed else None


FLOATS = [0.0, -0.0, 1.0, 1.5, -3.0, NAN, INF, -INF, 0.0625]
ODD: dict[torch.dtype, list[Any]] = {
    torch.float64: [*FLOATS, 5e-324, 1e300, -1e300, 2.0**53],
    torch.float32: [*FLOATS, 1e-45, 3e38, -3e38],
    torch.float16: [*FLOATS, 6e-8, 65504.0],
    torch.bfloat16: [*FLOATS, 1e-40, 3e38],
    torch.float8_e4m3fn: [0.0, -0.0, 1.0, 448.0, NAN, 2.0**-9],
    torch.float8_e5m2: [*FLOATS, 57344.0, 2.0**-16],
    torch.complex128: [0j, complex(-0.0, 0), 1 + 2j, complex(NAN, 1), complex(1, NAN), complex(INF, 0), 3 - 4j],
    torch.complex64: [0j, complex(0, -0.0), 1 + 2j, complex(NAN, 1), complex(INF, NAN), 3 - 4j],
    torch.complex32: [0j, 1 + 2j, complex(NAN, 1), 3 - 4j],
    torch.int64: [0, 1, -1, 2**63 - 1, -(2**63), 2**60, 2**60 + 1],
    torch.int32: [0, 1, -1, 2**31 - 1, -(2**31)],
    torch.int16: [0, 7, -(2**15)],
    torch.int8: [0, 127, -128],
    torch.uint64: [0, 1, 2**64 - 1, 2**60, 2**60 + 1],
    torch.uint32: [0, 2**32 - 1],
    torch.uint16: [0, 2**16 - 1],
    torch.uint8: [0, 255],
    torch.bool: [False, True],
}


def grid(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Pair every odd value with every other."""
    odd = ODD[dtype]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls complex32 an experiment
        a = torch.tensor([x for x in odd for _ in odd], dtype=dtype)
        return a, torch.tensor([y for _ in odd for y in odd], dtype=dtype)


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_figures_of_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = grid(dtype)
    found = pair(tmp_path, {"x": a}, {"x": b})
    check(figures(found), a, b)
    assert found.changed[0].what == "values"
    assert pair(tmp_path, {"x": a}, {"x": a.clone()}) == Difference(1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.int64, torch.uint64], ids=str)
def test_tolerance_is_that_of_isclose(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = grid(dtype)
    for atol, rtol in ((1.0, 0.0), (0.0, 0.5), (0.25, 0.125), (1e-9, 1e-9)):
        check(figures(pair(tmp_path, {"x": a}, {"x": b}, tolerance=Tolerance(atol, rtol))), a, b, atol=atol, rtol=rtol)


def bits(tensor: torch.Tensor) -> list[bytes]:
    size = tensor.element_size()
    data = bytes(tensor.contiguous().untyped_storage())
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("dtype", ODD, ids=str)
def test_exact_counts_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = grid(dtype)
    found = figures(pair(tmp_path, {"x": a}, {"x": b}, tolerance=EXACT))
    assert found is not None
    assert found.count == sum(x != y for x, y in zip(bits(a), bits(b), strict=True))


PAIRS = [
    (torch.float32, torch.bfloat16), (torch.float32, torch.float64), (torch.bfloat16, torch.float16),
    (torch.int64, torch.uint64), (torch.int64, torch.int8), (torch.bool, torch.float32),
    (torch.int32, torch.float64), (torch.complex64, torch.float32), (torch.float8_e5m2, torch.float16),
    (torch.uint8, torch.bool), (torch.complex64, torch.complex128), (torch.int16, torch.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=str)
def test_values_of_two_dtypes_are_compared(tmp_path: Path, one: torch.dtype, other: torch.dtype) -> None:
    a = torch.tensor([x for x in ODD[one] for _ in ODD[other]], dtype=one)
    b = torch.tensor([y for _ in ODD[one] for y in ODD[other]], dtype=other)
    for x, y in ((a, b), (b, a)):
        (row,) = pair(tmp_path, {"x": x}, {"x": y}).changed
        assert (row.what, row.before, row.after) == ("dtype", str(x.dtype)[6:], str(y.dtype)[6:])
        assert row.figures is not None
        check(row.figures, x, y)


def test_whether_a_cast_explains_it(tmp_path: Path) -> None:
    a = torch.tensor([1.0, 1.001, NAN, -INF, 1e-30])
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2):
        (row,) = pair(tmp_path, {"x": a}, {"x": a.to(dtype)}).changed
        assert row.rounds_to == ("float32" if dtype == torch.float64 else str(dtype)[6:])
    other = a.to(torch.bfloat16)
    other[1] = 1.5
    assert pair(tmp_path, {"x": a}, {"x": other}).changed[0].rounds_to == ""
    whole = torch.tensor([2**24 + 1, 3])
    assert pair(tmp_path, {"x": whole}, {"x": whole.float()}).changed[0].rounds_to == "float32"


def test_which_dtype_is_the_coarser() -> None:
    def named(one: str, other: str) -> str | None:
        found = coarser(BY_NAME[one], BY_NAME[other])
        return found and found.name

    assert named("float32", "bfloat16") == named("bfloat16", "float16") == "bfloat16"
    assert named("float8_e5m2", "float8_e4m3fn") == "float8_e5m2"
    assert named("complex64", "complex128") == "complex64"
    assert named("int64", "float32") == "float32"
    assert named("int64", "int8") is named("bool", "float32") is named("complex64", "float32") is None


def test_many_blocks(tmp_path: Path) -> None:
    a = torch.randn(3, BLOCK)
    for at in ((0, 0), (1, 5), (2, BLOCK - 1)):
        b = a.clone()
        b[at] += 1
        check(figures(pair(tmp_path, {"x": a}, {"x": b})), a, b)
    check(figures(pair(tmp_path, {"x": a}, {"x": a + 1})), a, a + 1)
    check(figures(pair(tmp_path, {"x": a}, {"x": b.double()})), a, b.double())


BIG = 1.7e308


@pytest.mark.parametrize(
    ("a", "b", "tolerance", "wanted"),
    [
        ([BIG, -BIG], [-BIG, BIG], {}, (INF, INF, 2.0, 2, 2, 0)),
        ([BIG, NAN, 1.0], [-BIG, 1.0, 3.0], {}, (INF, BIG, 2.0, 3, 3, 1)),
        ([BIG] * 9, [0.0] * 9, {}, (BIG, BIG, 1.0, 9, 9, 0)),  # the sum is too large, the mean is not
        ([BIG, 0.0], [-BIG, 0.0], {"rtol": 1.5}, (INF, BIG, 2.0, 1, 2, 0)),
        ([BIG, 0.0], [-BIG, 1.0], {"rtol": 2.5}, None),
        ([BIG, INF], [-BIG, 1.0], {"rtol": 2.5}, (0.0, 0.0, 0.0, 1, 2, 1)),
        ([complex(BIG, BIG)], [complex(BIG, -BIG)], {}, (INF, INF, 2**0.5, 1, 1, 0)),
        ([complex(BIG, BIG)], [complex(BIG, BIG / 2)], {}, (BIG / 2, BIG / 2, 0.125**0.5, 1, 1, 0)),
    ],
)  # fmt: skip
def test_distances_and_sums_that_float64_cannot_hold(tmp_path: Path, a: Any, b: Any, tolerance: Any, wanted: Any) -> None:
    dtype = torch.complex128 if isinstance(a[0], complex) else torch.float64
    one, other = ({"x": torch.tensor(values, dtype=dtype)} for values in (a, b))
    found = figures(pair(tmp_path, one, other, tolerance=Tolerance(**tolerance)))
    assert (found and astuple(found)) == (wanted and pytest.approx(wanted, rel=1e-12))


@pytest.mark.parametrize(
    ("atol", "rtol", "message"),
    [
        (NAN, 0, "atol is nan, not a tolerance; give a number, 0 or more"),
        (0, INF, "rtol is inf, not a tolerance; give a number, 0 or more"),
        (-1.5, 0, "atol is -1.5, not a tolerance; give a number, 0 or more"),
    ],
)
def test_what_is_no_tolerance(atol: float, rtol: float, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Tolerance(atol, rtol)
    assert str(raised.value) == message


def test_literal_figures(tmp_path: Path) -> None:
    a = {"n": torch.tensor([1.0, NAN, NAN, 4.0]), "s": torch.tensor(2.0), "e": torch.zeros(0, 3)}
    b = {"n": torch.tensor([1.5, NAN, 3.0, 4.0]), "s": torch.tensor(-2.0), "e": torch.zeros(0, 3)}
    found = pair(tmp_path, a, b)
    assert found.changed == (values("n", 0.5, 0.5 / 3, 1 / 3, 2, 4, 1), values("s", 4.0, 4.0, 2.0, 1, 1, 0))
    assert (found.equal, found.compared) == (1, 3)


def test_how_bytes_lie_is_no_difference(tmp_path: Path) -> None:
    plain = torch.randn(6, 4, dtype=torch.complex64)
    conj = plain.conj_physical().conj()
    neg = torch.randn(6, dtype=torch.complex64).conj().imag
    expanded = torch.randn(1, 5).expand(4, 5)
    shared = torch.randn(20)
    state = {
        "t": plain.T.contiguous().T, "c": conj, "n": neg, "x": expanded, "v": shared[5:15], "p": shared.reshape(4, 5).T
    }  # fmt: skip
    assert conj.is_conj()
    assert neg.is_neg()
    copies = {name: torch.clone(value, memory_format=torch.contiguous_format) for name, value in state.items()}
    assert not copies["c"].resolve_conj().is_conj()
    copies = {name: value.resolve_conj().resolve_neg() for name, value in copies.items()}
    assert pair(tmp_path, state, copies) == Difference(6, 6)
    assert pair(tmp_path, state, copies, tolerance=EXACT) == Difference(6, 6)
    other = {name: value + 1 for name, value in copies.items()}
    found = pair(tmp_path, state, other)
    for row in found.changed:
        check(row.figures, copies[row.path], other[row.path])
    assert len(found.changed) == 6


def test_views_that_repeat_themselves_are_compared_once(tmp_path: Path) -> None:
    a, b = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, NAN]])
    state, other = ({"x": one.expand(1 << 40, 3)} for one in (a, b))
    found = pair(tmp_path, state, other)
    times = 1 << 40
    assert found.changed == (values("x", 1.0, 0.5, 1.0, 2 * times, 3 * times, times),)
    one, far = torch.zeros(1 << 16, 1).expand(1 << 16, 1 << 16), torch.ones(1, 1 << 16).expand(1 << 16, 1 << 16)
    assert refused(Unsupported, pair, tmp_path, {"x": one}, {"x": far}).startswith(f"{tmp_path}/a.pt: x lies in")


def test_big_endian(tmp_path: Path) -> None:
    made = {
        "h": torch.tensor([1, 2, 3], dtype=torch.int16),
        "f": torch.randn(4),
        "z": torch.randn(2) * 1j,
        "b": torch.tensor([True]),
    }
    path = saved(tmp_path, made, "a.pt")
    held = records(path)
    order = {"data/0": "h", "data/1": "i", "data/2": "i", "data/3": "b"}
    for name, data in held.items():
        code = next((code for end, code in order.items() if name.endswith(end)), "")
        if code:
            size = struct.calcsize(code)
            held[name] = struct.pack(f">{len(data) // size}{code}", *struct.unpack(f"<{len(data) // size}{code}", data))
    held = {name: b"big" if name.endswith("byteorder") else data for name, data in held.items()}
    other = opening.open(str(rezipped(tmp_path / "b.pt", held)))
    one = opening.open(str(path))
    assert diff(one, other) == diff(one, other, tolerance=EXACT) == Difference(4, 4)


def test_composite_tensors_are_compared_part_by_part(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        a = {"coo": dense.to_sparse(), "csr": dense.to_sparse_csr(), "meta": torch.empty(3, device="meta")}
        b = {"coo": (dense * 2).to_sparse(), "csr": (dense + 1).to_sparse_csr(), "meta": torch.empty(3, device="meta")}
        found = pair(tmp_path, a, b)
        assert pair(tmp_path, a, a) == Difference(3, 3)
        layout = pair(tmp_path, {"x": dense}, {"x": dense.to_sparse()})
    assert found.changed == (
        values("coo.values", 2.0, 1.5, 0.5, 2, 2, 0),
        values("csr.crow_indices", 2.0, 1.0, 0.5, 2, 3, 0)._replace(counts=True),
        Changed("csr.col_indices", "tensor", "shape", (2,), (4,)),
        Changed("csr.values", "tensor", "shape", (2,), (4,)),
    )
    assert (found.equal, found.compared) == (1, 3)
    assert layout.changed == (Changed("x", "tensor", "dtype", "float32", "float32 (sparse_coo)"),)


def test_quantized_ones_are_compared_by_what_they_stand_for(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.tensor([[0.0, 1.0, 2.0], [4.0, 6.0, 8.0]])
        a = {"t": torch.quantize_per_tensor(x, 0.5, 3, torch.qint8)}
        b = {"t": torch.quantize_per_tensor(x, 1.0, 0, torch.qint8)}
        c = {"t": torch.quantize_per_tensor(x + 1, 0.5, 3, torch.qint8)}
        zero = torch.zeros(2, dtype=torch.int64)
        channels = [
            {"t": torch.quantize_per_channel(x, torch.tensor(scale), zero, 0, torch.qint8)}
            for scale in ([1.0, 2.0], [1.0, 4.0])
        ]
        assert pair(tmp_path, a, b) == Difference(1, 1)
        exact = pair(tmp_path, a, b, tolerance=EXACT)
        assert pair(tmp_path, a, c).changed == (values("t", 1.0, 1.0, 1.0, 6, 6, 0),)
        assert pair(tmp_path, *channels).changed == (values("t", 2.0, 1 / 3, 0.25, 1, 6, 0),)
        assert pair(tmp_path, channels[0], channels[0]) == Difference(1, 1)
        (row,) = pair(tmp_path, a, {"t": x}).changed
    assert figures(exact) == Distance(0.0, 0.0, 0.0, 6, 6, 0)
    assert (row.before, row.after, row.figures) == ("qint8 (quantized)", "float32", Distance(0.0, 0.0, 0.0, 0, 6, 0))


def packed(folder: Path, name: str, four: bytes, six: bytes) -> Checkpoint:
    header = {
        "four": {"dtype": "F4", "shape": [2, 2], "data_offsets": [0, 2]},
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [2, 5]},
    }
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text + four + six)
    return opening.open(str(folder / name))


def test_elements_smaller_than_a_byte(tmp_path: Path) -> None:
    a = packed(tmp_path, "a.safetensors", b"\x21\x43", b"\x08\x00\x00")
    b = packed(tmp_path, "b.safetensors", b"\x22\xc3", b"\x08\x00\x20")
    found = diff(a, b)
    assert found.changed == (values("four", 4.0, 1.125, 2.0, 2, 4, 0), values("six", 1.0, 0.25, 1.0, 1, 4, 0))
    pairs = torch.tensor([[0x21], [0x43]], dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    same = diff(opened(tmp_path, {"four": pairs}), a, chosen=Chosen(None, [0]))
    assert same == Difference(1, 1)


def test_any_two_dtypes_can_be_compared(tmp_path: Path) -> None:
    at, header, body = 0, {}, b""
    for name, dtype in BY_SAFETENSORS.items():
        data = bytes(i % 2 for i in range(dtype.nbytes(8)))
        header[dtype.name] = {"dtype": name, "shape": [8], "data_offsets": [at, at + len(data)]}
        at, body = at + len(data), body + data
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
    held = opening.open(str(tmp_path / "x.safetensors"))
    comparison = ParamComparison(held, held, EqualPrefix(held, held))
    numbers = {param.path: read_values(held, param) for param in held.params}
    numbers = {path: v if v.dtype.kind in "biu" else v.astype(np.complex128) for path, v in numbers.items()}
    for a, b in product(held.params, repeat=2):
        rows = comparison.rows("x", a, b)
        pairs = zip(numbers[a.path].tolist(), numbers[b.path].tolist(), strict=True)
        assert [row.figures and row.figures.count for row in rows] == (
            [sum(not same(x, y) for x, y in pairs)] if a is not b else []
        )


def test_added_removed_and_reshaped(tmp_path: Path) -> None:
    a = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(3), "d": torch.zeros(1)}
    b = {"new": torch.zeros(1), "b": torch.zeros(3, 2), "c": torch.zeros(4, dtype=torch.int8), "d": torch.zeros(1)}
    found = pair(tmp_path, a, b)
    assert [param.path for param in found.removed] == ["a"]
    assert [param.path for param in found.added] == ["new"]
    assert found.changed == (
        Changed("b", "tensor", "shape", (2, 3), (3, 2)),
        Changed("c", "tensor", "shape", (3,), (4,)),
        Changed("c", "tensor", "dtype", "float32", "int8"),
    )
    assert (found.equal, found.compared, bool(found)) == (1, 3, True)
    back = pair(tmp_path, b, a)
    assert [p.path for p in back.added] == ["a"]
    assert [p.path for p in back.removed] == ["new"]


def test_ties_gained_and_lost(tmp_path: Path) -> None:
    w, v = torch.zeros(2), torch.zeros(2)
    a = {"1": w, "2": w, "3": w, "4": v, "5": v.clone(), "gone": v}
    b = {"1": w, "2": v, "3": v, "4": w, "5": w.clone()}
    found = pair(tmp_path, a, b)
    assert found.tied == (TieChange("4", "1"),)
    assert found.untied == (TieChange("2", "1"), TieChange("3", "1"))
    assert found.equal == 5


def test_formats_and_ties_across_them(tmp_path: Path) -> None:
    net = mlp()
    net[3].weight = net[0].weight
    a = opened(tmp_path, net.state_dict(), "a.pt")
    save_model(net, str(tmp_path / "b.safetensors"))
    b = opening.open(str(tmp_path / "b.safetensors"))
    assert diff(a, b) == diff(b, a) == Difference(9, 9)


def test_scalars(tmp_path: Path) -> None:
    a = {"w": torch.zeros(1), "epoch": 3, "lr": 0.1, "nan": NAN, "betas": [1, NAN], "odd": {"a": 1}, "same": "x"}
    b = {"w": torch.zeros(1), "epoch": 4, "nan": NAN, "betas": [1, NAN], "odd": {"a": 2}, "same": "x", "new": None}
    found = pair(tmp_path, a, b)
    assert found.scalars == (
        ChangedEntry("epoch", (3,), (4,)), ChangedEntry("lr", (0.1,), ()), ChangedEntry("odd.a", (1,), (2,)), ChangedEntry("new", (), (None,))
    )  # fmt: skip
    assert pair(tmp_path, a, b, only_params=True) == Difference(1, 1)
    assert pair(tmp_path, a, b, chosen=Chosen()) == Difference(1, 1)
    bare = opened(tmp_path, {"w": torch.zeros(1)}, "c.safetensors")
    assert len(diff(opened(tmp_path, a), bare).scalars) == 6


def test_metadata_is_compared_within_a_format(tmp_path: Path) -> None:
    state = {"w": torch.zeros(1)}
    for name, metadata in (("a", {"format": "pt", "step": "1"}), ("b", {"format": "pt", "step": "2", "x": "y"})):
        save_file(state, tmp_path / f"{name}.safetensors", metadata)
    a, b = (opening.open(str(tmp_path / f"{name}.safetensors")) for name in "ab")
    assert diff(a, b).metadata == (ChangedEntry("step", ("1",), ("2",)), ChangedEntry("x", (), ("y",)))
    assert diff(a, opened(tmp_path, state)) == diff(a, b, only_params=True) == Difference(1, 1)


class Odd:
    pass


def test_objects_are_compared_by_their_class(tmp_path: Path) -> None:
    one, other = ({"w": torch.zeros(1), "o": Odd(), "k": k} for k in (1, 2))
    found = pair(tmp_path, one, other)
    assert found.uncompared == ("o",)
    assert found.scalars == (ChangedEntry("k", (1,), (2,)),)
    same = opened(tmp_path, one)
    assert diff(same, same) == Difference(1, 1)  # the same bytes, whatever they mean


def test_paths_that_print_alike(tmp_path: Path) -> None:
    a = {0: torch.zeros(1), "0": torch.ones(1)}
    b = {0: torch.zeros(1), "0": torch.zeros(1)}
    assert [row.path for row in pair(tmp_path, a, b).changed] == ["0#2"]
    assert diff(opened(tmp_path, torch.zeros(2)), opened(tmp_path, torch.ones(2), "y.pt")).changed[0].path == ""


def test_chosen_ones(tmp_path: Path) -> None:
    a = {"a": torch.zeros(1), "b": torch.zeros(1)}
    found = pair(tmp_path, a, {"a": torch.ones(1), "b": torch.ones(1)}, chosen=Chosen([0], [0, 1]))
    assert [row.path for row in found.changed] == ["a"]
    assert [param.path for param in found.added] == ["b"]


def damaged(path: Path, at: int = 0) -> Path:
    data = bytearray(path.read_bytes())
    data[record_of(path, "data/0").payload + at] ^= 1
    path.write_bytes(data)
    return path


def test_a_corrupt_storage_is_no_difference(tmp_path: Path) -> None:
    state = {"w": torch.arange(8.0), "z": torch.zeros(2)}
    a, b = saved(tmp_path, state, "a.pt"), damaged(saved(tmp_path, state, "b.pt"))
    message = "storage 0 is corrupt: its bytes do not match their CRC-32"
    one, other = opening.open(str(a)), opening.open(str(b))
    assert refused(FormatError, diff, one, other) == f"{b}: {message}"
    assert refused(FormatError, diff, other, one) == f"{b}: {message}"
    changed = opened(tmp_path, {**state, "w": torch.arange(8.0) + 1}, "c.pt")
    assert refused(FormatError, diff, changed, other) == f"{b}: {message}"


def test_equal_bytes_with_two_checksums(tmp_path: Path) -> None:
    one, other = torch.arange(8.0), torch.arange(8.0)
    other[0] = torch.tensor([1], dtype=torch.int32).view(torch.float32)[0]
    a = saved(tmp_path, {"w": one}, "a.pt")
    b = damaged(saved(tmp_path, {"w": other}, "b.pt"))
    message = refused(FormatError, diff, opening.open(str(a)), opening.open(str(b)))
    assert message == f"{b}: storage 0 is corrupt: its bytes do not match their CRC-32"


def test_views_of_one_storage_without_end(tmp_path: Path) -> None:
    for name, fill in (("a.pt", 0.0), ("b.pt", 1.0)):
        run = torch.full((1 << 19,), fill)
        state = {str(i): run[i:] for i in range(200)}
        torch.save(state, tmp_path / name)
    one, other = (opening.open(str(tmp_path / name)) for name in ("a.pt", "b.pt"))
    message = refused(Unsupported, diff, one, other)
    assert "lies in a storage that was read 64 times over for others" in message


DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.float64]
tensors = st.builds(
    lambda dtype, shape, seed: torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype),
    st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 3),
)  # fmt: skip
names = st.sampled_from(["a", "b", "a.b", "module.a", "module.b.c", "0", "0.weight"])
states = st.dictionaries(names, tensors, max_size=5)
here = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@here
@given(states)
def test_nothing_differs_from_itself(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    a = opened(tmp_path, state)
    b = opened(tmp_path, {name: value.clone() for name, value in state.items()}, "another name.pt")
    assert diff(a, a) == diff(a, b) == diff(a, b, tolerance=EXACT) == Difference(len(state), len(state))


@here
@given(states, states)
def test_the_other_way_round(tmp_path: Path, one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    a, b = opened(tmp_path, one, "a.pt"), opened(tmp_path, two, "b.pt")
    there, back = diff(a, b), diff(b, a)
    assert [p.path for p in there.added] == [p.path for p in back.removed]
    assert [p.path for p in there.removed] == [p.path for p in back.added]
    assert (there.equal, there.compared) == (back.equal, back.compared)
    mirrored = {(row.path, row.what): (row.after, row.before, row.figures) for row in back.changed}
    assert {(row.path, row.what): (row.before, row.after, row.figures) for row in there.changed} == mirrored


@here
@given(states.filter(bool))
def test_a_renaming_done_and_undone(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    a, b = opened(tmp_path, state, "a.pt"), opened(tmp_path, {f"x.{k}": v for k, v in state.items()}, "b.pt")
    everything = Difference(len(state), len(state))
    assert diff(a, b, renames=[parse("^=>x.")]) == diff(b, a, renames=[parse(r"^x\.=>")]) == everything
    assert diff(a, a, renames=[parse("^=>x."), parse(r"^x\.=>")]) == everything


@here
@given(states, st.data())
def test_exact_finds_any_flipped_bit(tmp_path: Path, state: dict[str, torch.Tensor], data: st.DataObject) -> None:
    state["w"] = torch.arange(3.0)
    path = saved(tmp_path, state, "a.safetensors")
    raw = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    at = data.draw(st.integers(start, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "b.safetensors").write_bytes(raw)
    assert changed_bytes(path, tmp_path / "b.safetensors") == {at}
    a, b = (opening.open(str(tmp_path / f"{name}.safetensors")) for name in "ab")
    (row,) = diff(a, b, tolerance=EXACT).changed
    assert row.figures is not None
    assert row.figures.count == 1


def test_two_paths_may_not_become_one(tmp_path: Path) -> None:
    state = {"a.w": torch.zeros(1), "b.w": torch.zeros(1)}
    assert refused(UsageError, lambda: pair(tmp_path, state, state, renames=[parse("^[ab]=>c")])) == (
        f"{tmp_path}/a.pt: 'a.w' and 'b.w' both become 'c.w'; rename them apart"
    )


def test_equal_files_need_no_numpy(tmp_path: Path) -> None:
    for name in ("a.pt", "b.pt"):
        saved(tmp_path, {"w": torch.zeros(3)}, name)
    source = (
        "import sys; from paramctl.cli.app import main; code = main(['diff', *sys.argv[1:]]); "
        "sys.exit(code or bool({'numpy', 'torch', 'rich', 'ml_dtypes'} & {*sys.modules}))"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", source, str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    assert subprocess.run(command, cwd=root, capture_output=True, check=False).returncode == 0
