"""Pickles as plain data: the real `pickle` agrees, whatever is malformed is refused, and nothing is imported."""

from __future__ import annotations

import pickle
import struct
import sys
from collections import OrderedDict
from typing import Any

import pytest
from helpers import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from paramctl.errors import FormatError
from paramctl.formats.pickles import reader, writer
from paramctl.formats.pickles.nodes import Call, Dict, FrozenSet, Global, Persistent, PyString, Set, describe

PROTOCOLS = range(6)


def again(made: object, protocol: int) -> Any:
    """A value pickled, read and written by us, and unpickled."""
    return pickle.loads(writer.write(reader.read(pickle.dumps(made, protocol)).root, protocol))


def plain(node: Any) -> Any:
    """A node as the value it stands for, where it stands for one."""
    if isinstance(node, Dict):
        return {key: plain(value) for key, value in node.pairs}
    if isinstance(node, list | tuple):
        return type(node)(map(plain, node))
    return node


def told(made: Any) -> str:
    """A value in words that tell 1, True and 1.0, 0.0 and -0.0 apart, and equal sets alike."""
    if isinstance(made, set | frozenset):
        return f"{type(made).__name__}{sorted(map(repr, made))}"
    if isinstance(made, dict):
        return f"{type(made).__name__}{[(told(key), told(value)) for key, value in made.items()]}"
    return f"{type(made).__name__}{list(map(told, made))}" if isinstance(made, list | tuple) else repr(made)


# --- what real pickles hold ----------------------------------------------------------------------

atoms = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
keys = st.text() | st.integers() | st.booleans() | st.binary() | st.tuples(st.integers(), st.text())
texts = st.recursive(
    atoms, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
values = st.recursive(
    atoms | st.binary() | st.complex_numbers() | st.binary().map(bytearray),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(keys, inner)
        | st.dictionaries(keys, inner).map(OrderedDict)
        | st.sets(keys)
        | st.frozensets(keys)
    ),
    max_leaves=20,
)


@given(texts, st.sampled_from(PROTOCOLS))
@settings(deadline=None, max_examples=100)
def test_plain_values_stand_for_themselves(made: Any, protocol: int) -> None:
    found = reader.read(pickle.dumps(made, protocol))
    assert repr(plain(found.root)) == repr(made)
    assert found.globals == () and found.persistent == ()


@given(values, st.sampled_from(PROTOCOLS))
@settings(deadline=None, max_examples=150)
def test_what_is_written_means_the_same(made: Any, protocol: int) -> None:
    assert told(again(made, protocol)) == told(made)


@given(values, st.sampled_from(PROTOCOLS))
@settings(deadline=None, max_examples=100)
def test_writing_twice_gives_the_same_bytes(made: Any, protocol: int) -> None:
    once = writer.write(reader.read(pickle.dumps(made, protocol)).root, protocol)
    assert writer.write(reader.read(once).root, protocol) == once


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "number",
    [0, 255, 256, 65535, 65536, -1, -129, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1, 2**63, -(2**63), 2**2040, 10**700],
)
def test_every_width_of_integer(number: int, protocol: int) -> None:
    assert reader.read(pickle.dumps(number, protocol)).root == number
    assert again(number, protocol) == number


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_texts_and_lists(protocol: int) -> None:
    made = ["x" * 255, "é" * 300, "\n\\u0041\r\x1a", "\ud800", "y" * 70_000, list(range(2500)), {i: i for i in range(2500)}]
    assert again(made, protocol) == made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_keeps_its_class_its_state_and_its_items(protocol: int) -> None:
    made = OrderedDict([("a", 1), ("b", [2])])
    made.note = {"version": 1}  # type: ignore[attr-defined]
    found = reader.read(pickle.dumps(made, protocol)).root
    assert isinstance(found, Call)
    assert describe(found) == "collections.OrderedDict(…)"
    assert [key for key, _ in found.pairs] == ["a", "b"]
    assert plain(found.state) == {"note": {"version": 1}}
    assert found.elements == []
    copy = again(made, protocol)
    assert copy == made and copy.note == {"version": 1} and list(copy) == ["a", "b"]


