"""The symbolic pickle machine: what it reads, what it writes back, and what it refuses.

Only pickles made here, by the standard library or by torch, are ever given to a real unpickler.
"""

from __future__ import annotations

import collections
import gc
import io
import math
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl.errors import FormatError, Unsupported
from paramctl.formats.pickle_nodes import Call, Dict, FrozenSet, Global, Persistent, PyString, Set, describe
from paramctl.formats.pickle_writer import ARGS, write
from paramctl.formats.pickles import read

PROTOCOLS = range(6)
DEEP = 200_000


class Thing:
    """An object with a __dict__, which pickle BUILDs."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Bare:
    """An object whose state is no dict."""

    state: Any = None

    def __getstate__(self) -> Any:
        return self.state

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Row(list[Any]):
    """A list that pickle makes by a call, and then appends to."""


class Keyword:
    """An object made with __getnewargs_ex__, NEWOBJ_EX from protocol 4 on."""

    def __new__(cls, *, size: int = 0) -> Keyword:
        made = super().__new__(cls)
        made.size = size
        return made

    size: int

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": self.size}


def again(value: Any, protocol: int, to: int | None = None) -> Any:
    """`value` through a real pickler, our reader, our writer, and a real unpickler."""
    pickled = pickle.dumps(value, protocol)
    return pickle.loads(write(read(pickled).root, protocol if to is None else to))


def same(a: Any, b: Any, seen: dict[int, Any] | None = None) -> bool:
    """Equal, of the same types, and with the same objects shared; NaN equals NaN; cycles end."""
    seen = {} if seen is None else seen
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if id(a) in seen:
        return seen[id(a)] is b
    if isinstance(a, list | dict | bytearray | Thing | Bare):
        seen[id(a)] = b
    if isinstance(a, tuple | list) and not isinstance(a, str):
        return len(a) == len(b) and all(same(x, y, seen) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k], seen) for k in a)
    if isinstance(a, Thing):
        return same(a.__dict__, b.__dict__, seen)
    if isinstance(a, Bare):
        return same(a.state, b.state, seen)
    return bool(a == b)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**3000), 2**3000),
    st.floats(),
    st.text(max_size=8),
    st.text(st.characters(codec=None), max_size=4),  # with lone surrogates
    st.binary(max_size=8),
    st.sampled_from(["x" * 255, "x" * 256, b"y" * 255, b"y" * 256]),
)
KEYS = st.one_of(st.booleans(), st.integers(), st.text(max_size=4), st.binary(max_size=4), st.tuples(st.integers()))


MAKERS: list[Callable[[list[Any], list[Any]], Any]] = [
    lambda keys, items: items,
    lambda keys, items: tuple(items),
    lambda keys, items: dict(zip(keys, items, strict=True)),
    lambda keys, items: collections.OrderedDict(zip(keys, items, strict=True)),
    lambda keys, items: set(keys),
    lambda keys, items: frozenset(keys),
    lambda keys, items: bytearray(b"12"),
    lambda keys, items: Thing(items=items),
    lambda keys, items: Row(items),
]


@st.composite
def graphs(draw: st.DrawFn) -> Any:
    """A value in which later parts may hold earlier ones, more than once."""
    pool: list[Any] = [draw(SCALARS) for _ in range(draw(st.integers(1, 4)))]
    for _ in range(draw(st.integers(1, 8))):
        items = draw(st.lists(st.sampled_from(pool), max_size=5))
        keys = draw(st.lists(KEYS, min_size=len(items), max_size=len(items), unique=True))
        pool.append(draw(st.sampled_from(MAKERS))(keys, items))
    return pool[-1]


@given(graphs(), st.sampled_from(PROTOCOLS))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_reading_and_writing_changes_nothing(value: Any, protocol: int) -> None:
    assert same(again(value, protocol), value)


@given(graphs(), st.sampled_from(range(3, 6)), st.sampled_from(PROTOCOLS))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_another_protocol_says_the_same(value: Any, protocol: int, to: int) -> None:
    assert same(again(value, protocol, to), value)


@given(graphs(), st.sampled_from(PROTOCOLS))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_writing_twice_gives_the_same_bytes(value: Any, protocol: int) -> None:
    once = write(read(pickle.dumps(value, protocol)).root, protocol)
    assert write(read(once).root, protocol) == once


@given(graphs(), st.sampled_from(PROTOCOLS), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_damaged_pickle_is_a_format_error_or_reads(value: Any, protocol: int, data: st.DataObject) -> None:
    pickled = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 4))):
        pickled[data.draw(st.integers(0, len(pickled) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(pickled[: data.draw(st.integers(0, len(pickled)))]))
    except FormatError as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_a_format_error_or_read(data: bytes) -> None:
    try:
        found = read(data)
    except FormatError as error:
        assert "\n" not in str(error)
    else:
        assert found.end <= len(data) and found.opcodes <= len(data)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_used_twice_stays_one(protocol: int) -> None:
    shared, name = [1], "a name"
    a, b, c, d, e = again([shared, shared, name, name, (shared,)], protocol)
    assert a is b and e[0] is a and c is d


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_survive(protocol: int) -> None:
    value = Thing(row=Row([1, 2]), sized=Keyword(size=3), kind=Thing, call=len, ordered=collections.OrderedDict(a=1))
    found = again(value, protocol)
    assert type(found.row) is Row and found.row == [1, 2]
    assert found.sized.size == 3 and found.kind is Thing and found.call is len and found.ordered == {"a": 1}


def list_in_itself() -> Any:
    made: list[Any] = [1]
    made.append(made)
    return made


def dict_in_itself() -> Any:
    made: dict[str, Any] = {}
    made["self"] = made
    return made


def tuple_through_list() -> Any:
    inner: list[Any] = []
    made = (1, inner, 2, 3)
    inner.append(made)
    return made


def short_tuple_through_list() -> Any:
    inner: list[Any] = []
    made = (inner,)
    inner.append(made)
    return made


def object_in_its_attributes() -> Any:
    made = Thing()
    made.__dict__["self"] = made
    return made


def tuple_through_attributes() -> Any:
    inner = Thing()
    made = (inner, inner)
    inner.__dict__["owner"] = made
    return made


def object_through_tuple_state() -> Any:
    made = Bare()
    made.state = (made, [made])
    return made


def tuple_through_state() -> Any:
    inner = Bare()
    made = (inner,)
    inner.state = made
    return made


def tuple_through_ordered_dict() -> Any:
    inner: collections.OrderedDict[str, Any] = collections.OrderedDict()
    made = (inner,)
    inner["owner"] = made
    return made


def tuple_through_row() -> Any:
    inner = Row()
    made = (inner,)
    inner.append(made)
    return made


CYCLES = [
    list_in_itself,
    dict_in_itself,
    tuple_through_list,
    short_tuple_through_list,
    object_in_its_attributes,
    tuple_through_attributes,
    object_through_tuple_state,
    tuple_through_state,
    tuple_through_ordered_dict,
    tuple_through_row,
]


@pytest.mark.parametrize("make", CYCLES)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_cycles_stay_cycles(make: Callable[[], Any], protocol: int) -> None:
    value = make()
    assert same(again(value, protocol), value)


def test_cycles_made_to_square_the_work_are_refused() -> None:
    lists: list[Any] = [[] for _ in range(2000)]
    root = tuple(lists)
    for one in lists:
        one.append(root)
    with pytest.raises(Unsupported) as error:
        write(root, 2)
    assert str(error.value) == "the pickle holds objects too tangled in each other to be written again"


def test_a_set_in_itself_is_written() -> None:
    root = Set()
    root.items.append((1, 2, 3, 4, root))
    found = read(write(root, 4)).root
    assert found.items[0][4] is found


# What is read


def test_names_are_noted_even_if_they_are_thrown_away() -> None:
    data = b"\x80\x02cos\nsystem\n0cos\nsystem\n0cbuiltins\neval\n."
    found = read(data)
    assert [name.full for name in found.globals] == ["os.system", "builtins.eval"]
    assert found.root is found.globals[1]
    assert (found.protocol, found.end, found.opcodes) == (2, len(data), 7)


def test_nothing_is_carried_out() -> None:
    (call,) = read(b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00exit\x85Rt.").root
    assert (call.func.full, call.args, call.kwargs, call.how) == ("os.system", ("exit",), None, "reduce")
    assert call.mutations is None and call.state is None and call.pairs == [] and call.elements == []


def test_what_is_done_to_an_object_is_kept_in_order() -> None:
    call = read(b"cm\nC\n)\x81K\x01aK\x02K\x03s(K\x04K\x05e}bNb(K\x06K\x07u(K\x08\x90.").root
    verbs = [verb for verb, _ in call.mutations]
    assert verbs == ["append", "items", "append", "append", "build", "build", "items", "add"]
    assert call.state is None and call.pairs == [(2, 3), (6, 7)] and call.elements == [1, 4, 5]
    assert [(verb, value) for verb, value in read(write(call, 4)).root.mutations if verb != "build"] == [
        ("append", 1), ("items", (2, 3)), ("append", 4), ("append", 5), ("items", (6, 7)), ("add", 8),
    ]  # fmt: skip


def test_pickles_one_after_another() -> None:
    data = b"".join(pickle.dumps(i, 2) for i in range(3))
    first = read(data)
    second = read(data, first.end)
    third = read(data, second.end)
    assert (first.root, second.root, third.root, third.end) == (0, 1, 2, len(data))


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"I00\n.", False),
        (b"I01\n.", True),
        (b"I1\n.", 1),
        (b"I-12\n.", -12),
        (b"L12L\n.", 12),
        (b"L-12\n.", -12),
        (b"J\xff\xff\xff\xff.", -1),
        (b"M\xff\xff.", 65535),
        (b"\x8a\x00.", 0),
        (b"\x8a\x01\xff.", -1),
        (b"\x8b\x02\x00\x00\x00\xff\x00.", 255),
        (b"F1.5\n.", 1.5),
        (b"G\x3f\xf8\x00\x00\x00\x00\x00\x00.", 1.5),
        (b"V\\u00e9\n.", "é"),
        (b"X\x03\x00\x00\x00\xed\xa0\x80.", "\ud800"),
        (b"\x8d\x01\x00\x00\x00\x00\x00\x00\x00a.", "a"),
        (b"\x8e\x01\x00\x00\x00\x00\x00\x00\x00a.", b"a"),
        (b"(K\x01K\x02t.", (1, 2)),
        (b"(K\x01K\x02l.", [1, 2]),
        (b"K\x0120.", 1),
        (b"K\x01(K\x02K\x031.", 1),
        (b"K\x01(0.", 1),
        (b"Np7\n0g7\n.", None),
        (b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00N.", None),
    ],
)
def test_opcodes_mean_what_they_mean_to_python(data: bytes, value: object) -> None:
    found = read(data).root
    assert found == value and type(found) is type(value)
    assert pickle.loads(data) == value


def test_a_memo_index_costs_nothing() -> None:
    """CPython's own unpickler would allocate 16 GB here."""
    assert read(b"K\x07r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.").root == 7


