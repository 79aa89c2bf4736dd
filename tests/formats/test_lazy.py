"""Formats stand in a table before their modules are imported: what the table says is what they say."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramctl.formats.lazy import Later
from paramctl.formats.protocol import AnyFormat
from paramctl.formats.registry import FORMATS, SETS

STEP = "import sys; from paramctl.formats import opening; opening.open(sys.argv[1]); print(*sorted(sys.modules))"
MODULES = [form._module for form in (*FORMATS, *SETS) if isinstance(form, Later)]


@pytest.mark.parametrize("form", [*FORMATS, *SETS], ids=lambda form: form.NAME)
def test_the_table_says_what_the_module_says(form: AnyFormat) -> None:
    assert isinstance(form, Later)
    module = import_module(form._module)
    assert (form.NAME, form.SUFFIXES) == (module.NAME, module.SUFFIXES)


@pytest.mark.parametrize("name", ["pytorch.zip_file", "safetensors"])
def test_a_file_imports_its_own_format_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x"
    if name == "pytorch.zip_file":
        torch.save({"a": torch.ones(2)}, path)
    else:
        save_file({"a": torch.ones(2)}, path)
    command = [sys.executable, "-c", STEP, str(path)]
    done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=60)
    imported = set(done.stdout.split())
    assert [module for module in MODULES if module in imported] == [f"paramctl.formats.{name}"]
