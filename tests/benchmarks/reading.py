"""What looking costs, as ratios to floors measured in the same run: python tests/benchmarks/reading.py

Floors: a Typer program that imports Rich's console and prints one line; a Python process that reads the
safetensors header with json.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import files
from measure import PARAMCTL, compare, row

TYPER = """
import typer
from rich.console import Console
app = typer.Typer()
@app.command()
def main(): print("one line")
app()
"""
JSON = """
import json, sys
with open(sys.argv[1], "rb") as f:
    json.loads(f.read(int.from_bytes(f.read(8), "little")))
"""
MEMORY = 45  # MiB


def main(directory: Path) -> None:
    """Make the files, measure, print."""
    typer = [sys.executable, "-c", TYPER]
    print("2 GB in 20 tensors; floor: Typer and Rich's console")
    for path in files.make("big", directory):
        commands = {verb: [*PARAMCTL, verb, str(path)] for verb in ("tree", "ls")}
        costs = compare({"typer": typer, **commands}, directory)
        for verb in commands:
            row(f"{verb} {path.suffix}", costs[verb], costs["typer"].seconds, 1.3, MEMORY)
        path.unlink()
    print("60,000 tensors; floor: json of the header, budget × json + Typer")
    pickled, plain = files.make("many", directory)
    for path, times in ((plain, 3), (pickled, 8)):
        floor = {"typer": typer, "json": [sys.executable, "-c", JSON, str(plain)]}
        costs = compare({**floor, "tree": [*PARAMCTL, "tree", str(path)]}, directory)
        allowed = times * costs["json"].seconds + costs["typer"].seconds
        row(f"tree {path.suffix} (of {times} × json + Typer)", costs["tree"], allowed, 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
