"""Safety: what loading a file would run, every name at once, and what hides none of them."""

from __future__ import annotations

import pickle
import subprocess
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import old_torch
import pytest
import torch
from helpers import file_of, record_of, records, rezipped

from paramctl.check.check import check
from paramctl.findings import GROUPS, Finding, Group
from paramctl.formats import registry
from paramctl.formats.pickles.reader_differences import DISAGREE


def found(path: Path) -> list[Finding]:
    return list(check(str(path)).findings)


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return subprocess.getoutput, ("true",)


def safety(path: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.rule) for finding in check(str(path), ["safety"]).findings]


def test_a_jagged_tensor_as_torch_saves_it_is_no_danger(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        jagged = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=torch.jagged)
    torch.save({"w": jagged}, tmp_path / "x.pt")
    assert {level for level, _ in safety(tmp_path / "x.pt")} == {"note"}


def test_a_pickle_that_runs_commands(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Runs()}, tmp_path / "x.pt")
    first, refusal = found(tmp_path / "x.pt")
    assert first[:4] == ("error", "safety", "dangerous", None)
    assert first.what == "the pickle names commands.getoutput, which runs a shell command"
    assert refusal[:4] == ("note", "safety", "weights-only", None)
    assert check(str(tmp_path / "x.pt"), ["health", "integrity"]).findings == ()


RUNS = Finding("error", "safety", "dangerous", None, "the pickle names subprocess.getoutput, which runs a shell command")
RUNS_OLD = RUNS._replace(what="the pickle names commands.getoutput, which runs a shell command")  # in Python 2's words
NO_PICKLE = "is no checkpoint that paramctl knows; it reads " + ", ".join(form.NAME for form in registry.FORMATS)


@pytest.mark.parametrize("protocol", range(6))
def test_a_bare_pickle_that_runs_commands_is_found_though_it_is_no_checkpoint(tmp_path: Path, protocol: int) -> None:
    path = file_of(tmp_path, pickle.dumps(Runs(), protocol), "x.pt")
    for groups in (GROUPS, ("safety",)):
        assert errors(path, groups) == [RUNS if protocol > 2 else RUNS_OLD]
        assert {finding.rule for finding in check(str(path), groups).findings} == {"not-read", "dangerous", "weights-only"}
    assert not_read(path, ["integrity", "health"])
    assert not_read(file_of(tmp_path, pickle.dumps({"a": 1}, protocol), "y.pt"))


def test_what_a_pickle_names_is_told_though_it_is_not_read(tmp_path: Path) -> None:
    path = file_of(tmp_path, pickle.dumps(Counter(a=1), 2))
    assert not_read(path).startswith("looks like a bare pickle")
    [(_, safety)] = check(str(path)).safety
    assert [use.name for use in safety.uses] == ["collections.Counter"]


def errors(path: Path, only: Collection[Group] = GROUPS) -> list[Finding]:
    return [finding for finding in check(str(path), only).findings if finding.level == "error"]


def not_read(path: Path, only: Collection[Group] = GROUPS) -> str:
    """Return the finding about a file whose content is not checked."""
    finding, *others = check(str(path), only).findings
    assert all(other.level == "note" and other.group == "safety" for other in others)
    assert finding[:4] == ("warning", "integrity", "not-read", None)
    return finding.what


def test_of_pickles_one_behind_the_other_none_is_missed(tmp_path: Path) -> None:
    path = file_of(tmp_path, b"".join(pickle.dumps(one, 0) for one in (1, 2, 3, 4, Runs())))
    assert errors(path) == [RUNS_OLD]
    assert errors(file_of(tmp_path, pickle.dumps(Runs(), 0) + bytes(99))) == [RUNS_OLD]


@pytest.mark.parametrize("text", ["N.\n", "No.\n", "cat a\nb c\nN.", "checkpoint\nmodel\n.", "I1\n.", '{"a": 1}', "a: 1\n", "(lp0\n"])
def test_a_text_is_no_pickle_that_does_harm(tmp_path: Path, text: str) -> None:
    path = file_of(tmp_path, text.encode())
    assert not_read(path) == NO_PICKLE and not check(str(path)).safety


def test_a_bare_pickle_that_is_damaged_after_it_did_harm(tmp_path: Path) -> None:
    what = (
        "pickle is damaged: it takes a value from an empty stack, or ends before its STOP (byte 11); "
        "do not load it: before that it names os.system, which runs a shell command"
    )
    assert errors(file_of(tmp_path, b"cos\nsystem\n")) == [RUNS._replace(what=what)]


@pytest.mark.parametrize("version", [None, (1, 0), (2, 0), (3, 0)])
def test_objects_in_an_array(tmp_path: Path, version: tuple[int, int] | None) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.lib.format.write_array(file, np.array([Runs(), 1], object), version)
    assert errors(tmp_path / "x.npy") == [RUNS]
    assert not_read(tmp_path / "x.npy", ["integrity"]) == "is a NumPy .npy file; this version does not read it"
    record = np.zeros(1, [("x", "f4"), ("O", object)])
    record["O"][0] = Runs()
    np.save(tmp_path / "y.npy", record)
    assert errors(tmp_path / "y.npy") == [RUNS]
    with (tmp_path / "z.npy").open("wb") as file:
        np.lib.format.write_array(file, np.array([{"a": 1}], object), version)
    assert not_read(tmp_path / "z.npy") == "is a NumPy .npy file; this version does not read it"


