"""Tensors that are not one plain view of numbers, as torch saves them: each works with every command or says why not."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import records, refused, rezipped
from torch import nn

import paramctl
from paramctl.cli.app import main
from paramctl.errors import UsageError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:.*nested"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization"),
    pytest.mark.filterwarnings("ignore:TypedStorage"),
    pytest.mark.filterwarnings("ignore:ComplexHalf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

DENSE = torch.tensor([[0.0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 0], [4, 5, 0, 6]])
BASE = torch.arange(12.0)
PAIRS = torch.arange(8.0).reshape(4, 2)
ROWS = [torch.ones(2, 3), torch.full((4, 3), 2.0)]
SCALES = torch.tensor([0.1, 0.2, 0.3, 0.4])

PLAIN: dict[str, Callable[[], torch.Tensor]] = {
    "conj": lambda: torch.view_as_complex(PAIRS).conj(),
    "neg": lambda: torch.view_as_complex(PAIRS).conj().imag,
    "complex32": lambda: torch.view_as_complex(PAIRS).to(torch.complex32),
    "complex128": lambda: torch.view_as_complex(PAIRS).to(torch.complex128),
    "float8_e4m3fn": lambda: DENSE.to(torch.float8_e4m3fn),
    "float8_e5m2": lambda: DENSE.to(torch.float8_e5m2),
    "float8_e4m3fnuz": lambda: DENSE.to(torch.float8_e4m3fnuz),
    "float8_e5m2fnuz": lambda: DENSE.to(torch.float8_e5m2fnuz),
    "float8_e8m0fnu": lambda: torch.tensor([1.0, 2, 4]).to(torch.float8_e8m0fnu),
    "zero-size": lambda: torch.empty(0, 3),
    "zero within": lambda: torch.empty(2, 0, 3),
    "0-d": lambda: torch.tensor(3.5),
    "0-d integer": lambda: torch.tensor(3),
    "bool": lambda: torch.tensor([True, False]),
    "uint16": lambda: torch.tensor([1, 65535]).to(torch.uint16),
    "uint64": lambda: torch.tensor([2**63], dtype=torch.uint64),
    "transposed": lambda: BASE.reshape(3, 4).t(),
    "strided": lambda: BASE[::2],
}
BITS: dict[str, Callable[[], torch.Tensor]] = {
    "float4_e2m1fn_x2": lambda: torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "bits8": lambda: torch.arange(8, dtype=torch.uint8).view(torch.bits8),
    "bits16": lambda: torch.arange(8, dtype=torch.int16).view(torch.bits16),
    "bits4x2": lambda: torch.arange(8, dtype=torch.uint8).view(torch.bits4x2),
}
SPARSE: dict[str, Callable[[], torch.Tensor]] = {
    "sparse_coo": DENSE.to_sparse,
    "sparse_csr": DENSE.to_sparse_csr,
    "sparse_csc": DENSE.to_sparse_csc,
    "sparse_bsr": lambda: DENSE.to_sparse_bsr((2, 2)),
    "sparse_bsc": lambda: DENSE.to_sparse_bsc((2, 2)),
}
QUANTIZED: dict[str, Callable[[], torch.Tensor]] = {
    "per tensor": lambda: torch.quantize_per_tensor(DENSE, 0.1, 3, torch.quint8),
    "per channel": lambda: torch.quantize_per_channel(DENSE, SCALES, torch.tensor([0, 1, 2, 3]), 0, torch.qint8),
    "fractions": lambda: torch.quantize_per_channel(DENSE, SCALES, SCALES, 0, torch.quint8),
    "two in a byte": lambda: torch.quantize_per_channel(DENSE, SCALES, torch.arange(4.0), 0, torch.quint4x2),
}
NESTED: dict[str, Callable[[], torch.Tensor]] = {
    "nested": lambda: torch.nested.nested_tensor(ROWS),
    "jagged": lambda: torch.nested.nested_tensor(ROWS, layout=torch.jagged),
}
REPEATING: dict[str, Callable[[], torch.Tensor]] = {
    "expanded": lambda: torch.ones(1, 3).expand(4, 3),
    "overlapping itself": lambda: torch.as_strided(BASE, (3, 4), (2, 1)),
}
META: dict[str, Callable[[], torch.Tensor]] = {"meta": lambda: torch.empty(2, 2, device="meta")}
ODD: dict[str, Callable[[], torch.Tensor]] = {**SPARSE, **QUANTIZED, **NESTED, **REPEATING, **META}
ALL: dict[str, Callable[[], torch.Tensor]] = {**PLAIN, **BITS, **ODD}


def run(*args: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*map(str, args)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture
def file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One odd tensor, and a plain one beside it."""
    path = tmp_path / "x.pt"
    torch.save({"w": ALL[request.param](), "o": torch.ones(2, 2)}, path)
    return path


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(path, weights_only=False)
    return found


