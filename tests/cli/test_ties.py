"""`paramctl ties`: groups of ties, and overlapping views."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    weight, bias, storage = torch.zeros(3, 3), torch.zeros(3), torch.zeros(10)
    state = {f"{i}.{name}": value for i in (2, 4, 6) for name, value in (("weight", weight), ("bias", bias))}
    path = tmp_path / "x.pt"
    torch.save({**state, "a": storage[:6], "b\x1b": storage[4:], "other": torch.zeros(3)}, path)
    return path


def test_a_line_a_group(run: Run, shared: Path) -> None:
    assert run("ties", shared) == (
        0, "2.weight = 4.weight = 6.weight\n2.bias = 4.bias = 6.bias\na ~ b\\x1b overlaps\n", ""
    )  # fmt: skip


def test_json(run: Run, shared: Path) -> None:
    assert json.loads(run("ties", shared, "--json")[1]) == {
        "schema": 1,
        "groups": [["2.weight", "4.weight", "6.weight"], ["2.bias", "4.bias", "6.bias"]],
        "overlaps": [["a", "b\x1b"]],
    }


def test_none_is_fine(run: Run, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "x.pt")
    assert run("ties", tmp_path / "x.pt") == (0, "", "no ties\n")
    assert json.loads(run("ties", tmp_path / "x.pt", "--json")[1]) == {
        "schema": 1,
        "groups": [],
        "overlaps": [],
    }
