"""Gradients and moments, and whose they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from paramctl.formats import opening
from paramctl.model.checkpoint import Checkpoint, Leaf, Param, contiguous
from paramctl.model.dtypes import BY_NAME
from paramctl.model.optimizer_state import gradient_owners, model_inside, moment_layers, observed


def param(path: str, *shape: int) -> Param:
    kind = "optimizer" if path.startswith("optimizer") else "tensor"
    return Param(path, kind, BY_NAME["float32"], shape, contiguous(shape), path)  # type: ignore[arg-type]


def checkpoint(*entries: Param | Leaf) -> Checkpoint:
    return Checkpoint("torch-zip", "x.pt", entries, {})


def told(checkpoint: Checkpoint) -> dict[str, list[tuple[str, str]]]:
    params = checkpoint.params
    return {
        params[at].path: [(one.name, params[one.at].path) for one in all_of]
        for at, all_of in observed(checkpoint).items()
    }


def test_gradients_in_a_container_beside_the_model() -> None:
    some = checkpoint(param("model.0.w", 2), param("grads.0.w", 2), param("ema.0.w", 2))
    assert told(some) == {"model.0.w": [("grad", "grads.0.w")]}


def test_gradients_in_the_model_and_beside_the_param() -> None:
    assert gradient_owners(checkpoint(param("model.0.w", 2), param("model.grad.0.w", 2))) == {1: 0}
    assert gradient_owners(checkpoint(param("0.w", 2), param("0.w.grad", 2))) == {1: 0}
    assert gradient_owners(checkpoint(param("0.w", 2), param("gradients.0.w", 2))) == {1: 0}


def test_what_is_only_called_gradient_is_none() -> None:
    assert gradient_owners(checkpoint(param("0.w", 2), param("grad.0.w", 3), param("grad.weight", 2))) == {}


def test_the_model_inside() -> None:
    assert model_inside(checkpoint(param("state_dict.w", 1), param("ema.w", 1))) == "state_dict"
    assert model_inside(checkpoint(param("net.w", 1), param("ema.w", 1))) == ""
    assert model_inside(checkpoint(param("model", 1))) == ""


def moments(*groups: list[object], shapes: dict[str, tuple[int, ...]]) -> tuple[Param | Leaf, ...]:
    state = (param(f"optimizer.state.{key}.exp_avg", *shape) for key, shape in shapes.items())
    return (*state, *(Leaf(f"optimizer.param_groups.{i}.params", group) for i, group in enumerate(groups)))


def test_moments_follow_the_order_of_the_model() -> None:
    some = checkpoint(param("model.w", 2, 3), param("model.b", 2), *moments([0], [1], shapes={"0": (2, 3), "1": (2,)}))
    assert told(some) == {
        "model.w": [("exp_avg", "optimizer.state.0.exp_avg")],
        "model.b": [("exp_avg", "optimizer.state.1.exp_avg")],
    }


def test_where_the_order_is_not_certain_nothing_is_said() -> None:
    model = param("model.w", 2, 3), param("model.b", 2)
    assert told(checkpoint(*model, *moments([0, 1], shapes={"0": (2,), "1": (2, 3)}))) == {}
    assert told(checkpoint(*model, param("model.c", 2), *moments([0], shapes={"0": (2,)}))) == {}
    assert told(checkpoint(*model, param("model.v", 2, 3), *moments([0], [1], shapes={"0": (2,), "1": (2, 3)}))) == {
        "model.b": [("exp_avg", "optimizer.state.0.exp_avg")]
    }
    assert told(checkpoint(*model, *moments([0, 1], shapes={}))) == {}


def test_moments_by_name() -> None:
    some = checkpoint(param("model.0.w", 2), param("model.1.w", 2), *moments(["1.w"], shapes={"1.w": (2,)}))
    assert told(some) == {"model.1.w": [("exp_avg", "optimizer.state.1.w.exp_avg")]}
    names = Leaf("optimizer.param_groups.0.param_names", ["1.w"])
    some = checkpoint(param("model.0.w", 2), param("model.1.w", 2), *moments([0], shapes={"0": (2,)}), names)
    assert told(some) == {"model.1.w": [("exp_avg", "optimizer.state.0.exp_avg")]}


def test_what_torch_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = nn.Linear(4, 4)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), shared, nn.ReLU(), shared)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    grads = {name: p.grad for name, p in net.named_parameters()}
    file = tmp_path / "x.pt"
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "grads": grads}, file)
    found = told(opening.open(str(file)))
    assert list(found) == [f"model.{name}" for name, _ in net.named_parameters()]
    assert found["model.2.bias"] == [
        ("grad", "grads.2.bias"),
        ("step", "optimizer.state.5.step"),
        ("exp_avg", "optimizer.state.5.exp_avg"),
        ("exp_avg_sq", "optimizer.state.5.exp_avg_sq"),
    ]


# --- training checkpoints as programs save them ----------------------------------------------------


def stepped(*modules: nn.Module) -> torch.optim.Adam:
    """An optimizer of all the params of some modules that still learn, after a step."""
    moved = torch.optim.Adam([p for module in modules for p in module.parameters() if p.requires_grad])
    for module in modules:
        module(torch.ones(2, 4)).sum().backward()
    moved.step()
    return moved


def owners(folder: Path, made: object) -> dict[str, str]:
    """Path of each param → layer of the optimizer's state that is its."""
    torch.save(made, folder / "x.pt")
    return {owner: layer for layer, owner in moment_layers(opening.open(str(folder / "x.pt"))).items()}


