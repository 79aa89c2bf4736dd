"""What an optimizer remembers of changed params, put back to where training starts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import refused, tensors
from torch import nn
from verb_files import changed, opened, written

from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie
from paramctl.errors import UsageError

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> dict[str, Any]:
    """Return a checkpoint after some steps of training, in which nothing is at its start any more."""
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((2, 3), 1.0 + step)).square().sum().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": copy.deepcopy(optimizer.state_dict()), "epoch": steps}


def fresh(make: Make) -> dict[str, torch.Tensor]:
    """Return what the optimizer has of the second weight before the first step, as torch makes it."""
    model = net()
    optimizer = make(model.parameters())
    real = torch.optim.Optimizer.state_dict
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()  # with no gradient at all, moments stay where they start; only steps are counted
    return {name: held for name, held in real(optimizer)["state"][2].items() if isinstance(held, torch.Tensor)}


OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda moved: torch.optim.Adam(moved, amsgrad=True),
    "AdamW": torch.optim.AdamW,
    "SGD": lambda moved: torch.optim.SGD(moved, momentum=0.9),
    "Adagrad": lambda moved: torch.optim.Adagrad(moved, initial_accumulator_value=0.25),
    "Adadelta": torch.optim.Adadelta,
    "RMSprop": lambda moved: torch.optim.RMSprop(moved, momentum=0.9, centered=True),
    "Adafactor": torch.optim.Adafactor,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Rprop": torch.optim.Rprop,
    "ASGD": lambda moved: torch.optim.ASGD(moved, lambd=0.0),
}
COUNTED = {"step", "mu_product", "eta", "mu", "ax", "exp_inf"}  # move in a step without gradient too


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_exactly_the_moments_of_what_changed_start_anew(tmp_path: Path, name: str) -> None:
    model = net()
    made = trained(model, OPTIMIZERS[name](model.parameters()))
    edit = set_values(opened(tmp_path, made), "2.weight[0] = 7", reset_optimizer=True)
    before, after = tensors(made), written(tmp_path, edit)
    held = [path for path in before if path.startswith("optimizer.state.2.")]
    assert [change.path for change in edit.changed] == ["model.2.weight", *held]
    assert edit.notes == ()
    different = changed(before, tensors(after))
    assert different <= {"model.2.weight", *held} and "model.2.weight" in different
    state, start = after["optimizer"]["state"][2], fresh(OPTIMIZERS[name])
    for moment in start.keys() - COUNTED:
        if moment.startswith(("row_", "col_", "variance")) or (name, moment) == ("Rprop", "step_size"):
            continue  # made from the first gradient
        assert torch.equal(state[moment], start[moment]), moment
    assert not state.get("step", torch.tensor(0.0)).any()
    optimizer = OPTIMIZERS[name](model.parameters())
    optimizer.load_state_dict(after["optimizer"])
    optimizer.step()


def test_numbers_that_do_not_start_at_zero(tmp_path: Path) -> None:
    model = net()
    for make, expected in (
        (torch.optim.NAdam, {"mu_product": 1.0}),
        (torch.optim.ASGD, {"mu": 1.0, "eta": 0.01, "ax": 0.0}),
        (torch.optim.Rprop, {"prev": 0.0, "step_size": 0.01}),
    ):
        made = trained(model, make(model.parameters()))
        edit = set_values(opened(tmp_path, made), "0.bias = 7", reset_optimizer=True)
        state = written(tmp_path, edit)["optimizer"]["state"][1]
        assert {name: pytest.approx(value) for name, value in expected.items()} == {
            name: state[name].flatten()[0].item() for name in expected
        }


def test_a_fresh_start_is_that_of_an_optimizer_that_never_moved_it(tmp_path: Path) -> None:
    """The next step of torch moves the changed param as the first step of a new optimizer would."""
    model = net()
    made = trained(model, torch.optim.Adam(model.parameters()))
    after = written(tmp_path, init(opened(tmp_path, made), ["2"], ["ones"], seed=1, reset_optimizer=True))
    models = []
    for state in (after["optimizer"], None):
        again = net()
        again.load_state_dict(after["model"])
        optimizer = torch.optim.Adam(again.parameters())
        if state is not None:
            optimizer.load_state_dict(state)
        again(torch.ones(2, 3)).sum().backward()
        optimizer.step()
        models.append(again.state_dict())
    assert torch.equal(models[0]["2.weight"], models[1]["2.weight"])
    assert not torch.equal(models[0]["0.weight"], models[1]["0.weight"])


def test_tie_resets_what_became_another(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    made = trained(model, torch.optim.SGD(model.parameters(), momentum=0.9))
    edit = tie(opened(tmp_path, made), "0", "1", reset_optimizer=True)
    assert [(change.path, change.how) for change in edit.changed] == [
        ("model.1.weight", "tied to model.0.weight"),
        ("model.1.bias", "tied to model.0.bias"),
        ("optimizer.state.2.momentum_buffer", "reset to 0, momentum_buffer of model.1.weight"),
        ("optimizer.state.3.momentum_buffer", "reset to 0, momentum_buffer of model.1.bias"),
    ]
    after = written(tmp_path, edit)["optimizer"]["state"]
    assert not after[2]["momentum_buffer"].any() and after[0]["momentum_buffer"].any()


def test_a_moment_that_is_set_too_is_reset_last(tmp_path: Path) -> None:
    model = net()
    made = trained(model, torch.optim.SGD(model.parameters(), momentum=0.9))
    statements = "0.bias = 1", "optimizer.state.1.momentum_buffer = 5", "optimizer.state.0.momentum_buffer = 5"
    state = written(tmp_path, set_values(opened(tmp_path, made), *statements, reset_optimizer=True))["optimizer"]["state"]
    assert state[1]["momentum_buffer"].tolist() == [0.0] * 5
    assert (state[0]["momentum_buffer"] == 5).all()


def test_frozen_params(tmp_path: Path) -> None:
    model = net()
    model[0].requires_grad_(False)
    made = trained(model, torch.optim.Adam(model[2].parameters()))
    checkpoint = opened(tmp_path, made)
    edit = init(checkpoint, ["2.weight"], ["ones"], seed=1, reset_optimizer=True)
    assert [change.path for change in edit.changed][1:] == [
        "optimizer.state.0.step", "optimizer.state.0.exp_avg", "optimizer.state.0.exp_avg_sq"
    ]  # fmt: skip
    assert init(checkpoint, ["0.weight"], ["ones"], seed=1).notes == ("selected inside 'model'",)
    nothing = init(checkpoint, ["0.weight"], ["ones"], seed=1, reset_optimizer=True)
    assert nothing.notes[1:] == ("no optimizer in this file has state of the changed params",)


def test_what_is_not_certain_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    checkpoint = opened(tmp_path, trained(model, torch.optim.Adam(model[1].parameters())))
    note = "the optimizer state in this file still belongs to the old values; it is not certain which part belongs to"
    assert set_values(checkpoint, "1.bias = 1").notes == (f"{note} model.1.bias",)
    assert refused(UsageError, lambda: set_values(checkpoint, "1.bias = 1", reset_optimizer=True)) == (
        "--reset-optimizer: it is not certain which of optimizer.state.1 belongs to model.1.bias;"
        " leave it out, or set the values yourself: 'optimizer.state.1.exp_avg = 0'"
    )


def test_an_optimizer_object_is_refused(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer)
    checkpoint = opened(tmp_path, {"model": model.state_dict(), "optimizer": optimizer})
    assert refused(UsageError, lambda: set_values(checkpoint, "0.bias = 1", reset_optimizer=True)) == (
        "--reset-optimizer cannot change optimizer: this optimizer was saved whole, as an object;"
        " leave the option out, or save optimizer.state_dict() from your program"
    )


def test_codes_of_eight_bits_are_refused(tmp_path: Path) -> None:
    model = net()
    made = trained(model, torch.optim.SGD(model.parameters(), momentum=0.9))
    made["optimizer"]["state"][1]["state1"] = torch.zeros(5, dtype=torch.uint8)
    checkpoint = opened(tmp_path, made)
    assert refused(UsageError, lambda: set_values(checkpoint, "0.bias = 1", reset_optimizer=True)) == (
        "--reset-optimizer: optimizer.state.1.state1 holds uint8 codes, and the code of 0 is not known;"
        " leave the option out"
    )


def test_what_others_share_is_refused(tmp_path: Path) -> None:
    model = net()
    made = trained(model, torch.optim.Adam(model.parameters()))
    for state in made["optimizer"]["state"].values():
        state["step"] = made["optimizer"]["state"][0]["step"]
    checkpoint = opened(tmp_path, made)
    assert refused(UsageError, lambda: set_values(checkpoint, "2.bias = 1", reset_optimizer=True)) == (
        "--reset-optimizer: optimizer.state.3.step is one with optimizer.state.0.step, optimizer.state.1.step,"
        " optimizer.state.2.step, of params that did not change; untie them first with 'paramctl untie'"
    )
    assert not written(tmp_path, init(checkpoint, (), ["ones"], seed=1, reset_optimizer=True))["optimizer"]["state"][3][
        "step"
    ].any()


def test_steps_counted_by_numbers_stay_and_are_said(tmp_path: Path) -> None:
    model = net()
    made = trained(model, torch.optim.Adam(model.parameters()))
    for state in made["optimizer"]["state"].values():
        state["step"] = 3  # as torch before 1.12 saved it
    edit = set_values(opened(tmp_path, made), "2.bias = 1", reset_optimizer=True)
    assert edit.notes == ("optimizer.state.3.step is kept: it is a plain number, not a tensor",)
    assert written(tmp_path, edit)["optimizer"]["state"][3]["step"] == 3
