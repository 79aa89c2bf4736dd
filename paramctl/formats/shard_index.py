"""The index of a sharded set, as transformers writes it: which tensor is in which file beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from paramctl.checkpoint import natural_key
from paramctl.errors import FormatError, UsageError
from paramctl.sources import Source

ENDINGS = (".safetensors.index.json", ".bin.index.json")
MAX_INDEX = 64 << 20  # bytes; of a model with 140,000 tensors it takes 13 million


class Index(NamedTuple):
    """`weight_map` says for each tensor in which file it is; `total_size` counts bytes, where the index says."""

    folder: Path
    weight_map: Mapping[str, str]
    total_size: int | None

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the files, in natural order of their numbers."""
        return tuple(sorted(set(self.weight_map.values()), key=natural_key))


def recognises(source: Source) -> bool:
    """Whether a file is called as an index is."""
    return source.path is not None and source.name.endswith(ENDINGS)


def inside(folder: Path) -> Path:
    """The one index in a folder. Raises UsageError unless there is just one."""
    found = sorted(path for path in folder.iterdir() if path.name.endswith(ENDINGS))
    if len(found) == 1:
        return found[0]
    what = "is a directory without an index of shards" if not found else "is a directory with several indexes"
    raise UsageError(what, hint="name a file in it", file=str(folder))


def read(source: Source) -> Index:
    """Read an index. Raises FormatError where it is none."""
    if source.size > MAX_INDEX:
        raise FormatError(f"is an index of {source.size:,} bytes, over the limit of {MAX_INDEX:,}")
    try:
        found = json.loads(source.read(0, source.size))
    except RecursionError:
        raise FormatError("index is nested too deep") from None
    except ValueError as error:
        raise FormatError(f"index is not JSON: {error}") from None
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise FormatError("index has no weight_map of names to files")
    metadata = found.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():
        total = int(total)
    return Index(Path(source.name).absolute().parent, weight_map, total if type(total) is int else None)


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
