"""Sharded sets: what the index says of its shards that is not so, and what is wrong with each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import record_of, refused
from safetensors.torch import save_file

from paramctl.check.check import check
from paramctl.errors import FileError, UsageError
from paramctl.findings import Finding


def found(path: Path) -> list[Finding]:
    return list(check(str(path)).findings)


def error(rule: str, path: str | None, what: str, file: str = "") -> Finding:
    return Finding("error", "integrity", rule, path, what, file)


ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def configured(folder: Path, config: object) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Make a set of two shards, as transformers writes them."""
    save_file({EMBED: torch.randn(4, 3)}, tmp_path / ONE)
    save_file({"model.norm.weight": torch.ones(3), HEAD: torch.randn(4, 3)}, tmp_path / TWO)
    index(tmp_path, {EMBED: ONE, "model.norm.weight": TWO, HEAD: TWO}, 108)
    return tmp_path


def index(folder: Path, weight_map: object, total_size: object = None, name: str = INDEX) -> Path:
    metadata = {} if total_size is None else {"total_size": total_size}
    path = folder / name
    path.write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return path


def test_a_sound_set_by_its_index_and_by_its_folder(shards: Path) -> None:
    for name in (shards / INDEX, shards):
        report = check(str(name))
        assert report.findings == ()
        assert (report.file, report.tensors, report.files) == (str(shards / INDEX), 3, 2)


def test_a_shard_that_the_index_does_not_name(shards: Path) -> None:
    edited = TWO.replace(".safetensors", "-edit3.safetensors")
    for name in (edited, "model-00003-of-00002.safetensors", "consolidated.safetensors", "pytorch_model-00001-of-00002.bin"):
        (shards / name).write_bytes(b"x")
    what = "is named like a shard of the set, but the index does not list it: loaders ignore it"
    assert found(shards) == [
        Finding("note", "integrity", "shard-unnamed", None, what, name)
        for name in (edited, "model-00003-of-00002.safetensors")
    ]
    (shards / TWO).replace(shards / edited)  # as one that changed is called
    index(shards, {EMBED: ONE, "model.norm.weight": edited, HEAD: edited}, 108)
    (shards / TWO).write_bytes(b"x")
    assert [(finding.rule, finding.file) for finding in found(shards)][:1] == [("shard-unnamed", TWO)]


def test_a_shard_that_is_an_index_itself(shards: Path) -> None:
    (shards / TWO).rename(shards / "other.safetensors")
    index(shards, {"model.norm.weight": "other.safetensors", HEAD: "other.safetensors"}, name=TWO)
    (finding,) = found(shards)
    assert (finding.level, finding.rule, finding.file) == ("error", "unreadable", TWO)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    for name, key in ((ONE, "a"), (TWO, "b")):
        save_file({key: torch.arange(3.0)}, tmp_path / name, {"format": "pt", "x": key})
    index(tmp_path, {"a": ONE, "b": TWO})
    (finding,) = found(tmp_path)
    assert (finding.level, finding.rule) == ("warning", "alike")
    assert finding.what.startswith("several shards hold x: ")


def test_a_shard_that_is_missing(shards: Path) -> None:
    (shards / TWO).unlink()
    assert found(shards) == [error("shard-missing", None, "no such file, though the index names it", TWO)]


def test_a_shard_that_is_a_folder(shards: Path) -> None:
    (shards / TWO).unlink()
    (shards / TWO).mkdir()
    assert found(shards) == [error("shard-missing", None, "is a directory, not a checkpoint file, though the index names it", TWO)]


def test_a_shard_that_is_cut_off(shards: Path) -> None:
    (shards / TWO).write_bytes((shards / TWO).read_bytes()[:-1])
    what = "is truncated: its tensors take 60 bytes, 59 are there"
    assert found(shards) == [error("unreadable", None, what, TWO)]


def test_a_shard_that_is_empty_or_something_else(shards: Path) -> None:
    (shards / TWO).write_bytes(b"")
    assert found(shards) == [error("unreadable", None, "is empty; check the command or the download that made it", TWO)]
    (shards / TWO).write_bytes(b"<html>")
    assert [finding[:4] for finding in found(shards)] == [("error", "integrity", "unreadable", None)]


@pytest.mark.parametrize(
    "name, why",
    [
        ("../x.safetensors", "leads out of the folder of the index"),
        ("/etc/passwd", "leads out of the folder of the index"),
        ("a\\b", "leads out of the folder of the index"),
        ("c:x", "leads out of the folder of the index"),
        ("..", "is no file name"),
        ("", "is no file name"),
        ("a\0b", "is no file name"),
        (INDEX, "is an index itself"),
        ("\ud800.bin", "is no file name"),
    ],
)
def test_a_shard_name_that_may_not_be_opened(shards: Path, name: str, why: str) -> None:
    index(shards, {EMBED: ONE, "model.norm.weight": TWO, HEAD: TWO, "x": name})
    assert found(shards) == [error("shard-name", None, f"shard {name!r} {why}")]


