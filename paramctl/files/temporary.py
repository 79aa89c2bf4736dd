"""Make temporary files, beside the file that is written or without a name, and lock files."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FRESH = 60  # seconds after its last write in which a temporary file is left alone, locked or not
LONGEST = 255  # bytes of a file name
KEPT = 200  # bytes of it that the names of temporary files keep
JOURNAL = ".paramctl-journal"
_SUFFIX = ".tmp"


@contextlib.contextmanager
def file_beside(path: Path, mode: int = 0o600) -> Iterator[tuple[int, Path]]:
    """Open a temporary file beside `path`, and remove it at the end unless it was renamed.

    It is locked while it is written: one without a lock was left by a process that was killed. Until it gets
    its final mode only its owner may read it, because the file it replaces may be private.
    """
    _remove_stale(path)
    name = path.with_name(f"{_stem(path)}{os.urandom(4).hex()}{_SUFFIX}")
    fd = -1
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        lock(fd)
        yield fd, name
    finally:
        try:
            with contextlib.suppress(OSError):  # renamed, or it stays and the next write removes it
                name.unlink()
        finally:
            if fd >= 0:
                close_quietly(fd)


def journal_of(file: Path) -> Path:
    """Return the path of a file's undo journal, whether it exists or not.

    A name that would be too long for a file system is replaced by its digest.
    """
    name = file.name
    if len(os.fsencode(name)) > LONGEST - len(f".{JOURNAL}"):
        import hashlib

        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return file.with_name(f".{name}{JOURNAL}")


def unnamed_file(directory: str | Path) -> int:
    """Open a file in `directory` that has no name and disappears when it is closed."""
    flags = os.O_RDWR | os.O_CLOEXEC
    if hasattr(os, "O_TMPFILE"):
        try:
            return os.open(directory, flags | os.O_TMPFILE, 0o600)
        except OSError:
            pass  # not every file system has it
    fd, name = tempfile.mkstemp(dir=directory)
    os.unlink(name)  # noqa: PTH108
    return fd


def close_quietly(fd: int) -> None:
    """Close a file whose content was already synced; an error at this point changes nothing."""
    with contextlib.suppress(OSError):
        os.close(fd)


def lock(fd: int) -> bool:
    """Lock an open file and return whether that worked; some file systems have no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def locked_by_another(fd: int) -> bool:
    """Return whether another process holds the lock of an open file; if not, it is ours until it is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # the file system knows no locks
        pass
    return False


def unlock(fd: int) -> None:
    """Release the lock of an open file."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)


def copy_owner_and_mode(fd: int, previous: os.stat_result | None) -> None:
    """Give a new file the owner and mode of the file it replaces."""
    if previous is None:
        return
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.fchown(fd, previous.st_uid, previous.st_gid)
    os.fchmod(fd, stat.S_IMODE(previous.st_mode))


def sync_directory(directory: Path) -> None:
    """Sync a directory, so that the names in it survive a power cut."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _stem(path: Path) -> str:
    """Return the beginning of the names of all temporary files for `path`."""
    start = os.fsencode(path.name)[:KEPT].decode("utf-8", "ignore")
    return f".{start}.paramctl-"


def _remove_stale(path: Path) -> None:
    """Remove temporary files of `path` that killed writers left behind."""
    for name in path.parent.glob(f"{glob.escape(_stem(path))}{'[0-9a-f]' * 8}{_SUFFIX}"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            found = name.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1 or time.time() - found.st_mtime < FRESH:
                continue
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if lock(fd):
                    name.unlink()
            finally:
                os.close(fd)
