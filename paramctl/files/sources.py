"""Open files for reading at any position: regular files, and standard input, spooled to a file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from paramctl.errors import FileError, FormatError
from paramctl.files.temporary import unnamed_file
from paramctl.progress import ProgressCallback, ignore

STDIN = "-"
WINDOW = 1 << 16  # bytes that are read at once where small pieces lie near one another


class Identity(NamedTuple):
    """The identity of a file when it was opened; it changes if the file is written to or replaced."""

    device: int
    inode: int
    size: int
    mtime_ns: int


class Source:
    """A regular file, read at any position by any number of readers.

    `name` is the name the user gave (`-` for standard input), `size` its length in bytes. The descriptor is
    closed when the last reference to the source is gone.
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
        """Return the source itself: it is immutable, and its descriptor must have one owner."""
        return self

    def __deepcopy__(self, memo: object) -> Source:
        """Return the source itself, as `__copy__` does."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("an open file cannot be pickled")

    def fileno(self) -> int:
        """Return the open descriptor, which the source goes on to own."""
        return self._fd

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return exactly `nbytes` bytes from `offset` on. Raises FormatError if the file is shorter, else FileError."""
        try:
            data = os.pread(self._fd, nbytes, offset)
        except OSError as error:
            raise self._read_error(error) from error
        if len(data) == nbytes:
            return data
        out = bytearray(nbytes)
        self.read_into(offset, memoryview(out))
        return bytes(out)

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` with bytes from `offset` on. Raises the same errors as `read`."""
        at = 0
        while at < len(view):
            try:
                n = os.preadv(self._fd, [view[at:]], offset + at)
            except OSError as error:
                raise self._read_error(error) from error
            if n == 0:
                raise FormatError(f"file ends at byte {offset + at:,}, {len(view) - at:,} bytes early")
            at += n

    def _read_error(self, error: OSError) -> FileError:
        """Return the FileError for a read that the operating system refused."""
        return FileError(f"cannot read: {error.strerror}", file=self.name if self.path else "")

    def check_unchanged(self, so: str = "nothing was written") -> None:
        """Raise FileError if the file was written to or replaced since it was opened; `so` says what follows."""
        same = _identity(os.fstat(self._fd)) == self.identity
        if same and self.path is not None:
            try:
                same = _identity(self.path.stat()) == self.identity
            except OSError:
                same = False
        if not same:
            raise FileError(f"changed while it was being read; {so}", hint="run it again")


class Window:
    """Read small neighbouring pieces of a source in few large requests, as each request to a network takes time."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, nbytes: int) -> bytes:
        """Return bytes as `Source.read` does; bytes behind a piece near the last one are read with it."""
        start = offset - self._start
        if start >= 0 and start + nbytes <= len(self._data):
            return self._data[start : start + nbytes]
        near = 0 <= start <= len(self._data) + WINDOW
        ahead = min(max(nbytes, WINDOW if near else 0), max(self._source.size - offset, nbytes))
        self._start, self._data = offset, self._source.read(offset, ahead)
        return self._data[:nbytes]


def open_source(name: str, on_progress: ProgressCallback = ignore) -> Source:
    """Open a regular file, or standard input for `-`, for reading.

    A pipe is copied to an unnamed temporary file, and `on_progress` is told of its bytes; a standard input that
    is a file is used directly. So is a pipe that the shell made for `<(…)`. Raises FileError if the file is missing,
    a directory, or not a regular file: another FIFO or a device could block for ever or never end.
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
    if stat.S_ISFIFO(mode) and _OF_SHELL(name):
        return _open_pipe(fd, name, on_progress)
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise FileError(f"is {_kind_of_file(mode)}, not a checkpoint file", hint=_kind_hint(mode))
    return Source(fd, name, path.resolve())


_OF_SHELL = re.compile(r"/(?:dev|proc/self)/fd/[0-9]+").fullmatch  # what a shell puts in the place of <(…)
_piped: dict[tuple[int, int], Source] = {}  # a pipe can be read once, and a command may open it again


def _open_pipe(fd: int, name: str, on_progress: ProgressCallback) -> Source:
    """Return the content of a pipe that is open at `fd`, which is closed."""
    try:
        found = os.fstat(fd)
        key = found.st_dev, found.st_ino
        if key not in _piped:
            os.set_blocking(fd, True)
            _piped[key] = _spool(fd, name, on_progress)
        return _piped[key]
    finally:
        os.close(fd)


def _open_stdin(on_progress: ProgressCallback) -> Source:
    """Open standard input. Raises FileError if it is closed or a terminal."""
    if not _is_readable(0):
        raise FileError("is closed", hint="name a FILE")
    mode = os.fstat(0).st_mode
    if stat.S_ISREG(mode) and os.lseek(0, 0, os.SEEK_CUR) == 0:
        return Source(os.dup(0), STDIN, None)
    if os.isatty(0):
        raise FileError("is a terminal", hint="name a FILE or pipe a checkpoint in")
    return _spool(0, STDIN, on_progress)


def _is_readable(fd: int) -> bool:
    """Return whether a descriptor is open for reading; `__main__` opens a closed one for writing only."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY
    except OSError:
        return False


def _spool(pipe: int, name: str, on_progress: ProgressCallback) -> Source:
    """Copy a pipe to an unnamed temporary file and return that."""
    what = "standard input" if name == STDIN else name
    with _spool_directory(what) as directory:
        fd = unnamed_file(directory)
        try:
            done = 0
            while n := _splice(pipe, fd):
                done += n
                on_progress(f"reading {what}", done, None)
            return Source(fd, name, None)
        except BaseException:
            os.close(fd)
            raise


class Spool:
    """A temporary file without a name, for bytes that cannot be made a second time.

    `what` names those bytes in error messages.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        with _spool_directory(what) as directory:
            self.source = Source(unnamed_file(directory), what, None)
        self._size = 0

    def keep(self, data: bytes | memoryview) -> Callable[[], bytes]:
        """Store `data` and return a function that reads it back. Raises FileError if there is no room."""
        offset, nbytes = self._size, len(data)
        with _spool_directory(self.what):
            _write(self.source.fileno(), data)
        self._size += nbytes
        return lambda: self.source.read(offset, nbytes)


@contextlib.contextmanager
def _spool_directory(what: str) -> Iterator[str]:
    """Yield the directory for temporary files; an OSError inside becomes a FileError that names `what`."""
    directory = tempfile.gettempdir()
    try:
        yield directory
    except OSError as error:
        raise FileError(
            f"cannot keep {what} in {directory}: {error.strerror}",
            hint="make room there, or set TMPDIR to a larger place",
        ) from None


def _splice(source: int, target: int) -> int:
    """Move up to 1 MiB from a pipe to a file, inside the kernel if possible, and return the bytes moved."""
    if sys.platform == "linux" and stat.S_ISFIFO(os.fstat(source).st_mode):
        return os.splice(source, target, 1 << 20)
    data = os.read(source, 1 << 20)
    _write(target, data)
    return len(data)


def _write(target: int, data: bytes | memoryview) -> None:
    """Write all of `data` to a descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]


def _identity(info: os.stat_result) -> Identity:
    """Return the identity in the result of a stat call."""
    return Identity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)


def _missing(path: Path) -> str:
    """Return the message for a path that does not exist."""
    return "is a link to a file that is not there" if path.is_symlink() else "no such file"


def _kind_of_file(mode: int) -> str:
    """Return the words for a file that is not regular."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "a special file")


def _kind_hint(mode: int) -> str:
    """Return what to do about a file that is not regular."""
    if stat.S_ISDIR(mode):
        return "name a file in it"
    return "pipe it in and name '-'" if stat.S_ISFIFO(mode) else "name a regular file"
