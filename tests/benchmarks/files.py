"""The files that benchmarks read, as torch and safetensors save them; each is made by a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LAYERS = 20
SHAPE = (4096, 6400)  # 100 MiB of float32
SMALL = (512, 512)  # 1 MiB
MIB = 1 << 20


def big(directory: Path, *_: str) -> None:
    """A .pt and a .safetensors of 2 GB each, every byte on the disk."""
    import torch

    _saved({f"layers.{i}.weight": torch.full(SHAPE, float(i)) for i in range(LAYERS)}, directory / "big")


def many(directory: Path, *_: str) -> None:
    """A .pt and a .safetensors of 60,000 tensors each."""
    import torch

    state = {f"model.layers.{i // 12}.block.{i % 12}.weight": torch.zeros(2, 3) for i in range(60_000)}
    _saved(state, directory / "many")


def beside(directory: Path, *mebibytes: str) -> None:
    """A .pt and a .safetensors of LAYERS tensors: the first of as many MiB as are said first, the others of the second.

    They are holes but for their headers, so that they take no room: what a tensor holds costs nothing here.
    """
    import torch

    layer, others = map(int, mebibytes)
    sizes = [layer, *[others] * (LAYERS - 1)]
    state = {f"layers.{i}.weight": torch.empty(size, MIB // 4) for i, size in enumerate(sizes)}
    path = directory / f"{layer}_beside_{others}"
    with torch.serialization.skip_data():
        torch.save(state, path.with_suffix(".pt"))
    at, header = 0, {}
    for name, size in zip(state, sizes, strict=True):
        header[name] = {"dtype": "F32", "shape": [size, MIB // 4], "data_offsets": [at, at + size * MIB]}
        at += size * MIB
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.with_suffix(".safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)


def make(what: str, directory: Path, *sizes: int) -> tuple[Path, Path]:
    """What the function of that name makes. A child starts with its parent's peak memory: it is not done here."""
    subprocess.run([sys.executable, __file__, what, str(directory), *map(str, sizes)], check=True)
    name = "_beside_".join(map(str, sizes)) or what
    return directory / f"{name}.pt", directory / f"{name}.safetensors"


def _saved(state: dict[str, torch.Tensor], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    torch.save(state, path.with_suffix(".pt"))
    save_file(state, path.with_suffix(".safetensors"))


if __name__ == "__main__":
    {"big": big, "many": many, "beside": beside}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
