"""The recipes of `paramctl help extending`, followed in a copy of the package with the code that the page shows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "paramctl" / "cli" / "help" / "extending.md").read_text(encoding="utf-8")
CODE = {name: text for name, text in re.findall(r"^```python ([^\n]+)\n(.*?)^```$", PAGE, re.M | re.S)}
SCHEMES, FORMAT, REGISTRY, CONTRACT, WRITING, COMMAND, APP = CODE


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its tests."""
    no_caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    for name in ("paramctl", "tests", "sample_models"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=no_caches)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def append(copy: Path, name: str, code: str) -> None:
    with (copy / name.partition(",")[0]).open("a", encoding="utf-8") as file:
        file.write(f"\n\n{code}")


def insert(copy: Path, name: str, after: str) -> None:
    """Put the code for a file behind the first line that begins with `after`."""
    path = copy / name
    head, line, rest = re.split(rf"(^{re.escape(after)}[^\n]*\n)", path.read_text(), maxsplit=1, flags=re.M)
    path.write_text(f"{head}{line}{CODE[name]}{rest}")


def python(copy: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    env = {name: value for name, value in env.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=copy / "sample_models", env=env, capture_output=True, text=True, timeout=300)


def paramctl(copy: Path, *args: str, code: int = 0) -> str:
    """What a command of the copy prints."""
    done = python(copy, "-m", "paramctl", *args)
    assert done.returncode == code, done.stderr
    return done.stdout or done.stderr


def pytest_in(copy: Path, file: str, only: str) -> tuple[int, str]:
    """The exit code of tests of the copy, and their last line."""
    done = python(copy, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(copy),
                  "-c", str(copy / "pyproject.toml"), str(copy / file), "-k", only)  # fmt: skip
    return done.returncode, done.stdout.splitlines()[-1]


def count(code: str) -> int:
    return len(code.splitlines())


def test_a_scheme(copy: Path) -> None:
    assert count(CODE[SCHEMES]) <= 12
    append(copy, SCHEMES, CODE[SCHEMES])
    assert "size of every value" in paramctl(copy, "schemes", "alternating")
    assert "\nalternating " in paramctl(copy, "schemes")
    paramctl(copy, "init", "mlp.pt", "--scheme", "alternating:0.5", "-o", "new.pt")
    assert "0.5, -0.5,  0.5, -0.5" in paramctl(copy, "show", "new.pt", "0.weight[0]")
    assert pytest_in(copy, "tests/schemes/test_spec.py", "alternating or every")[0] == 0


def test_a_format_that_is_only_read_and_then_written(copy: Path) -> None:
    assert count(CODE[FORMAT]) <= 40
    assert count(CODE[REGISTRY]) == 1
    (copy / FORMAT).write_text(CODE[FORMAT])
    insert(copy, REGISTRY, "FORMATS")
    append(copy, CONTRACT, f"import json\n\n\n{CODE[CONTRACT]}")
    (copy / "sample_models" / "x.tnsr").write_bytes(b'TNSR1\n{"0.bias": ["int16", [2, 1], 0]}\n\x01\x00\x02\x00')
    assert paramctl(copy, "ls", "x.tnsr") == "0.bias\ttensor\tint16\t2x1\t2\t4\t\n"
    assert paramctl(copy, "check", "x.tnsr") == "x.tnsr: nothing wrong (1 tensor; integrity, health, safety)\n"
    paramctl(copy, "convert", "x.tnsr", "-o", "x.safetensors")
    assert paramctl(copy, "diff", "x.tnsr", "x.safetensors") == "same: 1 tensor\n"
    advice = "does not write it; convert it to another format with 'paramctl convert FILE -o NEW.safetensors'\n"
    for edit in (["set", "x.tnsr", "0.bias = 1", "-i"], ["init", "x.tnsr", "-s", "zeros", "-o", "y.tnsr"],
                 ["convert", "mlp.pt", "--to", "tnsr", "--lossy", "-o", "y"], ["convert", "mlp.pt", "-o", "y.tnsr"],
                 ["convert", "x.tnsr", "-n", "-o", "y.tnsr"], ["untie", "x.tnsr", "**", "-o", "y.tnsr"]):  # fmt: skip
        said = paramctl(copy, *edit, code=2)
        assert said == f"paramctl: {edit[1]}: paramctl reads tnsr and {advice}"
    code, last = pytest_in(copy, "tests/formats/test_contract.py", "tnsr")
    assert code == 0 and " passed" in last, last
    read_only = int(re.findall(r"(\d+) passed", last)[0])
    assert read_only >= 10

    append(copy, WRITING, CODE[WRITING])
    paramctl(copy, "convert", "tied_mlp.pt", "-o", "y.tnsr")
    assert paramctl(copy, "ties", "y.tnsr") == paramctl(copy, "ties", "tied_mlp.pt")
    paramctl(copy, "set", "y.tnsr", "2.weight[0,0] = 100", "-i")
    assert "100" in paramctl(copy, "show", "y.tnsr", "4.weight[0,0]")
    code, last = pytest_in(copy, "tests/formats/test_contract.py", "tnsr")
    assert code == 0 and int(re.findall(r"(\d+) passed", last)[0]) > read_only, last


def test_a_command(copy: Path) -> None:
    assert count(CODE[COMMAND]) <= 30
    assert count(CODE[APP]) == 1
    (copy / COMMAND).write_text(CODE[COMMAND])
    insert(copy, APP, "LOOK")
    assert paramctl(copy, "dtypes", "mlp.pt") == "float32\t4\n"
    assert "  dtypes   Count the tensors of each dtype.\n" in paramctl(copy, "--help")
    assert paramctl(copy, "help", "dtypes") == paramctl(copy, "dtypes", "--help")
    assert pytest_in(copy, "tests/cli/test_main.py", "every_command_has_help and dtypes")[0] == 0
    code, last = pytest_in(copy, "tests/test_readme.py", "each_command and dtypes")
    assert (code, last.partition(" in ")[0]) == (1, "1 failed, " + last.split(", ")[1].partition(" in ")[0])
    readme = copy / "README.md"
    readme.write_text(readme.read_text().replace("| `ls` |", "| `dtypes` | Count the tensors of each dtype. |\n| `ls` |"))
    assert pytest_in(copy, "tests/test_readme.py", "each_command and dtypes")[0] == 0
