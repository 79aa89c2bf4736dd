"""A set of files is the old one or the whole new one, whatever fails, and whenever the power does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from disk import CHANGING, Disk, State, hooked
from helpers import refused
from test_faults import FAILURES, Dying, Failing, Killed, tried

from paramctl.edit.convert import convert
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie
from paramctl.errors import FileError, FormatError, ParamctlError, UsageError
from paramctl.files import segments, temporary, undo_journal
from paramctl.files.content import Extent, Literal
from paramctl.files.set_names import Part, index_in
from paramctl.files.set_writer import SetJob, plan, write
from paramctl.files.sources import Source, open_source
from paramctl.files.targets import InPlace, NewFile
from paramctl.formats import opening, saving
from paramctl.formats.sets import sharded
from paramctl.formats.sets.shard_division import Division
from paramctl.model.checkpoint import Checkpoint
from paramctl.values.arrays import read_values

Values = dict[str, bytes]
INDEX = "model.safetensors.index.json"


def state() -> dict[str, torch.Tensor]:
    return {f"{i}.weight": torch.full((4, 16), float(i)) for i in range(4)}


def make(folder: Path) -> Path:
    """Write a set of two shards with two tensors in each."""
    folder.mkdir()
    torch.save(state(), folder / "x.pt")
    checkpoint = convert(opening.open(str(folder / "x.pt")), sharded, division=Division("safetensors", 600)).checkpoint
    saving.save(checkpoint, NewFile(folder), sharded)
    (folder / "x.pt").unlink()
    return folder


def values(folder: Path) -> Values:
    checkpoint = opening.open(str(folder))
    return {param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params}


def held(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def fine(path: Path, was: str = "") -> None:
    """Accept a written file without a look."""


def job(*sources: Source, **held: bytes) -> SetJob:
    """Return the job that writes files of those names; the last one is the index, which lists the others."""

    def layout(names: object) -> list[Part]:
        assert isinstance(names, dict)
        parts = [Part(names.get(f"{name}.x", f"{name}.x"), (Literal(data),), f"{name}.x") for name, data in held.items()]
        index = ",".join(part.name for part in parts).encode()
        return [*parts, Part(names.get("i.json", "i.json"), (Literal(index),), "i.json")]

    return SetJob(layout, sources, (".json",), fine, fine)


def test_a_new_folder(tmp_path: Path) -> None:
    assert write(job(a=b"1", b=b"22"), NewFile(tmp_path / "new")) == 10
    assert held(tmp_path / "new") == {"a.x": b"1", "b.x": b"22", "i.json": b"a.x,b.x"}


def test_an_index_of_another_name(tmp_path: Path) -> None:
    write(job(a=b"1"), NewFile(tmp_path / "new" / "other.json"))
    assert held(tmp_path / "new") == {"a.x": b"1", "other.json": b"a.x"}


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"{}")
    write(job(a=b"1"), NewFile(tmp_path))
    assert held(tmp_path) == {"a.x": b"1", "i.json": b"a.x", "config.json": b"{}"}


def test_what_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a.x").write_bytes(b"old")
    what = "exists already; add -f to replace it, or name a new directory"
    assert refused(UsageError, write, job(a=b"1"), NewFile(tmp_path)) == f"{tmp_path / 'a.x'}: {what}"
    what = "is read, and would be replaced; name a new directory for -o"
    ours = job(open_source(str(tmp_path / "a.x")), a=b"1")
    assert refused(UsageError, write, ours, NewFile(tmp_path, True)) == f"{tmp_path / 'a.x'}: {what}"
    assert held(tmp_path) == {"a.x": b"old"}
    write(job(a=b"1"), NewFile(tmp_path, True))
    assert held(tmp_path) == {"a.x": b"1", "i.json": b"a.x"}
    (tmp_path / INDEX).touch()
    what = f"holds a set already ({INDEX}); name a new directory for -o, or remove this one first"
    assert refused(UsageError, write, job(b=b"1"), NewFile(tmp_path, True)) == f"{tmp_path}: {what}"
    what = "is not a directory, and a set is several files; name a directory for -o"
    assert refused(UsageError, write, job(b=b"1"), NewFile(tmp_path / "a.x", True)) == f"{tmp_path / 'a.x'}: {what}"
    nowhere = tmp_path / "no" / "where"
    what = f"there is no directory {tmp_path / 'no'}; make it first"
    assert refused(FileError, write, job(b=b"1"), NewFile(nowhere)) == f"{nowhere}: {what}"


def test_a_file_that_is_found_bad_leaves_nothing(tmp_path: Path) -> None:
    def bad(path: Path, was: str = "i.json") -> None:
        if was == wrong:
            raise FormatError(f"{was} is bad")

    for wrong in ("b.x", "i.json"):
        broken = job(a=b"1", b=b"2")._replace(verify=bad, verify_part=bad)
        assert refused(FormatError, write, broken, NewFile(tmp_path / "new")).endswith(f"{wrong} is bad")
        assert not (tmp_path / "new").exists()


def opened(folder: Path) -> tuple[Source, ...]:
    """Open a set of a.x and b.x."""
    write(job(a=b"1", b=b"2"), NewFile(folder))
    return tuple(open_source(str(folder / name)) for name in ("i.json", "a.x", "b.x"))


def unchanged(*sources: Source, **changed: bytes) -> SetJob:
    """Return the set, in which some files change."""

    def layout(names: object) -> list[Part]:
        assert isinstance(names, dict)
        found = {Path(source.name).name: source for source in sources}
        parts = [
            Part(
                names.get(name, name),
                (Literal(changed[name[0]]),) if name[0] in changed else (Extent(source, 0, source.size),),
                name,
            )
            for name, source in found.items()
            if name != "i.json"
        ]
        index = ",".join(part.name for part in parts).encode()
        same = index == found["i.json"].read(0, found["i.json"].size)
        return [*parts, Part("i.json", (Extent(found["i.json"], 0, len(index)) if same else Literal(index),), "i.json")]

    return SetJob(layout, sources, (".json",), fine, fine)


def test_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sources = opened(folder)
    inodes = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert write(unchanged(*sources), InPlace(sources[0])) == 0
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == inodes
    assert write(unchanged(*sources, b=b"new"), InPlace(sources[0])) == 3
    assert held(folder) == {"a.x": b"1", "b.x": b"new", "i.json": b"a.x,b.x"}
    assert (folder / "a.x").stat().st_ino == inodes["a.x"]
    sources = tuple(open_source(source.name) for source in sources)
    assert write(unchanged(*sources, a=b"A", b=b"B"), InPlace(sources[0])) == 21
    assert held(folder) == {"a-edit1.x": b"A", "b-edit1.x": b"B", "i.json": b"a-edit1.x,b-edit1.x"}


def test_somebody_else_changes_the_set_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sources = opened(folder)
    theirs = tuple(open_source(source.name) for source in sources)

    def slow(path: Path) -> None:
        write(unchanged(*theirs, a=b"their 1", b=b"their 2"), InPlace(theirs[0]))

    ours = unchanged(*sources, a=b"our 1", b=b"our 2")._replace(verify=slow)
    what = "changed while it was being read; nothing was written; run it again"
    assert refused(FileError, write, ours, InPlace(sources[0])) == what
    names = {"a-edit2.x": b"their 1", "b-edit2.x": b"their 2"}
    assert held(folder) == {**names, "i.json": b"a-edit2.x,b-edit2.x"}


@pytest.mark.parametrize("patch", [False, True])
def test_one_file_does_not_change_while_another_write_is_about_to_name_other_files(tmp_path: Path, patch: bool) -> None:
    folder = make(tmp_path / "set")
    before = held(folder)
    checkpoint = opening.open(str(folder))
    edited = set_values(checkpoint, "0.weight = 7").checkpoint
    with (folder / INDEX).open("rb") as theirs:
        assert temporary.lock(theirs.fileno())
        message = refused(FileError, saving.save, edited, InPlace(checkpoint.sources[0], patch))
        assert message == "is being changed by another paramctl; nothing was written; run it again"
        assert held(folder) == before
    saving.save(edited, InPlace(checkpoint.sources[0], patch))
    assert held(folder) != before


def test_files_that_another_index_names_stay(tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    before = values(folder)
    other = folder / "backup.safetensors.index.json"
    other.write_bytes((folder / INDEX).read_bytes())
    source = opening.open(str(folder / INDEX))
    saving.save(set_values(source, "0.weight = 7", "2.weight = 8").checkpoint, InPlace(source.sources[0]))
    assert {param.path: read_values(opening.open(str(other)), param).tobytes() for param in source.params} == before
    other.unlink()
    assert values(folder) != before


def test_somebody_else_takes_a_name_meanwhile(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    sources = opened(folder)
    before = held(folder)

    def slow(path: Path, was: str) -> None:
        (folder / "b-edit1.x").write_bytes(b"theirs")

    ours = unchanged(*sources, a=b"our 1", b=b"our 2")._replace(verify_part=slow)
    assert refused(FileError, write, ours, InPlace(sources[0])) == (
        f"{folder}/i.json: is being changed by another paramctl; nothing was written; run it again"
    )
    assert held(folder) == {**before, "b-edit1.x": b"theirs"}


def test_in_place_again_goes_back_to_the_plain_names(tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    for names in (["model-00001-of-00002-edit1", "model-00002-of-00002-edit1"], ["model-00001-of-00002", "model-00002-of-00002"]):
        checkpoint = opening.open(str(folder))
        edited = set_values(checkpoint, "0.weight += 1", "2.weight += 1").checkpoint
        saving.save(edited, InPlace(checkpoint.sources[0]))
        assert sorted(held(folder)) == [*(f"{name}.safetensors" for name in names), INDEX]


def test_a_patch_of_one_file(tmp_path: Path) -> None:
    sources = opened(tmp_path / "set")
    assert write(unchanged(*sources, b=b"3"), InPlace(sources[0], True)) == 1
    assert held(tmp_path / "set") == {"a.x": b"1", "b.x": b"3", "i.json": b"a.x,b.x"}
    sources = tuple(open_source(source.name) for source in sources)
    what = "--patch does not apply: 2 files of the set change, and only one file can be patched"
    message = refused(UsageError, write, unchanged(*sources, a=b"3", b=b"4"), InPlace(sources[0], True))
    assert message == f"{what}; leave out --patch: -i alone writes them anew"


def test_links(tmp_path: Path) -> None:
    sources = opened(tmp_path / "set")
    folder = tmp_path / "links"
    folder.mkdir()
    for source in sources:
        (folder / Path(source.name).name).symlink_to(source.name)
    linked = tuple(open_source(str(folder / Path(source.name).name)) for source in sources)
    what = f"{folder / 'a.x'}: is a link to {tmp_path / 'set' / 'a.x'}, and several files of the set change"
    message = refused(UsageError, write, unchanged(*linked, a=b"3", b=b"4"), InPlace(linked[0]))
    assert message == f"{what}; write a copy with -o DIR"
    write(unchanged(*linked, a=b"3"), InPlace(linked[0]))
    assert (folder / "a.x").is_symlink() and (tmp_path / "set" / "a.x").read_bytes() == b"3"
    (blobs := tmp_path / "blobs").mkdir()
    (folder / "b.x").unlink()
    (blobs / "b").write_bytes(b"2")
    (folder / "b.x").symlink_to(blobs / "b")
    linked = tuple(open_source(source.name) for source in linked)
    what = f"{folder / 'b.x'}: is a link into a model cache ({blobs / 'b'}), which other links share"
    message = refused(UsageError, write, unchanged(*linked, b=b"4"), InPlace(linked[0]))
    assert message == f"{what}; write a copy with -o FILE"


def test_plans(tmp_path: Path) -> None:
    sources = opened(tmp_path / "set")
    one = unchanged(*sources, a=b"333")
    assert plan(one, None)[1:] == (8, 3, 0)
    assert plan(one, NewFile(tmp_path / "new"))[1:] == (8, 3, 0)
    assert plan(one, InPlace(sources[0]))[1:] == (0, 3, 0)
    assert plan(unchanged(*sources, a=b"3", b=b"4"), InPlace(sources[0]))[1:] == (0, 2, 0)
    assert plan(unchanged(*sources, a=b"3"), InPlace(sources[0], True)) == ("patch", 0, 1, 1)
    assert not (tmp_path / "new").exists()


def test_the_index_in_a_folder(tmp_path: Path) -> None:
    assert index_in(tmp_path) is None
    for name in (f".{INDEX}.paramctl-00000000.tmp", ".x.metadata", "index.json"):
        (tmp_path / name).touch()
    assert index_in(tmp_path) is None
    (tmp_path / INDEX).touch()
    assert index_in(tmp_path) == tmp_path / INDEX
    (tmp_path / ".metadata").touch()
    what = f"{tmp_path}: is a directory with several indexes (.metadata, {INDEX}); name one of them"
    assert refused(UsageError, index_in, tmp_path) == what


class Write(NamedTuple):
    name: str
    verb: Callable[[Checkpoint], Checkpoint]
    new: bool


def one(checkpoint: Checkpoint) -> Checkpoint:
    return set_values(checkpoint, "0.weight = 7").checkpoint


def two(checkpoint: Checkpoint) -> Checkpoint:
    return set_values(checkpoint, "0.weight = 7", "3.weight[1] = 8").checkpoint


def across(checkpoint: Checkpoint) -> Checkpoint:
    return tie(checkpoint, "0.weight", "2.weight").checkpoint


WRITES = [Write("one -i", one, False), Write("two -i", two, False), Write("tie -i", across, False), Write("two -o", two, True)]


class Scene:
    """A set, and a write that is tried there again and again."""

    def __init__(self, folder: Path, write: Write) -> None:
        self.write = write
        self.source = make(folder / "set")
        self.target = folder / "new" if write.new else self.source
        self.first = held(self.source)
        self.old = values(self.source)
        self.prepared()()
        self.new, self.files = values(self.target), held(self.target)
        assert self.new != self.old

    def prepared(self) -> Callable[[], object]:
        """Return the write, of the set as it was at first."""
        for folder in {self.source, self.target}:
            for path in folder.iterdir() if folder.is_dir() else ():
                path.unlink()
        for name, data in self.first.items():
            (self.source / name).write_bytes(data)
        if self.write.new and self.target.is_dir():
            self.target.rmdir()
        checkpoint = self.write.verb(opening.open(str(self.source)))
        target = NewFile(self.target) if self.write.new else InPlace(checkpoint.sources[0])
        return lambda: saving.save(checkpoint, target)

    def found(self) -> Values | None:
        """Return what the target holds; None if that is no set."""
        if self.write.new and index_now(self.target) is None:
            return None
        return values(self.target)

    def before(self) -> Values | None:
        return None if self.write.new else self.old

    def check(self, error: ParamctlError | None, what: str, *, tidy: bool = True) -> None:
        """Require the old set and nothing else after an error, and else the new one."""
        assert self.found() == (self.new if error is None else self.before()), what
        files = self.files if error is None else {} if self.write.new else self.first
        assert not tidy or held(self.target) == files, what
        assert not self.write.new or held(self.source) == self.first, what


def index_now(folder: Path) -> Path | None:
    return index_in(folder) if folder.is_dir() else None


@pytest.fixture(autouse=True)
def _every_piece_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every piece on its own: so small a file would go out in one write, with little to break."""
    monkeypatch.setattr(segments, "SMALL", 1)


