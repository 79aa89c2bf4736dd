"""Describe where a checkpoint may be written: a new file, the file it was read from, or an open descriptor."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, UsageError
from paramctl.files import undo_journal
from paramctl.files.sources import Source


class NewFile(NamedTuple):
    """Write to `path`; an existing file is replaced only with `force`."""

    path: Path
    force: bool = False


class InPlace(NamedTuple):
    """Replace the file that `source` was read from; with `patch`, change its bytes inside the file."""

    source: Source
    patch: bool = False


class Stream(NamedTuple):
    """Write forward into a descriptor that is already open (a pipe)."""

    fd: int


Target = NewFile | InPlace | Stream


def destination(target: NewFile | InPlace) -> tuple[Path, os.stat_result | None]:
    """Return the file that will be written, after links, and the stat result of an existing one.

    Raises errors before any work is done. An interrupted patch of the file is rolled back first: its journal
    must not outlive the file.
    """
    path, previous = _checked_new(target) if isinstance(target, NewFile) else _checked_in_place(target)
    return (path, path.stat()) if undo_journal.roll_back(path) else (path, previous)


def _checked_new(target: NewFile) -> tuple[Path, os.stat_result | None]:
    """Return the real path and stat result for a new file. Raises UsageError or FileError if it cannot be written."""
    path = target.path
    real = Path(os.path.realpath(path))
    try:
        previous = real.stat()
    except FileNotFoundError:
        previous = None
    except OSError as error:
        raise FileError(f"cannot write: {error.strerror}", file=str(path)) from None
    _check_unshared(path, real, previous, hint="name another file, or remove this one first")
    if previous is not None:
        if not stat.S_ISREG(previous.st_mode):
            kind = "a directory" if stat.S_ISDIR(previous.st_mode) else "not a regular file"
            raise UsageError(f"is {kind}", hint="name a file for -o", file=str(path))
        if not target.force:
            raise UsageError("exists already", hint="add -f to replace it", file=str(path))
        _check_writable(path, real)
    if not real.parent.is_dir():
        raise FileError(f"there is no directory {real.parent}", hint="make it first", file=str(path))
    return real, previous


def _checked_in_place(target: InPlace) -> tuple[Path, os.stat_result]:
    """Return the real path and stat result of the file to replace. Raises UsageError or FileError if it cannot be."""
    source = target.source
    if source.path is None:
        raise UsageError("standard input has no place to write back to", hint="use -o FILE instead of -i")
    named, real, info = Path(source.name), source.path, os.fstat(source.fileno())
    _check_unshared(named, real, info, hint="write a copy with -o FILE")
    _check_writable(named, real)
    return real, info


def _check_unshared(named: Path, real: Path, info: os.stat_result | None, *, hint: str) -> None:
    """Raise UsageError for a file that other names lead to; `info` is None if there is no file yet."""
    if named.is_symlink() and _content_addressed(real):
        what = f"is a link into a model cache ({real}), which other links share"
        raise UsageError(what, hint=hint, file=str(named))
    if info is not None and stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
        what = f"has {info.st_nlink} names (hard links), and replacing it would separate them"
        raise UsageError(what, hint=hint, file=str(named))


def _content_addressed(path: Path) -> bool:
    """Return whether a file is named after a hash of its content, as in the `blobs` of a model cache."""
    name = path.name
    return path.parent.name == "blobs" or (len(name) in (40, 64) and set(name) <= set("0123456789abcdef"))


def _check_writable(named: Path, real: Path) -> None:
    """Raise FileError if the file is read-only."""
    try:
        mode = real.stat().st_mode
    except OSError:
        raise FileError("changed while it was being read; nothing was written", hint="run it again") from None
    if not os.access(real, os.W_OK) or not mode & 0o222:
        raise FileError("is read-only", hint="write elsewhere with -o, or make it writable first", file=str(named))
