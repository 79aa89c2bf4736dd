"""What editing 2 GB costs, as ratios to floors measured in the same run: python tests/benchmarks/writing.py

Floors: `cp` and a process that imports torch and draws the layer; `cp` of what remains.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import files
from measure import PARAMCTL, Cost, compare, row

DRAW = f"""
import torch
torch.nn.init.xavier_uniform_(torch.empty{files.SHAPE}, generator=torch.Generator().manual_seed(1))
"""
ROOM = 50  # MiB above the floor's own peak
RUNS = 5


def main(directory: Path) -> None:
    """Make the files, measure, print."""
    paths = files.make("big", directory)
    for path in paths:
        out, smaller = directory / f"out{path.suffix}", directory / f"smaller{path.suffix}"
        write = ["-o", str(out), "-f", "-q"]
        tie = [*PARAMCTL, "tie", str(path), "layers.3", "layers.4"]
        init = [*PARAMCTL, "init", str(path), "--layer", "layers.3", "--scheme", "xavier", "--seed", "1"]
        costs = compare({"tie once": [*tie, "-o", str(smaller), "-f", "-q"]}, directory, 1)
        costs = compare(
            {
                "cp": ["cp", str(path), str(out)],
                "draw": [sys.executable, "-c", DRAW],
                "init": [*init, *write],
                "cp rest": ["cp", str(smaller), str(out)],
                "tie": [*tie, *write],
            },
            directory,
            RUNS,
        )
        floor = Cost(costs["cp"].seconds + costs["draw"].seconds, costs["draw"].memory)
        row(f"init of one layer, {path.suffix}", costs["init"], floor.seconds, 1.3, floor.memory + ROOM)
        row(f"tie, {path.suffix}", costs["tie"], costs["cp rest"].seconds, 1.3)
        for used in (path, out, smaller):
            used.unlink()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
