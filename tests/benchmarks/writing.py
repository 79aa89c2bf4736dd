"""What editing costs, as ratios to floors measured in the same run: python tests/benchmarks/writing.py [SECTION…]

Floors: `cp` and a process that imports torch and draws; `cp` of what remains; the same edit of a small file;
what a person does today, a script that loads the file with torch and saves it again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import files
from measure import PARAMCTL, compare, noise, row, settled, table

DRAW = """
import torch
for i in range({count}):
    torch.nn.init.xavier_uniform_(torch.empty{shape}, generator=torch.Generator().manual_seed(i))
"""
TORCH_PT = """
import sys, torch
state = torch.load(sys.argv[1], weights_only=True)
torch.nn.init.xavier_uniform_(state["layers.3.weight"], generator=torch.Generator().manual_seed(1))
torch.save(state, sys.argv[2])
"""
TORCH_SAFETENSORS = """
import sys, torch
from safetensors.torch import load_file, save_file
state = load_file(sys.argv[1])
torch.nn.init.xavier_uniform_(state["layers.3.weight"], generator=torch.Generator().manual_seed(1))
save_file(state, sys.argv[2])
"""
ROOM = 50  # MiB above the floor's own peak
RUNS = 5
PATCH = ["-i", "--patch", "-q"]


def init(path: Path, layer: str = "layers.3") -> list[str]:
    """The command that draws one layer anew."""
    return [*PARAMCTL, "init", str(path), "--layer", layer, "--scheme", "xavier", "--seed", "1"]


def draw(shape: tuple[int, ...], count: int = 1) -> list[str]:
    """A process that imports torch and draws, and does nothing else."""
    return [sys.executable, "-c", DRAW.format(shape=shape, count=count)]


def anew(directory: Path) -> None:
    """One layer of 2 GB to a new file, and what a person does today."""
    for path, today in zip(files.make("big", directory), (TORCH_PT, TORCH_SAFETENSORS), strict=True):
        out = directory / f"out{path.suffix}"
        commands = {
            "cp": ["cp", str(path), str(out)],
            "draw": draw(files.SHAPE),
            "init": [*init(path), "-o", str(out), "-f", "-q"],
            "today": [sys.executable, "-c", today, str(path), str(out)],
        }
        costs = compare(commands, directory, RUNS, settled(path, out))
        floor = costs["cp"].seconds + costs["draw"].seconds
        row(f"init of one layer, {path.suffix}", costs["init"], floor, 1.3, costs["draw"].memory + ROOM)
        row(f"… against today's script, {path.suffix}", costs["init"], costs["today"].seconds, 1)
        table("  today's script", f"peak {costs['today'].memory:.0f} MiB", noise(costs["cp"]))
        for used in (path, out):
            used.unlink()


def tie(directory: Path) -> None:
    """A tie in 2 GB."""
    for path in files.make("big", directory):
        out, smaller = directory / f"out{path.suffix}", directory / f"smaller{path.suffix}"
        command = [*PARAMCTL, "tie", str(path), "layers.3", "layers.4", "-f", "-q", "-o"]
        compare({"once": [*command, str(smaller)]}, directory, 1)
        commands = {"cp": ["cp", str(smaller), str(out)], "tie": [*command, str(out)]}
        costs = compare(commands, directory, RUNS + 4, settled(path, out))
        row(f"tie, {path.suffix}", costs["tie"], costs["cp"].seconds, 1.3)
        table("  cp of what remains", noise(costs["cp"]))
        for used in (path, out, smaller):
            used.unlink()


def patch(directory: Path) -> None:
    """One layer in place: the cost is that of the layer, whatever lies beside it."""
    for title, layer, others in (("2 GB", 1, 107), ("20 GB, sparse", 1, 1077)):
        pairs = zip(files.make("beside", directory, layer, others), files.make("beside", directory, 1, 1), strict=True)
        for large, small in pairs:
            commands = {"small": [*init(small, "layers.0"), *PATCH], "large": [*init(large, "layers.0"), *PATCH]}
            costs = compare(commands, directory, RUNS + 4)
            row(f"--patch of 1 MiB in {title}, {large.suffix}", costs["large"], costs["small"].seconds, 1.1)
            table("  the same in 20 MB", noise(costs["small"]))
            large.unlink()
            small.unlink()


def thousand(directory: Path) -> None:
    """1,000 of 60,000 params, drawn in one go."""
    names = directory / "names"
    names.write_text("".join(f"model.layers.{5 * i}.block.3.weight\n" for i in range(1000)))
    for path in files.make("many", directory):
        out = directory / f"out{path.suffix}"
        command = init(path, f"@{names}")
        commands = {
            "cp": ["cp", str(path), str(out)],
            "tree": [*PARAMCTL, "tree", str(path)],
            "draw": draw((2, 3), 1000),
            "new": [*command, "-o", str(out), "-f", "-q"],
            "patch": [*command, *PATCH],
        }
        costs = compare(commands, directory, RUNS)
        floor = costs["cp"].seconds + costs["draw"].seconds + costs["tree"].seconds
        row(f"1,000 of 60,000 to a new file, {path.suffix}", costs["new"], floor)
        row(f"1,000 of 60,000 with --patch, {path.suffix}", costs["patch"], floor)
        for used in (path, out):
            used.unlink()


def memory(directory: Path) -> None:
    """Peak memory against the size of the file, 100 MiB of which are drawn."""
    base = compare({"draw": draw(files.SHAPE)}, directory, 1)["draw"].memory
    table("peak MiB, a layer of 100 MiB", "new file", "--patch", "tie", "pipe", f"(import torch and draw: {base:.0f})")
    for title, others in (("0.2 GB", 5), ("2 GB", 102), ("6 GB", 318)):
        for path in files.make("beside", directory, 100, others):
            out = directory / f"out{path.suffix}"
            edit = init(path, "layers.0")
            piped = " ".join([*init(Path("-"), "layers.0"), "-q"])
            commands = {
                "new": [*edit, "-o", str(out), "-f", "-q"],
                "patch": [*edit, *PATCH],
                "tie": [*PARAMCTL, "tie", str(path), "layers.2", "layers.3", "-o", str(out), "-f", "-q"],
                "pipe": ["bash", "-c", f"cat {path} | {piped} > /dev/null"],
            }
            peaks: list[str] = []
            for name, command in commands.items():
                peaks.append(f"{compare({name: command}, directory, 1)[name].memory:.0f}")
                out.unlink(missing_ok=True)
            table(f"  {title} {path.suffix}", *peaks)
            path.unlink()


SECTIONS = {"anew": anew, "tie": tie, "patch": patch, "thousand": thousand, "memory": memory}


def main(names: list[str]) -> None:
    """Make the files, measure, print."""
    for name in names or SECTIONS:
        print(f"{SECTIONS[name].__doc__}  [{name}; load {os.getloadavg()[0]:.1f}]", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            SECTIONS[name](Path(temporary))


if __name__ == "__main__":
    main(sys.argv[1:])
