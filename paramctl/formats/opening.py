"""Open the checkpoint that a name stands for: find its file, undo an interrupted patch, read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from paramctl.errors import ParamctlError, UsageError, some
from paramctl.files import set_names, temporary
from paramctl.files.sources import STDIN, open_source
from paramctl.formats.registry import as_set, of, read
from paramctl.model.checkpoint import Checkpoint
from paramctl.progress import ProgressCallback, ignore

MOST_FILES = 1000  # of a folder that are looked at


def open(
    name: str, on_progress: ProgressCallback = ignore, on_undone: Callable[[int], object] | None = None
) -> Checkpoint:
    """Return the checkpoint in the file `name` (`-`: standard input), or in that folder; no value is read.

    A patch of it that was interrupted is rolled back first, and `on_undone` is told how many bytes. Raises FileError
    if it cannot be read, FormatError if its bytes are not a checkpoint's, Unsupported if they are one's in an
    unsupported format.
    """
    try:
        file = locate(name)
        undone = recover(file, on_progress)
        if undone and on_undone:
            on_undone(undone)
        return read(open_source(file, on_progress))
    except ParamctlError as error:
        error.file = error.file or ("standard input" if name == STDIN else name)
        raise


def locate(name: str) -> str:
    """Return the file to open for `name`: of a folder that holds a set, its index, or its first file if it needs none.

    Of another folder it is the only checkpoint in it, beside a `config.json` and the like. Else it is `name` itself.
    Raises UsageError if a folder has several indexes, or several checkpoints.
    """
    if name == STDIN or not os.path.isdir(name):  # noqa: PTH112 - Path's raises OSError for a name that is too long
        return name
    return str(set_names.index_in(Path(name)) or _first_in(Path(name)) or _only_in(Path(name)) or name)


def _first_in(folder: Path) -> Path | None:
    """Return the first file of a set without an index, by its bytes; None where a folder holds something else."""
    first = set_names.first_without_index(folder)
    try:
        return first if first is not None and as_set(of(open_source(str(first)))) else None
    except ParamctlError:
        return None


def _only_in(folder: Path) -> Path | None:
    """Return the only checkpoint in a folder, by its bytes; None if there is none. Raises UsageError for several.

    A shard without its index is no whole checkpoint: a write of the set may have been interrupted.
    """
    files = sorted(path for path in folder.iterdir() if set_names.is_final_name(path.name) and path.is_file())
    found = [path for path in files[:MOST_FILES] if _is_checkpoint(path)]
    if len(found) > 1:
        what = f"is a directory with several checkpoints ({some([path.name for path in found])})"
        raise UsageError(what, hint="name one of them", file=str(folder))
    return found[0] if found and not set_names.is_one_of_several(found[0].name) else None


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file begins as a checkpoint does."""
    try:
        source = open_source(str(path))
        return source.size > 0 and of(source) is not None
    except ParamctlError:
        return False


def recover(file: str, on_progress: ProgressCallback = ignore) -> int:
    """Roll back an interrupted patch of a file that `locate` found, or of one of its set; return how many bytes.

    0 if there was none. Raises FileError if one is under way, or if it cannot be rolled back.
    """
    if file == STDIN or "\0" in file:
        return 0
    path = Path(file)
    paths = [Path(os.path.realpath(each)) for each in (path, *(path.parent / member for member in _members(path)))]
    return sum(_rolled_back(each, on_progress) for each in paths if os.path.lexists(temporary.journal_of(each)))


def _rolled_back(path: Path, on_progress: ProgressCallback) -> int:
    from paramctl.files import undo_journal

    return undo_journal.roll_back(path, on_progress)


def _members(path: Path) -> list[str]:
    """Return the names of a set's other files, where a journal lies beside its index; none where it cannot be read."""
    if not set_names.opens_a_set(path.name) or not any(path.parent.glob(".*.paramctl-journal")):
        return []
    try:
        source = open_source(str(path))
        form = of(source) if source.size else None
        return [*whole.members(source)] if (whole := as_set(form)) else []
    except ParamctlError:
        return []
