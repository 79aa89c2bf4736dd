"""What each opcode of a pickle does to the machine that reads it; nothing is imported, looked up or called.

Reference: Lib/pickletools.py of CPython, which says the same in prose.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable
from typing import Any

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, Global, How, Persistent, PyString, Set, class_of

MAX_DIGITS = 4300  # of a decimal number, as in CPython
MAX_PROTOCOL = 5


class Stop(Exception):
    """The STOP opcode was reached."""


class Machine:
    """The state of a pickle that is being read: where it is, its stack, its marks and its memo.

    `base` is where `data` begins in its file, for errors; `wants_more` says that it ends inside of the pickle.
    """

    __slots__ = (
        "at", "base", "count", "data", "globals", "marks", "memo", "opcode_at", "persistent", "protocol", "room",
        "size", "stack", "wants_more",
    )  # fmt: skip

    def __init__(self, data: bytes, offset: int, base: int = 0) -> None:
        self.data = data
        self.base = base
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

    def damaged(self, what: str) -> FormatError:
        """The error for a malformed pickle, with the byte of the opcode that cannot be carried out."""
        byte = self.data[self.opcode_at] if self.opcode_at < self.size else None
        opcode = f", opcode {NAMES.get(byte, hex(byte))}" if byte is not None else ""
        return FormatError(f"pickle is damaged: it {what} (byte {self.base + self.opcode_at:,}{opcode})")

    def cut(self, what: str) -> FormatError:
        """The error for a pickle that goes on behind the data."""
        self.wants_more = True
        return self.damaged(what)

    def take(self, n: int) -> bytes:
        """The next `n` bytes of the pickle."""
        end = self.at + n
        if n < 0 or end > self.size:
            raise self.cut(f"announces {n:,} bytes and {self.size - self.at:,} are left")
        data = self.data[self.at : end]
        self.at = end
        return data

    def line(self) -> bytes:
        """Up to the next newline, which is taken but not returned."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise self.cut("has a line that never ends")
        data = self.data[self.at : end]
        self.at = end + 1
        return data

    def to_mark(self) -> list[Any]:
        """The values above the last MARK, which are taken off."""
        if not self.marks:
            raise self.damaged("goes back to a MARK that is not there")
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def named(self, module: str, name: str) -> Global:
        """The node of a name, one and the same each time."""
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
        return found


def _u1(m: Machine) -> int:
    n = m.data[m.at]
    m.at += 1
    return n


def _u2(m: Machine) -> int:
    (n,) = _UINT16(m.data, m.at)
    m.at += 2
    return n  # type: ignore[no-any-return]


def _u4(m: Machine) -> int:
    (n,) = UINT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


def _u8(m: Machine) -> int:
    (n,) = _UINT64(m.data, m.at)
    m.at += 8
    return n  # type: ignore[no-any-return]


def _i4(m: Machine) -> int:
    (n,) = _INT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


_UINT16 = struct.Struct("<H").unpack_from
UINT32 = struct.Struct("<I").unpack_from
_UINT64 = struct.Struct("<Q").unpack_from
_INT32 = struct.Struct("<i").unpack_from
_FLOAT = struct.Struct(">d").unpack_from

Handler = Callable[[Machine], None]


def _unknown(m: Machine) -> None:
    raise m.damaged("has an opcode that no pickle has")


def _elsewhere(m: Machine) -> None:
    raise AssertionError("the loop that reads opcodes handles this one itself")


def _refused(m: Machine) -> None:
    raise m.damaged("needs something from outside of it")


def _proto(m: Machine) -> None:
    n = _u1(m)
    if n > MAX_PROTOCOL:
        raise m.damaged(f"says protocol {n}, and the newest is {MAX_PROTOCOL}")
    m.protocol = max(m.protocol, n)


def _frame(m: Machine) -> None:
    n = _u8(m)
    if n > m.size - m.at:
        raise m.cut(f"announces a frame of {n:,} bytes and {m.size - m.at:,} are left")


def _stop(m: Machine) -> None:
    if not m.stack:
        raise m.damaged("ends with nothing")
    raise Stop


def _constant(value: object) -> Handler:
    def push(m: Machine) -> None:
        m.stack.append(value)

    return push


def _integer(m: Machine, text: bytes) -> int:
    if len(text) > MAX_DIGITS:
        raise m.damaged(f"holds a number of {len(text):,} digits")
    try:
        return int(text, 0) if text.strip() != b"" else int(text)
    except ValueError:
        raise m.damaged("holds a number that is none") from None


def _int(m: Machine) -> None:
    text = m.line()
    m.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(m, text))


def _long(m: Machine) -> None:
    text = m.line()
    m.stack.append(_integer(m, text.removesuffix(b"L")))


def _binint(m: Machine) -> None:
    m.stack.append(_i4(m))


