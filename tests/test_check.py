"""`check`: each planted fault is found, all of it, and what is healthy is not called sick."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import file_of, record_of, records, refused, rezipped, spots, stdin_pipe
from safetensors.torch import save_file, save_model

from paramctl.check import check
from paramctl.errors import FileError, FormatError, ParamctlError, UsageError
from paramctl.findings import GROUPS, RULES, Finding


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


# --- torch archives ------------------------------------------------------------------------------


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
        assert found(flipped(net, at)) == [error("unreadable", None, what)]


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


def test_names_that_print_alike(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}, 0: torch.ones(1), "0": torch.ones(2)}, tmp_path / "x.pt")
    what = "2 tensors have a path that another has too: a.b#2, 0#2"
    assert found(tmp_path / "x.pt") == [Finding("note", "integrity", "alike", None, what)]


def test_another_byte_order(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(4.0)}, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    held |= {"x/byteorder": b"big", "x/data/0": struct.pack(">4f", 0, 1, 2, float("nan"))}
    what = "1 of 4 values is NaN"
    assert found(rezipped(tmp_path / "y.pt", held)) == [Finding("warning", "health", "nan", "w", what)]


def is_clean(path: Path) -> bool:
    """Whether a file was read and nothing but notes was said of it."""
    try:
        return all(finding.level == "note" for finding in check(str(path)).findings)
    except ParamctlError as error:
        assert type(error) is FormatError, error
        return False


def test_no_torch_file_that_is_cut_off_is_clean(net: Path) -> None:
    data = net.read_bytes()
    assert [n for n in range(len(data)) if is_clean(file_of(net.parent, data[:n], "cut.pt"))] == []


def test_no_safetensors_file_that_is_cut_off_is_clean(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"note": "some text"})
    data = (tmp_path / "x.safetensors").read_bytes()
    assert is_clean(tmp_path / "x.safetensors")
    assert [n for n in range(len(data)) if is_clean(file_of(tmp_path, data[:n], "cut.safetensors"))] == []
    assert [n for n in range(len(data)) if is_clean(file_of(tmp_path, data[:n], "cut"))] == []


def test_a_file_cut_off_says_so(net: Path) -> None:
    path = file_of(net.parent, net.read_bytes()[:-1], "cut.pt")
    what = "is truncated or damaged: the zip directory at its end is missing"
    assert found(path) == [error("unreadable", None, what)]


def test_no_file_is_an_error(tmp_path: Path) -> None:
    assert refused(FileError, check, str(tmp_path / "x.pt")) == "no such file; check the path"
    empty = file_of(tmp_path, b"", "x.pt")
    assert refused(FormatError, check, str(empty)) == "is empty; check the command or the download that made it"
    other = file_of(tmp_path, b"some text", "x.txt")
    expected = "is no checkpoint that paramctl knows"
    assert refused(FormatError, check, str(other)).startswith(expected)


def test_a_file_that_changes_meanwhile(net: Path) -> None:
    def watch(what: str, done: int, total: int | None) -> None:
        with net.open("ab") as file:
            file.write(b"more")

    what = "changed while it was being read; what was found may not be true of it; run it again"
    assert refused(FileError, check, str(net), GROUPS, watch) == f"{net}: {what}"


def test_standard_input(net: Path) -> None:
    with stdin_pipe(net.read_bytes()):
        report = check("-")
    assert (report.file, report.findings, report.tensors) == ("-", (), 3)


# --- safetensors ---------------------------------------------------------------------------------


def test_an_alias_that_points_nowhere(tmp_path: Path) -> None:
    tensors = {"lm_head.bias": torch.ones(2), "model.norm.weight": torch.ones(2)}
    notes = {"lm_head.weight": "model.embed_tokens.weight", "format": "pt", "made.by": "some.body", "date": "2024.weight"}
    save_file(tensors, tmp_path / "x.safetensors", notes)
    what = "is tied to model.embed_tokens.weight, and there is no such tensor"
    assert found(tmp_path / "x.safetensors") == [error("dangling-alias", "lm_head.weight", what)]


def test_an_alias_as_safetensors_writes_it(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].weight = net[0].weight
    save_model(net, str(tmp_path / "x.safetensors"))
    assert found(tmp_path / "x.safetensors") == []


SAID = "should be one tensor with {}, says {}, and has {}; tie them with 'paramctl tie'"


def test_both_copies_of_a_tied_pair_that_differ(tmp_path: Path) -> None:
    tensors = {"head.weight": torch.ones(2), "embed.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "x.safetensors", {"head.weight": "embed.weight", "format": "embed.weight"})
    assert found(tmp_path / "x.safetensors") == []
    tensors["head.weight"][1] = -1
    save_file(tensors, tmp_path / "x.safetensors", {"head.weight": "embed.weight"})
    what = SAID.format("embed.weight", "the file's metadata", "other values")
    assert found(tmp_path / "x.safetensors") == [error("untied-copies", "head.weight", what)]


FAMILIES = {
    "gpt2": ("transformer.wte.weight", "lm_head.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "t5": ("shared.weight", "lm_head.weight"),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    "roberta": ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "opt": ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    "gpt_neox": ("gpt_neox.embed_in.weight", "embed_out.weight"),
}


def configured(folder: Path, config: Mapping[str, object]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("embedding, head", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_embeddings_that_the_configuration_ties(tmp_path: Path, embedding: str, head: str, suffix: str) -> None:
    save = save_file if suffix == ".safetensors" else torch.save
    path, weight = tmp_path / f"model{suffix}", torch.randn(4, 3)
    save({embedding: weight, head: weight.clone()}, path)
    configured(tmp_path, {"tie_word_embeddings": True})
    assert found(path) == []
    save({embedding: weight, head: weight + 1}, path)
    what = SAID.format(embedding, "config.json", "other values")
    assert found(path) == [error("untied-copies", head, what)]
    configured(tmp_path, {"text_config": {"tie_word_embeddings": True}})
    assert found(path) == [error("untied-copies", head, what)]
    for untied in ({"tie_word_embeddings": False, "model_type": "gpt2"}, {"model_type": "llama"}, {}):
        configured(tmp_path, untied)
        assert found(path) == []
    (tmp_path / "config.json").unlink()
    assert found(path) == []


def test_a_class_that_ties_unless_its_configuration_says_otherwise(tmp_path: Path) -> None:
    save_file({"wte.weight": torch.randn(4, 3), "lm_head.weight": torch.randn(4, 3)}, tmp_path / "x.safetensors")
    configured(tmp_path, {"model_type": "gpt2"})
    what = SAID.format("wte.weight", "config.json", "other values")
    assert found(tmp_path / "x.safetensors") == [error("untied-copies", "lm_head.weight", what)]


@pytest.mark.parametrize("other, has", [(torch.ones(5, 3), "another shape"), (torch.ones(4, 3).half(), "another dtype")])
def test_copies_of_other_forms(tmp_path: Path, other: torch.Tensor, has: str) -> None:
    save_file({"wte.weight": torch.randn(4, 3), "lm_head.weight": other * 2}, tmp_path / "x.safetensors")
    configured(tmp_path, {"tie_word_embeddings": True})
    what = SAID.format("wte.weight", "config.json", has)
    assert found(tmp_path / "x.safetensors")[0] == error("untied-copies", "lm_head.weight", what)


def test_an_encoder_and_a_decoder_share_one_embedding(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    names = ["shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    tensors = {name: weight.clone() for name in names}
    configured(tmp_path, {"tie_word_embeddings": True})
    save_file(tensors, tmp_path / "x.safetensors")
    assert found(tmp_path / "x.safetensors") == []
    tensors["decoder.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / "x.safetensors")
    what = SAID.format("shared.weight", "config.json", "other values")
    assert found(tmp_path / "x.safetensors") == [error("untied-copies", "decoder.embed_tokens.weight", what)]


def test_where_it_is_unclear_which_embedding_is_meant_nothing_is_said(tmp_path: Path) -> None:
    names = ["text.embed_tokens.weight", "audio.embed_tokens.weight", "lm_head.weight", "unlm_head.weight"]
    save_file({name: torch.randn(4, 3) for name in names}, tmp_path / "x.safetensors")
    configured(tmp_path, {"tie_word_embeddings": True})
    assert found(tmp_path / "x.safetensors") == []


def test_copies_in_torch_files_are_tied_or_damaged(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    configured(tmp_path, {"tie_word_embeddings": True})
    path = tmp_path / "x.pt"
    torch.save({"wte.weight": weight, "lm_head.weight": weight}, path)
    assert found(path) == []
    torch.save({"wte.weight": weight, "lm_head.weight": weight.t().contiguous().t()}, path)
    assert found(path) == []
    damaged = flipped(path, record_of(path, "data/1").payload)
    what = "record 'x/data/1' is corrupt: its bytes do not match their CRC-32"
    assert found(damaged) == [error("checksum", "lm_head.weight", what)]
    torch.save({"wte.weight": weight, "lm_head.weight": weight.to_sparse()}, path)
    assert found(path) == []


# --- sharded sets --------------------------------------------------------------------------------

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A set of two shards, as transformers writes them."""
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


