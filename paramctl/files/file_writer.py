"""The one function that writes: segments into a new file, in place of an old one, into it, or down a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, ReaderLeft, UsageError
from paramctl.files import checksums, temporary, undo_journal
from paramctl.files.content import CHUNK, Buffer, Extent
from paramctl.files.kernel_copy import can_share, copy, get_at, put, put_at, reserve
from paramctl.files.segments import Segment, Summed, gathered, pieces, read_for, stays
from paramctl.files.sources import Source
from paramctl.files.targets import InPlace, NewFile, Stream, Target, destination
from paramctl.files.undo_journal import Run
from paramctl.progress import ProgressCallback, ignore

BLOCK = 4096  # bytes that a change in place rounds its ends to

Verify = Callable[[Path], None]


class Plan(NamedTuple):
    """What a write would do: `method` is `patch`, `reflink`, `copy` or `stream`, the others count bytes.

    `copied` are taken over from files by the kernel, `made` are new, `read` pass through memory for them.
    """

    method: str
    copied: int
    made: int
    read: int


def write(
    segments: Iterable[Segment],
    target: Target,
    sources: Iterable[Source],
    verify: Verify,
    on_progress: ProgressCallback = ignore,
    guard: Source | None = None,
) -> int:
    """Write `segments` and return how many bytes that were.

    A file is written beside its place under a temporary name, synced, re-read by `verify`, and only
    then renamed: whoever looks sees the old file or the whole new one. A patch writes what differs
    into the file, under an undo journal. If one of `sources` changed meanwhile nothing is written; `guard`
    is one that whoever changes another file that must agree with this one locks too, as they lock theirs.
    Raises FileError where the system refuses, UsageError where a file exists and was not to be
    replaced, or cannot be patched.
    """
    sources, segments = tuple(sources), tuple(segments)
    if isinstance(target, Stream):
        check_stream(target, sources)
        with _reported("standard output"):
            written = _emit(segments, target.fd, on_progress)
        for source in sources:
            source.check_unchanged("what went to standard output is of no use")
        return written
    path, previous = destination(target)
    with _reported(str(path)):
        if isinstance(target, InPlace) and target.patch:
            return _patch(segments, target.source, path, sources, verify, on_progress, guard)
        force = previous is not None or (isinstance(target, NewFile) and target.force)
        return _replace(segments, path, previous, force, sources, verify, on_progress, guard)


def check_stream(target: Stream, sources: Iterable[Source]) -> None:
    """Raise UsageError if standard output is one of the files that are read for it."""
    out = os.fstat(target.fd)
    if any((out.st_dev, out.st_ino) == source.identity[:2] for source in sources):
        raise UsageError("standard output is the very file that is read", hint="use -i to change it")


def plan(segments: Iterable[Segment], target: Target | None) -> Plan:
    """What `write` would do. Raises UsageError where a patch does not apply."""
    segments = tuple(segments)
    read = sum(map(read_for, segments))
    extents = [segment for segment in segments if isinstance(segment, Extent)]
    copied = sum(extent.nbytes for extent in extents)
    made = sum(segment.nbytes for segment in segments) - copied
    if target is None or isinstance(target, Stream):
        return Plan("stream", copied, made, read)
    path, _ = destination(target)
    if isinstance(target, InPlace) and target.patch:
        _check_patchable(segments, target.source)
        made = _changing(segments, target.source)
        return Plan("patch", 0, made, read + made)
    shared = extents and all(can_share(source, path.parent) for source in {extent.source for extent in extents})
    return Plan("reflink" if shared else "copy", copied, made, read)


# --- a new file, or another in place of an old one -------------------------------------------------


def _replace(
    segments: Sequence[Segment],
    path: Path,
    previous: os.stat_result | None,
    force: bool,
    sources: Sequence[Source],
    verify: Verify,
    on_progress: ProgressCallback,
    guard: Source | None,
) -> int:
    takes = _room_for(segments, path)
    with temporary.beside(path, 0o666 if previous is None else 0o600) as (fd, name):
        reserve(fd, takes)
        written = _emit(segments, fd, on_progress)
        temporary.restore(fd, previous)
        on_progress("syncing", 0, written)
        os.fsync(fd)
        verify(name)
        with _nobody_else(path, sources, guard):
            _check_unchanged(sources)
            if force:
                name.replace(path)
            else:
                _link_new(name, path)
        # Whether or not the new name survives a power cut it shows a whole file, and the rename cannot
        # be taken back: a refusal here is no failure of the write.
        with contextlib.suppress(OSError):
            temporary.sync_directory(path.parent)
    return written


def _emit(segments: Sequence[Segment], fd: int, on_progress: ProgressCallback) -> int:
    """Write every segment to `fd`, front to back."""
    at, total = 0, sum(segment.nbytes for segment in segments)
    for piece in gathered(pieces(segments)):
        if isinstance(piece, Extent):
            for n in copy(piece, fd, at):
                at += n
                on_progress("writing", at, total)
        else:
            put(fd, piece)
            at += len(piece)
            on_progress("writing", at, total)
    return at


@contextlib.contextmanager
def _nobody_else(path: Path, sources: Iterable[Source], guard: Source | None) -> Iterator[None]:
    """Keep out whoever would replace or patch the same file between our last look at it and our replacing it."""
    with contextlib.ExitStack() as stack:
        for source in sources:
            if source.path == path or source is guard:
                stack.enter_context(_ours(source.fileno()))
        yield


@contextlib.contextmanager
def _ours(fd: int) -> Iterator[None]:
    """Hold the lock of an open file. Raises FileError if somebody else has it."""
    if temporary.locked_by_another(fd):
        raise FileError("is being changed by another paramctl; nothing was written", hint="run it again")
    try:
        yield
    finally:
        temporary.unlock(fd)


def _link_new(name: Path, path: Path) -> None:
    """Give the file its name, unless somebody else made one of that name meanwhile."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise UsageError("exists already", hint="add -f to replace it", file=str(path)) from None
    except OSError:  # file systems without hard links
        name.replace(path)
    else:
        with contextlib.suppress(OSError):  # tried once more at the end
            name.unlink()  # before the directory is synced, or a power cut brings a second name back


