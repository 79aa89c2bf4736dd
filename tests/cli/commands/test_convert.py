"""`paramctl convert` as people type it."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from verb_files import loaded, mlp, saved

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]


def test_one_layer_only_becomes_the_whole(run: Run, tmp_path: Path) -> None:
    message = "one --layer becomes the whole file, and several were given; name the layer above them"
    out = tmp_path / "x.pt"
    assert run("convert", tmp_path / "n.pt", "-l", "a", "-l", "b", "-o", out) == (2, "", f"paramctl: {message}\n")


def test_by_suffix(run: Run, tmp_path: Path) -> None:
    path, out = saved(tmp_path, mlp().state_dict(), "net.pt"), tmp_path / "net.safetensors"
    code, text, err = run("convert", path, "-o", out)
    assert (code, text) == (0, "")
    assert err == f"note: 9 tensors as safetensors\nwrote {out.stat().st_size} B to {out}\n"
    back = tmp_path / "back.pt"
    assert run("convert", out, "-o", back)[0] == 0
    assert all(torch.equal(loaded(back)[name], tensor) for name, tensor in mlp().state_dict().items())


def test_through_a_pipe(spawn: Spawn, tmp_path: Path) -> None:
    path, out = saved(tmp_path, mlp().state_dict(), "net.pt"), tmp_path / "net.safetensors"
    spawn("convert", path, "-o", out)
    for name in ("safetensors", ".safetensors"):
        done = spawn("convert", "--to", name, stdin=None, input=path.read_bytes())
        assert done.returncode == 0
        assert done.stdout == out.read_bytes()


def test_losses_are_accepted_by_name(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, {"model": {"w": torch.ones(2)}, "epoch": 3, "config": {"name": "x"}}, "run.ckpt")
    out = tmp_path / "out.safetensors"
    assert run("convert", path, "-o", out) == (
        2,
        "",
        f"paramctl: {path}: safetensors cannot hold epoch (scalar), config.name (scalar); "
        "accept the loss with --lossy, or take one part with --layer\n",
    )
    assert not out.exists()
    code, _, err = run("convert", path, "-o", out, "--lossy")
    assert code == 0
    assert err.splitlines()[:2] == [
        "note: 1 tensor as safetensors",
        "note: left out epoch (scalar), config.name (scalar)",
    ]
    code, _, err = run("convert", path, "-f", "-o", out, "--layer", "model")
    assert (code, err.splitlines()[0]) == (0, "note: 1 tensor as safetensors")
    assert list(loaded(out)) == ["w"]


def test_no_room_for_what_the_writer_of_torch_makes(spawn: Spawn, tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.ones(300, 300)}, "net.pt")
    limit = (100_000, 100_000)
    done = spawn(
        "convert", path, "--to", "dcp", "-o", tmp_path / "set",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        3,
        b"",
        f"paramctl: {path}: cannot write: File too large;"
        " make room in the directory for temporary files, or set TMPDIR to a larger place\n",
    )
    assert not (tmp_path / "set").exists()
