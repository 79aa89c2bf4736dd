"""A pickle read as plain data: a symbolic machine that imports nothing, looks nothing up, calls nothing.

Reference: Lib/pickle.py and Lib/pickletools.py of CPython. Plain values stand for themselves; what a real
unpickler would look up or call becomes a node that says so. `pickle_writer` writes a graph back.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from paramctl.errors import FormatError

MAX_DIGITS = 4300  # of a decimal number, as in CPython
MAX_PROTOCOL = 5
How = Literal["reduce", "newobj", "newobj_ex", "obj"]


class Global:
    """The name of a class or function: `module.name`. It stands for nothing but its name."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}"


class PyString:
    """A Python 2 `str`: bytes that were text, in a coding nobody recorded."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    @property
    def text(self) -> str:
        try:
            return self.raw.decode("utf-8")
        except UnicodeDecodeError:
            return self.raw.decode("latin-1")


class Dict:
    """A dict as the pairs that were set, in order; keys are never hashed, so no key can cost anything."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []

    def get(self, name: str, default: object = None) -> Any:
        """The value under a text key; of several the last, as in Python."""
        for key, value in reversed(self.pairs):
            if key == name if isinstance(key, str) else isinstance(key, PyString) and key.text == name:
                return value
        return default


class Set:
    """A set as the items that were added, in order."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[Any] = []


class FrozenSet:
    """A frozenset as its items, in order."""

    __slots__ = ("items",)

    def __init__(self, items: tuple[Any, ...]) -> None:
        self.items = items


class Call:
    """What a real unpickler would make by calling `func(*args)`, and what it would then do to it.

    `mutations` are, in order, ("build", state), ("items", (key, value)), ("append", x), ("add", x).
    """

    __slots__ = ("args", "func", "how", "kwargs", "mutations")

    def __init__(self, func: Any, args: Any, kwargs: Any = None, how: How = "reduce") -> None:
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.how = how
        self.mutations: list[tuple[str, Any]] | None = None

    def _all(self, verb: str) -> list[Any]:
        return [value for name, value in self.mutations or () if name == verb]

    @property
    def state(self) -> Any:
        """The last state it was built from, or None."""
        states = self._all("build")
        return states[-1] if states else None

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """The items set on it, as on a dict."""
        return self._all("items")

    @property
    def elements(self) -> list[Any]:
        """The elements appended to it, as to a list."""
        return self._all("append")


class Persistent:
    """An object kept outside of the pickle, by the id it is known under."""

    __slots__ = ("pid",)

    def __init__(self, pid: Any) -> None:
        self.pid = pid


class Pickle(NamedTuple):
    """What a pickle holds.

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
    machine = _Machine(data, offset)
    try:
        root = machine.run()
    except (IndexError, struct.error, KeyError) as error:
        raise machine.damaged(_REASONS.get(type(error), "is malformed")) from None
    except UnicodeDecodeError:
        raise machine.damaged("has text that is not UTF-8") from None
    return Pickle(
        root, machine.protocol, machine.at, machine.count, tuple(machine.globals.values()), tuple(machine.persistent)
    )


_REASONS: dict[type[Exception], str] = {
    IndexError: "takes a value from an empty stack, or ends before its STOP",
    struct.error: "is cut off inside an argument",
    KeyError: "fetches a memo entry that was never put",
}


class _Stop(Exception):
    """The STOP opcode was reached."""


