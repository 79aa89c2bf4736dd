"""`paramctl stats`, compared with what it should print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
from helpers import stdin_pipe
from terminals import shown

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., "subprocess.CompletedProcess[bytes]"]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to a directory with the two files that most tests look at."""
    monkeypatch.chdir(tmp_path)
    weight = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    layer = {"weight": weight, "bias": torch.tensor([0.0, -1.5])}
    torch.save({"a": layer, "head": weight, "ids": torch.tensor([3, 1, 2], dtype=torch.int8)}, "net.pt")
    odd = torch.tensor([1.0, float("nan"), 3, float("-inf")])
    meta = torch.empty(2, 3, device="meta")
    torch.save({"x": odd, "m": meta, "e": torch.zeros(0), "z": torch.tensor(-0.0)}, "odd.pt")
    return tmp_path


def expected(text: str) -> str:
    return dedent(text).lstrip("\n")


LINES = [
    "a.weight\tfloat32\t2x3\t6\t3.5\t1.8708286933869707\t1.0\t6.0\t9.539392014169456\t0\t0\t0\n",
    "a.bias\tfloat32\t2\t2\t-0.75\t1.0606601717798212\t-1.5\t0.0\t1.5\t1\t0\t0\n",
    "head\tfloat32\t2x3\t6\t3.5\t1.8708286933869707\t1.0\t6.0\t9.539392014169456\t0\t0\t0\n",
    "ids\tint8\t3\t3\t2.0\t1.0\t1\t3\t3.7416573867739413\t0\t0\t0\n",
]
WHY = "no figures: m is a meta tensor: no values are saved for it\n"


@pytest.mark.parametrize("flags", [[], ["--tsv"]])
def test_lines_in_a_pipe(run: Run, here: Path, flags: list[str]) -> None:
    assert run("stats", "net.pt", *flags) == (0, "".join(LINES), "")


def test_lines_of_odd_values(run: Run, here: Path) -> None:
    assert run("stats", "odd.pt") == (
        0,
        "x\tfloat32\t4\t4\t2.0\t1.4142135623730951\t1.0\t3.0\t3.1622776601683795\t0\t1\t1\n"
        "m\tfloat32\t2x3\t\t\t\t\t\t\t\t\t\n"
        "e\tfloat32\t0\t0\t\t\t\t\t\t0\t0\t0\n"
        "z\tfloat32\t\t1\t0.0\t\t0.0\t0.0\t0.0\t1\t0\t0\n",
        WHY,
    )


def test_json(run: Run, here: Path) -> None:
    assert run("stats", "odd.pt", "--json") == (
        0,
        expected("""
            {
              "schema": 1,
              "file": "odd.pt",
              "tensors": [
                {"path": "x", "kind": "tensor", "dtype": "float32", "shape": [4], "numel": 4, "nbytes": 16, "tied_to": null, "global_shape": null, "count": 4, "mean": 2.0, "std": 1.4142135623730951, "min": 1.0, "max": 3.0, "l2": 3.1622776601683795, "zeros": 0, "nan": 1, "inf": 1},
                {"path": "m", "kind": "tensor", "dtype": "float32", "shape": [2, 3], "numel": 6, "nbytes": 24, "tied_to": null, "global_shape": null, "count": null, "mean": null, "std": null, "min": null, "max": null, "l2": null, "zeros": null, "nan": null, "inf": null, "why": "m is a meta tensor: no values are saved for it"},
                {"path": "e", "kind": "tensor", "dtype": "float32", "shape": [0], "numel": 0, "nbytes": 0, "tied_to": null, "global_shape": null, "count": 0, "mean": null, "std": null, "min": null, "max": null, "l2": null, "zeros": 0, "nan": 0, "inf": 0},
                {"path": "z", "kind": "tensor", "dtype": "float32", "shape": [], "numel": 1, "nbytes": 4, "tied_to": null, "global_shape": null, "count": 1, "mean": 0.0, "std": null, "min": 0.0, "max": 0.0, "l2": 0.0, "zeros": 1, "nan": 0, "inf": 0}
              ]
            }
        """),
        "",
    )


def test_json_lines_name_ties(run: Run, here: Path) -> None:
    assert run("stats", "net.pt", "--jsonl", "--layer", "head", "--layer", "ids") == (
        0,
        '{"path": "head", "kind": "tensor", "dtype": "float32", "shape": [2, 3], "numel": 6, "nbytes": 24, "tied_to": "a.weight", "global_shape": null, "count": 6, "mean": 3.5, "std": 1.8708286933869707, "min": 1.0, "max": 6.0, "l2": 9.539392014169456, "zeros": 0, "nan": 0, "inf": 0}\n'
        '{"path": "ids", "kind": "tensor", "dtype": "int8", "shape": [3], "numel": 3, "nbytes": 3, "tied_to": null, "global_shape": null, "count": 3, "mean": 2.0, "std": 1.0, "min": 1, "max": 3, "l2": 3.7416573867739413, "zeros": 0, "nan": 0, "inf": 0}\n',
        "",
    )


