"""A graph that `pickles.read` made, written back as a pickle that means the same.

What was one object stays one, cycles stay cycles, and every object is built and changed in the order it
was. Only opcodes that torch's own restricted unpickler reads are used, unless the graph needs others.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, NamedTuple

from paramctl.errors import Unsupported
from paramctl.formats.pickles.nodes import (
    ARGS,
    FUNC,
    KWARGS,
    Call,
    Dict,
    FrozenSet,
    Global,
    Persistent,
    PyString,
    Set,
    key_position,
    slots,
)

BATCH = 1000  # items set in one go, as CPython does
OLDEST = 2  # protocols 0 and 1 are written as 2, which every torch reads
TANGLED = 1_000_000  # items written in vain, as cycles make it, before it is given up
Replacements = Mapping[tuple[int, int], Any]


def write(root: Any, protocol: int, replace: Replacements = MappingProxyType({}), *, late: bool = False) -> bytes:
    """`root` as a pickle of `protocol`, or a newer one where a node needs it.

    `replace` maps (id(container), position) to a node to write in place of the one there. A position is
    what `slots` says. With `late`, an object is noted once it has its state, as torch's C++ reader needs it;
    then none may contain itself.
    """
    return _Writer(max(protocol, OLDEST), replace, late).run(root)


class _Op(NamedTuple):
    """Bytes to write once everything before them is."""

    code: bytes


class _Done(NamedTuple):
    """All parts of an immutable object are written: make it, and note it if it is used again."""

    node: Any
    code: bytes
    undo: bytes  # takes the parts off again, where a cycle has made the object meanwhile
    then: tuple[Any, ...] = ()


class _Note(NamedTuple):
    """Note an object for its next use."""

    node: Any


class _Writer:
    def __init__(self, protocol: int, replace: Replacements, late: bool) -> None:
        self.protocol = protocol
        self.late = late
        self.replace = replace
        self.out: list[bytes] = []
        self.memo: dict[int, int] = {}
        self.uses: Counter[int] = Counter()
        self.started: set[int] = set()
        self.in_vain = 0

    def run(self, root: Any) -> bytes:
        self.count(root)
        tasks: list[Any] = [root]
        while tasks:
            task = tasks.pop()
            if type(task) is _Op:
                self.out.append(task.code)
            elif type(task) is _Done:
                self.finish(task, tasks)
            elif type(task) is _Note:
                self.put(task.node)
            else:
                self.save(task, tasks)
        return b"\x80" + bytes([self.protocol]) + b"".join(self.out) + b"."

    def count(self, root: Any) -> None:
        """Count how often each object is used; only those used again need a memo entry."""
        todo = [root]
        while todo:
            node = todo.pop()
            if isinstance(node, bool | int | float) or node is None:
                continue
            self.uses[id(node)] += 1
            if self.uses[id(node)] == 1:
                todo.extend(self.parts(node))

    def child(self, node: Any, position: int, found: Any) -> Any:
        return self.replace.get((id(node), position), found) if self.replace else found

    def parts(self, node: Any) -> Iterator[Any]:
        """Everything a node is made of, after replacement."""
        return (self.child(node, position, held) for position, held in slots(node))

    def mutation(self, node: Call, i: int, verb: str, value: Any) -> tuple[Any, ...]:
        """Return the values that one mutation needs on the stack."""
        if verb == "items":
            return self.child(node, key_position(i), value[0]), self.child(node, i, value[1])
        return (self.child(node, i, value),)

    def save(self, node: Any, tasks: list[Any]) -> None:
        if id(node) in self.memo and not isinstance(node, bool | int | float):
            self.out.append(self.get(node))
            return
        match node:
            case None | bool() | int() | float():
                self.out.append(_number(node))
            case str() | bytes() | bytearray() | PyString() | Global():
                self.out.append(self.atom(node))
                self.put(node)
            case tuple():
                self.save_tuple(node, tasks)
            case list():
                self.out.append(b"]")
                self.put(node)
                tasks += reversed([*_batches([(x,) for x in self.parts(node)], b"a", b"e")])
            case Dict():
                self.out.append(b"}")
                self.put(node)
                parts = list(self.parts(node))
                tasks += reversed([*_batches(list(zip(parts[::2], parts[1::2], strict=True)), b"s", b"u")])
            case Set():
                self.need(4)
                self.out.append(b"\x8f")
                self.put(node)
                tasks += reversed([*_batches([(x,) for x in self.parts(node)], b"", b"\x90")])
            case FrozenSet():
                self.need(4)
                self.start(node, len(node.items))
                tasks += (_Done(node, b"\x91", b"1"), *reversed([*self.parts(node)]), _Op(b"("))
            case Persistent():
                tasks += (_Done(node, b"Q", b"0"), *self.parts(node))
            case Call():
                self.save_call(node, tasks)
            case _:
                raise TypeError(f"a {type(node).__name__} is no node of a pickle")

    def start(self, node: Any, size: int) -> None:
        """Note that an immutable object is begun.

        Where it is begun again inside of itself, through a cycle, the outer attempt is in vain. A pickle can be
        made so that this squares its size; Python's own picklers run out of recursion long before.
        """
        if id(node) in self.started:
            self.in_vain += size
            if self.in_vain > TANGLED:
                raise Unsupported("the pickle holds objects too tangled in each other to be written again")
        self.started.add(id(node))

    def save_tuple(self, node: tuple[Any, ...], tasks: list[Any]) -> None:
        items = list(self.parts(node))
        self.start(node, len(items))
        if not items:
            self.out.append(b")")
        elif len(items) <= 3:
            code = (b"\x85", b"\x86", b"\x87")[len(items) - 1]
            tasks += (_Done(node, code, b"0" * len(items)), *reversed(items))
        else:
            tasks += (_Done(node, b"t", b"1"), *reversed(items), _Op(b"("))

    def save_call(self, node: Call, tasks: list[Any]) -> None:
        if self.late and id(node) in self.started:
            raise Unsupported("the pickle holds an object that contains itself, which torch cannot read")
        if self.late:
            self.started.add(id(node))
        func, args = self.child(node, FUNC, node.func), self.child(node, ARGS, node.args)
        then = tuple(self.mutations(node))
        if node.how == "obj":
            tasks += (_Done(node, b"o", b"0", then), *reversed([*self.parts(args)]), func, _Op(b"("))
            return
        if node.how == "newobj_ex":
            self.need(4)
            tasks += (_Done(node, b"\x92", b"0", then), self.child(node, KWARGS, node.kwargs), args, func)
            return
        code = b"R" if node.how == "reduce" else b"\x81"
        tasks += (_Done(node, code, b"0", then), args, func)

    def mutations(self, node: Call) -> Iterator[Any]:
        """Write the changes made to an object after it was made; neighbours of one kind are written together."""
        codes = {"items": (b"s", b"u"), "append": (b"a", b"e"), "add": (b"", b"\x90")}
        steps = [(verb, self.mutation(node, i, verb, value)) for i, (verb, value) in enumerate(node.mutations or ())]
        for verb, group in groupby(steps, key=lambda step: step[0]):
            values = [value for _, value in group]
            if verb == "add":
                self.need(4)
            if verb == "build":
                for value in values:
                    yield from (*value, _Op(b"b"))
            else:
                yield from _batches(values, *codes[verb])

    def finish(self, task: _Done, tasks: list[Any]) -> None:
        if id(task.node) in self.memo:  # a cycle through its own parts has made it already
            made_first = isinstance(task.node, Call | Persistent)
            self.out.append((task.code if made_first else b"") + (b"0" if made_first else task.undo))
            self.out.append(self.get(task.node))
            return
        self.out.append(task.code)
        if self.late and task.then:
            tasks += (_Note(task.node), *reversed(task.then))
            return
        self.put(task.node)
        tasks += reversed(task.then)

    def atom(self, node: Any) -> bytes:
        if isinstance(node, str):
            data = node.encode("utf-8", "surrogatepass")
            return _sized(data, ((b"X", "<I"), (b"\x8d", "<Q")))
        if isinstance(node, PyString):
            return _sized(node.raw, ((b"U", "<B"), (b"T", "<I")))
        if isinstance(node, bytes):
            self.need(3)
            return _sized(node, ((b"C", "<B"), (b"B", "<I"), (b"\x8e", "<Q")))
        if isinstance(node, bytearray):
            self.need(5)
            return b"\x96" + struct.pack("<Q", len(node)) + bytes(node)
        if "\n" in node.module + node.name:
            self.need(4)
            return self.atom(node.module) + self.atom(node.name) + b"\x93"
        return b"c" + f"{node.module}\n{node.name}\n".encode("utf-8", "surrogatepass")

    def need(self, protocol: int) -> None:
        self.protocol = max(self.protocol, protocol)

    def put(self, node: Any) -> None:
        """Note an object for its next use; one that may lie in a cycle always, since that ends there."""
        if self.uses[id(node)] > 1 or type(node) in (list, Dict, Set) or (type(node) is Call and node.mutations):
            i = self.memo[id(node)] = len(self.memo)
            self.out.append(b"q%c" % i if i < 256 else b"r" + struct.pack("<I", i))

    def get(self, node: Any) -> bytes:
        i = self.memo[id(node)]
        return b"h%c" % i if i < 256 else b"j" + struct.pack("<I", i)


def _batches(groups: list[tuple[Any, ...]], one: bytes, many: bytes) -> Iterator[Any]:
    """Tasks that set groups of values on what lies below them on the stack."""
    for start in range(0, len(groups), BATCH):
        batch = groups[start : start + BATCH]
        if len(batch) == 1 and one:
            yield from (*batch[0], _Op(one))
        else:
            yield _Op(b"(")
            for group in batch:
                yield from group
            yield _Op(many)


def _sized(data: bytes, forms: Iterable[tuple[bytes, str]]) -> bytes:
    """Return `data` behind the shortest opcode that holds its length."""
    for code, pattern in forms:
        if len(data) < 1 << 8 * struct.calcsize(pattern):
            return code + struct.pack(pattern, len(data)) + data
    raise OverflowError("too long for a pickle")


def _number(value: bool | int | float | None) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if 0 <= value < 1 << 8:
        return b"K%c" % value
    if 0 <= value < 1 << 16:
        return b"M" + struct.pack("<H", value)
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a%c" % len(data) + data if len(data) < 256 else b"\x8b" + struct.pack("<i", len(data)) + data
