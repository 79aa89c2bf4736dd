"""Standard output: colour and encodings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramctl.cli import output

Spawn = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.mark.parametrize(
    ("when", "env", "colour"),
    [
        ("auto", {}, False), ("always", {}, True), ("never", {"FORCE_COLOR": "1"}, False),
        ("auto", {"FORCE_COLOR": "1"}, True), ("auto", {"FORCE_COLOR": "0"}, False),
        ("auto", {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ("always", {"NO_COLOR": "1"}, True),
    ],
)  # fmt: skip
def test_colour(when: output.When, env: dict[str, str], colour: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert output.use_color(when) is colour


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
def test_any_encoding_will_do(spawn: Spawn, tmp_path: Path, encoding: str) -> None:
    save_file({"重み.w": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    done = spawn("tree", tmp_path / "x.safetensors", env={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    assert ("重み" if encoding == "utf-8" else "\\u91cd\\u307f") in out
    assert {"ascii": "`-- w  float32  2 x 2", "latin-1": "`-- w  float32  2 × 2"}.get(encoding, "w") in out


def test_surrogates_in_a_file_name_are_printed(spawn: Spawn, tmp_path: Path) -> None:
    done = spawn("tree", str(tmp_path / "\udcff.pt"))
    assert done.returncode == 3
    assert done.stderr.endswith(b"/\\udcff.pt: no such file; check the path\n")
