"""Make the README's picture: the real output of `paramctl tree`, exported by Rich.

    python tests/make_pictures.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["tree", "sample_models/rgnet_module.pt"]
WIDTH = 76


def picture() -> str:
    """The SVG of the command and what it prints in colour."""
    env = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "paramctl", *COMMAND]
    printed = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True, text=True).stdout
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text(f"$ paramctl {' '.join(COMMAND)}"))
        console.print(Text.from_ansi(printed))
        return console.export_svg(title="paramctl", unique_id="paramctl")


if __name__ == "__main__":
    target = ROOT / ".github" / "tree.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(picture())
