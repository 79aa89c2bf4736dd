"""A DTensor is the part that its rank saved: what is listed, read and edited is what the file holds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed

from paramctl.cli.app import main
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.files.targets import NewFile
from paramctl.formats import opening, saving
from paramctl.stats.stats import stats
from paramctl.values.arrays import read_values


@pytest.fixture
def mesh() -> Iterator[Any]:
    """A mesh of four ranks, of which only this process is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.distributed.device_mesh import init_device_mesh
        from torch.testing._internal.distributed.fake_pg import FakeStore

        distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
        try:
            yield init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        finally:
            distributed.destroy_process_group()


def saved(mesh: Any, folder: Path) -> dict[str, Any]:
    """Save tensors placed at random, and return them."""
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    rng = Random(5)
    made: dict[str, Any] = {"plain": torch.arange(6.0).reshape(2, 3)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(24):
            shape = [rng.choice([1, 4, 5, 13]) for _ in range(rng.randrange(1, 4))]
            dtype = rng.choice([torch.float32, torch.bfloat16, torch.int64])
            placements = [rng.choice([Replicate(), Shard(rng.randrange(len(shape)))]) for _ in range(2)]
            whole = torch.arange(float(np.prod(shape))).reshape(shape).to(dtype)
            placed = distribute_tensor(whole, mesh, placements)
            local = placed.to_local().detach().clone()
            local.copy_(torch.arange(float(local.numel())).reshape(local.shape))
            again = DTensor.from_local(local, mesh, placements, run_check=False, shape=placed.shape, stride=placed.stride())
            made[f"t{i}"] = torch.nn.Parameter(again, requires_grad=dtype.is_floating_point) if i % 3 == 0 else again
        torch.save(made, folder / "rank.pt")
    return made


def local(tensor: Any) -> torch.Tensor:
    """Return what the file of this rank holds of a tensor."""
    found: torch.Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found.detach()


def test_what_is_listed_and_read_is_the_local_part(
    mesh: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = saved(mesh, tmp_path)
    checkpoint = opening.open(str(tmp_path / "rank.pt"))
    assert [param.path for param in checkpoint.params] == list(made)
    for param, tensor, row in zip(checkpoint.params, made.values(), stats(checkpoint), strict=True):
        here = local(tensor)
        assert param.shape == tuple(here.shape)
        assert param.global_shape == (None if here.shape == tensor.shape else tuple(tensor.shape))
        assert np.array_equal(read_values(checkpoint, param).astype(np.float64), here.double().numpy())
        assert row.summary.figures.count == here.numel()
        if here.numel():
            assert row.summary.figures.max == here.double().max().item()
    assert main(["ls", "--json", str(tmp_path / "rank.pt")]) == 0
    listed = json.loads(capsys.readouterr().out)["tensors"]
    assert [one["shape"] for one in listed] == [list(local(tensor).shape) for tensor in made.values()]
    assert {json.dumps(one["global_shape"]) for one in listed} > {"null"}
    assert main(["tree", str(tmp_path / "rank.pt")]) == 0
    parts = sum("part of" in line for line in capsys.readouterr().out.splitlines())
    assert parts == sum(one["global_shape"] is not None for one in listed)


def test_edits_are_of_the_local_part(mesh: Any, tmp_path: Path) -> None:
    made = saved(mesh, tmp_path)
    checkpoint = opening.open(str(tmp_path / "rank.pt"))
    name = next(name for name, tensor in made.items() if name != "plain" and local(tensor).is_floating_point())
    for edit in (set_values(checkpoint, f"{name} = 7"), init(checkpoint, [name], ["constant:7"], seed=1)):
        saving.save(edit.checkpoint, NewFile(tmp_path / "out.pt", True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = torch.load(tmp_path / "out.pt", weights_only=False)
        assert again[name].shape == made[name].shape
        assert local(again[name]).eq(7).all()
        for other in made.keys() - {name}:
            assert torch.equal(local(again[other]), local(made[other]))
