"""Say what the index of a set tells of the files beside it: which tensor is in which, and which names are safe."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from paramctl.model.checkpoint import natural_key

ENDINGS = (".safetensors.index.json", ".bin.index.json")


class SetIndex(NamedTuple):
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


def why_unsafe(name: str) -> str:
    """Return why no file of a shard's name may be opened; empty if it is a plain file name (R6)."""
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
