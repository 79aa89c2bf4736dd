"""Checkpoints that other projects ship: nothing is wrong with them, and `check` says what torch would.

Nothing of a file is executed.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real.reference import load
from real.test_listing import OTHERS, SAFE, SCRIPTS, TARS, TORCH, each

from paramctl.cli.app import main

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


@each([*TORCH, *TARS, *SCRIPTS, *SAFE])
def test_nothing_is_wrong_with_it(check: Check, path: Path) -> None:
    code, document, err = check(path)
    assert (code, [finding for finding in document["findings"] if finding["level"] != "note"]) == (0, [])
    assert err.startswith(f"{path}: nothing wrong")


@each(TORCH)
def test_torch_loads_with_weights_only_what_it_is_said_to(check: Check, path: Path) -> None:
    parts = check(path)[1]["safety"]
    loaded = [part for part in parts if part["part"].endswith("data.pkl")] or parts
    assert all(part["weights_only"] for part in loaded) is load(path)[1]


@each([*TARS, *SCRIPTS])
def test_torch_refuses_with_weights_only_what_it_is_said_to(check: Check, path: Path) -> None:
    parts = check(path)[1]["safety"]
    assert parts and not any(part["weights_only"] for part in parts)
    with pytest.raises(RuntimeError, match="Cannot use ``weights_only=True``"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.load hands TorchScript on, and says so
        torch.load(path, weights_only=True)


@each(OTHERS)
def test_what_is_not_read_is_not_called_sound(check: Check, path: Path) -> None:
    code, document, err = check(path)
    (finding,) = [finding for finding in document["findings"] if finding["level"] != "note"]
    assert (code, finding["rule"]) == (3, "not-read")
    assert err.startswith(f"{path}: 1 warning") and err.count("\n") == 1
