"""`paramctl ls`: the flat listing that other programs read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    shared = torch.zeros(8, 4)
    torch.save({"epoch": 3, "a": {"weight": shared, "scale": torch.tensor(1.0)}, "b": {"weight": shared}}, "x.pt")
    return "x.pt"


ROWS = [
    "a.weight	tensor	float32	8x4	32	128	",
    "a.scale	tensor	float32		1	4	",
    "b.weight	tensor	float32	8x4	32	128	a.weight",
]
LINES = "".join(f"{row}\n" for row in ROWS)


def test_a_line_a_tensor(run: Run, tied: str) -> None:
    assert run("ls", tied) == (0, LINES, "")
    assert run("ls", tied, "--tsv") == (0, LINES, "")


def test_layers_choose_and_keep_the_order_of_the_file(run: Run, tied: str) -> None:
    assert run("ls", tied, "-l", "b", "--layer", "a.scale")[1].splitlines() == ROWS[1:]


def test_json_has_a_line_a_tensor(run: Run, tied: str) -> None:
    common = '"kind": "tensor", "dtype": "float32", "shape": [8, 4], "numel": 32, "nbytes": 128'
    assert run("ls", tied, "--json", "-l", "**.weight")[1].splitlines() == [
        "{",
        '  "schema": 1,',
        '  "file": "x.pt",',
        '  "format": "torch-zip",',
        '  "tensors": [',
        f'    {{"path": "a.weight", {common}, "tied_to": null, "global_shape": null}},',
        f'    {{"path": "b.weight", {common}, "tied_to": "a.weight", "global_shape": null}}',
        "  ],",
        '  "totals": {"tensors": 2, "unique": 1, "numel": 32, "nbytes": 128}',
        "}",
    ]


def test_json_lines(run: Run, tied: str) -> None:
    lines = run("ls", tied, "--jsonl")[1].splitlines()
    assert [json.loads(line)["path"] for line in lines] == ["a.weight", "a.scale", "b.weight"]
    assert json.loads(lines[1])["shape"] == []


def test_a_line_is_a_line_whatever_the_name(run: Run, tmp_path: Path) -> None:
    save_file({"a\tb\nc\r\x85\u2028\x1b[2J\u202e": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert run("ls", tmp_path / "x.safetensors")[1] == (
        "a\\tb\\nc\\r\\x85\\u2028\\x1b[2J\\u202e\ttensor\tfloat32\t1\t1\t4\t\n"
    )


def test_a_bare_tensor_has_an_empty_path(run: Run, tmp_path: Path) -> None:
    torch.save(torch.zeros(2), tmp_path / "bare.pt")
    assert run("ls", tmp_path / "bare.pt")[1] == "\ttensor\tfloat32\t2\t2\t8\t\n"
    assert json.loads(run("ls", tmp_path / "bare.pt", "--jsonl")[1])["path"] == ""


def test_options_that_exclude_one_another(run: Run, tied: str) -> None:
    assert run("ls", tied, "--json", "--tsv") == (
        2, "", "paramctl: --tsv and --json exclude one another; give one of them\n"
    )  # fmt: skip


def test_the_largest_and_other_orders(run: Run, tmp_path: Path) -> None:
    made = {"h.10": torch.zeros(3), "h.2": torch.zeros(9), "b": torch.zeros(5), "a": torch.zeros(5, dtype=torch.int8)}
    torch.save(made, tmp_path / "x.pt")

    def names(verb: str, *options: str) -> list[str]:
        return [line.split("\t")[0] for line in run(verb, tmp_path / "x.pt", *options)[1].splitlines()]

    for verb in ("ls", "stats"):
        assert names(verb, "--sort", "size") == ["h.2", "b", "h.10", "a"]
        assert names(verb, "--sort", "name") == ["a", "b", "h.2", "h.10"]
        assert names(verb, "--sort", "file") == ["h.10", "h.2", "b", "a"]
        assert names(verb, "--sort", "size", "--top", "2") == ["h.2", "b"]
        assert names(verb, "--sort", "name", "--top", "2") == ["a", "b"]
    assert names("ls", "--top", "2") == ["h.2", "b"]
    assert names("stats", "--top", "2") == ["h.2", "b"]
    assert names("stats", "--sort", "count", "--reverse", "--top", "1") == ["h.10"]
    assert names("stats", "--by", "layer", "--sort", "size") == ["h", ""]
    document = json.loads(run("ls", tmp_path / "x.pt", "--json", "--top", "2")[1])
    assert ([one["path"] for one in document["tensors"]], document["totals"]["tensors"]) == (["h.2", "b"], 2)
    out = run("tree", tmp_path / "x.pt", "--sort", "size")[1]
    assert [line.replace("│", " ").split()[1] for line in out.splitlines()[1:-2]] == ["h", "2", "10", "b", "a"]
    assert run("tree", tmp_path / "x.pt", "--top", "1")[1].splitlines()[-1] == "1 tensor, 9 values, 36 B"
    assert run("ls", tmp_path / "x.pt", "--top", "0")[2].startswith("paramctl: --top must be a whole number, 1 or more")
