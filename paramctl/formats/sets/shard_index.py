"""The index of a sharded set, as transformers writes it: which tensor is in which file beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.files.sources import Source
from paramctl.formats.containers import strict_json
from paramctl.model.checkpoint import natural_key

NAME = "sharded"  # of the format whose sets such an index opens
ENDINGS = (".safetensors.index.json", ".bin.index.json")
MAX_INDEX = 64 << 20  # bytes; of a model with 140,000 tensors it takes 13 million


class ShardIndex(NamedTuple):
    """`weight_map` says for each tensor in which file it is; `total_size` counts bytes, where the index says.

    `aliases` are names that the index gives to tensors of others, as huggingface_hub writes ties; `document`
    is all it says.
    """

    folder: Path
    weight_map: Mapping[str, str]
    total_size: int | None
    aliases: Mapping[str, str]
    document: Mapping[str, Any]

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files, in natural order of their numbers."""
        return tuple(sorted(set(self.weight_map.values()), key=natural_key))


def recognises(head: bytes, source: Source) -> bool:
    """Return whether a file says that it is an index, or has the name of one; a pipe has no files beside it."""
    says = head.lstrip().startswith(b"{") and b'"weight_map"' in head
    return source.path is not None and (says or source.name.endswith(ENDINGS))


def read(source: Source) -> ShardIndex:
    """Read an index. Raises FormatError where it is none."""
    if source.size > MAX_INDEX:
        raise FormatError(f"is an index of {source.size:,} bytes, over the limit of {MAX_INDEX:,}")
    found = strict_json.parse(source.read(0, source.size), "index")
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not {*map(type, weight_map.values())} <= {str}:
        raise FormatError("index has no weight_map of names to files")
    metadata = found.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    total = metadata.get("total_size")
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    aliases = {
        key: text
        for key, text in metadata.items()
        if isinstance(text, str) and text in weight_map and key not in weight_map
    }
    folder = Path(source.name).absolute().parent
    return ShardIndex(folder, weight_map, total if type(total) is int else None, aliases, found)


def why_unsafe(name: str) -> str:
    """Why a shard's name is none that may be opened; empty if it is a plain file name (R6)."""
    if not name or name in (".", "..") or "\0" in name or not _is_encodable(name):
        return "is no file name"
    if "/" in name or "\\" in name or PureWindowsPath(name).drive:
        return "leads out of the folder of the index"
    return "is an index itself" if name.endswith(ENDINGS) else ""


def _is_encodable(name: str) -> bool:
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True
