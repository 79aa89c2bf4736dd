"""The samples are what their script makes."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import paramctl

SAMPLES = Path(__file__).resolve().parents[1] / "sample_models"
PINNED = re.search(r"^torch==(\S+)", (SAMPLES.parent / ".ci" / "constraints.txt").read_text(), re.M)
CHECKPOINTS = sorted(p.name for p in SAMPLES.iterdir() if p.suffix in (".pt", ".safetensors"))


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make", SAMPLES / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("samples")
    module = _script()
    module.make(directory)
    return directory


def test_the_script_makes_these_files_and_no_others(made: Path) -> None:
    assert sorted(path.name for path in made.iterdir()) == CHECKPOINTS


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_sample_is_what_the_script_makes(name: str, made: Path) -> None:
    stored, fresh = (SAMPLES / name).read_bytes(), (made / name).read_bytes()
    if PINNED is None or torch.__version__.partition("+")[0] != PINNED[1]:  # another torch may write another layout
        assert _tensors(SAMPLES / name) == _tensors(made / name)
    elif name.endswith(".safetensors"):  # its library writes metadata in no particular order
        assert _parts(stored) == _parts(fresh)
    else:
        assert stored == fresh


def _parts(data: bytes) -> tuple[object, bytes]:
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def _tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {p.path: (p.dtype, p.shape, p.numpy().tobytes()) for p in paramctl.open(path).parameters}


def test_all_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.iterdir() if path.is_file()) < 1_000_000
