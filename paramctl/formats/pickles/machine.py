"""Hold the state of a pickle that is being read: the machine that opcodes work on, and their arguments.

Reference: Lib/pickletools.py of CPython, which says the same in prose, and `reader_differences`, which lists where
the programs that read pickles differ.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import Global, Persistent
from paramctl.formats.pickles.reader_differences import DISAGREE


class Stop(Exception):
    """The STOP opcode was reached."""


class FrameBegins(Exception):
    """The FRAME opcode was reached: what follows is read from the frame alone."""


def _name_of(opcode: int) -> str:
    """Return the name of an opcode, or its byte if no pickle has it."""
    from pickletools import opcodes

    return next((known.name for known in opcodes if known.code == chr(opcode)), hex(opcode))


class Machine:
    """The state of a pickle that is being read: where it is, its stack, its marks and its memo.

    `base` is where `data` begins in its file, for errors; `wants_more` says that it ends inside of the pickle.
    In a frame, `data` is the frame alone, so that nothing can cross its end unnoticed; `around` is then what the
    frame is cut out of, and where that goes on behind it.
    """

    __slots__ = (
        "around", "at", "base", "count", "data", "globals", "marks", "memo", "opcode_at", "persistent", "protocol",
        "room", "size", "stack", "wants_more",
    )  # fmt: skip

    def __init__(self, data: bytes, offset: int, base: int = 0) -> None:
        self.data = data
        self.base = base
        self.around: tuple[bytes, int] | None = None
        self.wants_more = False
        self.size = len(data)
        self.room = 16 * len(data) + 100_000  # characters of names off the stack: a long one may come many times
        self.at = offset
        self.opcode_at = offset
        self.count = 0
        self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[Persistent] = []

    def damaged(self, what: str, hint: str = "") -> FormatError:
        """Return the error for a malformed pickle, with the byte of the opcode that cannot be carried out."""
        byte = self.data[self.opcode_at] if self.opcode_at < self.size else None
        opcode = f", opcode {_name_of(byte)}" if byte is not None else ""
        return FormatError(f"pickle is damaged: it {what} (byte {self.base + self.opcode_at:,}{opcode})", hint=hint)

    def refuse(self, what: str) -> None:
        """Raise FormatError: no honest pickle does this.

        It is for what CPython's unpickler carries out all the same: a machine that judges takes a note here and
        returns, so that it sees what follows.
        """
        raise self.damaged(what)

    def cut(self, what: str) -> FormatError:
        """Return the error for a pickle that goes on behind the data, or an argument that goes on behind its frame."""
        if self.around:
            return self.damaged("has an argument that crosses the end of its frame", DISAGREE)
        self.wants_more = True
        return self.damaged(what)

    def enter_frame(self, nbytes: int) -> None:
        """Let `data` be the next `nbytes` bytes alone."""
        start = self.at
        self.around = self.data, start + nbytes
        self.data = self.data[start : start + nbytes]
        self.base, self.size = self.base + start, nbytes
        self.at = self.opcode_at = 0

    def leave_frame(self) -> None:
        """Let `data` be what the frame was cut out of, and go on behind the frame."""
        if self.around:
            self.data, self.at = self.around
            self.base += self.size - self.at
            self.size, self.around, self.opcode_at = len(self.data), None, self.at

    def take(self, n: int) -> bytes:
        """Return the next `n` bytes of the pickle."""
        end = self.at + n
        if n < 0 or end > self.size:
            raise self.cut(f"announces {n:,} bytes and {self.size - self.at:,} are left")
        data = self.data[self.at : end]
        self.at = end
        return data

    def line(self) -> bytes:
        """Return the bytes up to the next newline, which is taken but not returned."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise self.cut("has a line that never ends")
        data = self.data[self.at : end]
        self.at = end + 1
        return data

    def to_mark(self) -> list[Any]:
        """Remove and return the values above the last MARK."""
        if not self.marks:
            raise self.damaged("goes back to a MARK that is not there")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def named(self, module: str, name: str) -> Global:
        """Return the node of a name: the same node each time."""
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
        return found


def uint8(m: Machine) -> int:
    if m.at >= m.size:
        raise m.cut("is cut off inside an argument")
    n = m.data[m.at]
    m.at += 1
    return n


def uint16(m: Machine) -> int:
    (n,) = _UINT16(m.data, m.at)
    m.at += 2
    return n  # type: ignore[no-any-return]


def uint32(m: Machine) -> int:
    (n,) = UINT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


def uint64(m: Machine) -> int:
    (n,) = _UINT64(m.data, m.at)
    m.at += 8
    return n  # type: ignore[no-any-return]


def int32(m: Machine) -> int:
    (n,) = _INT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


_UINT16 = struct.Struct("<H").unpack_from
UINT32 = struct.Struct("<I").unpack_from
_UINT64 = struct.Struct("<Q").unpack_from
_INT32 = struct.Struct("<i").unpack_from
FLOAT = struct.Struct(">d").unpack_from

Handler = Callable[[Machine], None]


