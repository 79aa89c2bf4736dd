"""`tie` and `untie`: what becomes one, what is refused, and that torch and safetensors see it."""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn
from verb_files import changed, mlp, opened, same, saved, written, written_module

from paramctl.edit.report import Change
from paramctl.edit.set import set as set_values
from paramctl.edit.tie import tie, untie
from paramctl.errors import NoMatch, ParamctlError, UsageError
from paramctl.files import targets
from paramctl.formats import opening, registry, saving


def net() -> nn.Sequential:
    """Return a model whose layers 0, 2 and 4 are alike, and another layer."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 1))


def refused(kind: type[ParamctlError], verb: Any, *args: Any) -> str:
    with pytest.raises(kind) as caught:
        verb(*args)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_layers_become_the_first(tmp_path: Path, name: str) -> None:
    before = net().state_dict()
    edit = tie(opened(tmp_path, before, name), "2", "4", "0")
    assert sorted(edit.changed) == [
        Change("0.bias", "tied to 2.bias"),
        Change("0.weight", "tied to 2.weight"),
        Change("4.bias", "tied to 2.bias"),
        Change("4.weight", "tied to 2.weight"),
    ]
    assert (edit.notes, edit.kept) == ((), ())
    after = written(tmp_path, edit)
    if name == "x.safetensors":
        with safetensors.safe_open(tmp_path / "out.safetensors", "pt") as file:
            aliases = file.metadata()
        assert aliases == {"format": "pt", **{f"{n}.{p}": f"0.{p}" for n in (2, 4) for p in ("weight", "bias")}}
        after = {**after, **{alias: after[kept] for alias, kept in aliases.items() if alias != "format"}}
        after = {path: after[path] for path in before}
    else:
        assert len({after[f"{n}.weight"].data_ptr() for n in (0, 2, 4)}) == 1
    assert changed(before, after) == {"0.weight", "0.bias", "4.weight", "4.bias"}
    assert all(same(after[f"{n}.weight"], before["2.weight"]) for n in (0, 2, 4))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_storage_that_nobody_uses_any_more_is_not_written(tmp_path: Path, name: str) -> None:
    before = {"a": torch.zeros(1000), "b": torch.ones(1000), "c": torch.full((1000,), 2.0)}
    path = saved(tmp_path, before, name)
    written(tmp_path, tie(opening.open(os.fspath(path)), "a", "b"))
    out = (tmp_path / "out").with_suffix(path.suffix).read_bytes()
    assert before["b"].numpy().tobytes() not in out
    assert before["a"].numpy().tobytes() in out
    assert -4200 < len(out) - path.stat().st_size < -3000


def test_single_params_by_path_or_position(tmp_path: Path) -> None:
    before = net().state_dict()
    checkpoint = opened(tmp_path, before)
    edit = tie(checkpoint, "0.weight", "[2][0]")
    assert edit.changed == (Change("4.weight", "tied to 0.weight"),)
    after = written(tmp_path, edit)
    assert after["0.weight"].data_ptr() == after["4.weight"].data_ptr()
    assert changed(before, after) == {"4.weight"}
    assert tie(checkpoint, "[0]", "[1]").changed == tie(checkpoint, "0", "2").changed


def test_inside_the_one_model_and_moments_are_stale(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    edit = tie(opened(tmp_path, {"model": model.state_dict(), "optim": optimizer.state_dict()}), "0", "2")
    assert [change.path for change in edit.changed] == ["model.2.weight", "model.2.bias"]
    assert edit.notes == (
        "the optimizer state in this file still belongs to the old values of model.2.weight, model.2.bias;"
        " --reset-optimizer resets it",
    )
    after = written(tmp_path, edit)
    assert after["model"]["0.bias"].data_ptr() == after["model"]["2.bias"].data_ptr()
    assert after["optim"]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_strided_param_passes_on_its_strides(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(4, 3)
    edit = tie(opened(tmp_path, {"a": base.t(), "b": torch.zeros(3, 4), "c": base}), "a", "b")
    after = written(tmp_path, edit)
    assert same(after["b"], base.t())
    assert after["b"].stride() == (1, 3)
    assert after["b"].data_ptr() == after["a"].data_ptr() == after["c"].data_ptr()


def test_tying_twice_is_tying_once(tmp_path: Path) -> None:
    once = tie(opened(tmp_path, net().state_dict()), "2", "4")
    twice = tie(once.checkpoint, "2", "4")
    assert (twice.changed, twice.notes) == ((), ("they are tied already",))
    saving.save(once.checkpoint, targets.NewFile(tmp_path / "1.pt"))
    saving.save(twice.checkpoint, targets.NewFile(tmp_path / "2.pt"))
    assert (tmp_path / "1.pt").read_bytes() == (tmp_path / "2.pt").read_bytes()


def test_empty_params_have_nothing_to_share(tmp_path: Path) -> None:
    for name in ("x.pt", "x.safetensors"):
        checkpoint = opened(tmp_path, {"a": torch.empty(0, 3), "b": torch.empty(0, 3)}, name)
        edit = tie(checkpoint, "a", "b")
        assert (edit.changed, edit.notes) == ((), ("they are tied already",))
        assert sorted(written(tmp_path, edit)) == ["a", "b"]


@pytest.mark.parametrize(
    ("paths", "kind", "message"),
    [
        (["2"], UsageError, "tie needs at least two layers or params; name the one to keep first"),
        (["2", "9"], NoMatch, "no parameter or layer matches '9'; 'paramctl ls' lists them all"),
        (["2", "0.weight"], UsageError, "cannot tie: 2 is a layer and 0.weight a single parameter"),
        (["0.weight", "0.bias"], UsageError,
         "cannot tie: 0.weight is float32 8 × 4 and 0.bias is float32 8"),
        (["0", "3"], UsageError,
         "cannot tie: 0.weight is float32 8 × 4 and 3.weight is float32 2 × 8; "
         "0.bias is float32 8 and 3.bias is float32 2"),
        (["0", "2"], UsageError,
         "cannot tie: 2 has running_mean and 0 has not; 2 has running_var and 0 has not; 2 has num_batches_tracked and "
         "0 has not; 0.weight is float32 8 × 4 and 2.weight is float32 8"),
        (["0", "half", "3"], UsageError,
         "cannot tie: 0 has bias and half has not; 0.weight is float32 8 × 4 and half.weight is float16 8 × 4; "
         "0.weight is float32 8 × 4 and 3.weight is float32 2 × 8; 0.bias is float32 8 and 3.bias is float32 2"),
        (["sparse", "half.weight"], UsageError,
         "cannot tie: sparse is a sparse_coo tensor; sparse is float32 8 × 4 and half.weight is float16 8 × 4"),
    ],
)  # fmt: skip
def test_every_mismatch_in_one_error(
    tmp_path: Path, paths: list[str], kind: type[ParamctlError], message: str
) -> None:
    made = {**mlp().state_dict(), "half.weight": torch.ones(8, 4).half(), "sparse": torch.ones(8, 4).to_sparse()}
    assert refused(kind, tie, opened(tmp_path, made), *paths) == message


def test_paths_that_print_alike(tmp_path: Path) -> None:
    made = {0: torch.ones(2), "0": torch.zeros(2), "a.b": torch.ones(2), "a": {"b": torch.ones(2)}}
    checkpoint = opened(tmp_path, made)
    assert refused(UsageError, tie, checkpoint, "0", "a.b") == (
        "several entries print as '0'; name one by its position: [0], [1]"
    )
    edit = tie(checkpoint, "[0]", "[1]")
    assert edit.changed == (Change("0#2", "tied to 0"),)
    after = written(tmp_path, edit)
    assert after[0].data_ptr() == after["0"].data_ptr()


NAMES = ["[bold]x[/bold]", "a\x1b[31mb", "with space", "a/b", "w[0]", "n = 1", "a.b c.d"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["x.pt", "x.safetensors"])
def test_names_are_data(tmp_path: Path, name: str, form: str) -> None:
    edit = tie(opened(tmp_path, {name: torch.ones(2), "b": torch.zeros(2)}, form), name, "b")
    assert edit.changed == (Change("b", f"tied to {name}"),)
    with_tie = opening.open(os.fspath(_save(edit.checkpoint, tmp_path)))
    assert [sorted(with_tie.labels[i] for i in group) for group in with_tie.groups()] == [sorted([name, "b"])]


def _save(checkpoint: Any, folder: Path) -> Path:
    path = folder / f"out{registry.named(checkpoint.format).SUFFIXES[0]}"
    saving.save(checkpoint, targets.NewFile(path, True))
    return path


@pytest.mark.parametrize("name", ["format", "note"])
def test_a_name_that_the_metadata_uses_is_never_an_alias(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2), name: torch.zeros(2)}, path, {"format": "pt", "note": "mine"})
    edit = tie(opening.open(os.fspath(path)), "a", name)
    message = refused(UsageError, written, tmp_path, edit)
    assert message == (
        f"'{name}' cannot be tied: __metadata__ uses that name for something else; "
        "tie the others to it, or keep it untied"
    )
    assert [found.name for found in tmp_path.iterdir()] == ["x.safetensors"]


def test_in_a_whole_module_tied_params_are_one_object(tmp_path: Path) -> None:
    before = net()
    after = written_module(tmp_path, tie(opened(tmp_path, before), "2", "4"))
    assert after[2].weight is after[4].weight  # type: ignore[index]
    assert after[2].bias is after[4].bias  # type: ignore[index]
    assert after[0].weight is not after[2].weight  # type: ignore[index]
    assert same(after[4].weight, before[2].weight)  # type: ignore[index,arg-type]
    assert len(list(after.parameters())) == 6
    after(torch.ones(1, 3)).sum().backward()


def test_in_a_module_that_is_used_twice_one_use_can_be_tied_elsewhere(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    before = nn.Sequential(shared, nn.Linear(3, 3), shared)
    after = written_module(tmp_path, tie(opened(tmp_path, before), "1", "2"))
    assert after[1].weight is after[2].weight  # type: ignore[index]
    assert after[0].weight is not after[2].weight  # type: ignore[index]
    assert same(after[0].weight, shared.weight)  # type: ignore[index]


def test_the_flat_weights_of_an_lstm_follow(tmp_path: Path) -> None:
    before = nn.Sequential(nn.LSTM(3, 3), nn.LSTM(3, 3))
    after = written_module(tmp_path, tie(opened(tmp_path, before), "0", "1"))
    first, second = after[0], after[1]  # type: ignore[index]
    for one, other, name in zip(first._flat_weights, second._flat_weights, first._flat_weights_names, strict=True):
        assert one is other
        assert getattr(second, name) is one
    assert same(second(torch.ones(2, 1, 3))[0], before[0](torch.ones(2, 1, 3))[0])


class Remembering(nn.Module):
    """A module that holds its parameters once more in plain attributes of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2, bias=False)
        self.c = nn.Parameter(torch.zeros(2, 2))
        self.d = nn.Parameter(torch.ones(2, 2))
        self.kept = {"deep": [[(self.d, 1)]], "ordered": OrderedDict(x=self.d)}
        self.inner = (self.a.weight, [self.b.weight])


