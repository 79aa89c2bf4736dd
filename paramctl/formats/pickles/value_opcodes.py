"""Carry out the opcodes that frame a pickle, and those that put values on its stack or into its memo."""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from paramctl.formats.pickles.machine import (
    FLOAT,
    UINT32,
    FrameBegins,
    Handler,
    Machine,
    Stop,
    int32,
    uint8,
    uint16,
    uint32,
    uint64,
)
from paramctl.formats.pickles.nodes import Dict, FrozenSet, PyString, Set
from paramctl.formats.pickles.object_opcodes import mutate
from paramctl.formats.pickles.reader_differences import DISAGREE, MAX_DIGITS, decimal, memo_index, whole_number

MAX_PROTOCOL = 5
_UNHASHABLE = (list, Dict, Set, bytearray)


def unknown(m: Machine) -> None:
    raise m.damaged("has an opcode that no pickle has")


def _elsewhere(m: Machine) -> None:
    raise AssertionError("the loop that reads opcodes handles this one itself")


def _next_buffer(m: Machine) -> None:
    raise m.damaged("needs something from outside of it")


def _proto(m: Machine) -> None:
    n = uint8(m)
    if n > MAX_PROTOCOL:
        raise m.damaged(f"says protocol {n}, and the newest is {MAX_PROTOCOL}")
    m.protocol = max(m.protocol, n)


def _frame(m: Machine) -> None:
    n = uint64(m)
    if m.around:
        raise m.damaged("begins a frame inside of a frame", DISAGREE)
    if n > m.size - m.at:
        raise m.cut(f"announces a frame of {n:,} bytes and {m.size - m.at:,} are left")
    m.enter_frame(n)
    raise FrameBegins


def _stop(m: Machine) -> None:
    if not m.stack:
        raise m.damaged("ends with nothing")
    if m.around and m.at < m.size:
        raise m.damaged("ends before the end of its frame", DISAGREE)
    raise Stop


def _constant(value: object) -> Handler:
    def push(m: Machine) -> None:
        m.stack.append(value)

    return push


Parsed = TypeVar("Parsed", int, float)


def _parsed(m: Machine, text: bytes, parse: Callable[[bytes], Parsed], instead: Parsed) -> Parsed:
    """Return the number that a text stands for, or `instead` where the readers of pickles do not agree on it."""
    if len(text) > MAX_DIGITS:
        m.refuse(f"holds a number of {len(text):,} digits")
        return instead
    try:
        return parse(text)
    except ValueError:
        m.refuse("holds a number that is none")
        return instead


def _int(m: Machine) -> None:
    text = m.line()
    m.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else _parsed(m, text, whole_number, 0))


def _long(m: Machine) -> None:
    m.stack.append(_parsed(m, m.line().removesuffix(b"L"), whole_number, 0))


def _binint(m: Machine) -> None:
    m.stack.append(int32(m))


def _binint2(m: Machine) -> None:
    m.stack.append(uint16(m))


def _long1(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(uint8(m)), "little", signed=True))


def _long4(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(int32(m)), "little", signed=True))


def _float(m: Machine) -> None:
    m.stack.append(_parsed(m, m.line(), decimal, 0.0))


def _binfloat(m: Machine) -> None:
    m.stack.append(FLOAT(m.data, m.at)[0])
    m.at += 8


