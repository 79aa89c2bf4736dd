"""Write segments: into a new file, over an old one, as a patch inside it, or down a pipe."""

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
from paramctl.files.kernel_copy import can_share, copy, read_at, reserve, write_all, write_at
from paramctl.files.segments import Segment, Summed, bytes_read_for, is_unchanged, join_small_pieces, pieces
from paramctl.files.sources import Source
from paramctl.files.targets import InPlace, NewFile, Stream, Target, destination
from paramctl.files.undo_journal import ChangedRange
from paramctl.progress import ProgressCallback, ignore

BLOCK = 4096  # bytes that a change in place rounds its ends to

Verify = Callable[[Path], None]


class Plan(NamedTuple):
    """The plan of a write: `method` is `patch`, `reflink`, `copy` or `stream`; the other fields count bytes.

    `copied` are copied from files by the kernel, `made` are new, and `read` pass through memory.
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
    """Write `segments` and return the number of bytes written.

    A file is written under a temporary name in the same directory, synced, re-read by `verify`, and only
    then renamed, so that a reader sees the old file or the whole new one. A patch writes the changed bytes
    into the file, under an undo journal. If one of `sources` changed in the meantime nothing is written.
    `guard` is a file that is locked too: writers of files that must agree with each other lock the same one.
    Raises FileError if the system refuses, UsageError if the file exists and must not be replaced, or
    cannot be patched.
    """
    sources, segments = tuple(sources), tuple(segments)
    if isinstance(target, Stream):
        check_stream(target, sources)
        with _explain_failure("standard output"):
            written = _emit(segments, target.fd, on_progress)
        for source in sources:
            source.check_unchanged("what was written to standard output is unusable")
        return written
    path, previous = destination(target)
    with _explain_failure(str(path)):
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
    """Return what `write` would do. Raises UsageError if a patch does not apply."""
    segments = tuple(segments)
    read = sum(map(bytes_read_for, segments))
    extents = [segment for segment in segments if isinstance(segment, Extent)]
    copied = sum(extent.nbytes for extent in extents)
    made = sum(segment.nbytes for segment in segments) - copied
    if target is None or isinstance(target, Stream):
        return Plan("stream", copied, made, read)
    path, _ = destination(target)
    if isinstance(target, InPlace) and target.patch:
        _check_patchable(segments, target.source)
        made = _changed_bytes(segments, target.source)
        return Plan("patch", 0, made, read + made)
    shared = extents and all(can_share(source, path.parent) for source in {extent.source for extent in extents})
    return Plan("reflink" if shared else "copy", copied, made, read)


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
    """Write the segments under a temporary name, verify them, rename the file, and return its bytes."""
    takes = _bytes_to_reserve(segments, path)
    with temporary.file_beside(path, 0o666 if previous is None else 0o600) as (fd, name):
        reserve(fd, takes)
        written = _emit(segments, fd, on_progress)
        temporary.copy_owner_and_mode(fd, previous)
        on_progress("syncing", 0, written)
        os.fsync(fd)
        verify(name)
        with _exclusive_access(path, sources, guard):
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
    """Write every segment to `fd`, front to back, and return the number of bytes."""
    at, total = 0, sum(segment.nbytes for segment in segments)
    for piece in join_small_pieces(pieces(segments)):
        if isinstance(piece, Extent):
            for n in copy(piece, fd, at):
                at += n
                on_progress("writing", at, total)
        else:
            write_all(fd, piece)
            at += len(piece)
            on_progress("writing", at, total)
    return at


@contextlib.contextmanager
def _exclusive_access(path: Path, sources: Iterable[Source], guard: Source | None) -> Iterator[None]:
    """Lock the file that is about to be replaced, and `guard`, against other writers."""
    with contextlib.ExitStack() as stack:
        for source in sources:
            if source.path == path or source is guard:
                stack.enter_context(_locked(source.fileno()))
        yield


@contextlib.contextmanager
def _locked(fd: int) -> Iterator[None]:
    """Hold the lock of an open file. Raises FileError if another process holds it."""
    if temporary.locked_by_another(fd):
        raise FileError("is being changed by another paramctl; nothing was written", hint="run it again")
    try:
        yield
    finally:
        temporary.unlock(fd)


def _link_new(name: Path, path: Path) -> None:
    """Give the file its name. Raises UsageError if a file of that name was created in the meantime."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise UsageError("exists already", hint="add -f to replace it", file=str(path)) from None
    except OSError:  # file systems without hard links
        name.replace(path)
    else:
        with contextlib.suppress(OSError):  # tried once more at the end
            name.unlink()  # before the directory is synced, or a power cut brings a second name back


def _patch(
    segments: Sequence[Segment],
    source: Source,
    path: Path,
    sources: Sequence[Source],
    verify: Verify,
    on_progress: ProgressCallback,
    guard: Source | None,
) -> int:
    """Write the bytes that differ from `source` into it, and return how many they are.

    All new bytes are made, and all old ones are in the journal, before the first byte is written.
    """
    _check_patchable(segments, source)
    changed = _changed_bytes(segments, source)
    _check_free(path, 2 * changed, source.size)
    with contextlib.ExitStack() as stack:
        spool = temporary.unnamed_file(path.parent)
        stack.callback(temporary.close_quietly, spool)
        runs = _spool_changes(segments, source, spool, changed, on_progress)
        if not runs:
            _check_unchanged(sources)
            return 0
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        stack.callback(temporary.close_quietly, fd)
        stack.enter_context(_locked(fd))
        if guard is not None:
            stack.enter_context(_locked(guard.fileno()))
        written = sum(run.nbytes for run in runs)
        with undo_journal.undo_on_error(path, fd, runs, lambda: _check_unchanged(sources)):
            done = 0
            for run in runs:
                write_at(fd, read_at(spool, run.nbytes, done), run.offset)
                done += run.nbytes
                on_progress("writing", done, written)
            on_progress("syncing", 0, written)
            os.fsync(fd)
            if not os.path.samestat(os.fstat(fd), path.stat()):
                raise FileError("was replaced while it was being changed; the new file is as it was")
            verify(path)
    return written


