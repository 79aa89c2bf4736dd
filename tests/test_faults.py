"""Every call of the operating system fails in turn, and the power at every moment: a file is old or new, never else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from disk import CHANGING, Disk, State, hooked
from safetensors.torch import save_file

from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.report import Edit
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie
from paramctl.errors import FileError, ParamctlError
from paramctl.files import segments, temporary, undo_journal
from paramctl.files.content import Computed, Extent, Literal
from paramctl.files.segments import Derived, Summed
from paramctl.files.targets import InPlace, NewFile
from paramctl.formats import opening, registry, saving
from paramctl.model.checkpoint import Checkpoint

Verb = Callable[[Checkpoint], Edit]


class Write(NamedTuple):
    """One way to write an edited checkpoint: in its place (`-i`), into it (`-i --patch`), over a file, or as a new one."""

    name: str
    verb: Verb
    how: str


def converted(checkpoint: Checkpoint) -> Edit:
    """The checkpoint in a format it is not in."""
    return convert(checkpoint, registry.named("safetensors" if checkpoint.format == "torch-zip" else "torch-zip"))


def drawn(checkpoint: Checkpoint) -> Edit:
    return init(checkpoint, ["0"], ["xavier_uniform"], seed=1)


def changed(checkpoint: Checkpoint) -> Edit:
    return set_values(checkpoint, "0.weight[1] = 5", "1.bias *= 3", "rest[17] = 1")


def tied(checkpoint: Checkpoint) -> Edit:
    return tie(checkpoint, "0.weight", "1.weight")


VERBS = [(drawn, "-i"), (drawn, "-i --patch"), (changed, "-i"), (changed, "-i --patch"), (changed, "-o new"), (tied, "-i"),
         (converted, "-o over"), (converted, "-o new")]  # fmt: skip
WRITES = [Write(name, *verb) for name in ("net.pt", "net.safetensors") for verb in VERBS]
PATCHES = [write for write in WRITES if write.how == "-i --patch"]


def named(write: Write) -> str:
    return f"{write.name} {write.verb.__name__} {write.how}"


class Scene:
    """A directory with a checkpoint in it, and the write that is tried there again and again."""

    def __init__(self, folder: Path, write: Write) -> None:
        self.folder, self.write = folder / "scene", write
        self.folder.mkdir()
        self.source = self.folder / write.name
        torch.manual_seed(0)
        state = {
            "0.weight": torch.rand(40, 64),
            "0.bias": torch.rand(64),
            "1.weight": torch.rand(40, 64),
            "1.bias": torch.rand(64),
            "rest": torch.arange(6000.0),
        }
        if self.source.suffix == ".pt":
            torch.save(state, self.source)
        else:
            save_file(state, self.source, {"format": "pt"})
        self.held = self.source.read_bytes()
        self.target = self.folder / "out" if write.how.startswith("-o") else self.source
        self.old = {"-o new": None, "-o over": b"precious"}.get(write.how, self.held)
        self.prepared()()
        self.new = self.found()
        assert self.new is not None and self.new != self.old

    def prepared(self) -> Callable[[], object]:
        """The write, of the checkpoint as it was at first, in a directory as it was at first."""
        for path in self.folder.iterdir():
            path.unlink()
        self.source.write_bytes(self.held)
        if self.old is not None:
            self.target.write_bytes(self.old)
        return self.opened()

    def opened(self) -> Callable[[], object]:
        """The write, of the checkpoint as it is."""
        checkpoint = self.write.verb(opening.open(str(self.source))).checkpoint
        if self.target == self.source:
            target: InPlace | NewFile = InPlace(checkpoint.sources[0], self.write.how == "-i --patch")
        else:
            target = NewFile(self.target, self.old is not None)
        return lambda: saving.save(checkpoint, target)

    def found(self) -> bytes | None:
        return self.target.read_bytes() if self.target.exists() else None

    def left(self) -> list[str]:
        """Names of files that were not there at first, and are not what was to be written."""
        return sorted({path.name for path in self.folder.iterdir()} - {self.source.name, self.target.name})

    def is_old_or_new(self) -> bool:
        return self.found() in (self.old, self.new) and self.source.read_bytes() == (
            self.found() if self.source == self.target else self.held
        )

    def lay(self, state: State) -> None:
        """Make the directory what a power cut left; a file that is there under its name stays the same file."""
        names, files = dict(state.names), dict(state.files)
        for path in self.folder.iterdir():
            if path.name not in names or path not in (self.source, self.target):
                path.unlink()
        first: dict[int, Path] = {}
        for name, number in names.items():
            path = self.folder / name
            if number in first:
                path.unlink(missing_ok=True)
                path.hardlink_to(first[number])
            else:
                path.write_bytes(files[number])
                first[number] = path


@pytest.fixture(autouse=True)
def _every_piece_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a file would go out in one write, and there would be little to break."""
    monkeypatch.setattr(segments, "SMALL", 1)