def test_numbers_that_json_has_no_word_for(run: Run, here: Path) -> None:
    torch.save(torch.full((3,), 1.7e308, dtype=torch.float64), "x.pt")
    code, out, _ = run("stats", "x.pt", "--jsonl")
    found = json.loads(out)
    assert (code, found["path"], found["l2"], found["mean"], found["std"]) == (0, "", "Infinity", 1.7e308, 0.0)


def test_layers(run: Run, here: Path) -> None:
    assert run("stats", "net.pt", "--by", "layer") == (
        0,
        "a\t2\t\t8\t2.4375\t2.555631037532609\t-1.5\t6.0\t9.656603957913983\t1\t0\t0\n"
        "\t1\t\t6\t3.5\t1.8708286933869707\t1.0\t6.0\t9.539392014169456\t0\t0\t0\n",
        "",
    )
    assert run("stats", "net.pt", "--by", "layer", "--json", "--layer", "a")[1] == expected("""
        {
          "schema": 1,
          "file": "net.pt",
          "layers": [{"path": "a", "tensors": 2, "count": 8, "mean": 2.4375, "std": 2.555631037532609, "min": -1.5, "max": 6.0, "l2": 9.656603957913983, "zeros": 1, "nan": 0, "inf": 0}]
        }
    """)


def test_a_layer_has_the_figures_of_what_has_some(run: Run, here: Path) -> None:
    out = "\t4\t\t5\t1.3333333333333333\t1.5275252316519468\t0.0\t3.0\t3.1622776601683795\t1\t1\t1\n"
    assert run("stats", "odd.pt", "--by", "layer") == (0, out, WHY)


@pytest.mark.parametrize("key", ["count", "mean", "std", "min", "max", "l2", "zeros", "nan", "inf"])
def test_sorting_puts_the_largest_first_and_what_has_none_last(run: Run, here: Path, key: str) -> None:
    nan, inf = float("nan"), float("inf")
    made = {
        "m": torch.empty(1, device="meta"),
        "a": torch.tensor([7.0, 8.0, nan]),
        "b": torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0, 0.0]),
        "c": torch.tensor([-30.0, 20.0, -inf, inf, 1.0]),
        "d": torch.tensor([0.0, nan, nan, 5.0]),
    }
    torch.save(made, "x.pt")

    def figures(*flags: str) -> list[Any]:
        return [json.loads(line)[key] for line in run("stats", "x.pt", "--jsonl", *flags)[1].splitlines()]

    wanted = sorted((figure for figure in figures() if figure is not None), reverse=True)
    assert figures("--sort", key) == [*wanted, None]
    assert figures("--sort", key, "--reverse") == [*reversed(wanted), None]


def test_sorting_by_path_counts_as_people_do(run: Run, here: Path) -> None:
    torch.save({f"layer.{i}": torch.ones(1) for i in (10, 2, 1)}, "x.pt")
    paths = [[line.split("\t")[0] for line in run("stats", "x.pt", "--sort", "path", *flags)[1].splitlines()] for flags in ([], ["--reverse"])]
    assert paths == [["layer.1", "layer.2", "layer.10"], ["layer.10", "layer.2", "layer.1"]]


def test_reverse_alone_turns_the_file_round(run: Run, here: Path) -> None:
    assert run("stats", "net.pt", "--reverse") == (0, "".join(reversed(LINES)), "")


def test_histograms_for_programs(run: Run, here: Path) -> None:
    torch.save(torch.tensor([0.0, 1.0, 1.0, 2.0, float("nan")]), "x.pt")
    code, out, _ = run("stats", "x.pt", "--jsonl", "--histogram")
    found = json.loads(out)["histogram"]
    assert code == 0 and sorted(found) == ["counts", "edges"]
    assert {edge: n for edge, n in zip(found["edges"], found["counts"], strict=False) if n} == {0.0: 1, 1.0: 2, 2.0: 1}
    assert len(found["edges"]) == len(found["counts"]) + 1 <= 65
    torch.save(torch.zeros(0), "x.pt")
    assert json.loads(run("stats", "x.pt", "--jsonl", "--histogram")[1])["histogram"] == {"edges": [], "counts": []}


