"""A zip archive read from end to end: what its headers, descriptors and gaps say against its directory."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers import record_of, rezipped, source_in_memory, spots

from paramctl.findings import Finding
from paramctl.formats.containers import zip_audit, zips
from paramctl.formats.containers.zip_audit import audit

RECORDS = {"x/data.pkl": b"first", "x/empty": b"", "x/data/0": b"payload of values"}


def found(data: bytes) -> list[tuple[str, Finding]]:
    return list(audit(zips.read(source_in_memory(data))))


def record(name: str, what: str, level: str = "warning", rule: str = "record") -> tuple[str, Finding]:
    return name, Finding(level, "integrity", rule, None, f"record '{name}' {what}")  # type: ignore[arg-type]


LOCAL = "has another CRC-32 or size in its local header than in the zip directory"
BEHIND = "has another CRC-32 or size behind it than in the zip directory"
CORRUPT = "is corrupt: its bytes do not match their CRC-32"


def described(held: Mapping[str, bytes], form: str, *, gap: bytes = b"") -> bytes:
    """An archive whose records have zeros in their local headers, and descriptors of a form behind them."""
    out, directory = b"", b""
    for name, data in held.items():
        crc, n, raw = zlib.crc32(data), len(data), name.encode()
        signature = (b"PK\x07\x08",) if "4s" in form else ()
        directory += struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 8, 0, 0, 0, crc, n, n, len(raw), 0, 0, 0, 0, 0, len(out)) + raw
        out += struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 8, 0, 0, 0, 0, 0, 0, len(raw), 0) + raw + data
        out += struct.pack(form, *signature, crc, n, n) + gap
    count = len(held)
    return out + directory + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(out), 0)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return rezipped(tmp_path / "plain.zip", RECORDS)


def patched(path: Path, at: int, new: bytes) -> bytes:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    return bytes(data)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_sound_archive(tmp_path: Path, method: int) -> None:
    assert found(rezipped(tmp_path / "x.zip", RECORDS, method).read_bytes()) == []


@pytest.mark.parametrize("form", ["<4sIII", "<4sIQQ", "<III", "<IQQ"])
def test_every_form_of_descriptor(form: str) -> None:
    assert found(described(RECORDS, form)) == []
    what = "15 bytes belong to no record, as an edit that appends leaves them"
    assert found(described(RECORDS, form, gap=b"ABCDE")) == [("", Finding("note", "integrity", "gap", None, what))]


@pytest.mark.parametrize("form", ["<4sIII", "<4sIQQ", "<III", "<IQQ"])
def test_every_flipped_byte_of_a_descriptor(form: str) -> None:
    data = described({"x/data.pkl": b"first"}, form)
    start = data.index(b"first") + 5
    for at in range(start, start + struct.calcsize(form)):
        flipped = bytearray(data)
        flipped[at] ^= 1
        assert found(bytes(flipped)) == [record("x/data.pkl", BEHIND)]


@pytest.mark.parametrize("at", [14, 18, 22])
def test_a_local_header_that_says_something_else(plain: Path, at: int) -> None:
    spot = record_of(plain, "data/0")
    for wrong in (1, 18, 0xFFFFFFFE):
        assert found(patched(plain, spot.local + at, struct.pack("<I", wrong))) == [record("x/data/0", LOCAL)]


def test_a_local_header_that_leaves_it_to_the_directory(plain: Path) -> None:
    assert found(patched(plain, record_of(plain, "data/0").local + 14, bytes(12))) == []


def test_every_flipped_byte_of_a_payload(plain: Path) -> None:
    spot = record_of(plain, "data/0")
    for at in range(spot.payload, spot.payload + spot.nbytes):
        byte = plain.read_bytes()[at] ^ 0x80
        expected = [record("x/data/0", CORRUPT, "error", "checksum")]
        assert found(patched(plain, at, bytes([byte]))) == expected


def test_another_crc_in_the_directory(plain: Path) -> None:
    data = patched(plain, record_of(plain, "data/0").central + 16, b"\1\2\3\4")
    assert found(data) == [record("x/data/0", CORRUPT, "error", "checksum"), record("x/data/0", LOCAL)]


def test_a_local_header_of_another_name(plain: Path) -> None:
    data = patched(plain, record_of(plain, "data/0").local + 30, b"y")
    what = "has a local header that contradicts the directory"
    assert found(data) == [record("x/data/0", what, "error")]


def test_a_payload_that_runs_into_what_follows(plain: Path) -> None:
    data = patched(plain, record_of(plain, "data.pkl").local + 28, b"\xff")
    assert found(data) == [record("x/data.pkl", "runs into what follows it", "error")]


def test_a_deflated_record_that_is_damaged(tmp_path: Path) -> None:
    path = rezipped(tmp_path / "x.zip", {"x/data.pkl": b"first" * 9}, zipfile.ZIP_DEFLATED)
    data = patched(path, record_of(path, "data.pkl").payload, b"\xff")
    assert found(data) == [record("x/data.pkl", "is corrupt: Error -3 while decompressing data: invalid block type", "error")]


def test_bytes_between_records_and_before_them(plain: Path) -> None:
    held = spots(plain)
    data, last = plain.read_bytes(), held["x/data/0"]
    moved = bytearray(data[: last.local] + b"gap" + data[last.local :])
    struct.pack_into("<I", moved, last.central + 3 + 42, last.local + 3)
    struct.pack_into("<I", moved, len(moved) - 6, struct.unpack_from("<I", data, len(data) - 6)[0] + 3)
    what = "3 bytes belong to no record, as an edit that appends leaves them"
    assert found(bytes(moved)) == [("", Finding("note", "integrity", "gap", None, what))]


def test_without_checksums(plain: Path) -> None:
    data = bytearray(plain.read_bytes())
    for spot in spots(plain).values():
        data[spot.local + 14 : spot.local + 18] = data[spot.central + 16 : spot.central + 20] = bytes(4)
    what = "was written without checksums: damage to its values cannot be seen"
    assert found(bytes(data)) == [("", Finding("note", "integrity", "no-checksums", None, what))]


BOMB = "was not checked: {:,} bytes claim to be {:,}, and many who read it run out of memory"


def test_a_bomb_is_not_looked_into(tmp_path: Path) -> None:
    path = rezipped(tmp_path / "x.zip", {"a": b"first", "b": bytes(32 << 20)}, zipfile.ZIP_DEFLATED)
    nbytes = record_of(path, "b").nbytes
    assert found(path.read_bytes()) == [record("b", BOMB.format(nbytes, 32 << 20), rule="bomb")]


def test_many_small_bombs_are_one_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_audit, "FREE", 20_000)
    path = rezipped(tmp_path / "x.zip", {name: bytes(10_000) for name in "abcd"}, zipfile.ZIP_DEFLATED)
    nbytes = record_of(path, "a").nbytes
    assert found(path.read_bytes()) == [record(name, BOMB.format(nbytes, 10_000), rule="bomb") for name in "cd"]


def test_progress_is_told(plain: Path) -> None:
    told: list[tuple[str, int]] = []
    list(audit(zips.read(source_in_memory(plain.read_bytes())), lambda what, done, total: told.append((what, done))))
    assert told == [("checking", 5), ("checking", 22)]