def test_what_is_known_of_a_pickle() -> None:
    data = pickle.dumps(OrderedDict(a=1), 2)
    found = reader.read(b"junk" + data + b"more", 4)
    assert (found.protocol, found.end) == (2, 4 + len(data))
    assert [g.full for g in found.globals] == ["collections.OrderedDict"]
    assert found.opcodes == 11  # PROTO GLOBAL BINPUT EMPTY_TUPLE REDUCE BINPUT BINUNICODE BINPUT BININT1 SETITEM STOP


# --- one object stays one ------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_objects_stay_one(protocol: int) -> None:
    shared_list, shared_tuple, shared_dict = [1], (1, [2]), {"k": 3}
    made = [shared_list, shared_tuple, shared_dict, [shared_list, shared_tuple, shared_dict], [1], (1, [2]), {"k": 3}]
    a, b, c, inner, d, e, f = again(made, protocol)
    assert inner[0] is a and inner[1] is b and inner[2] is c
    assert d is not a and e is not b and f is not c


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_lists_and_dicts_that_hold_themselves(protocol: int) -> None:
    made: list[Any] = [1]
    made.append({"self": made})
    copy = again(made, protocol)
    assert copy[0] == 1 and copy[1]["self"] is copy
    table: dict[str, Any] = {}
    table["self"] = table
    assert (copy := again(table, protocol))["self"] is copy


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_tuples_in_a_cycle(size: int, protocol: int) -> None:
    inner: list[Any] = []
    made = (inner,) * size
    inner.append(made)
    copy = again(made, protocol)
    assert len(copy) == size and copy[0][0] is copy and all(part is copy[0] for part in copy)
    copy = again(inner, protocol)
    assert copy[0][0] is copy


class Thing:
    """Something with attributes, of a class that is looked up again."""

    parts: Any

    def __reduce__(self) -> tuple[Any, ...]:
        return (Thing, (), {"parts": self.parts})


