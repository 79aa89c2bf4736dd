"""What comparing costs, as ratios to floors measured in the same run: python tests/benchmarks/comparing.py

Floors: `cmp` of the same two files, of which it reads as much where they are equal.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import files
from measure import PARAMCTL, compare, noise, row, table

MEMORY = 100  # MiB
DIFFER = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode != 1)"  # 1 is the right answer


def equal(directory: Path) -> None:
    """Two equal files of 2 GB."""
    print("two equal files of 2 GB; floor: cmp")
    for path in files.make("big", directory):
        other = Path(shutil.copy(path, directory / f"other{path.suffix}"))
        costs = compare(_commands(path, other), directory)
        row(f"diff {path.suffix}", costs["diff"], costs["cmp"].seconds, 1.0, MEMORY)
        table("  cmp", noise(costs["cmp"]))
        other.unlink()
        path.unlink()


def formats(directory: Path) -> None:
    """A .pt and a .safetensors of the same tensors; cmp reads one of them beside a copy."""
    print("the same 2 GB as .pt and .safetensors; floor: cmp of two equal .pt")
    pickled, plain = files.make("big", directory)
    other = Path(shutil.copy(pickled, directory / "other.pt"))
    commands = {**_commands(pickled, other), "diff": [*PARAMCTL, "diff", "-q", str(pickled), str(plain)]}
    costs = compare(commands, directory)
    row("diff .pt .safetensors", costs["diff"], costs["cmp"].seconds, 1.0, MEMORY)
    for path in (pickled, plain, other):
        path.unlink()


def last(directory: Path) -> None:
    """Two files of 2 GB that differ in their last value: what was found equal is not read again."""
    print("2 GB that differ in the last value; floor: cmp, which stops there")
    for path in files.make("big", directory):
        other = directory / f"other{path.suffix}"
        change = f"layers.{files.LAYERS - 1}.weight[-1,-1] = 42"
        compare({"set": [*PARAMCTL, "set", str(path), change, "-o", str(other), "-f", "-q"]}, directory, 1)
        commands = {name: [sys.executable, "-c", DIFFER, *each] for name, each in _commands(path, other).items()}
        costs = compare(commands, directory)
        row(f"diff {path.suffix}", costs["diff"], costs["cmp"].seconds, None, MEMORY)
        other.unlink()
        path.unlink()


def many(directory: Path) -> None:
    """60,000 tensors in both, equal and under other names; listing both is the least that it takes."""
    print("60,000 tensors; floor: ls of both")
    for path in files.make("many", directory):
        other = Path(shutil.copy(path, directory / f"other{path.suffix}"))
        renamed = [*PARAMCTL, "diff", "-q", str(path), str(other), "--rename", "^=>"]
        commands = {**_commands(path, other), "ls": [*PARAMCTL, "ls", str(path)], "each": renamed}
        costs = compare(commands, directory)
        row(f"diff {path.suffix}", costs["diff"], 2 * costs["ls"].seconds)
        row(f"diff {path.suffix}, each by itself", costs["each"], 2 * costs["ls"].seconds)
        other.unlink()
        path.unlink()


def _commands(one: Path, other: Path) -> dict[str, list[str]]:
    return {"cmp": ["cmp", str(one), str(other)], "diff": [*PARAMCTL, "diff", "-q", str(one), str(other)]}


SECTIONS = {"equal": equal, "formats": formats, "last": last, "many": many}


def main(names: list[str]) -> None:
    """Make the files, measure, print."""
    for name in names or SECTIONS:
        with tempfile.TemporaryDirectory() as temporary:
            SECTIONS[name](Path(temporary))


if __name__ == "__main__":
    main(sys.argv[1:])
