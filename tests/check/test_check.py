"""`check`: each planted fault is found, all of it, and what is sound is not called damaged."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
import torch
from helpers import file_of, record_of, records, refused, rezipped, source_in_memory, source_of, spots, stdin_pipe
from safetensors.torch import save_file

from paramctl.check.check import check, check_source
from paramctl.errors import FileError, FormatError, ParamctlError
from paramctl.files.sources import Source
from paramctl.findings import GROUPS, RULES, Finding, Group


def found(path: Path) -> list[Finding]:
    report = check(str(path))
    assert all(finding.rule in RULES and finding.group in GROUPS for finding in report.findings)
    return list(report.findings)


def error(rule: str, path: str | None, what: str, file: str = "") -> Finding:
    return Finding("error", "integrity", rule, path, what, file)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    state = {"w": torch.arange(4.0) + 1, "empty": torch.zeros(0), "n": 3, "deep": [{"v": torch.ones(2)}]}
    torch.save(state, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def flipped(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    return file_of(path.parent, bytes(data), f"flipped{path.suffix}")


def test_a_sound_file(net: Path) -> None:
    report = check(str(net))
    assert report.findings == ()
    assert (report.file, report.tensors, report.files) == (str(net), 3, 1)
    assert [(part, found.uses, found.refusal) for part, found in report.safety] == [("net/data.pkl", (), "")]


def test_every_flipped_byte_of_values(net: Path) -> None:
    spot = record_of(net, "data/0")
    what = "record 'net/data/0' is corrupt: its bytes do not match their CRC-32"
    for at in range(spot.payload, spot.payload + spot.nbytes):
        assert found(flipped(net, at)) == [error("checksum", "w", what)]


@pytest.mark.parametrize("name", ["data.pkl", "/version", "byteorder", ".storage_alignment"])
def test_every_flipped_byte_of_a_record_that_describes_the_others(net: Path, name: str) -> None:
    spot = record_of(net, name)
    full = next(full for full in spots(net) if full.endswith(name))
    what = f"record '{full}' is corrupt: its bytes do not match their CRC-32"
    for at in range(spot.payload, spot.payload + spot.nbytes):
        first, *others = found(flipped(net, at))
        assert first == error("unreadable", None, what)
        assert all(finding.group == "safety" for finding in others)  # torch sums up nothing: it would run this


def test_a_flipped_byte_of_a_record_that_nobody_reads(net: Path) -> None:
    spot = record_of(net, "serialization_id")
    what = "record 'net/.data/serialization_id' is corrupt: its bytes do not match their CRC-32"
    assert found(flipped(net, spot.payload)) == [error("checksum", None, what)]


def test_a_pickle_that_goes_on(net: Path) -> None:
    held = {name: data + b"..." if name.endswith("data.pkl") else data for name, data in records(net).items()}
    path = rezipped(net.with_name("more.pt"), held)
    what = "3 bytes follow the end of the pickle (record data.pkl)"
    assert found(path) == [Finding("warning", "integrity", "trailing", None, what)]


def test_a_storage_that_nobody_uses(net: Path) -> None:
    path = rezipped(net.with_name("more.pt"), {**records(net), "net/data/7": bytes(12)})
    what = "no tensor uses 12 bytes of stored values (storages 7)"
    assert found(path) == [Finding("note", "integrity", "unused-storage", None, what)]


def test_a_record_that_torch_does_not_read(net: Path) -> None:
    path = rezipped(net.with_name("more.pt"), {**records(net), "net/.data/more": bytes(12), "net/": b"", "net/x": b""})
    what = "torch never reads 12 bytes of the archive (records net/.data/more)"
    assert found(path) == [Finding("note", "integrity", "unused-record", None, what)]


def refuses(path: Path) -> bool:
    """Return whether torch refuses an archive for where its records lie."""
    try:
        torch.load(path)
    except RuntimeError as error:
        assert "not in a subdirectory" in str(error)
        return True
    return False


def test_records_outside_of_the_folder(net: Path) -> None:
    path = rezipped(net.with_name("more.pt"), {**records(net), "../evil": b"x", "__MACOSX/x": b"y"})
    what = "records lie outside of one folder, and torch.load refuses the file for that: '../evil', '__MACOSX/x'"
    assert found(path) == [Finding("warning", "integrity", "outside", None, what)]
    assert refuses(path) and not refuses(net)
    held = {name.removeprefix("net/"): data for name, data in records(net).items()}
    path = rezipped(net.with_name("bare.pt"), held)
    (finding,) = found(path)
    assert (finding.level, finding.rule) == ("warning", "outside") and refuses(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zipped_again_it_is_sound(net: Path, method: int) -> None:
    assert found(rezipped(net.with_name("again.pt"), records(net), method)) == []


def test_without_checksums_it_is_sound_as_far_as_can_be_seen(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"w": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    what = "was written without checksums: damage to its values cannot be seen"
    assert found(tmp_path / "x.pt") == [Finding("note", "integrity", "no-checksums", None, what)]


def test_another_byte_order(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    held |= {"x/byteorder": b"big", "x/data/0": struct.pack(">4f", 0, 1, 2, float("nan"))}
    what = "1 of 4 values is NaN"
    assert found(rezipped(tmp_path / "y.pt", held)) == [Finding("warning", "health", "nan", "w", what)]


def is_clean(source: Source) -> bool:
    """Return whether a file was read and nothing but notes was found."""
    try:
        return all(finding.level == "note" for finding in check_source(source).findings)
    except ParamctlError as error:
        assert type(error) is FormatError, error
        return False


def test_no_torch_file_that_is_cut_off_is_clean(net: Path) -> None:
    data = net.read_bytes()
    assert is_clean(source_in_memory(data))
    assert [n for n in range(len(data)) if is_clean(source_in_memory(data[:n]))] == []


def test_no_safetensors_file_that_is_cut_off_is_clean(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"note": "some text"})
    data = (tmp_path / "x.safetensors").read_bytes()
    assert is_clean(source_in_memory(data))
    assert [n for n in range(len(data)) if is_clean(source_in_memory(data[:n]))] == []
    assert [n for n in range(len(data)) if is_clean(source_of(tmp_path, data[:n], "cut.safetensors"))] == []


def test_a_file_cut_off_says_so(net: Path) -> None:
    path = file_of(net.parent, net.read_bytes()[:-1], "cut.pt")
    what = "is truncated or damaged: the zip directory at its end is missing"
    assert found(path) == [error("unreadable", None, what)]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    assert refused(FileError, check, str(tmp_path / "x.pt")) == "no such file; check the path"


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "is empty; check the command or the download that made it"),
        (b"<html>", "is a web page, not a checkpoint; the download saved an error page: fetch it again"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself; run 'git lfs pull'"),
    ],
)
@pytest.mark.parametrize("group", ["integrity", "health", "safety"])
def test_what_is_no_checkpoint_is_found(tmp_path: Path, data: bytes, what: str, group: Group) -> None:
    (finding,) = check(str(file_of(tmp_path, data, "x.pt")), [group]).findings
    assert finding._replace(what="") == error("unreadable", None, "")
    assert finding.what.startswith(what)


@pytest.mark.parametrize(
    "data, what",
    [
        (b"GGUF\3\0\0\0", "is a GGUF file; this version does not read it"),
        (b"\x1f\x8b\x08", "is compressed with gzip; unpack it with 'gunzip' first"),
        (pickle.dumps({"a": 1}, 2), "looks like a bare pickle, not like a file that torch.save wrote; "),
        (b"some text", "is no checkpoint that paramctl knows; it reads torch-zip, torchscript, "),
    ],
)
def test_what_is_not_read_is_called_neither_sound_nor_damaged(tmp_path: Path, data: bytes, what: str) -> None:
    report = check(str(file_of(tmp_path, data, "x")))
    assert [finding[:4] for finding in report.findings] == [("warning", "integrity", "not-read", None)]
    assert report.findings[0].what.startswith(what)


def test_a_zip_archive_with_a_folder_called_data_is_not_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("pkg/__init__.py", "1")
        archive.writestr("pkg/data/x.csv", "1,2")
    assert [finding.rule for finding in check(str(tmp_path / "x.zip")).findings] == ["not-read"]
    with zipfile.ZipFile(tmp_path / "x.zip", "a") as archive:
        archive.writestr("pkg/data/0", "1234")
    assert [finding.rule for finding in check(str(tmp_path / "x.zip")).findings] == ["unreadable"]


@pytest.mark.parametrize("change", [lambda file: file.write(b"more"), lambda file: file.truncate(600)], ids=["grows", "shrinks"])
def test_a_file_that_changes_meanwhile(net: Path, change: Callable[[IO[bytes]], object]) -> None:
    def on_progress(what: str, done: int, total: int | None) -> None:
        with net.open("ab") as file:
            change(file)

    what = "changed while it was being read; the findings may be out of date; run it again"
    assert refused(FileError, check, str(net), GROUPS, on_progress) == f"{net}: {what}"


def test_standard_input(net: Path) -> None:
    with stdin_pipe(net.read_bytes()):
        report = check("-")
    assert (report.file, report.findings, report.tensors) == ("-", (), 3)


def test_a_storage_of_another_size_than_its_tensors_say(net: Path) -> None:
    path = rezipped(net.with_name("short.pt"), {**records(net), "net/data/0": bytes(12)})
    what = "storage '0' claims 4 elements of 32 bits; its record has 12 bytes"
    assert found(path) == [error("unreadable", None, what)]


@pytest.mark.parametrize(
    "offsets, nbytes, what",
    [
        ((0, 4, 8, 12), 12, "tensor 'b' begins at byte 8 of the data and leaves a hole before it"),
        ((0, 4, 0, 4), 4, "tensor 'b' begins at byte 0 of the data and overlaps the one before it"),
        ((0, 4, 4, 8), 12, "has 4 bytes after its last tensor that nothing describes"),
        ((0, 8, 8, 12), 12, "tensor 'a' takes 4 bytes by its shape, 8 by its offsets"),
    ],
)
def test_offsets_that_leave_holes(tmp_path: Path, offsets: tuple[int, ...], nbytes: int, what: str) -> None:
    places = {"a": offsets[:2], "b": offsets[2:]}
    entries = {name: {"dtype": "F32", "shape": [1], "data_offsets": place} for name, place in places.items()}
    header = json.dumps(entries).encode()
    path = file_of(tmp_path, len(header).to_bytes(8, "little") + header + bytes(nbytes), "x.safetensors")
    assert found(path) == [error("unreadable", None, what)]


def test_many_views_of_one_storage_end(tmp_path: Path) -> None:
    whole = torch.randn(1 << 18)
    torch.save({f"{i}.weight": whole[i:].view(-1, 1) for i in range(2000)}, tmp_path / "x.pt")
    rules = {finding.rule for finding in found(tmp_path / "x.pt")}
    assert rules == {"unread"}
