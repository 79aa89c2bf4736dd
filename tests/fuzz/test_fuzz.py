"""The fuzzer: that it fuzzes every format, that its rules find what breaks them, and, with `-m fuzz`, what it finds.

`pytest -m fuzz` gives each target a minute, or PARAMCTL_FUZZ_SECONDS. The other tests try seeds and some mutations of
them, without atheris.
"""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from random import Random

import numpy as np
import pytest
import safetensors.torch
from fuzz import archive_mutator, engine, folders, json_mutator, mutators, pickle_mutator, rules, run, seeds
from fuzz.rules import Step, judge
from fuzz.targets import READERS, TARGETS, warm_up

from paramctl.errors import FormatError
from paramctl.formats import opening, registry

SECONDS = float(os.environ.get("PARAMCTL_FUZZ_SECONDS", "60"))
QUICK = {"edit": 15, "convert": 15, "verbs": 15}  # mutations of a target's seeds that the plain run tries; else 75


@pytest.fixture(scope="session", autouse=True)
def _imported() -> None:
    engine.import_all()
    warm_up()


@pytest.fixture(params=TARGETS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def test_every_format_is_fuzzed() -> None:
    assert {*READERS} == {*registry.BY_NAME}


def test_seeds_are_files_of_their_format(name: str, tmp_path: Path) -> None:
    if name not in READERS:
        pytest.skip("is no reader of one format")
    listed = set()
    for number, seed in enumerate(seeds.made(TARGETS[name].seeds)):
        (place := tmp_path / str(number)).mkdir()
        try:
            listed.add(opening.open(str(folders.lay_out(seed, place, "x.bin"))).format)
        except FormatError:
            continue  # the hostile ones
    assert name in listed


def test_seeds_and_mutations_break_no_rule(name: str) -> None:
    held = seeds.made(TARGETS[name].seeds)
    for data in (*held, *seeds.mutations(name, held, QUICK.get(name, 75))):
        finding = judge(TARGETS[name].steps, data) if len(data) <= rules.LARGEST else None
        assert finding is None, f"{finding.kind}\n{finding.report}"


@pytest.mark.fuzz
def test_fuzz(name: str) -> None:
    if not engine.is_there():
        pytest.skip(f"{name} was not fuzzed: atheris is not installed (pip install '.[fuzz]')")
    found = run.fuzz(name, SECONDS)
    assert not found, "\n".join(found)


# --- the rules -----------------------------------------------------------------------------------


def broken_by(step: Step) -> str:
    """Return the first word of the kind of finding that a step is, or nothing."""
    finding = judge(lambda data, folder: [step], b"")
    return finding.kind.partition(" ")[0] if finding else ""


def test_an_error_of_ours_breaks_no_rule() -> None:
    def refuse() -> None:
        raise FormatError("is damaged")

    assert broken_by(refuse) == ""


@pytest.mark.parametrize("error", [ValueError, RecursionError, MemoryError, OSError, SystemExit])
def test_any_other_error_breaks_a_rule(error: type[BaseException]) -> None:
    def fail() -> None:
        raise error

    assert broken_by(fail) == error.__name__


def test_a_warning_breaks_a_rule() -> None:
    assert broken_by(lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1)) == "RuntimeWarning"


def test_time_and_memory_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SECONDS", 0.1)
    monkeypatch.setattr(rules, "NBYTES", 32 << 20)

    def last() -> None:
        while True:
            pass

    assert broken_by(last) == "TooLong"
    assert broken_by(lambda: bytearray(256 << 20)) == "MemoryError"
    assert broken_by(lambda: bytearray(1 << 20)) == ""


