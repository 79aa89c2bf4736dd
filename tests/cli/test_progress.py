"""The bar of long work: on a terminal only, after half a second, gone when the work is done."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paramctl.cli import output, progress

ROOT = Path(__file__).parents[2]
GIB = 1 << 30


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    monkeypatch.setattr(output, "stderr_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    return clock


def test_short_work_shows_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar() as update:
        for done in range(5):
            update("writing", done << 20, 500 << 20)
            clock.now += 0.1
    assert capsys.readouterr() == ("", "")


def test_long_work_shows_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar() as update:
        for done in range(3):
            update("writing", done * GIB, 4 * GIB)
            clock.now += 0.4
        out, err = capsys.readouterr()
        assert out == ""
        assert "writing" in err and "2.0/4.0 GiB" in err
        update("syncing", 0, 4 * GIB)
        assert "syncing" in capsys.readouterr().err
        update("syncing", 1, 4 * GIB)
        assert capsys.readouterr().err == ""


def test_what_surely_takes_long_is_shown_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar() as update:
        update("syncing", 0, 4 * GIB)
        assert "syncing" in capsys.readouterr().err


def test_what_is_nearly_done_needs_no_bar(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar() as update:
        clock.now += 9
        update("writing", 10, 20)
    assert capsys.readouterr() == ("", "")


def test_quiet_and_no_terminal(
    clock: Clock, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with progress.bar(quiet=True) as update:
        clock.now += 9
        update("writing", GIB, 2 * GIB)
    monkeypatch.setattr(output, "stderr_is_terminal", lambda: False)
    with progress.bar() as update:
        clock.now += 9
        update("writing", GIB, 2 * GIB)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("quiet", [[], ["-q"]])
def test_a_slow_pipe_on_a_real_terminal(tmp_path: Path, quiet: list[str]) -> None:
    path = tmp_path / "net.pt"
    torch.save({"0.weight": torch.zeros(1 << 18)}, path)
    data = path.read_bytes()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "paramctl", "set", "-", "0.weight[0] = 1", "-o", tmp_path / "out.pt", *quiet],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdin is not None
    for start in range(0, len(data), len(data) // 8):  # a second and more until all has come
        process.stdin.write(data[start : start + len(data) // 8])
        process.stdin.flush()
        time.sleep(0.2)
    process.stdin.close()
    assert process.wait(60) == 0
    os.close(theirs)
    shown = read_all(ours)
    assert ("reading standard input" in shown) == (not quiet)
    assert shown.endswith("wrote 1.0 MiB to " + f"{tmp_path / 'out.pt'}\r\n") or quiet


def read_all(fd: int) -> str:
    """Return everything that was written to a terminal."""
    parts: list[bytes] = []

    try:
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(fd)
    return b"".join(parts).decode()