def test_plain_attributes_follow_wherever_they_hold_the_parameter(tmp_path: Path) -> None:
    after = written_module(tmp_path, tie(opened(tmp_path, Remembering()), "c", "d"))
    assert after.d is after.c
    assert after.kept["deep"][0][0][0] is after.c  # type: ignore[index]
    assert after.kept["ordered"]["x"] is after.c  # type: ignore[index]


def test_attributes_of_the_modules_around_follow_too(tmp_path: Path) -> None:
    after = written_module(tmp_path, tie(opened(tmp_path, Remembering()), "a", "b"))
    assert after.b.weight is after.a.weight  # type: ignore[union-attr]
    assert after.inner[0] is after.inner[1][0] is after.a.weight  # type: ignore[index,union-attr]


def test_attributes_of_a_module_used_twice_are_copied_for_the_use_that_changes(tmp_path: Path) -> None:
    shared = Remembering()
    after = written_module(tmp_path, tie(opened(tmp_path, nn.Sequential(shared, shared)), "1.c", "1.d"))
    assert after[1].kept["deep"][0][0][0] is after[1].d is after[1].c  # type: ignore[index]
    assert after[0].kept["deep"][0][0][0] is after[0].d  # type: ignore[index]
    assert same(after[0].d, shared.d)  # type: ignore[index]


