"""Tell from file names which file opens a set of several files, and which are its parts."""

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
    """One file of a set: its name beside the index, and its content.

    `was` is the name of the same file if nothing is renamed.
    """

    name: str
    segments: tuple[Segment, ...]
    was: str


def index_in(folder: Path) -> Path | None:
    """Return the index in a folder, or None if there is none. Raises UsageError if there are several."""
    try:
        found = sorted(
            path.name for path in folder.iterdir() if path.name.endswith(INDEXES) and is_final_name(path.name)
        )
    except OSError as error:
        raise FileError(f"cannot read: {error.strerror}", file=str(folder)) from None
    if len(found) > 1:
        what = f"is a directory with several indexes ({', '.join(found)})"
        raise UsageError(what, hint="name one of them", file=str(folder))
    return folder / found[0] if found else None


def first_without_index(folder: Path) -> Path | None:
    """Return the first file of a set without an index, or None if the folder holds no such set.

    Every safetensors file of such a folder is named like one of the set.
    """
    names = [path.name for path in folder.iterdir() if path.suffix == ".safetensors" and is_final_name(path.name)]
    return folder / min(names) if names and all(map(WITHOUT_INDEX.fullmatch, names)) else None


def opens_a_set(name: str) -> bool:
    """Return whether opening a file of that name opens the whole set."""
    return name.endswith(INDEXES) or WITHOUT_INDEX.fullmatch(name) is not None


def is_final_name(name: str) -> bool:
    """Return whether a name is not temporary; of names with a leading dot only `.metadata` is final."""
    return name == ".metadata" or not name.startswith(".")


def is_one_of_several(name: str) -> bool:
    """Return whether a name says that the file is one of a set, such as `model-00001-of-00002.safetensors`."""
    found = _OF_SEVERAL.search(name)
    return name.endswith(".distcp") or (found is not None and int(found[1]) > 1)


_OF_SEVERAL = re.compile(r"[0-9]{1,9}-of-([0-9]{1,9})(?![0-9])")
