"""Carry out the opcodes that name classes, call them and change objects; nothing is imported or called for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from paramctl.formats.pickles.machine import Handler, Machine, int32, uint8, uint16
from paramctl.formats.pickles.nodes import Call, Dict, Global, How, Persistent, PyString, class_of
from paramctl.formats.pickles.reader_differences import HIDDEN


def _build(m: Machine) -> None:
    state = m.stack.pop()
    target = m.stack[-1]
    if type(target) is Call and target.mutations is None:  # as good as always
        target.mutations = [("build", state)]
    else:
        mutate(m, "build", [state])


def mutate(m: Machine, verb: str, values: list[Any]) -> None:
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
    if type(func) is Global and type(args) is tuple:  # as good as always
        m.stack.append(Call(func, args, None, "newobj"))
    else:
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


# Each opcode by its byte: its name, and what carries it out.
OBJECT_OPCODES: dict[bytes, tuple[str, Handler]] = {
    b"c": ("GLOBAL", _global), b"\x93": ("STACK_GLOBAL", _stack_global), b"R": ("REDUCE", _reduce),
    b"b": ("BUILD", _build), b"\x81": ("NEWOBJ", _newobj), b"\x92": ("NEWOBJ_EX", _newobj_ex), b"o": ("OBJ", _obj),
    b"i": ("INST", _inst), b"P": ("PERSID", _persid), b"Q": ("BINPERSID", _binpersid),
    b"\x82": ("EXT1", _extension(uint8)), b"\x83": ("EXT2", _extension(uint16)), b"\x84": ("EXT4", _extension(int32)),
}  # fmt: skip
