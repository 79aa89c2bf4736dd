"""Gradients and moments, and whose they are."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from paramctl import formats
from paramctl.checkpoint import Checkpoint, Leaf, Param, contiguous
from paramctl.dtypes import BY_NAME
from paramctl.observations import gradient_owners, model_inside, observed


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
    assert told(checkpoint(*model, *moments([0], shapes={"0": (2, 3)}))) == {}
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
    found = told(formats.open(str(file)))
    assert list(found) == [f"model.{name}" for name, _ in net.named_parameters()]
    assert found["model.2.bias"] == [
        ("grad", "grads.2.bias"),
        ("step", "optimizer.state.5.step"),
        ("exp_avg", "optimizer.state.5.exp_avg"),
        ("exp_avg_sq", "optimizer.state.5.exp_avg_sq"),
    ]
