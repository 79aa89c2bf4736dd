"""Bytes put into a file: extents of other files by the fastest means the kernel has, buffers as they are.

Copies share blocks with their source (reflinks) where the file system can and both ends lie alike on
its pages; else they stay within the kernel; only where neither works are they read and written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from paramctl.errors import FileError
from paramctl.files import temporary
from paramctl.files.content import Buffer, Extent
from paramctl.files.sources import Source

PAGE = 4096  # bytes; file systems share whole blocks, and the kernel copies whole pages fastest
PAGES = 16 * PAGE
COPY = 64 << 20  # bytes asked of the kernel at a time
WORTH_RESERVING = 16 << 20  # bytes
_FICLONERANGE = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range) of linux/fs.h


def put(fd: int, data: Buffer) -> None:
    """Write all of `data` where `fd` stands."""
    view = memoryview(data).cast("B") if data else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def put_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data).cast("B") if data else memoryview(b"")
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def get_at(fd: int, nbytes: int, offset: int) -> bytes:
    """The `nbytes` bytes at `offset`; fewer only where the file ends."""
    data = os.pread(fd, nbytes, offset)
    while len(data) < nbytes and (more := os.pread(fd, nbytes - len(data), offset + len(data))):
        data += more
    return data


def copy(extent: Extent, fd: int, at: int) -> Iterator[int]:
    """Copy an extent to where `fd` stands, which is `at`; says how many bytes each step copied."""
    source, offset, nbytes = extent
    end = offset + nbytes
    for way in (_copy_file_range, _sendfile, _read_write):
        while offset < end:
            try:
                n = way(source.fileno(), fd, offset, _step(offset, at, end - offset))
            except OSError as error:
                if error.errno in _CANNOT_THAT_WAY and way is not _read_write:
                    break
                raise
            if n == 0:
                raise FileError(f"ends at byte {offset:,}, while it was being copied", file=source.name)
            offset, at = offset + n, at + n
            yield n


def reserve(fd: int, nbytes: int) -> None:
    """Take the room for a file that is about to be written, where the file system can: then none is missing later.

    It also spares the kernel finding room page by page, a fifth of the cost of a copy. Raises OSError
    where there is not as much. os.posix_fallocate will not do: where a file system knows no such call,
    that writes every block instead.
    """
    import ctypes

    if nbytes < WORTH_RESERVING:
        return
    fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if fallocate and fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(nbytes)):
        error = ctypes.get_errno()
        if error in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(error, os.strerror(error))


def can_share(source: Source, directory: Path) -> bool:
    """Whether files in `directory` can share blocks with `source`: tried with a file that has no name."""
    if source.size < PAGE:
        return False
    with contextlib.suppress(OSError):
        fd = temporary.nameless(directory)
        try:
            fcntl.ioctl(fd, _FICLONERANGE, struct.pack("qQQQ", source.fileno(), 0, PAGE, 0))
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
    return False


def _step(offset: int, at: int, nbytes: int) -> int:
    """Bytes of the next copy: up to where the target's next run of pages begins, where both ends lie alike on theirs.

    The kernel copies PAGES at a time, half as fast again where it has to split them at its target.
    """
    head = -at % PAGES
    return head if 0 < head < nbytes and offset % PAGE == at % PAGE else min(COPY, nbytes)


_CANNOT_THAT_WAY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def _copy_file_range(source: int, target: int, offset: int, nbytes: int) -> int:
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range here")
    return os.copy_file_range(source, target, nbytes, offset_src=offset)


def _sendfile(source: int, target: int, offset: int, nbytes: int) -> int:
    return os.sendfile(target, source, offset, nbytes)


def _read_write(source: int, target: int, offset: int, nbytes: int) -> int:
    data = os.pread(source, min(nbytes, 1 << 20), offset)
    put(target, data)
    return len(data)