def test_untying_a_module_gives_each_its_own_object(tmp_path: Path) -> None:
    shared = nn.Linear(3, 3)
    before = nn.Sequential(shared, shared, nn.LSTM(2, 2))
    edit = untie(opened(tmp_path, before), "1")
    assert edit.changed == (
        Change("1.weight", "untied from 0.weight"),
        Change("1.bias", "untied from 0.bias"),
    )
    after = written_module(tmp_path, edit)
    assert after[0].weight is not after[1].weight  # type: ignore[index]
    assert after[0].weight.data_ptr() != after[1].weight.data_ptr()  # type: ignore[index]
    assert all(same(getattr(after[i], n), getattr(shared, n)) for i in (0, 1) for n in ("weight", "bias"))  # type: ignore[index]
    assert after[2]._flat_weights[0] is after[2].weight_ih_l0  # type: ignore[index]


def tied() -> dict[str, torch.Tensor]:
    shared = torch.arange(6.0).reshape(2, 3)
    return {"a": shared, "b": torch.ones(2), "c": shared, "d": shared}


@pytest.mark.parametrize(
    ("selection", "parted", "changes"),
    [
        (["a"], {"a"}, [("a", "untied from c, d")]),
        (["d"], {"d"}, [("d", "untied from a, c")]),
        (["c", "d"], {"c", "d"}, [("c", "untied from a, d"), ("d", "untied from a, c")]),
        (["**"], {"c", "d", "a"}, [("c", "untied from a, d"), ("d", "untied from a, c")]),
    ],
)
def test_untie_gives_each_its_own_copy(
    tmp_path: Path, selection: list[str], parted: set[str], changes: list[tuple[str, str]]
) -> None:
    before = tied()
    edit = untie(opened(tmp_path, before), *selection)
    assert edit.changed == tuple(Change(path, how) for path, how in changes)
    after = written(tmp_path, edit)
    assert changed(before, after) == set()
    others = {"a", "c", "d"} - parted
    assert len({after[path].data_ptr() for path in others}) == min(len(others), 1)
    assert len({after[path].data_ptr() for path in parted | set(list(others)[:1])}) == len(parted) + min(len(others), 1)


