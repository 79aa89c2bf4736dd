"""Files opened for reading by position: regular files, and a spooled standard input."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from paramctl.errors import FileError, FormatError
from paramctl.files.temporary import nameless
from paramctl.progress import ProgressCallback, ignore

STDIN = "-"
WINDOW = 1 << 16  # bytes that are read at once where small pieces lie near one another


class Identity(NamedTuple):
    """What a file was when it was opened; it differs once somebody writes to it or replaces it."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class Source:
    """A regular file, read at any position by any number of readers.

    `name` is what people called it (`-` for standard input), `size` its length in bytes. The
    descriptor is closed when the last user lets go.
    """

    __slots__ = ("__weakref__", "_fd", "identity", "name", "path", "size")

    def __init__(self, fd: int, name: str, path: Path | None) -> None:
        self._fd = fd
        self.name = name
        self.path = path
        self.identity = _identity(os.fstat(fd))
        self.size = self.identity.size

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # nothing was written through it that could be lost
                os.close(self._fd)
            self._fd = -1

    def __copy__(self) -> Source:
        """Itself: it does not change, and one descriptor has one owner."""
        return self

    def __deepcopy__(self, memo: object) -> Source:
        """Itself, as a copy is."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file cannot be pickled")

    def fileno(self) -> int:
        """The open descriptor, which stays this object's own."""
        return self._fd

    def read(self, offset: int, nbytes: int) -> bytes:
        """Exactly `nbytes` bytes from `offset` on. Raises FormatError where the file is shorter, FileError else."""
        try:
            data = os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise self._refused(error) from error
        if len(data) == nbytes:
            return data
        out = bytearray(nbytes)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset` on. Raises as `read` does."""
        at = 0
        while at < len(view):
            try:
                n = os.preadv(self._fd, [view[at:]], offset + at)
            except OSError as error:
                raise self._refused(error) from error
            if n == 0:
                raise FormatError(f"file ends at byte {offset + at:,}, {len(view) - at:,} bytes early")
            at += n

    def _refused(self, error: OSError) -> FileError:
        return FileError(f"cannot read: {error.strerror}", file=self.name if self.path else "")

    def check_unchanged(self, so: str = "nothing was written") -> None:
        """Raise FileError if the file was written to since it was opened, or its name replaced; `so` is what then."""
        same = _identity(os.fstat(self._fd)) == self.identity
        if same and self.path is not None:
            try:
                same = _identity(self.path.stat()) == self.identity
            except OSError:
                same = False
        if not same:
            raise FileError(f"changed while it was being read; {so}", hint="run it again")


class Window:
    """Reads small pieces that lie near one another in few large reads: each asks a network for an answer."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, nbytes: int) -> bytes:
        """As `Source.read`. What lies behind a piece that was read shortly before is read with it."""
        start = offset - self._start
        if start >= 0 and start + nbytes <= len(self._data):
            return self._data[start : start + nbytes]
        near = 0 <= start <= len(self._data) + WINDOW
        ahead = min(max(nbytes, WINDOW if near else 0), max(self._source.size - offset, nbytes))
        self._start, self._data = offset, self._source.read(offset, ahead)
        return self._data[:nbytes]


def open_source(name: str, on_progress: ProgressCallback = ignore) -> Source:
    """Open a regular file, or standard input for `-`, for reading; `on_progress` is told how much came through a pipe.

    A pipe is spooled to an unlinked temporary file; a standard input that is a file is used as it is.
    Raises FileError for what is missing, a directory, or not a regular file: a FIFO or a device could
    block for ever or never end.
    """
    if name == STDIN:
        return _open_stdin(on_progress)
    path = Path(name)
    try:
        # Without O_NONBLOCK, opening a FIFO waits for a writer before it can be refused.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FileError(_missing(path), hint="check the path") from None
    except OSError as error:
        raise FileError(f"cannot read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the name
        raise FileError(f"cannot read: {error}") from None
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise FileError(f"is {_kind(mode)}, not a checkpoint file", hint=_kind_hint(mode))
    return Source(fd, name, path.resolve())


def _open_stdin(on_progress: ProgressCallback) -> Source:
    if not _is_readable(0):
        raise FileError("is closed", hint="name a FILE")
    mode = os.fstat(0).st_mode
    if stat.S_ISREG(mode) and os.lseek(0, 0, os.SEEK_CUR) == 0:
        return Source(os.dup(0), STDIN, None)
    if os.isatty(0):
        raise FileError("is a terminal", hint="name a FILE or pipe a checkpoint in")
    return _spool(on_progress)


def _is_readable(fd: int) -> bool:
    """Whether a descriptor is open, and for reading: `__main__` fills a closed one with what is not."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    except OSError:
        return False


def _spool(on_progress: ProgressCallback) -> Source:
    """Copy what comes through the pipe to a temporary file that has no name."""
    with _keeping("standard input") as directory:
        fd = nameless(directory)
        try:
            done = 0
            while n := _splice(0, fd):
                done += n
                on_progress("reading standard input", done, None)
            return Source(fd, STDIN, None)
        except BaseException:
            os.close(fd)
            raise


class Spool:
    """Bytes that cannot be made a second time, kept in a temporary file that has no name.

    `what` is what an error calls them.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        with _keeping(what) as directory:
            self._source = Source(nameless(directory), what, None)
        self._size = 0

    def keep(self, data: bytes | memoryview) -> Callable[[], bytes]:
        """Store `data`, and return a function that reads it back. Raises FileError where there is no room."""
        offset, nbytes = self._size, len(data)
        with _keeping(self.what):
            _write(self._source.fileno(), data)
        self._size += nbytes
        return lambda: self._source.read(offset, nbytes)


@contextlib.contextmanager
def _keeping(what: str) -> Iterator[str]:
    """The directory for temporary files; an error there says what could not be kept."""
    directory = tempfile.gettempdir()
    try:
        yield directory
    except OSError as error:
        raise FileError(
            f"cannot keep {what} in {directory}: {error.strerror}",
            hint="make room there, or set TMPDIR to a larger place",
        ) from None


def _splice(source: int, target: int) -> int:
    """Move up to 1 MiB from a pipe to a file, within the kernel where it can."""
    if sys.platform == "linux" and stat.S_ISFIFO(os.fstat(source).st_mode):
        return os.splice(source, target, 1 << 20)
    data = os.read(source, 1 << 20)
    _write(target, data)
    return len(data)


def _write(target: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _identity(info: os.stat_result) -> Identity:
    return Identity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def _missing(path: Path) -> str:
    return "is a link to a file that is not there" if path.is_symlink() else "no such file"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _kind_hint(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "name a file in it"
    return "pipe it in and name '-'" if stat.S_ISFIFO(mode) else "name a regular file"
