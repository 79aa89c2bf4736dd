"""Safety: what loading a file would run, every name at once, and what hides none of them."""

from __future__ import annotations

import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import records, refused, rezipped

from paramctl.check import check
from paramctl.errors import FormatError
from paramctl.findings import Finding


def found(path: Path) -> list[Finding]:
    return list(check(str(path)).findings)


class Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return subprocess.getoutput, ("true",)


def safety(path: Path) -> list[tuple[str, str]]:
    return [(finding.level, finding.rule) for finding in check(str(path), ["safety"]).findings]


def test_a_pickle_that_runs_commands(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "x": Runs()}, tmp_path / "x.pt")
    first, refusal = found(tmp_path / "x.pt")
    assert first[:4] == ("error", "safety", "dangerous", None)
    assert first.what == "the pickle names commands.getoutput, which runs a shell command"
    assert refusal[:4] == ("note", "safety", "weights-only", None)
    assert check(str(tmp_path / "x.pt"), ["health", "integrity"]).findings == ()


def test_a_bare_pickle_that_runs_commands_is_found_though_it_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps(Runs()))
    assert [rule for _, rule in safety(tmp_path / "x.pt")] == ["unreadable", "dangerous", "weights-only"]
    (tmp_path / "y.pt").write_bytes(pickle.dumps({"a": 1}))
    assert refused(FormatError, check, str(tmp_path / "y.pt"))


def test_one_pickle_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    path = rezipped(tmp_path / "y.pt", {"x/a.pkl": bytes(1 << 20), **records(tmp_path / "x.pt")}, zipfile.ZIP_DEFLATED)
    assert safety(path) == [("error", "unreadable"), ("error", "dangerous"), ("note", "weights-only")]


def test_a_pickle_cut_off_after_it_did_harm(tmp_path: Path) -> None:
    torch.save({"x": Runs()}, tmp_path / "x.pt")
    held = {name: data[:-3] if name.endswith(".pkl") else data for name, data in records(tmp_path / "x.pt").items()}
    found = check(str(rezipped(tmp_path / "y.pt", held))).findings
    assert [finding[:3] for finding in found] == [
        ("error", "integrity", "unreadable"),
        ("error", "safety", "dangerous"),
    ]


WHAT = [
    "the pickle names torch.nn.modules.container.Sequential, torch.nn.modules.linear.Linear, "
    "torch.nn.modules.activation.Tanh; each makes a part of a torch model or optimizer, without calling it",
    "the pickle names __builtin__.set; makes a container of the standard library",
    "torch.load(weights_only=True) refuses it: 3 globals: torch.nn.modules.container.Sequential, "
    "torch.nn.modules.linear.Linear, torch.nn.modules.activation.Tanh",
]


def test_names_that_do_the_same_are_told_together(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
    torch.save(net, tmp_path / "x.pt")
    assert [finding.what for finding in found(tmp_path / "x.pt")] == WHAT
