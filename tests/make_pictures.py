"""Make the README's pictures: the real output of commands on a terminal, exported by Rich.

    python tests/make_pictures.py
"""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 80
PICTURES = {
    "tree": ["tree", "sample_models/rgnet_module.pt"],
    "stats": ["stats", "sample_models/tied_mlp.pt"],
}


def printed(command: list[str]) -> str:
    """What a command prints on a terminal of WIDTH columns, in colour."""
    out = bytearray()

    def read(fd: int) -> bytes:
        data = os.read(fd, 1 << 16)
        out.extend(data)
        return data

    env = {"COLUMNS": str(WIDTH), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    words = ["env", "-C", str(ROOT), *(f"{name}={value}" for name, value in env.items()), sys.executable]
    pty.spawn([*words, "-m", "paramctl", *command], read)
    return out.decode().replace("\r", "")


def picture(command: list[str]) -> str:
    """The SVG of a command and what it prints."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text(f"$ paramctl {' '.join(command)}"))
        console.print(Text.from_ansi(printed(command)))
        return console.export_svg(title="paramctl", unique_id="paramctl")


if __name__ == "__main__":
    for name, command in PICTURES.items():
        target = ROOT / ".github" / f"{name}.svg"
        target.parent.mkdir(exist_ok=True)
        target.write_text(picture(command))
