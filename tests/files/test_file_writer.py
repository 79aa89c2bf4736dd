"""`write`: whole or not at all, where it was asked, and nothing left behind."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest
from helpers import refused

from paramctl.errors import FileError, FormatError, ReaderLeft, UsageError
from paramctl.files import file_writer, targets
from paramctl.files.content import Computed, Extent, Literal
from paramctl.files.file_writer import InPlace, NewFile, Stream, Target
from paramctl.files.segments import Derived, Segment, Summed
from paramctl.files.sources import Source, open_source

ROOT = os.geteuid() == 0


def fine(path: Path) -> None:
    """Accept a written file without a look."""


def write(target: Target, *segments: Segment, sources: Iterable[Source] = ()) -> int:
    return file_writer.write(segments or (Literal(b"new"),), target, sources, fine)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.pt"
    path.write_bytes(b"old bytes")
    return path


@pytest.fixture(autouse=True)
def _nothing_left_behind(tmp_path: Path) -> Iterator[None]:
    yield
    assert [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")] == []


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new.pt"
    assert write(NewFile(path), Literal(b"ab"), Computed(3, lambda: [b"c", b"de"])) == 5
    assert path.read_bytes() == b"abcde"
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode and path.stat().st_nlink == 1


def test_a_file_that_is_gone_meanwhile(old: Path) -> None:
    source = open_source(str(old))
    old.unlink()
    message = "changed while it was being read; nothing was written; run it again"
    assert refused(FileError, targets.destination, InPlace(source)) == message


def test_every_kind_of_segment(tmp_path: Path, old: Path) -> None:
    source = open_source(str(old))
    summed = Summed("x", (Literal(b"ab"), Extent(source, 0, 3), Computed(1, lambda: [b"z"])))
    derived = Derived(4, lambda sums: sums["x"].to_bytes(4, "little"))
    assert write(NewFile(tmp_path / "n"), summed, derived, Extent(source, 4, 5), sources=[source]) == 15
    expected = b"abold" + b"z"
    assert (tmp_path / "n").read_bytes() == expected + zlib.crc32(expected).to_bytes(4, "little") + b"bytes"


def test_a_large_extent_is_copied_whole(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "large").write_bytes(data)
    source = open_source(str(tmp_path / "large"))
    write(NewFile(tmp_path / "n"), Literal(b"x"), Extent(source, 5, len(data) - 5), sources=[source])
    assert (tmp_path / "n").read_bytes() == b"x" + data[5:]


def test_a_file_in_the_way(tmp_path: Path, old: Path) -> None:
    assert refused(UsageError, write, NewFile(old)) == f"{old}: exists already; add -f to replace it"
    assert old.read_bytes() == b"old bytes"
    write(NewFile(old, force=True))
    assert old.read_bytes() == b"new"


def test_a_file_that_came_in_the_way_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "new.pt"

    def make() -> list[bytes]:
        path.write_bytes(b"somebody's")
        return [b"x"]

    assert refused(UsageError, write, NewFile(path), Computed(1, make)) == f"{path}: exists already; add -f to replace it"
    assert path.read_bytes() == b"somebody's"


def test_a_file_in_the_way_keeps_its_mode(old: Path) -> None:
    old.chmod(0o640)
    write(NewFile(old, force=True))
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


def test_places_that_take_no_file(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "x.pt"
    assert refused(FileError, write, NewFile(missing)) == f"{missing}: there is no directory {tmp_path / 'no'}; make it first"
    assert refused(UsageError, write, NewFile(tmp_path, True)) == f"{tmp_path}: is a directory; name a file for -o"
    os.mkfifo(tmp_path / "fifo")
    assert refused(UsageError, write, NewFile(tmp_path / "fifo", True)) == (
        f"{tmp_path / 'fifo'}: is not a regular file; name a file for -o"
    )
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert refused(FileError, write, NewFile(loop)).startswith(f"{loop}: cannot write: ")
    long = tmp_path / ("x" * 300)
    assert refused(FileError, write, NewFile(long)) == f"{long}: cannot write: File name too long"


def test_links_are_followed(tmp_path: Path, old: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(old)
    write(NewFile(link, force=True))
    assert link.is_symlink() and old.read_bytes() == b"new"
    dangling = tmp_path / "dangling.pt"
    dangling.symlink_to(tmp_path / "target.pt")
    write(NewFile(dangling))
    assert dangling.is_symlink() and (tmp_path / "target.pt").read_bytes() == b"new"


def test_a_long_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)
    write(NewFile(path))
    assert path.read_bytes() == b"new"


def test_in_place(old: Path) -> None:
    old.chmod(0o604)
    source = open_source(str(old))
    inode = old.stat().st_ino
    assert write(InPlace(source), Extent(source, 0, 4), Literal(b"!"), sources=[source]) == 5
    assert old.read_bytes() == b"old !"
    assert stat.S_IMODE(old.stat().st_mode) == 0o604 and old.stat().st_ino != inode


def test_in_place_through_a_link(tmp_path: Path, old: Path) -> None:
    link = tmp_path / "link.pt"
    link.symlink_to(old)
    write(InPlace(open_source(str(link))))
    assert link.is_symlink() and old.read_bytes() == b"new"


def test_files_of_several_names(tmp_path: Path, old: Path) -> None:
    (tmp_path / "second.pt").hardlink_to(old)
    what = f"{old}: has 2 names (hard links), and replacing it would separate them"
    assert refused(UsageError, write, InPlace(open_source(str(old)))) == f"{what}; write a copy with -o FILE"
    for force in (True, False):
        message = f"{what}; name another file, or remove this one first"
        assert refused(UsageError, write, NewFile(old, force)) == message
    assert old.read_bytes() == b"old bytes"


@pytest.mark.parametrize("folder", ["blobs", "plain"])
def test_links_into_a_cache(tmp_path: Path, folder: str) -> None:
    name = "0123456789abcdef" * 4
    blob = tmp_path / folder / (name if folder == "plain" else "x")
    blob.parent.mkdir()
    blob.write_bytes(b"shared")
    link = tmp_path / "model.pt"
    link.symlink_to(blob)
    what = f"{link}: is a link into a model cache ({blob}), which other links share"
    assert refused(UsageError, write, InPlace(open_source(str(link)))) == f"{what}; write a copy with -o FILE"
    message = f"{what}; name another file, or remove this one first"
    assert refused(UsageError, write, NewFile(link, force=True)) == message
    assert blob.read_bytes() == b"shared"
    write(InPlace(open_source(str(blob))))
    assert blob.read_bytes() == b"new"
    blob.unlink()
    assert refused(UsageError, write, NewFile(link)) == message
    assert not blob.exists()


@pytest.mark.parametrize("force", [True, False])
def test_read_only_files(old: Path, force: bool) -> None:
    old.chmod(0o444)
    target = NewFile(old, True) if force else InPlace(open_source(str(old)))
    message = f"{old}: is read-only; write elsewhere with -o, or make it writable first"
    assert refused(FileError, write, target) == message
    assert old.read_bytes() == b"old bytes"


def test_standard_input_has_no_place(old: Path) -> None:
    fd = os.open(old, os.O_RDONLY)
    assert refused(UsageError, write, InPlace(Source(fd, "-", None))) == (
        "standard input has no place to write back to; use -o FILE instead of -i"
    )


CHANGED = "changed while it was being read; nothing was written; run it again"


def written_to(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replaced(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").replace(path)


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("happens", [written_to, replaced, gone])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_source_that_changes_meanwhile(tmp_path: Path, old: Path, happens: object, elsewhere: bool) -> None:
    source = open_source(str(old))
    os.utime(old, ns=(0, 1_000_000_000))
    source = open_source(str(old))

    def make() -> list[bytes]:
        assert callable(happens)
        happens(old)
        return [b"x"]

    target = NewFile(tmp_path / "new.pt") if elsewhere else InPlace(source)
    assert refused(FileError, lambda: write(target, Computed(1, make), sources=[source])) == CHANGED
    assert not (tmp_path / "new.pt").exists()
    if happens is not gone:
        assert old.read_bytes().startswith(b"old bytes")


def test_a_source_that_shrinks_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(3 << 20))
    source = open_source(str(path))

    def make() -> list[bytes]:
        os.truncate(path, 1 << 20)
        return [b"x"]

    message = "large: ends at byte 1,048,576, while it was being copied"
    segments = (Computed(1, make), Extent(source, 0, 3 << 20))
    assert refused(FileError, lambda: write(NewFile(tmp_path / "new"), *segments, sources=[source])).endswith(message)
    assert not (tmp_path / "new").exists()


def test_a_file_that_does_not_read_back(tmp_path: Path, old: Path) -> None:
    seen: list[bytes] = []

    def verify(path: Path) -> None:
        seen.append(path.read_bytes())
        raise FormatError("is wrong")

    for target in (NewFile(old, True), InPlace(open_source(str(old))), NewFile(tmp_path / "new")):
        assert refused(FormatError, file_writer.write, [Literal(b"new")], target, [], verify) == "is wrong"
    assert seen == [b"new"] * 3
    assert old.read_bytes() == b"old bytes" and not (tmp_path / "new").exists()


def test_an_error_while_bytes_are_made(tmp_path: Path, old: Path) -> None:
    def make() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(NewFile(old, True), Computed(8, make))
    assert old.read_bytes() == b"old bytes"


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: Summed("x", (c,))])
def test_computed_bytes_that_are_too_few(tmp_path: Path, wrap: object) -> None:
    assert callable(wrap)
    with pytest.raises(AssertionError, match="a computed segment was 2 bytes short"):
        write(NewFile(tmp_path / "new"), wrap(Computed(3, lambda: [b"x"])))
    assert not (tmp_path / "new").exists()


def test_derived_bytes_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a derived segment made 1 bytes, not 3"):
        write(NewFile(tmp_path / "new"), Derived(3, lambda _: b"x"))


def left_behind(folder: Path, name: str, seconds: int) -> Path:
    """Return a temporary file such as a write killed some time ago leaves."""
    path = folder / name
    path.write_bytes(b"half")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def test_what_a_killed_write_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    stale = left_behind(tmp_path, ".new.paramctl-0123abcd.tmp", 3600)
    os.mkfifo(tmp_path / ".new.paramctl-0123abcf.tmp")
    os.utime(tmp_path / ".new.paramctl-0123abcf.tmp", (1, 1))
    named_twice = left_behind(tmp_path, ".new.paramctl-0123abd0.tmp", 3600)
    os.link(named_twice, tmp_path / "precious")
    others = [
        named_twice,
        tmp_path / ".new.paramctl-0123abcf.tmp",
        left_behind(tmp_path, ".old.paramctl-0123abcd.tmp", 3600),  # of another file
        left_behind(tmp_path, ".new.paramctl-mine.tmp", 3600),
        left_behind(tmp_path, ".new.paramctl-0123abce.tmp", 5),  # may be just begun
    ]
    write(NewFile(tmp_path / "new"), Literal(b"new"))
    assert not stale.exists()
    for path in others:
        path.unlink()  # which fails where it is gone


def test_what_somebody_still_writes_is_left_alone(tmp_path: Path) -> None:
    busy = left_behind(tmp_path, ".new.paramctl-0123abcd.tmp", 3600)
    with busy.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write(NewFile(tmp_path / "new"), Literal(b"new"))
        assert busy.exists()
    write(NewFile(tmp_path / "new", True), Literal(b"newer"))
    assert not busy.exists()


def test_a_temporary_file_is_locked_while_it_is_written(tmp_path: Path) -> None:
    def make() -> list[bytes]:
        (name,) = tmp_path.glob(".new.paramctl-*.tmp")
        with name.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return [b"x"]

    write(NewFile(tmp_path / "new"), Computed(1, make))


def test_a_full_disk(tmp_path: Path, old: Path) -> None:
    def make() -> list[bytes]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert refused(FileError, lambda: write(NewFile(old, True), Computed(3, make))) == (
        f"{old}: cannot write: No space left on device; make room there or write elsewhere with -o"
    )
    assert old.read_bytes() == b"old bytes"


@pytest.mark.skipif(ROOT, reason="root may write anywhere")
def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        message = f"{tmp_path / 'new'}: cannot write: Permission denied"
        assert refused(FileError, write, NewFile(tmp_path / "new")) == message
    finally:
        tmp_path.chmod(0o755)


def test_a_pipe_gets_every_byte(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(data := os.urandom(300_000))
    source = open_source(str(tmp_path / "large"))
    read_end, write_end = os.pipe()
    got: list[bytes] = []

    def drain() -> None:
        with os.fdopen(read_end, "rb") as file:
            got.append(file.read())

    reader = threading.Thread(target=drain)
    reader.start()
    segments = (Literal(b"head"), Extent(source, 0, 300_000), Computed(4, lambda: [b"ta", b"il"]))
    assert write(Stream(write_end), *segments, sources=[source]) == 300_008
    os.close(write_end)
    reader.join()
    assert got == [b"head" + data + b"tail"]


def test_a_pipe_that_nobody_reads() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        message = "standard output: the reader is gone, and did not get all of it"
        assert refused(ReaderLeft, write, Stream(write_end)) == message
    finally:
        os.close(write_end)


def test_a_stream_into_the_very_file_that_is_read(old: Path) -> None:
    message = "standard output is the very file that is read; use -i to change it"
    source = open_source(str(old))
    for flags in (os.O_RDWR, os.O_WRONLY | os.O_APPEND):
        fd = os.open(old, flags)
        assert refused(UsageError, partial(write, Stream(fd), Extent(source, 0, 9), sources=[source])) == message
        os.close(fd)
    assert old.read_bytes() == b"old bytes"


def test_a_stream_whose_source_changed_is_of_no_use(tmp_path: Path, old: Path) -> None:
    source = open_source(str(old))
    fd = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    os.utime(old, (1, 1))
    assert refused(FileError, lambda: write(Stream(fd), Extent(source, 0, 9), sources=[source])) == (
        "changed while it was being read; what was written to standard output is unusable; run it again"
    )
    os.close(fd)


def test_of_two_writers_at_once_one_is_told_to_wait(old: Path) -> None:
    first, second = open_source(str(old)), open_source(str(old))
    refusals: list[str] = []

    def verify(path: Path) -> None:
        """Hold the lock as a process that is about to replace the file does."""
        with old.open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            refusals.append(refused(FileError, lambda: write(InPlace(second), Literal(b"b"), sources=[second])))

    file_writer.write([Literal(b"a")], InPlace(first), [first], verify)
    assert refusals == ["is being changed by another paramctl; nothing was written; run it again"]
    assert old.read_bytes() == b"a"


def test_many_writers_lose_no_edit_that_succeeded(tmp_path: Path) -> None:
    """Each reads a number and writes the next one in its place: as many succeed as the number says."""
    path = tmp_path / "count"
    path.write_bytes(b"0000")
    succeeded: list[int] = []

    def count() -> None:
        for _ in range(40):
            try:
                source = open_source(str(path))
                following = b"%04d" % (int(source.read(0, 4)) + 1)
                write(InPlace(source), Literal(following), sources=[source])
            except (FileError, FormatError):
                continue
            succeeded.append(1)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert int(path.read_bytes()) == len(succeeded) > 0


def test_a_stream_into_a_file_that_is_appended_to(tmp_path: Path, old: Path) -> None:
    """The kernel refuses to copy into a file opened for appending; the bytes come all the same."""
    source = open_source(str(old))
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    write(Stream(fd), Literal(b"> "), Extent(source, 0, 9), sources=[source])
    os.close(fd)
    assert (tmp_path / "log").read_bytes() == b"> old bytes"


def test_what_is_no_file_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    cases = {
        tmp_path / "nothing": "no such file; check the path",
        tmp_path / "dangling": "is a link to a file that is not there; check the path",
        tmp_path: "is a directory, not a checkpoint file; name a file in it",
        tmp_path / "fifo": "is a named pipe, not a checkpoint file; pipe it in and name '-'",
        Path("/dev/null"): "is a device, not a checkpoint file; name a regular file",
    }
    for path, message in cases.items():
        assert refused(FileError, open_source, str(path)) == message
    assert refused(FileError, open_source, "a\0b") == "cannot read: embedded null byte"
