"""`paramctl set` as people type it."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from verb_files import loaded, saved

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]


def test_the_rows_of_the_chapter(run: Run, tmp_path: Path) -> None:
    """Rows 13 and 16: values by index, and a tied one that changes with it."""
    shared = torch.zeros(2, 2)
    path = saved(tmp_path, {"0.weight": torch.zeros(2, 2), "2.weight": shared, "4.weight": shared}, "net.pt")
    assert run("set", path, "0.weight += 1", "0.weight[0,0] = 42", "4.weight[0,0] = 100", "-i") == (
        0,
        "",
        "0.weight  += 1\n"
        "0.weight  [0, 0] = 42\n"
        "4.weight  [0, 0] = 100  also 2.weight\n"
        f"wrote {path.stat().st_size / 1024:.1f} KiB in place\n",
    )
    after = loaded(path)
    assert after["0.weight"].tolist() == [[42.0, 1.0], [1.0, 1.0]]
    assert after["2.weight"][0, 0] == 100
    assert after["2.weight"].data_ptr() == after["4.weight"].data_ptr()


def test_options_may_stand_before_and_negative_values_behind(run: Run, tmp_path: Path) -> None:
    path = saved(tmp_path, {"-x": torch.zeros(2), "w": torch.zeros(2)}, "net.pt")
    assert run("set", "-i", path, "w = -1")[0] == 0
    assert run("set", "-i", path, "--", "-x -= 2")[0] == 0
    assert {name: tensor.tolist() for name, tensor in loaded(path).items()} == {"-x": [-2.0, -2.0], "w": [-1.0, -1.0]}


def test_an_array_on_standard_input(spawn: Spawn, tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.zeros(3)}, "net.pt")
    out = io.BytesIO()
    np.save(out, np.arange(3))
    assert spawn("set", path, "w = @-", "-i", stdin=None, input=out.getvalue()).returncode == 0
    assert loaded(path)["w"].tolist() == [0.0, 1.0, 2.0]
    done = spawn("set", "-", "w = @-", stdin=None, input=path.read_bytes())
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == (
        b"paramctl: standard input: standard input cannot be both the checkpoint and '@-'; name a FILE for one\n"
    )


def test_a_value_goes_from_show_to_set(spawn: Spawn, tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.randn(2, 3, dtype=torch.float64), "b": torch.zeros(2, 3).double()}, "net.pt")
    array = spawn("show", path, "a", "--npy", "-o", "-")
    assert spawn("set", path, "b = @-", "-i", stdin=None, input=array.stdout).returncode == 0
    after = loaded(path)
    assert torch.equal(after["a"], after["b"])


def test_reset_optimizer(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 3))
    moved = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    moved.step()
    model = {f"module.{name}": value for name, value in net.state_dict().items()}
    path = saved(tmp_path, {"model": model, "optimizer": moved.state_dict()}, "run.pt")
    code, _, said = run("set", path, "0.bias = 5", "--reset-optimizer", "-i")
    assert (code, said.splitlines()[:-1]) == (
        0,
        [
            "model.module.0.bias                = 5",
            "optimizer.state.1.momentum_buffer  reset to 0, momentum_buffer of model.module.0.bias",
        ],
    )
    state = loaded(path)["optimizer"]["state"]
    assert state[1]["momentum_buffer"].tolist() == [0.0] * 3
    assert state[0]["momentum_buffer"].tolist() == moved.state_dict()["state"][0]["momentum_buffer"].tolist()
    for verb in (("init", path, "-l", "0", "-s", "ones", "--seed", "1"), ("tie", path, "0.bias", "0.bias")):
        assert run(*verb, "--reset-optimizer", "-i")[0] == 0
