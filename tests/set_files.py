"""Sets of several files, as transformers and torch.distributed write them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

Tensors = dict[str, torch.Tensor]
INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


def make(folder: Path, shards: list[Tensors], suffix: str = ".safetensors", metadata: Mapping[str, Any] | None = None) -> Path:
    """A set as transformers writes it, by the libraries of its shards; `.old.bin` are those of torch before 1.6."""
    folder.mkdir()
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = f"{stem}-{i:05}-of-{len(shards):05}{suffix}"
        if suffix == ".safetensors":
            safetensors.torch.save_file(shard, folder / name, {"format": "pt"})
        else:
            torch.save(shard, folder / name, _use_new_zipfile_serialization=suffix != ".old.bin")
        weight_map |= dict.fromkeys(shard, name)
    size = sum(value.nbytes for shard in shards for value in shard.values())
    write_index(folder, {"metadata": {"total_size": size, **(metadata or {})}, "weight_map": weight_map})
    return folder


def write_index(folder: Path, document: object) -> None:
    name = INDEX if any(folder.glob("*.safetensors")) else BIN_INDEX
    (folder / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def saved(folder: Path, state: dict[str, Any], **options: Any) -> Path:
    """A set as torch.distributed.checkpoint writes it, by one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp_save(state, storage_writer=FileSystemWriter(folder, **options), no_dist=True)
    return folder