# --- changed where it lies -------------------------------------------------------------------------


def _patch(
    segments: Sequence[Segment],
    source: Source,
    path: Path,
    sources: Sequence[Source],
    verify: Verify,
    on_progress: ProgressCallback,
    guard: Source | None,
) -> int:
    """Write what differs from `source` into it. All of that is made, and what it was is kept, before the first byte."""
    _check_patchable(segments, source)
    changed = _changing(segments, source)
    _check_free(path, 2 * changed, source.size)
    with contextlib.ExitStack() as stack:
        spool = temporary.nameless(path.parent)
        stack.callback(temporary.let_go, spool)
        runs = _make(segments, source, spool, changed, on_progress)
        if not runs:
            _check_unchanged(sources)
            return 0
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(temporary.let_go, fd)
        stack.enter_context(_ours(fd))
        if guard is not None:
            stack.enter_context(_ours(guard.fileno()))
        written = sum(run.nbytes for run in runs)
        with undo_journal.kept(path, fd, runs, lambda: _check_unchanged(sources)):
            done = 0
            for run in runs:
                put_at(fd, get_at(spool, run.nbytes, done), run.offset)
                done += run.nbytes
                on_progress("writing", done, written)
            on_progress("syncing", 0, written)
            os.fsync(fd)
            if not os.path.samestat(os.fstat(fd), path.stat()):
                raise FileError("was replaced while it was being changed; the new file is as it was")
            verify(path)
    return written


def _check_patchable(segments: Sequence[Segment], source: Source) -> None:
    """Raise UsageError unless the file keeps its size, and every byte of it that stays keeps its place."""
    hint = "leave out --patch: -i alone writes the file anew, and replaces it"
    moved = sum(
        part.nbytes
        for part, at in _placed(segments)
        if isinstance(part, Extent) and part.source is source and part.offset != at
    )
    if moved:
        raise UsageError(f"--patch does not apply: {moved:,} bytes of the file would move", hint=hint)
    nbytes = sum(segment.nbytes for segment in segments)
    if nbytes != source.size:
        raise UsageError(f"--patch does not apply: {source.size:,} bytes would become {nbytes:,}", hint=hint)


def _changing(segments: Sequence[Segment], source: Source) -> int:
    """Bytes that are made anew: as many as may differ from what `source` holds there."""
    return sum(part.nbytes for part, at in _placed(segments) if not stays(part, source, at))


def _placed(segments: Iterable[Segment]) -> Iterator[tuple[Segment, int]]:
    """Every part of `segments`, and where it begins in what they make."""
    at = 0
    for segment in segments:
        for part in segment.parts if isinstance(segment, Summed) else (segment,):
            yield part, at
            at += part.nbytes


