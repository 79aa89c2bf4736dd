"""The undo journal of a file that is changed in place: what it held, until every change is on the disk.

It lies beside the file as `.NAME.paramctl-journal`, and gets that name only when all of it is synced:
where it is, the file may be half changed, and what it held is known. Its writer holds its lock; one that
nobody holds was left by a writer that was killed, and is rolled back before anybody uses the file.

The journal holds the old bytes of every run one after the other, a description of them in JSON, and at
its end how long that is, and its SHA-256.
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
from paramctl.files.kernel_copy import get_at, put, put_at
from paramctl.progress import ProgressCallback, ignore

_TRAILER = struct.Struct("<16sIQ32s")  # magic, version, bytes of the description, its SHA-256
_MAGIC = b"paramctl journal"
_VERSION = 1
_LONGEST = 64 << 20  # bytes of the longest description: over a million runs
_SAMPLES = 64  # places of what stays that tell whether the file is still the same
_SAMPLE = 4096  # bytes at each
_TORN = 2  # runs that one writer that is killed, and one roll-back that is, can leave neither old nor new


class Run(NamedTuple):
    """`nbytes` bytes of the file from `offset` on that change, and the CRC-32 of the old and of the new ones."""

    offset: int
    nbytes: int
    old: int
    new: int


@contextlib.contextmanager
def kept(file: Path, fd: int, runs: Sequence[Run], check: Callable[[], None]) -> Iterator[None]:
    """Let those runs of `file`, open as `fd`, be changed inside: all of them, or after an error none.

    `check` raises if the file is no more what it was when the runs were found; it is asked when nobody
    else can begin to change it. Raises FileError if somebody else is doing so.
    """
    path, begun, whole = temporary.journal_of(file), False, False
    with temporary.beside(file) as (journal, name):
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
                with _half_changed(file):
                    _restore(fd, _begun(fd, _held(journal, runs)))
            if _is_at(path, journal):
                _remove(path)
            raise


def roll_back(file: Path, on_progress: ProgressCallback = ignore) -> int:
    """Undo a change of `file` that was interrupted, and return its bytes; 0 if there was none.

    Raises FileError if one is still under way, or if its journal is damaged, of another file, or not to
    be used for lack of permission.
    """
    path = temporary.journal_of(file)
    try:
        path.lstat()
    except (OSError, ValueError):  # there is none, or none can be: the name would be too long
        return 0
    runs: list[Run] = []
    with _reported(file, path), _opened(path) as journal:
        if not temporary.lock(journal):
            raise FileError("is being changed by another paramctl", hint="try again when it is done", file=str(file))
        if not _is_at(path, journal):  # its writer was done just now
            return 0
        with _opened(file) as fd:
            _check_owner(journal, fd, path)
            runs = _read(journal, fd, file, path)
            total = sum(run.nbytes for run in runs)
            # All of it, whatever the file seems to hold: after a sync that failed, the disk may hold something else.
            _restore(fd, _held(journal, runs), lambda done: on_progress("undoing an interrupted change", done, total))
        _remove(path)
    return sum(run.nbytes for run in runs)


def _write(journal: int, fd: int, file: Path, runs: Sequence[Run]) -> None:
    """Write all of a journal, and sync it."""
    info = os.fstat(fd)
    for run in runs:
        data = get_at(fd, run.nbytes, run.offset)
        if checksums.crc32(data) != run.old:
            raise FileError("changed while it was being read; nothing was written", hint="run it again")
        put(journal, data)
    description = {
        "file": file.name,
        "inode": info.st_ino,
        "size": info.st_size,
        "boot": boot(),
        "runs": runs,
        "rest": [(at, n, checksums.crc32(get_at(fd, n, at))) for at, n in _samples(info.st_size, runs)],
    }
    text = json.dumps(description).encode()
    if len(text) > _LONGEST:
        raise FileError(f"--patch does not apply: {len(runs):,} runs would change", hint="leave it out: -i alone")
    put(journal, text + _TRAILER.pack(_MAGIC, _VERSION, len(text), _digest(text)))
    temporary.restore(journal, info)  # who may change the file may undo what was changed
    os.fsync(journal)


def _publish(name: Path, path: Path) -> None:
    """Give a journal the name that makes it count."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise FileError("is being changed by another paramctl", hint="try again when it is done") from None
    name.unlink()
    temporary.sync_directory(path.parent)


def _remove(path: Path) -> None:
    """Make a journal count no more: the file is whole."""
    path.unlink()
    with contextlib.suppress(OSError):  # it may come back after a power cut, and would undo a change then: no harm
        temporary.sync_directory(path.parent)


def _held(journal: int, runs: Sequence[Run]) -> Iterator[tuple[Run, bytes]]:
    """Each run, and what it was."""
    at = 0
    for run in runs:
        yield run, get_at(journal, run.nbytes, at)
        at += run.nbytes


def _begun(fd: int, held: Iterable[tuple[Run, bytes]]) -> Iterator[tuple[Run, bytes]]:
    """Those whose change was begun: a full disk may not take even what is there, written a second time."""
    return ((run, old) for run, old in held if get_at(fd, run.nbytes, run.offset) != old)


