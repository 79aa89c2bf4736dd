"""The undo journal: what was interrupted is undone, and what does not belong to the file never is."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import refused

from paramctl.errors import FileError
from paramctl.files import temporary, undo_journal
from paramctl.files.undo_journal import ChangedRange

OLD = bytes(range(256)) * 64
RUNS = ((100, 50), (4000, 300), (16000, 384))  # offsets and lengths of what changes; the last ends with the file


class Scene:
    """A file that was being changed when its writer was killed."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "net.pt"
        self.file.write_bytes(OLD)
        new = bytearray(OLD)
        for at, n in RUNS:
            new[at : at + n] = bytes(b ^ 0xFF for b in OLD[at : at + n])
        self.new = bytes(new)
        runs = [ChangedRange(at, n, zlib.crc32(OLD[at : at + n]), zlib.crc32(self.new[at : at + n])) for at, n in RUNS]
        fd = os.open(self.file, os.O_RDWR)
        with temporary.file_beside(self.file) as (made, name):
            undo_journal._write(made, fd, self.file, runs)
            undo_journal._publish(name, self.journal)
        os.pwrite(fd, self.new[:4100], 0)  # the second run is torn
        os.close(fd)
        self.torn = self.file.read_bytes()

    @property
    def journal(self) -> Path:
        return temporary.journal_of(self.file)

    def hint(self) -> str:
        return f"delete {self.journal} if the file is as it should be"

    def refusal(self) -> str:
        """Return why nothing is undone; nothing is, and the journal stays."""
        before = self.file.read_bytes() if self.file.exists() else None
        message = refused(FileError, undo_journal.roll_back, self.file)
        assert (self.file.read_bytes() if self.file.exists() else None) == before
        assert os.path.lexists(self.journal)
        return message.removeprefix(f"{self.file}: ")

    def describe(self, change: Callable[[dict[str, object]], object]) -> None:
        """Change the journal's description of itself, and sign it."""
        data = self.journal.read_bytes()
        size = undo_journal._TRAILER.size
        *_, nbytes, _ = undo_journal._TRAILER.unpack(data[-size:])
        description = json.loads(data[-size - nbytes : -size])
        change(description)
        text = json.dumps(description).encode()
        trailer = undo_journal._TRAILER.pack(b"paramctl journal", 1, len(text), hashlib.sha256(text).digest())
        self.journal.write_bytes(data[: -size - nbytes] + text + trailer)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_what_was_interrupted_is_undone_once(scene: Scene) -> None:
    assert scene.torn not in (OLD, scene.new)
    told: list[tuple[str, int, int | None]] = []
    assert undo_journal.roll_back(scene.file, lambda *args: told.append(args)) == sum(n for _, n in RUNS)
    assert scene.file.read_bytes() == OLD
    assert [path.name for path in scene.file.parent.iterdir()] == ["net.pt"]
    assert undo_journal.roll_back(scene.file) == 0
    assert told[-1] == ("undoing an interrupted change", 734, 734)


def test_a_file_without_a_journal_has_nothing_to_undo(tmp_path: Path) -> None:
    for name in ("missing", "x" * 255, "x" * 5000):
        assert undo_journal.roll_back(tmp_path / name) == 0


REPLACED = "was replaced since its change was interrupted; nothing was undone; "
WRITTEN = "was written to since its change was interrupted; nothing was undone; "


def test_a_file_that_was_replaced_since(scene: Scene) -> None:
    other = scene.file.with_name("other")
    other.write_bytes(OLD)
    other.replace(scene.file)
    assert scene.refusal() == REPLACED + scene.hint()


def test_a_file_of_another_size(scene: Scene) -> None:
    with scene.file.open("ab") as file:
        file.write(b"x")
    assert scene.refusal() == REPLACED + scene.hint()


def test_a_file_that_something_else_wrote_over(scene: Scene) -> None:
    """A training run saves its next checkpoint into the same inode, of the same size."""
    with scene.file.open("r+b") as file:
        file.write(os.urandom(len(OLD)))
    assert scene.refusal() == WRITTEN + scene.hint()


def test_a_file_of_which_only_what_was_changing_was_written_over(scene: Scene) -> None:
    with scene.file.open("r+b") as file:
        for at, n in RUNS:
            file.seek(at)
            file.write(os.urandom(n))
    assert scene.refusal() == WRITTEN + scene.hint()