def test_spectral(run: Run, here: Path) -> None:
    code, out, _ = run("stats", "net.pt", "--spectral")
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and [len(line) for line in lines] == [14] * 4
    assert [line[-2:] for line in lines if line[0] in ("a.bias", "ids")] == [["", ""]] * 2
    singular = np.linalg.svd(np.arange(1, 7).reshape(2, 3), compute_uv=False)
    wanted = [singular[0], (singular**2).sum() / singular[0] ** 2]
    for line in (lines[0], lines[2]):
        assert [float(text) for text in line[-2:]] == pytest.approx(wanted, rel=1e-12)
    found = [json.loads(line) for line in run("stats", "net.pt", "--spectral", "--jsonl", "--layer", "a")[1].splitlines()]
    assert [(one["sigma"], one["stable_rank"]) for one in found] == [(pytest.approx(wanted[0]), pytest.approx(wanted[1])), (None, None)]


def test_what_has_no_spectrum_says_why(run: Run, here: Path) -> None:
    odd = {"c": torch.ones(2, 2, dtype=torch.bool), "n": torch.full((2, 2), float("nan")), "w": torch.eye(2)}
    torch.save({**odd, "b": torch.ones(2), "s": torch.tensor(1.0)}, "x.pt")
    code, out, err = run("stats", "x.pt", "--spectral")
    assert (code, [line.split("\t")[-2:] for line in out.splitlines()]) == (0, [["", ""], ["", ""], ["1.0", "2.0"], ["", ""], ["", ""]])
    assert err == (
        "no singular values: bool values (1 tensor), NaN or infinite values (1 tensor), "
        "fewer than two dimensions (2 tensors)\n"
    )
    code, out, err = run("stats", "x.pt", "--spectral", "--jsonl")
    assert (code, err, [json.loads(line).get("why_spectral") for line in out.splitlines()]) == (
        0, "", ["bool values", "NaN or infinite values", None, "fewer than two dimensions", "fewer than two dimensions"]
    )  # fmt: skip
    assert "why_spectral" not in run("stats", "x.pt", "--jsonl")[1]


def test_a_span_that_float64_cannot_hold_has_a_histogram(run: Run, here: Path) -> None:
    torch.save({"x": torch.tensor([1e308, -1e308], dtype=torch.float64)}, "x.pt")
    assert shown(100, "stats", "x.pt", "--color", "never") == expected("""
           count  mean         std      min     max          L2  zeros
        x      2     0  1.414e+308  -1e+308  1e+308  1.414e+308      0  █          █
    """)


def test_nothing_in_a_file(run: Run, here: Path) -> None:
    torch.save({}, "x.pt")
    assert run("stats", "x.pt") == (0, "", "")
    assert run("stats", "x.pt", "--json")[1] == '{"schema": 1, "file": "x.pt", "tensors": []}\n'
    assert shown(80, "stats", "x.pt") == ""


def test_hostile_names_are_spelled_out(run: Run, here: Path) -> None:
    torch.save({"a\tb\n\x1b[31m": torch.ones(1), "[red]": torch.ones(1)}, "x.pt")
    assert [line.split("\t")[0] for line in run("stats", "x.pt")[1].splitlines()] == ["a\\tb\\n\\x1b[31m", "[red]"]
    assert shown(100, "stats", "x.pt", "--color", "never") == expected("""
                        count  mean  std  min  max  L2  zeros
        a\\tb\\n\\x1b[31m      1     1         1    1   1      0  █
        [red]               1     1         1    1   1      0  █
    """)
    assert "\x1b[31m" not in shown(100, "stats", "x.pt")


@pytest.mark.parametrize(
    "args, code, error",
    [
        (["net.pt", "--layer", "nope"], 1, "paramctl: net.pt: no parameter or layer matches 'nope'; 'paramctl ls' lists them all\n"),
        (["net.pt", "--json", "--tsv"], 2, "paramctl: --tsv and --json exclude one another; give one of them\n"),
        (["net.pt", "--json", "--jsonl"], 2, "paramctl: --json and --jsonl exclude one another; give one of them\n"),
        (["net.pt", "--by", "layer", "--spectral"], 2, "paramctl: --by layer and --spectral exclude one another; give one of them\n"),
        (["gone.pt"], 3, "paramctl: gone.pt: no such file; check the path\n"),
    ],
)  # fmt: skip
def test_refusals(run: Run, here: Path, args: list[str], code: int, error: str) -> None:
    assert run("stats", *args) == (code, "", error)


def test_corrupt_values(run: Run, here: Path) -> None:
    data = bytearray((here / "net.pt").read_bytes())
    data[data.index(torch.tensor([0.0, -1.5]).numpy().tobytes()) + 1] ^= 1
    (here / "net.pt").write_bytes(data)
    error = "paramctl: net.pt: storage 1 is corrupt: its bytes do not match their CRC-32\n"
    for flags in ([], ["--json"], ["--jsonl"], ["--by", "layer"], ["--sort", "std"]):
        assert run("stats", "net.pt", *flags) == (3, "", error)
    assert run("stats", "net.pt", "--layer", "ids") == (0, LINES[3], "")