class _Machine:
    __slots__ = (
        "at", "count", "data", "globals", "marks", "memo", "opcode_at", "persistent", "protocol", "size", "stack",
    )  # fmt: skip

    def __init__(self, data: bytes, offset: int) -> None:
        self.data = data
        self.size = len(data)
        self.at = offset
        self.opcode_at = offset
        self.count = 0
        self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[tuple[str, str], Global] = {}
        self.persistent: list[Persistent] = []

    def run(self) -> Any:
        """Carry out every opcode up to STOP. Those that make up most of a pickle are handled here, at
        half the price of a call."""
        data, handlers, memo = self.data, _HANDLERS, self.memo
        count = 0
        try:
            while True:
                at = self.opcode_at = self.at
                opcode = data[at]
                count += 1
                if opcode == _LONG_BINPUT:
                    memo[_UINT32(data, at + 1)[0]] = self.stack[-1]
                    self.at = at + 5
                elif opcode == _BINPUT:
                    memo[data[at + 1]] = self.stack[-1]
                    self.at = at + 2
                elif opcode == _BINGET:
                    self.stack.append(memo[data[at + 1]])
                    self.at = at + 2
                elif opcode == _BININT1:
                    self.stack.append(data[at + 1])
                    self.at = at + 2
                else:
                    self.at = at + 1
                    handlers[opcode](self)
        except _Stop:
            self.count = count
            return self.stack.pop()

    def damaged(self, what: str) -> FormatError:
        byte = self.data[self.opcode_at] if self.opcode_at < self.size else None
        opcode = f", opcode {_NAMES.get(byte, hex(byte))}" if byte is not None else ""
        return FormatError(f"pickle is damaged: it {what} (byte {self.opcode_at:,}{opcode})")

    def take(self, n: int) -> bytes:
        """The next `n` bytes of the pickle."""
        end = self.at + n
        if n < 0 or end > self.size:
            raise self.damaged(f"announces {n:,} bytes and {self.size - self.at:,} are left")
        data = self.data[self.at : end]
        self.at = end
        return data

    def line(self) -> bytes:
        """Up to the next newline, which is taken but not returned."""
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise self.damaged("has a line that never ends")
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
        found = self.globals.get((module, name))
        if found is None:
            found = self.globals[module, name] = Global(module, name)
        return found


def _u1(m: _Machine) -> int:
    n = m.data[m.at]
    m.at += 1
    return n


def _u2(m: _Machine) -> int:
    (n,) = _UINT16(m.data, m.at)
    m.at += 2
    return n  # type: ignore[no-any-return]


def _u4(m: _Machine) -> int:
    (n,) = _UINT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


def _u8(m: _Machine) -> int:
    (n,) = _UINT64(m.data, m.at)
    m.at += 8
    return n  # type: ignore[no-any-return]


def _i4(m: _Machine) -> int:
    (n,) = _INT32(m.data, m.at)
    m.at += 4
    return n  # type: ignore[no-any-return]


_UINT16 = struct.Struct("<H").unpack_from
_UINT32 = struct.Struct("<I").unpack_from
_UINT64 = struct.Struct("<Q").unpack_from
_INT32 = struct.Struct("<i").unpack_from
_FLOAT = struct.Struct(">d").unpack_from

_LONG_BINPUT, _BINPUT, _BINGET, _BININT1 = b"rqhK"

Handler = Callable[[_Machine], None]


def _unknown(m: _Machine) -> None:
    raise m.damaged("has an opcode that no pickle has")


def _refused(m: _Machine) -> None:
    raise m.damaged("needs something from outside of it")


def _proto(m: _Machine) -> None:
    n = _u1(m)
    if n > MAX_PROTOCOL:
        raise m.damaged(f"says protocol {n}, and the newest is {MAX_PROTOCOL}")
    m.protocol = max(m.protocol, n)


def _frame(m: _Machine) -> None:
    n = _u8(m)
    if n > m.size - m.at:
        raise m.damaged(f"announces a frame of {n:,} bytes and {m.size - m.at:,} are left")


def _stop(m: _Machine) -> None:
    if not m.stack:
        raise m.damaged("ends with nothing")
    raise _Stop


def _constant(value: object) -> Handler:
    def push(m: _Machine) -> None:
        m.stack.append(value)

    return push


def _integer(m: _Machine, text: bytes) -> int:
    if len(text) > MAX_DIGITS:
        raise m.damaged(f"holds a number of {len(text):,} digits")
    try:
        return int(text, 0) if text.strip() != b"" else int(text)
    except ValueError:
        raise m.damaged("holds a number that is none") from None


def _int(m: _Machine) -> None:
    text = m.line()
    m.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(m, text))


def _long(m: _Machine) -> None:
    text = m.line()
    m.stack.append(_integer(m, text.removesuffix(b"L")))


def _binint(m: _Machine) -> None:
    m.stack.append(_i4(m))


def _binint2(m: _Machine) -> None:
    m.stack.append(_u2(m))


def _long1(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_u1(m)), "little", signed=True))


def _long4(m: _Machine) -> None:
    m.stack.append(int.from_bytes(m.take(_i4(m)), "little", signed=True))


def _float(m: _Machine) -> None:
    try:
        m.stack.append(float(m.line()))
    except ValueError:
        raise m.damaged("holds a number that is none") from None


def _binfloat(m: _Machine) -> None:
    m.stack.append(_FLOAT(m.data, m.at)[0])
    m.at += 8


