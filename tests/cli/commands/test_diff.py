"""`paramctl diff`: what a person reads, what a program reads, and the exit code."""

from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import record_of
from safetensors.torch import save_file
from torch import nn

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]

NAN = math.nan


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory with two checkpoints that differ in every way, a.pt and b.pt."""
    monkeypatch.chdir(tmp_path)
    shared, own = torch.zeros(2), torch.zeros(2)
    torch.save(
        {
            "epoch": 3, "lr": 0.1, "same": torch.ones(4), "big": torch.tensor([[0.0, 1.0], [2.0, 3.0]]),
            "small": torch.tensor([1.0, 2.0]), "odd": torch.tensor([1.0, NAN, 3.0, NAN]),
            "cast": torch.tensor([1.0, 1.001]), "int": torch.tensor([1, 2]), "shape": torch.zeros(2, 3),
            "old\x1b": torch.zeros(3, 4), "t.1": shared, "t.2": shared, "t.3": own,
            "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]},
        },
        "a.pt",
    )  # fmt: skip
    torch.save(
        {
            "epoch": 4, "same": torch.ones(4), "big": torch.tensor([[0.0, 1.0], [102.0, 3.0]]),
            "small": torch.tensor([1.0, 2.25]), "odd": torch.tensor([1.5, NAN, NAN, 4.0]),
            "cast": torch.tensor([1.0, 1.001]).bfloat16(), "int": torch.tensor([1, 2]).int(),
            "shape": torch.zeros(3, 2), "new": torch.zeros(()), "t.1": shared, "t.2": own, "t.3": shared,
            "optimizer": {"state": {0: {"step": torch.tensor(1001.0)}}, "param_groups": [{"params": [0]}]},
        },
        "b.pt",
    )  # fmt: skip
    return tmp_path


SUMMARY = (
    "the files differ: 7 of 11 tensors changed, 1 added, 1 removed, 1 tie gained, 1 tie lost, 2 scalars;"
    " biggest change is not finite, in odd"
)
SUMMARY_IN = {
    80: (
        "the files differ: 7 of 11 tensors changed, 1 added, 1 removed, 1 tie gained, 1",
        "tie lost, 2 scalars; biggest change is not finite, in odd",
    ),
    140: (
        "the files differ: 7 of 11 tensors changed, 1 added, 1 removed, 1 tie gained, 1 tie lost, 2 scalars; biggest change is not finite, in odd",
    ),
}
# float32 1.001 is 1.00100004…, bfloat16 has 1.0 for it.
CAST = 1.00100004673004150390625 - 1


def test_a_line_a_change_in_a_pipe(run: Run, here: Path) -> None:
    assert run("diff", "a.pt", "b.pt") == (
        1,
        "shape\tshape\t2x3\t3x2\n"
        "values\todd\t0.5\t0.25\t0.3333333333333333\t3\t4\t2\n"
        "values\tbig\t100.0\t25.0\t0.9803921568627451\t1\t4\t0\n"
        "values\tsmall\t0.25\t0.125\t0.1111111111111111\t1\t2\t0\n"
        f"dtype\tcast\tfloat32\tbfloat16\t{CAST!r}\t{CAST / 2!r}\t{CAST / (1 + CAST)!r}\t1\t2\t0\tbfloat16\n"
        "dtype\tint\tint64\tint32\t0.0\t0.0\t0.0\t0\t2\t0\t\n"
        "values\toptimizer.state.0.step\t1000.0\t1000.0\t0.999000999000999\t1\t1\t0\n"
        "removed\told\\x1b\tfloat32\t3x4\n"
        "added\tnew\tfloat32\t\n"
        "tied\tt.3\tt.1\n"
        "untied\tt.2\tt.1\n"
        "scalar\tepoch\t3\t4\n"
        "scalar\tlr\t0.1\t\n",
        f"{SUMMARY}\n",
    )


ON_80 = """\
{summary}

