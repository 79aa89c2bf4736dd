"""torch.save archives: torch itself lists the same, and loads what we write."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    assert_same_but,
    changed_bytes,
    file_of,
    listing,
    raw,
    record_of,
    records,
    refused,
    rezipped,
    rows,
    save,
    source_in_memory,
    spots,
    streamed,
    sums_hold,
    tensors,
    ties,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, ParamctlError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.formats.pickles import writer
from paramctl.formats.pickles.nodes import Call, Dict, Global, Persistent
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.values.arrays import read_index, read_values

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse:UserWarning"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantiz.*:UserWarning"),
]


def saved(path: Path, made: object, **how: Any) -> Path:
    torch.save(made, path, **how)
    return path


def loaded(path: Path) -> Any:
    """What torch finds: all of it if it must run the file's own classes, else without running anything."""
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001  # UnpicklingError, or what a class makes of it
        return torch.load(path, weights_only=False)


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def mlp() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))


def training() -> dict[str, Any]:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(lr=0.1, name="x"),
        "best": np.float64(0.5),
        "history": [1.0, 2.0],
        "rng": torch.get_rng_state(),
    }


class Tagged(torch.Tensor):
    """A subclass of tensors."""


class Annotated(nn.Module):
    """A module with parameters and buffers of every kind, and foreign attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.weight.note = "an attribute"  # type: ignore[attr-defined]
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("passing", torch.zeros(3), persistent=False)
        self.register_parameter("none", None)
        self.buffer = nn.Buffer(torch.full((2,), 5.0))
        self.options = argparse.Namespace(depth=2)
        self.again = self.first


# --- listing -------------------------------------------------------------------------------------

V2 = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex128, torch.complex64, torch.int64,
    torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip
V3 = [
    torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.bits8, torch.bits16, torch.float4_e2m1fn_x2,
]  # fmt: skip


def of_bytes(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor of any dtype whose bytes count up."""
    size = torch.empty(0, dtype=dtype).element_size()
    data = torch.arange(size * int(np.prod(shape)), dtype=torch.uint8)
    return (data % 2).bool().reshape(shape) if dtype == torch.bool else data.view(dtype).reshape(shape)


def views() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return {
        "base": base,
        "row": base[1],
        "column": base[:, 2],
        "stepped": base[::2, 1::2],
        "transposed": base.t(),
        "expanded": torch.arange(3.0).expand(4, 3),
        "slice": torch.arange(100.0)[40:43],
        "channels": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "empty end": base[4:],
        "scalar": torch.tensor(7.0),
        "ones": torch.ones(1, 1, 1),
    }


def lstm() -> nn.LSTM:
    torch.manual_seed(2)
    return nn.LSTM(2, 3, num_layers=2, bidirectional=True)


CASES: dict[str, Callable[[], Any]] = {
    "state_dict": lambda: mlp().state_dict(),
    "training": training,
    "bare": lambda: torch.arange(6.0).reshape(2, 3),
    "bare parameter": lambda: nn.Parameter(torch.arange(3.0)),
    "list": lambda: [torch.zeros(2), {"a": torch.ones(1)}, [torch.ones(2)]],
    "tuple": lambda: (torch.zeros(2), (torch.ones(3),), 5),
    "empty": dict,
    "module": mlp,
    "annotated": Annotated,
    "lstm": lstm,
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "modules inside": lambda: {"net": mlp(), "heads": nn.ModuleList([linear()]), "by name": nn.ModuleDict({"a": linear()})},
    "parameters": lambda: nn.ParameterList([torch.ones(2), torch.zeros(3)]),
    "dtypes": lambda: {str(dtype): of_bytes(dtype, 2, 3) for dtype in V2},
    "dtypes v3": lambda: {str(dtype): of_bytes(dtype, 2, 4) for dtype in V3},
    "views": views,
    "subclass": lambda: {"a": torch.arange(3.0).as_subclass(Tagged), "b": torch.ones(2)},
    "attribute": lambda: {"a": with_note(torch.ones(2))},
    "parameter with state": lambda: {"a": with_note(nn.Parameter(torch.ones(2)))},
    "buffer": lambda: {"a": nn.Buffer(torch.ones(2))},
    "meta": lambda: {"a": torch.empty(3, 4, device="meta"), "b": torch.ones(1)},
    "keys": lambda: {"a b": torch.ones(1), "x/y": torch.ones(2), "[red]": torch.ones(3), "ключ": torch.ones(4), 5: torch.ones(5)},
    "ties": lambda: {"a": (t := torch.ones(2, 2)), "b": t, "c": t.detach(), "d": t.clone(), "e": t.t()},
    "requires grad": lambda: {"a": torch.ones(2, requires_grad=True), "b": torch.ones(2)},
    "ordered": lambda: OrderedDict([("z", torch.ones(1)), ("a", torch.ones(2))]),
}  # fmt: skip


def with_note(tensor: Any) -> Any:
    tensor.note = "an attribute"
    return tensor


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("case", CASES)
def test_the_listing_is_what_torch_holds(tmp_path: Path, case: str, protocol: int) -> None:
    made = CASES[case]()
    checkpoint = listing(saved(tmp_path / "x.pt", made, pickle_protocol=protocol))
    held = tensors(made)
    assert rows(checkpoint) == [
        (path, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride()) for path, t in held.items()
    ]
    assert [p.requires_grad for p in checkpoint.params] == [t.requires_grad for t in held.values()]
    assert sharing(checkpoint) == torch_sharing(held)
    for param, tensor in zip(checkpoint.params, held.values(), strict=True):
        if not tensor.is_meta:
            assert param.offset == tensor.storage_offset()
            if param.dtype.name not in ("complex32",):
                assert read_values(checkpoint, param).tobytes() == raw(tensor)


def sharing(checkpoint: Checkpoint) -> list[list[str]]:
    """Paths of each storage that several tensors lie in."""
    found: dict[str, list[str]] = {}
    for param in checkpoint.params:
        if param.storage is not None:
            found.setdefault(param.storage, []).append(param.path)
    return [paths for paths in found.values() if len(paths) > 1]


def torch_sharing(held: dict[str, torch.Tensor]) -> list[list[str]]:
    found: dict[int, list[str]] = {}
    for path, tensor in held.items():
        if not tensor.is_meta and tensor.untyped_storage().nbytes():
            found.setdefault(tensor.untyped_storage().data_ptr(), []).append(path)
    return [paths for paths in found.values() if len(paths) > 1]