class Built:
    """Something made from its parts, which may hold it."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return (Built, (self.parts,))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_in_a_cycle(protocol: int) -> None:
    thing = Thing()
    thing.parts = (thing, [thing])
    copy = again(thing, protocol)
    assert copy.parts[0] is copy and copy.parts[1][0] is copy


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_object_in_a_cycle_through_its_own_arguments(protocol: int) -> None:
    built = Built([])
    built.parts.append(built)
    copy = again(built, protocol)
    assert isinstance(copy, Built) and copy.parts[0].parts is copy.parts
    assert copy.parts[0] is copy


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_frozenset_in_a_cycle(protocol: int) -> None:
    node = FrozenSet(())
    inner: list[Any] = [node]
    node.items = ((), inner)
    found = reader.read(writer.write(inner, protocol)).root
    assert isinstance(found[0], FrozenSet) and found[0].items[1] is found


def test_what_is_equal_is_not_made_one() -> None:
    assert [x is y for x, y in [again([[1], [1]], 2)]] == [False]
    true, one, float_one = again([True, 1, 1.0], 2)
    assert (type(true), type(one), type(float_one)) == (bool, int, float)


# --- Python 2, and the rest of the opcodes -------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "raw"),
    [(b"U\x03abc.", b"abc"), (b"T\x03\0\0\0\xe9\0z.", b"\xe9\0z"), (b"S'a\\n\\xe9'\n.", b"a\n\xe9"), (b'S"q"\n.', b"q")],
)
def test_strings_of_python_2_stay_bytes(data: bytes, raw: bytes) -> None:
    found = reader.read(data).root
    assert isinstance(found, PyString)
    assert found.raw == raw
    assert pickle.loads(writer.write(found, 2), encoding="bytes") == raw


def test_text_of_python_2_strings() -> None:
    assert PyString("é".encode()).text == "é"
    assert PyString(b"\xe9").text == "é"


def test_a_long_string_of_python_2() -> None:
    assert pickle.loads(writer.write(PyString(b"x" * 300), 2)) == "x" * 300


def test_an_odd_escape_is_no_warning() -> None:
    assert reader.read(b"S'a\\d'\n.").root.raw == b"a\\d"


@pytest.mark.parametrize("data", [b"(cos\nsystem\nX\x01\0\0\0xo.", b"(X\x01\0\0\0xios\nsystem\n."])
def test_old_instances(data: bytes) -> None:
    found = reader.read(data).root
    assert isinstance(found, Call)
    assert (found.how, describe(found), found.args) == ("obj", "os.system(…)", ("x",))
    assert writer.write(found, 2) == b"\x80\x02(cos\nsystem\nX\x01\0\0\0xo."


def test_newobj_with_keywords() -> None:
    data = b"\x80\x04cm\nC\nK\x01\x85}X\x01\0\0\0kK\x02s\x92."
    found = reader.read(data).root
    assert (found.how, found.args, found.kwargs.pairs) == ("newobj_ex", (1,), [("k", 2)])
    assert reader.read(writer.write(found, 4)).root.kwargs.pairs == [("k", 2)]


def test_persistent_ids() -> None:
    found = reader.read(b"\x80\x02X\x01\0\0\0aQ(Pkey\nl\x86.")
    assert [node.pid for node in found.persistent] == ["a", "key"]
    written = writer.write(found.root, 2)
    assert [node.pid for node in reader.read(written).persistent] == ["a", "key"]


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"I01\n.", True),
        (b"I00\n.", False),
        (b"I1\n.", 1),
        (b"I-0x10\n.", -16),
        (b"L12L\n.", 12),
        (b"L-3\n.", -3),
        (b"F1.5\n.", 1.5),
        (b"\x8a\x00.", 0),
        (b"\x8b\x02\0\0\0\x00\xff.", -256),
        (b"\x8d\x01\0\0\0\0\0\0\0a.", "a"),
        (b"\x8e\x01\0\0\0\0\0\0\0a.", b"a"),
        (b"\x96\x01\0\0\0\0\0\0\0a.", bytearray(b"a")),
        (b"Vsn\\u00f6w\n.", "snöw"),
        (b"N20.", None),
        (b"(K\x010K\x02.", 2),
        (b"(K\x01(01K\x03.", 3),
        (b"K\x05p7\n0g7\n.", 5),
        (b"K\x05r\x00\0\x01\x000j\x00\0\x01\x00.", 5),
        (b"\x95\x02\0\0\0\0\0\0\0K\x07.", 7),
        (b"(K\x01K\x02t.", (1, 2)),
        (b"(l.", []),
        (b"(K\x01l.", [1]),
    ],
)
def test_opcodes_that_writers_of_today_do_not_use(data: bytes, value: object) -> None:
    found = reader.read(data).root
    assert found == value and type(found) is type(value)


def test_dict_and_set_opcodes() -> None:
    assert reader.read(b"(X\x01\0\0\0aK\x01d.").root.pairs == [("a", 1)]
    found = reader.read(b"\x8f(K\x01K\x02\x90.").root
    assert isinstance(found, Set) and found.items == [1, 2]
    assert reader.read(b"(K\x01\x91.").root.items == (1,)


def test_names_with_a_newline_in_them_come_back() -> None:
    written = writer.write(Global("a\nb", "c"), 2)
    assert reader.read(written).root.full == "a\nb.c"
    assert written[1] == 4


# --- replacement ---------------------------------------------------------------------------------


def test_parts_are_replaced_by_container_and_position() -> None:
    call = Call(Global("m", "f"), (1, 2))
    call.mutations = [("items", ("k", 3)), ("append", 4), ("build", 5), ("add", 6)]
    table = Dict()
    table.pairs = [("a", 7), ("b", 8)]
    root = [call, table, (9, 10)]
    replace: dict[tuple[int, int], Any] = {
        (id(call), -1): ("new",),
        (id(call), 0): "k's",
        (id(call), 1): "appended",
        (id(call), 2): "state",
        (id(call), 3): "added",
        (id(table), 1): "b's",
        (id(root[2]), 0): "ninth",
    }
    new_call, new_table, pair = reader.read(writer.write(root, 4, replace)).root
    assert new_call.args == ("new",)
    assert new_call.mutations == [("items", ("k", "k's")), ("append", "appended"), ("build", "state"), ("add", "added")]
    assert new_table.pairs == [("a", 7), ("b", "b's")]
    assert pair == ("ninth", 10)


def test_arguments_of_an_old_instance_are_replaced_too() -> None:
    call = Call(Global("m", "f"), (1, 2), None, "obj")
    assert reader.read(writer.write(call, 2, {(id(call.args), 1): "new"})).root.args == (1, "new")


def test_a_replacement_used_twice_stays_one() -> None:
    root, new = [1, 2, 3], ["new"]
    found = reader.read(writer.write(root, 2, {(id(root), 0): new, (id(root), 2): new})).root
    assert found == [["new"], 2, ["new"]] and found[0] is found[2]


def test_what_is_replaced_is_not_written() -> None:
    root = [Persistent("gone"), 1]
    assert reader.read(writer.write(root, 2, {(id(root), 0): None})).persistent == ()


# --- depth ---------------------------------------------------------------------------------------

DEPTH = 100_000


@pytest.mark.parametrize(
    "data",
    [
        b"]" * DEPTH + b"a" * (DEPTH - 1) + b".",
        b"(" * DEPTH + b"t" * DEPTH + b".",
        b"K\x01" + b"\x85" * DEPTH + b".",
        b"}K\x01" * DEPTH + b"N" + b"s" * DEPTH + b".",
        b"N" + b"Q" * DEPTH + b".",
        b"cm\nC\n" + b")R" * DEPTH + b".",
    ],
    ids=["lists", "tuples", "tuple1", "dicts", "persistent", "calls of calls"],
)
def test_deep_nesting_is_read_written_and_let_go(data: bytes) -> None:
    found = reader.read(data)
    written = writer.write(found.root, 2)
    del found
    assert reader.read(written).opcodes >= DEPTH


# --- damage --------------------------------------------------------------------------------------

TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n)R"
DAMAGE = {
    "empty": (b"", "takes a value from an empty stack, or ends before its STOP (byte 0)"),
    "no STOP": (b"N", "takes a value from an empty stack, or ends before its STOP (byte 1)"),
    "STOP of nothing": (b".", "ends with nothing (byte 0, opcode STOP)"),
    "underflow": (b"N\x86.", "takes a value from an empty stack, or ends before its STOP (byte 1, opcode TUPLE2)"),
    "REDUCE of nothing": (b"NR.", "takes a value from an empty stack, or ends before its STOP (byte 1, opcode REDUCE)"),
    "BINPUT of nothing": (b"q\x00.", "takes a value from an empty stack, or ends before its STOP (byte 0, opcode BINPUT)"),
    "no MARK": (b"Nt.", "goes back to a MARK that is not there (byte 1, opcode TUPLE)"),
    "APPENDS without MARK": (b"]e.", "goes back to a MARK that is not there (byte 1, opcode APPENDS)"),
    "POP of nothing": (b"0.", "goes back to a MARK that is not there (byte 0, opcode POP)"),
    "short text": (b"X\x05\0\0\0ab", "announces 5 bytes and 2 are left (byte 0, opcode BINUNICODE)"),
    "short bytes": (b"C\x05ab", "announces 5 bytes and 2 are left (byte 0, opcode SHORT_BINBYTES)"),
    "huge bytes": (
        b"\x8e" + b"\xff" * 8,
        "announces 18,446,744,073,709,551,615 bytes and 0 are left (byte 0, opcode BINBYTES8)",
    ),
    "short length": (b"X\x05\0", "is cut off inside an argument (byte 0, opcode BINUNICODE)"),
    "short float": (b"G\0\0", "is cut off inside an argument (byte 0, opcode BINFLOAT)"),
    "short memo index": (b"Nr\0\0", "is cut off inside an argument (byte 1, opcode LONG_BINPUT)"),
    "no such memo": (b"h\x07.", "fetches a memo entry that was never put (byte 0, opcode BINGET)"),
    "no such long memo": (b"j\x07\0\0\0.", "fetches a memo entry that was never put (byte 0, opcode LONG_BINGET)"),
    "GET of no number": (b"gx\n.", "holds a number that is none (byte 0, opcode GET)"),
    "unknown opcode": (b"\xff", "has an opcode that no pickle has (byte 0, opcode 0xff)"),
    "items of a tensor": (TENSOR + b"K\x00K\x01s.", "sets items of a tensor (byte 39, opcode SETITEM)"),
    "appends to a tensor": (TENSOR + b"K\x00a.", "sets items of a tensor (byte 37, opcode APPEND)"),
    "BUILD on an int": (b"K\x01}b.", "does to a int what that cannot take (byte 3, opcode BUILD)"),
    "APPEND to a dict": (b"}K\x01a.", "does to a Dict what that cannot take (byte 3, opcode APPEND)"),
    "SETITEM on a list": (b"]NNs.", "does to a list what that cannot take (byte 3, opcode SETITEM)"),
    "ADDITEMS to a list": (b"](N\x90.", "does to a list what that cannot take (byte 3, opcode ADDITEMS)"),
    "odd SETITEMS": (b"}(K\x01u.", "sets a key without a value (byte 4, opcode SETITEMS)"),
    "odd DICT": (b"(K\x01d.", "sets a key without a value (byte 3, opcode DICT)"),
    "list as a key": (b"}]K\x01s.", "uses a key that no dict can hold (byte 4, opcode SETITEM)"),
    "EXT": (b"\x82\x01.", "needs something from outside of it (byte 0, opcode EXT1)"),
    "EXT4": (b"\x84\x01\0\0\0.", "needs something from outside of it (byte 0, opcode EXT4)"),
    "NEXT_BUFFER": (b"\x97.", "needs something from outside of it (byte 0, opcode NEXT_BUFFER)"),
    "READONLY_BUFFER": (b"N\x98.", "needs something from outside of it (byte 1, opcode READONLY_BUFFER)"),
    "endless line": (b"I123", "has a line that never ends (byte 0, opcode INT)"),
    "endless name": (b"cos\nsystem", "has a line that never ends (byte 0, opcode GLOBAL)"),
    "negative LONG4": (b"\x8b\xff\xff\xff\xff.", "announces -1 bytes and 1 are left (byte 0, opcode LONG4)"),
    "negative BINSTRING": (b"T\xfe\xff\xff\xff.", "announces -2 bytes and 1 are left (byte 0, opcode BINSTRING)"),
    "long digits": (b"I" + b"1" * 5000 + b"\n.", "holds a number of 5,000 digits (byte 0, opcode INT)"),
    "no digits": (b"I\n.", "holds a number that is none (byte 0, opcode INT)"),
    "no float": (b"Fx\n.", "holds a number that is none (byte 0, opcode FLOAT)"),
    "no quotes": (b"Sabc\n.", "holds a string without its quotes (byte 0, opcode STRING)"),
    "broken escape": (b"S'\\x1'\n.", "holds a string with a broken escape (byte 0, opcode STRING)"),
    "not UTF-8": (b"X\x01\0\0\0\xff.", "has text that is not UTF-8 (byte 0, opcode BINUNICODE)"),
    "protocol 255": (b"\x80\xffN.", "says protocol 255, and the newest is 5 (byte 0, opcode PROTO)"),
    "long frame": (b"\x95\x09\0\0\0\0\0\0\0N.", "announces a frame of 9 bytes and 2 are left (byte 0, opcode FRAME)"),
    "call of a text": (b"X\x01\0\0\0a)R.", "calls a str (byte 7, opcode REDUCE)"),
    "arguments in a list": (b"cm\nC\n]R.", "calls something with arguments that are no tuple (byte 6, opcode REDUCE)"),
    "keywords in a list": (b"cm\nC\n)]\x92.", "calls something with keywords that are no dict (byte 7, opcode NEWOBJ_EX)"),
    "OBJ of nothing": (b"(o.", "makes an object of no class (byte 1, opcode OBJ)"),
    "name of no text": (b"K\x01K\x02\x93.", "looks up a name that is no text (byte 4, opcode STACK_GLOBAL)"),
}


@pytest.mark.parametrize(("data", "what"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage(data: bytes, what: str) -> None:
    assert refused(FormatError, reader.read, data) == f"pickle is damaged: it {what}"


def test_a_cut_anywhere_is_damage() -> None:
    data = pickle.dumps({"a": [1, 2.5, "text", (b"bytes", None)], "b": OrderedDict(c=2**70)}, 4)
    for end in range(len(data)):
        assert refused(FormatError, reader.read, data[:end]).startswith("pickle is damaged: it ")


PID = (b"X\x07\0\0\0storageq\x01ctorch\nFloatStorage\nq\x02X\x01\0\0\x000q\x03X\x03\0\0\0cpuq\x04K\x04tQ")
TORCH = (
    b"\x80\x02}q\x00X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((" + PID + b"K\x00K\x02K\x02\x86K\x02K\x01\x86\x89"
    b"ccollections\nOrderedDict\n)RtRq\x05s."
)
VALID = [
    TORCH,
    *(
        pickle.dumps([{"a": 1, "b": (2.5, None, True)}, {1, 2}, b"bytes", OrderedDict(x=[1]), "é" * 300, 2**80], protocol)
        for protocol in PROTOCOLS
    ),
]


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_mutated_pickles_are_read_or_refused(data: st.DataObject) -> None:
    mutated = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(mutated) - 1, 0)))
        until = at + data.draw(st.sampled_from([0, 1, 1, 1, 2, 8]))
        mutated[at:until] = data.draw(st.binary(max_size=3))
    try:
        found = reader.read(bytes(mutated))
    except FormatError as error:
        assert str(error).startswith("pickle is damaged: it ")
        return
    once = writer.write(found.root, 2)
    assert writer.write(reader.read(once).root, 2) == once


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_noise_is_read_or_refused(noise: bytes) -> None:
    try:
        reader.read(noise + b".")
    except FormatError as error:
        assert str(error).startswith("pickle is damaged: it ")


# --- trust ---------------------------------------------------------------------------------------


def test_nothing_is_imported_or_called() -> None:
    name = "antigravity"  # opens a web browser where it is imported
    assert name not in sys.modules
    before = set(sys.modules)
    attack = b"\x80\x04" + f"c{name}\nopen\n".encode() + b"X\x04\0\0\0pathX\x04\0\0\0nameX\x01\0\0\0x\x87R."
    found = reader.read(attack)
    assert describe(found.root) == "antigravity.open(…)"
    assert writer.write(found.root, 2) == b"\x80\x02" + attack[2:]
    reader.read(pickle.dumps(struct.Struct, 2))
    assert set(sys.modules) == before


def test_a_memo_index_costs_nothing() -> None:
    assert reader.read(b"Nr\xff\xff\xff\x3f0j\xff\xff\xff\x3f.").root is None


def test_doubling_costs_nothing() -> None:
    """Thirty DUPs would be a billion elements if they were written out."""
    found = reader.read(b"K\x01" + b"2\x86" * 30 + b".").root
    assert len(writer.write(found, 2)) < 300


def test_an_unknown_node_is_a_mistake_of_ours() -> None:
    with pytest.raises(TypeError, match=r"^a object is no node of a pickle$"):
        writer.write([object()], 2)
