"""Change what is in zip and tar archives, and what these say of it: sums, sizes and directories fit again afterwards."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

from fuzz import values

Mutate = Callable[[bytes, Random, bytes], bytes]

_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_RECORD_NAMES = (
    "data.pkl", "DATA.PKL", "data/0", "DATA/0", "data/1", "version", "byteorder", ".format_version", ".storage_alignment",
    ".data/serialization_id", "constants.pkl", "constants/0", "code/__torch__.py", "model.json", "attributes.pkl", "tensors/0",
    "archive_format", "archive_version", "models/model.json", "data/weights/weight_0", "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json", "data/weights/model.pt", "data/constants/model.pt",
    "serialized_exported_program.json", "serialized_state_dict.pt", "extra/notes.txt", "bytecode.pkl", "../x", "",
)  # fmt: skip
_LONGEST_NAME = (1 << 16) - 1  # bytes
_READ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    struct.error,
    NotImplementedError,
    RuntimeError,
    OSError,
)


_TELLING = (b".pkl", b".json", b".py", b".pt")  # endings of records that say what the others are


class Record(NamedTuple):
    """A file in an archive, as it is to be written."""

    name: bytes
    data: bytes
    deflated: bool = False


class Lie(NamedTuple):
    """A field of one record's header that gets another value: in its own header, or only in the directory."""

    record: int
    field: int
    value: int
    in_both: bool


def mutate_zip(data: bytes, rng: Random, other: bytes, inner: Mutate) -> bytes | None:
    """Return an archive with one record changed, added, renamed or removed; None if it cannot be read."""
    try:
        records, others = records_of(data), records_of(other) if other.startswith(b"PK") else []
    except _READ_ERRORS:
        return None
    if not records:
        return None
    _change_records(records, rng, others, inner)
    lies = [_lie(records, rng)] if records and rng.random() < 0.04 else []
    made = zip_of(records, lies)
    return _changed_end(made, rng) if rng.random() < 0.02 else made


def _change_records(records: list[Record], rng: Random, others: list[Record], inner: Mutate) -> None:
    told = [i for i, record in enumerate(records) if record.name.endswith(_TELLING)]
    at = rng.choice(told) if told and rng.random() < 0.8 else rng.randrange(len(records))
    record = records[at]
    choice = rng.random()
    if choice < 0.84:
        alike = next((found.data for found in others if _last(found) == _last(record)), b"")
        records[at] = record._replace(data=inner(record.data, rng, alike))
    elif choice < 0.88:
        values.rearranged(records, rng, others, longest=2)
    elif choice < 0.93:
        records[at] = record._replace(name=_renamed(record.name, rng))
    elif choice < 0.97:
        records.insert(rng.randrange(len(records) + 1), record._replace(name=_renamed(record.name, rng)))
    else:
        records[at] = record._replace(deflated=not record.deflated)


def _last(record: Record) -> bytes:
    return record.name.partition(b"/")[2]


def _renamed(name: bytes, rng: Random) -> bytes:
    folder = name.partition(b"/")[0] if b"/" in name else b""
    match rng.randrange(5):
        case 0:
            return name.swapcase()
        case 1:
            return name + rng.choice((b"x", b"/", b"\0", b".pkl", b"\xff"))
        case 2:
            return rng.choice((b"", b"a/", b"./", b"/")) + name
        case _:
            inner = rng.choice(_RECORD_NAMES).encode()
            return folder + b"/" + inner if folder else inner


def _lie(records: list[Record], rng: Random) -> Lie:
    field = rng.randrange(1, 11)
    return Lie(rng.randrange(len(records)), field, abs(values.number(rng)), rng.random() < 0.6)


