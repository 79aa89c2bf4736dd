"""Small files for the tests of verbs: written by torch or safetensors, read back by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from paramctl.edit.report import Edit
from paramctl.files import targets
from paramctl.formats import opening, registry, saving
from paramctl.model.checkpoint import Checkpoint


def saved(folder: Path, made: Any, name: str = "x.pt") -> Path:
    """`made` in a file of that name."""
    path = folder / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(made, path, {"format": "pt"})
    else:
        torch.save(made, path)
    return path


def opened(folder: Path, made: Any, name: str = "x.pt") -> Checkpoint:
    """`made`, saved and read by paramctl."""
    return opening.open(str(saved(folder, made, name)))


def loaded(path: Path) -> Any:
    """What torch or safetensors finds in a file; a whole module only where it must."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True)


def written(folder: Path, edit: Edit) -> Any:
    """The edited checkpoint, written by paramctl and loaded by torch or safetensors."""
    form = registry.named(edit.checkpoint.format)
    path = folder / f"out{form.SUFFIXES[0]}"
    saving.save(edit.checkpoint, targets.NewFile(path, True), form)
    return loaded(path)


def written_module(folder: Path, edit: Edit) -> nn.Module:
    """As `written`, of a whole module that a test saved itself."""
    path = folder / "out.pt"
    saving.save(edit.checkpoint, targets.NewFile(path, True))
    module = torch.load(path, weights_only=False)
    assert isinstance(module, nn.Module)
    return module


def mlp() -> nn.Sequential:
    """Linear, ReLU, BatchNorm, Linear, with values that no scheme makes."""
    torch.manual_seed(7)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    with torch.no_grad():
        for param in (*net.parameters(), *net.buffers()):
            if param.is_floating_point():
                param.uniform_(0.25, 0.75)
    return net


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same bytes in the same shape and dtype."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """Names whose bytes differ; the names themselves and their order must not."""
    assert list(before) == list(after)
    return {name for name in before if not same(before[name], after[name])}