def _make(
    segments: Sequence[Segment], source: Source, spool: int, total: int, on_progress: ProgressCallback
) -> list[Run]:
    """Make every byte that is not what it was, put those into `spool`, and say where they belong."""
    runs: list[Run] = []
    at = made = 0
    for piece in pieces(segments):
        nbytes = piece.nbytes if isinstance(piece, Extent) else len(piece)
        if not (isinstance(piece, Extent) and stays(piece, source, at)):
            for run, data in _differing(piece, source, at):
                put(spool, data)
                runs.append(run)
            made += nbytes
            on_progress("making what changes", made, total)
        at += nbytes
    return runs


def _differing(piece: Extent | Buffer, source: Source, at: int) -> Iterator[tuple[Run, bytes]]:
    """Where a piece that belongs at `at` differs from what `source` holds there, CHUNK by CHUNK."""
    nbytes = piece.nbytes if isinstance(piece, Extent) else len(piece)
    for start in range(0, nbytes, CHUNK):
        n = min(CHUNK, nbytes - start)
        if isinstance(piece, Extent):
            new = piece.source.read(piece.offset + start, n)
        else:
            new = bytes(memoryview(piece).cast("B")[start : start + n])
        old = source.read(at + start, n)
        if old == new:
            continue
        first, last = 0, n
        while old[first : first + BLOCK] == new[first : first + BLOCK]:
            first += BLOCK
        while last - BLOCK > first and old[last - BLOCK : last] == new[last - BLOCK : last]:
            last -= BLOCK
        old, new = old[first:last], new[first:last]
        yield Run(at + start + first, last - first, checksums.crc32(old), checksums.crc32(new)), new


# --- what must hold before and after ---------------------------------------------------------------


def _room_for(segments: Sequence[Segment], path: Path) -> int:
    """Bytes to reserve for a file; none where it shares blocks with its source. Raises FileError if it cannot fit."""
    nbytes = sum(segment.nbytes for segment in segments)
    needed = _needed(segments, path.parent)
    _check_free(path, needed, nbytes)
    return nbytes if needed == nbytes else 0


def check_room(several: Iterable[Sequence[Segment]], directory: Path) -> None:
    """Raise FileError unless there is room in a directory for several files."""
    needed, free = sum(_needed(segments, directory) for segments in several), _free(directory)
    if needed > free:
        what = f"cannot write: it takes {needed:,} bytes, and {free:,} are free there"
        raise FileError(what, hint=_ROOM, file=str(directory))


def _needed(segments: Sequence[Segment], directory: Path) -> int:
    """Bytes that a file takes there beside those it shares with its sources."""
    extents = [segment for segment in segments if isinstance(segment, Extent)]
    shared = {source for source in {extent.source for extent in extents} if can_share(source, directory)}
    kept = sum(extent.nbytes for extent in extents if extent.source in shared)
    return sum(segment.nbytes for segment in segments) - kept


def _check_free(path: Path, needed: int, nbytes: int) -> None:
    """Raise FileError unless `needed` bytes are free, and a file of `nbytes` is allowed."""
    free, limit = _free(path.parent), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if needed > free:
        raise FileError(
            f"cannot write: it takes {needed:,} bytes, and {free:,} are free there", hint=_ROOM, file=str(path)
        )
    if limit not in (resource.RLIM_INFINITY, -1) and nbytes > limit:
        raise FileError(
            f"cannot write: it takes {nbytes:,} bytes, and 'ulimit -f' allows {limit:,} a file", file=str(path)
        )


def _free(directory: Path) -> float:
    """Bytes that may be written there; infinite where the file system does not say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize if found.f_blocks else float("inf")


@contextlib.contextmanager
def _reported(file: str) -> Iterator[None]:
    """Say an operating system's refusal in one line that names the file."""
    try:
        yield
    except BrokenPipeError:
        raise ReaderLeft("the reader is gone, and did not get all of it", file=file) from None
    except OSError as error:
        hint = _ROOM if error.errno in _NO_ROOM else ""
        raise FileError(f"cannot write: {error.strerror}", hint=hint, file=file) from error


_ROOM = "make room there or write elsewhere with -o"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _check_unchanged(sources: Iterable[Source]) -> None:
    for source in sources:
        source.check_unchanged()


__all__ = ["InPlace", "NewFile", "Plan", "Stream", "Target", "Verify", "destination", "plan", "write"]
