"""Whose moments an optimizer's numbers are: where shapes leave several orders, that is said."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest
import torch
from torch import nn

from paramctl.edit.init import init
from paramctl.formats import opening
from paramctl.model.optimizer_state import moments, observed


def trained(module: nn.Module, order: list[nn.Parameter], folder: Path) -> str:
    """Save a module and an Adam that was given its params in that order, after a step."""
    adam = torch.optim.Adam(order)
    for number, param in enumerate(order):
        param.grad = torch.full_like(param, float(number + 1))
    adam.step()
    torch.save({"model": module.state_dict(), "optimizer": adam.state_dict()}, folder / "x.pt")
    return str(folder / "x.pt")


@pytest.mark.parametrize("order", [*permutations(range(4))])
def test_no_order_of_equal_shapes_passes_for_certain(order: tuple[int, ...], tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    given = [*module.parameters()]
    checkpoint = opening.open(trained(module, [given[i] for i in order], tmp_path))
    truth = {f"optimizer.state.{place}": list(dict(module.named_parameters()))[i] for place, i in enumerate(order)}
    for moment in moments(checkpoint):
        if moment.owner is not None and not moment.assumed:
            assert checkpoint.params[moment.owner].path == f"model.{truth[moment.layer]}"
    edit = init(checkpoint, ["model.0.weight"], ["ones"], seed=1, reset_optimizer=True) if order == (0, 1, 2, 3) else None
    if edit is not None:
        assert any(note.startswith("assumed: in the model's order: the moments of model.0.weight") for note in edit.notes)


def test_shapes_that_leave_one_possibility_are_certain(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    checkpoint = opening.open(trained(module, [*module.parameters()], tmp_path))
    assert {moment.assumed for moment in moments(checkpoint)} == {False}
    edit = init(checkpoint, ["model.0"], ["ones"], seed=1, reset_optimizer=True)
    assert not [note for note in edit.notes if "assumed: in the model's order" in note]
    assert all(not one.assumed for about in observed(checkpoint).values() for one in about)
