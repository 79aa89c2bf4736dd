"""CPython's unpicklers, torch's and ours read the same pickles: no name that one of them looks up escapes a verdict.

PARAMCTL_PICKLES says how many random pickles are read, PARAMCTL_SEED from which number on.
"""

from __future__ import annotations

import _pickle
import io
import os
import pickle
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from paramctl.errors import FormatError
from paramctl.formats import pickle_trace, pickles
from paramctl.formats.pickle_nodes import Call, Dict, FrozenSet, Global, Persistent, PyString, Set
from paramctl.formats.pickle_readers import DISAGREE, HIDDEN
from paramctl.formats.pickle_safety import inspect
from paramctl.formats.pickle_trace import Trace

from tests.formats.pickle_makers import pickled
from tests.helpers import refused

COUNT = int(os.environ.get("PARAMCTL_PICKLES", "20000"))
SEED = int(os.environ.get("PARAMCTL_SEED", "0"))
MEMORY = 64 << 20  # bytes that a reader may take: in C, a memo index takes sixteen times as many


# --- stand-ins -------------------------------------------------------------------------------------


class Inert:
    """Something that takes every call and every change, and remembers them."""

    def __init__(self, func: object = None, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> None:
        self.made = (func, args, kwargs or {})
        self.changes: list[tuple[str, Any]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert(self, args, kwargs)

    def append(self, item: object) -> None:
        self.changes.append(("append", item))

    def extend(self, items: list[object]) -> None:
        self.changes.extend(("append", item) for item in items)

    def add(self, item: object) -> None:
        self.changes.append(("add", item))

    def __setitem__(self, key: object, value: object) -> None:
        self.changes.append(("items", (key, value)))


class Stateful(Inert):
    """The same, with a method of its own for BUILD."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Stateful(self, args, kwargs)

    def __setstate__(self, state: object) -> None:
        self.changes.append(("build", state))


class Class(type):
    """The type of classes that stand for the classes a pickle names; NEWOBJ takes nothing else."""

    def append(cls, item: object) -> None:
        """Take an item."""

    def extend(cls, items: object) -> None:
        """Take items."""

    def add(cls, item: object) -> None:
        """Take an item."""

    def __setitem__(cls, key: object, value: object) -> None:
        """Take a value."""


def stand_in(base: type[Inert], module: str, name: str) -> type[Inert]:
    """Return a class that stands for a name, and whose objects are made of anything."""

    def new(cls: type[Inert], *args: Any, **kwargs: Any) -> Inert:
        made = base.__new__(base)
        Inert.__init__(made, cls, args, kwargs)
        return made

    return Class("StandIn", (), {"__new__": new, "full": (module, name)})  # type: ignore[return-value]


REAL = {"str": str, "tuple": tuple, "dict": dict, "OrderedDict": OrderedDict, "text": "m"}


class Looking:
    """What the unpicklers here do instead of looking names up: they note them, and return a stand-in."""

    looked_up: set[tuple[str, str]]
    classes: dict[tuple[str, str], type[Inert]]
    base: type[Inert] = Inert
    real = True

    def find_class(self, module: str, name: str) -> Any:
        self.looked_up.add((module, name))
        if self.real and name in REAL:
            return REAL[name]
        if self.real and not name[:1].isupper():
            return self.base()
        return self.classes.setdefault((module, name), stand_in(self.base, module, name))

    def persistent_load(self, pid: Any) -> Any:
        if self.real and isinstance(pid, tuple) and len(pid) == 4:
            return pid[1]
        return Inert("persistent", (pid,))


class InC(Looking, _pickle.Unpickler):  # type: ignore[misc]
    """CPython's unpickler in C."""


class InPython(Looking, pickle._Unpickler):  # type: ignore[misc, name-defined]
    """CPython's unpickler in Python, of which dill's is a subclass."""


class ToldInC(InC):
    """The same, whose stand-ins remember what was done to them."""

    base = Stateful
    real = False


class Bare:
    """A file without peek and readinto."""

    def __init__(self, data: bytes) -> None:
        file = io.BytesIO(data)
        self.read, self.readline = file.read, file.readline


def peeking(data: bytes) -> io.BufferedReader:
    """Return a file that shows all of itself at once, from which C reads as it does from bytes."""
    return io.BufferedReader(io.BytesIO(data), 1 << 16)  # type: ignore[arg-type]


FILES: list[Callable[[bytes], Any]] = [io.BytesIO, Bare, peeking]


def load(unpickler: type[Looking], file: Any) -> tuple[set[tuple[str, str]], Any]:
    """Return the names that an unpickler looks up, and what it makes, or the error that it ends with."""
    reader: Any = unpickler(file, encoding="utf-8")  # type: ignore[call-arg]
    reader.looked_up, reader.classes = set(), {}
    try:
        return reader.looked_up, reader.load()
    except Exception as error:  # noqa: BLE001  (of any kind: what is read is no honest pickle)
        return reader.looked_up, error


def samples(count: int) -> Iterator[bytes]:
    """Yield random pickles; meanwhile the process may take little more memory than it has."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        for number in range(SEED, SEED + count):
            yield pickled(Random(number))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


# --- verdicts --------------------------------------------------------------------------------------


def missed(data: bytes) -> set[tuple[str, str]]:
    """Return the names that some unpickler looks up and no verdict speaks of."""
    looked_up = set().union(*(load(InC, file(data))[0] for file in FILES), load(InPython, io.BytesIO(data))[0])
    if not looked_up:
        return set()
    trace = Trace(data, 0)
    try:
        pickle_trace.run(trace)
    except FormatError as error:
        if error.hint:
            return set()
    rest = looked_up - trace.names.keys()
    return rest if rest and not is_dangerous(data) else set()


def is_dangerous(data: bytes) -> bool:
    try:
        return any(use.danger == "dangerous" for use in inspect(data).uses)
    except FormatError as error:
        return bool(error.hint)


def test_no_name_escapes_a_verdict() -> None:
    found = [(data, names) for data in samples(COUNT) if (names := missed(data))]
    assert found == []


# --- listings --------------------------------------------------------------------------------------


class Told:
    """Writes a graph down, ours or that of CPython, such that equal graphs give equal texts."""

    def __init__(self) -> None:
        self.seen: dict[int, int] = {}
        self.out: list[str] = []
        self.kept: list[object] = []

    def tell(self, node: Any) -> None:
        if isinstance(node, PyString):
            node = node.text
        if node is None or isinstance(node, bool | int | float | str | bytes):
            self.out.append(node.hex() if isinstance(node, float) else hex(node) if type(node) is int else repr(node))
        elif id(node) in self.seen:
            self.out.append(f"#{self.seen[id(node)]}")
        else:
            self.seen[id(node)] = len(self.seen)
            self.kept.append(node)
            self.parts(node)

    def parts(self, node: Any) -> None:
        if isinstance(node, tuple | list | bytearray):
            self.all(type(node).__name__, node)
        elif isinstance(node, Dict | dict):
            self.all("dict", values_of(node))
        elif isinstance(node, Set | FrozenSet | set | frozenset):
            self.out.append("set")  # its order is no one's
        elif isinstance(node, Global | Class):
            self.out.append(repr((node.module, node.name) if isinstance(node, Global) else node.full))  # type: ignore[attr-defined]
        elif isinstance(node, Persistent):
            self.all("persistent", [node.pid])
        elif isinstance(node, Call):
            self.made(node.func, node.args, node.kwargs or Dict(), node.mutations or [])
        elif node.made[0] == "persistent":
            self.all("persistent", node.made[1])
        else:
            self.made(*node.made, node.changes)

    def made(self, func: object, args: tuple[Any, ...], kwargs: Any, changes: list[tuple[str, Any]]) -> None:
        self.tell(func)
        self.all("args", args)
        self.all("kwargs", values_of(kwargs))
        for verb, value in changes:
            self.all(verb, value if verb == "items" else [value])

    def all(self, kind: str, nodes: Any) -> None:
        self.out.append(f"{kind}(")
        for node in nodes:
            self.tell(node)
        self.out.append(")")


def values_of(node: Dict | dict[Any, Any]) -> list[Any]:
    """Return the values of a dict: of two with one key, the later, at the place of the first."""
    return list({key_of(key): value for key, value in (node.pairs if isinstance(node, Dict) else node.items())}.values())


def key_of(key: Any) -> Any:
    """Return what makes a key of a dict the same as another."""
    if isinstance(key, PyString):
        return key.text
    if isinstance(key, tuple):
        return tuple(map(key_of, key))
    return key if key is None or isinstance(key, bool | int | float | str | bytes) else id(key)


def told(node: object) -> str:
    teller = Told()
    teller.tell(node)
    return " ".join(teller.out)


def test_what_is_listed_is_what_python_reads() -> None:
    compared = 0
    for data in samples(COUNT // 2):
        try:
            ours = told(pickles.read(data).root)
        except FormatError:
            continue
        for file in FILES:
            _, theirs = load(ToldInC, file(data))
            if not isinstance(theirs, Exception):
                assert told(theirs) == ours, data
                compared += 1
    assert compared > COUNT // 20
