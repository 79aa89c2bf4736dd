"""A writing command that is killed leaves the old file or the whole new one, at whatever moment it dies.

PARAMCTL_SHARED (or ../shared) holds `hostile/crash_write.py`, which breaks a command at many more points.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from set_files import INDEX, make
from torch import nn

pytestmark = [pytest.mark.crash, pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")]

jit: Any = torch.jit  # which has no types
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
    ("legacy.pt", "init -i"): "progress,term",
    ("legacy.pt", "set -i --patch"): "progress",
    ("legacy.pt", "tie -i"): "ioerr",
    ("script.pt", "set -i"): "progress,ioerr",
    ("script.pt", "init -i --patch"): "time,int",
}
FULL = os.environ.get("PARAMCTL_CRASH") == "full"
SIZE = ["--n", "20", "--max-points", "40"] if FULL else ["--n", "2", "--max-points", "8"]


@pytest.mark.skipif(not CRASH_WRITE.exists(), reason=f"{CRASH_WRITE} is not there: set PARAMCTL_SHARED")
@pytest.mark.parametrize(("name", "what"), SAMPLED, ids=lambda part: part)
def test_broken_at_many_points(tmp_path: Path, name: str, what: str) -> None:
    small = tmp_path / name
    weight = torch.ones(64, 64)
    tensors = {"0.weight": weight, "0.bias": torch.ones(64), "1.weight": 2 * weight, "rest": torch.ones(10_000)}
    match name:
        case "net.safetensors":
            save_file(tensors, small)
        case "script.pt":
            layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
            jit.save(jit.trace(layers, torch.ones(1, 64)), small)
        case _:
            torch.save(tensors, small, _use_new_zipfile_serialization=name != "legacy.pt")
    paramctl = f"{sys.executable} -m paramctl"
    other, suffix = ("torch-zip", ".pt") if name == "net.safetensors" else ("safetensors", ".safetensors")
    over = ["--out-exists", "--out-ext", suffix] if "{out}" in COMMANDS[what] else []
    runner = [str(RECOVERING), str(CRASH_WRITE)] if "--patch" in what else [str(CRASH_WRITE)]
    command = f"{paramctl} {COMMANDS[what].replace('{other}', other)}"
    done = subprocess.run(
        [sys.executable, *runner, "--seed", str(small), *over, command, "--verify", f"{paramctl} tree {{file}}",
         *SIZE, "--strategies", ALL if FULL else SAMPLED[name, what]],
        env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- sets of several files -----------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_whole(folder: Path) -> dict[str, torch.Tensor]:
    """What transformers would load: all that the index names, each from the file it says."""
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    shards = {name: load_file(folder / name) for name in {*weight_map.values()}}
    return {path: shards[name][path] for path, name in weight_map.items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[path], other[path]) for path in one)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_init_of_several_shards_in_place(tmp_path: Path, signum: signal.Signals) -> None:
    half = torch.arange(float(LARGE // 2))
    shards = [{f"{i}.weight": torch.ones(64, 64), f"{i}.rest": half} for i in range(3)]
    made = make(tmp_path / "made", shards)
    old, held = read_whole(made), contents(made)
    folder = shutil.copytree(made, tmp_path / "set")
    edit = ("init", folder / INDEX, "-l", "0.weight", "-l", "2.weight", "--scheme", "zeros", "--seed", 1, "-i")
    took = seconds(*edit)
    new, changed = read_whole(folder), contents(folder)
    assert [path for path in old if not torch.equal(old[path], new[path])] == ["0.weight", "2.weight"]
    assert len(changed.keys() - held.keys()) == len(held.keys() - changed.keys()) == 2
    seen = {"old": 0, "new": 0}
    for moment in moments(took)[::2]:
        shutil.rmtree(folder)
        shutil.copytree(made, folder)
        code = killed(edit, moment, signum)
        found, files = read_whole(folder), contents(folder)
        which = "old" if same(found, old) else "new"
        assert same(found, {"old": old, "new": new}[which]), f"neither old nor new after {moment:.3f} s of {took:.3f}"
        seen[which] += 1
        assert which == "new" or code != 0
        assert {**files, **(held if which == "old" else changed)} == files
        if signum == signal.SIGTERM and code == 128 + signum and which == "old":
            assert files == held
        assert start(*edit).wait(60) == 0
        assert same(read_whole(folder), new)
    assert seen["old"] > 0


def test_convert_into_a_set(tmp_path: Path) -> None:
    path, folder = model(tmp_path, "net.safetensors"), tmp_path / "set"
    source, tensors = path.read_bytes(), state()
    edit = ("convert", path, "-o", f"{folder}/", "--max-shard-size", "8MB")
    took = seconds(*edit)
    whole = contents(folder)
    assert len(whole) == 3 and same(read_whole(folder), tensors)
    unfinished = 0
    for moment in moments(took):
        shutil.rmtree(folder, ignore_errors=True)
        killed(edit, moment, signal.SIGKILL)
        assert path.read_bytes() == source
        files = contents(folder) if folder.exists() else {}
        if INDEX in files:
            assert {name: data for name, data in files.items() if name in whole} == whole
            continue
        unfinished += 1
        assert not files or start("tree", folder).wait(60) == 3
        assert start(*edit, "-f").wait(60) == 0
        assert {name: data for name, data in contents(folder).items() if name in whole} == whole
    assert unfinished > 0


def killed(edit: Sequence[object], moment: float, signum: signal.Signals) -> int:
    """What a command that gets a signal at a moment ends with."""
    process = start(*edit)
    time.sleep(moment)
    process.send_signal(signum)
    return process.wait(60)