def _string(m: _Machine) -> None:
    import codecs

    text = m.line().rstrip(b"\r")
    if len(text) < 2 or text[:1] != text[-1:] or text[:1] not in (b"'", b'"'):
        raise m.damaged("holds a string without its quotes")
    try:
        m.stack.append(PyString(codecs.escape_decode(text[1:-1])[0]))
    except ValueError:
        raise m.damaged("holds a string with a broken escape") from None


def _binstring(m: _Machine) -> None:
    m.stack.append(PyString(m.take(_i4(m))))


def _short_binstring(m: _Machine) -> None:
    m.stack.append(PyString(m.take(_u1(m))))


def _unicode(m: _Machine) -> None:
    m.stack.append(m.line().decode("raw-unicode-escape"))


def _binunicode(m: _Machine) -> None:
    start = m.at + 4
    end = m.at = start + _UINT32(m.data, m.at)[0]
    if end > m.size:
        m.at = start
        m.take(end - start)
    m.stack.append(str(m.data[start:end], "utf-8", "surrogatepass"))


def _short_binunicode(m: _Machine) -> None:
    m.stack.append(m.take(_u1(m)).decode("utf-8", "surrogatepass"))


def _binunicode8(m: _Machine) -> None:
    m.stack.append(m.take(_u8(m)).decode("utf-8", "surrogatepass"))


def _binbytes(m: _Machine) -> None:
    m.stack.append(m.take(_u4(m)))


def _short_binbytes(m: _Machine) -> None:
    m.stack.append(m.take(_u1(m)))


def _binbytes8(m: _Machine) -> None:
    m.stack.append(m.take(_u8(m)))


def _bytearray8(m: _Machine) -> None:
    m.stack.append(bytearray(m.take(_u8(m))))


def _mark(m: _Machine) -> None:
    m.marks.append(m.stack)
    m.stack = []


def _pop(m: _Machine) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.to_mark()


def _pop_mark(m: _Machine) -> None:
    m.to_mark()


def _dup(m: _Machine) -> None:
    m.stack.append(m.stack[-1])


