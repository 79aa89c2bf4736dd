"""Make random pickles: well-formed ones of every opcode, with oddities that readers disagree on, and mutated ones."""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from random import Random

Ops = list[bytes]  # one opcode with its argument each
MODULES = ["m", "m.n", "__builtin__", "builtins", "collections", "torch._utils"]
NAMES = ["f", "g", "C", "D", "F", "text", "OrderedDict", "str", "tuple", "dict", "_rebuild_tensor_v2", "a.b"]
DEPTH = 3


def pickled(rng: Random) -> bytes:
    """Return a random pickle."""
    kind = rng.random()
    if kind < 0.15:
        data = pickle.dumps(_object(rng, 3), rng.randrange(6))
    elif kind < 0.25:
        data = b"".join(rng.choice(_SOUP)(rng) for _ in range(rng.randrange(1, 25))) + b"."
    else:
        data = b"".join(_framed(rng, [*_prefix(rng), *_body(rng), b"."]))
    return _mutated(rng, data) if rng.random() < 0.35 else data


def _prefix(rng: Random) -> Ops:
    return [b"\x80" + bytes([rng.choice([0, 2, 2, 4, 5])])] if rng.random() < 0.8 else []


def _body(rng: Random) -> Ops:
    """Return opcodes that leave one value, with a few more in front of it whose values are dropped, or are not."""
    ops: Ops = []
    for _ in range(rng.randrange(3)):
        ops += _value(rng, DEPTH)
        ops += _put(rng) if rng.random() < 0.7 else []
        ops += [b"0"] if rng.random() < 0.7 else []
    return ops + _value(rng, DEPTH)


def _framed(rng: Random, ops: Ops) -> Ops:
    """Put frames around some opcodes: sound ones, or such as end too early or too late, or lie in each other."""
    if rng.random() < 0.6:
        return ops
    start = rng.randrange(len(ops))
    end = rng.choice([len(ops), rng.randrange(start, len(ops)) + 1])
    inner = ops[start:end]
    if rng.random() < 0.1:
        inner = _framed(rng, inner)
    size = len(b"".join(inner)) + (rng.choice([-9, -2, -1, 1, 2, 9]) if rng.random() < 0.3 else 0)
    frame = b"\x95" + struct.pack("<Q", max(size, 0))
    return [*ops[:start], frame, *inner, *(_framed(rng, ops[end:]) if end < len(ops) else [])]


def _mutated(rng: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(changed) + 1)
        until = at + rng.choice([0, 0, 1, 1, 2, 5])
        new = rng.choice([b"", rng.randbytes(rng.randrange(3)), rng.choice(_SOUP)(rng)])
        changed[at:until] = new
    return bytes(changed)


# --- values ----------------------------------------------------------------------------------------


def _value(rng: Random, depth: int) -> Ops:
    """Return opcodes that leave one value more on the stack."""
    makers = _ATOMS if depth <= 0 or rng.random() < 0.35 else _COMPOUND
    ops = rng.choice(makers)(rng, depth - 1)
    if rng.random() < 0.1:
        ops += rng.choice(_NOTHING)(rng)
    return ops


def _text(rng: Random, word: str) -> bytes:
    data = word.encode()
    return rng.choice(
        [
            b"X" + struct.pack("<I", len(data)) + data,
            b"\x8c" + bytes([len(data)]) + data,
            b"\x8d" + struct.pack("<Q", len(data)) + data,
            b"U" + bytes([len(data)]) + data,
            b"T" + struct.pack("<i", len(data)) + data,
            b"S'" + data + b"'\n",
            b"V" + data + b"\n",
        ]
    )


def _atom(rng: Random, _: int) -> Ops:
    size = rng.randrange(4)
    return [
        rng.choice(
            [
                b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f",
                b"K" + rng.randbytes(1), b"M" + rng.randbytes(2), b"J" + rng.randbytes(4),
                b"\x8a" + bytes([size]) + rng.randbytes(size), b"\x8b" + struct.pack("<i", size) + rng.randbytes(size),
                b"G" + rng.randbytes(8), b"B" + struct.pack("<I", size) + rng.randbytes(size),
                b"C" + bytes([size]) + rng.randbytes(size), b"\x8e" + struct.pack("<Q", size) + rng.randbytes(size),
                b"\x96" + struct.pack("<Q", size) + rng.randbytes(size), _text(rng, rng.choice([*MODULES, *NAMES])),
                b"Ppid\n",
                rng.choice([b"I", b"L", b"F"]) + rng.choice(_NUMBERS if rng.random() < 0.3 else [b"7"]) + b"\n",
            ]
        )
    ]  # fmt: skip


