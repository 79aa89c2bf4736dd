"""torch.save before 1.6: five pickles and the storages, as today's torch writes them and as old ones did."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import assert_same_but, changed_bytes, listing, raw, refused, rows, save, tensors, ties
from hypothesis import given, settings
from hypothesis import strategies as st
from old_torch import SYSTEM, floats, legacy, pickled, python2_dict, storage, tensor, tuple_of, u, x
from torch import nn

from paramctl.check.check import check
from paramctl.cli.app import main
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.report import Edit
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import opening, saving
from paramctl.formats.pytorch import legacy_file
from paramctl.model.checkpoint import Checkpoint, Leaf
from paramctl.values.arrays import read_values


def save_old(saved: object, path: Path, protocol: int = 2) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it finds no source for a class in some interpreters
        torch.save(saved, path, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    return path


def load(path: Path) -> Any:
    """What torch reads; a file that needs no classes it reads the safe way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage, and sources that have changed
        return torch.load(path, weights_only=False, map_location="cpu")


def written(folder: Path, data: bytes) -> Path:
    path = folder / "old.pt"
    path.write_bytes(data)
    return path


def values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {p.path: read_values(checkpoint, p).tobytes() for p in checkpoint.params}


def loaded(path: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for name, tensor in tensors(load(path)).items()}


def edited(edit: Edit, path: Path) -> Path:
    return save(edit.checkpoint, path)


# --- what today's torch writes ---------------------------------------------------------------------


