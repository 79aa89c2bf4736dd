"""Keep an undo journal of a file while its bytes are changed in place.

The journal lies beside the file as `.NAME.paramctl-journal`, with a digest in place of a long NAME, and gets that name
only when all of it is synced: if it exists, the file may be half changed, and its old bytes are known. The writer
holds the journal's lock; a journal without a lock was left by a writer that was killed, and is rolled back before the
file is used.

The journal holds the old bytes of every range in sequence, then a description of the ranges in JSON, then the
length of that description and its SHA-256.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from paramctl.errors import FileError
from paramctl.files import checksums, temporary
from paramctl.files.content import CHUNK
from paramctl.files.kernel_copy import read_at, write_all, write_at
from paramctl.progress import ProgressCallback, ignore

_TRAILER = struct.Struct("<16sIQ32s")  # magic, version, bytes of the description, its SHA-256
_MAGIC = b"paramctl journal"
_VERSION = 1
_LONGEST = 64 << 20  # bytes of the longest description: over a million runs
_SAMPLES = 64  # places of what stays that tell whether the file is still the same
_SAMPLE = 4096  # bytes at each
_TORN = 2  # runs that one writer that is killed, and one roll-back that is, can leave neither old nor new


class ChangedRange(NamedTuple):
    """`nbytes` bytes of the file that change, from `offset` on, and the CRC-32 of the old and of the new bytes."""

    offset: int
    nbytes: int
    old: int
    new: int


@contextlib.contextmanager
def undo_on_error(file: Path, fd: int, runs: Sequence[ChangedRange], check: Callable[[], None]) -> Iterator[None]:
    """Keep a journal while those ranges of `file`, open as `fd`, are changed; undo the change after an error.

    `check` raises if the file is not the one in which the ranges were found; it is called when no other
    writer can start. Raises FileError if another process is changing the file.
    """
    path, begun, whole = temporary.journal_of(file), False, False
    with temporary.file_beside(file) as (journal, name):
        _write(journal, fd, file, runs)
        try:
            _publish(name, path)
            check()
            begun = True
            yield
            whole = True
            _remove(path)
        except BaseException:
            # Without its journal a change counts, and an undoing that is cut short could not be finished.
            if begun and (not whole or _is_at(path, journal)):
                with _explain_half_changed(file):
                    _restore(fd, _only_changed(fd, _old_bytes(journal, runs)))
            if _is_at(path, journal):
                _remove(path)
            raise


def roll_back(file: Path, on_progress: ProgressCallback = ignore) -> int:
    """Undo an interrupted change of `file` and return the bytes restored; 0 if there was none.

    Raises FileError if the change is still in progress, or if its journal is damaged, belongs to another
    file, or may not be read.
    """
    path = temporary.journal_of(file)
    try:
        path.lstat()
    except (OSError, ValueError):  # there is none, or none can be: the name would be too long
        return 0
    runs: list[ChangedRange] = []
    with _explain_failure(file, path), _open_for_changing(path) as journal:
        if not temporary.lock(journal):
            raise FileError("is being changed by another paramctl", hint="try again when it is done", file=str(file))
        if not _is_at(path, journal):  # its writer was done just now
            return 0
        with _open_for_changing(file) as fd:
            _check_owner(journal, fd, path)
            runs = _read_checked(journal, fd, file, path)
            total = sum(run.nbytes for run in runs)
            # All of it, whatever the file seems to hold: after a sync that failed, the disk may hold something else.
            _restore(
                fd, _old_bytes(journal, runs), lambda done: on_progress("undoing an interrupted change", done, total)
            )
        _remove(path)
    return sum(run.nbytes for run in runs)


def _write(journal: int, fd: int, file: Path, runs: Sequence[ChangedRange]) -> None:
    """Write and sync a whole journal."""
    info = os.fstat(fd)
    for run in runs:
        data = read_at(fd, run.nbytes, run.offset)
        if checksums.crc32(data) != run.old:
            raise FileError("changed while it was being read; nothing was written", hint="run it again")
        write_all(journal, data)
    description = {
        "file": file.name,
        "inode": info.st_ino,
        "size": info.st_size,
        "boot": boot_id(),
        "runs": runs,
        "rest": [(at, n, checksums.crc32(read_at(fd, n, at))) for at, n in _samples(info.st_size, runs)],
    }
    text = json.dumps(description).encode()
    if len(text) > _LONGEST:
        raise FileError(
            f"--patch does not apply: {len(runs):,} separate ranges would change",
            hint="leave out --patch: -i alone writes the file anew",
        )
    write_all(journal, text + _TRAILER.pack(_MAGIC, _VERSION, len(text), _digest(text)))
    temporary.copy_owner_and_mode(journal, info)  # who may change the file may undo what was changed
    os.fsync(journal)


def _publish(name: Path, path: Path) -> None:
    """Give a journal the name that makes it valid."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise FileError("is being changed by another paramctl", hint="try again when it is done") from None
    name.unlink()
    temporary.sync_directory(path.parent)