def test_a_checkpoint_through_a_pipe(run: Run, here: Path) -> None:
    data = (here / "net.pt").read_bytes()
    for args in ([], ["-"]):
        with stdin_pipe(data):
            assert run("stats", *args) == (0, "".join(LINES), "")


def test_head_ends_it_quietly(here: Path) -> None:
    torch.save({str(i): torch.ones(1) for i in range(5000)}, "x.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m paramctl stats x.pt | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == (b"0\tfloat32\t1\t1\t1.0\t\t1.0\t1.0\t1.0\t0\t0\t0\n", b"")


def test_warnings_of_numpy_reach_nobody(spawn: Spawn, here: Path) -> None:
    """Values at the ends of what a float holds, NaN that signal."""
    bits = torch.tensor([0x7F800001, 0x00000001, 0x7F7FFFFF, -1], dtype=torch.int32)
    made = {"f": bits.view(torch.float32), "b": bits.view(torch.bfloat16), "h": bits.view(torch.float16)}
    made |= {"d": torch.tensor([1.7e308, -1.7e308, 5e-324], dtype=torch.float64), "c": torch.tensor([complex(1.7e308, 1.7e308)], dtype=torch.complex128)}
    for i, (name, tensor) in enumerate(made.items()):
        torch.save({name: tensor}, f"{i}.pt")
        for flags in (["--jsonl", "--histogram"], []):
            done = spawn("stats", f"{i}.pt", *flags)
            assert (done.returncode, done.stderr) == (0, b"")


TABLE = expected("""
              count   mean    std   min  max     L2  zeros
    a.weight      6    3.5  1.871     1    6  9.539      0  █ █ █  █ █ █
    a.bias        2  -0.75  1.061  -1.5    0    1.5      1  █          █
    head          6    3.5  1.871     1    6  9.539      0  █ █ █  █ █ █  = a.weight
    ids           3      2      1     1    3  3.742      0  █     █    █
""")


@pytest.mark.parametrize("columns", [80, 140])
def test_a_shown(here: Path, columns: int) -> None:
    assert shown(columns, "stats", "net.pt", "--color", "never") == TABLE
    assert shown(columns, "stats", "net.pt", NO_COLOR="1") == TABLE


def test_columns_of_odd_values_show_where_there_are_some(here: Path) -> None:
    assert shown(80, "stats", "odd.pt", NO_COLOR="1") == (
        expected("""
               count  mean    std  min  max     L2  zeros  NaN  inf
            x      4     2  1.414    1    3  3.162      0    1    1  █          █
            m
            e      0                                    0    0    0
            z      1     0           0    0      0      1    0    0  █
        """)
        + WHY
    )


def test_narrow_terminals_lose_columns_and_say_which(here: Path) -> None:
    torch.save({"model.layers.0.attention.query_projection.weight": torch.arange(8.0), "short": torch.tensor(1.0)}, "x.pt")
    assert shown(140, "stats", "x.pt", NO_COLOR="1") == expected("""
                                                          count  mean    std  min  max     L2  zeros
        model.layers.0.attention.query_projection.weight      8   3.5  2.449    0    7  11.83      1  ██ █ ██ █ ██
        short                                                 1     1           1    1      1      0  █
    """)
    assert shown(60, "stats", "x.pt", NO_COLOR="1") == expected("""
                          mean    std  min  max     L2
        model.l…n.weight   3.5  2.449    0    7  11.83  ██ █ ██ █ ██
        short                1           1    1      1  █
        the terminal is too narrow for count, zeros; --tsv has them
    """)
    assert shown(50, "stats", "x.pt", NO_COLOR="1") == expected("""
                                     mean    std  min  max
        model.layers.…ection.weight   3.5  2.449    0    7
        short                           1           1    1
        the terminal is too narrow for count, zeros, L2; --tsv has them
    """)


def test_colours_are_the_sixteen_of_the_shown(here: Path) -> None:
    out = shown(80, "stats", "odd.pt")
    assert out.splitlines()[0] == "".join(
        f"\x1b[2m{title}\x1b[0m" for title in ("   ", "count  ", "mean  ", "  std  ", "min  ", "max  ", "   L2  ", "zeros  ", "NaN  ", "inf")
    )
    assert "\x1b[31m  1  \x1b[0m" in out  # NaN
    assert "\x1b[2m  0  \x1b[0m" in out  # none


def test_force_color_in_a_pipe_changes_no_lines_for_programs(spawn: Spawn, here: Path) -> None:
    assert spawn("stats", "net.pt", env={"FORCE_COLOR": "1"}).stdout.decode() == "".join(LINES)


def test_a_terminal_without_unicode(here: Path) -> None:
    assert shown(80, "stats", "net.pt", NO_COLOR="1", PYTHONIOENCODING="ascii") == TABLE.replace("█", "#")
