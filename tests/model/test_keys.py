"""Objects within objects: what one format nests is nested in the next, as torch loads it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from helpers import listing
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from paramctl.edit.convert import convert
from paramctl.files import targets
from paramctl.formats import registry, saving
from paramctl.model.keys import InTuple, Position, below, nested, path_of

names = st.text("ab.", max_size=3) | st.integers(0, 3)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text("xy", max_size=2)
tensors = st.integers(0, 3).map(lambda n: torch.full((n,), float(n)))
objects = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def told(found: Any) -> Any:
    """The same, with the values of tensors, so that two can be compared."""
    if isinstance(found, dict):
        return {key: told(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return type(found)(map(told, found))
    return ("tensor", found.tolist()) if isinstance(found, torch.Tensor) else found


def converted(saved: object, folder: Path, form: str, **how: Any) -> Any:
    """What torch loads when a file of the old format becomes one of another."""
    torch.save(saved, folder / "x.pt", _use_new_zipfile_serialization=False)
    kind = registry.named(form)
    checkpoint = convert(listing(folder / "x.pt"), kind, **how).checkpoint
    saving.save(checkpoint, targets.NewFile(folder / "y.pt", True), kind)
    return torch.load(folder / "y.pt", weights_only=True)


@given(st.dictionaries(names, objects, min_size=1, max_size=3))
@settings(max_examples=200)
def test_what_was_nested_is_nested_again(saved: dict[Any, Any]) -> None:
    with TemporaryDirectory() as folder:
        torch.save(saved, Path(folder) / "z.pt")
        paths = [entry.path for entry in listing(Path(folder) / "z.pt").entries]
        assume(len(set(paths)) == len(paths))  # two that print alike are refused
        assert told(converted(saved, Path(folder), "torch-zip")) == told(saved)


def test_a_state_dict_stays_an_ordered_one_and_a_list_a_list(tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()
    assert type(converted(state, tmp_path, "torch-zip")) is type(state)
    assert told(converted([torch.ones(1), {"a": torch.zeros(2)}], tmp_path, "torch-zip")) == told(
        [torch.ones(1), {"a": torch.zeros(2)}]
    )


def test_a_part_keeps_what_is_nested_in_it(tmp_path: Path) -> None:
    saved = {"run": {"model": {"0.weight": torch.ones(2)}, "step": 3}, "other": 1}
    assert told(converted(saved, tmp_path, "torch-zip", layer="run")) == told(saved["run"])
    assert told(converted(saved, tmp_path, "torch-zip", layer="run.model")) == {"0.weight": ("tensor", [1, 1])}
    assert told(converted(saved, tmp_path, "torch-zip", layer="run.model.0")) == {"weight": ("tensor", [1, 1])}


def test_a_tied_param_stays_tied_wherever_it_lies(tmp_path: Path) -> None:
    weight = torch.ones(2)
    found = converted({"a": {"w": weight}, "b": [weight], "n": 1}, tmp_path, "torch-zip")
    assert found["a"]["w"].data_ptr() == found["b"][0].data_ptr()


def test_a_module_in_a_dict_becomes_its_state_dict(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    torch.save({"model": model, "step": 4}, tmp_path / "x.pt")
    kind = registry.named("torch-legacy")
    saving.save(convert(listing(tmp_path / "x.pt"), kind).checkpoint, targets.NewFile(tmp_path / "y.pt"), kind)
    found = torch.load(tmp_path / "y.pt", weights_only=True)
    assert told(found) == told({"model": dict(model.state_dict()), "step": 4})


def test_what_is_lost_leaves_its_place_in_a_list(tmp_path: Path) -> None:
    saved = {"v": [torch.ones(1), {int}, 5]}
    assert told(converted(saved, tmp_path, "torch-zip", lossy=True)) == {"v": [("tensor", [1]), None, 5]}


@pytest.mark.parametrize(
    "items",
    [
        [((), 1)],
        [(("a",), 1), (("a", "b"), 2)],
        [(("a", "b"), 1), (("a",), 2)],
        [(("a", Position(0)), 1), (("a", "b"), 2)],
        [(("a", Position(10**9)), 1)],
        [(("a",) * 200, 1)],
    ],
)
def test_keys_that_contradict_each_other_make_nothing(items: Any) -> None:
    assert nested(items) is None


def test_keys_and_paths() -> None:
    assert path_of(("a", Position(2), "b.c")) == "a.2.b.c"
    assert below(("a", Position(2), "b.c"), "a.2") == ("b.c",)
    assert below(("a", "b.c.d"), "a.b") == ("c.d",)
    assert below(("a",), "b") == ()
    assert nested([(("t", InTuple(1)), 2), (("t", InTuple(0)), 1)]) == {"t": (1, 2)}