values                  max |Δ|  mean |Δ|  relative  differ
odd                         0.5      0.25    0.3333  3 of 4  2 not finite
big                         100        25    0.9804  1 of 4
small                      0.25     0.125    0.1111  1 of 2
optimizer.state.0.step     1000      1000     0.999  1 of 1

dtype                      max |Δ|  differ
cast   float32 → bfloat16    0.001  1 of 2  same in bfloat16
int    int64 → int32             0  0 of 2  same values

shape
shape  2 × 3 → 3 × 2

removed
old\\x1b  float32  3 × 4

added
new    float32  scalar

tied
t.3   = t.1

untied
t.2     was = t.1

scalars
epoch    3 → 4
lr       0.1 → none
"""


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal(here: Path, columns: int) -> None:
    shown = ON_80.format(summary="\n".join(SUMMARY_IN[columns]))
    assert on_terminal(columns, "diff", "a.pt", "b.pt") == (1, shown)
    assert max(map(len, shown.splitlines())) <= columns


def test_on_a_narrow_terminal_paths_give_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "encoder." + "very_long_name_" * 8 + ".weight"
    save_file({name: torch.zeros(4)}, "a.safetensors", {"format": "pt", "note": "x"})
    save_file({name: torch.full((4,), -1e-7)}, "b.safetensors", {"format": "pt", "note": "y"})
    summary = (
        "the files differ: 1 of 1 tensor changed, 0 added, 0 removed, metadata; biggest\n"
        f"change 1e-07 in\n{name}\n"
    )
    assert on_terminal(80, "diff", "a.safetensors", "b.safetensors") == (
        1,
        f"{summary}\n"
        "values                                     max |Δ|  mean |Δ|  relative  differ\n"
        "encoder.very_long_na…ry_long_name_.weight    1e-07     1e-07         1  4 of 4\n"
        "\n"
        "metadata\n"
        'note      "x" → "y"\n',
    )
    out = on_terminal(140, "diff", "a.safetensors", "b.safetensors")[1]
    assert len(out.splitlines()[3]) > 100


def test_equal_ones_print_nothing_but_a_remark(run: Run, here: Path) -> None:
    assert run("diff", "a.pt", "a.pt") == (0, "", "same: 12 tensors\n")
    assert on_terminal(80, "diff", "a.pt", "a.pt") == (0, "same: 12 tensors\n")
    code, out, err = run("diff", "a.pt", "a.pt", "--json")
    assert (code, json.loads(out), err) == (0, {**EMPTY, "files": ["a.pt", "a.pt"], "equal": 12}, "same: 12 tensors\n")


EMPTY: dict[str, Any] = {
    "schema": 1, "files": [], "equal": 0, "added": [], "removed": [], "changed": [], "tied": [], "untied": [],
    "scalars": [], "metadata": [], "uncompared": [], "hint": None,
}  # fmt: skip


def test_json(run: Run, here: Path) -> None:
    code, out, err = run("diff", "a.pt", "b.pt", "--json")
    unknown = dict.fromkeys(("max_abs", "mean_abs", "count", "max_rel", "of", "nonfinite"))

    def values(path: str, *figures: float) -> dict[str, Any]:
        return {"path": path, "what": "values", **dict(zip(unknown, figures, strict=True))}

    cast = {**values("cast", CAST, CAST / 2, 1, CAST / (1 + CAST), 2, 0), "what": "dtype"}
    whole = {**values("int", 0, 0, 0, 0, 2, 0), "what": "dtype"}
    assert (code, err) == (1, "")
    assert json.loads(out) == {
        **EMPTY,
        "files": ["a.pt", "b.pt"],
        "equal": 4,
        "added": ["new"],
        "removed": ["old\x1b"],
        "changed": [
            values("big", 100, 25, 1, 100 / 102, 4, 0),
            values("small", 0.25, 0.125, 1, 0.25 / 2.25, 2, 0),
            values("odd", 0.5, 0.25, 3, 1 / 3, 4, 2),
            {**cast, "from": "float32", "to": "bfloat16", "rounds_to": "bfloat16"},
            {**whole, "from": "int64", "to": "int32", "rounds_to": None},
            {"path": "shape", "what": "shape", **unknown, "from": [2, 3], "to": [3, 2]},
            values("optimizer.state.0.step", 1000, 1000, 1, 1000 / 1001, 1, 0),
        ],
        "tied": [{"path": "t.3", "first": "t.1"}],
        "untied": [{"path": "t.2", "first": "t.1"}],
        "scalars": [{"path": "epoch", "from": 3, "to": 4}, {"path": "lr", "from": 0.1}],
    }
    assert out.splitlines()[0] == "{" and '"what": "values", "max_abs": 100.0, "mean_abs": 25.0, "count": 1' in out


def test_what_overflows_is_a_string_in_json(run: Run, here: Path) -> None:
    torch.save({"x": torch.tensor([1e308], dtype=torch.float64)}, "c.pt")
    torch.save({"x": torch.tensor([-1e308], dtype=torch.float64)}, "d.pt")
    (row,) = json.loads(run("diff", "c.pt", "d.pt", "--json")[1])["changed"]
    assert (row["max_abs"], row["count"], row["nonfinite"]) == ("Infinity", 1, 0)


def test_quiet(run: Run, here: Path) -> None:
    assert run("diff", "-q", "a.pt", "b.pt") == (1, "", "")
    assert run("diff", "--quiet", "a.pt", "a.pt") == (0, "", "")


def test_tolerance_and_bits(run: Run, here: Path) -> None:
    torch.save({"x": torch.tensor([0.0, 1.0])}, "c.pt")
    torch.save({"x": torch.tensor([-0.0, 1.01])}, "d.pt")
    assert run("diff", "-q", "c.pt", "d.pt", "--rtol", "0.1")[0] == 0
    assert run("diff", "-q", "c.pt", "d.pt", "--atol", "0.001")[0] == 1
    assert run("diff", "c.pt", "d.pt", "--exact")[1].split("\t")[5:] == ["2", "2", "0\n"]
    assert run("diff", "c.pt", "d.pt")[1].split("\t")[5:] == ["1", "2", "0\n"]


def test_distances_that_float64_cannot_hold_are_infinite_and_said_to_be(run: Run, here: Path) -> None:
    x = torch.tensor([1.7e308, -1.7e308], dtype=torch.float64)
    torch.save({"x": x}, "c.pt")
    torch.save({"x": -x}, "d.pt")
    note = "note: distances that float64 cannot hold are infinite: x\n"
    summary = "the files differ: 1 of 1 tensor changed, 0 added, 0 removed; biggest change inf in x\n"
    assert run("diff", "c.pt", "d.pt") == (1, "values\tx\tinf\tinf\t2.0\t2\t2\t0\n", summary + note)
    code, out, err = run("diff", "c.pt", "d.pt", "--json")
    assert (code, err) == (1, note)
    assert json.loads(out)["changed"] == [
        {"path": "x", "what": "values", "max_abs": "Infinity", "mean_abs": "Infinity", "count": 2, "max_rel": 2.0, "of": 2, "nonfinite": 0}
    ]
    assert run("diff", "-q", "c.pt", "d.pt") == (1, "", "")


def test_only_params(run: Run, here: Path) -> None:
    torch.save({"x": torch.zeros(1), "epoch": 3}, "c.pt")
    save_file({"x": torch.zeros(1)}, "d.safetensors")
    assert run("diff", "c.pt", "d.safetensors") == (
        1, "scalar\tepoch\t3\t\n", "the files differ: 0 of 1 tensor changed, 0 added, 0 removed, 1 scalar\n"
    )  # fmt: skip
    assert run("diff", "c.pt", "d.safetensors", "--params") == (0, "", "same: 1 tensor\n")


class Odd:
    """A class that no reader has."""


def test_objects_are_said_not_to_be_compared(run: Run, here: Path) -> None:
    torch.save({"x": torch.zeros(1), "o\n": Odd()}, "c.pt")
    torch.save({"x": torch.ones(1), "o\n": Odd()}, "d.pt")
    assert run("diff", "c.pt", "d.pt")[2].splitlines()[1:] == ["note: 1 object compared by class only: o\\n"]


@pytest.fixture
def wrapped(here: Path) -> Path:
    """Save a state, the same within a training checkpoint, and as a wrapped module saves it."""
    state = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).state_dict()
    torch.save(state, "net.pt")
    torch.save({"model": state, "epoch": 1, "optimizer": {"state": {}}}, "training.pt")
    torch.save({f"module.{name}": value for name, value in state.items()}, "module.pt")
    return here


def test_the_hint_names_the_very_option(run: Run, wrapped: Path) -> None:
    code, out, err = run("diff", "module.pt", "net.pt")
    assert (code, len(out.splitlines())) == (1, 8)
    assert err == (
        "no tensor is in both files: 4 added, 4 removed\n"
        "hint: --rename '^module\\.=>' would match 4 of 4\n"
    )  # fmt: skip
    assert run("diff", "module.pt", "net.pt", "--rename", r"^module\.=>") == (0, "", "same: 4 tensors\n")
    assert json.loads(run("diff", "net.pt", "module.pt", "--json")[1])["hint"] == {
        "rename": "^=>module.", "matches": 4, "of": 4
    }  # fmt: skip
    assert run("diff", "training.pt", "net.pt")[2].endswith("hint: --rename '^model\\.=>' would match 4 of 4\n")
    assert run("diff", "training.pt", "net.pt", "--rename", r"^model\.=>", "--params")[0] == 0


def test_renamings_that_cannot_be(run: Run, wrapped: Path) -> None:
    assert run("diff", "module.pt", "net.pt", "--rename", "module.") == (
        2, "", "paramctl: cannot read the renaming 'module.'; write 'RE=>REPL', such as '^module\\.=>'\n"
    )  # fmt: skip
    assert run("diff", "net.pt", "net.pt", "--rename", "[01]=>x") == (
        2, "", "paramctl: net.pt: '0.weight' and '1.weight' both become 'x.weight'; rename them apart\n"
    )  # fmt: skip
    assert run("diff", "net.pt", "net.pt", "--rename", "zz=>") == (
        0, "", "same: 4 tensors\nnote: --rename 'zz=>' changes no path of A\n"
    )  # fmt: skip


def test_layers(run: Run, wrapped: Path) -> None:
    assert run("diff", "a.pt", "b.pt", "--layer", "same", "-l", "t.1") == (0, "", "same: 2 tensors\n")
    code, out, _ = run("diff", "a.pt", "b.pt", "-l", "same", "-l", "new")
    assert (code, out) == (1, "added\tnew\tfloat32\t\n")
    assert run("diff", "a.pt", "b.pt", "-l", "new")[1] == "added\tnew\tfloat32\t\n"
    assert run("diff", "a.pt", "a.pt", "-l", "!t")[2] == "same: 9 tensors\n"
    assert run("diff", "training.pt", "net.pt", "-l", "0", "--rename", r"^model\.=>") == (
        0, "", "selected inside 'model'\nsame: 2 tensors\n"
    )  # fmt: skip
    assert run("diff", "a.pt", "b.pt", "-l", "smal") == (
        1, "", "paramctl: a.pt and b.pt: no parameter or layer matches 'smal'; nearest: small\n"
    )  # fmt: skip


def test_one_may_be_standard_input(spawn: Spawn, here: Path) -> None:
    with Path("a.pt").open("rb") as file:
        done = spawn("diff", "-", "a.pt", stdin=file)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"same: 12 tensors\n")
    done = subprocess.run(
        f"cat a.pt | {sys.executable} -m paramctl diff a.pt -",
        shell=True,
        capture_output=True,
        check=False,
        env=plain(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"same: 12 tensors\n")


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (["-", "-"], 2, "A and B are both standard input; name a FILE for one of them"),
        (["a.pt"], 2, "missing argument 'B'; see 'paramctl diff --help'"),
        (["a.pt", "no.pt"], 3, "no.pt: no such file; check the path"),
        (["no.pt", "a.pt"], 3, "no.pt: no such file; check the path"),
        (["a.pt", "empty"], 3, "empty: is a directory, not a checkpoint file; name a file in it"),
        (["a.pt", "b.pt", "--exact", "--atol", "1"], 2, "--exact and --atol exclude one another; give one of them"),
        (["a.pt", "b.pt", "--atol", "nan"], 2, "atol is nan, not a tolerance; give a number, 0 or more"),
        (["a.pt", "b.pt", "--rtol", "nan"], 2, "rtol is nan, not a tolerance; give a number, 0 or more"),
        (["a.pt", "b.pt", "--rtol", "inf"], 2, "rtol is inf, not a tolerance; give a number, 0 or more"),
        (["a.pt", "b.pt", "--atol", "-1"], 2, "--atol must be a number, 0 or more; see 'paramctl diff --help'"),
        (["a.pt", "b.pt", "-q", "--json"], 2, "--json and --quiet exclude one another; give one of them"),
        (["a.pt", "b.pt", "-l", "@-"], 2, "'@-' can be read once, and is needed for A and for B; name a file: '@FILE'"),
    ],
)
def test_errors(run: Run, here: Path, args: list[str], code: int, error: str) -> None:
    Path("empty").mkdir()
    assert run("diff", *args) == (code, "", f"paramctl: {error}\n")


def test_damage_is_named(run: Run, here: Path) -> None:
    data = bytearray(Path("a.pt").read_bytes())
    data[record_of(Path("a.pt"), "data/1").payload] ^= 1
    Path("bad.pt").write_bytes(data)
    error = "paramctl: bad.pt: storage 1 is corrupt: its bytes do not match their CRC-32\n"
    assert run("diff", "a.pt", "bad.pt") == run("diff", "bad.pt", "a.pt") == (3, "", error)
    Path("bad.pt").write_bytes(b"nothing")
    code, _, err = run("diff", "bad.pt", "bad.pt")
    assert (code, err.startswith("paramctl: bad.pt: ")) == (3, True)


def plain() -> dict[str, str]:
    """Return the environment without variables for colours, and with this package."""
    clean = {key: value for key, value in os.environ.items() if "COLOR" not in key and key != "COLUMNS"}
    return {**clean, "TERM": "xterm", "NO_COLOR": "1", "PYTHONPATH": str(Path(__file__).parents[3])}


def on_terminal(columns: int, *args: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it prints on a terminal of that width."""
    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "paramctl", *args],
        stdin=subprocess.DEVNULL, stdout=terminal, stderr=terminal, env=plain(),
    ) as process:  # fmt: skip
        os.close(terminal)
        out = b""
        try:
            while data := os.read(reader, 65536):
                out += data
        except OSError:  # the terminal is gone with the last that wrote to it
            pass
        os.close(reader)
        return process.wait(), out.decode().replace("\r\n", "\n")


def test_a_layer_may_be_named_as_either_file_calls_it(run: Run, here: Path) -> None:
    torch.save({"model.rows.weight": torch.ones(2), "model.other": torch.ones(3)}, "a.pt")
    torch.save({"rows.weight": torch.ones(2), "other": torch.zeros(3)}, "b.pt")
    for layer in ("model.rows", "rows.weight"):
        assert run("diff", "a.pt", "b.pt", "--layer", layer, "--rename", r"^model\.=>")[0] == 0
    code, out, _ = run("diff", "a.pt", "b.pt", "--layer", "other", "--rename", r"^model\.=>")
    assert (code, out.split("\t")[:2]) == (1, ["values", "other"])


def test_a_count_is_not_the_biggest_change(run: Run, here: Path) -> None:
    torch.save({"w": torch.zeros(3), "steps": torch.tensor(1)}, "a.pt")
    torch.save({"w": torch.full((3,), 0.5), "steps": torch.tensor(900)}, "b.pt")
    code, out, err = run("diff", "a.pt", "b.pt")
    assert (code, [line.split("\t")[1] for line in out.splitlines()]) == (1, ["w", "steps"])
    assert err.endswith("; biggest change 0.5 in w\n")