def _check_patchable(segments: Sequence[Segment], source: Source) -> None:
    """Raise UsageError unless the file keeps its size, and every unchanged byte keeps its place."""
    hint = "leave out --patch: -i alone writes the file anew, and replaces it"
    moved = sum(
        part.nbytes
        for part, at in _with_offsets(segments)
        if isinstance(part, Extent) and part.source is source and part.offset != at
    )
    if moved:
        raise UsageError(f"--patch does not apply: {moved:,} bytes of the file would move", hint=hint)
    nbytes = sum(segment.nbytes for segment in segments)
    if nbytes != source.size:
        raise UsageError(f"--patch does not apply: {source.size:,} bytes would become {nbytes:,}", hint=hint)


def _changed_bytes(segments: Sequence[Segment], source: Source) -> int:
    """Return the number of bytes that are made anew: all that may differ from `source` at that place."""
    return sum(part.nbytes for part, at in _with_offsets(segments) if not is_unchanged(part, source, at))


def _with_offsets(segments: Iterable[Segment]) -> Iterator[tuple[Segment, int]]:
    """Yield every part of `segments` with its offset in the output."""
    at = 0
    for segment in segments:
        for part in segment.parts if isinstance(segment, Summed) else (segment,):
            yield part, at
            at += part.nbytes


def _spool_changes(
    segments: Sequence[Segment], source: Source, spool: int, total: int, on_progress: ProgressCallback
) -> list[ChangedRange]:
    """Make all changed bytes, append them to `spool`, and return their ranges."""
    runs: list[ChangedRange] = []
    at = made = 0
    for piece in pieces(segments):
        nbytes = piece.nbytes if isinstance(piece, Extent) else len(piece)
        if not (isinstance(piece, Extent) and is_unchanged(piece, source, at)):
            for run, data in _changed_ranges(piece, source, at):
                write_all(spool, data)
                runs.append(run)
            made += nbytes
            on_progress("making what changes", made, total)
        at += nbytes
    return runs


def _changed_ranges(piece: Extent | Buffer, source: Source, at: int) -> Iterator[tuple[ChangedRange, bytes]]:
    """Yield the ranges in which a piece for offset `at` differs from `source`, CHUNK by CHUNK, with the new bytes."""
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
        yield ChangedRange(at + start + first, last - first, checksums.crc32(old), checksums.crc32(new)), new


def _bytes_to_reserve(segments: Sequence[Segment], path: Path) -> int:
    """Return the bytes to reserve for a file: 0 if it shares blocks. Raises FileError if there is no room for it."""
    nbytes = sum(segment.nbytes for segment in segments)
    needed = _needed_bytes(segments, path.parent)
    _check_free(path, needed, nbytes)
    return nbytes if needed == nbytes else 0


def check_room(several: Iterable[Sequence[Segment]], directory: Path) -> None:
    """Raise FileError unless a directory has room for several files."""
    needed, free = sum(_needed_bytes(segments, directory) for segments in several), _free_bytes(directory)
    if needed > free:
        what = f"cannot write: it takes {needed:,} bytes, and {free:,} are free there"
        raise FileError(what, hint=_ROOM, file=str(directory))


def _needed_bytes(segments: Sequence[Segment], directory: Path) -> int:
    """Return the bytes that a file takes beyond the blocks it shares with its sources."""
    extents = [segment for segment in segments if isinstance(segment, Extent)]
    shared = {source for source in {extent.source for extent in extents} if can_share(source, directory)}
    kept = sum(extent.nbytes for extent in extents if extent.source in shared)
    return sum(segment.nbytes for segment in segments) - kept


def _check_free(path: Path, needed: int, nbytes: int) -> None:
    """Raise FileError unless `needed` bytes are free and a file of `nbytes` is allowed."""
    free, limit = _free_bytes(path.parent), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if needed > free:
        raise FileError(
            f"cannot write: it takes {needed:,} bytes, and {free:,} are free there", hint=_ROOM, file=str(path)
        )
    if limit not in (resource.RLIM_INFINITY, -1) and nbytes > limit:
        raise FileError(
            f"cannot write: it takes {nbytes:,} bytes, and 'ulimit -f' allows {limit:,} a file", file=str(path)
        )


def _free_bytes(directory: Path) -> float:
    """Return the free bytes of a directory; infinity if its file system does not say."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize if found.f_blocks else float("inf")


@contextlib.contextmanager
def _explain_failure(file: str) -> Iterator[None]:
    """Turn an error of the operating system into a FileError of one line that names the file."""
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
    """Raise FileError if one of the sources changed since it was opened."""
    for source in sources:
        source.check_unchanged()


__all__ = ["InPlace", "NewFile", "Plan", "Stream", "Target", "Verify", "destination", "plan", "write"]
