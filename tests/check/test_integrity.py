"""Integrity: names that print alike, aliases that point nowhere, and copies of one tensor that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers import file_of, record_of
from safetensors.torch import save_file, save_model

from paramctl.check.check import check
from paramctl.findings import Finding


def found(path: Path) -> list[Finding]:
    return list(check(str(path)).findings)


def error(rule: str, path: str | None, what: str, file: str = "") -> Finding:
    return Finding("error", "integrity", rule, path, what, file)


def test_names_that_print_alike(tmp_path: Path) -> None:
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(2)}, 0: torch.ones(1), "0": torch.ones(2)}, tmp_path / "x.pt")
    what = "2 tensors have a path that another has too: a.b#2, 0#2"
    assert found(tmp_path / "x.pt") == [Finding("note", "integrity", "alike", None, what)]


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
    data = bytearray(path.read_bytes())
    data[record_of(path, "data/1").payload] ^= 1
    damaged = file_of(tmp_path, bytes(data), "damaged.pt")
    what = "record 'x/data/1' is corrupt: its bytes do not match their CRC-32"
    assert found(damaged) == [error("checksum", "lm_head.weight", what)]
    torch.save({"wte.weight": weight, "lm_head.weight": weight.to_sparse()}, path)
    assert found(path) == []