def test_a_shard_that_is_missing(shards: Path) -> None:
    (shards / TWO).unlink()
    assert found(shards) == [error("shard-missing", None, "no such file", TWO)]


def test_a_shard_that_is_a_folder(shards: Path) -> None:
    (shards / TWO).unlink()
    (shards / TWO).mkdir()
    assert found(shards) == [error("shard-missing", None, "is a directory, not a checkpoint file", TWO)]


def test_a_shard_that_is_cut_off(shards: Path) -> None:
    (shards / TWO).write_bytes((shards / TWO).read_bytes()[:-1])
    what = "is truncated: its tensors take 60 bytes, 59 are there"
    assert found(shards) == [error("unreadable", None, what, TWO)]


def test_a_shard_that_is_empty_or_something_else(shards: Path) -> None:
    (shards / TWO).write_bytes(b"")
    assert found(shards) == [error("unreadable", None, "is empty", TWO)]
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
        (INDEX, "is the index itself"),
    ],
)
def test_a_shard_name_that_may_not_be_opened(shards: Path, name: str, why: str) -> None:
    index(shards, {EMBED: ONE, "model.norm.weight": TWO, HEAD: TWO, "x": name})
    assert found(shards) == [error("shard-name", None, f"shard {name!r} {why}")]


def test_a_tensor_in_another_shard_than_the_index_says(shards: Path) -> None:
    index(shards, {EMBED: ONE, "model.norm.weight": ONE, HEAD: TWO}, 108)
    assert found(shards) == [
        error("shard-index", None, "lacks model.norm.weight, which the index says it holds", ONE),
        error("shard-index", None, "holds model.norm.weight, which the index does not say", TWO),
    ]