def _tuple(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append(tuple(items))


def _tuple1(m: _Machine) -> None:
    m.stack[-1] = (m.stack[-1],)


def _tuple2(m: _Machine) -> None:
    b, a = m.stack.pop(), m.stack.pop()
    m.stack.append((a, b))


def _tuple3(m: _Machine) -> None:
    c, b, a = m.stack.pop(), m.stack.pop(), m.stack.pop()
    m.stack.append((a, b, c))


def _empty_list(m: _Machine) -> None:
    m.stack.append([])


def _empty_dict(m: _Machine) -> None:
    m.stack.append(Dict())


def _empty_set(m: _Machine) -> None:
    m.stack.append(Set())


def _list(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append(items)


def _dict(m: _Machine) -> None:
    made = Dict()
    items = m.to_mark()
    m.stack.append(made)
    _set_items(m, items)


def _frozenset(m: _Machine) -> None:
    items = m.to_mark()
    m.stack.append(FrozenSet(tuple(items)))


def _append(m: _Machine) -> None:
    item = m.stack.pop()
    _extend(m, [item])


def _appends(m: _Machine) -> None:
    items = m.to_mark()
    _extend(m, items)


def _extend(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if isinstance(target, list):
        target.extend(items)
    else:
        _mutate(m, "append", items)


def _setitem(m: _Machine) -> None:
    value, key = m.stack.pop(), m.stack.pop()
    _set_items(m, [key, value])


def _setitems(m: _Machine) -> None:
    items = m.to_mark()
    _set_items(m, items)


def _set_items(m: _Machine, items: list[Any]) -> None:
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


def _additems(m: _Machine) -> None:
    items = m.to_mark()
    target = m.stack[-1]
    if isinstance(target, Set):
        target.items.extend(items)
    else:
        _mutate(m, "add", items)


def _build(m: _Machine) -> None:
    state = m.stack.pop()
    _mutate(m, "build", [state])


def _mutate(m: _Machine, verb: str, values: list[Any]) -> None:
    """Note what would be done to an object. Tensors take no items: no writer sets any, only an attack."""
    target = m.stack[-1]
    if not isinstance(target, Call):
        raise m.damaged(f"does to a {type(target).__name__} what that cannot take")
    if verb != "build" and isinstance(target.func, Global) and target.func.name.startswith("_rebuild"):
        raise m.damaged("sets items of a tensor")
    if target.mutations is None:
        target.mutations = []
    target.mutations.extend((verb, value) for value in values)


def _global(m: _Machine) -> None:
    module, name = m.line(), m.line()
    m.stack.append(m.named(_ascii(module), _ascii(name)))


def _stack_global(m: _Machine) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(m.named(_name(m, module), _name(m, name)))


def _ascii(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _name(m: _Machine, node: object) -> str:
    if isinstance(node, PyString):
        return node.text
    if not isinstance(node, str):
        raise m.damaged("looks up a name that is no text")
    return node


def _call(m: _Machine, func: Any, args: Any, kwargs: Any, how: How) -> None:
    if not isinstance(func, Global | Call):
        raise m.damaged(f"calls a {type(func).__name__}")
    if not isinstance(args, tuple):
        raise m.damaged("calls something with arguments that are no tuple")
    m.stack.append(Call(func, args, kwargs, how))


def _reduce(m: _Machine) -> None:
    args = m.stack.pop()
    func = m.stack.pop()
    if type(func) is Global and type(args) is tuple:  # as good as always
        m.stack.append(Call(func, args))
    else:
        _call(m, func, args, None, "reduce")


def _newobj(m: _Machine) -> None:
    args = m.stack.pop()
    func = m.stack.pop()
    _call(m, func, args, None, "newobj")


def _newobj_ex(m: _Machine) -> None:
    kwargs = m.stack.pop()
    args = m.stack.pop()
    func = m.stack.pop()
    if not isinstance(kwargs, Dict):
        raise m.damaged("calls something with keywords that are no dict")
    _call(m, func, args, kwargs, "newobj_ex")


def _obj(m: _Machine) -> None:
    items = m.to_mark()
    if not items:
        raise m.damaged("makes an object of no class")
    _call(m, items[0], tuple(items[1:]), None, "obj")


def _inst(m: _Machine) -> None:
    module, name = m.line(), m.line()
    func = m.named(_ascii(module), _ascii(name))
    items = m.to_mark()
    _call(m, func, tuple(items), None, "obj")


def _persid(m: _Machine) -> None:
    node = Persistent(_ascii(m.line()))
    m.persistent.append(node)
    m.stack.append(node)


def _binpersid(m: _Machine) -> None:
    node = Persistent(m.stack[-1])
    m.persistent.append(node)
    m.stack[-1] = node


def _get(m: _Machine) -> None:
    m.stack.append(m.memo[_integer(m, m.line())])


def _long_binget(m: _Machine) -> None:
    m.stack.append(m.memo[_u4(m)])


def _put(m: _Machine) -> None:
    m.memo[_integer(m, m.line())] = m.stack[-1]


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


_OPCODES: dict[bytes, tuple[str, Handler]] = {
    b"\x80": ("PROTO", _proto), b"\x95": ("FRAME", _frame), b".": ("STOP", _stop),
    b"N": ("NONE", _constant(None)), b"\x88": ("NEWTRUE", _constant(True)), b"\x89": ("NEWFALSE", _constant(False)),
    b"I": ("INT", _int), b"L": ("LONG", _long), b"J": ("BININT", _binint), b"K": ("BININT1", _unknown),
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
    b"g": ("GET", _get), b"h": ("BINGET", _unknown), b"j": ("LONG_BINGET", _long_binget),
    b"p": ("PUT", _put), b"q": ("BINPUT", _unknown), b"r": ("LONG_BINPUT", _unknown), b"\x94": ("MEMOIZE", _memoize),
    b"\x82": ("EXT1", _refused), b"\x83": ("EXT2", _refused), b"\x84": ("EXT4", _refused),
    b"\x97": ("NEXT_BUFFER", _refused), b"\x98": ("READONLY_BUFFER", _refused),
}  # fmt: skip
_HANDLERS: list[Handler] = [_OPCODES.get(bytes([i]), ("", _unknown))[1] for i in range(256)]
_NAMES: dict[int | None, str] = {code[0]: name for code, (name, _) in _OPCODES.items()}


def describe(node: object) -> str:
    """A short text for something foreign: the name of its class or function."""
    if isinstance(node, Global):
        return node.full[:80]
    if isinstance(node, Call):
        cls = node.func
        if isinstance(cls, Global) and cls.name in ("__newobj__", "_reconstructor", "_reconstruct") and node.args:
            cls = node.args[0]
        return f"{cls.full[:70]}(…)" if isinstance(cls, Global) else "an object made by a call of a call"
    return f"a {type(node).__name__.lower()}"