@pytest.fixture(params=WRITES, ids=lambda write: write.name)
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return Scene(tmp_path, request.param)


def failures(scene: Scene, later: bool) -> Iterator[tuple[str, Failing, ParamctlError | None]]:
    for name, without in FAILURES:
        for nth in count(1):
            fault = Failing(name, nth, later=later, without=without)
            error = tried(scene.prepared(), fault)
            what = f"{name} {nth}, without {without}: {error}"
            if not fault.failed:
                assert error is None, what
                scene.check(None, what)
                break
            yield what, fault, error


def test_a_call_that_fails_leaves_the_old_set_or_the_new_one(scene: Scene) -> None:
    for what, fault, error in failures(scene, later=False):
        scene.check(error, what, tidy=fault.name != "unlink")


def test_calls_that_fail_from_some_moment_on(scene: Scene) -> None:
    for what, fault, error in failures(scene, later=True):
        scene.check(error, what, tidy=fault.name != "unlink")


def test_a_process_that_dies_at_any_call_leaves_the_old_set_or_the_new_one(scene: Scene) -> None:
    for nth in count(1):
        call, fault = scene.prepared(), Dying(nth)
        try:
            with hooked(fault, CHANGING):
                call()
        except Killed:
            pass
        if fault.calls < nth:
            break
        assert scene.found() in (scene.before(), scene.new), f"call {nth}"
        assert not scene.write.new or held(scene.source) == scene.first
    assert nth > 6


