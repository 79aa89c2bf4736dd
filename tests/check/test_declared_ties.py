"""What the configuration beside a checkpoint says of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import file_of, listing, stdin_pipe
from safetensors.torch import save_file

from paramctl.check.declared_ties import MAX_CONFIG, declared_ties, says_tied, ties_embeddings
from paramctl.files.sources import open_source


@pytest.mark.parametrize(
    "config, is_tied",
    [
        ('{"tie_word_embeddings": true}', True),
        ('{"tie_word_embeddings": false, "model_type": "gpt2"}', False),
        ('{"tie_word_embeddings": 1}', False),
        ('{"tie_word_embeddings": "true"}', False),
        ('{"model_type": "gpt2"}', True),
        ('{"model_type": "llama"}', False),
        ('{"model_type": ["gpt2"]}', False),
        ('{"text_config": {"tie_word_embeddings": true}}', True),
        ('{"text_config": {"tie_word_embeddings": true}, "tie_word_embeddings": false}', False),
        ('{"text_config": []}', False),
        ("{}", False),
        ("[]", False),
        ("{", False),
        ("[" * 100_000, False),
        ('"\\ud800"', False),
        (f'{{"tie_word_embeddings": true}}{" " * MAX_CONFIG}', False),
    ],
)
def test_whether_embeddings_are_tied(tmp_path: Path, config: str, is_tied: bool) -> None:
    (tmp_path / "config.json").write_text(config)
    assert says_tied(tmp_path) is is_tied


def test_ties_that_a_file_or_its_configuration_declares(tmp_path: Path) -> None:
    names = ("wte.weight", "lm_head.weight", "a", "b", "format")
    metadata = {"b": "a", "a": "a", "c": "a", "format": "a", "lm_head.weight": "text"}
    save_file({name: torch.ones(1) for name in names}, tmp_path / "x.safetensors", metadata)
    checkpoint = listing(tmp_path / "x.safetensors")
    at = {param.path: i for i, param in enumerate(checkpoint.params)}
    declared = [(at["b"], at["a"], "the file's metadata")]
    assert declared_ties(checkpoint, is_shard=False) == declared
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    both = [*declared, (at["lm_head.weight"], at["wte.weight"], "config.json")]
    assert declared_ties(checkpoint, is_shard=False) == both
    assert declared_ties(checkpoint, is_shard=True) == declared


def test_bytes_that_are_no_text_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\xfa")
    assert not says_tied(tmp_path)


def test_neither_a_folder_nor_a_pipe_is_a_configuration(tmp_path: Path) -> None:
    assert not says_tied(tmp_path)
    (tmp_path / "config.json").mkdir()
    assert not says_tied(tmp_path)
    (tmp_path / "config.json").rmdir()
    os.mkfifo(tmp_path / "config.json")
    assert not says_tied(tmp_path)


def test_it_lies_beside_the_name_of_the_file_not_beside_what_that_links_to(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    file_of(tmp_path / "blobs", b"x", "abc")
    (tmp_path / "model.safetensors").symlink_to("blobs/abc")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert ties_embeddings(open_source(str(tmp_path / "model.safetensors")))


def test_nothing_lies_beside_standard_input(tmp_path: Path) -> None:
    with stdin_pipe(b"x"):
        assert not ties_embeddings(open_source("-"))
