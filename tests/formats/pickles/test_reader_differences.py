"""CPython's unpicklers, torch's and ours read the same pickles: no name that one of them looks up escapes a verdict.

PARAMCTL_PICKLES says how many random pickles are read, PARAMCTL_SEED from which number on.
"""

from __future__ import annotations

import _pickle
import io
import os
import pickle
import resource
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import refused
from make_pickles import pickled

from paramctl.check.check import check
from paramctl.errors import FormatError
from paramctl.files.sources import open_source
from paramctl.formats import registry
from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, Global, Persistent, PyString, Set
from paramctl.formats.pickles.reader import read
from paramctl.formats.pickles.reader_differences import DISAGREE
from paramctl.formats.pickles.trace import Trace, run
from paramctl.formats.pickles.verdict import inspect

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
        return self.base("persistent", (pid,))


class InC(Looking, _pickle.Unpickler):
    """CPython's unpickler in C."""


class InPython(Looking, pickle._Unpickler):
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
    return io.BufferedReader(io.BytesIO(data), 1 << 16)


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
        run(trace)
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
            func, args, kwargs = node.made
            self.made(func, args, kwargs, node.changes)

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
    for data in samples(COUNT // 4):
        try:
            ours = told(read(data).root)
        except FormatError:
            continue
        for file in FILES:
            _, theirs = load(ToldInC, file(data))
            if not isinstance(theirs, Exception):
                assert told(theirs) == ours, data
                compared += 1
    assert compared > COUNT // 8


# --- where they differ -----------------------------------------------------------------------------

SYSTEM = b"cposix\nsystem\n"


def frame(nbytes: int) -> bytes:
    return b"\x95" + nbytes.to_bytes(8, "little")


DISAGREEING = {
    "an argument that crosses the end": frame(3) + b"X\x04\0\0\0" + b"text.",
    "a byte that crosses the end": frame(1) + b"K\x01.",
    "a length that crosses the end": frame(1) + b"U\x01a.",
    "an index that crosses the end": b"Nq\x00" + frame(1) + b"h\x00.",
    "a line that crosses the end": frame(4) + b"cm\nf\n.",
    "bytes that cross the end": frame(2) + b"C\x04abcd.",
    "a frame in a frame": frame(11) + frame(1) + b"N.",
    "an empty frame in a frame": frame(10) + frame(0) + b"N.",
    "STOP before the end": frame(4) + b"N.NN",
}


@pytest.mark.parametrize("data", DISAGREEING.values(), ids=list(DISAGREEING))
def test_frames_that_are_read_in_two_ways(data: bytes) -> None:
    for reads in (read, inspect):
        assert refused(FormatError, reads, b"\x80\x04" + data).endswith(f"; {DISAGREE}")


def test_a_file_that_is_read_in_two_ways_is_dangerous(tmp_path: Path) -> None:
    """Every verb refuses it; `check` says that it is dangerous, though every name in it is plain."""
    path = tmp_path / "two.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("two/data.pkl", b"\x80\x04" + DISAGREEING["an argument that crosses the end"])
        archive.writestr("two/version", "3\n")
    what = f"pickle is damaged: it has an argument that crosses the end of its frame (byte 11, opcode BINUNICODE); {DISAGREE}"
    assert [(found.level, found.rule, found.what) for found in check(str(path)).findings] == [
        ("error", "unreadable", what),
        ("error", "dangerous", what),
    ]
    assert refused(FormatError, registry.read, open_source(str(path))) == what


def test_a_frame_that_the_file_cuts_short() -> None:
    data = b"\x80\x04" + frame(9) + b"N."
    assert refused(FormatError, read, data) == (
        "pickle is damaged: it announces a frame of 9 bytes and 2 are left (byte 2, opcode FRAME)"
    )
    assert refused(FormatError, inspect, data).endswith(f"; {DISAGREE}")


@pytest.mark.parametrize("protocol", [4, 5])
def test_sound_frames(protocol: int) -> None:
    """Frames end at 64 kB, and large bytes stand between them; the bytes that errors name are those of the file."""
    made = [b"x" * 100_000, "y" * 70_000, *range(40_000), b"z"]
    data = b"junk" + pickle.dumps(made, protocol)
    found = read(data + b"more", 4)
    assert (found.root, found.end) == (made, len(data))
    assert refused(FormatError, read, data[:-1] + b"\xff", 4) == (
        f"pickle is damaged: it has an opcode that no pickle has (byte {len(data) - 1:,}, opcode 0xff)"
    )
    between = b"\x80\x04" + frame(1) + b"]" + frame(2) + b"\x94N" + b"a" + frame(0) + b"."
    assert read(between).root == [None]


CARRIED_ON = {
    "SETITEMS without items": b"N(u0",
    "APPENDS without items": b"N(e0",
    "ADDITEMS without items": b"](\x900",
    "items of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n)RNNs0",
    "items of something named": b"csys\npath\nNa0",
    "items under a list": b"cm\nf\n)R]Ns0",
    "a state of nothing": b"K\x01Nb0",
    "an octal number": b"I010\n0",
    "a number with a NUL": b"I12\x00junk\n0",
    "a long number in hexadecimal": b"I0x" + b"f" * 5000 + b"\n0",
    "a float with a NUL": b"F1.5\x00junk\n0",
    "an index with a NUL": b"Np1\x00junk\n0g1\n0",
    "arguments that a call makes": b"cm\nf\ncbuiltins\ntuple\n)RR0",
    "keywords that a call makes": b"cm\nC\n)ccollections\nOrderedDict\n)R\x920",
    "a buffer that is read-only": b"C\x01a\x980",
    "a name that a call makes": b"X\x01\0\0\0mcbuiltins\nstr\n)R\x930",
    "a class of old": b"(X\x06\0\0\0modulecm\nf\n)RNNtQ)R0",
}


@pytest.mark.parametrize("data", CARRIED_ON.values(), ids=list(CARRIED_ON))
def test_a_verdict_goes_on_where_python_does(data: bytes) -> None:
    data = b"\x80\x02" + data + SYSTEM + b"."
    looked_up, made = load(InC, io.BytesIO(data))
    assert not isinstance(made, Exception) and ("posix", "system") in looked_up
    assert ("posix.system", "dangerous") in {(use.name, use.danger) for use in inspect(data).uses}


def test_what_a_call_makes_is_looked_up() -> None:
    """The name that is looked up is the work of str(): the file does not tell which it is."""
    data = b"\x80\x04\x8c\x01m" + b"cbuiltins\nstr\n\x8c\x01f\x85R\x93."
    assert ("m", "f") in load(InC, io.BytesIO(data))[0]
    assert [use.danger for use in inspect(data).uses] == ["known", "dangerous"]


def test_append_calls_extend() -> None:
    """C calls `extend` where `append` is what Python calls: both were planted."""
    planted = b"}X\x06\0\0\0extendcm\nf\nsb"
    data = b"\x80\x02cm\nC\n)\x81" + planted + b"K\x01a."
    assert {use.name: use.called for use in inspect(data).uses} == {"m.C": True, "m.f": True}


@pytest.mark.parametrize("code", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\0\0\0"])
def test_extensions_are_looked_up_in_the_program(code: bytes) -> None:
    assert [(use.name, use.danger) for use in inspect(b"\x80\x02" + code + b".").uses] == [
        ("copyreg._inverted_registry", "dangerous")
    ]
    assert refused(FormatError, read, b"\x84\xff\xff\xff\xff.") == (
        "pickle is damaged: it names an extension that cannot be registered (byte 0, opcode EXT4)"
    )


REFUSED = {
    "a negative PUT": (b"Np-1\n.", "numbers a memo entry below 0 (byte 1, opcode PUT)"),
    "a negative GET": (b"Np1\ng-1\n.", "numbers a memo entry below 0 (byte 4, opcode GET)"),
    "an index of 5,000 digits": (b"Np" + b"1" * 5000 + b"\n.", "holds a number that is none (byte 1, opcode PUT)"),
    "an index in hexadecimal": (b"Np0x1\n.", "holds a number that is none (byte 1, opcode PUT)"),
    "a bool in C": (b"I+1\n.", "holds a number that is none (byte 0, opcode INT)"),
    "a float that overflows": (b"F1e999\n.", "holds a number that is none (byte 0, opcode FLOAT)"),
    "OrderedDict of a number": (
        b"ccollections\nOrderedDict\nK\x05\x85R.", "calls OrderedDict with what makes no dict (byte 28, opcode REDUCE)"
    ),
    "OrderedDict of two": (
        b"ccollections\nOrderedDict\n))\x86R.", "calls OrderedDict with what makes no dict (byte 28, opcode REDUCE)"
    ),
    "OrderedDict of numbers": (
        b"ccollections\nOrderedDict\n(K\x05l\x85R.", "calls OrderedDict with what makes no dict (byte 30, opcode REDUCE)"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("data", "what"), REFUSED.values(), ids=list(REFUSED))
def test_what_none_should_read(data: bytes, what: str) -> None:
    assert refused(FormatError, read, data) == f"pickle is damaged: it {what}"


@pytest.mark.parametrize("text", [b"7", b" 7", b"07", b"0_7", b"7 "])
def test_a_memo_index_is_decimal(text: bytes) -> None:
    data = b"K\x05p" + text + b"\n0g7\n."
    assert read(data).root == pickle.loads(data) == 5


def test_a_long_number_is_never_printed() -> None:
    """`str()` of it raises ValueError."""
    number = 1 << 40_000
    data = pickle.dumps(number, 2)
    assert read(data).root == number
    assert refused(FormatError, read, data[:-1] + b")R.").endswith(
        "calls a int (byte 5,009, opcode REDUCE)"
    )
    assert refused(FormatError, inspect, b"K\x01" + data[2:-1] + b"\x93.").endswith("no text (byte 5,008, opcode STACK_GLOBAL)")


@pytest.mark.parametrize("unit", [b"}", b"]", b"\x8f", b"(", b"\x94", b"]\x94", b"K\x01\x85"])
def test_a_byte_of_a_pickle_takes_little_memory(unit: bytes) -> None:
    data = b"N" + unit * (20_000 // len(unit)) + b"N."
    tracemalloc.start()
    try:
        read(data)
        assert tracemalloc.get_traced_memory()[1] < 110 * len(data)
    finally:
        tracemalloc.stop()
