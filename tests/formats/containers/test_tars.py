"""Which files are tar archives, and what their members are called: as Python's tarfile has it, which torch asks."""

from __future__ import annotations

import io
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import file_of, refused, source_of
from old_torch import save_tar

from paramctl.check.check import check
from paramctl.errors import FormatError, TwoReadings, Unsupported
from paramctl.formats import opening, registry
from paramctl.formats.containers import tar_header, tars

FIELDS = [slice(100, 108), slice(108, 116), slice(124, 136), slice(136, 148), slice(148, 156), slice(329, 337), slice(345, 500)]
NUMBERS = (b"0000644\0", b" 644 \0", b"0o644\0\0", b"6_4_4\0\0", b"-644\0\0", b"\x80\0\0\0\0\0\0\1", b"\xff" * 8, b"9\0", b"\0" * 8, b"x\0")


def taken(data: bytes) -> bool:
    """Whether tarfile takes the first block of some bytes for a header."""
    try:
        tarfile.TarInfo.frombuf(data[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def summed(block: bytearray, rng: random.Random) -> bytearray:
    """A block with the checksum that it should have, of unsigned or of signed bytes, in one of its forms."""
    others = block[:148] + b" " * 8 + block[156:]
    total = sum(others) - rng.choice((0, 256 * sum(byte > 127 for byte in others)))
    forms = [b"\x80" + total.to_bytes(7, "big")] if total >= 0 else [b"\xff" + (256**7 + total).to_bytes(7, "big")]
    forms += [b"%06o\0 " % total, b"%o" % total, b" %o\0x" % total, b"0o%o" % total] if total >= 0 else [b"-%o" % -total]
    block[148:156] = rng.choice(forms).ljust(8, b"\0")[:8]
    return block


@pytest.mark.parametrize("seed", range(40))
def test_headers_are_those_of_tarfile(seed: int) -> None:
    rng = random.Random(seed)
    found = []
    for _ in range(100):
        block = bytearray(tarfile.TarInfo(rng.choice(("storages", "\udc80\udcff", "x" * 99))).tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape"))
        for _ in range(rng.randrange(3)):
            field = rng.choice(FIELDS)
            size = field.stop - field.start
            block[field] = rng.choice(NUMBERS).ljust(size, b"\0")[:size]
        if rng.random() < 0.5:
            block[257:265] = bytes(8)  # no `ustar`
        block = summed(block, rng) if rng.random() < 0.8 else block
        if rng.random() < 0.2:
            block[rng.randrange(512)] ^= 1 << rng.randrange(8)
        found.append(taken(bytes(block)))
        assert tar_header.recognises(bytes(block)) == found[-1]
    assert {*found} == {True, False}


def archive(rng: random.Random) -> bytes:
    file = io.BytesIO()
    form = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form) as made:
        for i in range(rng.randrange(1, 5)):
            name = rng.choice(("storages", "pickle", "a/b", "long/" * 30 + "name", "läng" * 40, "folder"))
            info = tarfile.TarInfo(f"{name}{i}" if rng.random() < 0.8 else name)
            info.type = rng.choice((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, b"7", b"Z"))
            info.linkname = "x" * rng.choice((1, 150))
            data = bytes(rng.randrange(1000)) if info.isreg() else b""
            info.size = len(data)
            try:
                made.addfile(info, io.BytesIO(data))
            except ValueError:  # too long a name for the form
                continue
    return file.getvalue()


def told(data: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as opened:
        return [(one.name, one.offset_data, one.size if holds_content(one) else 0) for one in opened]


def holds_content(member: tarfile.TarInfo) -> bool:
    return member.isreg() or member.type not in tarfile.SUPPORTED_TYPES


@pytest.mark.parametrize("seed", range(150))
def test_members_are_those_of_tarfile_or_the_archive_is_refused(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(archive(rng))
    blocks = [at for at in range(0, len(data), 512) if taken(bytes(data[at:]))]
    honest = not blocks or rng.random() < 0.3
    if not honest:
        at = rng.choice(blocks)
        block = bytearray(data[at : at + 512])
        field = rng.choice([slice(0, 100), slice(124, 136), slice(156, 157), slice(345, 500), slice(100, 108)])
        size = field.stop - field.start
        block[field] = rng.choice((b"storages", b"00000001000\0", b"1", b"2", b"5", b"x", b"g", b"X", b"S", b"L", b"\0")).ljust(size, b"\0")[:size]
        data[at : at + 512] = summed(block, rng)
    try:
        found = [(m.name, m.content.offset, m.content.nbytes) for m in tars.read(source_of(tmp_path, bytes(data)))]
    except FormatError:
        assert not honest
        return
    assert [(name, at, n if n else 0) for name, at, n in found if n] == [one for one in told(bytes(data)) if one[2]]
    assert [name for name, _, _ in found] == [name for name, _, _ in told(bytes(data))]


PAX = {
    "one for all": (b"g", b"17 path=storages\n", "names members in two ways, or all of them at once"),
    "behind the notes": (b"x", b"12 comment=x\n\n17 path=storages\n", "damaged notes"),
    "sparse": (b"x", b"23 GNU.sparse.name=abc\n", "notes on a member that are not read"),
    "a size that is none": (b"x", b"11 size=-1\n", "notes on a member that are not read"),
}


@pytest.mark.parametrize("case", PAX)
def test_notes_that_rename_otherwise(tmp_path: Path, case: str) -> None:
    kind, notes, message = PAX[case]
    info = tarfile.TarInfo("notes")
    info.type, info.size = kind, len(notes)
    data = info.tobuf() + notes.ljust(512, b"\0") + tarfile.TarInfo("x").tobuf() + bytes(1024)
    assert message in refused(FormatError, tars.read, source_of(tmp_path, data))


def test_notes_go_on_in_what_fills_their_block(tmp_path: Path) -> None:
    info = tarfile.TarInfo("notes")
    info.type, info.size = b"x", 13
    notes = b"13 comment=x\n17 path=storages\n"
    data = info.tobuf() + notes.ljust(512, b"\0") + tarfile.TarInfo("x").tobuf() + bytes(1024)
    assert told(data)[0][0] == "storages"
    assert "something behind its notes" in refused(FormatError, tars.read, source_of(tmp_path, data))


# --- the order of trial --------------------------------------------------------------------------


class Payload:
    """Names os.system in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)


HARM = pickle.dumps(Payload(), 2)


def tar_of(first: bytes, held: dict[str, bytes], *, with_magic: bool = True) -> bytes:
    """A tar archive whose first bytes are these, with members of torch's."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, errors="surrogateescape") as opened:
        for name, data in {first.decode("utf-8", "surrogateescape"): b"", **held}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    made = bytearray(file.getvalue())
    if not with_magic:
        made[257:265] = bytes(8)
        made[:512] = summed(made[:512], random.Random(0))
    return bytes(made)


MEMBERS = {"storages": HARM, "tensors": HARM, "pickle": HARM, "sys_info": b"N."}


@pytest.mark.parametrize("with_magic", [True, False])
@pytest.mark.parametrize("first", [b"readme", b"sys_info"])
def test_what_tarfile_opens_is_a_tar(tmp_path: Path, first: bytes, *, with_magic: bool) -> None:
    path = file_of(tmp_path, tar_of(first, MEMBERS, with_magic=with_magic), "x.pt")
    form = registry.of(source_of(tmp_path, path.read_bytes()))
    assert form and form.NAME == "torch-tar"
    assert any("system, which runs" in finding.what for finding in check(str(path)).findings)


def test_a_tar_that_begins_as_the_old_format_does(tmp_path: Path) -> None:
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    path = file_of(tmp_path, tar_of(magic, MEMBERS), "x.pt")
    assert "begins at the same byte" in refused(TwoReadings, opening.open, str(path))
    what = [finding.what for finding in check(str(path)).findings if finding.rule == "dangerous"]
    assert len(what) == 2 and "system, which runs a shell command" in what[1]


def test_a_tar_of_something_else(tmp_path: Path) -> None:
    path = file_of(tmp_path, tar_of(b"readme", {}), "x.pt")
    message = f"{path}: is a tar archive, and none that torch wrote; unpack it, and name a file in it"
    assert refused(Unsupported, opening.open, str(path)) == message


def test_the_old_format_is_no_metadata(tmp_path: Path) -> None:
    data = {"torch.distributed": torch.ones(1)}
    path = tmp_path / ".metadata"
    torch.save(data, path, _use_new_zipfile_serialization=False)
    assert opening.open(str(path)).format == "torch-legacy"
    mark = b"torch.distributed"
    junk = b"\x80\x02X" + len(mark).to_bytes(4, "little") + mark + b"0" + path.read_bytes()[2:]
    assert opening.open(str(file_of(tmp_path, junk, "x.pt"))).format == "torch-legacy"


def test_what_any_file_begins_with_is_judged(tmp_path: Path) -> None:
    block = bytearray(tar_of(b"x", {})[:512])
    block[: len(HARM)] = HARM  # a name that is a pickle
    data = summed(block, random.Random(0)) + tar_of(b"storages", {"pickle": b"N."})
    assert taken(bytes(data))
    path = file_of(tmp_path, bytes(data), "x.pt")
    assert any("system, which runs" in finding.what for finding in check(str(path)).findings)


def test_an_honest_tar_has_nothing_wrong(tmp_path: Path) -> None:
    path = save_tar({"w": torch.ones(3)}, tmp_path / "x.pt")
    assert not [finding for finding in check(str(path)).findings if finding.level != "note"]