def _remove(path: Path) -> None:
    """Remove a journal: the file is whole."""
    path.unlink()
    with contextlib.suppress(OSError):  # it may come back after a power cut, and would undo a change then: no harm
        temporary.sync_directory(path.parent)


def _old_bytes(journal: int, runs: Sequence[ChangedRange]) -> Iterator[tuple[ChangedRange, bytes]]:
    """Yield each range with its old bytes."""
    at = 0
    for run in runs:
        yield run, read_at(journal, run.nbytes, at)
        at += run.nbytes


def _only_changed(fd: int, held: Iterable[tuple[ChangedRange, bytes]]) -> Iterator[tuple[ChangedRange, bytes]]:
    """Yield the ranges whose bytes differ by now: a full disk may refuse even to rewrite equal bytes."""
    return ((run, old) for run, old in held if read_at(fd, run.nbytes, run.offset) != old)


def _restore(
    fd: int, held: Iterable[tuple[ChangedRange, bytes]], on_progress: Callable[[int], None] = lambda done: None
) -> None:
    """Write the old bytes back and sync them."""
    done = 0
    for run, old in held:
        write_at(fd, old, run.offset)
        done += run.nbytes
        on_progress(done)
    os.fsync(fd)


def _read_checked(journal: int, fd: int, file: Path, path: Path) -> list[ChangedRange]:
    """Return the ranges of a journal. Raises FileError unless it is whole and belongs to the file."""
    try:
        description, held = _read_description(journal)
        runs = [ChangedRange(*map(_checked_count, run)) for run in description["runs"]]
        rest = [(_checked_count(at), _checked_count(n), _checked_count(crc)) for at, n, crc in description["rest"]]
        inode, size = _checked_count(description["inode"]), _checked_count(description["size"])
        same_boot = description["boot"] == boot_id() != ""
        if sum(run.nbytes for run in runs) != held or len(rest) > _SAMPLES:
            raise ValueError("not what is written")
        if any(n > _SAMPLE or at + n > size for at, n, _ in rest):
            raise ValueError("a sample")
        if any(run.nbytes > CHUNK or run.offset + run.nbytes > size for run in runs):
            raise ValueError("a run")
        if any(checksums.crc32(old) != run.old for run, old in _old_bytes(journal, runs)):
            raise ValueError("what it held")
    except (ValueError, TypeError, KeyError, struct.error, RecursionError):
        hint = f"restore the file from a copy, or delete {path} if the file is as it should be"
        raise FileError("has an interrupted change, and its journal is damaged", hint=hint) from None
    info = os.fstat(fd)
    if (inode, size) != (info.st_ino, info.st_size):
        raise FileError("was replaced since its change was interrupted; nothing was undone", hint=_delete_hint(path))
    torn = sum(checksums.crc32(read_at(fd, run.nbytes, run.offset)) not in (run.old, run.new) for run in runs)
    stayed = all(checksums.crc32(read_at(fd, n, at)) == crc for at, n, crc in rest)
    if not stayed or (same_boot and torn > _TORN):
        raise FileError("was written to since its change was interrupted; nothing was undone", hint=_delete_hint(path))
    return runs


