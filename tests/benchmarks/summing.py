"""What looking at every value costs, as ratios to cat in the same run: python tests/benchmarks/summing.py

Floor: `cat FILE` to nowhere, which reads the bytes and does nothing with them.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from measure import PARAMCTL, compare, noise, row

LAYERS = 40
SHAPE = (4096, 6400)  # 50 MiB of bfloat16
BUDGET, MEMORY = 10, 100  # × cat, MiB
COMMANDS = {
    "stats": ["stats"],
    "stats --json --histogram": ["stats", "--json", "--histogram"],
    "stats --by layer": ["stats", "--by", "layer"],
}


def make(directory: Path, dtype: str) -> None:
    """A .pt and a .safetensors of 2 GB each, of normal values."""
    import torch
    from safetensors.torch import save_file

    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    values = (0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))).to(getattr(torch, dtype))
    state = {f"layers.{i}.weight": values.roll(i).clone() for i in range(2 * LAYERS // size)}
    torch.save(state, directory / f"{dtype}.pt")
    save_file(state, directory / f"{dtype}.safetensors")


def main(directory: Path) -> None:
    """Make the files of one dtype after the other, measure, print."""
    print("2 GB; floor: cat")
    for dtype in ("bfloat16", "float32"):
        subprocess.run([sys.executable, __file__, dtype, str(directory)], check=True)
        for suffix in (".safetensors", ".pt"):
            path = directory / f"{dtype}{suffix}"
            commands = {what: [*PARAMCTL, *words, str(path)] for what, words in COMMANDS.items()}
            costs = compare({"cat": ["cat", str(path)], **commands}, directory)
            for what in commands:
                budget = BUDGET if what == "stats" and dtype == "bfloat16" else None
                row(f"{what}, {dtype} {suffix}", costs[what], costs["cat"].seconds, budget, MEMORY)
            print(f"{'cat':<44} {noise(costs['cat'])}; stats {noise(costs['stats'])}")
            path.unlink()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        make(Path(sys.argv[2]), sys.argv[1])
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
