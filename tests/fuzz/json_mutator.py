"""Change texts in JSON value by value, so that they are still JSON: also with a name twice, and any number."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

from fuzz import values

NUMBERS = (
    "-0",
    "1.5",
    "1e999",
    "-1e999",
    "1e-999",
    "NaN",
    "Infinity",
    "1E3",
    "0.0",
    "4294967296.0",
    "9" * 400,
    "9" * 5000,
)


class Pairs(list[tuple[str, Any]]):
    """An object, of which a name may be there twice."""


class Raw(str):
    """A number as it is written."""

    __slots__ = ()


def mutate(data: bytes, rng: Random, other: bytes) -> bytes | None:
    """Return a text in JSON with one value changed; None if it is none."""
    try:
        document = _parsed(data)
        text = written(_changed(document, rng, _places(_parsed(other)) if other else []))
    except (ValueError, RecursionError):
        return None
    return text.encode("utf-8", "surrogatepass")


def _parsed(data: bytes) -> Any:
    return json.loads(data, object_pairs_hook=Pairs, parse_float=Raw)


def _places(document: Any) -> list[tuple[Any, int]]:
    """Return every container and index in a document."""
    found: list[tuple[Any, int]] = []
    todo = [document]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            found += ((node, i) for i in range(len(node)))
            todo += (held[1] if isinstance(node, Pairs) else held for held in node)
    return found


def _changed(document: Any, rng: Random, other: list[tuple[Any, int]]) -> Any:
    places = _places(document)
    if not places or rng.random() < 0.02:
        return value(rng)
    held, i = rng.choice(places)
    match rng.randrange(16):
        case 0:
            del held[i]
        case 1:
            held.insert(i, held[i])
        case 2 if isinstance(held, Pairs):
            held[i] = (rng.choice((rng.choice(values.TEXTS), *(name for name, _ in held))), held[i][1])
        case 3 | 4 | 5:
            source, j = rng.choice(other or places)
            _put(held, i, _copied(source[j][1] if isinstance(source, Pairs) else source[j]))
        case 6 if isinstance(held, Pairs):
            held.append((rng.choice(values.TEXTS), value(rng)))
        case _:
            _put(held, i, value(rng))
    return document


def _put(held: Any, i: int, found: object) -> None:
    held[i] = (held[i][0], found) if isinstance(held, Pairs) else found


def _copied(node: Any) -> Any:
    """Return a copy, so that nothing contains itself."""
    if isinstance(node, Pairs):
        return Pairs((name, _copied(held)) for name, held in node)
    return [_copied(held) for held in node] if isinstance(node, list) else node


def value(rng: Random) -> Any:
    """Return a value of any kind."""
    match rng.randrange(9):
        case 0:
            return rng.choice(values.TEXTS)
        case 1:
            return Raw(rng.choice(NUMBERS))
        case 2:
            return rng.choice((None, True, False, [], Pairs()))
        case 3:
            return [values.number(rng) for _ in range(rng.choice((1, 2, 3, 33, 65)))]
        case 4:
            return str(rng.choice(values.EDGES))
        case 5 if rng.random() < 0.1:
            return Raw("[" * 3000 + "]" * 3000)
        case _:
            return values.number(rng)


def written(node: Any) -> str:
    """Return the text of a document."""
    if isinstance(node, Raw):
        return str(node)
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{json.dumps(name)}:{written(held)}" for name, held in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(written, node)) + "]"
    return json.dumps(node)


def mutate_safetensors(data: bytes, rng: Random, other: bytes) -> bytes | None:
    """Return a .safetensors file with its header changed and its length right, or with more or fewer values."""
    header, rest = parted(data)
    if rng.random() < 0.15:
        more = rng.choice((-8, -4, -1, 1, 4, 8, 64))
        return data[:more] if more < 0 else data + bytes(more)
    made = mutate(header, rng, parted(other)[0] if is_safetensors(other) else b"")
    if made is None:
        return None
    if rng.random() < 0.3:
        made += b" " * (-len(made) % 8)
    return struct.pack("<Q", len(made)) + made + rest


def parted(data: bytes) -> tuple[bytes, bytes]:
    """Return the header and the values of a .safetensors file."""
    (length,) = struct.unpack_from("<Q", data)
    return data[8 : 8 + length], data[8 + length :]


def is_safetensors(data: bytes) -> bool:
    """Return whether a header in JSON follows its length."""
    return len(data) > 9 and struct.unpack_from("<Q", data)[0] <= len(data) and data[8:9] == b"{"