def _binint2(m: Machine) -> None:
    m.stack.append(_u2(m))


def _long1(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_u1(m)), "little", signed=True))


def _long4(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_i4(m)), "little", signed=True))


def _float(m: Machine) -> None:
    try:
        m.stack.append(float(m.line()))
    except ValueError:
        raise m.damaged("holds a number that is none") from None


def _binfloat(m: Machine) -> None:
    m.stack.append(_FLOAT(m.data, m.at)[0])
    m.at += 8


def _string(m: Machine) -> None:
    text = m.line().rstrip(b"\r")
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise m.damaged("holds a string without its quotes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an escape that Python does not know stands for itself, here as there
            m.stack.append(PyString(codecs.escape_decode(text[1:-1])[0]))
    except ValueError:
        raise m.damaged("holds a string with a broken escape") from None


def _binstring(m: Machine) -> None:
    m.stack.append(PyString(m.take(_i4(m))))


def _short_binstring(m: Machine) -> None:
    m.stack.append(PyString(m.take(_u1(m))))


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
    m.stack.append(m.take(_u1(m)).decode("utf-8", "surrogatepass"))


def _binunicode8(m: Machine) -> None:
    m.stack.append(m.take(_u8(m)).decode("utf-8", "surrogatepass"))


def _binbytes(m: Machine) -> None:
    m.stack.append(m.take(_u4(m)))


def _short_binbytes(m: Machine) -> None:
    m.stack.append(m.take(_u1(m)))


def _binbytes8(m: Machine) -> None:
    m.stack.append(m.take(_u8(m)))


def _bytearray8(m: Machine) -> None:
    m.stack.append(bytearray(m.take(_u8(m))))


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
    _extend(m, [item])


def _appends(m: Machine) -> None:
    items = m.to_mark()
    _extend(m, items)


def _extend(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    else:
        _mutate(m, "append", items)


def _setitem(m: Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _setitems(m: Machine) -> None:
    items = m.to_mark()
    _set_items(m, items)


def _set_items(m: Machine, items: list[Any]) -> None:
    if len(items) % 2:
        raise m.damaged("sets a key without a value")
    keys = items[::2]
    for key in keys:
        if type(key) is not str and isinstance(key, list | Dict | Set | bytearray):
            raise m.damaged("uses a key that no dict can hold")
    pairs = zip(keys, items[1::2], strict=True)
    target = m.stack[-1]
    if isinstance(target, Dict):
        target.pairs.extend(pairs)
    else:
        _mutate(m, "items", list(pairs))


def _additems(m: Machine) -> None:
    items = m.to_mark()
    target = m.stack[-1]
    if isinstance(target, Set):
        target.items.extend(items)
    else:
        _mutate(m, "add", items)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    _mutate(m, "build", [state])


def _mutate(m: Machine, verb: str, values: list[Any]) -> None:
    """Note what would be done to an object. Tensors take no items: no writer sets any, only an attack."""
    target = m.stack[-1]
    if not isinstance(target, Call):
        raise m.damaged(f"does to a {type(target).__name__} what that cannot take")
    if verb != "build" and isinstance(target.func, Global) and target.func.name.startswith("_rebuild"):
        raise m.damaged("sets items of a tensor")
    if target.mutations is None:
        target.mutations = []
    target.mutations.extend((verb, value) for value in values)


def _global(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(m.named(_ascii(module), _ascii(name)))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.room -= _length(m, module) + _length(m, name)
    if m.room < 0:
        raise m.damaged("looks up longer names than it can hold")
    m.stack.append(m.named(_name(module), _name(name)))


def _ascii(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _length(m: Machine, node: object) -> int:
    if isinstance(node, PyString):
        return len(node.raw)
    if not isinstance(node, str):
        raise m.damaged("looks up a name that is no text")
    return len(node)


def _name(node: Any) -> str:
    return node.text if isinstance(node, PyString) else str(node)


def _call(m: Machine, func: Any, args: Any, kwargs: Any, how: How) -> None:
    if not isinstance(func, Global | Call) and class_of(func) is None:
        raise m.damaged(f"calls a {type(func).__name__}")
    if not isinstance(args, tuple):
        raise m.damaged("calls something with arguments that are no tuple")
    m.stack.append(Call(func, args, kwargs, how))


def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    func = m.stack.pop()
    if type(func) is Global and type(args) is tuple:  # as good as always
        m.stack.append(Call(func, args))
    else:
        _call(m, func, args, None, "reduce")


def _newobj(m: Machine) -> None:
    args = m.stack.pop()
    func = m.stack.pop()
    _call(m, func, args, None, "newobj")


def _newobj_ex(m: Machine) -> None:
    kwargs = m.stack.pop()
    args = m.stack.pop()
    func = m.stack.pop()
    if not isinstance(kwargs, Dict):
        raise m.damaged("calls something with keywords that are no dict")
    _call(m, func, args, kwargs, "newobj_ex")


def _obj(m: Machine) -> None:
    items = m.to_mark()
    if not items:
        raise m.damaged("makes an object of no class")
    _call(m, items[0], tuple(items[1:]), None, "obj")


def _inst(m: Machine) -> None:
    module, name = m.line(), m.line()
    func = m.named(_ascii(module), _ascii(name))
    items = m.to_mark()
    _call(m, func, tuple(items), None, "obj")


def _persid(m: Machine) -> None:
    node = Persistent(_ascii(m.line()))
    m.persistent.append(node)
    m.stack.append(node)


def _binpersid(m: Machine) -> None:
    node = Persistent(m.stack[-1])
    m.persistent.append(node)
    m.stack[-1] = node


def _get(m: Machine) -> None:
    m.stack.append(m.memo[_integer(m, m.line())])


def _long_binget(m: Machine) -> None:
    m.stack.append(m.memo[_u4(m)])


def _put(m: Machine) -> None:
    m.memo[_integer(m, m.line())] = m.stack[-1]


def _memoize(m: Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


_OPCODES: dict[bytes, tuple[str, Handler]] = {
    b"\x80": ("PROTO", _proto), b"\x95": ("FRAME", _frame), b".": ("STOP", _stop),
    b"N": ("NONE", _constant(None)), b"\x88": ("NEWTRUE", _constant(True)), b"\x89": ("NEWFALSE", _constant(False)),
    b"I": ("INT", _int), b"L": ("LONG", _long), b"J": ("BININT", _binint), b"K": ("BININT1", _elsewhere),
    b"M": ("BININT2", _binint2), b"\x8a": ("LONG1", _long1), b"\x8b": ("LONG4", _long4),
    b"F": ("FLOAT", _float), b"G": ("BINFLOAT", _binfloat),
    b"S": ("STRING", _string), b"T": ("BINSTRING", _binstring), b"U": ("SHORT_BINSTRING", _short_binstring),
    b"V": ("UNICODE", _unicode), b"X": ("BINUNICODE", _binunicode), b"\x8c": ("SHORT_BINUNICODE", _short_binunicode),
    b"\x8d": ("BINUNICODE8", _binunicode8), b"B": ("BINBYTES", _binbytes), b"C": ("SHORT_BINBYTES", _short_binbytes),
    b"\x8e": ("BINBYTES8", _binbytes8), b"\x96": ("BYTEARRAY8", _bytearray8),
    b"(": ("MARK", _mark), b"0": ("POP", _pop), b"1": ("POP_MARK", _pop_mark), b"2": ("DUP", _dup),
    b")": ("EMPTY_TUPLE", _constant(())), b"t": ("TUPLE", _tuple), b"\x85": ("TUPLE1", _tuple1),
    b"\x86": ("TUPLE2", _tuple2), b"\x87": ("TUPLE3", _tuple3),
    b"]": ("EMPTY_LIST", _empty_list), b"l": ("LIST", _list), b"a": ("APPEND", _append), b"e": ("APPENDS", _appends),
    b"}": ("EMPTY_DICT", _empty_dict), b"d": ("DICT", _dict), b"s": ("SETITEM", _setitem),
    b"u": ("SETITEMS", _setitems),
    b"\x8f": ("EMPTY_SET", _empty_set), b"\x90": ("ADDITEMS", _additems), b"\x91": ("FROZENSET", _frozenset),
    b"c": ("GLOBAL", _global), b"\x93": ("STACK_GLOBAL", _stack_global), b"R": ("REDUCE", _reduce),
    b"b": ("BUILD", _build), b"\x81": ("NEWOBJ", _newobj), b"\x92": ("NEWOBJ_EX", _newobj_ex),
    b"o": ("OBJ", _obj), b"i": ("INST", _inst), b"P": ("PERSID", _persid), b"Q": ("BINPERSID", _binpersid),
    b"g": ("GET", _get), b"h": ("BINGET", _elsewhere), b"j": ("LONG_BINGET", _long_binget),
    b"p": ("PUT", _put), b"q": ("BINPUT", _elsewhere), b"r": ("LONG_BINPUT", _elsewhere),
    b"\x94": ("MEMOIZE", _memoize),
    b"\x82": ("EXT1", _refused), b"\x83": ("EXT2", _refused), b"\x84": ("EXT4", _refused),
    b"\x97": ("NEXT_BUFFER", _refused), b"\x98": ("READONLY_BUFFER", _refused),
}  # fmt: skip
HANDLERS: list[Handler] = [_OPCODES.get(bytes([i]), ("", _unknown))[1] for i in range(256)]
NAMES: dict[int | None, str] = {code[0]: name for code, (name, _) in _OPCODES.items()}
