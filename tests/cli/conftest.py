"""How the tests of commands run them: in this process, or as a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from paramctl.cli.app import main

Result = tuple[int, str, str]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs a command line here, off a terminal: exit code, standard output and error."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def call(*args: object) -> Result:
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def spawn() -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """Return a function that runs a command line as a process of its own, with real descriptors."""

    def call(*args: object, env: dict[str, str] | None = None, **how: object) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "paramctl", *map(str, args)]
        clean = {key: value for key, value in os.environ.items() if "COLOR" not in key and key != "COLUMNS"}
        settings = {"capture_output": True, "stdin": subprocess.DEVNULL, "timeout": 60, **how}
        return subprocess.run(command, env={**clean, "PYTHONPATH": str(ROOT), **(env or {})}, **settings)  # type: ignore[call-overload,no-any-return]

    return call
