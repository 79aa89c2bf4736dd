"""Copies by the kernel: every byte arrives, by whichever way works, and blocks are shared where they can be."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramctl.edit.init import init
from paramctl.edit.tie import tie
from paramctl.files import kernel_copy, targets
from paramctl.files.content import Extent
from paramctl.files.sources import Source, open_source
from paramctl.formats import opening, saving

WAYS = ("copy_file_range", "sendfile")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(3 * kernel_copy.PAGE + 17))
    return open_source(str(path))


def copied(extent: Extent, path: Path, before: int) -> bytes:
    """Return what is copied into a file behind `before` bytes."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, bytes(before))
    assert sum(kernel_copy.copy(extent, fd, before)) == extent.nbytes
    os.close(fd)
    data = path.read_bytes()
    assert data[:before] == bytes(before)
    return data[before:]


@pytest.mark.parametrize("broken", [0, 1, 2])
@pytest.mark.parametrize(("offset", "before"), [(0, 0), (5, 5), (5, 6), (4096, 0), (100, 4196)])
def test_every_byte_arrives_by_whichever_way_works(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int, offset: int, before: int
) -> None:
    def cannot(*args: object, **kwargs: object) -> int:
        raise OSError(errno.EXDEV, "not here")

    for way in WAYS[:broken]:
        monkeypatch.setattr(os, way, cannot)
    extent = Extent(source, offset, source.size - offset)
    assert copied(extent, tmp_path / "target", before) == source.read(offset, extent.nbytes)


def test_copies_go_by_runs_of_pages_where_both_ends_lie_alike(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(bytes(3 * kernel_copy.PAGES))
    source = open_source(str(tmp_path / "source"))
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(5))
    steps = list(kernel_copy.copy(Extent(source, kernel_copy.PAGE + 5, 2 * kernel_copy.PAGES), fd, 5))
    os.close(fd)
    assert steps == [kernel_copy.PAGES - 5, kernel_copy.PAGES + 5]


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a directory whose files can share blocks: PARAMCTL_REFLINK, or an XFS image mounted for the occasion."""
    if named := os.environ.get("PARAMCTL_REFLINK"):
        yield Path(named)
        return
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        pytest.skip("no file system that shares blocks: set PARAMCTL_REFLINK to a directory on Btrfs or XFS")
    folder = tmp_path_factory.mktemp("shares")
    image, place = folder / "image", folder / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 << 20)
    make = ["mkfs.xfs", "-q", "-m", "reflink=1", str(image)]
    for command in (make, ["mount", "-o", "loop", str(image), str(place)]):
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("an XFS image cannot be mounted here: set PARAMCTL_REFLINK to a directory on Btrfs or XFS")
    yield place
    subprocess.run(["umount", place], check=True)


def free(directory: Path) -> int:
    os.sync()
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("verb", [init, tie])
def test_what_stays_takes_no_room_where_blocks_are_shared(shares: Path, suffix: str, verb: Callable[..., object]) -> None:
    path, out = shares / f"net{suffix}", shares / f"out{suffix}"
    state = {f"{i}.weight": torch.randn(1024, 1024) for i in range(8)}
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    checkpoint = opening.open(str(path))
    made = (init(checkpoint, ["3"], ["ones"]) if verb is init else tie(checkpoint, "3", "4")).checkpoint
    target = targets.NewFile(out)
    assert saving.plan(made, target).method == "reflink"
    before = free(shares)
    saving.save(made, target)
    assert before - free(shares) < (5 << 20 if verb is init else 1 << 20)
    assert torch.equal(state["7.weight"], dict(loaded(out))["7.weight"])
    for used in (path, out):
        used.unlink()


def loaded(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)
    return found


def test_a_file_system_that_shares_nothing(source: Source) -> None:
    assert kernel_copy.can_share(source, Path("/proc")) is False
