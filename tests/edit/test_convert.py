"""`convert`: what survives between formats, what is refused as a loss, and taking one layer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from verb_files import loaded, mlp, opened, same, saved

from paramctl.edit.convert import convert
from paramctl.edit.report import Edit
from paramctl.errors import NoMatch, ParamctlError, UsageError
from paramctl.files import targets
from paramctl.formats import opening, protocol, registry, saving
from paramctl.formats.sets.shard_division import division_for
from paramctl.model.checkpoint import Checkpoint

TORCH = registry.named("torch-zip")
SAFE = registry.named("safetensors")


def carried(folder: Path, checkpoint: Checkpoint, to: str, **how: Any) -> Any:
    """Return the checkpoint converted, written and loaded by the other library."""
    form = registry.named(to)
    path = folder / f"carried{form.SUFFIXES[0]}"
    saving.save(convert(checkpoint, form, **how).checkpoint, targets.NewFile(path, True), form)
    return loaded(path)


def refused(kind: type[ParamctlError], checkpoint: Checkpoint, form: protocol.AnyFormat, **how: Any) -> str:
    with pytest.raises(kind) as caught:
        convert(checkpoint, form, **how)
    assert type(caught.value) is kind
    return str(caught.value)


def training() -> dict[str, Any]:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(3, 4)).sum().backward()
    optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "args": {"lr": 0.1}}


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
    torch.bool, torch.complex64,
]  # fmt: skip


def test_every_dtype_there_and_back(tmp_path: Path) -> None:
    before = {str(dtype): torch.arange(24).reshape(2, 3, 4).to(dtype) for dtype in DTYPES}
    before |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 3)}
    there = carried(tmp_path, opened(tmp_path, before), "safetensors")
    back = carried(tmp_path, opening.open(os.fspath(tmp_path / "carried.safetensors")), "torch-zip")
    for after in (there, back):
        assert sorted(after) == sorted(before)
        assert all(same(after[name], before[name]) for name in before)


def test_the_order_of_a_torch_file_is_kept_where_the_format_has_one(tmp_path: Path) -> None:
    before = mlp().state_dict()
    back = carried(tmp_path, opened(tmp_path, before, "x.safetensors"), "torch-zip")
    assert list(back) == list(loaded_order(tmp_path / "x.safetensors"))


def loaded_order(path: Path) -> list[str]:
    return [param.path for param in opening.open(os.fspath(path)).params]


def test_ties_survive_both_ways(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    before = {"a": shared, "b": torch.ones(4), "c": shared}
    edit = convert(opened(tmp_path, before), SAFE)
    assert edit.notes == ("3 tensors (2 unique) as safetensors",)
    carried(tmp_path, opened(tmp_path, before), "safetensors")
    with safetensors.safe_open(tmp_path / "carried.safetensors", "pt") as file:
        assert file.metadata() == {"c": "a"}
        assert sorted(file.keys()) == ["a", "b"]
    back = carried(tmp_path, opening.open(os.fspath(tmp_path / "carried.safetensors")), "torch-zip")
    assert back["a"].data_ptr() == back["c"].data_ptr() != back["b"].data_ptr()
    assert all(same(back[name], before[name]) for name in before)


def test_strided_and_overlapping_params_become_plain(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    before = {"t": base.t(), "row": base[1], "gaps": base[:, ::2], "conj": torch.tensor([1 + 2j, 3j]).conj()}
    for to in ("safetensors", "torch-zip"):
        checkpoint = opened(tmp_path, {"model": before})
        after = carried(tmp_path, checkpoint, to, layer="model")
        assert all(same(after[name], before[name].resolve_conj()) for name in before)


def test_a_whole_module_becomes_its_state_dict(tmp_path: Path) -> None:
    net = mlp()
    after = carried(tmp_path, opened(tmp_path, net), "safetensors")
    assert all(same(after[name], tensor) for name, tensor in net.state_dict().items())
    nn.Module.load_state_dict(mlp(), after)


def test_to_its_own_format_is_a_copy(tmp_path: Path) -> None:
    for name, form in (("x.pt", TORCH), ("x.safetensors", SAFE)):
        path = saved(tmp_path, mlp().state_dict(), name)
        out = tmp_path / f"copy{path.suffix}"
        saving.save(convert(opening.open(os.fspath(path)), form).checkpoint, targets.NewFile(out), form)
        assert out.read_bytes() == path.read_bytes()
    path = saved(tmp_path, training(), "run.pt")
    assert convert(opening.open(os.fspath(path)), TORCH).notes == ("27 tensors as torch-zip",)


def test_a_bare_tensor(tmp_path: Path) -> None:
    edit = convert(opened(tmp_path, torch.ones(3)), SAFE)
    assert edit.notes == ("1 tensor as safetensors",)
    after = carried(tmp_path, opened(tmp_path, torch.ones(3)), "safetensors")
    assert {name: tensor.tolist() for name, tensor in after.items()} == {"": [1.0, 1.0, 1.0]}


NAMES = ["[bold]x[/bold]", "a\x1b[31mb", "with space", "a/b", "w[0]", "n = 1", "über", "a\nb"]


def test_names_are_data(tmp_path: Path) -> None:
    before = {name: torch.tensor([float(i)]) for i, name in enumerate(NAMES)}
    there = carried(tmp_path, opened(tmp_path, before), "safetensors")
    back = carried(tmp_path, opening.open(os.fspath(tmp_path / "carried.safetensors")), "torch-zip")
    assert sorted(there) == sorted(before)
    assert all(same(back[name], before[name]) for name in NAMES)


def test_losses_are_listed(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, training())
    assert refused(UsageError, checkpoint, SAFE) == (
        "safetensors cannot hold optimizer.param_groups.0.lr (scalar), optimizer.param_groups.0.betas (scalar), "
        "optimizer.param_groups.0.eps (scalar), optimizer.param_groups.0.weight_decay (scalar), "
        "optimizer.param_groups.0.amsgrad (scalar) and 9 more; "
        "accept the loss with --lossy, or take one part with --layer"
    )
    edit = convert(checkpoint, SAFE, lossy=True)
    assert edit.notes[0] == "27 tensors as safetensors"
    assert edit.notes[1].startswith("left out optimizer.param_groups.0.lr (scalar), ")
    assert edit.notes[1].endswith(" and 9 more")


def test_lossy_keeps_every_tensor(tmp_path: Path) -> None:
    before = training()
    after = carried(tmp_path, opened(tmp_path, before), "safetensors", lossy=True)
    assert same(after["model.0.weight"], before["model"]["0.weight"])
    assert same(after["optimizer.state.0.exp_avg"], before["optimizer"]["state"][0]["exp_avg"])
    assert len(after) == 27


@pytest.mark.parametrize("form", [SAFE, TORCH])
def test_tensors_that_are_made_of_others_are_a_loss(tmp_path: Path, form: protocol.AnyFormat) -> None:
    checkpoint = opened(tmp_path, {"m": {"sparse": torch.eye(2).to_sparse(), "w": torch.ones(2)}})
    assert refused(UsageError, checkpoint, form, layer="m") == (
        f"{form.NAME} cannot hold sparse (sparse_coo tensor); "
        "accept the loss with --lossy, or take one part with --layer"
    )
    assert list(carried(tmp_path, checkpoint, form.NAME, layer="m", lossy=True)) == ["w"]


def why_not(folder: Path, edit: Edit, form: protocol.AnyFormat) -> str:
    with pytest.raises(ParamctlError) as caught:
        saving.save(edit.checkpoint, targets.NewFile(folder / "never"), form)
    assert not (folder / "never").exists()
    return f"{caught.value.exit_code} {caught.value}"


def test_names_that_collide(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {"a.b": torch.ones(2), "a": {"b": torch.zeros(2)}})
    assert why_not(tmp_path, convert(checkpoint, SAFE), SAFE) == (
        "2 two tensors print as 'a.b', and safetensors has one name for each"
    )
    checkpoint = opened(tmp_path, {"m": {0: torch.ones(2), "0": torch.zeros(2)}})
    assert why_not(tmp_path, convert(checkpoint, TORCH, layer="m"), TORCH) == (
        "2 two tensors print as '0', and a state_dict has one name for each"
    )


def test_dtypes_and_repeating_tensors_are_a_loss_too(tmp_path: Path) -> None:
    before = {"c": torch.ones(2, dtype=torch.complex128), "wide": torch.ones(1).expand(3), "w": torch.ones(2)}
    checkpoint = opened(tmp_path, before)
    assert refused(UsageError, checkpoint, SAFE) == (
        "safetensors cannot hold c (complex128, which safetensors has no word for), "
        "wide (repeats a few values over its shape: stride 0); "
        "accept the loss with --lossy, or take one part with --layer"
    )
    assert list(carried(tmp_path, checkpoint, "safetensors", lossy=True)) == ["w"]


def test_what_torch_has_no_dtype_for_is_a_loss(tmp_path: Path) -> None:
    header = {
        "four": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]},
        "six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [3, 6]},
        "w": {"dtype": "U8", "shape": [2], "data_offsets": [6, 8]},
    }
    text = json.dumps(header).encode()
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    checkpoint = opening.open(os.fspath(tmp_path / "x.safetensors"))
    assert refused(UsageError, checkpoint, TORCH) == (
        "torch-zip cannot hold four (float4_e2m1fn with an odd last dimension, and torch has pairs), "
        "six (float6_e2m3fn, which torch has no dtype for); "
        "accept the loss with --lossy, or take one part with --layer"
    )
    assert list(carried(tmp_path, checkpoint, "torch-zip", lossy=True)) == ["w"]


@pytest.mark.parametrize(
    ("layer", "names", "notes"),
    [
        ("model", list(mlp().state_dict()), ()),
        ("model.0", ["weight", "bias"], ()),
        ("0", ["weight", "bias"], ("selected 'model.0'",)),
        ("[0][0]", ["weight", "bias"], ("selected 'model.0'",)),
        ("model.0.bias", ["bias"], ()),
        ("0.bias", ["bias"], ("selected 'model.0.bias'",)),
        ("[0][0][1]", ["bias"], ("selected 'model.0.bias'",)),
    ],
)
@pytest.mark.parametrize("to", ["safetensors", "torch-zip"])
def test_a_layer_becomes_the_root(
    tmp_path: Path, layer: str, names: list[str], notes: tuple[str, ...], to: str
) -> None:
    before = training()
    checkpoint = opened(tmp_path, before)
    assert convert(checkpoint, registry.named(to), layer=layer).notes[:-1] == notes
    after = carried(tmp_path, checkpoint, to, layer=layer)
    assert sorted(after) == sorted(names)
    full = (name if len(names) > 2 else f"0.{name}" for name in names)
    assert all(same(after[name], before["model"][path]) for name, path in zip(names, full, strict=True))


def test_one_of_two_that_print_alike(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, {0: torch.ones(2), "0": torch.zeros(2)})
    assert carried(tmp_path, checkpoint, "torch-zip", layer="[1]")["0"].tolist() == [0.0, 0.0]


def test_a_layer_of_a_module_keeps_its_classes_for_defaults(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    edit = convert(opened(tmp_path, net), TORCH, layer="0")
    assert {path: module.type for path, module in edit.checkpoint.modules.items()} == {
        "": "Sequential",
        "0": "Linear",
        "1": "BatchNorm1d",
    }


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    assert refused(NoMatch, opened(tmp_path, mlp().state_dict()), SAFE, layer="0.wieght") == (
        "no parameter or layer matches '0.wieght'; nearest: 0.weight, 2.weight, 3.weight"
    )
    assert refused(NoMatch, opened(tmp_path, training()), SAFE, layer="nope") == (
        "no parameter or layer matches 'nope'; 'paramctl ls' lists them all"
    )


def test_views_that_overlap_part_and_that_is_said(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    torch.save({"whole": whole, "part": whole[2:], "own": torch.ones(2)}, tmp_path / "x.pt")
    made = convert(opening.open(str(tmp_path / "x.pt")), registry.named("safetensors"))
    assert made.notes == ("3 tensors as safetensors", "whole, part overlapped, and have bytes of their own now")


def test_a_tensor_that_is_larger_than_a_shard_may_be(tmp_path: Path) -> None:
    torch.save({"small": torch.ones(2), "large": torch.ones(9)}, tmp_path / "x.pt")
    edit = convert(opening.open(str(tmp_path / "x.pt")), registry.named("sharded"), division=division_for("d/", None, "10B"))
    assert edit.notes == ("2 tensors in 2 safetensors files and an index", "large is larger than that: tensors are never split")
