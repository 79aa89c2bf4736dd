"""Checkpoints that other projects ship: nothing is wrong with them, and `check` says what torch would.

PARAMCTL_REAL names the folder that `python ../shared/real/fetch.py DIR` made. Nothing of a file is executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real.reference import load
from real.test_listing import OTHERS, SAFE, TORCH, each

from paramctl.cli import main

pytestmark = pytest.mark.real

Check = Callable[[Path], tuple[int, dict[str, Any], str]]


@pytest.fixture
def check(capfd: pytest.CaptureFixture[str]) -> Check:
    """Exit code, document, and what is said beside it."""

    def call(path: Path) -> tuple[int, dict[str, Any], str]:
        code = main(["check", str(path), "--json"])
        out, err = capfd.readouterr()
        return code, json.loads(out or "{}"), err

    return call


@each([*TORCH, *SAFE])
def test_nothing_is_wrong_with_it(check: Check, path: Path) -> None:
    code, document, err = check(path)
    assert (code, [finding for finding in document["findings"] if finding["level"] != "note"]) == (0, [])
    assert err.startswith(f"{path}: nothing wrong")


@each(TORCH)
def test_torch_loads_with_weights_only_what_it_is_said_to(check: Check, path: Path) -> None:
    (part,) = [part for part in check(path)[1]["safety"] if part["part"].endswith("data.pkl")]
    assert part["weights_only"] is load(path)[1]


@each(OTHERS)
def test_what_is_not_read_is_not_called_sound(check: Check, path: Path) -> None:
    code, document, err = check(path)
    assert (code, document) == (3, {})
    assert err.startswith(f"paramctl: {path}: is ") and err.count("\n") == 1