_NUMBERS = [
    b"0", b"1", b"00", b"01", b"+1", b" 1", b"-0", b"010", b"0x1f", b"1_0", b"5 ", b"7L", b"-3", b"1e3", b"1.5", b"inf",
    b"1e999", b"12\x00junk", b"0" * 50, b"9" * 30, b"9" * 5000, b"0x" + b"f" * 5000, b"", b"nan", b"0b1",
]  # fmt: skip


def _name(rng: Random, depth: int) -> Ops:
    module, name = rng.choice(MODULES), rng.choice(NAMES)
    if rng.random() < 0.6:
        return [b"c" + module.encode() + b"\n" + name.encode() + b"\n"]
    parts = [[_text(rng, part)] if rng.random() < 0.93 else _value(rng, depth) for part in (module, name)]
    return [*parts[0], *parts[1], b"\x93"]


def _callable(rng: Random, depth: int) -> Ops:
    return _name(rng, depth) if rng.random() < 0.85 else _value(rng, depth)


def _arguments(rng: Random, depth: int) -> Ops:
    return _tuple(rng, depth) if rng.random() < 0.9 else _value(rng, depth)


def _call(rng: Random, depth: int) -> Ops:
    code = rng.choice([b"R", b"R", b"R", b"\x81", b"\x92", b"o", b"i"])
    if code == b"o":
        return [b"(", *_callable(rng, depth), *_values(rng, depth), b"o"]
    if code == b"i":
        return [b"(", *_values(rng, depth), b"i" + rng.choice(MODULES).encode() + b"\n" + rng.choice(NAMES).encode() + b"\n"]
    keywords = (_dict(rng, 0) if rng.random() < 0.7 else _value(rng, depth)) if code == b"\x92" else []
    return [*_callable(rng, depth), *_arguments(rng, depth), *keywords, code]


def _values(rng: Random, depth: int) -> Ops:
    return [op for _ in range(rng.randrange(4)) for op in _value(rng, depth)]


def _tuple(rng: Random, depth: int) -> Ops:
    size = rng.randrange(5)
    if size == 0:
        return [b")"]
    if size == 4:
        return [b"(", *_values(rng, depth), b"t"]
    return [*(op for _ in range(size) for op in _value(rng, depth)), (b"\x85", b"\x86", b"\x87")[size - 1]]


def _key(rng: Random) -> Ops:
    hooks = ["append", "extend", "add", "__setstate__", "__dict__", "k"]
    return [_text(rng, rng.choice(hooks))] if rng.random() < 0.8 else _value(rng, 0)


def _items(rng: Random, depth: int) -> Ops:
    ops = [op for _ in range(rng.randrange(3)) for op in (*_key(rng), *_value(rng, depth))]
    return ops[:-1] if ops and rng.random() < 0.02 else ops


def _dict(rng: Random, depth: int) -> Ops:
    return [b"(", *_items(rng, depth), b"d"] if rng.random() < 0.3 else [b"}", b"(", *_items(rng, depth), b"u"]


def _changed(rng: Random, depth: int) -> Ops:
    """Return opcodes that leave a value which is changed after it is made."""
    ops = rng.choice([_call, _name, _value, _call])(rng, depth)
    for _ in range(rng.randrange(1, 3)):
        ops += rng.choice(_CHANGES)(rng, depth)
    return ops


def _state(rng: Random, depth: int) -> Ops:
    return [*rng.choice([_dict, lambda *_: [b"N"]])(rng, depth), *_dict(rng, depth), b"\x86"]


