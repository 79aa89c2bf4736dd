"""Change pickles opcode by opcode, so that what follows is still read: also several in a row, with bytes behind them."""

from __future__ import annotations

import io
import itertools
import pickletools
import struct
import warnings
from collections.abc import Iterator
from random import Random

from fuzz import text_mutator, values

_INTEGERS = b"KMJIL\x8a\x8b"
_TEXTS = b"XUV\x8cTS"
_NAMES = b"ci"
_MEMO = b"qrhjgp\x94"
_KINDS = {kind.code: kind for kind in pickletools.opcodes}
_GETS = b"hjg"
_FRAME, _STOP, _PROTO = b"\x95", b".", b"\x80"
_LONG = 60  # bytes of a text that is source code rather than a name
_SINGLE = b"(012)tle}]adsubRoQN\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94."


def opcodes(data: bytes) -> list[bytes]:
    """Return the opcodes of the pickles that `data` begins with, each with its argument; the rest is one of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an escape in a text that is none
        found = [*_opcodes(data)]
    rest = data[sum(map(len, found)) :]
    return [*found, rest] if rest else found


def _opcodes(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        places: list[int] = []
        try:
            places.extend(place for _, _, place in pickletools.genops(io.BytesIO(data[at:])) if place is not None)
        except (ValueError, IndexError, struct.error, OverflowError):
            yield from (data[at + a : at + b] for a, b in itertools.pairwise(places))
            return
        yield from (data[at + a : at + b] for a, b in zip(places, [*places[1:], places[-1] + 1], strict=True))
        at += places[-1] + 1


def mutate(data: bytes, rng: Random, other: bytes) -> bytes:
    """Return pickles of which some opcodes or arguments are others; lengths of frames mostly fit."""
    found = opcodes(data)
    choice = rng.random()
    if choice < 0.45 and found:
        at = rng.randrange(len(found))
        found[at] = alike(found[at], rng)
    elif choice < 0.8:
        _exchange(found, rng, opcodes(other) if other else found)
    elif choice < 0.9:
        at = rng.randrange(len(found) + 1)
        found[at:at] = idiom(rng)
    else:
        values.rearranged(found, rng, opcodes(other) if other else found)
    if rng.random() < 0.9:
        found = fetched(found, rng)
    return b"".join(found if rng.random() < 0.1 else reframed(found))


def _exchange(found: list[bytes], rng: Random, other: list[bytes]) -> None:
    """Put another value where one is made, or make it twice, or leave out two in a row (a key and its value)."""
    places, others = objects(found), objects(other)
    if not places or not others:
        return
    place = rng.choice(places)
    match rng.randrange(8):
        case 0:
            found[place] = found[place] * 2
        case 1:
            after = [each for each in places if each.start == place.stop]
            del found[place.start : after[0].stop if after else place.stop]
        case 2:
            found[place] = [
                *found[place],
                rng.choice((b"\x85", b"N\x86", b"0N", b"Q", b"2\x86", b"2a", b")R", b"}b", b"(u", b"(e")),
            ]
        case 3:
            found[place] = idiom(rng)
        case _:
            found[place] = other[rng.choice(others)]


def objects(found: list[bytes]) -> list[slice]:
    """Return where opcodes make one value: from the first that it takes to the last that changes it."""
    made: list[slice] = []
    stack: list[int] = []  # where the making of each value on the stack began; of a mark, less than nothing
    for i, opcode in enumerate(found):
        kind = _KINDS.get(opcode[:1].decode("latin-1"))
        if kind is None or kind.name == "STOP":
            stack.clear()
            continue
        before, after = kind.stack_before, kind.stack_after
        taken = _to_mark(stack) if pickletools.markobject in before else []
        count = len(before) - (2 if taken else 0)  # the mark and what is above it are two of them
        taken += [stack.pop() for _ in range(min(count, len(stack)))]
        start = min([i, *(~each if each < 0 else each for each in taken)])
        stack += [~start if each is pickletools.markobject else start for each in after[:1]]
        stack += [i] * max(len(after) - 1, 0)
        if after and pickletools.markobject not in after:
            made.append(slice(start, i + 1))
    return made


def _to_mark(stack: list[int]) -> list[int]:
    """Take off what is above the last mark, and the mark."""
    taken: list[int] = []
    while stack and (not taken or taken[-1] >= 0):
        taken.append(stack.pop())
    return taken


def fetched(found: list[bytes], rng: Random) -> list[bytes]:
    """Return opcodes that get only what was put: most readers refuse others at once."""
    known: dict[int, None] = {}
    out: list[bytes] = []
    for opcode in found:
        n = _memo_entry(opcode, len(known))
        if n is not None and opcode[:1] in _GETS and n not in known:
            opcode = _get(rng.choice([*known])) if known else b"N"
        elif n is not None and opcode[:1] not in _GETS:
            known[n] = None
        elif opcode == _STOP:
            known.clear()
        out.append(opcode)
    return out


def _memo_entry(opcode: bytes, count: int) -> int | None:
    """Return the memo entry that an opcode is about, or None."""
    kind, rest = opcode[:1], opcode[1:]
    if kind in b"qhrj" and kind:
        return int.from_bytes(rest, "little")
    if kind in (b"p", b"g") and rest.strip().isdigit():
        return int(rest)
    return count if kind == b"\x94" else None


def _get(n: int) -> bytes:
    return b"h" + bytes([n]) if n < 256 else b"j" + struct.pack("<I", n % (1 << 32))


def alike(opcode: bytes, rng: Random) -> bytes:
    """Return an opcode of the same kind with another argument, or one of another kind."""
    kind = opcode[:1]
    if kind in _INTEGERS:
        return integer(values.number(rng), rng)
    if kind == b"X" and len(opcode) > _LONG:
        made = text_mutator.mutate(opcode[5:], rng, b"")
        return b"X" + struct.pack("<I", len(made)) + made
    if kind in _TEXTS:
        return text(rng.choice(values.TEXTS), rng)
    if kind in _NAMES:
        return name(rng)
    if kind in _MEMO:
        return memo(rng)
    return _single(rng)


def integer(n: int, rng: Random) -> bytes:
    """Return an opcode that pushes `n`: the shortest one, or one of any length."""
    if 0 <= n < 256 and rng.random() < 0.6:
        return b"K" + bytes([n])
    if -(1 << 31) <= n < 1 << 31 and rng.random() < 0.6:
        return b"J" + struct.pack("<i", n)
    raw = n.to_bytes(n.bit_length() // 8 + 1, "little", signed=True)
    if len(raw) < 256 and rng.random() < 0.8:
        return b"\x8a" + bytes([len(raw)]) + raw
    if n.bit_length() > 14_000:  # Python refuses to write so many digits
        return b"\x8b" + struct.pack("<i", len(raw)) + raw
    return rng.choice((b"I%d\n", b"L%dL\n")) % n


def text(found: str, rng: Random) -> bytes:
    """Return an opcode that pushes a text, of Python 2 or 3."""
    raw = found.encode("utf-8", "surrogatepass")
    if rng.random() < 0.1 and len(raw) < 256:
        return b"U" + bytes([len(raw)]) + raw
    if rng.random() < 0.2 and len(raw) < 256:
        return b"\x8c" + bytes([len(raw)]) + raw
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(rng: Random) -> bytes:
    """Return an opcode that looks something up."""
    module, inner = rng.choice(values.NAMES)
    return f"{rng.choice('ccci')}{module}\n{inner}\n".encode()


def memo(rng: Random) -> bytes:
    """Return an opcode that puts or gets a memo entry."""
    n = rng.randrange(40) if rng.random() < 0.9 else abs(values.number(rng)) % (1 << 32)
    if rng.random() < 0.1:
        return rng.choice((b"g%d\n", b"p%d\n", b"p-%d\n")) % n
    if n < 256:
        return rng.choice((b"h", b"q")) + bytes([n])
    return rng.choice((b"j", b"r")) + struct.pack("<I", n)


def _single(rng: Random) -> bytes:
    at = rng.randrange(len(_SINGLE))
    return _SINGLE[at : at + 1]


def idiom(rng: Random) -> list[bytes]:
    """Return opcodes that stand together in real pickles, and in attacks."""

    def some() -> bytes:
        return integer(values.number(rng), rng) if rng.random() < 0.5 else text(rng.choice(values.TEXTS), rng)

    match rng.randrange(12):
        case 0:
            return [some()]
        case 1:
            return [name(rng)]
        case 2:
            return [memo(rng)]
        case 3:
            return [b"(", *(some() for _ in range(rng.choice((0, 1, 2, 3, 9, 33, 65)))), b"t"]
        case 4:
            return [name(rng), b"(", some(), b"t", rng.choice((b"R", b"\x81"))]
        case 5:
            return [b"(", rng.choice((b"u", b"e", b"\x90"))]
        case 6:
            return [b"}", text(rng.choice(values.TEXTS), rng), some(), b"s"]
        case 7:
            return [b"}", text(rng.choice(values.TEXTS), rng), some(), b"s", b"b"]
        case 8:
            return [text(rng.choice(values.TEXTS), rng), text(rng.choice(values.TEXTS), rng), b"\x93"]
        case 9:
            return [b"(", text(rng.choice(values.TEXTS), rng), memo(rng), b"u"]
        case 10:
            return [rng.choice((b"]", b"}", b")", b"\x8f")) for _ in range(rng.choice((1, 2, 500)))]
        case _:
            return [_single(rng) for _ in range(rng.randrange(1, 4))]


def reframed(found: list[bytes]) -> list[bytes]:
    """Return the opcodes with one frame for each pickle that had some, of the right length."""
    out: list[bytes] = []
    framed = False
    start = 0
    for opcode in found:
        if opcode[:1] == _FRAME and len(opcode) == 9:
            framed = True
            continue
        out.append(opcode)
        if opcode[:1] == _PROTO:
            start, framed = len(out), False
        elif opcode == _STOP and framed:
            out.insert(start, _FRAME + struct.pack("<Q", sum(map(len, out[start:]))))
            start, framed = len(out), False
    return out
