"""`check` gives its verdict on pickles whatever else is wrong: with the listing, with other files, with us."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from set_files import BIN_INDEX, make, saved
from torch.distributed.checkpoint.filesystem import _StorageInfo

from paramctl.check.check import check
from paramctl.errors import FileError, FormatError, UsageError
from paramctl.files.sources import Source
from paramctl.findings import Finding
from paramctl.formats import opening
from paramctl.formats.pytorch import zip_file


class Payload:
    """Names os.system in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)


def found(path: Path) -> tuple[Finding, ...]:
    return check(str(path)).findings


def harmful(path: Path, file: str = "") -> bool:
    return any(one.rule == "dangerous" and "system, which runs" in one.what and one.file == file for one in found(path))


ERRORS: list[Exception] = [
    FormatError("damaged", hint="fetch it again"),
    FileError("cannot read"),
    UsageError("no"),
    TypeError("a fault"),
    RecursionError("deep"),
    MemoryError(),
    OverflowError("large"),
    ValueError("Exceeds the limit (4300 digits)"),
    OSError(5, "Input/output error"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_verdict_whatever_the_listing_raises(tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"w": Payload()}, tmp_path / "x.pt")

    def fail(source: Source) -> None:
        raise error

    for name in ("read", "audit"):
        with monkeypatch.context() as patch:
            patch.setattr(zip_file, name, fail if name == "read" else lambda checkpoint, watch: fail(checkpoint))
            assert harmful(tmp_path / "x.pt")
            assert any(one.group == "integrity" and one.level == "error" for one in found(tmp_path / "x.pt"))


SHARD = "pytorch_model-00001-of-00003.bin"


def unreadable(path: Path) -> None:
    path.unlink()
    path.mkdir()


def renamed(path: Path) -> None:
    """The index names a file by a name that is too long for the system."""
    index = path.parent / BIN_INDEX
    index.write_text(index.read_text().replace(path.name, "x" * 300 + ".bin"))


DAMAGE: list[Callable[[Path], object]] = [Path.unlink, unreadable, renamed, lambda path: path.write_bytes(b"PK\3\4")]


@pytest.mark.parametrize("damage", DAMAGE)
def test_one_bad_shard_does_not_end_the_report_on_the_others(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = make(tmp_path / "set", [{"a": torch.ones(1)}, {"b": torch.ones(1)}, {"c": torch.ones(1)}], ".bin")
    third = "pytorch_model-00003-of-00003.bin"
    torch.save({"c": Payload()}, folder / third)
    damage(folder / SHARD)
    assert harmful(folder, third)
    assert any(one.level == "error" and one.file not in ("", third) for one in found(folder))


def metadata_of(folder: Path, name: str) -> Any:
    with (folder / ".metadata").open("rb") as file:
        metadata = pickle.load(file)  # our own, a moment ago
    return metadata, next(key for key in metadata.storage_data if key.fqn == name)


def rewritten(folder: Path, name: str, data: bytes, file: str = "other.distcp") -> None:
    """An object of a set is these bytes, in a file of its own."""
    metadata, key = metadata_of(folder, name)
    (folder / file).write_bytes(data)
    metadata.storage_data[key] = _StorageInfo(file, 0, len(data))
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def made_set(folder: Path) -> Path:
    return saved(folder, {"w": torch.ones(3), "step": 3})


@pytest.mark.parametrize("form", ["zip", "legacy", "bare"])
def test_an_object_of_a_set_is_judged_in_any_form_that_torch_loads(tmp_path: Path, form: str) -> None:
    folder = made_set(tmp_path / "set")
    file = io.BytesIO()
    if form == "bare":
        file.write(pickle.dumps(Payload()))
    else:
        torch.save(Payload(), file, _use_new_zipfile_serialization=form == "zip")
    rewritten(folder, "step", file.getvalue())
    assert harmful(folder)


@pytest.mark.parametrize("damage", DAMAGE[:2])
def test_one_bad_file_of_torch_distributed_does_not_end_the_report(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    folder = made_set(tmp_path / "set")
    file = io.BytesIO()
    torch.save(Payload(), file)
    rewritten(folder, "step", file.getvalue())
    damage(folder / "__0_0.distcp")
    assert harmful(folder)
    assert any(one.rule == "unreadable" and one.file == "__0_0.distcp" for one in found(folder))


def test_names_of_files_that_are_too_long_or_lead_elsewhere(tmp_path: Path) -> None:
    for name in ("x" * 300, "../x", ".metadata"):
        folder = made_set(tmp_path / f"set{len(name)}")
        metadata, key = metadata_of(folder, "step")
        metadata.storage_data[key] = _StorageInfo(name, 0, 10)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        assert any(one.rule == "unreadable" and one.file == name for one in found(folder))


def test_one_bad_file_of_safetensors_parts(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for i, first in ((1, 0), (2, 2)):
        info = json.dumps({"w": {"saved_offsets": [first]}})
        save_file({"w": torch.ones(2)}, tmp_path / f"shard-0000{i}-model-00001-of-00001.safetensors", {"DCP_SHARDING_INFO": info})
    assert not [one for one in found(tmp_path) if one.level != "note"]
    unreadable(tmp_path / "shard-00002-model-00001-of-00001.safetensors")
    bad = [one for one in found(tmp_path) if one.level == "error"]
    assert {one.file for one in bad} == {"", "shard-00002-model-00001-of-00001.safetensors"}


@pytest.mark.parametrize("n", [10, 40])
def test_an_object_of_many_names_is_read_once(tmp_path: Path, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {"one": 1, **{f"s{i}": i for i in range(n)}, "w": torch.ones(3), **{f"w{i}": torch.ones(3) for i in range(n)}}
    folder = saved(tmp_path / "set", state)
    metadata, key = metadata_of(folder, "one")
    tensor = metadata_of(folder, "w")[1]
    for other in [*metadata.storage_data]:
        metadata.storage_data[other] = metadata.storage_data[key if other.fqn[0] in "os" else tensor]
    places = {(place.offset, place.length) for place in metadata.storage_data.values()}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    read: list[int] = []
    reader = zip_file.read

    def counted(source: Source) -> Any:
        read.append(source.size)
        return reader(source)

    monkeypatch.setattr(zip_file, "read", counted)
    for call in (lambda: opening.open(str(folder)), lambda: check(str(folder))):
        read.clear()
        call()
        assert len(read) <= len(places)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    name = str(tmp_path / ("x" * 300))
    for call in (opening.open, check):
        with pytest.raises(FileError, match="File name too long"):
            call(name)


def test_every_verdict_of_a_set_copied_without_its_index(tmp_path: Path) -> None:
    folder = made_set(tmp_path / "set")
    shutil.copy(folder / "__0_0.distcp", tmp_path / "x.pt")
    assert any(one.level == "error" for one in found(tmp_path / "x.pt"))