@pytest.fixture(params=WRITES, ids=named)
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return Scene(tmp_path, request.param)


@pytest.fixture(params=PATCHES, ids=named)
def patch(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return Scene(tmp_path, request.param)


def test_these_writes_have_segments_of_every_kind(tmp_path: Path) -> None:
    kinds: set[type] = set()
    for i, write in enumerate(WRITES):
        (folder := tmp_path / str(i)).mkdir()
        scene = Scene(folder, write)
        scene.prepared()
        checkpoint = write.verb(opening.open(str(scene.source))).checkpoint
        form = next(form for form in registry.FORMATS if checkpoint.format == form.NAME)
        for segment in form.layout(checkpoint):
            kinds |= {type(segment), *(type(part) for part in getattr(segment, "parts", ()))}
    assert kinds == {Literal, Extent, Computed, Summed, Derived}


# --- calls that fail -----------------------------------------------------------------------------

ERRORS = {
    "open": errno.EACCES,
    "write": errno.ENOSPC,
    "pwrite": errno.ENOSPC,
    "copy_file_range": errno.EIO,
    "sendfile": errno.EIO,
    "pread": errno.EIO,
    "preadv": errno.EIO,
    "fsync": errno.EIO,
    "fchmod": errno.EPERM,
    "fchown": errno.EIO,
    "link": errno.EPERM,
    "replace": errno.EIO,
    "unlink": errno.EACCES,
    "close": errno.EIO,
}
WAYS = {"copy_file_range": (), "sendfile": ("copy_file_range",), "write": ("copy_file_range", "sendfile")}
FAILURES = [*((name, ()) for name in ERRORS), ("sendfile", WAYS["sendfile"]), ("pread", WAYS["write"]), ("write", WAYS["write"])]


class Failing:
    """The nth call of a function of os fails; with `later`, so do all after it. Those of `without` never work.

    With `short`, every other call that reads or writes does about half of what it was asked.
    """

    def __init__(
        self, name: str, nth: int, *, later: bool = False, without: tuple[str, ...] = (), short: bool = False
    ) -> None:
        self.name, self.nth, self.later, self.without, self.short = name, nth, later, without, short
        self.calls = 0
        self.failed: list[str] = []
        self.shorter = False

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        if name in self.without:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if name == self.name:
            self.calls += 1
            if self.calls == self.nth or (self.later and self.calls > self.nth):
                if name == "close":
                    call(*args)  # it is closed all the same
                self.failed.append(str(args[0]))
                raise OSError(ERRORS[name], os.strerror(ERRORS[name]))
        self.shorter = self.short and not self.shorter
        return call(*(less(name, args) if self.shorter else args), **more)


def less(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a call that asks for half as many bytes."""
    match name:
        case "write" | "pwrite":
            return (args[0], args[1][: (len(args[1]) + 1) // 2], *args[2:])
        case "copy_file_range":
            return (*args[:2], (args[2] + 1) // 2)
        case "sendfile":
            return (*args[:3], (args[3] + 1) // 2)
        case "pread":
            return (args[0], (args[1] + 1) // 2, args[2])
        case "preadv":
            return (args[0], [args[1][0][: (len(args[1][0]) + 1) // 2]], args[2])
    return args


def tried(call: Callable[[], object], fault: Failing) -> ParamctlError | None:
    """What a write ends with, where calls fail; an error of another kind is none that a person should see."""
    try:
        with hooked(fault):
            call()
    except ParamctlError as error:
        assert type(error) is FileError or not fault.failed
        assert "\n" not in str(error)
        return error
    return None


def each_failure(scene: Scene, later: bool) -> Iterator[tuple[str, Failing, ParamctlError | None]]:
    """The write once for every call of every function, which fails, up to the one that goes through."""
    for name, without in FAILURES:
        for nth in count(1):
            fault = Failing(name, nth, later=later, without=without)
            error = tried(scene.prepared(), fault)
            what = f"{name} {nth}, without {without}: {error}"
            if not fault.failed:
                assert error is None and scene.found() == scene.new and scene.left() == [], what
                break
            yield what, fault, error


def test_a_call_that_fails_leaves_the_old_file_or_the_new_one_and_nothing_beside_it(scene: Scene) -> None:
    for what, fault, error in each_failure(scene, later=False):
        assert scene.found() == (scene.new if error is None else scene.old), what
        assert scene.is_old_or_new(), what
        allowed = [Path(name).name for name in fault.failed] if fault.name == "unlink" else []
        assert set(scene.left()) <= set(allowed), what
        assert not [name for name in scene.left() if name.endswith("-journal")], what


def test_calls_that_fail_from_some_moment_on_leave_nothing_that_the_next_command_cannot_mend(scene: Scene) -> None:
    for what, fault, error in each_failure(scene, later=True):
        half = error is not None and "is half changed, and its old bytes could not be restored" in str(error)
        journals = [name for name in scene.left() if name.endswith("-journal")]
        assert scene.is_old_or_new() or (half and journals), what
        assert not (half and fault.name == "pwrite" and scene.found() == scene.old), what
        opening.recover(str(scene.target))
        assert scene.found() == (scene.new if error is None else scene.old), what
        assert fault.name == "unlink" or scene.left() == [], what
        assert not [name for name in scene.left() if name.endswith("-journal")], what


def test_calls_that_do_less_than_they_were_asked(scene: Scene) -> None:
    for without in WAYS.values():
        assert tried(scene.prepared(), Failing("", 0, without=without, short=True)) is None
        assert scene.found() == scene.new and scene.left() == []


def test_a_call_that_fails_after_one_that_did_half(scene: Scene) -> None:
    for name in ("write", "pwrite", "copy_file_range"):
        for nth in count(2, 3):
            fault = Failing(name, nth, later=True, short=True)
            error = tried(scene.prepared(), fault)
            if not fault.failed:
                break
            opening.recover(str(scene.target))
            assert error is not None and scene.found() == scene.old and scene.left() == [], f"{name} {nth}: {error}"


# --- processes that die --------------------------------------------------------------------------


class Killed(BaseException):
    """The process is no more."""


class Dying:
    """The process dies at its nth call that changes anything: it does nothing more, not even clean up."""

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.calls = 0

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **more: Any) -> Any:
        self.calls += 1
        if self.calls < self.nth:
            return call(*args, **more)
        if self.calls == self.nth and name in ("write", "pwrite"):
            call(*less(name, args))
        raise Killed


def dies(call: Callable[[], object], nth: int) -> bool:
    """Whether that kills it."""
    fault = Dying(nth)
    try:
        with hooked(fault, CHANGING):
            call()
    except Killed:
        pass
    except OSError as error:  # what os is called with on the way out fails in its own way
        raise AssertionError(f"call {nth}: {error}") from error
    return fault.calls >= nth


def test_a_process_that_dies_at_any_call_leaves_the_old_file_or_the_new_one(scene: Scene) -> None:
    for nth in count(1):
        if not dies(scene.prepared(), nth):
            break
        opening.recover(str(scene.target))
        assert scene.is_old_or_new(), f"call {nth}"
        assert not [name for name in scene.left() if name.endswith("-journal")], f"call {nth}"
    assert nth > 6


def test_a_recovery_that_dies_at_any_call_is_done_by_the_next(patch: Scene) -> None:
    undone = 0
    for nth in count(1):
        for then in count(1):
            if not dies(patch.prepared(), nth):
                assert undone > 20
                return
            interrupted = patch.left()[-1:] == [temporary.journal_of(patch.target).name]
            if not dies(lambda: opening.recover(str(patch.target)), then):
                break
            opening.recover(str(patch.target))
            assert patch.is_old_or_new(), f"calls {nth}, {then}"
            assert not interrupted or patch.found() == patch.old
            undone += interrupted


def test_a_recovery_of_which_a_call_fails_is_done_by_the_next(patch: Scene) -> None:
    moments = [nth for nth in range(1, 60) if dies(patch.prepared(), nth) and not patch.is_old_or_new()]
    assert len(moments) >= 2
    for nth in moments:
        for name in ("open", "pread", "pwrite", "fsync", "unlink"):
            for which in count(1):
                assert dies(patch.prepared(), nth)
                fault = Failing(name, which)
                error = tried(lambda: opening.recover(str(patch.target)), fault)
                what = f"died at {nth}; {name} {which}: {error}"
                assert patch.found() == patch.old if error is None else patch.left(), what
                opening.recover(str(patch.target))
                assert patch.found() == patch.old and patch.left()[-1:] != [temporary.journal_of(patch.target).name], what
                if not fault.failed:
                    break


# --- power that fails ----------------------------------------------------------------------------


def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new_one(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = scene.prepared()
    disk = Disk(scene.folder)
    with disk.recording():
        write()
    monkeypatch.setattr(undo_journal, "boot_id", lambda: "the next")
    states = 0
    for at, state in disk.cuts():
        scene.lay(state)
        opening.recover(str(scene.target))
        where = f"before step {at} of {[step[:3] for step in disk.steps]}"
        assert scene.is_old_or_new(), where
        if at == len(disk.steps):
            assert scene.found() == scene.new and scene.left() == [], where
        states += 1
    assert states > 15


def test_a_power_cut_while_a_change_is_undone(patch: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    write = patch.prepared()
    disk = Disk(patch.folder)
    with disk.recording():
        write()
    monkeypatch.setattr(undo_journal, "boot_id", lambda: "the next")
    name = temporary.journal_of(patch.target).name
    interrupted = {at: state for at, state in disk.cuts() if name in dict(state.names)}
    assert len(interrupted) >= 4
    for at, state in interrupted.items():
        patch.lay(state)
        second = Disk(patch.folder)
        with second.recording():
            opening.recover(str(patch.target))
        for then, left in second.cuts():
            patch.lay(left)
            opening.recover(str(patch.target))
            assert patch.found() == patch.old, f"step {at}, then step {then} of {second.steps}"


def test_what_a_failed_sync_lost_is_written_again(patch: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a sync that failed, the file reads as what was written, but the disk may never get it."""
    states = [nth for nth in range(1, 60) if dies(patch.prepared(), nth) and not patch.is_old_or_new()]
    assert dies(patch.prepared(), states[-1])
    disk = Disk(patch.folder, refused=1)
    with disk.recording():
        with pytest.raises(FileError, match="which cannot be undone: Input/output error; run 'paramctl recover"):
            opening.recover(str(patch.target))
        opening.recover(str(patch.target))
    monkeypatch.setattr(undo_journal, "boot_id", lambda: "the next")
    for at, state in disk.cuts():
        patch.lay(state)
        opening.recover(str(patch.target))
        assert patch.found() == patch.old, f"before step {at} of {[step[:3] for step in disk.steps]}"
