"""torch.save before 0.1.10: a tar archive of an object, a table of tensors and one of storages."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_but, changed_bytes, file_of, listing, raw, refused, rows, save, tensors, ties
from hypothesis import given, settings
from hypothesis import strategies as st
from old_torch import SYSTEM, floats, number, pickled, python2_dict, save_tar, sizes, tar, tuple_of, u
from torch import nn

from paramctl.check.check import check
from paramctl.cli.app import main
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.report import Edit
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, TwoReadings, Unsupported
from paramctl.files import targets
from paramctl.files.sources import open_source
from paramctl.formats import opening, saving
from paramctl.formats.containers import tars
from paramctl.formats.pytorch import tar_file
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.arrays import read_values


def load(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TypedStorage, and tarfile's way of extracting
        return torch.load(path, weights_only=False, map_location="cpu")


def values(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {p.path: read_values(checkpoint, p).tobytes() for p in checkpoint.params}


def loaded(path: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for name, tensor in tensors(load(path)).items()}


def edited(edit: Edit, path: Path) -> Path:
    return save(edit.checkpoint, path)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {member.name: archive.extractfile(member) for member in archive}
        return {name: file.read() for name, file in found.items() if file is not None}


# --- looking ---------------------------------------------------------------------------------------


def shared() -> dict[str, torch.Tensor]:
    base = torch.arange(12.0)
    return {"base": base, "again": base, "view": base.view(12), "column": base.view(3, 4)[:, 1], "n": torch.tensor(3)}


def module() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    for part in net.modules():
        for name in list(part._parameters):
            parameter = part._parameters.pop(name)
            assert parameter is not None
            part.register_buffer(name, parameter.data)  # torch's own pickling of a parameter is younger than tar files
    return net


CONTENTS: dict[str, Callable[[], object]] = {
    "state_dict": lambda: OrderedDict((name, t.data) for name, t in nn.Linear(3, 2).state_dict().items()),
    "views of one storage": shared,
    "dtypes": lambda: {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    },
    "zero-size and 0-d": lambda: {"none": torch.empty(0, 2), "one": torch.tensor(2.5)},
    "a bare tensor": lambda: torch.arange(6).reshape(2, 3).t(),
    "a list": lambda: [torch.ones(2), {"epoch": 3, "w": torch.zeros(1)}],
    "a whole module": module,
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_torch_reads_is_what_is_listed(tmp_path: Path, content: str) -> None:
    torch.manual_seed(1)
    path = save_tar(CONTENTS[content](), tmp_path / "x.pt")
    checkpoint = listing(path)
    expected = tensors(load(path))
    assert checkpoint.format == "torch-tar"
    assert rows(checkpoint) == [
        (name, str(t.dtype).removeprefix("torch."), tuple(t.shape), t.stride()) for name, t in expected.items()
    ]
    assert values(checkpoint) == {name: raw(t) for name, t in expected.items()}
    assert save(checkpoint, tmp_path / "y.pt").read_bytes() == path.read_bytes()


def test_classes_of_modules_and_ties(tmp_path: Path) -> None:
    checkpoint = listing(save_tar(module(), tmp_path / "x.pt"))
    assert {path: module.text for path, module in checkpoint.modules.items()} == {
        "": "Sequential", "0": "Linear(3 → 2)", "1": "BatchNorm1d(2)",
    }  # fmt: skip
    assert ties(listing(save_tar(shared(), tmp_path / "y.pt"))) == [["base", "again", "view"]]


SAVED = pickled(python2_dict((u("w"), u("1") + b"Q"), (u("part"), b"K\x02Q")))


def table(*entries: tuple[bytes, bytes]) -> bytes:
    """The table of tensors: what stands in the pickle of each, and the bytes behind it."""
    return pickle.dumps(len(entries), 2) + b"".join(pickled(head) + data for head, data in entries)


def entry(key: int, of: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> tuple[bytes, bytes]:
    head = tuple_of(number(key), number(of), b"ctorch\nFloatTensor\n")
    return head, struct.pack(f"<i4x{2 * len(shape)}qq", len(shape), *shape, *strides, offset)


def stored(*held: tuple[int, tuple[int, bytes]], parts: bytes = b"](e") -> bytes:
    heads = (pickled(tuple_of(number(key), u("cpu"), b"ctorch\nFloatStorage\n")) for key, _ in held)
    data = (struct.pack("<q", n) + values for _, (n, values) in held)
    return pickle.dumps(len(held), 2) + b"".join(a + b for a, b in zip(heads, data, strict=True)) + pickled(parts)


PARTS = b"](" + tuple_of(*map(number, (8, 7, 2, 3))) + b"e"
STORED = stored((7, floats(*range(6))), parts=PARTS)
TENSORS = table(entry(1, 7, (2, 3), (3, 1)), entry(2, 8, (2,), (1,), 1))


def made(path: Path, **changed: bytes) -> Path:
    whole = {"sys_info": pickle.dumps(SYSTEM, 2), "pickle": SAVED, "tensors": TENSORS, "storages": STORED}
    return tar(path, {name: data for name, data in {**whole, **changed}.items() if data})


def test_a_storage_that_is_a_part_of_another(tmp_path: Path) -> None:
    path = made(tmp_path / "x.pt")
    checkpoint = listing(path)
    assert [(p.path, p.storage, p.offset) for p in checkpoint.params] == [("w", "7", 0), ("part", "7", 3)]
    assert loaded(path) == values(checkpoint) == {"w": floats(*range(6))[1], "part": floats(3, 4)[1]}
    parted = edited(untie(checkpoint, "part"), tmp_path / "y.pt")
    assert loaded(parted) == loaded(path)
    out = edited(set_values(listing(parted), "part = 9"), tmp_path / "z.pt")
    assert loaded(out) == {"w": floats(*range(6))[1], "part": floats(9, 9)[1]}


def test_an_archive_without_a_table_of_tensors(tmp_path: Path) -> None:
    """Other projects make such: storages are named as in later files, by ids that are plain tuples."""

    def tensor(key: str) -> bytes:
        pid = tuple_of(u("storage"), b"ctorch\nFloatStorage\n", u(key), u("cpu"), number(4))
        return b"ctorch._utils\n_rebuild_tensor_v2\n" + tuple_of(pid, number(0), sizes(4), sizes(1), b"\x89", b"N") + b"R"

    saved = pickled(b"ccollections\nOrderedDict\n](" + tuple_of(u("a"), tensor("0")) + tuple_of(u("b"), tensor("1")) + b"e\x85R")
    heads = (pickled(tuple_of(u(key), u("cpu"), b"ctorch\nFloatStorage\n")) for key in ("0", "1"))
    data = (struct.pack("<q", 4) + floats(*held)[1] for held in ((1, 2, 3, 4), (5, 6, 7, 8)))
    held = pickle.dumps(2, 2) + b"".join(a + b for a, b in zip(heads, data, strict=True))
    path = made(tmp_path / "x.pt", pickle=saved, tensors=b"", storages=held)
    checkpoint = listing(path)
    assert rows(checkpoint) == [("a", "float32", (4,), (1,)), ("b", "float32", (4,), (1,))]
    assert [finding.what for finding in check(str(path), ["integrity"]).findings] == []
    tied = listing(edited(tie(checkpoint, "a", "b"), tmp_path / "y.pt"))
    assert ties(tied) == [["a", "b"]] and values(tied)["b"] == floats(1, 2, 3, 4)[1]
    parted = listing(edited(untie(tied, "b"), tmp_path / "z.pt"))
    assert ties(parted) == [] and values(parted) == values(tied)


# --- what is refused -------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, bytes], str]] = {
    "no object": ({"pickle": b""}, "is a tar archive without the member 'pickle' that torch writes"),
    "no storages": ({"storages": b""}, "is a tar archive without the member 'storages' that torch writes"),
    "no number of storages": ({"storages": pickled(b"N")}, "has no number of storages (member storages)"),
    "no number of tensors": ({"tensors": pickled(b"N")}, "has no number of tensors (member tensors)"),
    "a storage that is none": ({"storages": pickle.dumps(1, 2) + pickled(b"N")},
        "a storage is not named by key, device and class (byte 3,589)"),
    "a storage beyond the member": ({"storages": STORED.replace(struct.pack("<q", 6), struct.pack("<q", 600), 1)},
        "storage '7' claims 2,400 bytes from byte 3,630 on, and 44 are left"),
    "a negative size": ({"storages": STORED.replace(struct.pack("<q", 6), struct.pack("<q", -6), 1)},
        "storage '7' claims -6 elements"),
    "a storage twice": ({"storages": stored((7, floats(1)), (7, floats(1)))}, "storage '7' is twice in the table of storages"),
    "a part of nothing": ({"storages": stored((6, floats(1)), parts=PARTS)},
        "storage '8' is a part of '7', and the table of storages says otherwise"),
    "a part beyond its storage": ({"storages": stored((7, floats(1)), parts=PARTS)},
        "tensor 'w' reaches element 6 of a storage of 4 bytes"),
    "parts in no list": ({"storages": stored((7, floats(1)), parts=b"N")},
        "list of storages that are parts of others is none (member storages)"),
    "a tensor twice": ({"tensors": table(entry(1, 7, (1,), (1,)), entry(1, 7, (1,), (1,)))},
        "tensor 1 is twice in the table of tensors"),
    "a tensor in no storage": ({"tensors": table(entry(1, 9, (1,), (1,)))}, "storage '9' is not in the file"),
    "a tensor with the number of a storage": ({"tensors": table(entry(7, 7, (1,), (1,)))},
        "'7' is the number of a tensor and of a storage"),
    "many dimensions": ({"tensors": table((tuple_of(number(1), number(7), b"N"), struct.pack("<q", 65)))},
        "tensor 1 has 65 dimensions, and torch allows 64"),
    "a tensor cut off": ({"tensors": TENSORS[:-4]}, "table ends at byte 2,701, in the middle of an entry"),
    "a tensor that is none": ({"tensors": pickle.dumps(1, 2) + pickled(b"N")},
        "a tensor is not named by number, storage and class (byte 2,565)"),
    "a tensor beyond its storage": ({"tensors": table(entry(1, 7, (7,), (1,)), entry(2, 7, (1,), (1,)))},
        "tensor 'w' reaches element 7 of a storage of 24 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_contradictions_are_refused(tmp_path: Path, case: str) -> None:
    changed, message = BAD[case]
    path = made(tmp_path / "x.pt", **changed)
    assert refused(FormatError, opening.open, str(path)) == f"{path}: {message}"


def test_members_are_regular_files_and_there_once(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    twice = "is twice in the tar archive; do not load it: readers disagree"
    cases = ((tarfile.SYMTYPE, FormatError, "is no regular file"), (tarfile.REGTYPE, TwoReadings, twice))
    for kind, error, message in cases:
        with tarfile.open(path, "w") as archive:
            for name, of in (("pickle", tarfile.REGTYPE), ("storages", kind), ("storages", kind)):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = of, "/etc/passwd"
                archive.addfile(info, io.BytesIO())
        assert refused(error, opening.open, str(path)) == f"{path}: member 'storages' {message}"


def test_damaged_and_foreign_archives(tmp_path: Path) -> None:
    data = bytearray(made(tmp_path / "x.pt").read_bytes())
    foreign = tar(tmp_path / "y.tar", {"readme.txt": b"hi"})
    assert refused(Unsupported, opening.open, str(foreign)) == (
        f"{foreign}: is a tar archive, and none that torch wrote; unpack it, and name a file in it"
    )
    data[1024] ^= 1
    path = file_of(tmp_path, bytes(data))
    assert refused(FormatError, opening.open, str(path)) == (
        f"{path}: tar archive is damaged: a header does not match its checksum (byte 1,024)"
    )
    path.write_bytes(data[:1024])
    assert refused(FormatError, opening.open, str(path)) == f"{path}: tar archive is cut off: it has no end (byte 1,024)"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_members_lie_where_tarfile_says(tmp_path: Path, form: int) -> None:
    path = tmp_path / "x.tar"
    names = ["a", "long/" * 19 + "er"] + ["ü" * 90 + "/" + "x" * 60] * (form != tarfile.USTAR_FORMAT)
    with tarfile.open(path, "w", format=form) as archive:
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 700 * i
            archive.addfile(info, io.BytesIO(bytes(700 * i)))
    with tarfile.open(path) as archive:
        expected = [(member.name, member.offset_data, member.size) for member in archive]
    found = tars.read(open_source(str(path)))
    assert [(member.name, member.content.offset, member.content.nbytes) for member in found] == expected


@pytest.mark.parametrize("nbytes", [0, 5, 8**11 - 1, 8**11, 1 << 50])
def test_a_header_is_what_tarfile_reads(nbytes: int) -> None:
    info = tarfile.TarInfo.frombuf(tars.header("pickle", nbytes), "utf-8", "strict")
    assert (info.name, info.size, info.isreg()) == ("pickle", nbytes, True)


# --- changing --------------------------------------------------------------------------------------


def test_values_change_where_they_lie(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = {"a": torch.arange(4.0), "b": torch.arange(4.0, 8.0)}
    path = save_tar(saved, tmp_path / "x.pt")
    out = edited(set_values(listing(path), "b[2] = 0.5"), tmp_path / "y.pt")
    assert len(changed_bytes(path, out)) <= 4
    assert_same_but(saved, load(out), {"b"})
    assert load(out)["b"].tolist() == [4, 5, 0.5, 7]
    assert main(["set", str(path), "b[2] = 0.5", "-i", "--patch"]) == 0
    capfd.readouterr()
    assert path.read_bytes() == out.read_bytes()


def test_ties_and_partings_are_read_by_torch(tmp_path: Path) -> None:
    path = save_tar(OrderedDict(a=torch.arange(4.0), n=torch.tensor(3), b=torch.arange(4.0, 8.0)), tmp_path / "x.pt")
    tied = edited(tie(listing(path), "a", "b"), tmp_path / "y.pt")
    found = load(tied)
    assert found["a"].data_ptr() == found["b"].data_ptr() and found["b"].tolist() == [0, 1, 2, 3]
    assert (len(listing(tied).saved), int(found["n"])) == (2, 3)
    assert tied.stat().st_size % 10_240 == 0
    assert members(tied)["sys_info"] == members(path)["sys_info"]
    parted = edited(untie(listing(tied), "b"), tmp_path / "z.pt")
    found = load(parted)
    assert found["a"].data_ptr() != found["b"].data_ptr() and found["b"].tolist() == [0, 1, 2, 3]


def test_a_module_keeps_its_class(tmp_path: Path) -> None:
    net: Any = nn.ModuleList([module(), module()])
    path = save_tar(net, tmp_path / "x.pt")
    out = edited(tie(listing(path), "0", "1"), tmp_path / "y.pt")
    found = load(out)
    assert type(found).__name__ == "ModuleList"
    assert found[0][0].weight.data_ptr() == found[1][0].weight.data_ptr()
    assert_same_but(net[0], found[1], set())


def test_a_member_that_torch_does_not_read_stays(tmp_path: Path) -> None:
    whole = members(save_tar({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "x.pt"))
    path = tar(tmp_path / "x.pt", {**whole, "notes.txt": b"mine"})
    out = edited(tie(listing(path), "a", "b"), tmp_path / "y.pt")
    assert list(members(out)) == ["sys_info", "pickle", "tensors", "storages", "notes.txt"]
    assert members(out)["notes.txt"] == b"mine"


def test_a_new_archive_is_read_by_torch(tmp_path: Path) -> None:
    state = {"a": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3), "c": torch.tensor(1.5).double()}
    torch.save({**state, "d": state["a"]}, tmp_path / "x.pt")
    made = convert(listing(tmp_path / "x.pt"), tar_file).checkpoint
    saving.save(made, targets.NewFile(tmp_path / "y.pt"), tar_file)
    found = load(tmp_path / "y.pt")
    assert_same_but({**state, "d": state["a"]}, found, set())
    assert found["a"].data_ptr() == found["d"].data_ptr()


# --- checking --------------------------------------------------------------------------------------


def test_check_finds_what_nothing_uses(tmp_path: Path) -> None:
    path = made(
        tmp_path / "x.pt",
        pickle=pickled(python2_dict((u("w"), u("1") + b"Q"))) + b"more",
        tensors=table(entry(1, 7, (2,), (1,))),
        storages=stored((7, floats(1, 2)), (9, floats(1, 2, 3))),
    )
    report = check(str(path))
    assert [finding.what for finding in report.findings if finding.group == "integrity"] == [
        "4 bytes follow the end of what torch reads (member pickle)",
        "no tensor uses 12 bytes of stored values (storages 9)",
    ]
    assert [part for part, _ in report.safety] == [
        "sys_info", "pickle", "tensors, pickle 1", "tensors, pickle 2",
        "storages, pickle 1", "storages, pickle 2", "storages, pickle 3", "storages, pickle 4",
    ]  # fmt: skip


def test_check_judges_pickles_between_values(tmp_path: Path) -> None:
    evil = pickled(b"cos\nsystem\n" + u("touch /tmp/paramctl-was-here") + b"\x85R")
    path = made(tmp_path / "x.pt", storages=pickle.dumps(1, 2) + evil)
    (found,) = (finding for finding in check(str(path)).findings if finding.rule == "dangerous")
    assert found.what.startswith("the pickle names os.system")


# --- laws ------------------------------------------------------------------------------------------


@st.composite
def states(draw: st.DrawFn) -> Mapping[str, torch.Tensor]:
    """Tensors of which some share a storage."""
    state: dict[str, torch.Tensor] = {}
    for name in draw(st.lists(st.sampled_from("abcdef"), max_size=5, unique=True)):
        shape = draw(st.lists(st.integers(1, 3), max_size=3))
        dtype = draw(st.sampled_from([torch.float32, torch.int64, torch.uint8]))
        fresh = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
        state[name] = draw(st.sampled_from([fresh, *state.values()]))
    return state


@settings(max_examples=30, deadline=None)
@given(states())
def test_what_is_read_and_written_again_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, state: Mapping[str, torch.Tensor]
) -> None:
    folder = tmp_path_factory.mktemp("laws")
    path = save_tar(dict(state), folder / "x.pt")
    checkpoint = listing(path)
    assert save(checkpoint, folder / "y.pt").read_bytes() == path.read_bytes()
    drawn = init(checkpoint, ["**"], ["constant:1"], bias="constant:1").checkpoint if state else checkpoint
    parted = untie(drawn, "**").checkpoint if state else drawn
    out = save(parted, folder / "z.pt")
    found = load(out)
    assert {name: (t.shape, t.dtype) for name, t in found.items()} == {n: (t.shape, t.dtype) for n, t in state.items()}
    assert values(listing(out)) == values(parted) == loaded(out)
    assert len({t.data_ptr() for t in found.values()}) == len(state)