def test_python_2_strings_keep_their_bytes() -> None:
    a, b, c = read(b"(S'a\\xff'\nT\x01\x00\x00\x00bU\x02\xc3\xa9t.").root
    assert [(type(s), s.raw, s.text) for s in (a, b, c)] == [
        (PyString, b"a\xff", "aÿ"),
        (PyString, b"b", "b"),
        (PyString, b"\xc3\xa9", "é"),
    ]
    assert write((a, c), 2) == b"\x80\x02U\x02a\xffU\x02\xc3\xa9\x86."
    assert write(PyString(b"x" * 256), 2) == b"\x80\x02T\x00\x01\x00\x00" + b"x" * 256 + b"."


def test_a_dict_gives_the_last_value_of_a_key() -> None:
    found = read(b"(X\x01\x00\x00\x00aK\x01U\x01aK\x02K\x01K\x03d.").root
    assert found.get("a") == 2 and found.get("b") is None and found.get("b", 5) == 5
    assert [value for _, value in found.pairs] == [1, 2, 3]


def test_objects_of_old_python() -> None:
    inst, obj = read(b"((K\x01im\nC\n(cm\nD\nK\x02ot.").root
    assert (inst.func.full, inst.args, inst.how) == ("m.C", (1,), "obj")
    assert (obj.func.full, obj.args, obj.how) == ("m.D", (2,), "obj")
    assert write(obj, 2) == b"\x80\x02(cm\nD\nK\x02o."


