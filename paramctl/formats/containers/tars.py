"""A tar archive by its headers: where the bytes of each member lie. Nothing is extracted.

Reference: POSIX.1-2001, pax interchange format, the GNU manual for sizes in base 256, and Lib/tarfile.py, by which
torch reads such files: `tarfile.open(mode="r:")`, so none that is compressed.

What tarfile does that others do not, and what is done here:

- What is a header at byte 0 says `tar_header`, as tarfile does: by its checksum, with or without `ustar`.
- A later block that is no header ends the archive for tarfile, as the end of the file does. Refused, but for the end.
- An archive that is cut off, or notes (pax headers, long names) without a member, let torch go on to its old format,
  which begins at the same byte. Refused here, and `check` judges what such a file begins with as well.
- Of two members of one name tarfile takes the last. `torch_tar` refuses two of those that torch reads.
- The `prefix` of ustar goes before the name, whatever the magic; the slashes behind a folder's name do not count. A
  folder is also an old file whose header has a name with a slash at its end, cut off as that may be.
- Links, devices and folders have no content, whatever their size says; members of unknown kinds are files.
- Notes are read up to the end of their last block, what fills it included. It must be zeros here.
- Notes on all members (`g`) rename them too, and the first of several notes on one member counts. Both are refused
  here, as are sparse files and notes of Solaris.
- A hard link is what it links to, and `extractfile` follows symbolic ones too. `torch_tar` reads regular files only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.files.content import Extent
from paramctl.files.sources import Source
from paramctl.formats.containers import tar_header
from paramctl.formats.containers.tar_header import BLOCK

RECORD = 20 * BLOCK  # bytes that a whole archive is filled up to a multiple of
MAX_MEMBERS = 10_000
MAX_NOTES = 1 << 16  # bytes of what stands before a member about it
NUL = bytes(BLOCK)
NOTES = (b"x", b"g", b"L", b"K")  # kinds of members that say something of the next one
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders and FIFOs
FOLDER, SPARSE, SOLARIS = b"5", b"S", b"X"
_SIZE, _SUM, _KIND, _PREFIX = tar_header.SIZE, tar_header.SUM, slice(156, 157), slice(345, 500)
_DIGITS = 11  # octal ones, of a size


class Member(NamedTuple):
    """A file in the archive: where what describes it begins, its own block and its content; links have none."""

    name: str
    start: int
    block: int
    content: Extent
    is_regular: bool

    @property
    def end(self) -> int:
        """The offset at which the next member begins."""
        return self.content.offset + padded(self.content.nbytes)


class _Notes(NamedTuple):
    """The name and size of a member, from the blocks before its own, which has no room for them."""

    start: int
    name: str | None = None
    nbytes: int | None = None


def recognises(head: bytes) -> bool:
    """Return whether a block that describes a member begins here, as Python's tarfile sees it."""
    return tar_header.recognises(head)


def read(source: Source) -> list[Member]:
    """Return every member, in order. Raises FormatError if the headers are damaged or the archive is cut off."""
    if source.size % BLOCK:
        raise FormatError(f"tar archive is cut off: its {source.size:,} bytes are no whole blocks of {BLOCK}")
    return [*members(source)]


def members(source: Source) -> Iterator[Member]:
    """Yield the members up to the end, or to what is damaged. Raises FormatError as `read` does."""
    number = 0
    notes = _Notes(0)
    at = 0
    while at + BLOCK <= source.size:
        block = source.read(at, BLOCK)
        if block == NUL and at == notes.start:
            return
        if not tar_header.recognises(block):
            raise FormatError(f"tar archive is damaged: a header does not match its checksum (byte {at:,})")
        kind = block[_KIND]
        if kind in (SPARSE, SOLARIS):
            raise FormatError(f"tar archive has a member of kind {kind.decode()!r}, which is not read (byte {at:,})")
        nbytes = _number(block[_SIZE], at) if notes.nbytes is None or kind in NOTES else notes.nbytes
        is_folder = kind == FOLDER or (kind == b"\0" and block[:100].split(b"\0", 1)[0].endswith(b"/"))
        nbytes = 0 if is_folder or kind in WITHOUT_CONTENT else nbytes
        content = _content(source, at + BLOCK, nbytes)
        if kind in NOTES:
            notes = _noted(notes, kind, content, at)
        else:
            name = _name(block) if notes.name is None else notes.name
            name = name.rstrip("/") if is_folder else name
            member = Member(name, notes.start, at, content, kind in (b"\0", b"0") and not is_folder)
            yield member
            number += 1
            notes = _Notes(member.end)
        at = content.offset + padded(content.nbytes)
        if number > MAX_MEMBERS:
            raise FormatError(f"is a tar archive of more than {MAX_MEMBERS:,} members")
    raise FormatError(f"tar archive is cut off: it has no end (byte {at:,})")