def _check_owner(journal: int, fd: int, path: Path) -> None:
    """Raise FileError if the journal's owner could place it beside the file but may not write the file."""
    theirs, info = os.fstat(journal).st_uid, os.fstat(fd)
    if theirs not in (0, os.geteuid(), info.st_uid) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FileError(
            f"has a journal of user {theirs}, who may not write it; nothing was undone", hint=_delete_hint(path)
        )


def _read_description(journal: int) -> tuple[dict[str, Any], int]:
    """Return a journal's description, and the number of bytes before it."""
    size = os.fstat(journal).st_size
    trailer = os.pread(journal, _TRAILER.size, max(size - _TRAILER.size, 0))
    magic, version, nbytes, digest = _TRAILER.unpack(trailer)
    start = size - _TRAILER.size - nbytes
    if (magic, version) != (_MAGIC, _VERSION) or start < 0 or nbytes > _LONGEST:
        raise ValueError("no journal")
    text = read_at(journal, nbytes, start)
    if _digest(text) != digest:
        raise ValueError("not what was written")
    return json.loads(text), start


def _digest(text: bytes) -> bytes:
    """Return the SHA-256 of a description."""
    import hashlib  # which loads a library of 4 MiB, and looking at a file must not pay for it

    return hashlib.sha256(text).digest()


def _checked_count(n: object) -> int:
    """Return `n` if it is a whole number, 0 or more. Raises ValueError if not."""
    if type(n) is not int or n < 0:
        raise ValueError("no count")
    return n


def _samples(size: int, runs: Sequence[ChangedRange]) -> Iterator[tuple[int, int]]:
    """Yield offset and length of samples of the unchanged bytes, spread evenly over the file."""
    changing = sorted(runs)
    starts = [run.offset for run in changing]
    for i in range(_SAMPLES):
        at = size * i // _SAMPLES
        before = bisect_right(starts, at)
        if before and at < changing[before - 1].offset + changing[before - 1].nbytes:
            continue
        end = starts[before] if before < len(starts) else size
        yield at, min(_SAMPLE, end - at, size // _SAMPLES + 1)


def boot_id() -> str:
    """Return an identifier of this run of the kernel, or "" if the system has none.

    As long as the kernel runs, written bytes survive even if the process that wrote them is killed.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_at(path: Path, journal: int) -> bool:
    """Return whether a path still names the open journal."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(journal))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _open_for_changing(path: Path) -> Iterator[int]:
    """Open a file for reading and writing."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        temporary.close_quietly(fd)


@contextlib.contextmanager
def _explain_half_changed(file: Path) -> Iterator[None]:
    """Turn an OSError while old bytes are put back into a FileError that says what to do."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"is half changed, and its old bytes could not be restored: {error.strerror}",
            hint=f"its old bytes are safe in {temporary.journal_of(file)}: run 'paramctl recover {file.name}'",
        ) from error


@contextlib.contextmanager
def _explain_failure(file: Path, path: Path) -> Iterator[None]:
    """Turn an OSError while a change is undone into a FileError of one line."""
    try:
        yield
    except FileNotFoundError:
        if path.exists():
            raise FileError(
                "does not exist, but the journal of an interrupted change does", hint=_delete_hint(path)
            ) from None
    except OSError as error:
        raise FileError(
            f"has an interrupted change, which cannot be undone: {error.strerror}",
            hint=f"run 'paramctl recover {file.name}' as a user who may write it",
        ) from None
    except FileError as error:
        error.file = error.file or str(file)
        raise


def _delete_hint(path: Path) -> str:
    """Return the hint to delete a journal that does not apply."""
    return f"delete {path} if the file is as it should be"