def layout(folder: Path, state: State) -> None:
    """Make a folder as a power cut leaves it."""
    files = dict(state.files)
    for path in folder.iterdir():
        path.unlink()
    first: dict[int, Path] = {}
    for name, number in state.names:
        if number in first:
            os.link(first[number], folder / name)
        else:
            first[number] = folder / name
            first[number].write_bytes(files[number])


@pytest.mark.parametrize("write", WRITES[1:3], ids=lambda write: write.name)
def test_a_power_cut_at_any_moment(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(tmp_path, write)
    call = scene.prepared()
    disk = Disk(scene.source)
    with disk.recording():
        call()
    monkeypatch.setattr(undo_journal, "boot_id", lambda: "the next")
    cuts = list(disk.cuts())
    assert len(cuts) > 15
    for at, state in cuts:
        layout(scene.source, state)
        assert scene.found() in (scene.old, scene.new), f"before step {at} of {[step[:3] for step in disk.steps]}"


def test_a_shard_that_was_half_patched_is_put_right_first(tmp_path: Path) -> None:
    folder = make(tmp_path / "set")
    old, undone = values(folder), 0
    for nth in count(1):
        checkpoint = opening.open(str(folder))
        edited, fault = set_values(checkpoint, "3.weight = 9").checkpoint, Dying(nth)
        try:
            with hooked(fault, CHANGING):
                saving.save(edited, InPlace(checkpoint.sources[0], True))
        except Killed:
            undone += opening.recover(opening.locate(str(folder))) > 0
        if fault.calls < nth:
            break
        assert values(folder) == old or undone
    assert undone > 0 and values(folder) != old