def _content(source: Source, start: int, nbytes: int) -> Extent:
    left = max(source.size - start, 0)
    if nbytes > left:
        what = f"a member claims {nbytes:,} bytes, and {left:,} are left"
        raise FormatError(f"tar archive is cut off: {what} (byte {start:,})")
    return Extent(source, start, nbytes)


def _name(block: bytes) -> str:
    """Return the name in a header, behind the prefix that ustar has."""
    name, prefix = (block[field].split(b"\0", 1)[0].decode("utf-8", "replace") for field in (slice(100), _PREFIX))
    return f"{prefix}/{name}" if prefix else name


def _noted(notes: _Notes, kind: bytes, content: Extent, at: int) -> _Notes:
    """Return the notes on the next member, with those of this block added."""
    if content.nbytes > MAX_NOTES:
        raise FormatError(f"tar archive has {content.nbytes:,} bytes of notes on one member (byte {at:,})")
    left = content.source.size - content.offset
    data = content.source.read(content.offset, min(padded(content.nbytes), left))
    if any(data[content.nbytes :]):
        raise FormatError(f"tar archive has something behind its notes on a member (byte {at:,})")
    made = notes
    if kind == b"L":
        made = notes._replace(name=data.split(b"\0", 1)[0].decode("utf-8", "replace"))
    elif kind in (b"x", b"g"):
        made = notes._replace(**_records(data[: content.nbytes], at))
    if made != notes and (kind == b"g" or (notes.name, notes.nbytes) != (None, None)):
        raise FormatError(f"tar archive names members in two ways, or all of them at once (byte {at:,})")
    return made


def _records(data: bytes, at: int) -> dict[str, Any]:
    """Return what records of pax say of name and size. Raises FormatError for damaged ones, or for sparse files."""
    found: dict[str, Any] = {}
    start = 0
    while start < len(data):
        head = _RECORD.match(data, start)
        end = start + int(head[1]) if head else start
        if head is None or not head.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise FormatError(f"tar archive has damaged notes on a member (byte {at:,})")
        key, value = head[2], data[head.end() : end - 1]
        if key == b"path":
            found["name"] = value.decode("utf-8", "replace").rstrip("/")
        elif key == b"size" and value.isdigit() and len(value) <= _DIGITS + 7:
            found["nbytes"] = int(value)
        elif key == b"size" or key.startswith(b"GNU.sparse") or key == b"hdrcharset":
            raise FormatError(f"tar archive has notes on a member that are not read (byte {at:,})")
        start = end
    return found


_RECORD = re.compile(rb"([0-9]{1,6}) ([^=\n]+)=")


def header(name: str, nbytes: int, block: bytes = b"") -> bytes:
    """Return the block that describes a regular file of `nbytes` bytes: `block` with that size, or a new one."""
    if not block:
        mode, owner, group, size_and_time = b"0000644\0", b"0000000\0", b"0000000\0", b"%011o\0" % 0 * 2
        block = b"".join((name.encode().ljust(100, b"\0"), mode, owner, group, size_and_time, bytes(8), b"0"))
        block = block.ljust(257, b"\0") + b"ustar\x0000"
    small = nbytes < 8**_DIGITS
    size = b"%0*o\0" % (_DIGITS, nbytes) if small else b"\x80" + nbytes.to_bytes(_DIGITS, "big")
    made = bytearray(block.ljust(BLOCK, b"\0"))
    made[_SIZE], made[_SUM] = size, b" " * 8
    made[_SUM] = b"%06o\0 " % sum(made)
    return bytes(made)


def padded(nbytes: int, to: int = BLOCK) -> int:
    """Return `nbytes`, rounded up to whole blocks."""
    return nbytes + -nbytes % to


def _number(field: bytes, at: int) -> int:
    found = tar_header.number(field)
    if found is None or found < 0:
        raise FormatError(f"tar archive is damaged: a member has no size (byte {at:,})")
    return found
