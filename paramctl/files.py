"""The one function that writes: segments into a new file, in place of an old one, or down a pipe."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import stat
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from paramctl.errors import FileError, UsageError
from paramctl.segments import Buffer, Computed, Content, Derived, Extent, Literal, Segment, Summed, chunks, joined
from paramctl.sources import Source

FRESH = 60  # seconds after its last write in which a temporary file is left alone, locked or not
COPY = 1 << 30  # bytes asked of the kernel in one copy


class NewFile(NamedTuple):
    """Write to `path`; a file that is there already needs `force`."""

    path: Path
    force: bool = False


class InPlace(NamedTuple):
    """Replace the file that `source` was read from."""

    source: Source


class Stream(NamedTuple):
    """Write forward into a descriptor that is already open (a pipe)."""

    fd: int


Target = NewFile | InPlace | Stream
Verify = Callable[[Path], None]


def write(segments: Iterable[Segment], target: Target, sources: Iterable[Source], verify: Verify) -> int:
    """Write `segments` and return how many bytes that were.

    A file is written beside its place under a temporary name, synced, re-read by `verify`, and only
    then renamed: whoever looks sees the old file or the whole new one. If one of `sources` changed
    meanwhile nothing is written. Raises FileError where the system refuses, UsageError where a file
    exists and was not to be replaced.
    """
    sources = tuple(sources)
    if isinstance(target, Stream):
        with _reported("standard output"):
            written = _emit(segments, target.fd)
        _check_unchanged(sources)
        return written
    path, previous = destination(target)
    with _reported(str(path)), _temporary(path) as (fd, name):
        written = _emit(segments, fd)
        _restore(fd, previous)
        os.fsync(fd)
        verify(name)
        _check_unchanged(sources)
        if previous is None and not (isinstance(target, NewFile) and target.force):
            _link_new(name, path)
        else:
            name.replace(path)
        _sync_directory(path.parent)
    return written


def destination(target: NewFile | InPlace) -> tuple[Path, os.stat_result | None]:
    """Where the bytes will go, after links, and what is there now. Raises before any work is done."""
    if isinstance(target, InPlace):
        return _destination_in_place(target.source)
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


def _destination_in_place(source: Source) -> tuple[Path, os.stat_result]:
    if source.path is None:
        raise UsageError("standard input has no place to write back to", hint="use -o FILE instead of -i")
    named, real, info = Path(source.name), source.path, os.fstat(source.fileno())
    _check_unshared(named, real, info, hint="write a copy with -o FILE")
    _check_writable(named, real)
    return real, info


def _check_unshared(named: Path, real: Path, info: os.stat_result | None, *, hint: str) -> None:
    """Raise UsageError for a file that is known by other names too; `info` is None where there is none yet."""
    if named.is_symlink() and _content_addressed(real):
        what = f"is a link into a model cache ({real}), which other links share"
        raise UsageError(what, hint=hint, file=str(named))
    if info is not None and stat.S_ISREG(info.st_mode) and info.st_nlink > 1:
        what = f"has {info.st_nlink} names (hard links), and replacing it would part them"
        raise UsageError(what, hint=hint, file=str(named))


def _content_addressed(path: Path) -> bool:
    """Whether a file is named after what it holds: a hash, as in the `blobs` of a model cache."""
    name = path.name
    return path.parent.name == "blobs" or (len(name) in (40, 64) and set(name) <= set("0123456789abcdef"))


def _check_writable(named: Path, real: Path) -> None:
    if not os.access(real, os.W_OK) or not (real.stat().st_mode & 0o222):
        raise FileError(
            "is read-only", hint="write elsewhere with -o, or make it writable first", file=str(named)
        )


@contextlib.contextmanager
def _reported(file: str) -> Iterator[None]:
    """Say an operating system's refusal in one line that names the file. A reader that is gone is no refusal."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        hint = "make room there or write elsewhere with -o" if error.errno in _NO_ROOM else ""
        raise FileError(f"cannot write: {error.strerror}", hint=hint, file=file) from error


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[tuple[int, Path]]:
    """An open file beside `path` that is gone afterwards unless it was renamed.

    It is locked while it is written: one that is not was left behind by a process that was killed.
    """
    _remove_stale(path)
    name = path.with_name(f"{_stem(path)}{os.urandom(4).hex()}{_TEMPORARY}")
    fd = -1
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(fd)
        yield fd, name
    finally:
        if fd >= 0:
            os.close(fd)
        with contextlib.suppress(FileNotFoundError):
            name.unlink()


