"""What could be tied: whole layers that are equal, the params that those leave, and the command for each."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import listing
from safetensors.torch import save_file

from paramctl.compare.duplicates import equal_params
from paramctl.compare.tie_candidates import Candidate, candidates, command
from paramctl.edit.tie import tie
from paramctl.model.checkpoint import Checkpoint


def saved(tmp_path: Path, obj: object) -> Checkpoint:
    torch.save(obj, tmp_path / "x.pt")
    return listing(tmp_path / "x.pt")


def found(checkpoint: Checkpoint) -> list[Candidate]:
    return candidates(checkpoint, equal_params(checkpoint, range(len(checkpoint.params))))


def layer(name: str, start: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.arange(start, start + 6).reshape(3, 2), f"{name}.bias": torch.arange(start, start + 3)}


def test_layers_that_are_equal(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {**layer("0", 2.0), **layer("2"), **layer("4"), **layer("6")})
    assert found(checkpoint) == [Candidate(("2", "4", "6"), ("2", "4", "6"), 72, False)]
    assert found(tie(checkpoint, "2", "4", "6").checkpoint) == []


def test_layers_that_differ_in_one_param_are_tied_by_tensor(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, {**layer("a"), **layer("b"), "b.bias": torch.zeros(3)})
    assert found(checkpoint) == [Candidate(("a.weight", "b.weight"), ("a.weight", "b.weight"), 24, False)]
    checkpoint = saved(tmp_path, {**layer("a"), **layer("b"), "b.scale": torch.ones(3)})
    assert [one.names for one in found(checkpoint)] == [("a.weight", "b.weight"), ("a.bias", "b.bias")]
    checkpoint = saved(tmp_path, {**layer("a"), **layer("b"), "b.deeper.w": torch.ones(3), "a.deeper.w": torch.zeros(3)})
    assert [one.names for one in found(checkpoint)] == [("a.weight", "b.weight"), ("a.bias", "b.bias")]


def test_what_equal_layers_leave(tmp_path: Path) -> None:
    state = {"first": torch.zeros(3), **layer("a"), **layer("b"), "a.bias": torch.zeros(3), "b.bias": torch.zeros(3)}
    assert found(saved(tmp_path, state)) == [
        Candidate(("a", "b"), ("a", "b"), 36, False),
        Candidate(("first", "a.bias"), ("first", "a.bias", "b.bias"), 12, True),
    ]


def test_constant_layers(tmp_path: Path) -> None:
    state = {f"{name}.{part}": torch.full((3,), value) for name in "ab" for part, value in (("weight", 1.0), ("bias", 0.0))}
    assert found(saved(tmp_path, state)) == [Candidate(("a", "b"), ("a", "b"), 24, True)]


def test_layers_that_are_tied_in_part(tmp_path: Path) -> None:
    state = {**layer("a"), **layer("b")}
    state["b.weight"] = state["a.weight"]
    assert found(saved(tmp_path, state)) == [Candidate(("a", "b"), ("a", "b"), 12, False)]
    state["b.bias"] = state["a.bias"]
    assert found(saved(tmp_path, state)) == []


def test_layers_are_not_torn_from_what_they_are_tied_to(tmp_path: Path) -> None:
    state = {**layer("a"), **layer("b")}
    state["other"] = state["b.weight"]
    names = [("a.weight", "b.weight", "other"), ("a.bias", "b.bias")]
    assert [one.names for one in found(saved(tmp_path, state))] == names
    state["other"] = state["a.weight"]
    assert [one.names for one in found(saved(tmp_path, state))] == [("a", "b")]


def test_what_is_tied_to_each_is_named_too(tmp_path: Path) -> None:
    one, other = torch.arange(4.0), torch.arange(4.0)
    checkpoint = saved(tmp_path, {"a": one, "a2": one, "b": other, "b2": other})
    assert found(checkpoint) == [Candidate(("a", "b"), ("a", "b", "b2"), 16, False)]


def test_names_that_are_not_theirs_alone_or_cannot_be_typed_are_positions(tmp_path: Path) -> None:
    values = torch.arange(4.0)
    checkpoint = saved(tmp_path, {"a.b": values, "a": {"b": values.clone()}, "c\n": values.clone()})
    (whole,) = found(checkpoint)
    assert (whole.paths, whole.names) == (("a.b", "a.b", "c\n"), ("[0][0]", "[0][1]", "[1]"))
    assert found(tie(checkpoint, *whole.names).checkpoint) == []
    layers = {**layer("a\n"), **layer("b")}
    assert [one.names for one in found(saved(tmp_path, layers))] == [("[0][0]", "b.weight"), ("[0][1]", "b.bias")]


def test_the_command() -> None:
    assert command("x.pt", Candidate(("a", "b"), ("a", "b"), 1, False), "y.pt") == ["paramctl", "tie", "x.pt", "a", "b", "-o", "y.pt"]
    assert command("-", Candidate(("a", "b"), ("a", "b"), 1, False), "y.pt") == ["paramctl", "tie", "-", "a", "b", "-o", "y.pt"]
    dashed = ["paramctl", "tie", "-o", "y.pt", "--", "x.pt", "a", "-b"]
    assert command("x.pt", Candidate(("a", "-b"), ("a", "-b"), 1, False), "y.pt") == dashed
    dashed = ["paramctl", "tie", "-o", "y.pt", "--", "-x.pt", "a", "b"]
    assert command("-x.pt", Candidate(("a", "b"), ("a", "b"), 1, False), "y.pt") == dashed


def test_many_equal_ones(tmp_path: Path) -> None:
    state = {f"layer.{i}.{name}": torch.ones(2) for i in range(10_000) for name in ("weight", "bias")}
    save_file(state, tmp_path / "x.safetensors")
    layers, rest = found(listing(tmp_path / "x.safetensors"))
    assert (len(layers.paths), layers.saved, layers.constant) == (10_000, 9_999 * 16, True)
    assert (rest.paths, len(rest.names)) == (("layer.0.bias", "layer.0.weight"), 10_001)
