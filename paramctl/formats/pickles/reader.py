"""A pickle read as plain data: a symbolic machine that imports nothing, looks nothing up, calls nothing.

Reference: Lib/pickle.py and Lib/pickletools.py of CPython. Plain values stand for themselves; what a real
unpickler would look up or call becomes a node that says so. `pickle_writer` writes a graph back.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.pickles.machine import UINT32, FrameBegins, Handler, Machine, Stop
from paramctl.formats.pickles.nodes import Global, Persistent
from paramctl.formats.pickles.opcodes import HANDLERS

_LONG_BINPUT, _BINPUT, _BINGET, _BININT1 = b"rqhK"
_MEMOIZE, _LONG_BINGET = b"\x94j"
_INLINE = b"qhK"  # opcodes with an argument of one byte that the loop reads itself


class Pickle(NamedTuple):
    """The object that a pickle ends with, and where the pickle ends.

    `end` is the offset behind its STOP, `opcodes` how many were read (a bound for every walk over
    `root`), `globals` every name it would look up, used or not, `persistent` every id it names.
    """

    root: Any
    protocol: int
    end: int
    opcodes: int
    globals: tuple[Global, ...]
    persistent: tuple[Persistent, ...]


def read(data: bytes, offset: int = 0) -> Pickle:
    """Read the pickle that begins at `offset`. Raises FormatError, with the byte, where it is malformed."""
    return carried_out(Machine(data, offset))


def carried_out(machine: Machine, handlers: list[Handler] = HANDLERS) -> Pickle:
    """Return what a pickle holds. Raises FormatError, with the byte, if it is malformed."""
    root = run(machine, handlers)
    return Pickle(
        root, machine.protocol, machine.at, machine.count, tuple(machine.globals.values()), tuple(machine.persistent)
    )


_REASONS: dict[type[Exception], str] = {
    IndexError: "takes a value from an empty stack, or ends before its STOP",
    struct.error: "is cut off inside an argument",
    KeyError: "fetches a memo entry that was never put",
}


def run(machine: Machine, handlers: list[Handler]) -> Any:
    """Return the object that a pickle ends with. `handlers` may take notes, and must also do what HANDLERS do."""
    try:
        return _run(machine, handlers)
    except UnicodeDecodeError:
        raise machine.damaged("has text that is not UTF-8") from None


def _run(machine: Machine, handlers: list[Handler]) -> Any:
    """Carry out every opcode up to STOP.

    Those that make up most of a pickle are handled here, at half the price of a call; the rest find the
    machine as they expect it.
    """
    memo, count = machine.memo, 0
    memoize, fetch = (_MEMOIZE, _LONG_BINGET) if handlers is HANDLERS else (-1, -1)  # others take notes of these
    while True:  # once more for each frame that begins or ends
        data, stack, at = machine.data, machine.stack, machine.at
        try:
            while True:
                opcode = data[at]
                count += 1
                if opcode == _LONG_BINPUT:
                    memo[UINT32(data, at + 1)[0]] = stack[-1]
                    at += 5
                elif opcode == _BININT1:
                    stack.append(data[at + 1])
                    at += 2
                elif opcode == _BINGET:
                    stack.append(memo[data[at + 1]])
                    at += 2
                elif opcode == _BINPUT:
                    memo[data[at + 1]] = stack[-1]
                    at += 2
                elif opcode == memoize:
                    memo[len(memo)] = stack[-1]
                    at += 1
                elif opcode == fetch:
                    stack.append(memo[UINT32(data, at + 1)[0]])
                    at += 5
                else:
                    machine.opcode_at, machine.at = at, at + 1
                    handlers[opcode](machine)
                    at, stack = machine.at, machine.stack
        except FrameBegins:
            continue
        except Stop:
            machine.count = count
            machine.leave_frame()
            return machine.stack.pop()
        except (IndexError, struct.error, KeyError) as error:
            _end_frame(machine, at, error)


def _end_frame(machine: Machine, at: int, error: Exception) -> None:
    """Go on behind a frame that ends at `at`. Raises FormatError if no frame ends there."""
    if at < machine.size or not machine.around:
        raise _malformed(machine, at, error) from None
    machine.leave_frame()


def _malformed(machine: Machine, at: int, error: Exception) -> FormatError:
    """Return the error for an opcode at `at` that finds neither what it takes nor all of its argument."""
    machine.opcode_at = max(at, machine.opcode_at)
    has_argument = machine.opcode_at < machine.size and machine.data[machine.opcode_at] in _INLINE
    is_cut = isinstance(error, struct.error) or (has_argument and machine.opcode_at + 1 >= machine.size)
    if machine.around:
        return machine.cut("") if is_cut else machine.damaged(_REASONS[type(error)])
    machine.wants_more = max(machine.at, at + 1) >= machine.size or is_cut
    return machine.damaged(_REASONS[type(error)])
