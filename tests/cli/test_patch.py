"""`-i --patch` and `recover`: only the bytes that change are written, and what was interrupted is undone."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramctl.cli.text import human_bytes
from paramctl.files import file_writer, targets, temporary, undo_journal
from paramctl.files.content import Extent, Literal
from paramctl.files.segments import Segment
from paramctl.files.sources import open_source

ChangedRange = Callable[..., tuple[int, str, str]]
SIZE = 1 << 18  # values of each layer


def state() -> dict[str, torch.Tensor]:
    return {f"{i}.weight": torch.full((512, SIZE // 512), float(i)) for i in range(4)}


@pytest.fixture(params=["net.pt", "net.safetensors"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if path.suffix == ".pt":
        torch.save(state(), path)
    else:
        save_file(state(), path)
    return path


def loaded(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)
    return found


def interrupted(path: Path, edit: Callable[[bytearray], None]) -> tuple[bytes, str]:
    """Leave `path` as a patch killed in the middle does; return what it held before, and the message about it."""
    old = path.read_bytes()
    new = bytearray(old)
    edit(new)
    fd = os.open(path, os.O_RDWR)
    source = open_source(str(path))
    runs = [run for run, _ in file_writer._changed_ranges(bytes(new), source, 0)]
    with temporary.file_beside(path) as (journal_fd, name):
        undo_journal._write(journal_fd, fd, path, runs)
        undo_journal._publish(name, temporary.journal_of(path))
    run = runs[0]
    os.pwrite(fd, bytes(new[run.offset : run.offset + run.nbytes // 2]), run.offset)
    os.close(fd)
    assert path.read_bytes() not in (old, new)
    size = human_bytes(sum(run.nbytes for run in runs))
    return old, f"{path}: a change in place was interrupted; undid it ({size})\n"


def half_of_it(data: bytearray) -> None:
    middle = len(data) // 2
    data[middle : middle + 100_000] = bytes(b ^ 0xFF for b in data[middle : middle + 100_000])


EDITS = [
    ("init", "-l", "2", "-s", "xavier", "--seed", "1"),
    ("init", "-s", "normal", "--seed", "2"),
    ("set", "1.weight[3] = 7", "3.weight[:, 5] *= 2", "0.weight = 3.weight"),
    ("set", "0.weight = 1.weight", "1.weight = 0.weight"),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: " ".join(edit[:3]))
def test_a_patch_gives_the_very_bytes_that_a_new_file_has(run: ChangedRange, model: Path, edit: tuple[str, ...]) -> None:
    verb, *rest = edit
    paths = [arg for arg in rest if "=" in arg] if verb == "set" else []
    options = [arg for arg in rest if arg not in paths]
    anew = model.with_name(f"anew{model.suffix}")
    assert run(verb, model, *paths, *options, "-o", anew, "-q") == (0, "", "")
    inode = model.stat().st_ino
    assert run(verb, model, *paths, *options, "-i", "--patch", "-q") == (0, "", "")
    assert model.read_bytes() == anew.read_bytes()
    assert model.stat().st_ino == inode
    assert sorted(path.name for path in model.parent.iterdir()) == [anew.name, model.name]
    if model.suffix == ".pt":
        assert zipfile.ZipFile(model).testzip() is None


def test_only_what_changes_is_written(run: ChangedRange, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int]] = []
    inode, pwrite = model.stat().st_ino, os.pwrite

    def watched(fd: int, data: bytes, offset: int) -> int:
        if os.fstat(fd).st_ino == inode:
            written.append((offset, len(data)))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", watched)
    code, out, err = run("set", model, "1.weight[0, :4] = 7", "-i", "--patch", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes_written"] == sum(n for _, n in written) < 3 * 4096
    assert loaded(model)["1.weight"][0, :5].tolist() == [7, 7, 7, 7, 1]


def test_nothing_that_differs_is_nothing_written(run: ChangedRange, model: Path) -> None:
    before = model.stat()
    assert run("set", model, "2.weight = 2", "-i", "--patch")[2] == "2.weight  = 2\nwrote 0 B in place\n"
    assert model.stat().st_mtime_ns == before.st_mtime_ns


def test_what_would_move_bytes_is_refused_before_anything_is_made(run: ChangedRange, model: Path) -> None:
    before = model.read_bytes()
    for options in ([], ["-n"]):
        code, out, err = run("tie", model, "0", "1", "-i", "--patch", *options)
        assert (code, out) == (2, "")
        assert err.startswith(f"paramctl: {model}: --patch does not apply: ") and err.endswith(
            " bytes of the file would move; leave out --patch: -i alone writes the file anew, and replaces it\n"
        )
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == [model.name]


def test_a_patch_wants_a_file_to_lie_somewhere(run: ChangedRange, model: Path) -> None:
    message = "paramctl: --patch changes a file in place; add -i, or leave it out\n"
    assert run("set", model, "0.weight = 1", "--patch", "-o", "x.pt") == (2, "", message)
    os.link(model, model.with_name("other"))
    assert run("set", model, "0.weight = 1", "-i", "--patch")[::2] == (
        2,
        f"paramctl: {model}: has 2 names (hard links), and replacing it would separate them; write a copy with -o FILE\n",
    )


def test_standard_input_is_no_file_to_patch(spawn: Callable[..., subprocess.CompletedProcess[bytes]], model: Path) -> None:
    with model.open("rb") as file:
        done = spawn("set", "-", "0.weight = 1", "-i", "--patch", stdin=file)
    assert done.returncode == 2
    assert done.stderr == b"paramctl: standard input: has no place to write back to; give -o FILE in place of -i\n"


@pytest.mark.parametrize("command", [("tree",), ("ls",), ("show", "0.weight[0,0]"), ("ties",), ("set", "0.weight = 9", "-n")])
def test_any_command_undoes_what_was_interrupted_and_says_so(run: ChangedRange, model: Path, command: tuple[str, ...]) -> None:
    old, said = interrupted(model, half_of_it)
    verb, *rest = command
    code, _, err = run(verb, model, *rest)
    assert code == 0
    assert err.startswith(said)
    assert model.read_bytes() == old
    assert [path.name for path in model.parent.iterdir()] == [model.name]
    assert "interrupted" not in run("tree", model)[2]


def test_recover_does_nothing_else(run: ChangedRange, model: Path) -> None:
    old, said = interrupted(model, half_of_it)
    link = model.with_name("link")
    link.symlink_to(model.name)
    assert run("recover", link) == (0, "", said.replace(str(model), str(link)))
    assert model.read_bytes() == old
    assert run("recover", link) == (0, "", f"{link}: there is nothing to undo\n")
    missing = model.with_name("missing")
    assert run("recover", missing) == (3, "", f"paramctl: {missing}: no such file; check the path\n")


def test_a_file_that_is_to_be_replaced_is_recovered_too(run: ChangedRange, model: Path) -> None:
    other = model.with_name(f"other{model.suffix}")
    other.write_bytes(model.read_bytes())
    interrupted(model, half_of_it)
    assert run("set", other, "0.weight = 5", "-f", "-o", model)[0] == 0
    assert float(loaded(model)["0.weight"][0, 0]) == 5
    assert not temporary.journal_of(model).exists()


def test_completion_undoes_nothing(model: Path) -> None:
    from paramctl.cli.completion import complete_path

    interrupted(model, half_of_it)
    line = SimpleNamespace(params={"file": str(model)}, args=[])
    assert "1.weight" in complete_path(line, "1")  # type: ignore[arg-type]
    assert temporary.journal_of(model).exists()


def test_a_patch_that_is_under_way_keeps_everybody_out(run: ChangedRange, model: Path) -> None:
    interrupted(model, half_of_it)
    busy = f"paramctl: {model}: is being changed by another paramctl; try again when it is done\n"
    with temporary.journal_of(model).open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        before = model.read_bytes()
        for command in (("tree", model), ("recover", model), ("set", model, "0.weight = 1", "-i", "--patch")):
            assert run(*command) == (3, "", busy)
        assert model.read_bytes() == before
    assert run("tree", model)[0] == 0


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.safetensors"
    save_file(state(), path)
    return path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["-i"], "would write 4.0 MiB (1.0 MiB new) and read 0 B"),
        (["-i", "--patch"], "would change up to 1.0 MiB in place and read 1.0 MiB"),
        ([], "would write 4.0 MiB (1.0 MiB new) to standard output and read 0 B"),
    ],
)
def test_a_dry_run_says_what_it_would_take(run: ChangedRange, plain: Path, options: list[str], expected: str) -> None:
    err = run("init", plain, "-l", "0", "-s", "zeros", "-n", *options)[1]
    assert err.splitlines()[-1] == f"nothing was written (dry run); {expected}"


def test_a_dry_run_counts_what_is_read(run: ChangedRange, plain: Path) -> None:
    def plan(*args: str) -> dict[str, object]:
        found: dict[str, object] = json.loads(run("set", plain, *args, "-n", "--json")[1])["plan"]
        return found

    n = 4 * SIZE
    copied = {"method": "stream", "bytes_copied": plain.stat().st_size - n, "bytes_made": n}
    assert plan("0.weight = 1") == {**copied, "bytes_read": 0}
    assert plan("0.weight *= 2") == {**copied, "bytes_read": n}
    assert plan("0.weight = 1.weight") == {**copied, "bytes_read": n}
    assert plan("0.weight += 1.weight[0]", "-i", "--patch")["bytes_read"] == 2 * n + n // 512


def test_a_plan_is_what_happens(run: ChangedRange, model: Path) -> None:
    dry = json.loads(run("init", model, "-l", "1", "-s", "ones", "-n", "-i", "--json")[1])["plan"]
    done = json.loads(run("init", model, "-l", "1", "-s", "ones", "-i", "--json")[1])
    assert dry["bytes_copied"] + dry["bytes_made"] == done["bytes_written"] == model.stat().st_size
    assert dry["method"] in ("copy", "reflink")


@pytest.fixture
def nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs

    def full(path: str) -> os.statvfs_result:
        found = list(real(path))
        found[1], found[4] = 4096, 100  # f_frsize, f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", full)


@pytest.mark.usefixtures("nearly_full")
def test_what_cannot_fit_is_refused_before_it_is_written(run: ChangedRange, plain: Path) -> None:
    out = plain.with_name("out.safetensors")
    hint = "make room there or write elsewhere with -o"
    assert run("set", plain, "0.weight = 1", "-o", out) == (
        3,
        "",
        f"paramctl: {out}: cannot write: it takes {plain.stat().st_size:,} bytes, and 409,600 are free there; {hint}\n",
    )
    code, _, err = run("init", plain, "-s", "ones", "-i", "--patch")
    assert (code, err) == (
        3,
        f"paramctl: {plain}: cannot write: it takes {32 * SIZE:,} bytes, and 409,600 are free there; {hint}\n",
    )
    assert run("set", plain, "0.weight[:9] = 1", "-i", "--patch")[0] == 0


def test_a_limit_on_the_size_of_files(spawn: Callable[..., subprocess.CompletedProcess[bytes]], plain: Path) -> None:
    import resource

    before = plain.read_bytes()
    for options in (["-i"], ["-i", "--patch"]):
        done = spawn(
            "set", plain, "0.weight = 1", *options,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        )  # fmt: skip
        assert done.returncode == 3
        assert done.stderr.decode() == (
            f"paramctl: {plain}: cannot write: it takes {len(before):,} bytes, and 'ulimit -f' allows 1,048,576 a file\n"
        )
    assert plain.read_bytes() == before


def test_extents_of_another_file_may_be_patched_in(tmp_path: Path) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"0123456789")
    other.write_bytes(b"abcdefghij")
    source, second = open_source(str(path)), open_source(str(other))
    segments: list[Segment] = [Extent(source, 0, 3), Extent(second, 3, 2), Literal(b"!"), Extent(source, 6, 4)]
    assert file_writer.write(segments, targets.InPlace(source, patch=True), [source, second], lambda _: None) == 3
    assert path.read_bytes() == b"012de!6789"


@pytest.mark.parametrize("nbytes", [230, 237, 238, 243, 250, 255])
@pytest.mark.parametrize("letter", ["x", "é"])
def test_a_file_with_a_long_name_is_patched_and_recovered(
    run: ChangedRange, tmp_path: Path, letter: str, nbytes: int
) -> None:
    stem = letter * ((nbytes - 3) // len(letter.encode()))
    path = tmp_path / f"{stem}{'y' * (nbytes - 3 - len(stem.encode()))}.pt"
    torch.save(state(), path)
    assert run("set", path, "0.weight[0, 0] = 7", "-i", "--patch")[0] == 0
    assert loaded(path)["0.weight"][0, 0] == 7
    before, _ = interrupted(path, lambda data: data.__setitem__(slice(-70_000, -66_000), b"\1" * 4000))
    assert path.read_bytes() != before
    assert run("recover", path)[0] == 0
    assert path.read_bytes() == before
    assert [*tmp_path.iterdir()] == [path]
