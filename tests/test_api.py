"""The Python door: the same verbs, on a checkpoint that is indexed like the model it saved."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import paramctl


@pytest.fixture
def rgnet(tmp_path: Path) -> tuple[nn.Sequential, Path]:
    """The chapter's nested network, saved whole."""
    torch.manual_seed(0)
    block2 = nn.Sequential()
    for i in range(4):
        block = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU())
        block2.add_module(f"block {i}", block)
    net = nn.Sequential(block2, nn.Linear(4, 1))
    path = tmp_path / "rgnet.pt"
    torch.save(net, path)
    return net, path


def test_it_is_indexed_like_nested_lists(rgnet: tuple[nn.Sequential, Path]) -> None:
    net, path = rgnet
    ckpt = paramctl.open(path)
    block2 = ckpt[0]
    assert isinstance(block2, paramctl.Layer)
    assert list(block2) == ["block 0", "block 1", "block 2", "block 3"]
    expected = net.state_dict()["0.block 1.0.bias"].numpy()
    for found in (ckpt["0.block 1.0.bias"], ckpt["[0][1][0].bias"], ckpt["0"]["block 1"]["0.bias"]):
        assert isinstance(found, paramctl.Parameter)
        assert found.path == "0.block 1.0.bias"
        assert np.array_equal(found.numpy(), expected)
    assert ckpt[0][1][0]["bias"].torch().tolist() == expected.tolist()


def test_a_parameter_says_what_it_is(rgnet: tuple[nn.Sequential, Path]) -> None:
    weight = paramctl.open(rgnet[1])["1.weight"]
    assert isinstance(weight, paramctl.Parameter)
    assert (weight.kind, weight.dtype, weight.shape, weight.requires_grad, weight.tied_to) == (
        "parameter", "float32", (1, 4), True, None,
    )  # fmt: skip
    assert repr(weight) == "Parameter('1.weight', float32, [1, 4])"


def test_verbs_return_a_new_checkpoint_and_leave_the_old(rgnet: tuple[nn.Sequential, Path], tmp_path: Path) -> None:
    net, path = rgnet
    before = path.read_bytes()
    old = paramctl.open(path)
    new = old.init("1", "xavier", seed=3).set("0.block 0.0.bias[0] = 42")
    assert old["1.weight"].numpy().tolist() == net.state_dict()["1.weight"].tolist()
    assert new["0.block 0.0.bias"].numpy()[0] == 42
    assert new.save(tmp_path / "new.pt") == (tmp_path / "new.pt").stat().st_size
    assert path.read_bytes() == before
    loaded = torch.load(tmp_path / "new.pt", weights_only=False)
    drawn = torch.empty(1, 4)
    generator = torch.Generator().manual_seed(paramctl.seed_for(3, "1.weight"))
    nn.init.xavier_uniform_(drawn, generator=generator)
    assert torch.equal(loaded[1].weight, drawn)
    assert loaded[0][0][0].bias[0] == 42


def test_init_says_what_it_did(rgnet: tuple[nn.Sequential, Path]) -> None:
    new = paramctl.open(rgnet[1]).init(["1"], ["constant:1"], seed=5)
    assert new.seed == 5
    assert [(change.path, change.how) for change in new.changes] == [("1.weight", "constant:1"), ("1.bias", "zeros")]


def test_ties_are_seen_made_and_parted(rgnet: tuple[nn.Sequential, Path], tmp_path: Path) -> None:
    tied = paramctl.open(rgnet[1]).tie("0.block 0", "0.block 1")
    assert tied.ties[0] == ("0.block 0.0.weight", "0.block 1.0.weight")
    assert len(tied.ties) == 4
    tied.save(tmp_path / "tied.safetensors")
    again = paramctl.open(tmp_path / "tied.safetensors")
    assert again.ties == tied.ties
    assert again.untie("**").ties == ()
    assert "0.block 1.0.weight" not in load_file(tmp_path / "tied.safetensors")


def test_scalars_are_values(tmp_path: Path) -> None:
    torch.save({"epoch": 12, "model": {"w": torch.ones(2)}}, tmp_path / "run.ckpt")
    run = paramctl.open(tmp_path / "run.ckpt")
    assert run["epoch"] == 12
    assert run["w"].path == "model.w"


def test_errors_are_of_the_kind_people_catch(rgnet: tuple[nn.Sequential, Path], tmp_path: Path) -> None:
    ckpt = paramctl.open(rgnet[1])
    with pytest.raises(LookupError, match="there is no child 7 among 2"):
        ckpt[7]
    with pytest.raises(paramctl.NoMatch):
        ckpt["nothing"]
    with pytest.raises(paramctl.UsageError, match="exists already"):
        ckpt.save(rgnet[1])
    with pytest.raises(paramctl.FileError, match="no such file"):
        paramctl.open(tmp_path / "missing.pt")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.uint16])
def test_torch_gives_back_the_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    torch.save({"w": tensor}, tmp_path / "w.pt")
    found = paramctl.open(tmp_path / "w.pt")["w"]
    assert isinstance(found, paramctl.Parameter)
    assert found.torch().dtype is dtype
    assert torch.equal(found.torch().view(torch.uint8), tensor.view(torch.uint8))


def test_every_public_name_is_there() -> None:
    for name in paramctl.__all__:
        assert getattr(paramctl, name) is not None
    with pytest.raises(AttributeError, match="module 'paramctl' has no attribute 'nothing'"):
        _ = paramctl.nothing


def test_a_copy_of_a_model_reads_the_same_file(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"w": torch.full((1000,), value)}, tmp_path / f"{name}.safetensors")
    model = paramctl.open(tmp_path / "a.safetensors")
    for again in (copy.copy(model), copy.deepcopy(model)):
        assert float(again["w"].numpy()[0]) == 1
    del again
    paramctl.open(tmp_path / "b.safetensors")
    assert float(model["w"].numpy()[0]) == 1
    with pytest.raises(TypeError, match="an open file cannot be pickled"):
        pickle.dumps(model)


def test_a_seed_is_a_whole_number(rgnet: tuple[nn.Sequential, Path]) -> None:
    ckpt = paramctl.open(rgnet[1])
    with pytest.raises(paramctl.UsageError, match=r"the seed 1\.5 is not a whole number"):
        ckpt.init("0", "ones", seed=1.5)  # type: ignore[arg-type]


def test_stats_of_params_and_layers(tmp_path: Path) -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    torch.save({"a": {"weight": weight, "bias": torch.zeros(2)}, "b": torch.ones(1)}, tmp_path / "x.pt")
    found = paramctl.open(tmp_path / "x.pt").stats("a")
    assert list(found) == ["a.weight", "a.bias"]
    assert found["a.weight"] == (4, 2.0, 1.0, 1.0, 3.0, 14**0.5, 0, 1, 0)
    assert paramctl.open(tmp_path / "x.pt").stats(by_layer=True)["a"].count == 6


def test_diff_and_check(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2, 2), "b": torch.ones(3)}, tmp_path / "x.pt")
    net = paramctl.open(tmp_path / "x.pt")
    new = net.set("a[0,0] = 3")
    assert not net.diff(net)
    (changed,) = net.diff(new).changed
    assert (changed.path, changed.figures and changed.figures.max_abs) == ("a", 2.0)
    assert net.check().findings == ()
    new.set("b = nan").save(tmp_path / "y.pt")
    assert [finding.rule for finding in paramctl.open(tmp_path / "y.pt").check().findings] == ["nan"]
