"""Write bytes to a file descriptor: buffers directly, extents by the fastest copy the kernel offers.

A copy shares blocks with its source (reflink) if the file system can do so and both ends have the same
offset within a page; else it stays inside the kernel; only as a last resort bytes are read and written.
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


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data` at the current position of `fd`."""
    view = memoryview(data).cast("B") if data else memoryview(b"")
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data).cast("B") if data else memoryview(b"")
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n


def read_at(fd: int, nbytes: int, offset: int) -> bytes:
    """Return the `nbytes` bytes at `offset`; fewer if the file ends there."""
    data = os.pread(fd, nbytes, offset)
    while len(data) < nbytes and (more := os.pread(fd, nbytes - len(data), offset + len(data))):
        data += more
    return data


def copy(extent: Extent, fd: int, at: int) -> Iterator[int]:
    """Copy an extent to the current position of `fd`, which is `at`; yield the bytes copied by each step."""
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
    """Reserve room for a file before it is written, so that it does not run out later, if the file system can.

    It also saves the kernel from allocating page by page, a fifth of the cost of a copy. Raises OSError if
    there is too little room. os.posix_fallocate is no replacement: on a file system without that call it
    writes every block instead.
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
    """Return whether files in `directory` can share blocks with `source`; an unnamed file is used to try."""
    if source.size < PAGE:
        return False
    with contextlib.suppress(OSError):
        fd = temporary.unnamed_file(directory)
        try:
            fcntl.ioctl(fd, _FICLONERANGE, struct.pack("qQQQ", source.fileno(), 0, PAGE, 0))
            return True
        except OSError:
            return False
        finally:
            os.close(fd)
    return False


def _step(offset: int, at: int, nbytes: int) -> int:
    """Return the bytes of the next copy: up to the target's next run of pages if both ends are aligned alike.

    The kernel copies PAGES at a time, and takes half as long again if it has to split them at its target.
    """
    head = -at % PAGES
    return head if 0 < head < nbytes and offset % PAGE == at % PAGE else min(COPY, nbytes)


_CANNOT_THAT_WAY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM)


def _copy_file_range(source: int, target: int, offset: int, nbytes: int) -> int:
    """Copy with copy_file_range and return the number of bytes."""
    if not hasattr(os, "copy_file_range"):
        raise OSError(errno.ENOSYS, "no copy_file_range here")
    return os.copy_file_range(source, target, nbytes, offset_src=offset)


def _sendfile(source: int, target: int, offset: int, nbytes: int) -> int:
    """Copy with sendfile and return the number of bytes."""
    return os.sendfile(target, source, offset, nbytes)


def _read_write(source: int, target: int, offset: int, nbytes: int) -> int:
    """Copy through memory and return the number of bytes."""
    data = os.pread(source, min(nbytes, 1 << 20), offset)
    write_all(target, data)
    return len(data)
