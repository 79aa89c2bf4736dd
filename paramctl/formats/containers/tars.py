"""A tar archive by its headers: where the bytes of each member lie. Nothing is extracted.

Reference: POSIX.1-2001, pax interchange format, and the GNU manual for sizes in base 256.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.files.content import Extent
from paramctl.files.sources import Source

BLOCK = 512
RECORD = 20 * BLOCK  # bytes that a whole archive is filled up to a multiple of
MAX_MEMBERS = 10_000
MAX_NOTES = 1 << 16  # bytes of what stands before a member about it
NUL = bytes(BLOCK)
NOTES = (b"x", b"g", b"L", b"K")  # kinds of members that say something of the next one
_SIZE, _SUM, _KIND, _MAGIC = slice(124, 136), slice(148, 156), slice(156, 157), slice(257, 262)
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
        """Where the next member begins."""
        return self.content.offset + padded(self.content.nbytes)


class _Notes(NamedTuple):
    """What stands before a member about it: its name and size, where its own block cannot say them."""

    start: int
    name: str | None = None
    nbytes: int | None = None


def recognises(head: bytes) -> bool:
    """Whether a block that describes a member begins here, by its magic and its checksum."""
    return head[_MAGIC] == b"ustar" and _sum_holds(head[:BLOCK])


def read(source: Source) -> list[Member]:
    """Every member, in order. Raises FormatError where the headers are damaged, or the archive is cut off."""
    if source.size % BLOCK:
        raise FormatError(f"tar archive is cut off: its {source.size:,} bytes are no whole blocks of {BLOCK}")
    members: list[Member] = []
    notes = _Notes(0)
    at = 0
    while at + BLOCK <= source.size:
        block = source.read(at, BLOCK)
        if block == NUL:
            return members
        if not _sum_holds(block):
            raise FormatError(f"tar archive is damaged: a header does not match its checksum (byte {at:,})")
        kind = block[_KIND]
        nbytes = _number(block[_SIZE], at) if notes.nbytes is None or kind in NOTES else notes.nbytes
        content = _content(source, at + BLOCK, nbytes)
        if kind in NOTES:
            notes = _noted(notes, kind, content, at)
        else:
            name = block[:100].split(b"\0", 1)[0].decode("utf-8", "replace") if notes.name is None else notes.name
            members.append(Member(name, notes.start, at, content, kind in (b"\0", b"0")))
            notes = _Notes(members[-1].end)
        at = content.offset + padded(content.nbytes)
        if len(members) > MAX_MEMBERS:
            raise FormatError(f"is a tar archive of more than {MAX_MEMBERS:,} members")
    raise FormatError(f"tar archive is cut off: it has no end (byte {at:,})")


def _content(source: Source, start: int, nbytes: int) -> Extent:
    left = max(source.size - start, 0)
    if nbytes > left:
        what = f"a member claims {nbytes:,} bytes, and {left:,} are left"
        raise FormatError(f"tar archive is cut off: {what} (byte {start:,})")
    return Extent(source, start, nbytes)


def _noted(notes: _Notes, kind: bytes, content: Extent, at: int) -> _Notes:
    """What is known of the next member once this is read as well."""
    if content.nbytes > MAX_NOTES:
        raise FormatError(f"tar archive has {content.nbytes:,} bytes of notes on one member (byte {at:,})")
    data = content.source.read(content.offset, content.nbytes)
    if kind == b"L":
        return notes._replace(name=data.split(b"\0", 1)[0].decode("utf-8", "replace"))
    if kind != b"x":
        return notes
    for key, value in _RECORD.findall(data):
        if key == b"path":
            notes = notes._replace(name=value.decode("utf-8", "replace"))
        elif re.fullmatch(rb"[0-9]{1,18}", value):
            notes = notes._replace(nbytes=int(value))
    return notes


_RECORD = re.compile(rb"(?:^|\n)[0-9]+ (path|size)=([^\n]*)(?=\n)")


def header(name: str, nbytes: int, block: bytes = b"") -> bytes:
    """The block that describes a regular file of `nbytes` bytes: `block` with that size, or a new one."""
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
    """`nbytes` with what fills the last block."""
    return nbytes + -nbytes % to


def _sum_holds(block: bytes) -> bool:
    """Whether a header's bytes sum up to what it says; some wrote the sum of signed ones."""
    digits = re.fullmatch(rb" *([0-7]{1,7})[\0 ]*", block[_SUM])
    if len(block) < BLOCK or digits is None:
        return False
    others = block[:148] + b" " * 8 + block[156:]
    signed = sum(others) - 256 * sum(byte > 127 for byte in others)
    return int(digits[1], 8) in (sum(others), signed)


def _number(field: bytes, at: int) -> int:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = re.fullmatch(rb" *([0-7]*)[\0 ]*", field)
    if digits is None:
        raise FormatError(f"tar archive is damaged: a member has no size (byte {at:,})")
    return int(digits[1] or b"0", 8)