def _restore(
    fd: int, held: Iterable[tuple[Run, bytes]], on_progress: Callable[[int], None] = lambda done: None
) -> None:
    """Put the old bytes back, and sync them."""
    done = 0
    for run, old in held:
        put_at(fd, old, run.offset)
        done += run.nbytes
        on_progress(done)
    os.fsync(fd)


def _read(journal: int, fd: int, file: Path, path: Path) -> list[Run]:
    """The runs of a journal. Raises FileError unless it is whole, and the file the one it was written for."""
    try:
        description, held = _description(journal)
        runs = [Run(*map(_count, run)) for run in description["runs"]]
        rest = [(_count(at), _count(n), _count(crc)) for at, n, crc in description["rest"]]
        inode, size = _count(description["inode"]), _count(description["size"])
        same_boot = description["boot"] == boot() != ""
        if sum(run.nbytes for run in runs) != held or len(rest) > _SAMPLES:
            raise ValueError("not what is written")
        if any(n > _SAMPLE or at + n > size for at, n, _ in rest):
            raise ValueError("a sample")
        if any(run.nbytes > CHUNK or run.offset + run.nbytes > size for run in runs):
            raise ValueError("a run")
        if any(checksums.crc32(old) != run.old for run, old in _held(journal, runs)):
            raise ValueError("what it held")
    except (ValueError, TypeError, KeyError, struct.error, RecursionError):
        hint = f"restore the file from a copy, or delete {path} if the file is as it should be"
        raise FileError("was being changed when it was interrupted, and its journal is damaged", hint=hint) from None
    info = os.fstat(fd)
    if (inode, size) != (info.st_ino, info.st_size):
        raise FileError("was replaced since its change was interrupted; nothing was undone", hint=_delete(path))
    torn = sum(checksums.crc32(get_at(fd, run.nbytes, run.offset)) not in (run.old, run.new) for run in runs)
    stayed = all(checksums.crc32(get_at(fd, n, at)) == crc for at, n, crc in rest)
    if not stayed or (same_boot and torn > _TORN):
        raise FileError("was written to since its change was interrupted; nothing was undone", hint=_delete(path))
    return runs


def _check_owner(journal: int, fd: int, path: Path) -> None:
    """Raise FileError for the journal of somebody who may not write the file, but could lay it beside it."""
    theirs, info = os.fstat(journal).st_uid, os.fstat(fd)
    if theirs not in (0, os.geteuid(), info.st_uid) and not info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FileError(f"has a journal of user {theirs}, who may not write it; nothing was undone", hint=_delete(path))


def _description(journal: int) -> tuple[dict[str, Any], int]:
    """What a journal says of itself, and how many bytes it holds before that."""
    size = os.fstat(journal).st_size
    trailer = os.pread(journal, _TRAILER.size, max(size - _TRAILER.size, 0))
    magic, version, nbytes, digest = _TRAILER.unpack(trailer)
    start = size - _TRAILER.size - nbytes
    if (magic, version) != (_MAGIC, _VERSION) or start < 0 or nbytes > _LONGEST:
        raise ValueError("no journal")
    text = get_at(journal, nbytes, start)
    if _digest(text) != digest:
        raise ValueError("not what was written")
    return json.loads(text), start


def _digest(text: bytes) -> bytes:
    import hashlib  # which loads a library of 4 MiB, and looking at a file must not pay for it

    return hashlib.sha256(text).digest()


def _count(n: object) -> int:
    if type(n) is not int or n < 0:
        raise ValueError("no count")
    return n


def _samples(size: int, runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """Where some of what stays lies, evenly over the file, and how many bytes to look at there."""
    changing = sorted(runs)
    starts = [run.offset for run in changing]
    for i in range(_SAMPLES):
        at = size * i // _SAMPLES
        before = bisect_right(starts, at)
        if before and at < changing[before - 1].offset + changing[before - 1].nbytes:
            continue
        end = starts[before] if before < len(starts) else size
        yield at, min(_SAMPLE, end - at, size // _SAMPLES + 1)


def boot() -> str:
    """What tells one run of the kernel from the next; empty where nothing does.

    As long as it runs, no byte that a process wrote is lost, whatever becomes of the process.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_at(path: Path, journal: int) -> bool:
    """Whether the name still is that of the open journal."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(journal))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        temporary.let_go(fd)


@contextlib.contextmanager
def _half_changed(file: Path) -> Iterator[None]:
    """Say what to do where what was changed cannot be put back at once."""
    try:
        yield
    except OSError as error:
        raise FileError(
            f"is half changed, and could not be put back: {error.strerror}",
            hint=f"its old bytes are safe in {temporary.journal_of(file)}: run 'paramctl recover {file.name}'",
        ) from error


@contextlib.contextmanager
def _reported(file: Path, path: Path) -> Iterator[None]:
    """Say in one line why an interrupted change cannot be undone."""
    try:
        yield
    except FileNotFoundError:
        if path.exists():
            raise FileError("is gone, and the journal of a change of it is left", hint=_delete(path)) from None
    except OSError as error:
        raise FileError(
            f"was being changed when it was interrupted, and this cannot be undone: {error.strerror}",
            hint=f"run 'paramctl recover {file.name}' as somebody who may write it",
        ) from None
    except FileError as error:
        error.file = error.file or str(file)
        raise


def _delete(path: Path) -> str:
    return f"delete {path} if the file is as it should be"
