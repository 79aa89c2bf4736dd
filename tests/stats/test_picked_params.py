"""What is picked of one checkpoint, by its path in the model."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import listing, refused

from paramctl.errors import NoMatch
from paramctl.model.checkpoint import Checkpoint
from paramctl.stats.picked_params import pick


def held(folder: Path, state: object) -> Checkpoint:
    torch.save(state, folder / "x.pt")
    return listing(folder / "x.pt")


def state() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.ones(4),
        "batches": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "index": torch.arange(3),
    }


def test_without_selections_it_is_the_model_inside(tmp_path: Path) -> None:
    w = torch.ones(2)
    checkpoint = held(tmp_path, {"model": {"a": w, "b": w, "n": torch.tensor(1)}, "grad": {"a": torch.ones(2)}})
    found = pick(checkpoint, [])
    assert (dict(found.at), dict(found.unique)) == ({"a": 0, "b": 1, "n": 2}, {"a": 0, "n": 2})
    assert refused(NoMatch, pick, held(tmp_path, {"epoch": 1}), []) == "there are no parameters in this checkpoint"


def test_whatever_is_selected_is_picked(tmp_path: Path) -> None:
    checkpoint = held(tmp_path, {"model": state()})
    found = pick(checkpoint, ["weight", "mask", "i*"])
    assert (list(found.at), found.exact, found.under) == (["weight", "mask", "index"], frozenset({0, 2}), "model")
