"""Names and bytes of records as torch's own zip reader finds them: what it would run is what is judged and listed."""

from __future__ import annotations

import io
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import file_of, listing, records, refused, save, source_of

from paramctl.check.check import check
from paramctl.edit.set import set as set_values
from paramctl.errors import FormatError, ParamctlError, TwoReadings
from paramctl.formats import opening, registry
from paramctl.formats.containers import zip_pickles, zips
from paramctl.values.arrays import read_values

Named = tuple[str, bytes]


class Payload:
    """Names os.system in a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, ("true",)


def archive(held: Iterable[Named], method: int = zipfile.ZIP_STORED, attributes: int = 0) -> bytes:
    """A zip archive of records, which may have one name several times."""
    file, held = io.BytesIO(), list(held)
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", method) as made:
        warnings.simplefilter("ignore")
        for name, data in held:
            info = zipfile.ZipInfo("x" * len(name.encode()))
            info.external_attr, info.compress_type = attributes, method
            made.writestr(info, data)
    data = file.getvalue()
    for place in (b"PK\x03\x04", b"PK\x01\x02"):
        at = 0
        for name, _ in held:
            at = data.index(place, at)
            start = at + (30 if place == b"PK\x03\x04" else 46)
            data = data[:start] + name.encode() + data[start + len(name.encode()) :]
            at = start
    return data


def torch_reader(data: bytes) -> Any:
    """torch's reader of records, which unpickles nothing."""
    return torch._C.PyTorchFileReader(io.BytesIO(data))


def recased(name: str, rng: random.Random) -> str:
    return "".join(rng.choice((letter.lower(), letter.upper())) for letter in name)


def dangers(path: Path) -> list[str]:
    return [finding.what for finding in check(str(path)).findings if finding.rule == "dangerous"]


# --- names ---------------------------------------------------------------------------------------

WORDS = ("data.pkl", "data/0", "data/1", "byteorder", "Äpfel", "ÄPFEL", "äpfel", "k", "\u212a", "x[", "x{", "x@", "x`", "data")