def test_a_header_that_hides_the_objects_of_an_array(tmp_path: Path) -> None:
    header = b"{" + b" " * (1 << 17) + b"'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    array = b"\x93NUMPY\x02\0" + len(header).to_bytes(4, "little") + header + pickle.dumps([Runs()])
    assert errors(file_of(tmp_path, array, "x.npy")) == [RUNS]
    for cut in (array[: 1 << 17], array[:12], array[:7]):
        path = file_of(tmp_path, cut, "y.npy")
        assert not_read(path) == "is a NumPy .npy file; this version does not read it"


def test_a_frame_that_is_cut_short(tmp_path: Path) -> None:
    """Python's own unpickler reads on in what is left of it, and the one in C does not."""
    data = pickle.dumps([Runs()], 4)
    error = errors(file_of(tmp_path, data[:-4], "x.bin"))[-1]
    assert error.rule == "dangerous" and error.what.endswith(f"(byte 2, opcode FRAME); {DISAGREE}")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_objects_in_an_archive_of_arrays(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "x.npz", a=np.ones(3), b=np.array([Runs()], object))
    assert errors(tmp_path / "x.npz") == [RUNS]
    assert [part for part, _ in check(str(tmp_path / "x.npz")).safety] == ["b.npy"]
    what = "is a NumPy .npz archive, which this version does not read"
    assert not_read(tmp_path / "x.npz", ["health"]) == what
    save(tmp_path / "y.npz", a=np.ones(3), b=np.array([{"a": 1}], object))
    assert not_read(tmp_path / "y.npz") == what


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_a_file_of_the_old_format_in_any_protocol(tmp_path: Path, protocol: int) -> None:
    def save(obj: object) -> Path:
        torch.save(obj, tmp_path / "x.pt", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
        return tmp_path / "x.pt"

    report = check(str(save({"w": torch.ones(2), "x": Runs()})))
    assert errors(tmp_path / "x.pt") == [RUNS if protocol > 2 else RUNS_OLD]
    assert report.tensors == 1
    assert [part for part, _ in report.safety] == [f"pickle {number}" for number in range(1, 6)]
    assert {finding.level for finding in found(save({"w": torch.ones(2)}))} <= {"note"}


def test_torch_takes_no_tar_with_weights_only(tmp_path: Path) -> None:
    path = old_torch.save_tar({"w": torch.ones(2)}, tmp_path / "x.tar")
    with pytest.raises(RuntimeError, match=r"files saved in the legacy \.tar format"):
        torch.load(path, weights_only=True)
    report = check(str(path))
    why = "it is a tar archive, and torch takes none of these"
    what = f"torch.load(weights_only=True) refuses it: {why}"
    assert report.findings == (Finding("note", "safety", "weights-only", None, what),)
    assert {safety.refusal for _, safety in report.safety} == {why}


def test_torch_takes_no_torchscript_with_weights_only(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
        with pytest.raises(RuntimeError, match="with TorchScript archives"):
            torch.load(tmp_path / "x.pt", weights_only=True)
    report = check(str(tmp_path / "x.pt"))
    why = "it is a TorchScript archive, and torch takes none of these"
    assert [finding.what for finding in report.findings if finding.rule == "weights-only"] == [
        f"torch.load(weights_only=True) refuses it: {why}"
    ]
    assert {safety.refusal for _, safety in report.safety} == {why}


def test_one_pickle_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", {"x/more.pkl": bytes(1 << 20), **records(tmp_path / "x.pt")}, zipfile.ZIP_DEFLATED)
    assert safety(path) == [("error", "unreadable"), ("error", "dangerous"), ("note", "weights-only")]


def test_a_pickle_cut_off_after_it_did_harm(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    held = {name: data[:-3] if name.endswith(".pkl") else data for name, data in records(tmp_path / "x.pt").items()}
    found = check(str(rezipped(tmp_path / "y.pt", held))).findings
    assert [finding[:3] for finding in found] == [
        ("error", "integrity", "unreadable"),
        ("error", "safety", "dangerous"),
    ]


def test_damage_to_another_pickle_is_told_once(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", {**records(tmp_path / "x.pt"), "x/more.pkl": b"N."})
    data = bytearray(path.read_bytes())
    data[record_of(path, "more.pkl").payload] ^= 1
    path.write_bytes(data)
    what = "record 'x/more.pkl' is corrupt: its bytes do not match their CRC-32"
    assert [finding[1:3] + finding[4:5] for finding in found(path) if finding.level == "error"] == [("integrity", "checksum", what)]
    what = "pickle is damaged: it has an opcode that no pickle has (byte 0, opcode 0x4f)"
    assert [finding[1:3] + finding[4:5] for finding in check(str(path), ["safety"]).findings] == [("integrity", "unreadable", what)]


def test_another_pickle_that_is_none(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", {**records(tmp_path / "x.pt"), "x/more.pkl": b"\xff"})
    what = "pickle is damaged: it has an opcode that no pickle has (byte 0, opcode 0xff)"
    assert Finding("error", "integrity", "unreadable", None, what) in found(path)


WHAT = [
    "the pickle names torch.nn.modules.container.Sequential, torch.nn.modules.linear.Linear, "
    "torch.nn.modules.activation.Tanh; each makes a part of a torch model or optimizer, without calling it",
    "the pickle names __builtin__.set; makes a container of the standard library",
    "torch.load(weights_only=True) refuses it: 3 globals: torch.nn.modules.container.Sequential, "
    "torch.nn.modules.linear.Linear, torch.nn.modules.activation.Tanh",
]


def test_names_that_do_the_same_are_told_together(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    torch.save(net, tmp_path / "x.pt")
    assert [finding.what for finding in found(tmp_path / "x.pt")] == WHAT
