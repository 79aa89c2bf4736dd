"""TorchScript from before torch 1.4, made record by record: no torch of today reads or writes it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import listing, raw, record_of, records, refused, save, source_in_memory, sums_hold, ties
from old_torch import save_script, script_archive, script_records
from torch import nn

from paramctl.check.check import check
from paramctl.edit.convert import convert
from paramctl.edit.init import init
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.values.arrays import read_values
from paramctl.values.quantized import dequantized


class Net(nn.Module):
    """Layers in layers, a tie, views of one storage, every dtype of that time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.last = nn.Linear(4, 3)
        self.last.weight = self.first[0].weight  # type: ignore[assignment]
        both = torch.arange(12.0).reshape(3, 4)
        self.register_buffer("left", both[:, :2])
        self.register_buffer("right", both.t()[1:])
        self.alone = nn.Parameter(torch.randn(2), requires_grad=False)
        for i, dtype in enumerate((torch.float64, torch.float16, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32)):
            self.register_buffer(f"b{i}", torch.tensor([0, 1, 3]).to(dtype))
        self.register_buffer("none", torch.empty(0, 2))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def path(net: Net, tmp_path: Path) -> Path:
    return save_script(net, tmp_path / "x.pt")


def bytes_of(path: Path) -> dict[str, bytes]:
    checkpoint = listing(path)
    return {param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params}


def model_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(records(path)["x/model.json"])
    return found


def test_it_lists_what_the_state_dict_had(net: Net, path: Path) -> None:
    checkpoint = listing(path)
    assert checkpoint.format == "torchscript-json"
    assert [(p.path, p.dtype.name, p.shape, p.strides) for p in checkpoint.params] == [
        (name, str(value.dtype).removeprefix("torch."), tuple(value.shape), value.stride())
        for name, value in net.state_dict().items()
    ]
    assert bytes_of(path) == {name: raw(value) for name, value in net.state_dict().items()}
    named = dict(net.named_parameters(remove_duplicate=False))
    assert {p.path for p in checkpoint.params if p.kind == "parameter"} == set(named)
    assert {p.path: p.requires_grad for p in checkpoint.params if p.path in named} == {
        name: value.requires_grad for name, value in named.items()
    }
    assert {(p.kind, p.device) for p in checkpoint.params} == {("parameter", "cpu"), ("buffer", "cpu")}
    assert ties(checkpoint) == [["first.0.weight", "last.weight"]]


def test_values_change_and_nothing_else(path: Path, tmp_path: Path) -> None:
    before = bytes_of(path)
    made = init(listing(path), ["first"], ["constant:2"], seed=1).checkpoint
    made = set_values(made, "alone[0] = 50", "b2 = 0").checkpoint
    save(made, tmp_path / "y.pt")
    after = bytes_of(tmp_path / "y.pt")
    assert {name for name in before if before[name] != after[name]} == {
        "first.0.weight", "last.weight", "first.0.bias", "alone", "b2"
    }  # fmt: skip
    old, new = records(path), records(tmp_path / "y.pt")
    assert list(old) == list(new) and sums_hold(tmp_path / "y.pt")
    assert sum(old[name] != new[name] for name in old) == 4  # one of them is that of two
    in_place = listing(path)
    saving.save(set_values(in_place, "alone = 3").checkpoint, targets.InPlace(in_place.sources[0], True))
    assert {name for name, data in bytes_of(path).items() if data != before[name]} == {"alone"}


def test_ties_are_lines_at_the_end_of_the_table(path: Path, tmp_path: Path) -> None:
    lines = model_of(path)["tensors"]
    one = save(tie(listing(path), "first.0.bias", "last.bias").checkpoint, tmp_path / "one.pt")
    assert ties(listing(one)) == [["first.0.weight", "last.weight"], ["first.0.bias", "last.bias"]]
    assert bytes_of(one) == {**bytes_of(path), "last.bias": bytes_of(path)["first.0.bias"]}
    assert model_of(one)["tensors"][:-1] == lines
    edit = untie(listing(one), "last.weight")
    two = save(edit.checkpoint, tmp_path / "two.pt")
    assert ties(listing(two)) == [["first.0.bias", "last.bias"]] and sums_hold(two)
    three = save(set_values(listing(two), "last.weight = 9").checkpoint, tmp_path / "three.pt")
    assert bytes_of(three) == {**bytes_of(two), "last.weight": raw(torch.full((3, 4), 9.0))}