def test_kinds_and_classes(tmp_path: Path) -> None:
    checkpoint = listing(saved(tmp_path / "x.pt", Annotated()))
    assert [(p.path, p.kind) for p in checkpoint.params] == [
        ("weight", "parameter"),
        ("kept", "buffer"),
        ("passing", "buffer"),
        ("buffer", "buffer"),
        ("first.weight", "parameter"),
        ("first.bias", "parameter"),
        ("again.weight", "parameter"),
        ("again.bias", "parameter"),
    ]
    assert {path: module.text for path, module in checkpoint.modules.items()} == {
        "": "Annotated",
        "first": "Linear(2 → 2)",
        "again": "Linear(2 → 2)",
    }
    assert ties(checkpoint) == [["first.weight", "again.weight"], ["first.bias", "again.bias"]]


def test_a_training_run_lists_its_scalars_and_its_optimizer(tmp_path: Path) -> None:
    checkpoint = listing(saved(tmp_path / "x.pt", training()))
    leaves = {entry.path: entry.value for entry in checkpoint.entries if isinstance(entry, Leaf)}
    assert leaves["epoch"] == 3
    assert leaves["best"] == 0.5
    assert leaves["history"] == [1.0, 2.0]
    assert leaves["args"] == "argparse.Namespace(…)"
    assert leaves["optimizer.param_groups.0.lr"] == 0.001
    kinds = {p.path: p.kind for p in checkpoint.params}
    assert kinds["optimizer.state.0.exp_avg"] == "optimizer"
    assert kinds["model.0.weight"] == "tensor"


SPARSE = torch.tensor([[0.0, 1.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [3.0, 0.0, 4.0, 0.0], [0.0, 5.0, 0.0, 6.0]])
SCALES, ZEROS = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1, 2, 3, 4])
COMPOSITE: dict[str, tuple[Callable[[], torch.Tensor], str, str, list[str]]] = {
    "coo": (SPARSE.to_sparse, "sparse_coo", "float32", ["x.indices", "x.values"]),
    "csr": (SPARSE.to_sparse_csr, "sparse_csr", "float32", ["x.crow_indices", "x.col_indices", "x.values"]),
    "csc": (SPARSE.to_sparse_csc, "sparse_csc", "float32", ["x.ccol_indices", "x.row_indices", "x.values"]),
    "bsr": (lambda: SPARSE.to_sparse_bsr((2, 2)), "sparse_bsr", "float32", ["x.crow_indices", "x.col_indices", "x.values"]),
    "bsc": (lambda: SPARSE.to_sparse_bsc((2, 2)), "sparse_bsc", "float32", ["x.ccol_indices", "x.row_indices", "x.values"]),
    "per tensor": (lambda: torch.quantize_per_tensor(SPARSE, 0.1, 2, torch.qint8), "quantized", "qint8", []),
    "per channel": (
        lambda: torch.quantize_per_channel(SPARSE, SCALES, ZEROS, 0, torch.quint8),
        "quantized",
        "quint8",
        ["x.scales", "x.zero_points"],
    ),
}


@pytest.mark.parametrize("case", COMPOSITE)
def test_composite_tensors(tmp_path: Path, case: str) -> None:
    make, layout, dtype, components = COMPOSITE[case]
    made = {"x": make(), "y": torch.ones(2)}
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    param = checkpoint.params[0]
    assert (param.path, param.layout, param.dtype.name, param.shape) == ("x", layout, dtype, (4, 4))
    assert [part.path for part in param.components] == components
    assert read_values(checkpoint, checkpoint.params[1]).tolist() == [1.0, 1.0]
    said = refused(UsageError, set_values, checkpoint, "x = 0")
    assert said.partition("; ")[0] == f"x cannot be changed: it is a {layout} tensor"
    after = loaded(save(set_values(checkpoint, "y = 3").checkpoint, tmp_path / "y.pt"))
    assert torch.equal(after["y"], torch.full((2,), 3.0))
    assert (after["x"].layout, after["x"].dtype) == (made["x"].layout, made["x"].dtype)
    dense = [x.dequantize() if x.is_quantized else x.to_dense() for x in (made["x"], after["x"])]
    assert torch.equal(*dense)


def test_nested_tensors(tmp_path: Path) -> None:
    made = {"x": torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)]), "y": torch.ones(2)}
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    param = checkpoint.params[0]
    assert (param.layout, param.shape, param.numel, param.nbytes) == ("nested", (2, -1, 3), 18, 0 + 72 + 32 + 32 + 16)


def test_a_module_whose_class_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lost_module.py").write_text("from torch import nn\nclass Lost(nn.Sequential):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = importlib.import_module("lost_module").Lost(nn.Linear(2, 2), nn.Linear(2, 2))
    path = saved(tmp_path / "x.pt", made)
    del sys.modules["lost_module"]
    sys.path.remove(str(tmp_path))
    checkpoint = listing(path)
    assert checkpoint.modules[""].type == "Lost"
    tied = save(tie(checkpoint, "0", "1").checkpoint, tmp_path / "y.pt")
    assert "lost_module" not in sys.modules
    sys.path.append(str(tmp_path))
    after = torch.load(tied, weights_only=False)
    assert type(after).__name__ == "Lost" and after[0].weight is after[1].weight
    assert torch.equal(after[0].weight, made[0].weight)


# --- layouts of all ages -------------------------------------------------------------------------


def plain_layout(path: Path, made: object) -> Path:
    return saved(path, made)


def without_sums(path: Path, made: object) -> Path:
    torch.serialization.set_crc32_options(False)
    try:
        return saved(path, made)
    finally:
        torch.serialization.set_crc32_options(True)


def aligned(path: Path, made: object) -> Path:
    from torch.utils.serialization import config

    config.save.storage_alignment = 4096
    try:
        return saved(path, made)
    finally:
        config.save.storage_alignment = 64


def to_buffer(path: Path, made: object) -> Path:
    buffer = io.BytesIO()
    torch.save(made, buffer)
    return file_of(path.parent, buffer.getvalue(), path.name)


def stored_again(path: Path, made: object) -> Path:
    return rezipped(path, records(saved(path, made)))


def deflated(path: Path, made: object) -> Path:
    return rezipped(path, records(saved(path, made)), zipfile.ZIP_DEFLATED)


def old(path: Path, made: object) -> Path:
    """As torch 1.6 to 2.0: no byte order, no format version, the version last."""
    held = {name: data for name, data in records(saved(path, made)).items() if "/." not in name and "byteorder" not in name}
    return rezipped(path, held)