def shown(tensor: torch.Tensor) -> object:
    """The values of any tensor as lists, so that two can be compared."""
    if tensor.is_meta:
        return tuple(tensor.shape)
    if tensor.is_nested:
        return [row.tolist() for row in torch.unbind(tensor)]
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.dtype.itemsize == 1 or "bits" in str(tensor.dtype):
        return tensor.contiguous().view(torch.uint8).tolist()
    return tensor.resolve_conj().resolve_neg().to(torch.complex128 if tensor.is_complex() else tensor.dtype).tolist()


every = pytest.mark.parametrize("file", ALL, indirect=True)
plain = pytest.mark.parametrize("file", PLAIN, indirect=True)
odd = pytest.mark.parametrize("file", ODD, indirect=True)


@every
def test_looking_has_one_row_and_never_fails(file: Path) -> None:
    code, listed, said = run("ls", file)
    assert (code, said) == (0, "") and [line.split("\t")[0] for line in listed.splitlines()] == ["w", "o"]
    for command in (["tree", file], ["tree", file, "--expand"], ["show", file, "w"], ["show", file, "w", "--json"],
                    ["stats", file], ["diff", file, file], ["ties", file], ["ties", file, "--equal"]):  # fmt: skip
        assert run(*command)[0] == 0, command
    assert "unreadable" not in run("check", file)[1]