def _container(rng: Random, depth: int) -> Ops:
    return rng.choice(
        [
            [b"]", b"(", *_values(rng, depth), b"e"],
            [b"(", *_values(rng, depth), b"l"],
            [b"\x8f", b"(", *_values(rng, depth), b"\x90"],
            [b"(", *_values(rng, depth), b"\x91"],
        ]
    )


def _persistent(rng: Random, depth: int) -> Ops:
    pid = [_text(rng, "module"), *_callable(rng, depth), b"N", b"N", b"t"]
    return [b"(", *pid, b"Q"] if rng.random() < 0.5 else [*_value(rng, depth), b"Q"]


def _put(rng: Random) -> Ops:
    n = rng.randrange(4)
    text = rng.choice([b"%d", b"0%d", b" %d", b"%d ", b"%d\x00x", b"+%d"]) % n if rng.random() < 0.2 else b"%d" % n
    return [rng.choice([b"q%c" % n, b"r" + struct.pack("<I", n), b"\x94", b"p" + text + b"\n"])]


def _get(rng: Random) -> Ops:
    n = rng.randrange(3)
    return [rng.choice([b"h%c" % n, b"j" + struct.pack("<I", n), b"g%d\n" % n, b"g0%d\n" % n, b"g%d\x00\n" % n])]


_NOTHING: list[Callable[[Random], Ops]] = [
    _put, _put, lambda rng: [*_get(rng), b"0"], lambda rng: [b"2", b"0"], lambda rng: [b"(", b"0"],
    lambda rng: [b"(", b"u"], lambda rng: [b"(", b"e"], lambda rng: [b"(", b"\x90"], lambda rng: [b"N", b"b"],
    lambda rng: [b"(", *_values(rng, 0), b"1"], lambda rng: [b"\x98"], lambda rng: [b"("],
]  # fmt: skip
_ATOMS: list[Callable[[Random, int], Ops]] = [_atom, _atom, _atom, _name, lambda rng, _: _get(rng)]
_COMPOUND: list[Callable[[Random, int], Ops]] = [
    _call, _call, _call, _changed, _changed, _tuple, _dict, _container, _persistent, _name,
]  # fmt: skip

_CHANGES: list[Callable[[Random, int], Ops]] = [
    lambda rng, depth: [*_value(rng, depth), b"a"],
    lambda rng, depth: [b"(", *_values(rng, depth), b"e"],
    lambda rng, depth: [*_key(rng), *_value(rng, depth), b"s"],
    lambda rng, depth: [b"(", *_items(rng, depth), b"u"],
    lambda rng, depth: [b"(", *_values(rng, depth), b"\x90"],
    lambda rng, depth: [*rng.choice([_dict, _state, _value])(rng, depth), b"b"],
]

_CODES = bytes(range(256)).translate(None, b"rp")  # a memo of billions of entries would end the memory of C
_SOUP: list[Callable[[Random], bytes]] = [
    lambda rng: bytes([rng.choice(_CODES)]),
    lambda rng: bytes([rng.choice(b"()]}\x8f012NabdeltsuQRo\x81\x85\x86\x87\x90\x91\x92\x93\x94\x98")]),
    lambda rng: b"".join(rng.choice(_ATOMS)(rng, 0)),
    lambda rng: b"".join(_put(rng)),
    lambda rng: rng.choice([b"\x82", b"\x83\x01", b"\x84\x01\0\0"]) + rng.randbytes(1),
    lambda rng: b"\x95" + struct.pack("<Q", rng.randrange(12)),
]


# --- what Python's own picklers write --------------------------------------------------------------


class Made:
    """An object of a class that no unpickler here looks up."""

    def __init__(self, state: object) -> None:
        self.state = state


def _object(rng: Random, depth: int) -> object:
    if depth == 0:
        return rng.choice([None, True, 7, -1, 2**40, 1.5, "text", "é", b"bytes", bytearray(b"x"), Made, ()])
    size = rng.randrange(4)
    parts = [_object(rng, depth - 1) for _ in range(size)]
    keyed = {f"k{i}": part for i, part in enumerate(parts)}
    return rng.choice([parts, tuple(parts), keyed, OrderedDict(keyed), {1, "a"}, frozenset("ab"), Made(parts), [parts, parts]])