def oldest(path: Path, made: object) -> Path:
    """As the first with zip archives: the version comes first."""
    held = records(old(path, made))
    return rezipped(path, {name: held[name] for name in sorted(held, key=lambda n: (not n.endswith("version"), n))})


def appended(path: Path, made: object) -> Path:
    """With a second data.pkl behind the storages, and the first one dead."""
    held = records(saved(path, made))
    name = next(name for name in held if name.endswith("/data.pkl"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist = [info for info in archive.filelist if info.filename != name]
        archive.NameToInfo.pop(name)
        archive.writestr(name, held[name])
    return path


def other_directory_order(path: Path, made: object) -> Path:
    """With a directory that lists the records backwards."""
    data = bytearray(saved(path, made).read_bytes())
    with zipfile.ZipFile(path) as archive:
        start, names = archive.start_dir, archive.namelist()
    central = [spot.central for spot in spots(path).values()]
    ends = [*central[1:], central[-1] + 46 + len(names[-1])]
    entries = [data[a:b] for a, b in zip(central, ends, strict=True)]
    data[start : ends[-1]] = b"".join(reversed(entries))
    return file_of(path.parent, bytes(data), path.name)


LAYOUTS = [
    plain_layout, without_sums, aligned, to_buffer, stored_again, deflated, old, oldest, appended, other_directory_order,
]  # fmt: skip


@pytest.fixture(params=LAYOUTS, ids=lambda write: write.__name__)
def write(request: pytest.FixtureRequest) -> Callable[[Path, object], Path]:
    found: Callable[[Path, object], Path] = request.param
    return found


def test_every_layout_lists_the_same(tmp_path: Path, write: Callable[[Path, object], Path]) -> None:
    made = mlp().state_dict()
    checkpoint = listing(write(tmp_path / "x.pt", made))
    assert rows(checkpoint) == rows(listing(saved(tmp_path / "y.pt", made)))
    assert [read_values(checkpoint, p).tobytes() for p in checkpoint.params] == [raw(t) for t in made.values()]


def test_a_save_without_a_change_is_a_copy(tmp_path: Path, write: Callable[[Path, object], Path]) -> None:
    path = write(tmp_path / "x.pt", mlp().state_dict())
    checkpoint = listing(path)
    assert save(checkpoint, tmp_path / "y.pt").read_bytes() == path.read_bytes()


def test_every_layout_takes_edits(tmp_path: Path, write: Callable[[Path, object], Path]) -> None:
    made: Any = mlp().state_dict()
    checkpoint = listing(write(tmp_path / "x.pt", made))
    for edit, changed in [
        (init(checkpoint, ["0"], ["constant:2"]), {"0.weight", "0.bias"}),
        (set_values(checkpoint, "2.weight[1,2] = 42"), {"2.weight"}),
        (tie(checkpoint, "0", "2"), {"2.weight", "2.bias"}),
    ]:
        path = save(edit.checkpoint, tmp_path / "y.pt")
        after = torch.load(path, weights_only=True)
        assert_same_but(made, after, changed)
        assert after._metadata == made._metadata
        if write is not without_sums:
            assert sums_hold(path)
    assert after["0.weight"].data_ptr() == after["2.weight"].data_ptr()
    assert torch.equal(after["2.bias"], made["0.bias"])
    untied = torch.load(save(untie(listing(path), "2").checkpoint, tmp_path / "z.pt"), weights_only=True)
    assert untied["0.weight"].data_ptr() != untied["2.weight"].data_ptr()
    assert_same_but(after, untied, set())


def test_checksums_are_left_out_where_the_file_has_none(tmp_path: Path) -> None:
    checkpoint = listing(without_sums(tmp_path / "x.pt", mlp().state_dict()))
    path = save(init(checkpoint, ["0"], ["ones"]).checkpoint, tmp_path / "y.pt")
    with zipfile.ZipFile(path) as archive:
        assert {info.CRC for info in archive.infolist() if "/data/" in info.filename} == {0}


@pytest.mark.parametrize("alignment", [64, 4096])
def test_payloads_that_move_stay_aligned(tmp_path: Path, alignment: int) -> None:
    checkpoint = listing((aligned if alignment == 4096 else saved)(tmp_path / "x.pt", mlp().state_dict()))
    path = save(tie(checkpoint, "0", "2").checkpoint, tmp_path / "y.pt")
    assert {spot.payload % alignment for spot in spots(path).values()} == {0}


@pytest.mark.parametrize("alignment", [b"0", b"3", b"-1", b"65536", b"4194304"])
def test_an_alignment_that_no_zip_can_have_is_ignored(tmp_path: Path, alignment: bytes) -> None:
    held = records(saved(tmp_path / "x.pt", mlp().state_dict()))
    held["x/.storage_alignment"] = alignment
    checkpoint = listing(rezipped(tmp_path / "x.pt", held))
    path = save(tie(checkpoint, "0", "2").checkpoint, tmp_path / "y.pt")
    assert sums_hold(path)
    assert torch.load(path, weights_only=True)["2.weight"].shape == (4, 4)


def test_skipped_data_is_zeros(tmp_path: Path) -> None:
    with torch.serialization.skip_data():
        path = saved(tmp_path / "x.pt", {"a": torch.ones(3), "b": torch.ones(2)})
    checkpoint = listing(path)
    assert [read_values(checkpoint, p).tolist() for p in checkpoint.params] == [[0, 0, 0], [0, 0]]
    after = torch.load(save(set_values(checkpoint, "a[1] = 5").checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert after["a"].tolist() == [0, 5, 0] and after["b"].tolist() == [0, 0]


def test_what_follows_the_pickle_is_kept_with_it(tmp_path: Path) -> None:
    held = records(saved(tmp_path / "x.pt", {"a": torch.ones(2)}))
    held["x/extra/notes.txt"] = b"mine"
    checkpoint = listing(rezipped(tmp_path / "x.pt", held))
    assert records(save(init(checkpoint, ["a"], ["zeros"]).checkpoint, tmp_path / "y.pt"))["x/extra/notes.txt"] == b"mine"


# --- big-endian ----------------------------------------------------------------------------------

SWAPPED = {"f": torch.float32, "h": torch.float16, "d": torch.float64, "l": torch.int64, "c": torch.complex64}


def big(path: Path) -> dict[str, torch.Tensor]:
    """An archive as a big-endian machine writes it, and what is in it."""
    made = {key: torch.arange(1, 7).to(dtype).reshape(2, 3) for key, dtype in SWAPPED.items()}
    made["tie"] = made["f"]
    made["t"] = (torch.arange(6.0) + 10).reshape(2, 3).t()
    held = records(saved(path, made))
    for i, tensor in enumerate([made[key] for key in (*SWAPPED, "t")]):
        size = tensor.element_size() // (2 if tensor.is_complex() else 1)
        held[f"x/data/{i}"] = np.frombuffer(held[f"x/data/{i}"], f"u{size}").byteswap().tobytes()
    held["x/byteorder"] = b"big"
    rezipped(path, held)
    return made


def test_big_endian(tmp_path: Path) -> None:
    made = big(tmp_path / "x.pt")
    assert_same_but(made, torch.load(tmp_path / "x.pt", weights_only=True), set())
    checkpoint = listing(tmp_path / "x.pt")
    assert [read_values(checkpoint, p).tobytes() for p in checkpoint.params] == [raw(t) for t in made.values()]


@pytest.mark.parametrize("path", ["h", "d", "l", "c", "t"])
def test_big_endian_values_are_set(tmp_path: Path, path: str) -> None:
    made = big(tmp_path / "x.pt")
    edit = set_values(listing(tmp_path / "x.pt"), f"{path}[1,1] = 42")
    after = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=True)
    made[path][1, 1] = 42
    assert_same_but(made, after, set())


def test_big_endian_ties_and_copies(tmp_path: Path) -> None:
    made = big(tmp_path / "x.pt")
    edit = untie(listing(tmp_path / "x.pt"), "tie")
    after = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert_same_but(made, after, set())
    assert after["f"].data_ptr() != after["tie"].data_ptr()
    edit = set_values(edit.checkpoint, "tie[0,0] = 9")
    after = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert (after["tie"][0].tolist(), after["f"][0].tolist()) == ([9, 2, 3], [1, 2, 3])


# --- edits of values -----------------------------------------------------------------------------

NAMED: dict[str, tuple[str, str]] = {  # case → a layer or param to draw, the params that become other
    "state_dict": ("0", "0.weight 0.bias"),
    "training": ("model.2", "model.2.weight model.2.bias"),
    "list": ("1", "1.a"),
    "tuple": ("0", "0"),
    "module": ("2", "2.weight 2.bias"),
    "annotated": ("weight", "weight"),
    "lstm": ("weight_hh_l1", "weight_hh_l1"),
    "modules inside": ("net.0.weight", "net.0.weight"),
    "dtypes": ("torch.float16", "torch.float16"),
    "dtypes v3": ("torch.float8_e5m2", "torch.float8_e5m2"),
    "subclass": ("a", "a"),
    "parameter with state": ("a", "a"),
    "buffer": ("a", "a"),
    "ties": ("d", "d"),
    "requires grad": ("a", "a"),
}


@pytest.mark.parametrize("case", NAMED)
def test_drawing_changes_what_was_named_and_no_other_byte(tmp_path: Path, case: str) -> None:
    layer, paths = NAMED[case]
    made = CASES[case]()
    path = saved(tmp_path / "x.pt", made)
    edit = init(listing(path), [layer], ["constant:0.5"], bias="constant:0.5")
    assert [change.path for change in edit.changed] == paths.split()
    edited = save(edit.checkpoint, tmp_path / "y.pt")
    after = loaded(edited)
    assert_same_but(made, after, set(paths.split()))
    for name in paths.split():
        assert (tensors(after)[name].float() == 0.5).all()
    assert sums_hold(edited)
    assert changed_bytes(path, edited) <= may_change(path, edit.checkpoint, paths.split())


def may_change(path: Path, checkpoint: Checkpoint, names: list[str]) -> set[int]:
    """Where the payloads of these params and the checksums of their records lie in a file that torch wrote."""
    allowed: set[int] = set()
    for param in checkpoint.params:
        if param.path in names:
            spot = record_of(path, f"/data/{param.storage}")
            first = spot.payload + param.start
            allowed |= {*range(first, first + param.dtype.nbytes(param.span))}
            allowed |= {*range(spot.payload + spot.nbytes + 4, spot.payload + spot.nbytes + 8)}
            allowed |= {*range(spot.central + 16, spot.central + 20)}
    return allowed


@pytest.mark.parametrize("path", ["base", "channels", "slice", "scalar", "ones"])
def test_setting_one_element_of_a_view(tmp_path: Path, path: str) -> None:
    made = {key: tensor.clone() if key != path else tensor for key, tensor in views().items()}
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    index = ",".join("0" * made[path].dim())
    edited = save(set_values(checkpoint, f"{path}[{index}] = 42" if index else f"{path} = 42").checkpoint, tmp_path / "y.pt")
    after = torch.load(edited, weights_only=True)
    made[path].view(made[path].shape)[(0,) * made[path].dim()] = 42
    assert_same_but(made, after, set())
    assert changed_bytes(tmp_path / "x.pt", edited) <= may_change(tmp_path / "x.pt", checkpoint, [path])


STRIDED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "transposed": lambda base: base.t(),
    "columns": lambda base: base[:, 1:3],
    "stepped": lambda base: base[::2, ::3],
    "column": lambda base: base[:, 2:3],
}


@pytest.mark.parametrize("case", STRIDED)
def test_drawing_through_strides(tmp_path: Path, case: str) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    view = STRIDED[case](base)
    checkpoint = listing(saved(tmp_path / "x.pt", {"w": view, "other": torch.ones(3)}))
    edited = save(init(checkpoint, ["w"], ["xavier_uniform"], seed=5).checkpoint, tmp_path / "y.pt")
    same = listing(saved(tmp_path / "z.pt", {"w": view.contiguous()}))
    plain = torch.load(save(init(same, ["w"], ["xavier_uniform"], seed=5).checkpoint, tmp_path / "z2.pt"), weights_only=True)
    after = torch.load(edited, weights_only=True)
    assert torch.equal(after["w"], plain["w"]) and after["w"].stride() == view.stride()
    view[...] = plain["w"]
    assert bytes(after["w"].untyped_storage()) == bytes(base.untyped_storage())


@pytest.mark.parametrize("flag", ["conj", "neg"])
def test_flagged_views_hold_what_was_drawn(tmp_path: Path, flag: str) -> None:
    values = torch.arange(6.0).reshape(2, 3) * torch.tensor(1 + 2j)
    made = {"w": values.conj() if flag == "conj" else values.conj().imag}
    assert made["w"].is_conj() or made["w"].is_neg()
    path = saved(tmp_path / "x.pt", made)
    checkpoint = listing(path)
    assert checkpoint.params[0].flags == {flag}
    assert read_values(checkpoint, checkpoint.params[0]).tobytes() == raw(made["w"])
    edit = set_values(checkpoint, "w[1,2] = 5")
    after = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=False)["w"]
    made["w"][1, 2] = 5
    assert torch.equal(after, made["w"]) and (after.is_conj(), after.is_neg()) == (flag == "conj", flag == "neg")
    constant = init(checkpoint, ["w"], ["constant:3"])
    after = torch.load(save(constant.checkpoint, tmp_path / "y.pt"), weights_only=False)["w"]
    assert (after == 3).all()


def test_tied_to_a_conjugate(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3) * torch.tensor(1 + 2j)
    path = saved(tmp_path / "x.pt", {"a": values.conj(), "b": torch.zeros(2, 3, dtype=torch.complex64)})
    after = torch.load(save(tie(listing(path), "a", "b").checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert torch.equal(after["a"], values.conj()) and torch.equal(after["b"], values.conj())
    path = saved(tmp_path / "x.pt", {"b": torch.zeros(2, 3, dtype=torch.complex64), "a": values.conj()})
    after = torch.load(save(tie(listing(path), "b", "a").checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert not after["a"].any() and not after["b"].any()


def test_a_conjugate_is_not_tied_to_its_base(tmp_path: Path) -> None:
    values = torch.arange(6.0).reshape(2, 3) * torch.tensor(1 + 2j)
    checkpoint = listing(saved(tmp_path / "x.pt", {"a": values, "b": values.conj()}))
    assert ties(checkpoint) == []


def test_overlaps_and_repeats_are_refused(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    checkpoint = listing(saved(tmp_path / "x.pt", {"a": base[0:8], "b": base[4:12], "c": torch.ones(2).expand(3, 2)}))
    assert refused(UsageError, init, checkpoint, ["a"], ["zeros"]) == (
        "a shares some of its bytes with b; name them all, or 'paramctl untie' first"
    )
    assert refused(UsageError, set_values, checkpoint, "c[0,0] = 1") == (
        "c cannot be changed: it repeats fewer values over its shape (stride 0), so its elements cannot differ;"
        " save it from your program after .clone()"
    )
    parted = untie(checkpoint, "a", "b").checkpoint
    after = torch.load(save(init(parted, ["b"], ["zeros"]).checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert after["a"].tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and not after["b"].any()


def test_a_meta_tensor_has_no_values(tmp_path: Path) -> None:
    checkpoint = listing(saved(tmp_path / "x.pt", {"a": torch.empty(2, device="meta")}))
    assert refused(UsageError, read_values, checkpoint, checkpoint.params[0]) == (
        "a is a meta tensor: no values are saved for it"
    )


# --- ties ----------------------------------------------------------------------------------------


def test_a_tie_in_a_training_run_keeps_all_the_rest(tmp_path: Path) -> None:
    made = training()
    edited = save(tie(listing(saved(tmp_path / "x.pt", made)), "model.0", "model.2").checkpoint, tmp_path / "y.pt")
    after = torch.load(edited, weights_only=False)
    assert_same_but(made, after, {"model.2.weight", "model.2.bias"})
    assert after["model"]["0.weight"].data_ptr() == after["model"]["2.weight"].data_ptr()
    assert torch.equal(after["model"]["2.bias"], made["model"]["0.bias"])
    assert (after["epoch"], after["args"], after["best"]) == (3, made["args"], 0.5)
    assert after["model"]._metadata == made["model"]._metadata
    assert after["optimizer"]["param_groups"] == made["optimizer"]["param_groups"]
    assert list(after) == list(made)


def test_a_storage_that_nobody_uses_is_not_written(tmp_path: Path) -> None:
    made = {"a": torch.ones(2, 2), "b": torch.zeros(2, 2), "c": torch.full((3,), 5.0)}
    edited = save(tie(listing(saved(tmp_path / "x.pt", made)), "a", "b").checkpoint, tmp_path / "y.pt")
    assert [name for name in records(edited) if "/data/" in name] == ["x/data/0", "x/data/2"]
    again = save(untie(listing(edited), "b").checkpoint, tmp_path / "z.pt")
    assert [name for name in records(again) if "/data/" in name] == ["x/data/0", "x/data/2", "x/data/3"]


def test_a_storage_that_is_still_used_is_written(tmp_path: Path) -> None:
    base = torch.arange(8.0)
    made = {"a": torch.ones(4), "b": base[:4], "c": base[4:]}
    edited = save(tie(listing(saved(tmp_path / "x.pt", made)), "a", "b").checkpoint, tmp_path / "y.pt")
    after = torch.load(edited, weights_only=True)
    assert after["b"].data_ptr() == after["a"].data_ptr() and after["c"].tolist() == [4, 5, 6, 7]


def test_ties_of_layers_of_a_module_are_one_object(tmp_path: Path) -> None:
    made = mlp()
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    tied = save(tie(checkpoint, "0", "2").checkpoint, tmp_path / "y.pt")
    after = torch.load(tied, weights_only=False)
    assert after[0].weight is after[2].weight and after[0].bias is after[2].bias
    assert isinstance(after[2].weight, nn.Parameter) and after[2].weight.requires_grad
    assert_same_but(made, after, {"2.weight", "2.bias"})
    assert next(iter(after.parameters())) is after[0].weight and len(list(after.parameters())) == 6
    parted = torch.load(save(untie(listing(tied), "2").checkpoint, tmp_path / "z.pt"), weights_only=False)
    assert parted[0].weight is not parted[2].weight
    assert parted[0].weight.data_ptr() != parted[2].weight.data_ptr()
    assert_same_but(after, parted, set())


def test_untying_a_shared_layer_leaves_its_other_use_alone(tmp_path: Path) -> None:
    shared = linear()
    made = nn.Sequential(shared, nn.Sequential(shared, shared), nn.ReLU())
    made.note = argparse.Namespace(x=1)  # type: ignore[assignment]
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    after = torch.load(save(untie(checkpoint, "1.0").checkpoint, tmp_path / "y.pt"), weights_only=False)
    assert after[0] is after[1][1] and after[1][0] is not after[0]
    assert after[1][0].weight is not after[0].weight
    assert_same_but(made, after, set())
    assert after.note == argparse.Namespace(x=1)
    after[1][0](torch.ones(1, 4))


def test_weight_and_bias_of_a_shared_layer_part_together(tmp_path: Path) -> None:
    shared = linear()
    checkpoint = listing(saved(tmp_path / "x.pt", nn.Sequential(shared, shared)))
    edited = untie(checkpoint, "1.weight")
    after = torch.load(save(edited.checkpoint, tmp_path / "y.pt"), weights_only=False)
    assert after[0].weight is not after[1].weight and after[0].bias is after[1].bias


@pytest.mark.parametrize("shared", [False, True])
def test_an_lstm_uses_what_it_was_tied_to(tmp_path: Path, shared: bool) -> None:
    """Its `_flat_weights` hold the same parameters once more."""
    net: Any = lstm()
    made = nn.ModuleList([net, net]) if shared else nn.ModuleList([net, lstm()])
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    edit = tie(checkpoint, "0.weight_hh_l0", "0.weight_hh_l1") if shared else tie(checkpoint, "0", "1")
    after = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=False)
    for module in after:
        assert [id(w) for w in module._flat_weights] == [id(getattr(module, n)) for n in module._flat_weights_names]
    if shared:
        assert after[0].weight_hh_l0 is after[0].weight_hh_l1
        assert torch.equal(after[1].weight_hh_l1, net.weight_hh_l1)
    else:
        assert all(a is b for a, b in zip(after[0].parameters(), after[1].parameters(), strict=True))


def test_a_tie_keeps_the_class_and_attributes_of_a_parameter(tmp_path: Path) -> None:
    made: dict[str, Any] = {"a": torch.ones(2), "b": with_note(nn.Parameter(torch.zeros(2))), "c": torch.zeros(2).as_subclass(Tagged)}
    tied = save(tie(listing(saved(tmp_path / "x.pt", made)), "a", "b", "c").checkpoint, tmp_path / "y.pt")
    after: dict[str, Any] = torch.load(tied, weights_only=False)
    assert len({tensor.data_ptr() for tensor in after.values()}) == 1
    assert after["b"].note == "an attribute" and isinstance(after["b"], nn.Parameter)
    assert isinstance(after["c"], Tagged) and after["c"].tolist() == [1, 1]


def test_ties_of_dtypes_that_only_v3_has(tmp_path: Path) -> None:
    made = {f"{dtype} {i}": of_bytes(dtype, 2, 4).roll(i, 0) if dtype == torch.uint16 else of_bytes(dtype, 2, 4).clone()
            for dtype in V3 for i in (0, 1)}  # fmt: skip
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    for dtype in V3:
        checkpoint = tie(checkpoint, f"{dtype} 0", f"{dtype} 1").checkpoint
    after = torch.load(save(checkpoint, tmp_path / "y.pt"), weights_only=True)
    for dtype in V3:
        assert after[f"{dtype} 0"].data_ptr() == after[f"{dtype} 1"].data_ptr()
        assert raw(after[f"{dtype} 1"]) == raw(made[f"{dtype} 0"])


def test_a_tie_takes_the_strides_of_the_first(tmp_path: Path) -> None:
    made = {"a": torch.arange(6.0).reshape(3, 2).t(), "b": torch.zeros(2, 3)}
    after = torch.load(save(tie(listing(saved(tmp_path / "x.pt", made)), "a", "b").checkpoint, tmp_path / "y.pt"),
                       weights_only=True)  # fmt: skip
    assert after["b"].stride() == (1, 2) and torch.equal(after["a"], after["b"])


def test_expanded_tensors_are_tied_and_parted(tmp_path: Path) -> None:
    """Each keeps its few values and repeats them."""
    made = {"a": torch.arange(3.0).expand(4, 3), "b": torch.zeros(4, 3)}
    tied = save(tie(listing(saved(tmp_path / "x.pt", made)), "a", "b").checkpoint, tmp_path / "y.pt")
    parted = save(untie(listing(tied), "b").checkpoint, tmp_path / "z.pt")
    after = torch.load(parted, weights_only=True)
    assert after["a"].data_ptr() != after["b"].data_ptr()
    assert after["b"].stride() == (0, 1) and after["b"].untyped_storage().nbytes() == 12
    assert torch.equal(after["b"], made["a"]) and torch.equal(after["a"], made["a"])


def test_drawing_a_new_tie_draws_it_for_both(tmp_path: Path) -> None:
    made = {"a": torch.ones(2, 2), "b": torch.zeros(2, 2), "c": torch.ones(2)}
    tied = tie(listing(saved(tmp_path / "x.pt", made)), "a", "b").checkpoint
    after = torch.load(save(init(tied, ["b"], ["constant:7"]).checkpoint, tmp_path / "y.pt"), weights_only=True)
    assert after["a"].data_ptr() == after["b"].data_ptr() and (after["a"] == 7).all()


def test_a_parameter_and_a_buffer_of_a_module(tmp_path: Path) -> None:
    """They share their bytes, and each stays what it is."""
    made = nn.Module()
    made.weight = nn.Parameter(torch.ones(3))
    made.register_buffer("mean", torch.zeros(3))
    for first, other in (("weight", "mean"), ("mean", "weight")):
        edit = tie(listing(saved(tmp_path / "x.pt", made)), first, other)
        after: Any = torch.load(save(edit.checkpoint, tmp_path / "y.pt"), weights_only=False)
        assert after.weight.data_ptr() == after.mean.data_ptr()
        assert isinstance(after.weight, nn.Parameter) and not isinstance(after.mean, nn.Parameter)
        assert after.weight.requires_grad and not after.mean.requires_grad
        assert torch.equal(after.mean, made.get_buffer("mean") if first == "mean" else made.weight)


def test_modules_of_older_torch(tmp_path: Path) -> None:
    """Their parameters are in an OrderedDict, which a pickle fills item by item."""
    made = mlp()
    for module in made.modules():
        for name in ("_parameters", "_buffers", "_modules"):
            vars(module)[name] = OrderedDict(vars(module)[name])
    checkpoint = listing(saved(tmp_path / "x.pt", made))
    assert [p.path for p in checkpoint.params] == list(tensors(made))
    after: Any = torch.load(save(tie(checkpoint, "0", "2").checkpoint, tmp_path / "y.pt"), weights_only=False)
    assert after[0].weight is after[2].weight
    after = torch.load(save(untie(listing(tmp_path / "y.pt"), "2").checkpoint, tmp_path / "z.pt"), weights_only=False)
    assert after[0].weight is not after[2].weight and torch.equal(after[0].weight, after[2].weight)


def test_an_ordered_dict_of_python_2(tmp_path: Path) -> None:
    """It came as a list of pairs in the arguments of its class."""
    state = Call(Global("collections", "OrderedDict"), ([["a", node()], ["b", node(pid=("storage", FLOATS, "1", "cpu", 4))]],))
    path = pickled(tmp_path, state, {"x/data/1": torch.ones(4).numpy().tobytes()})
    checkpoint = listing(path)
    assert [p.path for p in checkpoint.params] == ["a", "b"]
    tied = torch.load(save(tie(checkpoint, "b", "a").checkpoint, tmp_path / "y.pt"), weights_only=False)
    assert tied["a"].data_ptr() == tied["b"].data_ptr() and tied["a"].tolist() == [1, 1, 1, 1]
    parted = save(untie(listing(tmp_path / "y.pt"), "b").checkpoint, tmp_path / "z.pt")
    after = torch.load(parted, weights_only=False)
    assert list(after) == ["a", "b"] and after["a"].data_ptr() != after["b"].data_ptr()


# --- what is refused -----------------------------------------------------------------------------

STATE = {"a": torch.arange(4.0)}


def pickled(folder: Path, root: object, held: dict[str, bytes] | None = None) -> Path:
    """An archive of a hand-made pickle and one storage of 16 bytes."""
    made = {"x/data.pkl": writer.write(root, 2), "x/data/0": bytes(16), "x/version": b"3\n"} | (held or {})
    return rezipped(folder / "x.pt", made)


def node(*args: object, pid: object = None, how: str = "_rebuild_tensor_v2") -> Call:
    hooks = Call(Global("collections", "OrderedDict"), ())
    storage = Persistent(pid or ("storage", Global("torch", "FloatStorage"), "0", "cpu", 4))
    given = args or (0, (4,), (1,), False, hooks)
    return Call(Global("torch._utils", how), (storage, *given))


def table(value: object) -> Dict:
    made = Dict()
    made.pairs = [("w", value)]
    return made


FLOATS = Global("torch", "FloatStorage")
BROKEN: dict[str, tuple[object, str]] = {
    "few arguments": (
        Call(Global("torch._utils", "_rebuild_tensor_v2"), (1,)),
        "tensor 'w' has too few arguments for torch._utils._rebuild_tensor_v2",
    ),
    "no id": (
        node(pid="x"),
        "a tensor names no storage: its persistent id is not ('storage', …)",
    ),
    "no class": (node(pid=("storage", 5, "0", "cpu", 4)), "a storage's class is not named by a global"),
    "unknown class": (
        node(pid=("storage", Global("torch", "Float7Storage"), "0", "cpu", 4)),
        "storage '0' is of the unknown class torch.Float7Storage",
    ),
    "no record": (node(pid=("storage", FLOATS, "7", "cpu", 4)), "storage '7' is not in the archive"),
    "number as key": (node(pid=("storage", FLOATS, 0, "cpu", 4)), "storage None is not in the archive"),
    "other size": (
        node(pid=("storage", FLOATS, "0", "cpu", 5)),
        "storage '0' claims 5 elements of 32 bits; its record has 16 bytes",
    ),
    "past the end": (node(1, (4,), (1,)), "tensor 'w' reaches element 5 of a storage of 16 bytes"),
    "long stride": (node(0, (2,), (2**40,)), "tensor 'w' reaches element 1,099,511,627,777 of a storage of 16 bytes"),
    "negative stride": (node(0, (2,), (-1,)), "tensor 'w' has a stride that is not a list of sizes"),
    "negative offset": (node(-1, (2,), (1,)), "tensor 'w' has an offset that is not a count"),
    "bool as size": (node(0, (True,), (1,)), "tensor 'w' has a shape that is not a list of sizes"),
    "no sizes": (node(0, None, (1,)), "tensor 'w' has a shape that is not a list of sizes"),
    "ranks differ": (node(0, (2, 2), (1,)), "tensor 'w' has 2 sizes and 1 strides"),
    "rank 65": (node(0, (1,) * 65, (1,) * 65), "tensor 'w' has 65 dimensions, over the limit of 64"),
    "huge": (node(0, (2**62, 4), (0, 0)), "tensor 'w' has a shape too large for any file"),
    "no dtype": (
        node(0, (4,), (1,), False, None, Global("torch", "float7"), how="_rebuild_tensor_v3"),
        "tensor 'w' has no dtype that torch knows",
    ),
    "untyped v2": (
        node(0, (4,), (1,), pid=("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 16)),
        "tensor 'w' lies in an untyped storage and names no dtype",
    ),
    "parameter of a text": (
        Call(Global("torch._utils", "_rebuild_parameter"), ("x", True, None)),
        "parameter 'w' wraps something that is not a tensor",
    ),
    "subclass of no arguments": (
        Call(Global("torch._tensor", "_rebuild_from_type_v2"), (Global("torch._utils", "_rebuild_tensor_v2"), FLOATS, 5, None)),
        "parameter 'w' wraps something that is not a tensor",
    ),
    "sparse of nothing": (
        Call(Global("torch._utils", "_rebuild_sparse_tensor"), ("torch.sparse_coo", 5)),
        "sparse tensor 'w' has no indices and values",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "message"), BROKEN.values(), ids=list(BROKEN))
def test_tensors_that_contradict_themselves(tmp_path: Path, made: object, message: str) -> None:
    path = pickled(tmp_path, table(made))
    assert refused(FormatError, listing, path) == f"{path}: {message}"


def shuffled(data: bytes, draw: Callable[[st.SearchStrategy[Any]], Any]) -> bytes:
    """Some bytes replaced, dropped or added."""
    mutated = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(mutated) - 1))
        mutated[at : at + draw(st.sampled_from([0, 1, 1, 1, 4]))] = draw(st.binary(max_size=2))
    return bytes(mutated)


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """The records of a few archives of every kind of object."""
    folder = tmp_path_factory.mktemp("archives")
    made = [CASES[case]() for case in ("state_dict", "training", "annotated", "ties", "parameter with state", "meta")]
    made += [{"x": make()} for make, *_ in COMPOSITE.values()]
    return [records(saved(folder / "x.pt", each)) for each in made]


@given(data=st.data())
@settings(deadline=None, max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_mutated_pickles_are_listed_and_edited_or_refused(archives: list[dict[str, bytes]], data: st.DataObject) -> None:
    held = dict(data.draw(st.sampled_from(archives)))
    held["x/data.pkl"] = shuffled(held["x/data.pkl"], data.draw)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    try:
        checkpoint = registry.read(source_in_memory(buffer.getvalue()))
        for param in checkpoint.params:
            if param.is_plain:
                read_values(checkpoint, param)
        assert streamed(checkpoint) == buffer.getvalue()
        streamed(untie(checkpoint, "**").checkpoint)
        streamed(init(checkpoint, ["**"], ["constant:1"]).checkpoint)
    except ParamctlError as error:
        assert "\n" not in str(error)


def test_wrappers_within_wrappers(tmp_path: Path) -> None:
    """Parameters of parameters of parameters cost neither the stack nor a traceback."""
    deep: object = node()
    for _ in range(20_000):
        deep = Call(Global("torch._utils", "_rebuild_parameter"), (deep, True, None))
    path = pickled(tmp_path, table(deep))
    assert refused(FormatError, listing, path) == f"{path}: tensor 'w' is wrapped in too many others"


def test_deep_containers(tmp_path: Path) -> None:
    deep: object = node()
    for _ in range(600):
        deep = [deep]
    path = pickled(tmp_path, deep)
    assert refused(FormatError, listing, path) == f"{path}: nests deeper than 500 containers"


def test_containers_shared_without_end(tmp_path: Path) -> None:
    shared: object = [node()]
    for _ in range(40):
        shared = [shared, shared]
    path = pickled(tmp_path, shared)
    assert refused(FormatError, listing, path) == f"{path}: shares its parts so often that listing them would not end"


def test_containers_that_hold_themselves(tmp_path: Path) -> None:
    loop: list[object] = [node()]
    loop.append(loop)
    checkpoint = listing(pickled(tmp_path, loop))
    assert [(e.path, getattr(e, "value", None)) for e in checkpoint.entries] == [("0", None), ("1", "(contains itself)")]


HELPERS: dict[str, tuple[dict[str, bytes], type[FormatError] | type[Unsupported], str]] = {
    "version 99": ({"x/version": b"99\n"}, FormatError, "says version b'99', and torch reads 1 to 10 (record version)"),
    "version x": ({"x/version": b"x"}, FormatError, "says version b'x', and torch reads 1 to 10 (record version)"),
    "byteorder": (
        {"x/byteorder": b"middle"},
        FormatError,
        "says byteorder b'middle', and torch knows little and big (record byteorder)",
    ),
    "long helper": (
        {"x/version": b"3" * 70_000},
        FormatError,
        "record 'x/version' takes 70,000 bytes, over the limit of 65,536",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("held", "kind", "message"), HELPERS.values(), ids=list(HELPERS))
def test_helper_records(tmp_path: Path, held: dict[str, bytes], kind: type[FormatError], message: str) -> None:
    path = pickled(tmp_path, table(node()), held)
    assert refused(kind, listing, path) == f"{path}: {message}"


OTHER: dict[str, tuple[dict[str, bytes], type[FormatError] | type[Unsupported], str]] = {
    "nothing": ({"x/y": b""}, Unsupported, "is a zip archive, but torch.save did not write it: it has no data.pkl"),
    "no pickle": (
        {"x/data/0": b""}, FormatError, "is a zip archive, but torch.save did not write it: it has no data.pkl"
    ),
    "keras": ({"model.weights.h5": b""}, Unsupported, "is a Keras archive, which this version does not read"),
    "npz": ({"a.npy": b""}, Unsupported, "is a NumPy .npz archive, which this version does not read"),
}  # fmt: skip


@pytest.mark.parametrize(("held", "kind", "message"), OTHER.values(), ids=list(OTHER))
def test_archives_of_others(tmp_path: Path, held: dict[str, bytes], kind: type[FormatError], message: str) -> None:
    path = rezipped(tmp_path / "x.pt", held)
    assert refused(kind, listing, path) == f"{path}: {message}"


def test_corrupt_values_are_refused_where_they_are_used(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.arange(4.0), "b": torch.ones(2)})
    data = bytearray(path.read_bytes())
    data[record_of(path, "/data/0").payload] ^= 1
    checkpoint = listing(file_of(tmp_path, bytes(data), "x.pt"))
    message = "storage 0 is corrupt: its bytes do not match their CRC-32"
    assert refused(FormatError, read_values, checkpoint, checkpoint.params[0]) == message
    assert refused(FormatError, set_values, checkpoint, "a[0] += 1") == message
    partly = listing(save(set_values(checkpoint, "a[1] = 9").checkpoint, tmp_path / "partly.pt"))
    assert read_index(partly, partly.params[0], (slice(1, None),)).tolist() == [9, 2, 3]
    assert refused(FormatError, read_values, partly, partly.params[0]) == message
    fine = set_values(checkpoint, "b = 2", "a = 3").checkpoint
    assert torch.load(save(fine, tmp_path / "y.pt"), weights_only=True)["a"].tolist() == [3, 3, 3, 3]


def test_corrupt_values_are_refused_by_another_format(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.pt", {"a": torch.arange(4.0), "b": torch.ones(2), "t": torch.ones(3, 2).T})
    for key in "02":
        data = bytearray(path.read_bytes())
        data[record_of(path, f"/data/{key}").payload] ^= 1
        checkpoint = listing(file_of(tmp_path, bytes(data), "bad.pt"))
        out = tmp_path / "y.safetensors"
        assert refused(FormatError, saving.save, checkpoint, targets.NewFile(out), registry.named("safetensors")) == (
            f"storage {key} is corrupt: its bytes do not match their CRC-32"
        )
        assert not out.exists()


# --- anew ----------------------------------------------------------------------------------------


def test_streams_are_the_file(tmp_path: Path) -> None:
    checkpoint = tie(listing(saved(tmp_path / "x.pt", mlp())), "0", "2").checkpoint
    assert streamed(checkpoint) == save(checkpoint, tmp_path / "y.pt").read_bytes()


def test_torch_maps_what_we_write(tmp_path: Path) -> None:
    checkpoint = untie(listing(saved(tmp_path / "x.pt", CASES["ties"]())), "a", "b").checkpoint
    after = torch.load(save(checkpoint, tmp_path / "y.pt"), weights_only=True, mmap=True)
    assert after["b"].tolist() == [[1, 1], [1, 1]]


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield
