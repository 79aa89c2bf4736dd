"""A writing command that is killed leaves the old file or the whole new one, at whatever moment it dies.

PARAMCTL_SHARED (or ../shared) holds `hostile/crash_write.py`, which breaks a command at many more points.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.crash

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("PARAMCTL_SHARED", ROOT.parent / "shared"))
CRASH_WRITE = SHARED / "hostile" / "crash_write.py"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RECOVERING = Path(__file__).with_name("recovering.py")
KILLS = 20
LARGE = 1 << 22  # values, so that the write takes long enough to be hit


def state() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.ones(64, 64), "0.bias": torch.ones(64), "rest": torch.arange(float(LARGE))}


def model(folder: Path, name: str) -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path)
    return path


def start(*args: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "paramctl", *map(str, args)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def seconds(*args: object) -> float:
    began = time.monotonic()
    assert start(*args).wait(120) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_set_in_place(tmp_path: Path, name: str, signum: signal.Signals) -> None:
    path = model(tmp_path, name)
    edit = ("set", path, "0.weight *= 2", "0.bias = 7", "-i")
    old = path.read_bytes()
    took = seconds(*edit)
    new = path.read_bytes()
    assert old != new
    seen = {old: 0, new: 0}
    for moment in moments(took):
        path.write_bytes(old)
        process = start(*edit)
        time.sleep(moment)
        process.send_signal(signum)
        code = process.wait(60)
        found = path.read_bytes()
        assert found in seen, f"neither old nor new after {moment:.3f} s of {took:.3f}"
        seen[found] += 1
        assert found == new or code != 0
        left = [other for other in tmp_path.iterdir() if other != path]
        if signum == signal.SIGTERM and code == 128 + signum:
            assert left == []
        for other in left:
            other.unlink()
    assert seen[old] > 0


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
def test_convert_over_a_file_that_exists(tmp_path: Path, name: str) -> None:
    path = model(tmp_path, name)
    source = path.read_bytes()
    out = tmp_path / ("out.safetensors" if name == "net.pt" else "out.pt")
    edit = ("convert", path, "-o", out, "-f")
    took = seconds(*edit)
    new = out.read_bytes()
    for moment in moments(took):
        out.write_bytes(b"precious")
        process = start(*edit)
        time.sleep(moment)
        process.kill()
        process.wait(60)
        assert out.read_bytes() in (b"precious", new)
        assert path.read_bytes() == source


def moments(took: float) -> list[float]:
    """Moments of a run, most of them in its second half, where it writes."""
    numbers = random.Random(0)
    return sorted(numbers.triangular(0, took, took * 0.85) for _ in range(KILLS))


COMMANDS = {
    "init -i": "init {file} --layer 0 --scheme zeros --seed 1 -i",
    "init -i --patch": "init {file} --layer 0 --scheme zeros --seed 1 -i --patch",
    "set -i": "set {file} '0.weight *= 2' '0.bias = 7' -i",
    "set -i --patch": "set {file} '0.weight *= 2' '0.bias = 7' -i --patch",
    "tie -i": "tie {file} 0.weight 1.weight -i",
    "convert -o over a file": "convert {file} --to {other} -o {out} -f",
}
ALL = "time,progress,strace,ioerr,int,term,fsize,enospc,alias,meta"
# What runs everywhere: each command, and each strategy with some of them. PARAMCTL_CRASH=full breaks
# every command at many more points, by every strategy, which takes half an hour.
SAMPLED = {
    ("net.pt", "init -i"): "progress,meta",
    ("net.pt", "init -i --patch"): "time,term,fsize",
    ("net.pt", "set -i"): "strace,int",
    ("net.pt", "set -i --patch"): "strace,ioerr",
    ("net.pt", "tie -i"): "progress,ioerr",
    ("net.pt", "convert -o over a file"): "strace,alias",
    ("net.safetensors", "init -i"): "enospc,fsize",
    ("net.safetensors", "init -i --patch"): "int,enospc",
    ("net.safetensors", "set -i"): "ioerr",
    ("net.safetensors", "set -i --patch"): "progress,meta",
    ("net.safetensors", "tie -i"): "strace,term",
    ("net.safetensors", "convert -o over a file"): "ioerr,meta",
}
FULL = os.environ.get("PARAMCTL_CRASH") == "full"
SIZE = ["--n", "20", "--max-points", "40"] if FULL else ["--n", "2", "--max-points", "8"]


@pytest.mark.skipif(not CRASH_WRITE.exists(), reason=f"{CRASH_WRITE} is not there: set PARAMCTL_SHARED")
@pytest.mark.parametrize(("name", "what"), SAMPLED, ids=lambda part: part)
def test_broken_at_many_points(tmp_path: Path, name: str, what: str) -> None:
    small = tmp_path / name
    weight = torch.ones(64, 64)
    tensors = {"0.weight": weight, "0.bias": torch.ones(64), "1.weight": 2 * weight, "rest": torch.ones(10_000)}
    if name == "net.pt":
        torch.save(tensors, small)
    else:
        save_file(tensors, small)
    paramctl = f"{sys.executable} -m paramctl"
    other, suffix = ("safetensors", ".safetensors") if name == "net.pt" else ("torch-zip", ".pt")
    over = ["--out-exists", "--out-ext", suffix] if "{out}" in COMMANDS[what] else []
    runner = [str(RECOVERING), str(CRASH_WRITE)] if "--patch" in what else [str(CRASH_WRITE)]
    command = f"{paramctl} {COMMANDS[what].replace('{other}', other)}"
    done = subprocess.run(
        [sys.executable, *runner, "--seed", str(small), *over, command, "--verify", f"{paramctl} tree {{file}}",
         *SIZE, "--strategies", ALL if FULL else SAMPLED[name, what]],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