@every
def test_the_other_tensor_changes_and_the_odd_one_stays(file: Path) -> None:
    before, out = load(file), file.with_name("out.pt")
    for verb in (["init", file, "-l", "o", "-s", "constant:2", "--seed", "1"], ["set", file, "o = 2"]):
        assert run(*verb, "-o", out, "-f")[0] == 0
        after = load(out)
        assert after["o"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
        assert shown(after["w"]) == shown(before["w"]) and type(after["w"]) is type(before["w"])
        assert (after["w"].dtype, after["w"].layout) == (before["w"].dtype, before["w"].layout)
    assert run("convert", file, "-o", out, "-f")[0] == 0
    assert shown(load(out)["w"]) == shown(before["w"])


@every
def test_an_initialisation_of_everything_keeps_what_it_cannot_draw(file: Path) -> None:
    out = file.with_name("out.pt")
    assert run("init", file, "-s", "constant:2", "--seed", "1", "-o", out)[0] == 0
    assert load(out)["o"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


@plain
def test_plain_ones_are_set_and_drawn_through_their_flags_and_strides(file: Path) -> None:
    before, out = load(file), file.with_name("out.pt")
    for verb in (["init", file, "-l", "w", "-s", "ones", "--seed", "1"], ["set", file, "w = 1"]):
        assert run(*verb, "-o", out, "-f")[0] == 0
        after = load(out)
        expected = torch.ones(before["w"].shape).to(before["w"].dtype)
        assert shown(after["w"]) == shown(expected)
        assert after["w"].stride() == before["w"].stride() and after["o"].tolist() == [[1.0, 1.0], [1.0, 1.0]]


@pytest.mark.parametrize("file", [name for name in BITS if name != "float4_e2m1fn_x2"], indirect=True)
def test_bits_are_set_and_not_drawn(file: Path) -> None:
    out = file.with_name("out.pt")
    assert run("set", file, "w = 1", "-o", out)[0] == 0
    itemsize = load(file)["w"].dtype.itemsize
    assert shown(load(out)["w"]) == [1, *[0] * (itemsize - 1)] * 8
    code, _, said = run("init", file, "-l", "w", "-s", "ones", "--seed", "1", "-o", out, "-f")
    assert code == 2 and "paramctl cannot draw" in said


HINTS = {
    **dict.fromkeys(SPARSE, "save it from your program after .to_dense()"),
    **dict.fromkeys(QUANTIZED, "save it from your program after .dequantize()"),
    **dict.fromkeys(NESTED, "save what it is made of from your program"),
    **dict.fromkeys(REPEATING, "save it from your program after .clone()"),
    "meta": "save it from your program after .to_empty() or with values",
}


@pytest.mark.parametrize(("file", "hint"), HINTS.items(), indirect=["file"])
def test_what_cannot_be_changed_says_why_and_what_to_do(file: Path, hint: str) -> None:
    out, before = file.with_name("out.pt"), file.read_bytes()
    for verb in (["init", file, "-l", "w", "-s", "ones", "--seed", "1"], ["set", file, "w = 1"]):
        code, printed, said = run(*verb, "-o", out)
        assert (code, printed) == (2, "") and said.startswith(f"paramctl: {file}: w cannot be changed: it ")
        assert said.endswith(f"; {hint}\n") and said.count("\n") == 1
    code, _, said = run("tie", file, "o", "w", "-o", out)
    assert code == 2 and said.startswith(f"paramctl: {file}: cannot tie: ") and said.count("\n") == 1
    assert run("untie", file, "w", "-o", out)[0] == 0
    assert shown(load(out)["w"]) == shown(load(file)["w"]) and file.read_bytes() == before


@odd
def test_safetensors_has_no_place_for_them(file: Path) -> None:
    code, _, said = run("convert", file, "-o", file.with_suffix(".safetensors"))
    assert code == 2 and said.startswith(f"paramctl: {file}: safetensors cannot hold w (")
    assert said.endswith("); accept the loss with --lossy, or take one part with --layer\n")
    assert run("convert", file, "-o", file.with_suffix(".safetensors"), "--lossy")[0] == 0


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sparse_coo", "6 values"), ("sparse_csr", "6 values"), ("sparse_csc", "6 values"),
        ("sparse_bsr", "4 blocks of 2 × 2"), ("sparse_bsc", "4 blocks of 2 × 2"),
    ],
    indirect=["file"],
)  # fmt: skip
def test_what_a_sparse_tensor_stores_is_counted_as_torch_counts_it(file: Path, words: str) -> None:
    assert f"  nnz            {words}\n" in run("show", file, "w")[1]
    (found,) = json.loads(run("show", file, "w", "--json")[1])["tensors"]
    assert found["nnz"] == load(file)["w"]._nnz()
    layout = found["components"][0]["path"].removeprefix("w.")
    expanded = run("tree", file, "--expand")[1]
    assert layout in expanded and "values" in expanded
    assert run("show", file, "w[0]")[2] == (
        f"paramctl: {file}: w is {str(load(file)['w'].layout).removeprefix('torch.')}, and an index has no meaning"
        " for its parts; show it whole\n"
    )
    assert run("show", file, "w", "--npy", "-o", file.with_suffix(".npy"))[2].endswith(
        "tensor, and a .npy file holds a plain one; --json has all its parts\n"
    )


def parameter(path: Path) -> paramctl.Parameter:
    found = paramctl.open(path)["w"]
    assert isinstance(found, paramctl.Parameter)
    return found


@pytest.mark.parametrize("file", [name for name in ALL if name != "meta"], indirect=True)
def test_the_api_gives_the_tensor_that_torch_saved(file: Path) -> None:
    before, found = load(file)["w"], parameter(file).torch()
    assert shown(found) == shown(before)
    if before.dtype is torch.quint4x2:
        assert found.dtype is torch.float32  # torch makes none of integers
    else:
        assert (found.dtype, found.layout) == (before.dtype, before.layout)
        assert found.is_quantized == before.is_quantized