def test_untie_in_safetensors_writes_every_tensor(tmp_path: Path) -> None:
    before = {path: tensor.clone() for path, tensor in tied().items()}
    one = tie(opened(tmp_path, before, "x.safetensors"), "a", "c", "d")
    path = _save(one.checkpoint, tmp_path)
    edit = untie(opening.open(os.fspath(path)), "**")
    after = written(tmp_path, edit)
    assert sorted(after) == ["a", "b", "c", "d"]
    assert all(same(after[name], before[name]) for name in before)


def test_what_merely_overlaps_is_parted_too_and_what_only_lies_beside_is_not(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(4, 3)
    before = {"whole": base, "row": base[1], "left": torch.zeros(2)}
    edit = untie(opened(tmp_path, before), "row")
    assert edit.changed == (Change("row", "untied from whole"),)
    after = written(tmp_path, set_values(edit.checkpoint, "whole = 5"))
    assert same(after["row"], base[1])
    slices = {"top": base[:2], "bottom": base[2:]}
    edit = untie(opened(tmp_path, slices), "**")
    assert (edit.changed, edit.notes) == ((), ("nothing selected shares its bytes with other params",))


def test_untie_what_does_not_exist(tmp_path: Path) -> None:
    assert refused(NoMatch, untie, opened(tmp_path, tied()), "x") == (
        "no parameter or layer matches 'x'; 'paramctl ls' lists them all"
    )


def test_untie_undoes_tie(tmp_path: Path) -> None:
    before = net().state_dict()
    edit = untie(tie(opened(tmp_path, before), "2", "4").checkpoint, "4")
    after = written(tmp_path, set_values(edit.checkpoint, "2.weight += 1"))
    assert same(after["4.weight"], before["2.weight"])
    assert same(after["2.weight"], before["2.weight"] + 1)