def test_persistent_ids() -> None:
    found = read(b"(Psome id\nK\x05Qt.")
    text, number = found.root
    assert (type(text), text.pid, number.pid) == (Persistent, "some id", 5)
    assert found.persistent == (text, number)
    assert write(number, 2) == b"\x80\x02K\x05Q."


def test_names_are_text_whatever_their_bytes() -> None:
    assert read(b"cm\r\nx\xe9\n.").root.full == "m\r.xé"
    assert read(b"U\x02osX\x06\x00\x00\x00system\x93.").root.full == "os.system"
    assert read(write(Global("a\nb", "c"), 2)).root.full == "a\nb.c"


def test_keys_are_never_hashed() -> None:
    class Bomb(tuple[Any, ...]):
        def __hash__(self) -> int:
            raise AssertionError

    root = Dict()
    root.pairs.append((Bomb((1,)), 2))
    assert read(write(root, 2)).root.pairs == [((1,), 2)]
    deep = read(b"}N" + b"\x85" * DEEP + b"K\x01s.").root
    assert deep.pairs[0][1] == 1


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Global("torch", "Tensor"), "torch.Tensor"),
        (Global("m" * 200, "x"), "m" * 80),
        (Call(Global("m", "C"), ()), "m.C(…)"),
        (Call(Global("copyreg", "_reconstructor"), (Global("m", "C"), None, None)), "m.C(…)"),
        (Call(Call(Global("m", "f"), ()), ()), "an object made by a call of a call"),
        (FrozenSet(()), "a frozenset"),
        (None, "a nonetype"),
    ],
)
def test_foreign_things_have_a_short_description(node: object, text: str) -> None:
    assert describe(node) == text


