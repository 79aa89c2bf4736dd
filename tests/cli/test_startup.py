"""What is imported: looking needs neither torch nor numpy, and off a terminal not Rich either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PROBE = """
import sys
from paramctl.cli.app import main
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "ml_dtypes", "safetensors", "rich", "h5py", "pydantic"}
print(code, *sorted(heavy & {name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""

Imports = Callable[..., str]


@pytest.fixture
def imports(tmp_path: Path) -> Imports:
    """Return a function that runs a command in a fresh interpreter: its exit code and the heavy packages it imported."""
    torch.save({"0.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")

    def call(*args: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *args], cwd=tmp_path, capture_output=True, text=True, check=True,
            env={"PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        return done.stderr.splitlines()[-1]

    return call


@pytest.mark.parametrize("file", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize(
    "command", ["tree", "tree --json", "tree --layer 0", "ls", "ls --tsv", "ls --json", "ls --jsonl", "ties"]
)
def test_looking_imports_nothing_heavy(imports: Imports, command: str, file: str) -> None:
    name, *options = command.split()
    assert imports(name, file, *options) == "0"


@pytest.mark.parametrize("args", [["--help"], ["tree", "--help"], ["ls", "-h"], ["schemes"], ["schemes", "xavier"], []])
def test_help_imports_nothing_heavy(imports: Imports, args: list[str]) -> None:
    assert imports(*args) == "0"


def test_colour_imports_rich_and_nothing_else(imports: Imports) -> None:
    assert imports("tree", "x.pt", "--color", "always") == "0 rich"