CODE = compile("1", "x", "eval")
FORBIDDEN: dict[str, Callable[[], object]] = {
    "import": lambda: import_module("antigravity"),
    "import of a part": lambda: import_module("torch.utils.show_pickle"),
    "eval": lambda: eval("1 + 1"),
    "exec of what was compiled before": lambda: eval(CODE),
    "unpickling": lambda: pickle.loads(b"cos\ngetpid\n."),
    "process": lambda: subprocess.run(["true"], check=False),
    "command": lambda: os.system("true"),
    "socket": lambda: socket.socket(),
    "writing": lambda: Path("/tmp/paramctl-fuzz-canary").write_bytes(b""),
    "reading": lambda: Path("/etc/hostname").read_bytes(),
    "removing": lambda: Path("/tmp/paramctl-fuzz-canary").unlink(missing_ok=True),
    "a folder": lambda: Path("/tmp/paramctl-fuzz-canary").mkdir(),
    "a link": lambda: os.link("/etc/hostname", "/tmp/paramctl-fuzz-canary"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_no_file_may_cause_is_forbidden(what: str) -> None:
    assert broken_by(FORBIDDEN[what]) == "Forbidden"
    assert not Path("/tmp/paramctl-fuzz-canary").exists()


def test_what_is_forbidden_is_found_where_it_is_swallowed() -> None:
    def swallow() -> None:
        try:
            os.system("true")
        except BaseException:  # noqa: BLE001 - as a reader might
            return

    assert broken_by(swallow) == "Forbidden"


def test_files_may_be_written_in_the_folder_of_the_input() -> None:
    def steps(data: bytes, folder: Path) -> Iterator[Step]:
        yield lambda: (folder / "x").write_bytes(data)
        yield lambda: (folder / "x").rename(folder / "y")
        yield (folder / "y").unlink

    assert judge(steps, b"1") is None


# --- the mutators --------------------------------------------------------------------------------


def changed(data: bytes, count: int = 200) -> Iterator[bytes]:
    rng = Random(0)
    return (mutators.mutate(data, rng, data) for _ in range(count))


def share(mutated: Iterator[bytes], is_sound: Callable[[bytes], object]) -> float:
    """Return the share of inputs that are sound: that is, do not make a function fail."""
    sound = []
    for data in mutated:
        try:
            sound.append(is_sound(data) is not False)
        except Exception:  # noqa: BLE001 - a library's, whatever it raises for damage
            sound.append(False)
    return sum(sound) / len(sound)


def test_a_mutation_is_the_same_for_the_same_seed() -> None:
    data = seeds.made(seeds.torch_zip)[0]
    assert [*changed(data, 50)] == [*changed(data, 50)]


def test_sums_and_sizes_of_archives_fit_after_a_mutation() -> None:
    data = seeds.made(seeds.torch_zip)[0]
    assert share(changed(data), lambda made: zipfile.ZipFile(io.BytesIO(made)).testzip() is None) > 0.6
    tar = seeds.made(seeds.torch_tar)[0]
    assert share(changed(tar), members) > 0.6
    again = archive_mutator.zip_of(archive_mutator.records_of(data))
    assert archive_mutator.records_of(again) == archive_mutator.records_of(data)


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def test_headers_are_json_of_the_right_length_after_a_mutation() -> None:
    data = seeds.made(seeds.safe)[2]
    assert share(changed(data), json_mutator.is_safetensors) > 0.8
    sound = share(changed(data), safetensors.torch.load)
    assert 0.02 < sound < 0.9  # others are refused by the library


def test_pickles_are_pickles_after_a_mutation() -> None:
    for data in seeds.made(seeds.pickles):
        assert b"".join(pickle_mutator.opcodes(data)) == data
    data = seeds.made(seeds.pickles)[-1]
    assert share(changed(data), lambda made: made.endswith(b".")) > 0.5


def test_frames_fit() -> None:
    data = pickle.dumps({"a": ["b" * 9, 1.5]}, 4)
    found = pickle_mutator.opcodes(data)
    assert b"".join(pickle_mutator.reframed(found)) == data
    longer = pickle_mutator.reframed([*found[:-1], b"N", b"0", b"."])
    assert pickle.loads(b"".join(longer)) == {"a": ["b" * 9, 1.5]}
    assert longer[1] == b"\x95" + (len(data) - 9).to_bytes(8, "little")


def test_arrays_have_headers_after_a_mutation() -> None:
    shapes = set()

    def read(data: bytes) -> None:
        file = io.BytesIO(data)
        np.lib.format.read_magic(file)
        shapes.add(np.lib.format.read_array_header_1_0(file)[0])

    assert share(changed(seeds.made(seeds.npy)[0]), read) > 0.2  # others have a dtype or a word that is none
    assert len(shapes) > 5


def test_a_folder_is_packed_and_unpacked(tmp_path: Path) -> None:
    files = [(".metadata", b"1"), ("a", b""), ("é.bin", bytes(9))]
    assert [*folders.unpacked(folders.packed(files))] == files
    place = folders.lay_out(folders.packed([*files, ("../x", b"2"), ("", b""), ("..", b"")]), tmp_path, "x")
    assert sorted((path.name, path.read_bytes()) for path in place.iterdir()) == files
    assert [*tmp_path.iterdir()] == [place]


def test_a_finding_is_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(data: bytes, folder: Path) -> Iterator[Step]:
        if b"X" in data:
            yield lambda: data[1000]

    monkeypatch.setitem(TARGETS, "letter", TARGETS["npy"]._replace(steps=steps))
    small = run.reduced("letter", bytes(100) + b"X" + bytes(100))
    assert b"X" in small
    assert len(small) < 40
