"""What a checkpoint of several files is, told from the names of files: which of them opens it, and its parts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, UsageError
from paramctl.files.segments import Segment

INDEXES = (".safetensors.index.json", ".bin.index.json", ".metadata")  # endings of the names that open a folder
# Names of files of which any stands for all beside it, as torch's HuggingFaceStorageWriter gives them.
WITHOUT_INDEX = re.compile(r"shard-[0-9]{5,9}-model-[0-9]{5,9}-of-[0-9]{5,9}\.safetensors")
EDITION = re.compile(r"-edit[0-9]{1,9}(?=\.|$)")  # in the name of a part that took the place of another


class Part(NamedTuple):
    """One file of a set: its plain name beside the index, and what it holds.

    `was` is the name that the same part has where nothing is renamed.
    """

    name: str
    segments: tuple[Segment, ...]
    was: str


def index_in(folder: Path) -> Path | None:
    """The one index in a folder, or None where there is none. Raises UsageError where there are several."""
    try:
        found = sorted(path.name for path in folder.iterdir() if path.name.endswith(INDEXES) and is_named(path.name))
    except OSError as error:
        raise FileError(f"cannot read: {error.strerror}", file=str(folder)) from None
    if len(found) > 1:
        what = f"is a directory with several indexes ({', '.join(found)})"
        raise UsageError(what, hint="name one of them", file=str(folder))
    return folder / found[0] if found else None


def first_in(folder: Path) -> Path | None:
    """The first file in a folder of which each safetensors file is called as one without an index; None if none is."""
    names = [path.name for path in folder.iterdir() if path.suffix == ".safetensors" and is_named(path.name)]
    return folder / min(names) if names and all(map(WITHOUT_INDEX.fullmatch, names)) else None


def stands_for_others(name: str) -> bool:
    """Whether a file of that name may be opened for all of its set."""
    return name.endswith(INDEXES) or WITHOUT_INDEX.fullmatch(name) is not None


def is_named(name: str) -> bool:
    """Whether a name is an index's own: no temporary one, and of torch.distributed's just `.metadata`."""
    return name == ".metadata" or not name.startswith(".")
