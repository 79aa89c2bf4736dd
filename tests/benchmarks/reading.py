"""What looking costs, as ratios to floors measured in the same run: python tests/benchmarks/reading.py

Floors: a Typer program that imports Rich's console and prints one line; a Python process that reads the
safetensors header with json.
"""

from __future__ import annotations

import subprocess
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
SHARDS = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[1])
index = json.loads((folder / "model.safetensors.index.json").read_bytes())
for name in set(index["weight_map"].values()):
    with open(folder / name, "rb") as f:
        json.loads(f.read(int.from_bytes(f.read(8), "little")))
"""
MEMORY = 45  # MiB
DISTRIBUTED = """
import sys, warnings
import torch
from torch.distributed.checkpoint import FileSystemWriter, save
warnings.simplefilter("ignore")
state = {f"model.layers.{i // 12}.block.{i % 12}.weight": torch.zeros(2, 3) for i in range(60_000)}
save(state, storage_writer=FileSystemWriter(sys.argv[1]), no_dist=True)
"""
STUB = """
import pickle, sys
class Stub:
    def __init__(self, *args): pass
    def __setstate__(self, state): self.__dict__["state"] = state
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name): return Stub
with open(sys.argv[1], "rb") as f:
    Unpickler(f).load()
"""


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
    distributed(directory / "set")
    sharded(plain, directory / "shards")


def sharded(plain: Path, folder: Path) -> None:
    """A set of 200 shards against a process that reads its index and every header with json."""
    print("60,000 tensors in 200 shards; floor: json of the index and of all headers, budget 3 × that + Typer")
    size = ["--max-shard-size", "7200B", "-q"]
    subprocess.run([*PARAMCTL, "convert", str(plain), "-o", f"{folder}/", *size], check=True)
    floor = {"typer": [sys.executable, "-c", TYPER], "json": [sys.executable, "-c", SHARDS, str(folder)]}
    costs = compare({**floor, **{verb: [*PARAMCTL, verb, str(folder)] for verb in ("tree", "ls")}}, folder.parent)
    for verb in ("tree", "ls"):
        row(f"{verb} of 200 shards", costs[verb], 3 * costs["json"].seconds + costs["typer"].seconds, 1)


def distributed(folder: Path) -> None:
    """A set of torch.distributed.checkpoint against an unpickler of stubs that reads its index."""
    print("60,000 tensors in a set of torch.distributed; floor: a stub unpickler of .metadata, budget 3 × that + Typer")
    subprocess.run([sys.executable, "-c", DISTRIBUTED, str(folder)], check=True)
    floor = {
        "typer": [sys.executable, "-c", TYPER],
        "stub": [sys.executable, "-c", STUB, str(folder / ".metadata")],
    }
    costs = compare({**floor, **{verb: [*PARAMCTL, verb, str(folder)] for verb in ("tree", "ls")}}, folder.parent)
    for verb in ("tree", "ls"):
        row(f"{verb} of a set", costs[verb], 3 * costs["stub"].seconds + costs["typer"].seconds, 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