def records_of(data: bytes) -> list[Record]:
    """Return the records of an archive in the order of its directory."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [
            Record(
                info.orig_filename.encode("utf-8", "replace"),
                archive.read(info),
                info.compress_type != zipfile.ZIP_STORED,
            )
            for info in archive.infolist()
        ]


def zip_of(records: list[Record], lies: list[Lie] = []) -> bytes:  # noqa: B006 - never changed
    """Return an archive of these records, in which all sums, sizes and places are right but for the `lies`."""
    out, directory = bytearray(), bytearray()
    for i, record in enumerate(each._replace(name=each.name[:_LONGEST_NAME]) for each in records):
        packed = _deflated(record.data) if record.deflated else record.data
        fields = [
            20,
            0,
            8 if record.deflated else 0,
            0,
            33,
            zlib.crc32(record.data),
            len(packed),
            len(record.data),
            len(record.name),
            0,
        ]
        local, central = [*fields], [*fields]
        for lie in lies:
            if lie.record == i:
                size = 1 << (32 if lie.field in (6, 7, 8) else 16)
                central[lie.field - 1] = lie.value % size
                local[lie.field - 1] = lie.value % size if lie.in_both else local[lie.field - 1]
        directory += _CENTRAL.pack(b"PK\x01\x02", 20, *central, 0, 0, 0, 0, len(out)) + record.name
        out += _LOCAL.pack(b"PK\x03\x04", *local) + record.name + packed
    count, end = min(len(records), 65535), len(out)
    return bytes(out + directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), end, 0))


def _deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def _changed_end(data: bytes, rng: Random) -> bytes:
    """Return an archive whose last record has one number changed."""
    fields = [*_END.unpack_from(data, len(data) - _END.size)]
    at = rng.randrange(1, len(fields))
    size = 1 << (32 if at in (5, 6) else 16)
    near = fields[at] + rng.choice((-1, 1))
    fields[at] = (near if rng.random() < 0.5 else values.number(rng)) % size
    return data[: -_END.size] + _END.pack(*fields)


def mutate_tar(data: bytes, rng: Random, other: bytes, inner: Mutate) -> bytes | None:
    """Return a tar archive with a member changed, renamed, moved or removed; None if it cannot be read."""
    try:
        members, others = _members(data), _members(other) if is_tar(other) else []
    except (tarfile.TarError, ValueError, EOFError):
        return None
    if not members:
        return None
    at = rng.randrange(len(members))
    info, held = members[at]
    choice = rng.random()
    if choice < 0.93:
        alike = next((found for known, found in others if known.name == info.name), b"")
        members[at] = info, inner(held, rng, alike)
    elif choice < 0.97:
        values.rearranged(members, rng, others, longest=2)
    else:
        _change_member(info, rng)
    return tar_of(members, rng)


def _members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        files = ((info, archive.extractfile(info)) for info in archive.getmembers() if info.isreg() or info.isdir())
        return [(info, file.read() if file else b"") for info, file in files]


def _change_member(info: tarfile.TarInfo, rng: Random) -> None:
    match rng.randrange(4):
        case 0:
            info.name = rng.choice(
                ("pickle", "tensors", "storages", "sys_info", "./pickle", "PICKLE", "/pickle", "é", "x" * 120)
            )
        case 1:
            info.type = rng.choice(
                (
                    tarfile.SYMTYPE,
                    tarfile.LNKTYPE,
                    tarfile.DIRTYPE,
                    tarfile.FIFOTYPE,
                    tarfile.GNUTYPE_SPARSE,
                    b"\0",
                    b"7",
                )
            )
        case 2:
            info.linkname = rng.choice(("pickle", "storages", "/etc/passwd", ".."))
        case _:
            info.mode = rng.choice((0, 0o777))


def tar_of(members: list[tuple[tarfile.TarInfo, bytes]], rng: Random) -> bytes:
    """Return an archive whose headers have the right sums; seldom a size that is not the member's."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for info, data in members:
            info.size = len(data) if rng.random() < 0.995 else rng.randrange(2 * len(data) + 1)
            try:
                archive.addfile(info, io.BytesIO(data + bytes(max(info.size - len(data), 0))))
            except (ValueError, OSError):
                continue
    return held.getvalue()


def is_tar(data: bytes) -> bool:
    """Return whether a header of a tar archive begins the data."""
    return data[257:262] == b"ustar"