def test_what_stays_in_the_table_is_said(path: Path) -> None:
    made = tie(listing(path), "first.0.bias", "last.bias").checkpoint
    (line,) = registry.BY_NAME["torchscript-json"].unlisted_tensors(made)
    number = line.removeprefix("tensor ").removesuffix(" of model.json")
    assert model_of(path)["tensors"][int(number)]["dims"] == ["3"]


@pytest.mark.parametrize("name", ["safetensors", "torch-zip"])
def test_a_conversion_takes_the_tensors(net: Net, path: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    saving.save(convert(listing(path), registry.named(name), lossy=True).checkpoint, targets.NewFile(out), registry.named(name))
    assert bytes_of(out) == {key: raw(value) for key, value in net.state_dict().items()}


def test_nothing_becomes_it(path: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    form = registry.named("torchscript-json")
    message = refused(UsageError, lambda: convert(listing(tmp_path / "x.pth"), form))
    assert message.startswith("a TorchScript archive holds code too, and cannot be made of tensors alone; ")


@pytest.mark.parametrize("dtype", [torch.qint8, torch.quint8, torch.qint32])
def test_quantized_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    module = nn.Module()
    with warnings.catch_warnings(action="ignore"):
        values = torch.quantize_per_tensor(torch.tensor([[-1.0, 0.5], [2.0, 3.0]]), 0.5, 2, dtype)
    module.register_buffer("w", values)
    checkpoint = listing(save_script(module, tmp_path / "x.pt"))
    (param,) = checkpoint.params
    assert (param.dtype.name, param.layout) == (str(dtype).removeprefix("torch."), "quantized")
    integers = read_values(checkpoint, param)
    index = tuple(slice(0, n) for n in param.shape)
    assert dequantized(checkpoint, param, integers, index).tolist() == values.dequantize().tolist()


def test_check(path: Path) -> None:
    report = check(str(path))
    assert {finding.level for finding in report.findings} == {"note"}
    assert [name for name, _ in report.safety] == ["x/attributes.pkl"]
    key = next(param.storage for param in listing(path).params if param.path == "alone")
    data = bytearray(path.read_bytes())
    data[record_of(path, f"/{key}").payload] ^= 1
    path.write_bytes(data)
    (finding,) = (each for each in check(str(path), ["integrity"]).findings if each.level == "error")
    assert (finding.path, finding.rule) == ("alone", "checksum")


def changed(edit: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    """A change of what model.json says."""

    def change(held: dict[str, bytes]) -> None:
        model = json.loads(held["model.json"])
        edit(model)
        held["model.json"] = json.dumps(model).encode()

    return change


def line(**entries: object) -> Callable[[dict[str, bytes]], None]:
    """A change of what the table says of the first tensor."""
    return changed(lambda model: model["tensors"][0].update(entries))


def nested(levels: int) -> dict[str, Any]:
    module: dict[str, Any] = {"name": "m"}
    for _ in range(levels):
        module = {"name": "m", "submodules": [module]}
    return module


DAMAGED = {
    "no JSON": (lambda held: held.update({"model.json": b"{"}), "record model.json is not JSON: "),
    "a list": (lambda held: held.update({"model.json": b"[]"}), "record model.json is not described by an object"),
    "a key twice": (lambda held: held.update({"model.json": b'{"a": 1, "a": 2}'}), "record model.json names 'a' twice"),
    "no module": (changed(lambda model: model.pop("mainModule")), "record model.json is not described by an object"),
    "tensors that are none": (changed(lambda model: model.update(tensors={})), "record model.json has tensors that are no list"),
    "no tensors": (changed(lambda model: model.pop("tensors")), "tensor 'w' has the number 0, and there are 0 tensors"),
    "params that are none": (
        changed(lambda model: model["mainModule"].update(parameters=3)), "the module has parameters that are no list"),
    "a param without a name": (
        changed(lambda model: model["mainModule"]["parameters"][0].pop("name")), "the module holds something without a name"),
    "another number": (
        changed(lambda model: model["mainModule"]["parameters"][0].update(tensorId="-1")), "tensor 'w' has -1 where a count"),
    "a sub-module that is none": (
        changed(lambda model: model["mainModule"].update(submodules=[1])), "the module is not described by an object"),
    "modules too deep": (changed(lambda model: model.update(mainModule=nested(101))), "has modules that are nested too deep"),
    "no record": (lambda held: held.pop("tensors/0"), "tensor 'w' lies in record 'tensors/0', which the archive does not have for tensors"),
    "a record that is no name": (line(data={"key": 3}), "tensor 'w' lies in record 3, which the archive does not have for tensors"),
    "no data": (line(data=None), "tensor 'w' is not described by an object"),
    "another dtype": (line(dataType="STRING"), "tensor 'w' has the unknown dtype 'STRING'"),
    "a short record": (lambda held: held.update({"tensors/0": b"123"}), "tensor 'w' reaches element 2 of a record of 3 bytes"),
    "an offset behind it": (line(offset="1"), "tensor 'w' reaches element 3 of a record of 8 bytes"),
    "strides that are missing": (line(strides=[]), "tensor 'w' has 1 sizes and 0 strides"),
    "a negative size": (line(dims=["-2"]), "tensor 'w' has a shape that is not a list of sizes"),
    "a size that is true": (line(dims=[True]), "tensor 'w' has a shape that is not a list of sizes"),
    "a large shape": (line(dims=["9" * 18] * 2, strides=["0", "0"]), "tensor 'w' has a shape too large for any file"),
    "many dimensions": (line(dims=["1"] * 65, strides=["1"] * 65), "tensor 'w' has 65 dimensions, over the limit of 64"),
    "a zero point beyond 32 bits": (
        line(isQuantized=True, dataType="INT8", scale=1.0, zeroPoint=str(2**40)),
        "tensor 'w' has a zero point that is no number of 32 bits"),
    "a record of code": (line(data={"key": "code/Net.py"}), "tensor 'w' lies in record 'code/Net.py', which the archive does not"),
    "a scale beyond floats": (line(isQuantized=True, dataType="INT8", scale=10**400), "tensor 'w' is quantized in a way that no"),
    "quantized floats": (line(isQuantized=True), "tensor 'w' is quantized in a way that no tensor is"),
    "another version": (lambda held: held.update({".data/version": b"99"}), "says version b'99', and torch reads 1 to 10"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", DAMAGED.values(), ids=DAMAGED)
def test_damage(tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str) -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(2))
    held = script_records(module)
    change(held)
    path = script_archive(tmp_path / "x.pt", held)
    assert refused(FormatError, listing, path).startswith(f"{path}: {message}")


@pytest.mark.parametrize("entries", [{"data": {"key": "tensors/9"}}, {"dims": "bad"}, {"dims": ["100"]}])
def test_check_looks_at_constants_too(tmp_path: Path, entries: dict[str, Any]) -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(2))
    held = script_records(module)
    changed(lambda model: model["tensors"][1].update(entries))(held)
    (finding,) = (each for each in check(str(script_archive(tmp_path / "x.pt", held))).findings if each.level == "error")
    assert finding.what.startswith("tensor '1 of model.json' ")


def test_integers_may_be_numbers_and_zeros_missing(tmp_path: Path) -> None:
    module = nn.Module()
    module.w = nn.Parameter(torch.ones(2))
    held = script_records(module)
    model = json.loads(held["model.json"])
    model["tensors"][0] = {"dims": [2], "strides": [1], "dataType": "FLOAT", "data": {"key": "tensors/0"}}
    model["mainModule"]["parameters"] = [{"name": "w"}]
    held["model.json"] = json.dumps(model).encode()
    (param,) = listing(script_archive(tmp_path / "x.pt", held)).params
    assert (param.path, param.kind, param.shape, param.requires_grad, param.device) == ("w", "parameter", (2,), False, None)


def test_torch_1_0_0_had_no_zip_archives() -> None:
    message = "is TorchScript as torch 1.0.0 wrote it; this version does not read it"
    assert refused(Unsupported, registry.read, source_in_memory(b"PYTORCH1" + bytes(56))) == message
