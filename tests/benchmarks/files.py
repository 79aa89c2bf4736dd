"""The files that benchmarks read: 2 GB in 20 tensors, and 60,000 small tensors, as torch and safetensors save them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LAYERS = 20
SHAPE = (4096, 6400)  # 100 MiB of float32


def big(directory: Path) -> None:
    """A .pt and a .safetensors of 2 GB each."""
    import torch

    state = {f"layers.{i}.weight": torch.full(SHAPE, float(i)) for i in range(LAYERS)}
    _saved(state, directory, "big")


def many(directory: Path) -> None:
    """A .pt and a .safetensors of 60,000 tensors each."""
    import torch

    state = {f"model.layers.{i // 12}.block.{i % 12}.weight": torch.zeros(2, 3) for i in range(60_000)}
    _saved(state, directory, "many")


def make(what: str, directory: Path) -> tuple[Path, Path]:
    """The files `big` or `many`, made by a process of their own: a child starts with its parent's peak memory."""
    subprocess.run([sys.executable, __file__, what, str(directory)], check=True)
    return directory / f"{what}.pt", directory / f"{what}.safetensors"


def _saved(state: dict[str, torch.Tensor], directory: Path, name: str) -> None:
    import torch
    from safetensors.torch import save_file

    torch.save(state, directory / f"{name}.pt")
    save_file(state, directory / f"{name}.safetensors")


if __name__ == "__main__":
    {"big": big, "many": many}[sys.argv[1]](Path(sys.argv[2]))
