"""TorchScript archives that other projects ship: listed as scripts.json says, edited, and nothing else changed.

torch.jit.load is not run on them. What scripts.json says was checked by hand: against the attributes in data.pkl
as pickletools prints it, and `__parameters__`, `__buffers__` and the sizes in the code.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from real.reference import raw
from real.test_listing import SCRIPTS, Run, each, run

from paramctl.formats import opening
from paramctl.values.arrays import read_values

__all__ = ["run"]
pytestmark = pytest.mark.real

SAID: dict[str, Any] = json.loads(Path(__file__).with_name("scripts.json").read_text())
WEIGHT, OTHER = "_model.decoder.rnn.weight_ih", "_model_8k.decoder.rnn.weight_ih"


def differing(before: Path, after: Path) -> set[str]:
    """The records of two archives that differ, or that only one has, without the folder they all lie in."""
    held = []
    for path in (before, after):
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            held.append({name.partition("/")[2]: archive.read(name) for name in archive.namelist()})
    return {name for name in {*held[0], *held[1]} if held[0].get(name) != held[1].get(name)}


def record(path: Path, name: str) -> str:
    (found,) = {f"data/{param.storage}" for param in opening.open(str(path)).params if param.path == name}
    return found


@pytest.fixture
def copy(path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(path, tmp_path / "copy.jit"))


@each(SCRIPTS)
def test_it_lists_what_was_checked_by_hand(run: Run, path: Path) -> None:
    code, out, err = run("ls", path, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)["tensors"]
    assert [[t["path"], t["kind"], t["dtype"], t["shape"]] for t in found] == SAID[path.name]["tensors"]
    assert {t["tied_to"] for t in found} == {None}


@each(SCRIPTS)
def test_a_file_beside_it_holds_a_model_like_its_first(path: Path) -> None:
    """silero_vad_16k.safetensors: other weights in the same shapes and order, after the same Fourier basis."""
    checkpoint = opening.open(str(path))
    ours = [param for param in checkpoint.params if param.path.startswith("_model.")]
    theirs = safetensors.torch.load_file(path.with_name("silero_vad_16k.safetensors"))
    assert sorted(param.shape for param in ours) == sorted(tuple(tensor.shape) for tensor in theirs.values())
    assert read_values(checkpoint, ours[0]).tobytes() == raw(theirs["stft_conv.weight"])


@each(SCRIPTS)
def test_init_and_set(run: Run, copy: Path) -> None:
    out = copy.with_name("out.jit")
    layer = WEIGHT.rpartition(".")[0]
    code, _, err = run("init", copy, "--layer", layer, "--scheme", "normal", "--seed", "1", "-o", out)
    assert code == 0, err
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    assert differing(copy, out) == {record(copy, f"{layer}.{name}") for name in names}
    code, _, err = run("set", copy, f"{WEIGHT}[0,0] = 0.5", "-i")
    assert code == 0, err
    assert json.loads(run("show", copy, f"{WEIGHT}[0,0]", "--json")[1])["tensors"][0]["values"] == 0.5


@each(SCRIPTS)
def test_tie_and_untie(run: Run, copy: Path) -> None:
    tied, untied = copy.with_name("tied.jit"), copy.with_name("untied.jit")
    code, _, err = run("tie", copy, WEIGHT, OTHER, "-o", tied)
    assert code == 0, err
    assert differing(copy, tied) == {"data.pkl", record(copy, OTHER)}
    assert json.loads(run("ties", tied, "--json")[1])["groups"] == [[WEIGHT, OTHER]]
    code, _, err = run("untie", tied, OTHER, "-o", untied)
    assert code == 0, err
    assert differing(tied, untied) == {"data.pkl", record(untied, OTHER)}


@each(SCRIPTS)
def test_convert(run: Run, copy: Path) -> None:
    out = copy.with_suffix(".safetensors")
    code, _, err = run("convert", copy, "-o", out)
    assert code == 2 and " cannot hold model_type (scalar)" in err
    code, _, err = run("convert", copy, "-o", out, "--lossy")
    assert code == 0, err
    held = safetensors.torch.load_file(out)
    checkpoint = opening.open(str(copy))
    assert {name: raw(tensor) for name, tensor in held.items()} == {
        param.path: read_values(checkpoint, param).tobytes() for param in checkpoint.params
    }