_TEMPORARY = ".tmp"


def _stem(path: Path) -> str:
    """How the names of all temporary files for `path` begin."""
    return f".{path.name[:200]}.paramctl-"


def _lock(fd: int) -> bool:
    """Take the lock of an open file, if nobody has it. Some file systems know no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_stale(path: Path) -> None:
    """Remove what writes to `path` that were killed left beside it."""
    for name in path.parent.glob(f"{glob.escape(_stem(path))}{'[0-9a-f]' * 8}{_TEMPORARY}"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            if time.time() - name.stat().st_mtime < FRESH:
                continue
            fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if _lock(fd):
                    name.unlink()
            finally:
                os.close(fd)


def _restore(fd: int, previous: os.stat_result | None) -> None:
    """Give the new file the owner and mode of the one it replaces."""
    if previous is None:
        return
    with contextlib.suppress(PermissionError):  # only root may give files away
        os.fchown(fd, previous.st_uid, previous.st_gid)
    os.fchmod(fd, stat.S_IMODE(previous.st_mode))


def _link_new(name: Path, path: Path) -> None:
    """Give the file its name, unless somebody else made one of that name meanwhile."""
    try:
        os.link(name, path)
    except FileExistsError:
        raise UsageError("exists already", hint="add -f to replace it", file=str(path)) from None
    except OSError:  # file systems without hard links
        name.replace(path)


def _sync_directory(directory: Path) -> None:
    """Ask that the new name survive a power cut. Whether or not it does, the name shows a whole file, and
    the rename cannot be taken back: a refusal here is no failure of the write."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(fd)
    finally:
        os.close(fd)


def _check_unchanged(sources: Iterable[Source]) -> None:
    for source in sources:
        source.check_unchanged()


def _emit(segments: Iterable[Segment], fd: int) -> int:
    """Write every segment to `fd`, front to back."""
    digests: dict[str, int] = {}
    written = 0
    for segment in joined(segments):
        match segment:
            case Literal(data):
                _put(fd, data)
            case Extent(source, offset, nbytes):
                _copy(source, offset, nbytes, fd)
            case Computed():
                _put_computed(fd, segment)
            case Summed(name, parts):
                digests[name] = _put_summed(fd, parts)
            case Derived(nbytes, make):
                data = make(digests)
                if len(data) != nbytes:
                    raise AssertionError(f"a derived segment made {len(data)} bytes, not {nbytes}")
                _put(fd, data)
        written += segment.nbytes
    return written


def _put(fd: int, data: Buffer) -> None:
    view = memoryview(data).cast("B") if data else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def _put_computed(fd: int, segment: Computed) -> None:
    left = segment.nbytes
    for chunk in segment.chunks():
        _put(fd, chunk)
        left -= len(chunk)
    if left:
        raise AssertionError(f"a computed segment was {left} bytes short")


def _put_summed(fd: int, parts: tuple[Content, ...]) -> int:
    value = 0
    left = sum(part.nbytes for part in parts)
    for chunk in chunks(parts):
        value = zlib.crc32(chunk, value)
        _put(fd, chunk)
        left -= len(chunk)
    if left:
        raise AssertionError(f"a computed segment was {left} bytes short")
    return value


def _copy(source: Source, offset: int, nbytes: int, fd: int) -> None:
    """Copy an extent by the fastest means both ends allow."""
    end = offset + nbytes
    for way in (_copy_file_range, _sendfile, _read_write):
        while offset < end:
            try:
                n = way(source.fileno(), fd, offset, min(COPY, end - offset))
            except OSError as error:
                if error.errno in _CANNOT_THAT_WAY and way is not _read_write:
                    break
                raise
            if n == 0:
                raise FileError(f"ends at byte {offset:,}, while it was being copied", file=source.name)
            offset += n


_CANNOT_THAT_WAY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def _copy_file_range(source: int, target: int, offset: int, nbytes: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range here")
    return os.copy_file_range(source, target, nbytes, offset_src=offset)


def _sendfile(source: int, target: int, offset: int, nbytes: int) -> int:
    return os.sendfile(target, source, offset, nbytes)


def _read_write(source: int, target: int, offset: int, nbytes: int) -> int:
    data = os.pread(source, min(nbytes, 1 << 20), offset)
    _put(target, data)
    return len(data)
