"""The README is executable: what its console blocks show is what the commands print.

`python tests/test_readme.py` writes the present output into the README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


def blocks(kind: str) -> list[str]:
    """The text of every block of a kind."""
    return [text for found, text in BLOCK.findall(README.read_text()) if found == kind]


def run(command: str, directory: Path) -> str:
    """What a command prints, on both streams, in a directory that holds the samples."""
    env = {**os.environ, "PATH": f"{directory / '.bin'}:{os.environ['PATH']}", "COLUMNS": "100", "NO_COLOR": "1"}
    env["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        ["bash", "-c", f"exec 2>&1; {command}"], cwd=directory, env=env, capture_output=True, timeout=120, check=False
    )
    return done.stdout.decode()


def shown(block: str, directory: Path) -> str:
    """A console block with the output its commands have now."""
    out = []
    for line in block.splitlines():
        if line.startswith("$ "):
            out += [line, *run(line[2:], directory).splitlines()]
    return "\n".join(out) + "\n"


def workplace(directory: Path) -> Path:
    """A directory with the samples, and a `paramctl` that is the one under test."""
    shutil.copytree(ROOT / "sample_models", directory, dirs_exist_ok=True)
    command = directory / ".bin" / "paramctl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m paramctl "$@"\n')
    command.chmod(0o755)
    return directory


def test_console_blocks_show_what_is_printed(tmp_path: Path) -> None:
    directory = workplace(tmp_path / "samples")
    for block in blocks("console"):
        assert shown(block, directory) == block


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace(tmp_path / "samples"))
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})


def update(directory: Path) -> None:
    """Write into the README what its commands print now."""
    workplace(directory)

    def fresh(match: re.Match[str]) -> str:
        text = shown(match[2], directory) if match[1] == "console" else match[2]
        return f"```{match[1]}\n{text}```"

    README.write_text(BLOCK.sub(fresh, README.read_text()))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        update(Path(temporary) / "samples")
