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
