"""Every table fits the terminal, whatever its width and however long or wide the names are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from paramctl.cli import output
from paramctl.cli.text import cell_width

Run = Callable[..., tuple[int, str, str]]
LONG = "encoder.layers.10.self_attention.query_key_value_projection.low_rank_adapter.default"
NAMES = (
    "0.weight", "0.bias", f"{LONG}.weight", f"{LONG}.bias", f"{'x' * 200}.weight", f"{'模型层' * 20}.weight",
    "a name with spaces.running_mean", "tied.to.the.first.one.with.a.long.name.too.weight",
)  # fmt: skip
COMMANDS = {
    "tree": ["tree", "a.pt"],
    "tree --expand": ["tree", "a.pt", "--expand"],
    "tree of a module": ["tree", "module.pt"],
    "tree of a training checkpoint": ["tree", "training.pt"],
    "ls": ["ls", "a.pt"],
    "show": ["show", "a.pt", "0.weight"],
    "show a long name": ["show", "a.pt", f"{LONG}.weight"],
    "show wide characters": ["show", "a.pt", NAMES[5]],
    "stats": ["stats", "a.pt"],
    "stats --by layer": ["stats", "a.pt", "--by", "layer"],
    "stats --spectral": ["stats", "a.pt", "--spectral"],
    "diff": ["diff", "a.pt", "b.pt"],
    "track": ["track", "a.pt", "b.pt"],
    "plot": ["plot", "a.pt", "--layer", "0"],
    "ties": ["ties", "a.pt"],
    "ties --equal": ["ties", "a.pt", "--equal"],
    "check": ["check", "a.pt"],
    "schemes": ["schemes"],
    "schemes xavier": ["schemes", "xavier_uniform"],
    "help": ["help"],
    "help formats": ["help", "formats"],
    "help writing": ["help", "writing"],
    "help selections": ["help", "selections"],
}


def state(seed: int) -> dict[str, torch.Tensor]:
    """Return tensors under names that are long, wide or odd; one is tied, and some hold numbers that alarm."""
    draw = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(17, 1025, generator=draw) * 1e-6 for name in NAMES if name.endswith("weight")}
    made |= {name: torch.randn(123, generator=draw) - 1e4 for name in NAMES if not name.endswith("weight")}
    made["0.weight"][0, :5] = float("nan")
    made["0.weight"][1, :5] = float("-inf")
    made[NAMES[-1]] = made[NAMES[2]]
    made["copy.of.a.tensor.with.a.long.name.weight"] = made[NAMES[2]].clone()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save two checkpoints, a module and a training checkpoint."""
    place = tmp_path_factory.mktemp("widths")
    torch.save(state(1), place / "a.pt")
    torch.save({**state(2), "added.in.the.second.file.with.a.long.name": torch.ones(3)}, place / "b.pt")
    module = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False), nn.BatchNorm1d(4)
    )
    torch.save(module, place / "module.pt")
    adam = torch.optim.Adam(module.parameters())
    module[0](torch.ones(2, 3, 8)).sum().backward()
    adam.step()
    torch.save({"model": module.state_dict(), "optimizer": adam.state_dict(), "epoch": 3}, place / "training.pt")
    return place


@pytest.mark.parametrize("columns", [60, 80, 100, 140])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_line_fits(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, columns: int) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(output, "stdout_is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = run(*COMMANDS[command])
    assert code in (0, 1), err
    too_long = [line for line in out.splitlines() if cell_width(line) > columns]
    if command.startswith("help"):
        too_long = [line for line in too_long if not line.startswith("    ")]  # code is not wrapped
    if command.startswith(("show", "ties")):
        too_long = [line for line in too_long if not any(name in line for name in NAMES[2:])]  # paths to be copied
    assert too_long == []
