"""What a person must be able to do, row by row, as commands on the samples; torch and safetensors judge."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from paramctl import seed_for

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / "sample_models"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with the samples, and a `paramctl` that is the one under test."""
    shutil.copytree(STATE, tmp_path, dirs_exist_ok=True)
    command = tmp_path / ".bin" / "paramctl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m paramctl "$@"\n')
    command.chmod(0o755)
    return tmp_path


def environment(here: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{here / '.bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}


def shell(here: Path, command: str) -> str:
    """What a command line prints on standard output; it must succeed."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=here, env=environment(here), capture_output=True, timeout=60,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def on_terminal(here: Path, command: list[str]) -> str:
    """What a command prints when standard output is a terminal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=here, env=environment(here), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    out = b""
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:
            break
        if not data:
            break
        out += data
    os.close(master)
    assert process.wait(timeout=60) == 0, out
    return out.decode()


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def tensor(here: Path, path: str) -> torch.Tensor:
    """A tensor of the untouched sample mlp.pt."""
    found = load(here / "mlp.pt")[path]
    assert isinstance(found, torch.Tensor)
    return found


def test_the_promised_tree_on_a_terminal(here: Path) -> None:
    (here / "mlp.pt").rename(here / "model.pt")
    out = on_terminal(here, ["paramctl", "tree", "model.pt"])
    assert "weight" in out
    assert "\x1b[" in out
    assert out.splitlines()[-1] == "4 tensors, 49 values, 196 B"


def test_the_promised_tree_in_a_pipe(here: Path) -> None:
    (here / "mlp.pt").rename(here / "model.pt")
    out = shell(here, "paramctl tree model.pt | cat")
    assert "\x1b[" not in out
    assert out.splitlines()[-1] == "4 tensors, 49 values, 196 B"


def test_the_promised_init_in_a_pipe(here: Path) -> None:
    shell(here, "cat mlp.pt | paramctl init --layer 0 --scheme xavier | cat > out.pt")
    new, old = load(here / "out.pt"), load(here / "mlp.pt")
    bound = (6 / 12) ** 0.5
    assert not torch.equal(new["0.weight"], old["0.weight"])
    assert new["0.weight"].abs().max() <= bound
    assert torch.equal(new["2.weight"], old["2.weight"])


def test_the_promised_init_says_what_a_terminal_lacks(here: Path) -> None:
    master, slave = pty.openpty()
    with (here / "mlp.pt").open("rb") as stdin:
        done = subprocess.run(
            ["paramctl", "init", "--layer", "0", "--scheme", "xavier"], cwd=here, env=environment(here),
            stdin=stdin, stdout=slave, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    os.close(slave)
    os.close(master)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "paramctl: standard input: a checkpoint is not written to a terminal; "
        "give -o FILE, or -i to replace FILE, or use a pipe\n"
    )


def test_edits_stream_from_one_to_the_next(here: Path) -> None:
    shell(here, "paramctl untie tied_mlp.pt 4 -o a.pt")
    shell(here, "paramctl init --layer 0 --scheme xavier < a.pt | paramctl tie - 2 4 > b.pt")
    made = load(here / "b.pt")
    assert made["4.weight"].data_ptr() == made["2.weight"].data_ptr()


def test_row_1_the_parameters_of_one_layer(here: Path) -> None:
    assert shell(here, "paramctl tree mlp.pt --layer 2").splitlines()[-1] == "2 tensors, 9 values, 36 B"
    assert shell(here, "paramctl ls mlp.pt --layer 2 | cut -f1") == "2.weight\n2.bias\n"


def test_rows_2_3_and_5_a_parameter_is_an_object(here: Path) -> None:
    found = json.loads(shell(here, "paramctl show mlp_module.pt 2.bias --json"))["tensors"][0]
    assert {key: found[key] for key in ("kind", "dtype", "shape", "requires_grad", "device", "grad")} == {
        "kind": "parameter", "dtype": "float32", "shape": [1], "requires_grad": True, "device": "cpu", "grad": None,
    }  # fmt: skip
    assert found["values"] == pytest.approx(tensor(here, "2.bias").tolist())
    assert "gradient       grad.2.bias" in shell(here, "paramctl show tied_mlp_step1.pt 2.bias")
    shell(here, "paramctl show mlp.pt 0.weight --npy -o - > w.npy")
    assert np.array_equal(np.load(here / "w.npy"), tensor(here, "0.weight").numpy())


@pytest.mark.parametrize("selection", ["re:.*bias", "**.bias", "*.bias"])
def test_row_4_names_and_shapes(here: Path, selection: str) -> None:
    assert shell(here, f"paramctl ls mlp.pt --layer '{selection}' | cut -f1,4") == "0.bias\t8\n2.bias\t1\n"


def test_rows_6_and_7_nested_blocks_by_name_and_position(here: Path) -> None:
    tree = shell(here, "paramctl tree rgnet_module.pt")
    assert "└── block 0–3 ×4  Sequential" in tree
    assert "├── block 1  Sequential" in shell(here, "paramctl tree rgnet_module.pt --expand")
    by_position, by_name = (
        json.loads(shell(here, f"paramctl show rgnet.pt '{path}' --json"))["tensors"]
        for path in ("[0][1][0].bias", "0.block 1.0.bias")
    )
    assert by_position == by_name


@pytest.mark.parametrize(
    ("scheme", "bound", "bias"), [("mxnet-default", 0.07, 0), ("torch-default", 0.5, 0.5), ("keras-default", 0.71, 0)]
)
def test_row_8_the_frameworks_defaults(here: Path, scheme: str, bound: float, bias: float) -> None:
    shell(here, f"paramctl init mlp.pt --scheme {scheme} -o out.pt")
    made = load(here / "out.pt")
    assert 0 < made["0.weight"].abs().max() <= bound
    assert made["0.bias"].abs().max() <= bias


def test_rows_9_10_and_11_built_in_schemes(here: Path) -> None:
    shell(here, "paramctl init mlp.pt --scheme normal:std=0.01 -o normal.pt")
    made = load(here / "normal.pt")
    assert 0 < made["0.weight"].std() < 0.05
    assert not made["0.bias"].any()
    shell(here, "paramctl init mlp.pt --scheme constant:1 -o ones.pt")
    assert (load(here / "ones.pt")["2.weight"] == 1).all()
    shell(here, "paramctl init mlp.pt --layer 0 --scheme xavier --layer 2 --scheme constant:42 --seed 9 -o out.pt")
    shell(
        here,
        "paramctl init --layer 0 --scheme xavier --seed 9 < mlp.pt"
        " | paramctl init --layer 2 --scheme constant:42 --seed 9 > pipe.pt",
    )
    assert (here / "out.pt").read_bytes() == (here / "pipe.pt").read_bytes()
    made, weight = load(here / "out.pt"), torch.empty(8, 4)
    torch.nn.init.xavier_uniform_(weight, generator=torch.Generator().manual_seed(seed_for(9, "0.weight")))
    assert torch.equal(made["0.weight"], weight)
    assert (made["2.weight"] == 42).all()


def test_row_12_a_function_of_ones_own(here: Path) -> None:
    shell(here, "paramctl init mlp.pt --scheme my_init.py:my_init -o out.pt")
    size = load(here / "out.pt")["0.weight"].abs()
    assert ((size == 0) | (size >= 5)).all()
    assert (size >= 5).any()


def test_row_13_values_set_directly(here: Path) -> None:
    shell(here, "paramctl set mlp.pt '0.weight += 1' '0.weight[0,0] = 42' -o out.pt")
    expected = tensor(here, "0.weight") + 1
    expected[0, 0] = 42
    assert torch.equal(load(here / "out.pt")["0.weight"], expected)


def test_rows_14_and_16_tied_layers_are_one(here: Path) -> None:
    assert shell(here, "paramctl ties tied_mlp.pt") == "2.weight = 4.weight\n2.bias = 4.bias\n"
    tree = shell(here, "paramctl tree tied_mlp.pt").splitlines()
    assert tree[-1].startswith("8 tensors (6 unique), ")
    assert sum("= 2.weight" in line for line in tree) == 1
    shell(here, "paramctl set tied_mlp.pt '2.weight[0,0] = 100' -o out.pt")
    made = load(here / "out.pt")
    assert made["4.weight"][0, 0] == 100
    assert made["4.weight"].data_ptr() == made["2.weight"].data_ptr()


def test_row_15_tie_by_path(here: Path) -> None:
    shell(here, "paramctl untie tied_mlp.pt 4 -o net.pt")
    assert load(here / "net.pt")["4.weight"].data_ptr() != load(here / "net.pt")["2.weight"].data_ptr()
    shell(here, "paramctl tie net.pt 2 4 -o tied.pt")
    made = load(here / "tied.pt")
    assert made["4.bias"].data_ptr() == made["2.bias"].data_ptr()


def test_row_17_the_gradients_of_tied_layers(here: Path) -> None:
    """One gradient for both, which is the sum of what each use gives: seen by show, stats, diff and track."""
    saved = load(here / "tied_mlp_step1.pt")
    assert torch.equal(saved["grad"]["2.weight"], saved["grad"]["4.weight"])
    shown = json.loads(shell(here, "paramctl show tied_mlp_step1.pt model.4.weight --json"))["tensors"][0]
    assert (shown["tied_to"], shown["grad"]) == ("model.2.weight", "grad.4.weight")
    (found,) = json.loads(shell(here, "paramctl stats tied_mlp_step1.pt --layer grad.4.weight --json"))["tensors"]
    assert found["l2"] == pytest.approx(float(saved["grad"]["4.weight"].norm()), rel=1e-6)
    steps = json.loads(shell(here, "paramctl track tied_mlp_step*.pt --layer 4.weight --json"))["steps"]
    after = load(here / "tied_mlp_step2.pt")["model"]["4.weight"]
    before = saved["model"]["4.weight"]
    assert [step["step"] for step in steps] == [0, 1, 2]
    assert steps[1]["grad"] == pytest.approx(found["l2"])
    assert steps[2]["ratio"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-6)
    lines = shell(here, "paramctl diff tied_mlp_step1.pt tied_mlp_step2.pt --layer grad.4.weight; test $? = 1")
    assert lines.startswith("values\tgrad.4.weight\t")


def test_row_18_parameters_and_gradients_of_each_layer(here: Path) -> None:
    rows = shell(here, "paramctl track tied_mlp_step*.pt --layer 0 --layer 2 --each --tsv").splitlines()
    assert len(rows) == 3 * 4
    layers = json.loads(shell(here, "paramctl stats tied_mlp_step2.pt --layer model --by layer --json"))["layers"]
    assert [layer["path"] for layer in layers] == ["model.0", "model.2", "model.4", "model.6"]


def test_row_18_every_scheme_explains_itself(here: Path) -> None:
    schemes = json.loads(shell(here, "paramctl schemes --json"))["schemes"]
    assert len(schemes) >= 24
    assert all(scheme["formula"] for scheme in schemes)
    assert shell(here, "paramctl tree fancy_mlp.pt").splitlines()[-1] == "3 tensors, 820 values, 3.2 KiB"


def test_row_19_into_other_software(here: Path) -> None:
    shell(here, "paramctl convert mlp.pt -o net.safetensors")
    made, old = load_file(here / "net.safetensors"), load(here / "mlp.pt")
    assert made.keys() == old.keys()
    assert all(torch.equal(made[name], old[name]) for name in old)
