"""Braces, slices, the root, and globs that name few: what a selection stands for, and what is said of it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from random import Random

import pytest
import torch

from paramctl.edit.convert import subtree
from paramctl.edit.set import set as set_values
from paramctl.errors import NoMatch, UsageError
from paramctl.formats import opening
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.selections.braces import expanded
from paramctl.model.selections.selection import select
from paramctl.values.arrays import read_values


def named(checkpoint: Checkpoint, *patterns: str) -> list[str]:
    """Return the paths that selections name."""
    return [checkpoint.params[i].path for i in select(checkpoint, patterns).indices]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """A model of 12 layers, and an optimizer's state beside it."""
    layers = {f"h.{i}.{name}.{kind}": torch.zeros(2) for i in range(12) for name in ("a", "b") for kind in ("weight", "bias")}
    made = {"head.weight": torch.zeros(2), **layers}
    made["head.bias"] = made["h.0.a.bias"]
    torch.save({"model": made, "optimizer": {"state": {0: {"m": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 3}, tmp_path / "x.pt")
    return opening.open(str(tmp_path / "x.pt"))


def braced(rng: Random, depth: int) -> str:
    """Return a random text with braces that bash and we expand."""
    parts = []
    for _ in range(rng.randrange(1, 4)):
        match rng.randrange(4 if depth else 1):
            case 1:
                parts.append("{" + ",".join(braced(rng, depth - 1) for _ in range(rng.randrange(2, 4))) + "}")
            case 2:
                parts.append("{" + f"{rng.randrange(-3, 12)}..{rng.randrange(-3, 12)}" + "}")
            case 3:
                parts.append("{" + f"{rng.randrange(12)}..{rng.randrange(12)}..{rng.randrange(1, 4)}" + "}")
            case _:
                parts.append(rng.choice(["a", "b1", "0.w", "x"]))
    return ".".join(parts)


def test_braces_are_bashs() -> None:
    rng = Random(7)
    texts = [text for text in (braced(rng, 2) for _ in range(300)) if text.count("{") < 5]
    script = "\n".join(f"printf '%s\\t' {text}; echo" for text in texts)
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    theirs = [line.split("\t")[:-1] for line in done.stdout.splitlines()]
    assert [expanded(text) for text in texts] == theirs


@pytest.mark.parametrize("text", ["a{b", "a}b", "{a}", "{}", "a{1..b}c", "w[0]", ""])
def test_other_braces_stand_for_themselves(text: str) -> None:
    assert expanded(text) == [text]


def test_braces_without_end_are_refused() -> None:
    with pytest.raises(UsageError, match="stands for more than 10,000 names"):
        expanded("{0..9}" * 5)
    with pytest.raises(UsageError, match="stands for more than 10,000 names"):
        expanded("{0..999999999}")


def test_braces_and_slices_select(checkpoint: Checkpoint) -> None:
    assert named(checkpoint, "h.{0,4,11}.a.weight") == [f"model.h.{i}.a.weight" for i in (0, 4, 11)]
    assert named(checkpoint, "h.{0..11..4}.*.bias") == [f"model.h.{i}.{n}.bias" for i in (0, 4, 8) for n in "ab"]
    assert named(checkpoint, "model.h[::4].a.weight") == [f"model.h.{i}.a.weight" for i in (0, 4, 8)]
    assert named(checkpoint, "h[-2:]") == [path for path in named(checkpoint, "h") if ".10." in path or ".11." in path]
    assert named(checkpoint, "h", "!h[1:]") == named(checkpoint, "h.0")
    assert named(checkpoint, ".") == [param.path for param in checkpoint.params]
    with pytest.raises(NoMatch, match=r"matches 'h.12.a.weight'"):
        named(checkpoint, "h.{0,12}.a.weight")
    with pytest.raises(NoMatch):
        named(checkpoint, "h[3:3]")


def test_a_glob_that_names_few_says_what_would_name_more(checkpoint: Checkpoint) -> None:
    assert select(checkpoint, ["*.weight"]).notes == ("'*.weight' names 1; '**.weight' would match 25",)
    with pytest.raises(NoMatch, match=r"'\*weight'; '\*\*weight' would match 25"):
        select(checkpoint, ["*weight"])
    for quiet in ("**.weight", "h.*.a.weight", "head", "re:.*weight"):
        assert select(checkpoint, [quiet]).notes == ()


def test_set_takes_patterns(checkpoint: Checkpoint) -> None:
    edit = set_values(checkpoint, "**.bias = 2", "h.{0,2}.a.weight[1] = 5", "**.bias *= 3")
    assert len(edit.changed) == 24 + 2 + 24
    values = {param.path: read_values(edit.checkpoint, param).tolist() for param in edit.checkpoint.params}
    assert {tuple(value) for path, value in values.items() if path.endswith("bias")} == {(6.0, 6.0)}
    assert values["model.h.2.a.weight"] == [0, 5]
    assert values["model.h.1.a.weight"] == [0, 0]
    with pytest.raises(NoMatch):
        set_values(checkpoint, "**.nope = 1")


def test_convert_takes_patterns(checkpoint: Checkpoint) -> None:
    rest, _ = subtree(checkpoint, "!optimizer")
    assert [entry.path for entry in rest.entries] == [entry.path for entry in checkpoint.entries if not entry.path.startswith("optimizer")]
    some, _ = subtree(checkpoint, "h.{0,1}.a.*")
    assert [entry.path for entry in some.entries] == [f"model.h.{i}.a.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
