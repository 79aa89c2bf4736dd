"""`paramctl track` on the samples and on small runs: lines, tables, JSON and errors."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from set_files import make, saved
from terminals import shown

from paramctl.cli.text_charts import sparkline, thinned

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]

SAMPLES = [f"tied_mlp_step{i}.pt" for i in range(3)]
FOLDER = Path(__file__).parents[3] / "sample_models"


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Save a run with NaN, new params, names for a terminal and no steps."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a\x1b[1m": torch.ones(4)}, "run2.pt")
    torch.save({"a\x1b[1m": torch.full((4,), 2.0), "b": torch.tensor([float("nan"), 1.0])}, "run10.pt")
    return ["run10.pt", "run2.pt"]


def on_terminal(columns: int, *args: str) -> str:
    """Return what a command shows on a terminal of so many columns, without colour."""
    return shown(columns, *args, NO_COLOR="1")


def test_a_line_a_step(run: Run, samples: None) -> None:
    code, out, err = run("track", *reversed(SAMPLES))
    assert (code, err) == (0, "in the order of 'step'\n")
    lines = [line.split("\t") for line in out.splitlines()]
    names = [[line[0], line[1], line[2]] for line in lines]
    assert names == [["0", SAMPLES[0], ""], ["1", SAMPLES[1], ""], ["2", SAMPLES[2], ""]]
    assert lines[0][4:6] == ["", ""]  # nothing came before
    figures = [[f"{float(cell):.6g}" if cell else "" for cell in line[3:]] for line in lines]
    assert figures == [
        ["2.54164", "", "", "0.773291", "0.0278624", "0.230326", "0", "0", "0.0773291", "0.00018327"],
        ["2.54016", "0.10271", "0.0404108", "0.683269", "0.0273831", "0.230247", "0", "0", "0.137323", "0.000314497"],
        ["2.54588", "0.0956453", "0.0376533", "0.626667", "0.0273391", "0.230779", "0", "0", "0.183048", "0.000411634"],
    ]
    assert run("track", *SAMPLES, "--tsv")[1] == out


def test_a_line_a_step_and_parameter(run: Run, samples: None) -> None:
    code, out, err = run("track", *SAMPLES, "--layer", "2", "--each")
    assert (code, err) == (0, "selected inside 'model'\nin the order of 'step'\n")
    assert [line.split("\t")[:3] for line in out.splitlines()] == [
        [str(i), SAMPLES[i], path] for i in range(3) for path in ("2.weight", "2.bias")
    ]


def test_json(run: Run, samples: None) -> None:
    code, out, _ = run("track", *SAMPLES[:2], "--layer", "2.bias", "--json")
    document = json.loads(out)
    assert (code, list(document), document["schema"]) == (0, ["schema", "steps"], 1)
    first, second = document["steps"]
    assert list(first) == [
        "file", "step", "path", "norm", "update", "ratio", "grad", "moments", "mean", "std", "nan", "inf"
    ]  # fmt: skip
    assert (first["file"], first["step"], first["path"]) == (SAMPLES[0], 0, None)
    assert (first["update"], first["ratio"], first["nan"], first["inf"]) == (None, None, 0, 0)
    assert second["update"] == pytest.approx(0.02769066976325475)
    assert second["moments"] == pytest.approx({"exp_avg": 0.0395275744659213, "exp_avg_sq": 4.812291151302102e-05})
    lines = run("track", *SAMPLES[:2], "--layer", "2.bias", "--jsonl")[1].splitlines()
    assert [json.loads(line) for line in lines] == [first, second]


def test_a_table_on_a_wide_terminal(samples: None) -> None:
    assert on_terminal(140, "track", *SAMPLES) == dedent("""\
        in the order of 'step'
        step  file                norm   update    ratio    grad  exp_avg  exp_avg_sq     mean     std
           0  tied_mlp_step0.pt  2.542                    0.7733  0.07733   0.0001833  0.02786  0.2303
           1  tied_mlp_step1.pt   2.54   0.1027  0.04041  0.6833   0.1373   0.0003145  0.02738  0.2302
           2  tied_mlp_step2.pt  2.546  0.09565  0.03765  0.6267    0.183   0.0004116  0.02734  0.2308
                                   ▃▁█       █▁       █▁     █▄▁      ▁▅█         ▁▅█      █▂▁     ▂▁█
        """)


def test_a_table_on_a_narrow_terminal(samples: None) -> None:
    shown = on_terminal(80, "track", *SAMPLES)
    assert shown == dedent("""\
        in the order of 'step'
        step  file              norm   update    ratio    grad  exp_avg     mean     std
           0  tied_ml…tep0.pt  2.542                    0.7733  0.07733  0.02786  0.2303
           1  tied_ml…tep1.pt   2.54   0.1027  0.04041  0.6833   0.1373  0.02738  0.2302
           2  tied_ml…tep2.pt  2.546  0.09565  0.03765  0.6267    0.183  0.02734  0.2308
                                 ▃▁█       █▁       █▁     █▄▁      ▁▅█      █▂▁     ▂▁█
        the terminal is too narrow for exp_avg_sq; --tsv has them
        """)
    assert max(map(len, shown.splitlines())) <= 80


def test_curves_of_each_parameter_stand_below_the_table(samples: None) -> None:
    lines = on_terminal(140, "track", *SAMPLES, "-l", "2", "--each").splitlines()
    assert lines[2].split() == [
        "step", "file", "path", "norm", "update", "ratio", "grad", "exp_avg", "exp_avg_sq", "mean", "std"
    ]  # fmt: skip
    assert [line.split() for line in lines[-2:]] == [
        ["2.weight", "▁▁█", "█▁", "█▁", "█▃▁", "▁▅█", "▁▅█", "█▁▂", "▁▁█"],
        ["2.bias", "█▃▁", "█▁", "█▁", "█▅▁", "▁▆█", "▁▅█", "▁▁█", "█▃▁"],
    ]


def test_what_is_odd_gets_columns_and_remarks(odd: list[str]) -> None:
    assert on_terminal(100, "track", *odd) == dedent("""\
        in the order of the files' names
        run10.pt: new: b; the update covers the others
        file       norm  update  ratio  mean     std  NaN
        run2.pt       2                    1       0    0
        run10.pt  4.123       2      1   1.8  0.4472    1
                     ▁█       ▅      ▅    ▁█      ▁█
        """)


def test_a_line_is_a_line_whatever_the_name(run: Run, odd: list[str]) -> None:
    lines = run("track", *odd, "--each")[1].splitlines()
    assert [line.split("\t")[:7] for line in lines] == [
        ["", "run2.pt", "a\\x1b[1m", "2.0", "", "", ""],
        ["", "run10.pt", "a\\x1b[1m", "4.0", "2.0", "1.0", ""],
        ["", "run10.pt", "b", "1.0", "", "", ""],
    ]


def test_the_order_can_be_chosen(run: Run, odd: list[str], samples: None) -> None:
    files = list(reversed(SAMPLES))
    code, out, err = run("track", *files, "--order", "given")
    assert (code, [line.split("\t")[0] for line in out.splitlines()], err) == (0, ["2", "1", "0"], "")
    assert run("track", *files, "--order", "name")[2] == "in the order of the files' names\n"


def test_one_file_has_no_order(run: Run, odd: list[str]) -> None:
    code, out, err = run("track", "run2.pt")
    assert (code, out.split("\t")[:4], err) == (0, ["", "run2.pt", "", "2.0"], "")


def test_what_was_named_and_is_left_out_is_said_once(run: Run, odd: list[str]) -> None:
    for name in ("x1.pt", "x2.pt"):
        torch.save({"w": torch.ones(4), **{f"n{i}\x1b": torch.tensor(i) for i in range(5)}}, name)
    remark = (
        "left out: {} (n0\\x1b, n1\\x1b, n2\\x1b and {} more); integers, flags and running statistics are followed beside weights"
        " only if named by their full paths\n"
    )
    order = "in the order of the files' names\n"
    assert run("track", "x1.pt", "x2.pt", "-l", "*", "--each")[2] == order + remark.format("5 tensors", 2)
    code, out, err = run("track", "x1.pt", "x2.pt", "-l", "*", "-l", "n4\x1b", "--each")
    assert [line.split("\t")[2] for line in out.splitlines()] == ["w", "n4\\x1b"] * 2
    assert (code, err) == (0, order + remark.format("4 tensors", 1))
    assert run("track", "x1.pt", "x2.pt")[2] == order


def test_folders_are_followed_as_files_are(run: Run, odd: list[str]) -> None:
    for n in (10, 2):
        make(Path(f"step{n}"), [{"a": torch.full((4,), float(n))}, {"b": torch.zeros(1)}])
        saved(Path(f"dcp{n}"), {"model": {"w": torch.full((4,), float(n))}, "step": n})
    code, out, err = run("track", "step10/", "step2/")
    assert (code, err) == (0, "in the order of the files' names\n")
    assert [line.split("\t")[:5] for line in out.splitlines()] == [
        ["", "step2/", "", "4.0", ""], ["", "step10/", "", "20.0", "16.0"]
    ]  # fmt: skip
    code, out, err = run("track", "dcp10", "dcp2", "-l", "w", "--each")
    assert (code, err) == (0, "selected inside 'model'\nin the order of 'step'\n")
    assert [line.split("\t")[:5] for line in out.splitlines()] == [
        ["2", "dcp2", "w", "4.0", ""], ["10", "dcp10", "w", "20.0", "16.0"]
    ]  # fmt: skip


def test_one_may_come_through_a_pipe(spawn: Spawn, samples: None) -> None:
    with Path(SAMPLES[1]).open("rb") as file:
        data = file.read()
    done = spawn("track", SAMPLES[0], "-", "--jsonl", input=data, stdin=None)
    assert done.returncode == 0
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(step["file"], step["step"]) for step in found] == [(SAMPLES[0], 0), ("-", 1)]
    assert found[1]["update"] == pytest.approx(0.1027097318832705)


def test_errors(run: Run, odd: list[str]) -> None:
    assert run("track", *odd, "--layer", "nope") == (
        1, "", "paramctl: run10.pt: no parameter or layer matches 'nope'; 'paramctl ls' lists them all\n"
    )  # fmt: skip
    assert run("track", *odd, "--order", "step") == (
        2, "", "paramctl: the checkpoints hold no step that tells them apart; order them by 'name', or as 'given'\n"
    )  # fmt: skip
    assert run("track", "run2.pt", "gone.pt") == (3, "", "paramctl: gone.pt: no such file; check the path\n")
    assert run("track", *odd, "--json", "--tsv")[0] == 2
    assert run("track")[0] == 2


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, None, 6.0]) == "▁ █"
    assert sparkline([5.0, 5.0]) == "▅▅"
    assert sparkline([]) == ""
    assert sparkline([-1.7e308, 1.7e308]) == "▁█"


def test_many_values_are_thinned_by_their_means() -> None:
    assert thinned([1, 2, 3], 3) == [1, 2, 3]
    assert thinned([1, 3, None, None, 5, None], 3) == [2, None, 5]
