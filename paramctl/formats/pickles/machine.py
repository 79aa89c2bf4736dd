"""What each opcode of a pickle does to the machine that reads it; nothing is imported, looked up or called.

Reference: Lib/pickletools.py of CPython, which says the same in prose, and `pickle_readers`, which lists where
the programs that read pickles differ.
"""

from __future__ import annotations

import codecs
import struct
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from paramctl.errors import FormatError
from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, Global, How, Persistent, PyString, Set, class_of
from paramctl.formats.pickles.reader_differences import DISAGREE, HIDDEN, MAX_DIGITS, decimal, memo_index, whole_number

MAX_PROTOCOL = 5


class Stop(Exception):
    """The STOP opcode was reached."""


class FrameBegins(Exception):
    """The FRAME opcode was reached: what follows is read from the frame alone."""


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
        opcode = f", opcode {NAMES.get(byte, hex(byte))}" if byte is not None else ""
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
        """Up to the next newline, which is taken but not returned."""
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


def _u1(m: Machine) -> int:
    if m.at >= m.size:
        raise m.cut("is cut off inside an argument")
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


def _next_buffer(m: Machine) -> None:
    raise m.damaged("needs something from outside of it")


def _proto(m: Machine) -> None:
    n = _u1(m)
    if n > MAX_PROTOCOL:
        raise m.damaged(f"says protocol {n}, and the newest is {MAX_PROTOCOL}")
    m.protocol = max(m.protocol, n)


def _frame(m: Machine) -> None:
    n = _u8(m)
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
    m.stack.append(_i4(m))


def _binint2(m: Machine) -> None:
    m.stack.append(_u2(m))


def _long1(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_u1(m)), "little", signed=True))


def _long4(m: Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_i4(m)), "little", signed=True))


def _float(m: Machine) -> None:
    m.stack.append(_parsed(m, m.line(), decimal, 0.0))


def _binfloat(m: Machine) -> None:
    m.stack.append(_FLOAT(m.data, m.at)[0])
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
    m.stack.append(PyString(m.take(_i4(m))))  # C takes the length for unsigned: no pickle here is as long as that


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
    elif items:
        _mutate(m, "append", items)


_UNHASHABLE = (list, Dict, Set, bytearray)


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
        _mutate(m, "items", pairs)


def _can_be_keys(keys: list[Any]) -> bool:
    """Return whether no key is of a kind that cannot be hashed; what tuples hold is not looked at."""
    return not any(type(key) is not str and isinstance(key, _UNHASHABLE) for key in keys)


def _additems(m: Machine) -> None:
    items = m.to_mark()
    target = m.stack[-1]
    if isinstance(target, Set):
        target.add(items)
    elif items:
        _mutate(m, "add", items)


def _build(m: Machine) -> None:
    state = m.stack.pop()
    _mutate(m, "build", [state])


def _mutate(m: Machine, verb: str, values: list[Any]) -> None:
    """Note what would be done to an object. Tensors take no items: no writer sets any, only an attack."""
    target = m.stack[-1]
    if not isinstance(target, Call):
        m.refuse(f"does to a {type(target).__name__} what that cannot take")
        return
    if verb != "build" and isinstance(target.func, Global) and target.func.name.startswith("_rebuild"):
        m.refuse("sets items of a tensor")
    if target.mutations is None:
        target.mutations = []
    target.mutations.extend((verb, value) for value in values)


def _global(m: Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(m.named(decoded(module), decoded(name)))


def _stack_global(m: Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    computed = [part for part in (module, name) if isinstance(part, Global | Call | Persistent)]
    m.room -= sum(_length(m, part) for part in (module, name) if part not in computed)
    if m.room < 0:
        raise m.damaged("looks up longer names than it can hold", HIDDEN)
    if computed:
        m.refuse("looks up a name that is no text")
        m.stack.append(Call(computed[0], (module, name)))
    else:
        m.stack.append(m.named(_name(module), _name(name)))


def decoded(text: bytes) -> str:
    """Return the text of a line: UTF-8, or else Latin-1."""
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
    if not isinstance(func, Global | Call | Persistent):
        raise m.damaged(f"calls a {type(func).__name__}")
    if isinstance(func, Persistent) and class_of(func) is None:
        m.refuse("calls a Persistent")
    if not isinstance(args, tuple):
        if args is None or isinstance(args, int | float):
            raise m.damaged("calls something with arguments that are no tuple")
        m.refuse("calls something with arguments that are no tuple")
        args = ()
    m.stack.append(Call(func, args, kwargs, how))


def _check_pairs(m: Machine, func: Global, args: tuple[Any, ...]) -> None:
    """Raise FormatError if collections.OrderedDict cannot be called so; what only calls make may be anything."""
    if func.module != "collections":
        return
    pairs = args[0] if isinstance(args[0], list | tuple) else ()
    m.room -= len(pairs)
    if m.room < 0:
        raise m.damaged("makes more of a list than it can hold", HIDDEN)
    if len(args) > 1 or args[0] is None or isinstance(args[0], int | float) or not all(map(_is_pair, pairs)):
        raise m.damaged("calls OrderedDict with what makes no dict")


def _is_pair(node: Any) -> bool:
    if isinstance(node, list | tuple | str | bytes | bytearray):
        return len(node) == 2
    return not (node is None or isinstance(node, int | float))


def _reduce(m: Machine) -> None:
    args = m.stack.pop()
    func = m.stack.pop()
    if type(func) is Global and type(args) is tuple:  # as good as always
        if args and func.name == "OrderedDict":
            _check_pairs(m, func, args)
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
        m.refuse("calls something with keywords that are no dict")
    _call(m, func, args, kwargs, "newobj_ex")


def _obj(m: Machine) -> None:
    items = m.to_mark()
    if not items:
        raise m.damaged("makes an object of no class")
    _call(m, items[0], tuple(items[1:]), None, "obj")


def _inst(m: Machine) -> None:
    module, name = m.line(), m.line()
    func = m.named(decoded(module), decoded(name))
    items = m.to_mark()
    _call(m, func, tuple(items), None, "obj")


def _persid(m: Machine) -> None:
    node = Persistent(decoded(m.line()))
    m.persistent.append(node)
    m.stack.append(node)


def _binpersid(m: Machine) -> None:
    node = Persistent(m.stack[-1])
    m.persistent.append(node)
    m.stack[-1] = node


def _extension(read: Callable[[Machine], int]) -> Handler:
    def look_up(m: Machine) -> None:
        code = read(m)
        if code <= 0:
            raise m.damaged("names an extension that cannot be registered")
        m.refuse("needs something from outside of it")
        m.stack.append(Call(m.named("copyreg", "_inverted_registry"), (code,)))

    return look_up


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
    m.stack.append(m.memo[_u4(m)])


def _put(m: Machine) -> None:
    m.memo[_memo_index(m)] = m.stack[-1]


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
    b"\x82": ("EXT1", _extension(_u1)), b"\x83": ("EXT2", _extension(_u2)), b"\x84": ("EXT4", _extension(_i4)),
    b"\x97": ("NEXT_BUFFER", _next_buffer), b"\x98": ("READONLY_BUFFER", _readonly_buffer),
}  # fmt: skip
HANDLERS: list[Handler] = [_OPCODES.get(bytes([i]), ("", _unknown))[1] for i in range(256)]
NAMES: dict[int | None, str] = {code[0]: name for code, (name, _) in _OPCODES.items()}
