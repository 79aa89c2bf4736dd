"""Change an input in a way that its format survives: what kind of bytes it is made of is found out part by part.

A zip archive is taken apart into records, each of which is a pickle, a text in JSON, source code, an archive again or
plain bytes, and so on. All draws come from the given generator, so that a mutation can be done again.
"""

from __future__ import annotations

import ast
import hashlib
import struct
from collections.abc import Callable, Iterator
from random import Random

from fuzz import archive_mutator, folders, json_mutator, pickle_mutator, text_mutator, values

Mutator = Callable[[bytes, Random, bytes], bytes | None]
JOURNAL = struct.Struct("<16sIQ32s")  # magic, version, length of the description, its SHA-256
_JOURNAL_MAGIC = b"paramctl journal"
_NPY_MAGIC = b"\x93NUMPY"


def mutate(data: bytes, rng: Random, other: bytes = b"") -> bytes:
    """Return `data` changed at one to some places; parts of `other` may come in."""
    changes = 1
    while rng.random() < 0.4 and changes < 8:
        changes += 1
    for _ in range(changes):
        data = _changed(data, rng, other)
    return mutate_bytes(data, rng, other) if rng.random() < _RAW else data


_LONGEST = 1 << 16  # bytes of what is worth changing any further
_RAW = 0.06  # of mutations that end with one that heeds no format: what is damaged so is hardly read any further


def _changed(data: bytes, rng: Random, other: bytes) -> bytes:
    made = _mutator_of(data)(data, rng, other)
    if made is None:
        return mutate_bytes(data, rng, other)
    return data if len(made) > _LONGEST else made


def _mutator_of(data: bytes) -> Mutator:
    """Return what changes bytes of this kind."""
    return next((mutator for is_kind, mutator in _KINDS if is_kind(data)), mutate_bytes)


def mutate_bytes(data: bytes, rng: Random, other: bytes) -> bytes:
    """Return bytes of which some are changed, missing, repeated or new, whatever they mean."""
    out = bytearray(data)
    where = values.span(rng, len(out))
    match rng.randrange(6):
        case 0 if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 1 if out:
            out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        case 2:
            del out[where]
        case 3:
            out[where.start : where.start] = out[values.span(rng, len(out))]
        case 4:
            width = rng.choice((1, 2, 4, 8))
            out[where.start : where.start + width] = (values.number(rng) % (1 << 8 * width)).to_bytes(width, "little")
        case _:
            out[where] = other[values.span(rng, len(other))]
    return bytes(out)


def _mutate_zip(data: bytes, rng: Random, other: bytes) -> bytes | None:
    return archive_mutator.mutate_zip(data, rng, other, _changed)


def _mutate_tar(data: bytes, rng: Random, other: bytes) -> bytes | None:
    return archive_mutator.mutate_tar(data, rng, other, _changed)


def _mutate_folder(data: bytes, rng: Random, other: bytes) -> bytes:
    """Return a folder with one of its files changed, renamed, copied or removed."""
    files, others = [*folders.unpacked(data)], [*folders.unpacked(other)]
    if not files:
        return data
    at = rng.randrange(len(files))
    name, held = files[at]
    choice = rng.random()
    if choice < 0.95:
        alike = next((found for known, found in others if known == name), b"")
        change = mutate_bytes if name.endswith(".distcp") else _changed  # an index says at which byte of it things lie
        files[at] = name, change(held, rng, alike)
    elif choice < 0.98:
        values.rearranged(files, rng, others, longest=2)
    else:
        files[at] = rng.choice((*(known for known, _ in files), ".metadata", "x.safetensors", "a b", "é")), held
    return folders.packed(files)


def _mutate_npy(data: bytes, rng: Random, other: bytes) -> bytes | None:
    """Return a .npy file with its header changed and the length of that right."""
    width = 2 if data[6:7] == b"\x01" else 4
    start = 8 + width
    length = int.from_bytes(data[8:start], "little")
    try:
        header = ast.literal_eval(data[start : start + length].decode("latin-1"))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    if not isinstance(header, dict) or not header:
        return None
    key = rng.choice([*header, rng.choice(values.TEXTS)])
    shape = tuple(values.number(rng) % (1 << 200) for _ in range(rng.choice((0, 1, 2, 33, 65))))
    dtypes = ("<f4", ">f8", "|O", "<U4", "|V3", "<f2", "|b1", "<c8", "<M8[s]", ",<f4", [("a", "<f4")])
    header[key] = {"shape": shape, "descr": rng.choice(dtypes)}.get(key, rng.choice((True, None, "x", -1)))
    text = repr(header).encode("utf-8", "replace") + b"\n"
    return data[:8] + (len(text) % (1 << 8 * width)).to_bytes(width, "little") + text + data[start + length :]


def _mutate_journal(data: bytes, rng: Random, other: bytes) -> bytes | None:
    """Return a journal with its description or the bytes that it keeps changed, and its sum right."""
    held, text = journal_parts(data)
    if rng.random() < 0.2:
        return sealed_journal(mutate_bytes(held, rng, b""), text)
    made = json_mutator.mutate(text, rng, journal_parts(other)[1] if _is_journal(other) else b"")
    return None if made is None else sealed_journal(held, made)


def journal_parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the bytes that a journal keeps, and its description."""
    length = JOURNAL.unpack(data[-JOURNAL.size :])[2]
    start = max(len(data) - JOURNAL.size - length, 0)
    return data[:start], data[start : -JOURNAL.size]


def sealed_journal(held: bytes, text: bytes) -> bytes:
    """Return a journal of these bytes and this description."""
    return held + text + JOURNAL.pack(_JOURNAL_MAGIC, 1, len(text), hashlib.sha256(text).digest())


def _is_journal(data: bytes) -> bool:
    return data[-JOURNAL.size :].startswith(_JOURNAL_MAGIC) and len(data) >= JOURNAL.size


def _is_json(data: bytes) -> bool:
    return data.lstrip()[:1] in (b"{", b"[") and data.rstrip()[-1:] in (b"}", b"]")


def _is_text(data: bytes) -> bool:
    return (
        len(data) > 8
        and data.isascii()
        and b"\n" in data
        and not data.startswith((b"c", b"(", b"\x80"))
        and b"\0" not in data
    )


def _is_pickle(data: bytes) -> bool:
    return len(data) > 1 and data[:1] in b"\x80(]}c)LIq"


def _kinds() -> Iterator[tuple[Callable[[bytes], bool], Mutator]]:
    yield lambda data: data.startswith(folders.MAGIC), _mutate_folder
    yield lambda data: data.startswith(b"PK\x03\x04"), _mutate_zip
    yield archive_mutator.is_tar, _mutate_tar
    yield lambda data: data.startswith(_NPY_MAGIC) and len(data) > 12, _mutate_npy
    yield json_mutator.is_safetensors, json_mutator.mutate_safetensors
    yield _is_journal, _mutate_journal
    yield _is_json, json_mutator.mutate
    yield _is_text, text_mutator.mutate
    yield _is_pickle, pickle_mutator.mutate


_KINDS = (*_kinds(),)