@pytest.mark.parametrize("seed", range(60))
def test_records_are_found_as_torch_finds_them(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    names = [f"a/{recased(word, rng) if word.isascii() else word}" for word in rng.sample(WORDS, rng.randrange(1, 9))]
    if rng.random() < 0.5:
        names += [recased(rng.choice(names), rng)]
    held = [("a/version", b"3\n"), *((name, name.encode()) for name in dict.fromkeys(names))]
    data = archive(held)
    oracle, source = torch_reader(data), source_of(tmp_path, data)
    alike = {name.encode().lower() for name, _ in held}  # bytes have no lower case but that of ASCII
    if len(alike) < len(held):
        assert "differ in case only" in refused(TwoReadings, zips.read, source)
        return
    found = zips.read(source)
    for word in WORDS:
        asked = recased(word, rng) if word.isascii() else word
        record = found.find(f"a/{asked}")
        assert (record is not None) == oracle.has_record(asked)
        if record is not None:
            assert found.read(record, 100) == oracle.get_record(asked)


@pytest.mark.parametrize("seed", range(12))
def test_a_file_in_any_case_of_letters_lists_and_edits_as_torch_loads_it(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    state = {"a": torch.arange(4.0), "b": torch.arange(6).reshape(2, 3), "h": torch.ones(3, dtype=torch.bfloat16)}
    torch.save(state, tmp_path / "x.pt")
    held = [(f"x/{recased(name[2:], rng)}", data) for name, data in records(tmp_path / "x.pt").items()]
    path = file_of(tmp_path, archive(held), "y.pt")
    loaded = torch.load(path, weights_only=True)
    checkpoint = listing(path)
    assert [param.path for param in checkpoint.params] == list(loaded)
    for param in checkpoint.params:
        assert read_values(checkpoint, param).astype(float).tolist() == loaded[param.path].double().numpy().tolist()
    edited = save(set_values(checkpoint, "a = 7").checkpoint, tmp_path / "z.pt")
    assert torch.load(edited, weights_only=True)["a"].tolist() == [7.0] * 4
    assert not [finding for finding in check(str(path)).findings if finding.level != "note"]


def test_a_key_in_another_case_of_letters(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(4.0), "b": torch.arange(3.0)}, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    renamed = {**held, "x/data.pkl": held["x/data.pkl"].replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00K")}
    path = file_of(tmp_path, archive([("x/data/k" if n == "x/data/0" else n, d) for n, d in renamed.items()]), "y.pt")
    assert torch.load(path, weights_only=True)["a"].tolist() == [0, 1, 2, 3]
    checkpoint = listing(path)
    assert read_values(checkpoint, checkpoint.params[0]).tolist() == [0, 1, 2, 3]
    edited = save(set_values(checkpoint, "a = 7").checkpoint, tmp_path / "z.pt")
    assert torch.load(edited, weights_only=True)["a"].tolist() == [7.0] * 4


def test_constants_in_another_case_are_two_readings(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    held = [*records(tmp_path / "x.pt").items(), ("x/CONSTANTS.PKL", b"N.")]
    path = file_of(tmp_path, archive(held), "y.pt")
    assert "torch.jit.load for TorchScript" in refused(TwoReadings, opening.open, str(path))


def test_the_version_that_torch_asks_first(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    for name in (".data/version", ".DATA/Version"):
        data = archive([*records(tmp_path / "x.pt").items(), (f"x/{name}", b"99")])
        with pytest.raises(RuntimeError, match="version 99"):
            torch_reader(data)
        assert "says version b'99'" in refused(FormatError, opening.open, str(file_of(tmp_path, data, "y.pt")))


def test_what_is_marked_as_a_folder_and_names_with_a_nul(tmp_path: Path) -> None:
    data = archive([("a/version", b"3\n"), ("a/data/0", b"12345678")], attributes=0x10)
    assert "is marked as a folder and has content" in refused(TwoReadings, zips.read, source_of(tmp_path, data))
    data = archive([("a/data.pkl\0x", b"N.")])
    assert "has a NUL in its name" in refused(TwoReadings, zips.read, source_of(tmp_path, data))


# --- what is judged ------------------------------------------------------------------------------

HARM = pickle.dumps(Payload(), 2)


def with_harm(path: Path, name: str = "x/data.pkl") -> list[Named]:
    """A checkpoint, with another pickle before or behind its own."""
    torch.save({"a": torch.ones(1)}, path)
    return [*records(path).items(), (name, HARM)]


def wrong_sum(data: bytes) -> bytes:
    """The payload's CRC-32 is another one in all places where it stands."""
    crc = struct.pack("<I", zlib.crc32(HARM))
    assert data.count(crc) == 2
    return data.replace(crc, b"\1\2\3\4")


CASES: dict[str, Callable[[Path], bytes]] = {
    "a name twice": lambda path: archive(with_harm(path)),
    "a name twice, the other first": lambda path: archive(with_harm(path)[::-1]),
    "another case": lambda path: archive(with_harm(path, "x/DATA.pkl")),
    "another case alone": lambda path: archive([*with_harm(path, "x/Data.PKL")[1:]]),
    "a wrong checksum": lambda path: wrong_sum(archive(with_harm(path)[1:])),
    "bytes behind the directory": lambda path: archive(with_harm(path)[1:]) + b"more",
    "deflated twice": lambda path: archive(with_harm(path), zipfile.ZIP_DEFLATED),
    "a NUL in the name": lambda path: archive(with_harm(path, "x/data.pkl\0")[1:]),
    "a folder": lambda path: archive(with_harm(path)[1:], attributes=0x10),
}


@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_about_what_torch_would_run(tmp_path: Path, case: str) -> None:
    path = file_of(tmp_path, CASES[case](tmp_path / "x.pt"), "y.pt")
    assert any("system" in what and "runs a shell command" in what for what in dangers(path))
    if case != "another case alone":  # which is an honest file to every reader but one
        with pytest.raises(ParamctlError):
            opening.open(str(path))


@pytest.mark.parametrize("seed", range(150))
def test_no_damage_keeps_a_verdict_from_what_torch_reads(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    data = bytearray(archive(with_harm(tmp_path / "x.pt")[1:], rng.choice((0, 8))))
    directory = data.index(b"PK\x01\x02")
    for _ in range(rng.randrange(1, 4)):  # in headers more often than in what they describe
        data[rng.randrange(directory, len(data)) if rng.random() < 0.8 else rng.randrange(len(data))] = rng.randrange(256)
    try:
        reader = torch_reader(bytes(data))
        runs = reader.get_record("data.pkl")
    except (RuntimeError, UnicodeDecodeError):
        runs = b""
    source = source_of(tmp_path, bytes(data))
    try:
        judged = [load() for _, load in zip_pickles.code(source)]
    except FormatError:
        judged = []
    if runs.startswith(HARM[:16]) and registry.of(source) is not None:
        # Of what cannot be inflated torch runs the part that can, and then what lay in its memory.
        assert any(runs == data or (len(data) >= 16 and runs.startswith(data)) for data in judged)


def test_records_over_one_another_are_read_once(tmp_path: Path) -> None:
    data = bytearray(archive([(f"a/{i:04}.pkl", HARM) for i in range(2000)]))
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        struct.pack_into("<I", data, at + 42, 0)  # all of them are the first
        at += 4
    source = source_of(tmp_path, bytes(data))
    assert len([*zip_pickles.code(source)]) == 1


# --- one storage, two dtypes ---------------------------------------------------------------------


def test_one_storage_with_two_dtypes(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(4), "b": torch.ones(2, dtype=torch.float64)}, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    pickled = held["x/data.pkl"].replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
    path = file_of(tmp_path, archive({**held, "x/data.pkl": pickled}.items()), "y.pt")
    message = "storage '0' is named with two dtypes, and torch takes the first for both; do not load it: readers disagree"
    assert refused(TwoReadings, opening.open, str(path)) == f"{path}: {message}"
    assert dangers(path) == [message]


def test_an_empty_storage_has_no_dtype(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(0), "b": torch.ones(0, dtype=torch.float64)}, tmp_path / "x.pt")
    held = records(tmp_path / "x.pt")
    pickled = held["x/data.pkl"].replace(b"X\x01\x00\x00\x001", b"X\x01\x00\x00\x000")
    path = file_of(tmp_path, archive({**held, "x/data.pkl": pickled}.items()), "y.pt")
    loaded = torch.load(path, weights_only=True)
    assert [p.dtype.name for p in listing(path).params] == [str(t.dtype)[6:] for t in loaded.values()]