@pytest.mark.parametrize("file", [*QUANTIZED, *REPEATING], indirect=True)
def test_the_api_gives_the_values_to_numpy(file: Path) -> None:
    before, found = load(file)["w"], parameter(file).numpy()
    assert found.dtype == np.float32
    assert found.tolist() == shown(before)


@pytest.mark.parametrize("file", [*SPARSE, *NESTED], indirect=True)
def test_numpy_has_no_word_for_sparse_and_nested_ones(file: Path) -> None:
    assert refused(UsageError, parameter(file).numpy).endswith(
        " tensor, for which numpy has no word; ask for it with .torch()"
    )


def test_a_few_bytes_that_repeat_without_end_stay_few(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(1 << 40)}, tmp_path / "x.pt")
    assert parameter(tmp_path / "x.pt").numpy().shape == (1 << 40,)
    assert parameter(tmp_path / "x.pt").torch().shape == (1 << 40,)


def test_a_tied_quantized_tensor_stays_tied_and_says_so(tmp_path: Path) -> None:
    shared = QUANTIZED["per tensor"]()
    torch.save({"a": shared, "b": shared}, tmp_path / "x.pt")
    code, _, said = run("untie", tmp_path / "x.pt", "b", "-o", tmp_path / "out.pt")
    assert code == 0 and said.startswith("kept b: it is a quantized tensor\n")


def test_parameters_of_odd_tensors(tmp_path: Path) -> None:
    made = {"a": nn.Parameter(SPARSE["sparse_coo"]()), "b": nn.Parameter(QUANTIZED["per tensor"](), requires_grad=False)}
    torch.save(made, tmp_path / "x.pt")
    assert [line.split("\t")[:4] for line in run("ls", tmp_path / "x.pt")[1].splitlines()] == [
        ["a", "parameter", "float32", "4x4"], ["b", "parameter", "quint8", "4x4"]
    ]  # fmt: skip


def test_a_subclass_that_only_its_own_code_can_rebuild_is_listed_as_an_object(tmp_path: Path) -> None:
    torch.save({"w": Foreign(torch.ones(2)), "p": 3, "o": torch.ones(2, 2)}, tmp_path / "x.pt")
    assert [line.split("\t")[0] for line in run("ls", tmp_path / "x.pt")[1].splitlines()] == ["o"]
    assert run("tree", tmp_path / "x.pt")[0] == 0
    assert run("set", tmp_path / "x.pt", "o = 2", "-o", tmp_path / "out.pt")[0] == 0
    assert load(tmp_path / "out.pt")["w"].held.tolist() == [1.0, 1.0]


# --- as a big-endian machine saves them ----------------------------------------------------------

# torch.load turns around the bytes of storages that have a dtype of their own, and forgets these.
FORGOTTEN = ("complex32", "uint16", "uint64", "bits16")
big_endian = pytest.mark.parametrize("big", ALL, indirect=True)


class Widths(pickle.Unpickler):
    """Finds how many bytes of each storage go together; makes nothing of them."""

    def __init__(self, pickled: bytes) -> None:
        super().__init__(io.BytesIO(pickled))
        self.dtypes: dict[str, torch.dtype] = {}

    def persistent_load(self, pid: Any) -> str:
        _, kind, key, *_ = pid
        self.dtypes[key] = torch.uint8 if kind is torch.storage.UntypedStorage else kind.dtype
        return str(key)

    def find_class(self, module: str, name: str) -> Any:
        return self.rebuild if name.startswith("_rebuild") else super().find_class(module, name)

    def rebuild(self, *args: Any) -> None:
        found = [arg for arg in args if isinstance(arg, torch.dtype)]
        if isinstance(args[0], str) and found:
            self.dtypes[args[0]] = found[0]

    def of(self, key: str) -> int:
        dtype = self.dtypes[key]
        return dtype.itemsize // (2 if dtype.is_complex else 1)


