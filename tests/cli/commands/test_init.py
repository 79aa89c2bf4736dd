"""`paramctl init` as people type it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import without_plan
from torch import nn
from verb_files import changed, loaded, mlp, same, saved

from paramctl import seed_for

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return saved(tmp_path, mlp().state_dict(), "net.pt")


def test_every_row_of_the_chapter(run: Run, model: Path) -> None:
    """Rows 9, 10 and 11 of what a person must be able to do."""
    out = model.with_name("out.pt")
    assert run("init", model, "--scheme", "normal:std=0.01", "--seed", "1", "-o", out)[0] == 0
    expected = torch.empty(8, 4).normal_(0, 0.01, generator=torch.Generator().manual_seed(seed_for(1, "0.weight")))
    assert same(loaded(out)["0.weight"], expected)
    assert loaded(out)["0.bias"].tolist() == [0.0] * 8
    assert run("init", model, "--scheme", "constant:1", "-f", "-o", out)[0] == 0
    assert loaded(out)["3.weight"].tolist() == [[1.0] * 8] * 2
    args = ["--layer", "0", "--scheme", "xavier", "--layer", "3", "--scheme", "constant:42"]
    assert run("init", model, *args, "--seed", "1", "-f", "-o", out)[0] == 0
    generator = torch.Generator().manual_seed(seed_for(1, "0.weight"))
    assert same(loaded(out)["0.weight"], nn.init.xavier_uniform_(torch.empty(8, 4), generator=generator))
    assert loaded(out)["3.weight"].tolist() == [[42.0] * 8] * 2


def test_two_commands_in_a_pipe_do_the_same_as_one(spawn: Spawn, model: Path) -> None:
    one = spawn("init", model, "-l", "0", "-s", "xavier", "-l", "3", "-s", "normal", "--seed", "1")
    first = spawn("init", "--layer", "0", "--scheme", "xavier", "--seed", "1", stdin=None, input=model.read_bytes())
    second = spawn("init", "--layer", "3", "--scheme", "normal", "--seed", "1", stdin=None, input=first.stdout)
    assert one.stdout == second.stdout


def test_the_command_line_that_is_promised_on_a_terminal(model: Path) -> None:
    """`paramctl init --layer 0 --scheme xavier` between two redirections, its report on a terminal."""
    ours, theirs = pty.openpty()
    out = model.with_name("out.pt")
    with model.open("rb") as source, out.open("wb") as target:
        done = subprocess.run(
            [sys.executable, "-m", "paramctl", "init", "--layer", "0", "--scheme", "xavier"],
            stdin=source, stdout=target, stderr=theirs, cwd=ROOT, check=False,
        )  # fmt: skip
    os.close(theirs)
    report = os.read(ours, 10_000).decode().replace("\r\n", "\n").splitlines()
    os.close(ours)
    assert done.returncode == 0
    assert report[:2] == ["0.weight  xavier_uniform  fan 4 → 8", "0.bias    zeros"]
    assert report[2].startswith("seed ") and report[3].endswith(" to standard output")
    assert changed(loaded(model), loaded(out)) == {"0.weight", "0.bias"}


def test_the_chapters_own_initialiser(run: Run, model: Path) -> None:
    script = model.with_name("my_init.py")
    script.write_text(
        "import torch\n\n\ndef my_init(tensor):\n"
        "    print('drawing')\n"
        "    torch.nn.init.uniform_(tensor, -10, 10)\n"
        "    tensor *= tensor.abs() >= 5\n"
    )
    out = model.with_name("out.pt")
    code, text, err = run("init", model, "-l", "0", "-s", f"{script}:my_init", "--seed", "1", "-o", out)
    assert (code, text) == (0, "")
    report = [line.split() for line in err.splitlines()[-4:-1]]
    assert report == [["0.weight", f"{script}:my_init", "fan", "4", "→", "8"], ["0.bias", "zeros"], ["seed", "1"]]
    values = loaded(out)["0.weight"].abs()
    assert bool(((values == 0) | (values >= 5)).all()) and bool((values > 0).any())
    assert not (model.parent / "__pycache__").exists()


def test_an_own_function_that_fails_writes_nothing_to_a_pipe(spawn: Spawn, model: Path) -> None:
    script = model.with_name("my_init.py")
    script.write_text("def f(tensor):\n    raise ValueError('no\\x1b[31m')\n")
    done = spawn("init", model, "-l", "0", "-s", f"{script}:f")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode() == (
        f"paramctl: {model}: {script}:f failed for 0.weight: ValueError: no\\x1b[31m (line 2)\n"
    )


def test_a_list_of_paths_on_standard_input(spawn: Spawn, model: Path) -> None:
    done = spawn("init", model, "-l", "@-", "-s", "constant:3", "-n", stdin=None, input=b"3.bias\n0.bias\n")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.decode().splitlines()[:2]] == ["0.bias", "3.bias"]
    piped = spawn("init", "-l", "@-", "-s", "ones", "-n", stdin=None, input=model.read_bytes())
    assert piped.returncode == 2
    assert piped.stderr == (
        b"paramctl: standard input: standard input cannot be both the checkpoint and '@-'; name a FILE for one\n"
    )


def test_the_bias_of_layers(run: Run, model: Path) -> None:
    assert without_plan(run("init", model, "-l", "0", "-s", "ones", "--bias", "keep", "--seed", "1", "-n")[1]) == (
        "0.weight  ones  fan 4 → 8\n"
        "kept 0.bias: bias kept as requested\n"
        "seed 1\n"
        "nothing was written (dry run); …\n"
    )


def test_a_training_checkpoint(run: Run, tmp_path: Path) -> None:
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    path = saved(tmp_path, {"model": net.state_dict(), "optim": optimizer.state_dict(), "epoch": 3}, "run.ckpt")
    assert without_plan(run("init", path, "-l", "0", "-s", "ones", "--seed", "1", "-n")[1]) == (
        "model.0.weight  ones   fan 4 → 8\n"
        "model.0.bias    zeros\n"
        "note: selected inside 'model'\n"
        "note: the optimizer state in this file still belongs to the old values of model.0.weight, model.0.bias;"
        " --reset-optimizer resets it\n"
        "seed 1\n"
        "nothing was written (dry run); …\n"
    )