def _string(m: Machine) -> None:
    text = m.line()
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise m.damaged("holds a string without its quotes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know stands for itself, here as there
            m.stack.append(PyString(codecs.escape_decode(text[1:-1])[0]))
    except ValueError:
        raise m.damaged("holds a string with a broken escape") from None


def _binstring(m: Machine) -> None:
    m.stack.append(PyString(m.take(int32(m))))  # C takes the length for unsigned: no pickle here is as long as that


def _short_binstring(m: Machine) -> None:
    m.stack.append(PyString(m.take(uint8(m))))


def _unicode(m: Machine) -> None:
    m.stack.append(m.line().decode("raw-unicode-escape"))


def _binunicode(m: Machine) -> None:
    start = m.at + 4
    end = m.at = start + UINT32(m.data, m.at)[0]
    if end > m.size:
        m.at = start
        m.take(end - start)
    m.stack.append(str(m.data[start:end], "utf-8", "surrogatepass"))


def _short_binunicode(m: Machine) -> None:
    m.stack.append(m.take(uint8(m)).decode("utf-8", "surrogatepass"))


def _binunicode8(m: Machine) -> None:
    m.stack.append(m.take(uint64(m)).decode("utf-8", "surrogatepass"))


def _binbytes(m: Machine) -> None:
    m.stack.append(m.take(uint32(m)))


def _short_binbytes(m: Machine) -> None:
    m.stack.append(m.take(uint8(m)))


def _binbytes8(m: Machine) -> None:
    m.stack.append(m.take(uint64(m)))


def _bytearray8(m: Machine) -> None:
    m.stack.append(bytearray(m.take(uint64(m))))


def _mark(m: Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


def _pop(m: Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.to_mark()


def _pop_mark(m: Machine) -> None:
    m.to_mark()


def _dup(m: Machine) -> None:
    m.stack.append(m.stack[-1])


def _tuple(m: Machine) -> None:
    items = m.to_mark()
    m.stack.append(tuple(items))


def _tuple1(m: Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


def _tuple2(m: Machine) -> None:
    b, a = m.stack.pop(), m.stack.pop()
    m.stack.append((a, b))


def _tuple3(m: Machine) -> None:
    c, b, a = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.stack.append((a, b, c))


def _empty_list(m: Machine) -> None:
    m.stack.append([])


def _empty_dict(m: Machine) -> None:
    m.stack.append(Dict())


def _empty_set(m: Machine) -> None:
    m.stack.append(Set())


def _list(m: Machine) -> None:
    items = m.to_mark()
    m.stack.append(items)


def _dict(m: Machine) -> None:
    made = Dict()
    items = m.to_mark()
    m.stack.append(made)
    _set_items(m, items)


def _frozenset(m: Machine) -> None:
    items = m.to_mark()
    m.stack.append(FrozenSet(tuple(items)))


def _append(m: Machine) -> None:
    item = m.stack.pop()
    target = m.stack[-1]
    if type(target) is list:
        target.append(item)
    else:
        _extend(m, [item])


def _appends(m: Machine) -> None:
    items = m.to_mark()
    _extend(m, items)


def _extend(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    elif items:
        mutate(m, "append", items)


def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    target = m.stack[-1]
    if type(target) is Dict and not isinstance(key, _UNHASHABLE):
        target.add([(key, value)])
    else:
        _set_items(m, [key, value])


def _setitems(m: Machine) -> None:
    items = m.to_mark()
    _set_items(m, items)


def _set_items(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if len(items) % 2:
        raise m.damaged("sets a key without a value")
    keys = items[::2]
    pairs = list(zip(keys, items[1::2], strict=True))
    if isinstance(target, Dict):
        if not _can_be_keys(keys):
            raise m.damaged("uses a key that no dict can hold")
        target.add(pairs)
    elif items:
        if not _can_be_keys(keys):
            m.refuse("uses a key that no dict can hold")
        mutate(m, "items", pairs)


def _can_be_keys(keys: list[Any]) -> bool:
    """Return whether no key is of a kind that cannot be hashed; what tuples hold is not looked at."""
    for key in keys:  # noqa: SIM110 - a generator costs more than the few keys that most dicts have
        if type(key) is not str and isinstance(key, _UNHASHABLE):
            return False
    return True


def _additems(m: Machine) -> None:
    items = m.to_mark()
    target = m.stack[-1]
    if isinstance(target, Set):
        target.add(items)
    elif items:
        mutate(m, "add", items)


def _readonly_buffer(m: Machine) -> None:
    m.stack.append(m.stack.pop())
    m.refuse("needs something from outside of it")


def _memo_index(m: Machine) -> int:
    """Return the number of a memo entry, which GET and PUT write as text."""
    try:
        index, is_agreed = memo_index(m.line())
    except ValueError:
        raise m.damaged("holds a number that is none") from None
    if index < 0:
        raise m.damaged("numbers a memo entry below 0")
    if not is_agreed:
        m.refuse("holds a number that is none")
    return index


def _get(m: Machine) -> None:
    m.stack.append(m.memo[_memo_index(m)])


def _long_binget(m: Machine) -> None:
    m.stack.append(m.memo[uint32(m)])


def _put(m: Machine) -> None:
    m.memo[_memo_index(m)] = m.stack[-1]


def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


# Each opcode by its byte: its name, and what carries it out.
VALUE_OPCODES: dict[bytes, tuple[str, Handler]] = {
    b"\x80": ("PROTO", _proto), b"\x95": ("FRAME", _frame), b".": ("STOP", _stop), b"N": ("NONE", _constant(None)),
    b"\x88": ("NEWTRUE", _constant(True)), b"\x89": ("NEWFALSE", _constant(False)), b"I": ("INT", _int),
    b"L": ("LONG", _long), b"J": ("BININT", _binint), b"K": ("BININT1", _elsewhere), b"M": ("BININT2", _binint2),
    b"\x8a": ("LONG1", _long1), b"\x8b": ("LONG4", _long4), b"F": ("FLOAT", _float), b"G": ("BINFLOAT", _binfloat),
    b"S": ("STRING", _string), b"T": ("BINSTRING", _binstring), b"U": ("SHORT_BINSTRING", _short_binstring),
    b"V": ("UNICODE", _unicode), b"X": ("BINUNICODE", _binunicode), b"\x8c": ("SHORT_BINUNICODE", _short_binunicode),
    b"\x8d": ("BINUNICODE8", _binunicode8), b"B": ("BINBYTES", _binbytes), b"C": ("SHORT_BINBYTES", _short_binbytes),
    b"\x8e": ("BINBYTES8", _binbytes8), b"\x96": ("BYTEARRAY8", _bytearray8), b"(": ("MARK", _mark),
    b"0": ("POP", _pop), b"1": ("POP_MARK", _pop_mark), b"2": ("DUP", _dup), b")": ("EMPTY_TUPLE", _constant(())),
    b"t": ("TUPLE", _tuple), b"\x85": ("TUPLE1", _tuple1), b"\x86": ("TUPLE2", _tuple2), b"\x87": ("TUPLE3", _tuple3),
    b"]": ("EMPTY_LIST", _empty_list), b"l": ("LIST", _list), b"a": ("APPEND", _append), b"e": ("APPENDS", _appends),
    b"}": ("EMPTY_DICT", _empty_dict), b"d": ("DICT", _dict), b"s": ("SETITEM", _setitem),
    b"u": ("SETITEMS", _setitems), b"\x8f": ("EMPTY_SET", _empty_set), b"\x90": ("ADDITEMS", _additems),
    b"\x91": ("FROZENSET", _frozenset), b"g": ("GET", _get), b"h": ("BINGET", _elsewhere),
    b"j": ("LONG_BINGET", _long_binget), b"p": ("PUT", _put), b"q": ("BINPUT", _elsewhere),
    b"r": ("LONG_BINPUT", _elsewhere), b"\x94": ("MEMOIZE", _memoize), b"\x97": ("NEXT_BUFFER", _next_buffer),
    b"\x98": ("READONLY_BUFFER", _readonly_buffer),
}  # fmt: skip