def test_after_a_power_cut_what_was_changing_may_hold_anything(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with scene.file.open("r+b") as file:
        for at, n in RUNS:
            file.seek(at)
            file.write(bytes(n))
    monkeypatch.setattr(undo_journal, "boot_id", lambda: "the next")
    assert undo_journal.roll_back(scene.file) == 734
    assert scene.file.read_bytes() == OLD


def test_a_file_that_is_gone(scene: Scene) -> None:
    scene.file.unlink()
    assert scene.refusal() == f"does not exist, but the journal of an interrupted change does; {scene.hint()}"


DAMAGED = "has an interrupted change, and its journal is damaged; restore the file from a copy, or "


def test_a_journal_that_is_cut_off_anywhere(scene: Scene) -> None:
    whole = scene.journal.read_bytes()
    for length in (*range(0, len(whole), 37), len(whole) - 1):
        scene.journal.write_bytes(whole[:length])
        assert scene.refusal() == DAMAGED + scene.hint()
    scene.journal.write_bytes(whole)
    assert undo_journal.roll_back(scene.file) == 734


def test_a_journal_in_which_any_byte_is_wrong(scene: Scene) -> None:
    whole = bytearray(scene.journal.read_bytes())
    for at in range(0, len(whole), 7):
        whole[at] ^= 0x55
        scene.journal.write_bytes(whole)
        whole[at] ^= 0x55
        assert scene.refusal() == DAMAGED + scene.hint(), at
    assert scene.file.read_bytes() == scene.torn


HOSTILE: list[Callable[[dict[str, object]], object]] = [
    lambda d: d.update(runs=[[-1, 734, 0, 0]]),
    lambda d: d.update(runs=[[0, 1 << 62, 0, 0]]),
    lambda d: d.update(runs=[[len(OLD) - 1, 734, 0, 0]]),
    lambda d: d.update(runs=[[0.5, 734, 0, 0]]),
    lambda d: d.update(runs=[[True, 734, 0, 0]]),
    lambda d: d.update(runs=[[0, 734]]),
    lambda d: d.update(runs="abc"),
    lambda d: d.update(runs={"a": 1}),
    lambda d: d.update(rest=[[0, 1 << 40, 0]]),
    lambda d: d.update(rest=[[0, 1, 0]] * 100_000),
    lambda d: d.update(rest=[[len(OLD), 1, 0]]),
    lambda d: d.update(inode="1"),
    lambda d: d.update(size=None),
    lambda d: d.pop("runs"),
    lambda d: d.pop("boot"),
]


@pytest.mark.parametrize("change", HOSTILE, ids=range(len(HOSTILE)))
def test_a_journal_made_to_harm(scene: Scene, change: Callable[[dict[str, object]], object]) -> None:
    scene.describe(change)
    assert scene.refusal() == DAMAGED + scene.hint()


@pytest.mark.parametrize("text", [b"[" * 100_000, b"[]", b"3", b"null", b"\xff\xfe", b'{"runs": 1e999}', b""])
def test_a_journal_that_is_no_description(scene: Scene, text: bytes) -> None:
    digest = hashlib.sha256(text).digest()
    scene.journal.write_bytes(text + undo_journal._TRAILER.pack(b"paramctl journal", 1, len(text), digest))
    assert scene.refusal() == DAMAGED + scene.hint()


def test_a_journal_that_claims_to_be_huge(scene: Scene) -> None:
    scene.journal.write_bytes(struct.pack("<16sIQ32s", b"paramctl journal", 1, 1 << 62, bytes(32)))
    assert scene.refusal() == DAMAGED + scene.hint()
    scene.journal.write_bytes(b"")
    os.truncate(scene.journal, 1 << 40)
    assert scene.refusal() == DAMAGED + scene.hint()


def test_the_journal_of_another_file_is_not_for_this_one(scene: Scene, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    planted.mkdir()
    other = Scene(planted)
    scene.journal.write_bytes(other.journal.read_bytes())
    assert scene.refusal() == REPLACED + scene.hint()


def test_a_link_is_no_journal(scene: Scene, tmp_path: Path) -> None:
    scene.journal.rename(tmp_path / "elsewhere")
    scene.journal.symlink_to(tmp_path / "elsewhere")
    assert scene.refusal() == (
        "has an interrupted change, which cannot be undone: Too many levels of symbolic links; "
        "run 'paramctl recover net.pt' as a user who may write it"
    )


def test_a_journal_whose_writer_lives_is_busy(scene: Scene) -> None:
    hold = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    writer = subprocess.Popen([sys.executable, "-c", hold, scene.journal], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    assert scene.refusal() == "is being changed by another paramctl; try again when it is done"
    writer.kill()
    writer.communicate()
    assert undo_journal.roll_back(scene.file) == 734


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not write the file")
def test_a_user_who_may_not_write_the_file_is_told_what_to_run(
    scene: Scene, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ours = next(folder for folder in tmp_path_factory.getbasetemp().parents if folder.name.startswith("pytest-of-"))
    for folder in (tmp_path, *tmp_path.parents):
        folder.chmod(folder.stat().st_mode | 0o055) if folder.is_relative_to(ours) else None
    scene.file.chmod(0o644)
    scene.journal.chmod(0o644)
    child = os.fork()
    if child == 0:
        os.setuid(65534)
        try:
            undo_journal.roll_back(scene.file)
            os._exit(1)
        except FileError as error:
            os._exit(0 if "Permission denied; run 'paramctl recover net.pt' as a user" in str(error) else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert scene.file.read_bytes() == scene.torn


def test_a_change_that_another_one_is_in_the_way_of_touches_nothing(scene: Scene) -> None:
    undo_journal.roll_back(scene.file)
    fd = os.open(scene.file, os.O_RDWR)
    run = ChangedRange(0, 4, zlib.crc32(OLD[:4]), 0)
    with (
        undo_journal.undo_on_error(scene.file, fd, [run], lambda: None),
        pytest.raises(FileError, match="is being changed by another paramctl; try again when it is done"),
        undo_journal.undo_on_error(scene.file, fd, [run], lambda: None),
    ):
        raise AssertionError("two at once")
    os.close(fd)
    assert scene.file.read_bytes() == OLD
    assert [path.name for path in scene.file.parent.iterdir()] == ["net.pt"]


def test_a_file_that_changed_while_the_new_bytes_were_made_is_left_alone(scene: Scene) -> None:
    undo_journal.roll_back(scene.file)
    fd = os.open(scene.file, os.O_RDWR)
    stale = ChangedRange(0, 4, zlib.crc32(b"else"), 0)
    with (
        pytest.raises(FileError, match="changed while it was being read; nothing was written"),
        undo_journal.undo_on_error(scene.file, fd, [stale], lambda: None),
    ):
        raise AssertionError("it was")
    os.close(fd)
    assert [path.name for path in scene.file.parent.iterdir()] == ["net.pt"]
