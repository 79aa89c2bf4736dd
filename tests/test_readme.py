"""The README and the help topics are executable: what their console blocks show is what the commands print.

`python tests/test_readme.py` writes the present output into them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paramctl.cli.app import CHANGE, LOOK

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "paramctl" / "cli" / "help").glob("*.md")))
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.M | re.S)


pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, kind: str) -> list[str]:
    """The text of every block of a kind."""
    return [text for found, text in BLOCK.findall(page.read_text()) if found == kind]


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


@pages
def test_console_blocks_show_what_is_printed(tmp_path: Path, page: Path) -> None:
    directory = workplace(tmp_path / "samples")
    for block in blocks(page, "console"):
        assert shown(block, directory) == block


@pages
def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    monkeypatch.chdir(workplace(tmp_path / "samples"))
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("command", [*LOOK, *CHANGE])
def test_the_readme_says_what_each_command_does(command: str) -> None:
    assert re.search(rf"^\| `{command}` \| \S", README.read_text(), re.M), f"README.md has no row | `{command}` | … |"


@pages
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text()):
        assert (page.parent / target).is_file(), target


def test_the_readme_links_every_help_topic_and_is_short() -> None:
    text = README.read_text()
    assert [page.stem for page in PAGES[1:] if f"({page.relative_to(ROOT)})" not in text] == []
    assert len(text.split()) <= 1750


def update(directory: Path, page: Path) -> None:
    """Write into a page what its commands print now."""
    workplace(directory)

    def fresh(match: re.Match[str]) -> str:
        text = shown(match[2], directory) if match[1] == "console" else match[2]
        return f"```{match[1]}\n{text}```"

    page.write_text(BLOCK.sub(fresh, page.read_text()))


if __name__ == "__main__":
    import tempfile

    for each in PAGES:
        with tempfile.TemporaryDirectory() as temporary:
            update(Path(temporary) / "samples", each)