class Net(nn.Module):
    """A module whose source torch puts into the file."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = nn.Linear(3, 2)
        self.second.weight = self.first.weight
        self.register_buffer("steps", torch.tensor(7))


def shared() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0)
    return {"base": base, "again": base, "rows": base.view(3, 4), "column": base.view(3, 4)[:, 1], "tail": base[8:]}


def training() -> dict[str, object]:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {"epoch": 3, "state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "note": "π"}


CONTENTS: dict[str, Callable[[], object]] = {
    "state_dict": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict(),
    "training": training,
    "views of one storage": shared,
    "dtypes": lambda: {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (
            torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
            torch.bool, torch.complex64, torch.complex128,
        )
    },
    "zero-size and 0-d": lambda: {"none": torch.empty(0, 2), "one": torch.tensor(2.5), "no": torch.empty(3, 0)},
    "expanded": lambda: {"w": torch.arange(3.0).expand(4, 3)},
    "a bare tensor": lambda: torch.arange(6).reshape(2, 3),
    "parameters": lambda: [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)],
    "nothing": dict,
}  # fmt: skip


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("content", CONTENTS)
def test_what_torch_writes_is_listed_as_torch_reads_it(tmp_path: Path, content: str, protocol: int) -> None:
    torch.manual_seed(1)
    path = save_old(CONTENTS[content](), tmp_path / "x.pt", protocol)
    checkpoint = listing(path)
    expected = tensors(load(path))
    assert checkpoint.format == "torch-legacy"
    assert rows(checkpoint) == [
        (name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride()) for name, t in expected.items()
    ]
    assert values(checkpoint) == {name: raw(t) for name, t in expected.items()}
    assert save(checkpoint, tmp_path / "y.pt").read_bytes() == path.read_bytes()


def test_ties_and_overlaps_are_those_of_the_storages(tmp_path: Path) -> None:
    checkpoint = listing(save_old(shared(), tmp_path / "x.pt"))
    assert ties(checkpoint) == [["base", "again"]]
    assert {p.storage for p in checkpoint.params} == {checkpoint.params[0].storage}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_whole_module(tmp_path: Path, protocol: int) -> None:
    path = save_old(Net(), tmp_path / "x.pt", protocol)
    assert b"A module whose source torch puts into the file." in path.read_bytes()
    checkpoint = listing(path)
    assert [(p.path, p.kind) for p in checkpoint.params] == [
        ("steps", "buffer"),
        ("first.weight", "parameter"), ("first.bias", "parameter"),
        ("second.weight", "parameter"), ("second.bias", "parameter"),
    ]  # fmt: skip
    assert {path: module.text for path, module in checkpoint.modules.items()} == {
        "": "Net", "first": "Linear(3 → 2)", "second": "Linear(3 → 2)",
    }  # fmt: skip
    assert ties(checkpoint) == [["first.weight", "second.weight"]]


def test_a_module_untied_and_tied_again_is_one_module_to_torch(tmp_path: Path) -> None:
    path = save_old(Net(), tmp_path / "x.pt")
    parted = edited(untie(listing(path), "second.weight"), tmp_path / "y.pt")
    net = load(parted)
    assert type(net) is Net and net.second.weight is not net.first.weight
    assert_same_but(load(path), net, set())
    assert len(listing(parted).saved) == len(listing(path).saved) + 1
    again = load(edited(tie(listing(parted), "first.weight", "second.weight"), tmp_path / "z.pt"))
    assert again.second.weight is again.first.weight
    assert len(listing(tmp_path / "z.pt").saved) == len(listing(path).saved)


def test_quantized_tensors(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to do away with them
        saved = {
            "q": torch.quantize_per_tensor(torch.arange(4.0), 0.5, 2, torch.quint8),
            "packed": torch.quantize_per_channel(
                torch.ones(3, 4), torch.ones(3), torch.zeros(3), 0, torch.quint4x2
            ),
        }
    path = save_old(saved, tmp_path / "x.pt")
    checkpoint = listing(path)
    assert [(p.path, p.dtype.name, p.layout, p.nbytes) for p in checkpoint.params] == [
        ("q", "quint8", "quantized", 4), ("packed", "quint4x2", "quantized", 6),
    ]  # fmt: skip
    assert checkpoint.params[0].quantizer == ("per_tensor_affine", 0.5, 2, None)
    assert [part.path for part in checkpoint.params[1].components] == ["packed.scales", "packed.zero_points"]


def test_dtypes_that_torch_cannot_read_back_are_listed_and_not_written_anew(tmp_path: Path) -> None:
    path = save_old({"w": torch.arange(4).to(torch.uint16)}, tmp_path / "x.pt")
    checkpoint = listing(path)
    assert rows(checkpoint) == [("w", "uint16", (4,), (1,))]
    assert values(checkpoint) == {"w": struct.pack("<4H", 0, 1, 2, 3)}
    safetensors.torch.save_file({"w": torch.arange(4).to(torch.uint16)}, tmp_path / "x.safetensors")
    assert refused(UsageError, convert, listing(tmp_path / "x.safetensors"), legacy_file) == (
        "torch-legacy cannot hold w (uint16, unknown to torch's old format); "
        "accept the loss with --lossy, or take one part with --layer"
    )


# --- what old versions wrote -----------------------------------------------------------------------


def one(pid: bytes, shape: tuple[int, ...] = (2, 2), strides: tuple[int, ...] = (2, 1), offset: int = 0) -> bytes:
    return pickled(python2_dict((u("w"), tensor(pid, offset, shape, strides))))


def test_a_file_of_python_2(tmp_path: Path) -> None:
    saved = pickled(
        python2_dict(
            (u("conv.weight"), tensor(storage(u("7"), 4), 0, (2, 2), (2, 1), "_rebuild_tensor_v2")),
            (u("conv.bias"), tensor(storage(u("8"), 2), 0, (2,), (1,))),
            (u("name"), u(b"caf\xe9")),
            (u("epoch"), b"I12\n"),
            (u("done"), b"I01\n"),
        )
    )
    path = written(tmp_path, legacy(saved, pickled(b"](" + u("7") + u("8") + b"e"), [floats(1, 2, 3, 4), floats(3, 4)]))
    checkpoint = listing(path)
    assert rows(checkpoint) == [("conv.weight", "float32", (2, 2), (2, 1)), ("conv.bias", "float32", (2,), (1,))]
    assert [(leaf.path, leaf.value) for leaf in checkpoint.entries if isinstance(leaf, Leaf)] == [
        ("name", "café"), ("epoch", 12), ("done", True),
    ]  # fmt: skip
    assert values(checkpoint) == {"conv.weight": floats(1, 2, 3, 4)[1], "conv.bias": floats(3, 4)[1]}
    out = edited(set_values(checkpoint, "conv.bias = 9"), tmp_path / "y.pt")
    with out.open("rb") as file:
        found = torch.load(file, weights_only=False, encoding="latin-1")
    assert [t.tolist() for t in (found["conv.weight"], found["conv.bias"])] == [[[1, 2], [3, 4]], [9, 9]]
    assert (found["name"], found["epoch"], found["done"]) == ("café", 12, True)


def test_a_module_of_python_2(tmp_path: Path) -> None:
    """Its tables are lists of lists, its class an id with source text, its parameters calls of their class."""
    cls = tuple_of(u("module"), b"ctorch.nn.modules.linear\nLinear\n", u("linear.py"), u("class Linear: ...")) + b"Q"
    weight = tensor(storage(u("1"), 4), 0, (2, 2), (2, 1))
    parameter = b"ctorch.nn.parameter\nParameter\n" + weight + b"\x85R" + tuple_of(b"\x88", b"\x89", python2_dict()) + b"b"
    state = b"}(" + b"".join((
        u("_parameters"), python2_dict((u("weight"), parameter)),
        u("_buffers"), python2_dict((u("seen"), tensor(storage(u("2"), 1, "Long"), 0, (1,), (1,)))),
        u("_modules"), python2_dict(),
        u("in_features"), b"K\x02", u("out_features"), b"K\x02",
    )) + b"u"  # fmt: skip
    saved = pickled(cls + b")\x81" + state + b"b")
    keys = pickled(b"](" + u("1") + u("2") + b"e")
    path = written(tmp_path, legacy(saved, keys, [floats(1, 2, 3, 4), (1, struct.pack("<q", 5))]))
    checkpoint = listing(path)
    assert [(p.path, p.kind, p.dtype.name, p.requires_grad) for p in checkpoint.params] == [
        ("weight", "parameter", "float32", True), ("seen", "buffer", "int64", None),
    ]  # fmt: skip
    assert checkpoint.modules[""].text == "Linear(2 → 2)"
    assert loaded(path) == {"weight": floats(1, 2, 3, 4)[1], "seen": struct.pack("<q", 5)}
    out = edited(init(checkpoint, ["weight"], ["zeros"]), tmp_path / "y.pt")
    assert loaded(out) == {"weight": bytes(16), "seen": struct.pack("<q", 5)}


def test_tensors_and_variables_by_their_classes(tmp_path: Path) -> None:
    """A tensor given its state, and a variable whose tensor is the first of five things in its."""
    pid = storage(x("5"), 4)
    own = b"ctorch\nFloatTensor\n)R" + tuple_of(pid, b"K\x00", b"K\x02K\x02\x86", b"K\x02K\x01\x86") + b"b"
    first = tensor(storage(x("6"), 2), 0, (2,), (1,))
    old = b"ctorch.nn.parameter\nParameter\n)R" + tuple_of(first, b"N", b"N", b"\x88", b"\x89") + b"b"
    pairs = x("own") + own + x("old") + old + x("other") + tensor(storage(x("7"), 4), 0, (2, 2), (2, 1))
    saved = pickled(b"}(" + pairs + b"u")
    path = written(tmp_path, legacy(saved, ["5", "6", "7"], [floats(1, 2, 3, 4), floats(5, 6), floats(7, 8, 9, 10)]))
    checkpoint = listing(path)
    assert [(p.path, p.kind, p.shape, p.requires_grad) for p in checkpoint.params] == [
        ("own", "tensor", (2, 2), None), ("old", "parameter", (2,), True), ("other", "tensor", (2, 2), None),
    ]  # fmt: skip
    assert loaded(path) == values(checkpoint)
    tied = edited(tie(checkpoint, "other", "own"), tmp_path / "y.pt")
    found = load(tied)
    assert found["own"].data_ptr() == found["other"].data_ptr()
    assert found["own"].tolist() == [[7, 8], [9, 10]] and found["old"].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("pid", "key"),
    [
        (storage(u("5"), 4, rest=b""), "5"),
        (storage(x("5"), 4), "5"),
        (storage(u("5"), 4, device=u("cuda:7")), "5"),
        (storage(b"C\x015", 4), b"5"),
        (storage(b"K\x05", 4), 5),
    ],
    ids=["five parts", "text", "on a device", "bytes", "a number"],
)
def test_kinds_of_storage_ids(tmp_path: Path, pid: bytes, key: object) -> None:
    keys = b"\x80\x03]" + (b"C\x015" if isinstance(key, bytes) else pickle.dumps(key, 2)[2:-1]) + b"a."
    path = written(tmp_path, legacy(one(pid), keys, [floats(1, 2, 3, 4)]))
    checkpoint = listing(path)
    assert values(checkpoint) == {"w": floats(1, 2, 3, 4)[1]}
    assert checkpoint.params[0].device == ("cuda:7" if b"cuda:7" in pid else "cpu")
    out = edited(set_values(checkpoint, "w[1,1] = 9"), tmp_path / "y.pt")
    assert changed_bytes(path, out) <= set(range(path.stat().st_size - 4, path.stat().st_size))
    assert values(listing(out)) == {"w": floats(1, 2, 3, 9)[1]}


def test_a_part_of_a_storage(tmp_path: Path) -> None:
    """`view_metadata`: key, offset and size of the part; the tensor counts from its beginning."""
    whole, part = storage(u("1"), 6), storage(u("1"), 6, rest=tuple_of(u("2"), b"K\x02", b"K\x03"))
    saved = pickled(
        python2_dict((u("all"), tensor(whole, 0, (6,), (1,))), (u("part"), tensor(part, 1, (2,), (1,))))
    )
    path = written(tmp_path, legacy(saved, ["1"], [floats(*range(6))]))
    checkpoint = listing(path)
    assert [(p.path, p.storage, p.offset) for p in checkpoint.params] == [("all", "1", 0), ("part", "1", 3)]
    assert loaded(path) == values(checkpoint) == {"all": floats(*range(6))[1], "part": floats(3, 4)[1]}
    assert refused(UsageError, set_values, checkpoint, "part = 8") == (
        "part shares some of its bytes with all; give it bytes of its own with 'paramctl untie' first"
    )
    parted = edited(untie(checkpoint, "part"), tmp_path / "y.pt")
    assert loaded(parted) == loaded(path)
    out = edited(set_values(listing(parted), "part = 8"), tmp_path / "z.pt")
    assert loaded(out) == {"all": floats(*range(6))[1], "part": floats(8, 8)[1]}


def test_the_byte_order_of_the_machine_means_nothing(tmp_path: Path) -> None:
    saved = one(storage(u("1"), 4))
    path = written(tmp_path, legacy(saved, ["1"], [floats(1, 2, 3, 4)], {**SYSTEM, "little_endian": False}))
    assert loaded(path) == values(listing(path)) == {"w": floats(1, 2, 3, 4)[1]}


# --- what is refused -------------------------------------------------------------------------------

PID = storage(u("1"), 4)
KEYS: Any = ["1"]
FOUR = [floats(1, 2, 3, 4)]
BAD: dict[str, tuple[bytes, str]] = {
    "fewer values than the id says": (
        legacy(one(PID), KEYS, [floats(1, 2)], end=bytes(8)),
        "storage '1' has 8 bytes, and its id says 16 (4 elements)"),
    "a negative number of values": (
        legacy(one(PID), KEYS, [(-1, bytes(16))]),
        "storage '1' has 0 bytes, and its id says 16 (4 elements)"),
    "cut off": (
        legacy(one(PID), KEYS, FOUR)[:-1],
        "storage '1' claims 16 bytes from byte {} on, and 15 are left"),
    "cut off before a storage": (
        legacy(one(PID), KEYS, []), "ends at byte {}, before storage '1'"),
    "no key": (
        legacy(one(PID), [], FOUR), "storage '1' is not in the file: the list of keys does not name it"),
    "a key too many": (
        legacy(one(PID), ["1", "2"], [*FOUR, *FOUR]), "storage '2' is in the list of keys, and no tensor names it"),
    "a key twice": (
        legacy(one(PID), ["1", "1"], [*FOUR, *FOUR]), "storage '1' is twice in the list of keys"),
    "keys in no list": (legacy(one(PID), 5, FOUR), "names its storages in no list (pickle 5)"),
    "a key that is none": (
        legacy(one(PID), [1.5], FOUR), "a storage has a key that is neither text nor a number"),
    "a class that is none": (
        legacy(one(storage(u("1"), 4, "Odd")), KEYS, FOUR), "storage '1' is of the unknown class torch.OddStorage"),
    "another kind of id": (
        legacy(one(tuple_of(u("file"), u("a"), u("b"), u("c"), b"K\x01") + b"Q"), KEYS, FOUR),
        "a tensor names no storage: its persistent id is not ('storage', …)"),
    "two dtypes": (
        legacy(pickled(tuple_of(tensor(PID, 0, (4,), (1,)), tensor(storage(u("1"), 4, "Int"), 0, (4,), (1,)))), KEYS, FOUR),
        "storage '1' is named with two dtypes or sizes"),
    "a part beyond its storage": (
        legacy(one(storage(u("1"), 4, rest=tuple_of(u("2"), b"K\x02", b"K\x04"))), KEYS, FOUR),
        "storage '2' is a view of bytes 8 to 24 of storage '1', which has 16"),
    "a tensor beyond its storage": (
        legacy(one(PID, offset=1), KEYS, FOUR), "tensor 'w' reaches element 5 of a storage of 16 bytes"),
    "a part with the key of a storage": (
        legacy(one(storage(u("1"), 4, rest=tuple_of(u("1"), b"K\x00", b"K\x04"))), KEYS, FOUR),
        "storage '1' is named as one of its own and as a part of another"),
    "another version": (
        pickle.dumps(legacy_file.MAGIC, 2) + pickle.dumps(1002, 2) * 4,
        "says version 1002 of torch's old format, and torch knows 1001"),
    "nothing behind the magic number": (
        pickle.dumps(legacy_file.MAGIC, 2), "ends at byte 15, behind 1 of the 5 pickles it should begin with"),
    "a damaged object": (
        legacy(b"\x80\x02}X\xff\xff\xff\x7f", b"", []),
        "pickle is damaged: it announces 2,147,483,647 bytes and 0 are left (byte 140, opcode BINUNICODE)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    if "{}" in message:
        message = message.format(f"{len(data) - 15 if case == 'cut off' else len(data):,}")
    path = written(tmp_path, data)
    assert refused(FormatError, opening.open, str(path)) == f"{path}: {message}"


def test_a_pickle_longer_than_the_first_window(tmp_path: Path) -> None:
    """What is read ahead grows until the object is in it; where it is damaged, it does not grow for nothing."""
    saved = {f"layer.{i}.weight": torch.full((2,), float(i)) for i in range(3000)}
    path = save_old(saved, tmp_path / "x.pt")
    checkpoint = listing(path)
    assert [p.path for p in checkpoint.params] == list(saved)
    assert read_values(checkpoint, checkpoint.params[-1]).tolist() == [2999, 2999]
    data = bytearray(path.read_bytes())
    data[150_000:150_010] = b"\xff" * 10
    path.write_bytes(data)
    assert refused(FormatError, opening.open, str(path)).startswith(f"{path}: pickle is damaged: it ")


def test_any_other_pickle_is_none_of_torch(tmp_path: Path) -> None:
    path = written(tmp_path, pickle.dumps({"a": 1}, 2))
    assert refused(Unsupported, opening.open, str(path)) == (
        f"{path}: looks like a bare pickle, not like a file that torch.save wrote; this version does not read it"
    )


# --- changing --------------------------------------------------------------------------------------


def test_values_change_where_they_lie(tmp_path: Path) -> None:
    saved = {"a": torch.arange(4.0), "b": torch.arange(4.0, 8.0)}
    path = save_old(saved, tmp_path / "x.pt")
    out = edited(set_values(listing(path), "b[2] = 0.5"), tmp_path / "y.pt")
    found = changed_bytes(path, out)
    assert found and max(found) - min(found) < 4
    assert_same_but(saved, load(out), {"b"})
    assert load(out)["b"].tolist() == [4, 5, 0.5, 7]


def test_a_patch_writes_only_those_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save_old({"a": torch.arange(4.0), "b": torch.arange(4.0, 8.0)}, tmp_path / "x.pt")
    inode = path.stat().st_ino
    assert main(["set", str(path), "a = 2", "-i", "--patch"]) == 0
    capfd.readouterr()
    assert path.stat().st_ino == inode
    assert {name: t.tolist() for name, t in load(path).items()} == {"a": [2, 2, 2, 2], "b": [4, 5, 6, 7]}


def test_a_tie_takes_a_storage_away_and_parting_brings_one(tmp_path: Path) -> None:
    saved = OrderedDict(a=torch.arange(4.0), n=torch.tensor(3), b=torch.arange(4.0, 8.0))
    path = save_old(saved, tmp_path / "x.pt")
    tied = edited(tie(listing(path), "a", "b"), tmp_path / "y.pt")
    found = load(tied)
    assert list(found) == ["a", "n", "b"] and found["a"].data_ptr() == found["b"].data_ptr()
    assert (found["b"].tolist(), int(found["n"])) == ([0, 1, 2, 3], 3)
    assert len(listing(tied).saved) == 2 and tied.stat().st_size < path.stat().st_size
    assert torch.load(tied, weights_only=True)["b"].tolist() == [0, 1, 2, 3]
    parted = edited(untie(listing(tied), "b"), tmp_path / "z.pt")
    found = load(parted)
    assert found["a"].data_ptr() != found["b"].data_ptr() and found["b"].tolist() == [0, 1, 2, 3]


def test_bytes_behind_the_last_storage_stay(tmp_path: Path) -> None:
    path = written(tmp_path, legacy(one(PID), KEYS, FOUR, end=b"more"))
    for edit in (set_values(listing(path), "w = 1"), init(listing(path), ["w"], ["zeros"])):
        assert edited(edit, tmp_path / "y.pt").read_bytes().endswith(b"more")
    end = path.stat().st_size - 4
    assert [finding.what for finding in check(str(path), ["integrity"]).findings] == [
        f"4 bytes follow the last storage (byte {end})"
    ]


def test_a_new_file_is_what_torch_would_write(tmp_path: Path) -> None:
    state = {"a": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3), "c": torch.ones(2).bfloat16()}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    made = convert(listing(tmp_path / "x.safetensors"), legacy_file).checkpoint
    saving.save(made, targets.NewFile(tmp_path / "x.pt"), legacy_file)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert type(found) is OrderedDict
    assert_same_but({name: state[name] for name in found}, found, set())
    theirs = io.BytesIO()
    torch.save(found, theirs, _use_new_zipfile_serialization=False)
    ours = (tmp_path / "x.pt").read_bytes()
    assert ours[:21] == theirs.getvalue()[:21]


def test_an_edit_keeps_the_format_and_the_suffix(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = save_old({"w": torch.ones(2, 2)}, tmp_path / "x.pt")
    assert main(["init", str(path), "--scheme", "zeros", "-o", str(tmp_path / "y.pt")]) == 0
    assert main(["convert", str(path), "-o", str(tmp_path / "z.pt")]) == 0
    capfd.readouterr()
    assert (listing(tmp_path / "y.pt").format, listing(tmp_path / "z.pt").format) == ("torch-legacy", "torch-zip")


# --- safety ----------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return __import__("os").system, ("touch /tmp/paramctl-was-here",)


def test_check_judges_all_five_pickles(tmp_path: Path) -> None:
    path = written(tmp_path, legacy(one(PID), KEYS, FOUR, {**SYSTEM, "evil": Evil()}))
    assert values(listing(path)) == {"w": floats(1, 2, 3, 4)[1]}
    report = check(str(path))
    assert [part for part, _ in report.safety] == [f"pickle {i}" for i in range(1, 6)]
    (found,) = (finding for finding in report.findings if finding.level == "error")
    assert found.rule == "dangerous" and found.what.startswith("the pickle names posix.system")


def test_check_knows_classes_of_modules_by_their_ids(tmp_path: Path) -> None:
    path = save_old(nn.Sequential(nn.Linear(2, 2)), tmp_path / "x.pt")
    assert [f.what for f in check(str(path)).findings if f.level != "note"] == []


# --- laws ------------------------------------------------------------------------------------------

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="."), min_size=1, max_size=6)
SHAPES = st.lists(st.integers(0, 3), max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.complex64])


@st.composite
def states(draw: st.DrawFn) -> Mapping[str, torch.Tensor]:
    """Tensors of which some share a storage."""
    state: dict[str, torch.Tensor] = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        shape = draw(SHAPES)
        fresh = torch.arange(torch.Size(shape).numel()).reshape(shape).to(draw(DTYPES))
        state[name] = draw(st.sampled_from([fresh, *state.values()]))
        if state[name].dim() and draw(st.booleans()):
            state[name] = state[name].transpose(0, -1)
    return state


@settings(max_examples=40, deadline=None)
@given(states(), st.integers(1, 5))
def test_what_is_read_and_written_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, state: Mapping[str, torch.Tensor], protocol: int
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    path = save_old(dict(state), folder / "x.pt", protocol)
    checkpoint = listing(path)
    assert save(checkpoint, folder / "y.pt").read_bytes() == path.read_bytes()
    drawn = init(checkpoint, ["**"], ["constant:1"], bias="constant:1").checkpoint if state else checkpoint
    parted = untie(drawn, "**").checkpoint if state else drawn
    out = save(parted, folder / "z.pt")
    found = load(out)
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    assert values(listing(out)) == values(parted) == loaded(out)
    assert len({t.data_ptr() for t in found.values() if t.numel()}) == sum(t.numel() > 0 for t in found.values())