def test_a_tensor_that_the_index_does_not_name_and_one_that_is_not_there(shards: Path) -> None:
    index(shards, {EMBED: ONE, HEAD: TWO, "gone": TWO}, 108)
    assert found(shards) == [
        error("shard-index", None, "lacks gone, which the index says it holds", TWO),
        error("shard-index", None, "holds model.norm.weight, which the index does not say", TWO),
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
    what = SAID.format(EMBED, "config.json", "other values")
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
    what = SAID.format(EMBED, "config.json", "other values")
    assert [finding for finding in found(shards) if finding.group == "integrity"] == [error("untied-copies", HEAD, what, TWO)]


def test_torch_shards_with_ties_and_a_corrupt_one(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    one, two = "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"
    torch.save({EMBED: weight, HEAD: weight}, tmp_path / one)
    torch.save({"x": torch.ones(2)}, tmp_path / two)
    for total in (56, 104):  # which counted ties is a matter of the version that wrote it
        index(tmp_path, {EMBED: one, HEAD: one, "x": two}, total, "pytorch_model.bin.index.json")
        assert found(tmp_path) == []
    (tmp_path / two).write_bytes(flipped(tmp_path / two, record_of(tmp_path / two, "data/0").payload).read_bytes())
    name = "pytorch_model-00002-of-00002/data/0"
    what = f"record '{name}' is corrupt: its bytes do not match their CRC-32"
    assert found(tmp_path) == [error("checksum", "x", what, two)]


def test_a_folder_without_an_index_and_one_with_two(shards: Path) -> None:
    index(shards, {}, name="other.safetensors.index.json")
    what = f"{shards}: is a directory with several indexes; name a file in it"
    assert refused(UsageError, check, str(shards)) == what
    (shards / "empty").mkdir()
    what = f"{shards / 'empty'}: is a directory without an index of shards; name a file in it"
    assert refused(UsageError, check, str(shards / "empty")) == what


def test_what_is_found_in_shards_says_in_which(shards: Path) -> None:
    save_file({EMBED: torch.full((4, 3), float("nan"))}, shards / ONE)
    what = "12 of 12 values are NaN"
    assert found(shards) == [Finding("warning", "health", "nan", EMBED, what, ONE)]


# --- safety --------------------------------------------------------------------------------------


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return subprocess.getoutput, ("true",)


def safety(path: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.rule) for finding in check(str(path), ["safety"]).findings]


def test_a_pickle_that_runs_commands(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Runs()}, tmp_path / "x.pt")
    first, refusal = found(tmp_path / "x.pt")
    assert first[:4] == ("error", "safety", "dangerous", None)
    assert first.what == "the pickle names commands.getoutput; runs a shell command"
    assert refusal[:4] == ("note", "safety", "weights-only", None)
    assert check(str(tmp_path / "x.pt"), ["health", "integrity"]).findings == ()