# What is refused


def _long(opcode: bytes, size: int) -> bytes:
    return opcode + struct.pack("<Q", size)


ENDED = "takes a value from an empty stack, or ends before its STOP"
HOSTILE = {
    "nothing": (b"", f"{ENDED} (byte 0)"),
    "no STOP": (b"\x80\x02N", f"{ENDED} (byte 3)"),
    "STOP of nothing": (b"\x80\x02.", "ends with nothing (byte 2, opcode STOP)"),
    "STOP above a mark": (b"N(.", "ends with nothing (byte 2, opcode STOP)"),
    "protocol 6": (b"\x80\x06N.", "says protocol 6, and the newest is 5 (byte 0, opcode PROTO)"),
    "no opcode": (b"N\xff.", "has an opcode that no pickle has (byte 1, opcode 0xff)"),
    "EXT1": (b"\x82\x01.", "needs something from outside of it (byte 0, opcode EXT1)"),
    "EXT2": (b"\x83\x01\x00.", "needs something from outside of it (byte 0, opcode EXT2)"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "needs something from outside of it (byte 0, opcode EXT4)"),
    "NEXT_BUFFER": (b"\x97.", "needs something from outside of it (byte 0, opcode NEXT_BUFFER)"),
    "READONLY_BUFFER": (b"N\x98.", "needs something from outside of it (byte 1, opcode READONLY_BUFFER)"),
    "text too long": (b"X\xff\x00\x00\x00a.", "announces 255 bytes and 2 are left (byte 0, opcode BINUNICODE)"),
    "4 GB of bytes": (b"B\xff\xff\xff\xff.", "announces 4,294,967,295 bytes and 1 are left (byte 0, opcode BINBYTES)"),
    "bytes too long": (_long(b"\x8e", 2**63), f"announces {2**63:,} bytes and 0 are left (byte 0, opcode BINBYTES8)"),
    "bytearray too long": (_long(b"\x96", 9) + b".", "announces 9 bytes and 1 are left (byte 0, opcode BYTEARRAY8)"),
    "frame too long": (_long(b"\x95", 9) + b"N.", "announces a frame of 9 bytes and 2 are left (byte 0, opcode FRAME)"),
    "number too long": (b"\x8b\x00\x00\x00\x01.", "announces 16,777,216 bytes and 1 are left (byte 0, opcode LONG4)"),
    "negative size": (b"\x8b\xff\xff\xff\xff.", "announces -1 bytes and 1 are left (byte 0, opcode LONG4)"),
    "negative string": (b"T\xff\xff\xff\xff.", "announces -1 bytes and 1 are left (byte 0, opcode BINSTRING)"),
    "cut argument": (b"J\x00.", "is cut off inside an argument (byte 0, opcode BININT)"),
    "cut float": (b"G\x00\x00.", "is cut off inside an argument (byte 0, opcode BINFLOAT)"),
    "many digits": (b"L" + b"9" * 4301 + b"L\n.", "holds a number of 4,301 digits (byte 0, opcode LONG)"),
    "no digits": (b"Iabc\n.", "holds a number that is none (byte 0, opcode INT)"),
    "no float": (b"Fabc\n.", "holds a number that is none (byte 0, opcode FLOAT)"),
    "no quotes": (b"Sabc\n.", "holds a string without its quotes (byte 0, opcode STRING)"),
    "half a quote": (b"S'\n.", "holds a string without its quotes (byte 0, opcode STRING)"),
    "broken escape": (b"S'\\x'\n.", "holds a string with a broken escape (byte 0, opcode STRING)"),
    "not UTF-8": (b"X\x01\x00\x00\x00\xff.", "has text that is not UTF-8 (byte 0, opcode BINUNICODE)"),
    "line without end": (b"cos" + b"x" * 1000, "has a line that never ends (byte 0, opcode GLOBAL)"),
    "no mark": (b"Nt.", "goes back to a MARK that is not there (byte 1, opcode TUPLE)"),
    "POP of nothing": (b"0N.", "goes back to a MARK that is not there (byte 0, opcode POP)"),
    "stack too short": (b"N\x86.", f"{ENDED} (byte 1, opcode TUPLE2)"),
    "stack ends at a mark": (b"N(2.", f"{ENDED} (byte 2, opcode DUP)"),
    "unknown memo": (b"h\x05.", "fetches a memo entry that was never put (byte 0, opcode BINGET)"),
    "unknown long memo": (b"g99\n.", "fetches a memo entry that was never put (byte 0, opcode GET)"),
    "append to a tuple": (b")Na.", "does to a tuple what that cannot take (byte 2, opcode APPEND)"),
    "set on a tuple": (b")NNs.", "does to a tuple what that cannot take (byte 3, opcode SETITEM)"),
    "set on a list": (b"](NNu.", "does to a list what that cannot take (byte 4, opcode SETITEMS)"),
    "add to a list": (b"](N\x90.", "does to a list what that cannot take (byte 3, opcode ADDITEMS)"),
    "build an int": (b"K\x01}b.", "does to a int what that cannot take (byte 3, opcode BUILD)"),
    "build a dict": (b"}}b.", "does to a Dict what that cannot take (byte 2, opcode BUILD)"),
    "key without value": (b"}(Nu.", "sets a key without a value (byte 3, opcode SETITEMS)"),
    "list as a key": (b"}]Ns.", "uses a key that no dict can hold (byte 3, opcode SETITEM)"),
    "dict as a key": (b"(}Nd.", "uses a key that no dict can hold (byte 3, opcode DICT)"),
    "set as a key": (b"}\x8fNs.", "uses a key that no dict can hold (byte 3, opcode SETITEM)"),
    "bytearray as a key": (
        b"}" + _long(b"\x96", 0) + b"Ns.",
        "uses a key that no dict can hold (byte 11, opcode SETITEM)",
    ),
    "call of an int": (b"K\x01)R.", "calls a int (byte 3, opcode REDUCE)"),
    "call of text": (b"\x8c\x01a)\x81.", "calls a str (byte 4, opcode NEWOBJ)"),
    "arguments in a list": (b"cm\nf\n]R.", "calls something with arguments that are no tuple (byte 6, opcode REDUCE)"),
    "arguments of a call": (
        b"cm\nf\ncm\nf\n)RR.",
        "calls something with arguments that are no tuple (byte 12, opcode REDUCE)",
    ),
    "no keywords": (b"cm\nf\n))\x92.", "calls something with keywords that are no dict (byte 7, opcode NEWOBJ_EX)"),
    "object of nothing": (b"(o.", "makes an object of no class (byte 1, opcode OBJ)"),
    "name of a number": (b"K\x01K\x02\x93.", "looks up a name that is no text (byte 4, opcode STACK_GLOBAL)"),
    "items of a tensor, CVE-2026-24747": (
        b"ctorch._utils\n_rebuild_tensor_v2\n)RK\x00K\x01s.",
        "sets items of a tensor (byte 39, opcode SETITEM)",
    ),
    "items of a parameter, CVE-2026-24747": (
        b"ctorch._utils\n_rebuild_parameter\n)R(K\x00K\x01u.",
        "sets items of a tensor (byte 40, opcode SETITEMS)",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_malformed_pickle_is_refused(name: str) -> None:
    data, what = HOSTILE[name]
    with pytest.raises(FormatError) as error:
        read(data)
    assert str(error.value) == f"pickle is damaged: it {what}"


def test_an_escape_python_does_not_know_is_kept_quietly() -> None:
    assert read(b"S'\\q'\n.").root.raw == b"\\q"


def test_every_truncation_is_refused() -> None:
    for protocol in PROTOCOLS:
        data = pickle.dumps([{"a": (1, 2.5, "é", b"x")}, Thing(a=1), 2**70, collections.OrderedDict(b=[1])], protocol)
        for end in range(len(data)):
            with pytest.raises(FormatError):
                read(data[:end])


def test_many_marks_and_memos_cost_little() -> None:
    for data in (b"(" * 300_000, b"N" + b"\x94" * 300_000, b"V" * 300_000, b"(" * 300_000 + b"1" * 300_000):
        with pytest.raises(FormatError):
            read(data)


# Depth

CALL = b"cm\nf\n)R"
NESTED = {
    "tuple": b"N" + b"\x85" * DEEP,
    "list": b"]" * DEEP + b"a" * (DEEP - 1),
    "dict": b"}" + b"K\x00}" * (DEEP - 1) + b"s" * (DEEP - 1),
    "set": b"\x8f(" * DEEP + b"N" + b"\x90" * DEEP,
    "frozenset": b"(" * DEEP + b"\x91" * DEEP,
    "arguments": b"cm\nf\n" * DEEP + b")" + b"R\x85" * DEEP,
    "function": b"cm\nf\n" + b")R" * DEEP,
    "state": CALL * DEEP + b"b" * (DEEP - 1),
    "items": CALL + (b"K\x00" + CALL) * (DEEP - 1) + b"s" * (DEEP - 1),
    "persistent": b"N" + b"Q" * DEEP,
    "mixed": b"}K\x00]" * (DEEP // 4) + b"}" + b"as" * (DEEP // 4),
}


@pytest.fixture
def without_gc() -> Iterator[None]:
    """As in the command line; counting references is what frees the graph."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("name", NESTED)
def test_depth_costs_no_recursion(name: str, without_gc: None) -> None:
    """Reading, writing and freeing: a chain of slotted objects must not overflow the C stack either."""
    root = read(b"\x80\x04" + NESTED[name] + b".").root
    written = write(root, 4)
    del root
    assert read(written).opcodes >= DEEP


# What is written


def opcodes(data: bytes) -> list[str]:
    return [opcode.name for opcode, _, _ in pickletools.genops(data)]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, b"N"), (True, b"\x88"), (False, b"\x89"), (0, b"K\x00"), (255, b"K\xff"), (256, b"M\x00\x01"),
        (65536, b"J\x00\x00\x01\x00"), (-1, b"J\xff\xff\xff\xff"), (2**31, b"\x8a\x05\x00\x00\x00\x80\x00"),
        (-(2**31) - 1, b"\x8a\x05\xff\xff\xff\x7f\xff"), (2**2040, b"\x8b\x00\x01\x00\x00" + bytes(255) + b"\x01"),
        (1.5, b"G\x3f\xf8\x00\x00\x00\x00\x00\x00"), ("é", b"X\x02\x00\x00\x00\xc3\xa9"),
        ((), b")"), ((1,), b"K\x01\x85"), ((1, 2, 3), b"K\x01K\x02K\x03\x87"),
        ((1, 2, 3, 4), b"(K\x01K\x02K\x03K\x04t"),
        (Global("os", "path"), b"cos\npath\n"), (Call(Global("m", "f"), (1,)), b"cm\nf\nK\x01\x85R"),
        (Call(Global("m", "f"), (), how="newobj"), b"cm\nf\n)\x81"),
    ],
)  # fmt: skip
def test_plain_values_are_written_as_python_does(value: object, written: bytes) -> None:
    assert write(value, 2) == b"\x80\x02" + written + b"."


@pytest.mark.parametrize(
    ("node", "protocol"),
    [
        (b"x", 3),
        (Set(), 4),
        (FrozenSet(()), 4),
        (Call(Global("m", "f"), (), Dict(), "newobj_ex"), 4),
        (bytearray(b"x"), 5),
    ],
)
def test_the_protocol_rises_to_what_a_node_needs(node: object, protocol: int) -> None:
    assert write(node, 0)[:2] == b"\x80" + bytes([protocol])
    assert write(node, 5)[:2] == b"\x80\x05"


@pytest.mark.parametrize("protocol", (0, 1))
def test_old_protocols_are_written_as_2(protocol: int) -> None:
    assert write(None, protocol) == b"\x80\x02N."


def test_items_are_set_in_thousands() -> None:
    written = write(list(range(2001)), 2)
    assert opcodes(written).count("APPENDS") == 2 and opcodes(written).count("APPEND") == 1
    assert pickle.loads(written) == list(range(2001))
    many = dict.fromkeys(range(2001), 7)
    written = write(read(pickle.dumps(many, 2)).root, 2)
    assert opcodes(written).count("SETITEMS") == 2 and opcodes(written).count("SETITEM") == 1
    assert pickle.loads(written) == many


def test_many_memo_entries() -> None:
    value = [[i] for i in range(300)] * 2
    found = again(value, 2)
    assert found == value and found[299] is found[599]


def test_unknown_nodes_are_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match=r"^a complex is no node of a pickle$"):
        write([1j], 2)


# Replacement


def test_what_is_replaced() -> None:
    root = read(pickle.dumps([(1, 2), {"a": 1, "b": 2}, Thing(x=1), Row([1, 2]), collections.OrderedDict(k=1)], 2)).root
    pair, mapping, thing, row, ordered = root
    replaced = write(
        root, 2,
        {
            (id(pair), 1): "two",
            (id(mapping), 1): "b's",
            (id(thing.state), 0): "x's",
            (id(row), 1): "second",
            (id(ordered), 0): "k's",
        },
    )  # fmt: skip
    a, b, c, d, e = pickle.loads(replaced)
    assert (a, b, c.x, d, e) == ((1, "two"), {"a": 1, "b": "b's"}, "x's", [1, "second"], {"k": "k's"})
    assert pair == (1, 2)


def test_the_state_and_the_arguments_of_a_call_are_replaced() -> None:
    call = read(b"cm\nf\nK\x01\x85R}b.").root
    found = read(write(call, 2, {(id(call), ARGS): (2, 3), (id(call), 0): "state"})).root
    assert (found.args, found.state) == ((2, 3), "state")


def test_a_replacement_shared_by_two_places_is_one_object() -> None:
    root = read(pickle.dumps([[1], [2], [3]], 2)).root
    a, b, c = pickle.loads(write(root, 2, {(id(root), 1): root[0]}))
    assert a is b and a == [1] and c == [3]


def test_what_is_no_longer_shared_is_not_memoised() -> None:
    shared = "name"
    root = (shared, shared, 1, 2)
    assert write(root, 2) == b"\x80\x02(X\x04\x00\x00\x00nameq\x00h\x00K\x01K\x02t."
    assert write(root, 2, {(id(root), 1): None}) == b"\x80\x02(X\x04\x00\x00\x00nameNK\x01K\x02t."


# What torch says

TORCH_READS = {
    "PROTO", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "MARK",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE", "NONE", "NEWFALSE", "NEWTRUE", "EMPTY_LIST", "EMPTY_DICT",
    "EMPTY_SET", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "BINPERSID",
    "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "STOP",
}  # fmt: skip


def rewritten(value: object) -> tuple[io.BytesIO, bytes]:
    """`value` saved by torch, its data.pkl replaced by what we make of it, and that data.pkl."""
    saved, made = io.BytesIO(), io.BytesIO()
    torch.save(value, saved)
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/data.pkl"):
                data = pickled = write(read(data).root, 2)
            new.writestr(name, data)
    made.seek(0)
    return made, pickled


@pytest.fixture
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    return net, optimizer


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return type(a) is type(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def test_torch_loads_a_state_dict_we_wrote(seeded: None) -> None:
    state = trained()[0].state_dict()
    file, pickled = rewritten(state)
    found = torch.load(file, weights_only=True)
    assert equal(found, state) and found._metadata == state._metadata  # type: ignore[attr-defined]
    assert set(opcodes(pickled)) <= TORCH_READS


def test_torch_loads_a_nested_checkpoint_we_wrote(seeded: None) -> None:
    net, optimizer = trained()
    tied = torch.randn(3)
    value = {
        "model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "lr": 0.5, "name": "naïve",
        "tied": [tied, tied, tied[1:]], "half": torch.ones(2, dtype=torch.bfloat16),
        "u16": torch.ones(2, dtype=torch.uint16),
        "size": torch.Size([1, 2]), "dtype": torch.float16,
    }  # fmt: skip
    file, pickled = rewritten(value)
    found = torch.load(file, weights_only=True)
    assert equal(found, value)
    a, b, c = found["tied"]
    assert a is b and c.data_ptr() == a.data_ptr() + 4
    assert set(opcodes(pickled)) <= TORCH_READS


def test_torch_loads_a_whole_module_we_wrote(seeded: None) -> None:
    net = nn.Sequential(nn.LSTM(3, 4), nn.BatchNorm1d(4), nn.TransformerEncoderLayer(4, 2))
    file, _ = rewritten(net)
    found = torch.load(file, weights_only=False)
    assert str(found) == str(net) and equal(found.state_dict(), net.state_dict())
    assert found[0]._flat_weights[0] is found[0].weight_ih_l0


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_tensor_of_any_protocol(protocol: int, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", pickle_protocol=protocol)
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        found = read(file.read("a/data.pkl"))
    tensor = found.root.get("w")
    assert tensor.func.full == "torch._utils._rebuild_tensor_v2"
    storage = tensor.args[0]
    assert found.persistent == (storage,)
    kind, cls, *where = storage.pid
    assert (kind, cls.full, where) == ("storage", "torch.FloatStorage", ["0", "cpu", 2])


def test_an_object_of_protocol_0_is_described_by_its_class() -> None:
    found = read(pickle.dumps(Thing(a=1), 0)).root
    assert found.func.full == "copy_reg._reconstructor" and describe(found) == f"{Thing.__module__}.Thing(…)"
