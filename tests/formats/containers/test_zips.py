"""Damaged zip archives are refused with one line; what readers would disagree about is never guessed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import refused, source_of

from paramctl.errors import FormatError, TwoReadings, Unsupported
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Derived, Segment, Summed
from paramctl.files.sources import Source
from paramctl.formats.containers import zip_layout, zips
from paramctl.formats.containers.zip_layout import ZipPiece
from paramctl.formats.containers.zips import Record

# A stored archive of two records, made by hand: offsets of its fields are plain to see.
NAMES = (b"p/a", b"p/b")
DATA = (b"alpha", b"beta!")



def local(name: bytes, data: bytes, crc: int, extra: bytes = b"") -> bytes:
    return struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, crc, len(data), len(data), len(name), len(extra)) + name + extra + data


def central(name: bytes, data: bytes, crc: int, header: int) -> bytes:
    fields = (b"PK\1\2", 20, 20, 0, 0, 0, 0, crc, len(data), len(data), len(name), 0, 0, 0, 0, 0, header)
    return struct.pack("<4s6H3I5H2I", *fields) + name


def archive(data: tuple[bytes, ...] = DATA, names: tuple[bytes, ...] = NAMES) -> bytearray:
    body, directory = b"", b""
    for name, held in zip(names, data, strict=True):
        crc = zlib.crc32(held)
        directory += central(name, held, crc, len(body))
        body += local(name, held, crc)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, len(data), len(data), len(directory), len(body), 0)
    return bytearray(body + directory + end)


A, B = 0, 38  # offsets of the two local headers
PAYLOAD = 33
CD_A, CD_B = 76, 125  # of the two directory entries
END = 174


def patched(at: int, pattern: str, value: int | bytes) -> Callable[[], bytearray]:
    def make() -> bytearray:
        made = archive()
        struct.pack_into(f"<{pattern}", made, at, value)
        return made

    return make


def test_the_hand_made_archive_is_sound(tmp_path: Path) -> None:
    found = zips.read(source_of(tmp_path, bytes(archive())))
    assert list(found.records) == ["p/a", "p/b"]
    assert found.directory == CD_A and found.directory_end == END
    assert found.read(found.records["p/a"], 100) == b"alpha"
    assert found.payload(found.records["p/b"]).offset == B + 33
    with zipfile.ZipFile(tmp_path / "x.bin") as same:
        assert same.testzip() is None and same.namelist() == ["p/a", "p/b"]


DAMAGE: dict[str, tuple[Callable[[], bytes | bytearray], str]] = {
    "no directory": (lambda: archive()[:END], "is truncated or damaged: the zip directory at its end is missing"),
    "cut end": (lambda: archive()[:-1], "is truncated or damaged: the zip directory at its end is missing"),
    "nothing but a magic": (lambda: b"PK\3\4", "is truncated or damaged: the zip directory at its end is missing"),
    "trailing bytes": (
        lambda: archive() + b"x",
        "has bytes after the end of its zip directory; it may be two files in one",
    ),
    "two files in one": (
        lambda: archive() + archive()[:END],
        "has bytes after the end of its zip directory; it may be two files in one",
    ),
    "comment too long": (patched(END + 20, "H", 1), "has bytes after the end of its zip directory; it may be two files in one"),
    "split": (patched(END + 4, "H", 2), "is one part of a zip archive split over several disks"),
    "split count": (patched(END + 8, "H", 1), "is one part of a zip archive split over several disks"),
    "directory elsewhere": (
        patched(END + 16, "I", CD_A - 1),
        "zip directory is damaged: its size and place do not meet its end record",
    ),
    "directory too long": (
        patched(END + 12, "I", 1000),
        "zip directory is damaged: its size and place do not meet its end record",
    ),
    "something before it": (
        lambda: b"junk" + archive(),
        "zip directory is damaged: its size and place do not meet its end record",
    ),
    "zip64 missing": (
        patched(END + 16, "I", 0xFFFFFFFF),
        "zip directory is damaged: it needs a zip64 end record and has none",
    ),
    "no entry": (patched(CD_A, "I", 0), "zip directory is damaged at entry 1"),
    "second no entry": (patched(CD_B, "I", 0), "zip directory is damaged at entry 2"),
    "long name": (patched(CD_B + 28, "H", 100), "zip directory is cut off in entry 2"),
    "long comment": (patched(CD_B + 32, "H", 1), "zip directory is cut off in entry 2"),
    "short name": (patched(CD_B + 28, "H", 1), "zip directory is cut off after entry 2"),
    "twice": (patched(CD_B + 48, "c", b"a"), "zip names 'p/a' twice, and readers disagree which one counts; do not load it: readers disagree"),
    "zip64 field missing": (patched(CD_A + 24, "I", 0xFFFFFFFF), "record 'p/a' lacks the zip64 field its sizes need"),
    "overlap": (patched(CD_B + 42, "I", 1), "records 'p/a' and 'p/b' overlap"),
    "same place": (patched(CD_B + 42, "I", 0), "records 'p/a' and 'p/b' overlap"),
    "past the end": (patched(CD_B + 42, "I", 5000), "record 'p/b' runs past the end of the data"),
    "too large": (lambda: resized(CD_B, 500), "record 'p/b' runs past the end of the data"),
    "sizes differ": (patched(CD_A + 24, "I", 4), "record 'p/a' is stored, yet its two sizes differ"),
}  # fmt: skip


def resized(entry: int, nbytes: int) -> bytearray:
    made = archive()
    struct.pack_into("<2I", made, entry + 20, nbytes, nbytes)
    return made


@pytest.mark.parametrize(("make", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_damage(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    kind = TwoReadings if message.endswith("readers disagree") else FormatError
    assert refused(kind, zips.read, source_of(tmp_path, bytes(make()))) == message


def test_a_count_that_is_wrong(tmp_path: Path) -> None:
    made = archive()
    struct.pack_into("<2H", made, END + 8, 3, 3)
    message = "zip directory lists 2 records and claims 3"
    assert refused(FormatError, zips.read, source_of(tmp_path, bytes(made))) == message


UNSUPPORTED: dict[str, tuple[Callable[[], bytes | bytearray], str]] = {
    "encrypted": (patched(CD_A + 8, "H", 1), "record 'p/a' is encrypted or patched (zip flags 0x0001)"),
    "patched": (patched(CD_A + 8, "H", 0x20), "record 'p/a' is encrypted or patched (zip flags 0x0020)"),
    "bzip2": (patched(CD_A + 10, "H", 12), "record 'p/a' uses zip compression method 12"),
}


@pytest.mark.parametrize(("make", "message"), UNSUPPORTED.values(), ids=list(UNSUPPORTED))
def test_kinds_of_records_that_torch_never_writes(tmp_path: Path, make: Callable[[], bytes], message: str) -> None:
    assert refused(Unsupported, zips.read, source_of(tmp_path, bytes(make()))) == message


LOCAL: dict[str, tuple[Callable[[], bytearray], str]] = {
    "no header": (patched(A, "I", 0), "record 'p/a' has a local header that contradicts the directory"),
    "other name": (patched(A + 30, "c", b"q"), "record 'p/a' has a local header that contradicts the directory"),
    "short name": (patched(A + 26, "H", 2), "record 'p/a' has a local header that contradicts the directory"),
    "other method": (patched(A + 8, "H", 8), "record 'p/a' has a local header that contradicts the directory"),
    "into the next record": (patched(A + 28, "H", 1), "record 'p/a' runs into what follows it"),
    "into the directory": (patched(A + 28, "H", 70), "record 'p/a' runs into what follows it"),
    "other bytes": (patched(PAYLOAD, "c", b"A"), "record 'p/a' is corrupt: its bytes do not match their CRC-32"),
}


@pytest.mark.parametrize(("make", "message"), LOCAL.values(), ids=list(LOCAL))
def test_local_headers_and_bytes(tmp_path: Path, make: Callable[[], bytearray], message: str) -> None:
    found = zips.read(source_of(tmp_path, bytes(make())))
    assert refused(FormatError, found.read, found.records["p/a"], 100) == message
    assert found.read(found.records["p/b"], 100) == b"beta!"


def test_a_limit(tmp_path: Path) -> None:
    found = zips.read(source_of(tmp_path, bytes(archive((b"x" * 2000, b"")))))
    message = "record 'p/a' takes 2,000 bytes, over the limit of 1,000"
    assert refused(FormatError, found.read, found.records["p/a"], 1000) == message


def test_no_checksum_is_no_mismatch(tmp_path: Path) -> None:
    made = archive()
    struct.pack_into("<I", made, CD_A + 16, 0)
    found = zips.read(source_of(tmp_path, bytes(made)))
    assert not found.records["p/a"].has_crc
    assert found.read(found.records["p/a"], 100) == b"alpha"


def test_a_comment_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("p/a", b"alpha")
        made.comment = b"a note"
    found = zips.read(source_of(tmp_path, path.read_bytes()))
    assert found.comment == b"a note"
    (tmp_path / "y.zip").write_bytes(written(found, [ZipPiece("p/b", None, (Literal(b"new"),))]))
    with zipfile.ZipFile(tmp_path / "y.zip") as made:
        assert made.comment == b"a note" and made.read("p/b") == b"new"


# --- deflate -------------------------------------------------------------------------------------


def deflated(folder: Path, data: bytes) -> bytearray:
    with zipfile.ZipFile(folder / "d.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", data)
    return bytearray((folder / "d.zip").read_bytes())


def test_deflated_records(tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    found = zips.read(source_of(tmp_path, bytes(deflated(tmp_path, data))))
    assert found.read(found.records["a"], 10_000_000) == data


@pytest.mark.parametrize(
    ("change", "message"),
    [(-1, "record 'a' does not inflate to the 999 bytes it claims"), (1, "record 'a' does not inflate to the 1,001 bytes it claims")],
)  # fmt: skip
def test_sizes_that_lie(tmp_path: Path, change: int, message: str) -> None:
    made = deflated(tmp_path, b"x" * 1000)
    at = made.rindex(b"PK\1\2")
    struct.pack_into("<I", made, at + 24, 1000 + change)
    found = zips.read(source_of(tmp_path, bytes(made)))
    assert refused(FormatError, found.read, found.records["a"], 10_000) == message


def test_a_bomb(tmp_path: Path) -> None:
    made = deflated(tmp_path, b"x" * 1000)
    struct.pack_into("<I", made, made.rindex(b"PK\1\2") + 24, 2_000_000_000)
    message = "record 'a' claims 2,000,000,000 bytes, more than it can hold"
    assert refused(FormatError, zips.read, source_of(tmp_path, bytes(made))) == message


def test_a_damaged_stream(tmp_path: Path) -> None:
    made = deflated(tmp_path, b"x" * 1000)
    made[31] = 0xFF
    found = zips.read(source_of(tmp_path, bytes(made)))
    message = "record 'a' is corrupt: Error -3 while decompressing data: invalid block type"
    assert refused(FormatError, found.read, found.records["a"], 10_000) == message


# --- zip64 ---------------------------------------------------------------------------------------


def with_end64(made: bytearray, count: int = 2, size: int = 98, directory: int = CD_A, short: int | None = None) -> bytearray:
    """The archive with a long end record, and all ones in the short one unless `short` is its count."""
    long = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, directory)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, END, 1)
    n = 0xFFFF if short is None else short
    brief = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, n, n, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return made[:END] + long + locator + brief


def test_a_long_end_record(tmp_path: Path) -> None:
    assert list(zips.read(source_of(tmp_path, bytes(with_end64(archive())))).records) == ["p/a", "p/b"]


def long_patched(at: int, pattern: str, value: int) -> bytes:
    made = with_end64(archive())
    struct.pack_into(f"<{pattern}", made, at, value)
    return bytes(made)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(with_end64(archive(), short=1)), "its two end records contradict each other"),
        (bytes(with_end64(archive(), directory=CD_A + 1)), "its size and place do not meet its end record"),
        (bytes(with_end64(archive(), size=2**63)), "its size and place do not meet its end record"),
        (long_patched(END, "I", 0), "its zip64 end record is not where it should be"),
        (long_patched(END + 4, "Q", 45), "its zip64 end record is not where it should be"),
        (long_patched(END + 24, "Q", 3), "its zip64 end record is not where it should be"),
        (long_patched(END + 56 + 8, "Q", 2**63), "its zip64 locator points nowhere"),
        (long_patched(END + 56 + 16, "I", 2), "its zip64 locator points nowhere"),
    ],
)
def test_long_end_records_that_lie(tmp_path: Path, data: bytes, message: str) -> None:
    assert refused(FormatError, zips.read, source_of(tmp_path, data)) == f"zip directory is damaged: {message}"


def test_long_sizes_come_from_the_extra_field() -> None:
    field = struct.pack("<2H", 0x4246, 0) + struct.pack("<2H2Q", 1, 16, 5 << 32, 6 << 32)
    assert zips._zip64("a", field, 7, 0xFFFFFFFF, 0xFFFFFFFF) == (7, 5 << 32, 6 << 32)
    assert zips._zip64("a", struct.pack("<2H3Q", 1, 24, 1, 2, 3), *[0xFFFFFFFF] * 3) == (2, 1, 3)


@pytest.mark.parametrize(
    "field", [b"", b"\1\0", struct.pack("<2HQ", 1, 8, 1), struct.pack("<2HQ", 1, 16, 1), struct.pack("<2HQ", 2, 8, 1)]
)
def test_long_sizes_that_are_missing(field: bytes) -> None:
    message = "record 'a' lacks the zip64 field its sizes need"
    assert refused(FormatError, zips._zip64, "a", field, 0xFFFFFFFF, 0xFFFFFFFF, 0) == message


@pytest.mark.parametrize(("nbytes", "at"), [(5 << 32, 0), (10, 5 << 32), (0xFFFFFFFF, 7), (0xFFFFFFFE, 0xFFFFFFFE)])
def test_headers_of_records_past_4_gib(nbytes: int, at: int) -> None:
    record = Record("p/a", 0x0808, 0, 1, nbytes, nbytes, at)
    header = zip_layout._local_header(b"p/a", record, at, 3, 64)
    assert (at + len(header)) % 64 == 3
    entry = bytes(zip_layout._central({}, ZipPiece("p/a", None, ()), record))
    packed, size, name, extra, where = (*struct.unpack_from("<2I2H", entry, 20), struct.unpack_from("<I", entry, 42)[0])
    assert entry[46 : 46 + name] == b"p/a"
    field = entry[46 + name : 46 + name + extra]
    found = zips._zip64("p/a", field, packed, size, where) if field else (packed, size, where)
    assert found == (nbytes, nbytes, at)
    assert zip_layout._room_after(record) == nbytes + (24 if max(nbytes, at) >= 0xFFFFFFFF else 16)


def test_end_records_of_many_and_far_records() -> None:
    end = zip_layout._end_records(70_000, 5 << 32, 6 << 32, b"")
    assert struct.unpack_from("<2Q2Q", end, 24) == (70_000, 70_000, 5 << 32, 6 << 32)
    assert struct.unpack_from("<Q", end, 56 + 8) == (11 << 32,)
    assert struct.unpack_from("<2H2I", end, 76 + 8) == (0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


# --- layout --------------------------------------------------------------------------------------


def as_bytes(segments: list[Segment]) -> bytes:
    """What a writer makes of segments."""
    out, digests = b"", {}
    for segment in segments:
        match segment:
            case Literal(data):
                out += data
            case Extent(source, offset, nbytes):
                out += source.read(offset, nbytes)
            case Summed(name, parts):
                data = as_bytes(list(parts))
                digests[name] = zlib.crc32(data)
                out += data
            case Derived(_, make):
                out += make(digests)
            case _:
                out += b"".join(segment.chunks())
    return out


def written(old: zips.Archive, pieces: list[ZipPiece]) -> bytes:
    return as_bytes(list(zip_layout.layout(old, pieces, 64)))


def opened(folder: Path) -> tuple[zips.Archive, Source, list[Record]]:
    source = source_of(folder, bytes(archive()))
    found = zips.read(source)
    return found, source, list(found.records.values())


def test_the_same_pieces_are_the_same_bytes(tmp_path: Path) -> None:
    found, _, (a, b) = opened(tmp_path)
    assert written(found, [ZipPiece("p/a", a), ZipPiece("p/b", b)]) == archive()


def test_pieces_that_are_changed_dropped_and_added(tmp_path: Path) -> None:
    found, _, (a, b) = opened(tmp_path)
    pieces = [ZipPiece("p/a", a, (Literal(b"other"), Literal(b" bytes"))), ZipPiece("p/c", None, (Literal(b""),)), ZipPiece("p/b", b)]
    (tmp_path / "y.zip").write_bytes(written(found, pieces))
    with zipfile.ZipFile(tmp_path / "y.zip") as made:
        assert made.testzip() is None
        assert {name: made.read(name) for name in made.namelist()} == {"p/a": b"other bytes", "p/c": b"", "p/b": b"beta!"}
    (tmp_path / "z.zip").write_bytes(written(found, [ZipPiece("p/b", b)]))
    with zipfile.ZipFile(tmp_path / "z.zip") as made:
        assert made.namelist() == ["p/b"] and made.testzip() is None