def test_a_bare_pickle_that_runs_commands_is_found_though_it_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Runs()))
    assert [rule for _, rule in safety(tmp_path / "x.pt")] == ["unreadable", "dangerous", "weights-only"]
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"a": 1}))
    assert refused(FormatError, check, str(tmp_path / "y.pt"))


def test_one_pickle_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", {"x/a.pkl": bytes(1 << 20), **records(tmp_path / "x.pt")}, zipfile.ZIP_DEFLATED)
    assert safety(path) == [("error", "unreadable"), ("error", "dangerous"), ("note", "weights-only")]


def test_a_pickle_cut_off_after_it_did_harm(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    held = {name: data[:-3] if name.endswith(".pkl") else data for name, data in records(tmp_path / "x.pt").items()}
    found = check(str(rezipped(tmp_path / "y.pt", held))).findings
    assert [finding[:3] for finding in found] == [
        ("error", "integrity", "unreadable"),
        ("error", "safety", "dangerous"),
    ]


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


# --- bounded work --------------------------------------------------------------------------------


def test_many_views_of_one_storage_end(tmp_path: Path) -> None:
    whole = torch.randn(1 << 18)
    torch.save({f"{i}.weight": whole[i:].view(-1, 1) for i in range(2000)}, tmp_path / "x.pt")
    rules = {finding.rule for finding in found(tmp_path / "x.pt")}
    assert rules == {"unread"}


def test_an_index_of_many_entries_and_missing_shards_ends(tmp_path: Path) -> None:
    index(tmp_path, {f"layer.{i}.weight": f"shard-{i % 20_000}.safetensors" for i in range(200_000)})
    assert len(found(tmp_path)) == 20_000