def two() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


LAYERS = ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_lightning(tmp_path: Path) -> None:
    net = two()
    made = {
        "epoch": 1,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": {f"model.{name}": value for name, value in net.state_dict().items()},
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0)}},
        "optimizer_states": [stepped(net).state_dict()],
        "lr_schedulers": [{"last_epoch": 1}],
        "hyper_parameters": {"lr": 0.1},
    }
    assert owners(tmp_path, made) == {
        f"state_dict.model.{name}": f"optimizer_states.0.state.{i}" for i, name in enumerate(LAYERS)
    }


@pytest.mark.parametrize("start", ["module.", "_orig_mod.", "module._orig_mod."])
def test_models_that_were_wrapped(tmp_path: Path, start: str) -> None:
    net = two()
    model = {f"{start}{name}": value for name, value in net.state_dict().items()}
    made = {"model": model, "ema": net.state_dict(), "optimizer": stepped(net).state_dict()}
    assert owners(tmp_path, made) == {f"model.{start}{name}": f"optimizer.state.{i}" for i, name in enumerate(LAYERS)}


def test_names_of_a_wrapped_model_and_params_of_one_that_is_not(tmp_path: Path) -> None:
    net = two()
    moved = torch.optim.SGD([(f"module.{name}", p) for name, p in reversed([*net.named_parameters()])], momentum=0.9)
    net(torch.ones(2, 4)).sum().backward()
    moved.step()
    made = {"model": net.state_dict(), "optimizer": moved.state_dict()}
    assert owners(tmp_path, made) == {f"model.{name}": f"optimizer.state.{3 - i}" for i, name in enumerate(LAYERS)}


def test_names_of_params_that_are_numbers(tmp_path: Path) -> None:
    net = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))])
    moved = torch.optim.SGD([*net.named_parameters()][::-1], momentum=0.9)
    (net[0] + net[1]).sum().backward()
    moved.step()
    made = {"model": net.state_dict(), "optimizer": moved.state_dict()}
    assert owners(tmp_path, made) == {"model.1": "optimizer.state.0", "model.0": "optimizer.state.1"}


def test_a_tied_param_is_in_the_optimizer_once(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    made = {"model": net.state_dict(), "optimizer": stepped(net).state_dict()}
    found = {"model.0.weight": "optimizer.state.0", "model.0.bias": "optimizer.state.1", "model.1.bias": "optimizer.state.2"}
    assert owners(tmp_path, made) == found


def test_two_models_with_an_optimizer_each(tmp_path: Path) -> None:
    g, d = nn.Linear(4, 3), nn.Linear(4, 1)
    made = {"g": g.state_dict(), "d": d.state_dict(), "opt_g": stepped(g).state_dict(), "opt_d": stepped(d).state_dict()}
    found = owners(tmp_path, made)
    assert found["g.weight"] == "opt_g.state.0" and found["d.weight"] == "opt_d.state.0"
    assert found["g.bias"] == "opt_g.state.1"


def test_frozen_params_of_a_whole_module(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[0].requires_grad_(False)
    made = {"model": net, "optimizer": stepped(net).state_dict()}
    assert owners(tmp_path, made) == {"model.1.weight": "optimizer.state.0", "model.1.bias": "optimizer.state.1"}


def test_rows_and_columns_of_adafactor(tmp_path: Path) -> None:
    net = two()
    moved: torch.optim.Optimizer = torch.optim.Adafactor(net.parameters())
    net(torch.ones(2, 4)).sum().backward()
    moved.step()
    made = {"model": net.state_dict(), "optimizer": moved.state_dict()}
    assert owners(tmp_path, made) == {f"model.{name}": f"optimizer.state.{i}" for i, name in enumerate(LAYERS)}


def test_preconditioners_make_the_order_uncertain(tmp_path: Path) -> None:
    net = two()
    state = stepped(net).state_dict()
    for held in state["state"].values():
        held["precond"] = torch.eye(7)
    assert owners(tmp_path, {"model": net.state_dict(), "optimizer": state}) == {}


def test_moments_below_a_name_of_their_own(tmp_path: Path) -> None:
    net = two()
    state = stepped(net).state_dict()
    state["state"] = {i: {"inner": held} for i, held in state["state"].items()}
    torch.save({"model": net.state_dict(), "optimizer": state}, tmp_path / "x.pt")
    found = told(opening.open(str(tmp_path / "x.pt")))
    assert found["model.0.bias"][1] == ("inner.exp_avg", "optimizer.state.1.inner.exp_avg")