def turned(path: Path) -> dict[str, bytes]:
    """The records of an archive with every element of its storages turned around."""
    held = records(path)
    widths = Widths(held["x/data.pkl"])
    widths.load()
    for key in widths.dtypes:
        data = np.frombuffer(held[f"x/data/{key}"], f"u{widths.of(key)}")
        held[f"x/data/{key}"] = data.byteswap().tobytes()
    return {**held, "x/byteorder": b"big" if held["x/byteorder"] == b"little" else b"little"}


@pytest.fixture
def big(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Path, bool]:
    """Two files of the same tensors, little-endian and big-endian, and whether torch reads the second."""
    path, folder = tmp_path / "x.pt", tmp_path / "big"
    torch.save({"w": ALL[request.param](), "o": torch.ones(2, 2)}, path)
    folder.mkdir()
    return path, rezipped(folder / "x.pt", turned(path)), request.param not in FORGOTTEN


def little(path: Path) -> Path:
    """What a big-endian archive says, in a file that torch loads whatever is in it."""
    return rezipped(path.with_name("back.pt"), turned(path))


@big_endian
def test_big_endian_ones_look_the_same(big: tuple[Path, Path, bool]) -> None:
    path, other, torch_reads = big
    if torch_reads:
        assert shown(load(other)["w"]) == shown(load(path)["w"])
    for command in (["ls"], ["tree", "--expand"], ["stats"], ["ties", "--equal"]):
        code, printed, _ = run(*command, path)
        assert run(*command, other)[:2] == (code, printed.replace(str(path), str(other))), command
    told = [json.loads(run("show", file, "w", "--json")[1])["tensors"] for file in (path, other)]
    assert told[0] == told[1]
    assert run("diff", path, other)[0] == 0
    assert "unreadable" not in run("check", other)[1]


@big_endian
def test_big_endian_ones_stay_and_the_other_tensor_changes(big: tuple[Path, Path, bool]) -> None:
    path, other, _ = big
    before, out = load(path), other.with_name("out.pt")
    for verb in (["init", other, "-l", "o", "-s", "constant:2", "--seed", "1"], ["set", other, "o = 2"]):
        assert run(*verb, "-o", out, "-f")[0] == 0
        after = load(little(out))
        assert after["o"].tolist() == [[2.0, 2.0], [2.0, 2.0]]
        assert shown(after["w"]) == shown(before["w"])
        changed = {name for name, data in records(out).items() if data != records(other)[name]}
        assert len(changed) == 1
    assert run("convert", other, "-o", out, "-f")[0] == 0
    assert run("diff", other, out)[0] == 0


@pytest.mark.parametrize("big", PLAIN, indirect=True)
def test_big_endian_ones_are_set_drawn_and_converted(big: tuple[Path, Path, bool]) -> None:
    path, other, torch_reads = big
    before, out = load(path), other.with_name("out.pt")
    for verb in (["init", other, "-l", "w", "-s", "ones", "--seed", "1"], ["set", other, "w = 1"]):
        assert run(*verb, "-o", out, "-f")[0] == 0
        expected = shown(torch.ones(before["w"].shape).to(before["w"].dtype))
        assert shown(load(little(out))["w"]) == expected
        if torch_reads:
            assert shown(load(out)["w"]) == expected
    code, _, said = run("convert", other, "-o", out.with_suffix(".safetensors"))
    if code:
        assert "safetensors has no " in said, said
    else:
        assert run("diff", path, out.with_suffix(".safetensors"))[0] == 0


@pytest.mark.parametrize("big", [name for name in ALL if name != "meta"], indirect=True)
def test_the_api_gives_big_endian_ones_as_torch_saved_them(big: tuple[Path, Path, bool]) -> None:
    path, other, _ = big
    assert shown(parameter(other).torch()) == shown(parameter(path).torch())


class Foreign:
    """Pickled as a subclass of a tensor is, with a function of its own."""

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def __reduce__(self) -> tuple[object, ...]:
        return torch._tensor._rebuild_from_type_v2, (rebuilt, Foreign, (3,), {"held": self.held})


def rebuilt(_: int) -> Foreign:
    return Foreign(torch.zeros(1))