def test_a_tensor_in_another_shard_than_the_index_says(shards: Path) -> None:
    index(shards, {EMBED: ONE, "model.norm.weight": ONE, HEAD: TWO}, 108)
    assert found(shards) == [
        error("shard-index", None, "lacks model.norm.weight, which the index says it holds", ONE),
        error("shard-index", None, "holds model.norm.weight, which the index does not list", TWO),
    ]


def test_a_tensor_that_the_index_does_not_name_and_one_that_is_not_there(shards: Path) -> None:
    index(shards, {EMBED: ONE, HEAD: TWO, "gone": TWO}, 108)
    assert found(shards) == [
        error("shard-index", None, "lacks gone, which the index says it holds", TWO),
        error("shard-index", None, "holds model.norm.weight, which the index does not list", TWO),
    ]


def test_another_total_size(shards: Path) -> None:
    index(shards, {EMBED: ONE, "model.norm.weight": TWO, HEAD: TWO}, 109)
    what = "the index claims 109 bytes of tensors (total_size), and the shards hold 108"
    assert found(shards) == [Finding("warning", "integrity", "total-size", None, what)]
    index(shards, {EMBED: ONE, "model.norm.weight": TWO, HEAD: TWO})
    assert found(shards) == []


def test_an_index_of_nothing(shards: Path) -> None:
    index(shards, {})
    assert found(shards) == [error("shard-index", None, "the index names no tensors")]


@pytest.mark.parametrize(
    "text, what",
    [
        ("{", "index is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("[]", "index has no weight_map of names to files"),
        ('{"weight_map": {"a": 3}}', "index has no weight_map of names to files"),
        ("[" * 100_000, "index is nested too deep"),
        ("", "index is not JSON: Expecting value: line 1 column 1 (char 0)"),
    ],
)
def test_an_index_that_is_none(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / INDEX).write_text(text)
    assert found(tmp_path) == [error("unreadable", None, what)]


def test_copies_in_two_shards_that_differ(shards: Path) -> None:
    configured(shards, {"tie_word_embeddings": True})
    what = f"should be one tensor with {EMBED}, says config.json, and has other values; tie them with 'paramctl tie'"
    assert found(shards) == [error("untied-copies", HEAD, what, TWO)]
    configured(shards, {"tie_word_embeddings": False})
    assert found(shards) == []


def test_copies_in_two_shards_that_are_equal(shards: Path) -> None:
    configured(shards, {"tie_word_embeddings": True})
    weight = torch.randn(4, 3)
    save_file({EMBED: weight}, shards / ONE)
    save_file({"model.norm.weight": torch.ones(3), HEAD: weight}, shards / TWO)
    assert found(shards) == []


def test_copies_in_one_shard_that_differ_are_told_once(shards: Path) -> None:
    configured(shards, {"tie_word_embeddings": True})
    save_file({"model.norm.weight": torch.ones(3)}, shards / ONE)
    save_file({EMBED: torch.ones(4, 3), HEAD: torch.zeros(4, 3) + 2}, shards / TWO)
    index(shards, {EMBED: TWO, "model.norm.weight": ONE, HEAD: TWO})
    what = f"should be one tensor with {EMBED}, says config.json, and has other values; tie them with 'paramctl tie'"
    assert [finding for finding in found(shards) if finding.group == "integrity"] == [error("untied-copies", HEAD, what, TWO)]


def test_torch_shards_with_ties_and_a_corrupt_one(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    torch.save({EMBED: weight, HEAD: weight}, tmp_path / one)
    torch.save({"x": torch.ones(2)}, tmp_path / two)
    for total in (56, 104):  # which counted ties is a matter of the version that wrote it
        index(tmp_path, {EMBED: one, HEAD: one, "x": two}, total, "pytorch_model.bin.index.json")
        assert found(tmp_path) == []
    data = bytearray((tmp_path / two).read_bytes())
    data[record_of(tmp_path / two, "data/0").payload] ^= 1
    (tmp_path / two).write_bytes(data)
    name = "pytorch_model-00002-of-00002/data/0"
    what = f"record '{name}' is corrupt: its bytes do not match their CRC-32"
    assert found(tmp_path) == [error("checksum", "x", what, two)]


def test_a_folder_without_an_index_and_one_with_two(shards: Path) -> None:
    index(shards, {}, name="other.safetensors.index.json")
    names = "model.safetensors.index.json, other.safetensors.index.json"
    what = f"{shards}: is a directory with several indexes ({names}); name one of them"
    assert refused(UsageError, check, str(shards)) == what
    (shards / "empty").mkdir()
    what = "is a directory, not a checkpoint file; name a file in it"
    assert refused(FileError, check, str(shards / "empty")) == what


def test_what_is_found_in_shards_says_in_which(shards: Path) -> None:
    save_file({EMBED: torch.full((4, 3), float("nan"))}, shards / ONE)
    what = "12 of 12 values are NaN"
    assert found(shards) == [Finding("warning", "health", "nan", EMBED, what, ONE)]


def test_an_index_of_many_entries_and_missing_shards_ends(tmp_path: Path) -> None:
    index(tmp_path, {f"layer.{i}.weight": f"shard-{i % 2_000}.safetensors" for i in range(20_000)})
    assert len(found(tmp_path)) == 2_000
