"""`paramctl tie` and `paramctl untie` as people type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from helpers import without_plan
from verb_files import loaded, saved

Run = Callable[..., tuple[int, str, str]]


def net() -> dict[str, torch.Tensor]:
    shapes = {"weight": (2, 2), "bias": (2,)}
    return {f"{n}.{name}": torch.full(shape, float(n)) for n in (2, 4) for name, shape in shapes.items()}


def test_tie_and_untie(run: Run, tmp_path: Path) -> None:
    path, tied = saved(tmp_path, net(), "net.pt"), tmp_path / "tied.pt"
    code, out, err = run("tie", path, "2", "4", "-o", tied)
    assert (code, out) == (0, "")
    assert err.splitlines()[:2] == ["4.weight  tied to 2.weight", "4.bias    tied to 2.bias"]
    groups = json.loads(run("ties", tied, "--json")[1])["groups"]
    assert groups == [["2.weight", "4.weight"], ["2.bias", "4.bias"]]
    assert run("tree", tied)[1].splitlines()[-1] == "4 tensors (2 unique), 6 values, 24 B"
    code, out, err = run("untie", tied, "4", "-i")
    assert err.splitlines()[:2] == ["4.weight  untied from 2.weight", "4.bias    untied from 2.bias"]
    after = loaded(tied)
    assert len({tensor.data_ptr() for tensor in after.values()}) == 4
    assert after["4.weight"].tolist() == [[2.0, 2.0], [2.0, 2.0]]


def test_nothing_to_do_is_said(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, net(), "net.pt")
    assert without_plan(run("tie", path, "2", "2", "-n")[1]) == (
        "note: they are tied already\nnothing was written (dry run); …\n"
    )
    assert without_plan(run("untie", path, "**", "-n")[1]) == (
        "note: nothing selected shares its bytes with other params\nnothing was written (dry run); …\n"
    )


def test_the_report_for_programs(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, net(), "net.pt")
    report = json.loads(run("tie", path, "2.bias", "4.bias", "-n", "--json")[1])
    assert report.pop("plan")["method"] == "stream"
    assert report == {
        "schema": 1,
        "seed": None,
        "changed": [
            {"path": "4.bias", "how": "tied to 2.bias", "role": None, "fan_in": None, "fan_out": None, "also": []}
        ],
        "kept": [],
        "bytes_written": 0,
    }
