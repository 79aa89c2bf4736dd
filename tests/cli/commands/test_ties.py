"""`paramctl ties`: groups of ties, and overlapping views."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

Run = Callable[..., tuple[int, str, str]]


ROOT = Path(__file__).parents[3]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    weight, bias, storage = torch.zeros(3, 3), torch.zeros(3), torch.zeros(10)
    state = {f"{i}.{name}": value for i in (2, 4, 6) for name, value in (("weight", weight), ("bias", bias))}
    path = tmp_path / "x.pt"
    torch.save({**state, "a": storage[:6], "b\x1b": storage[4:], "other": torch.zeros(3)}, path)
    return path


def test_a_line_a_group(run: Run, shared: Path) -> None:
    assert run("ties", shared) == (
        0, "2.weight = 4.weight = 6.weight\n2.bias = 4.bias = 6.bias\na ~ b\\x1b overlaps\n", ""
    )  # fmt: skip


def test_json(run: Run, shared: Path) -> None:
    assert json.loads(run("ties", shared, "--json")[1]) == {
        "schema": 1,
        "groups": [["2.weight", "4.weight", "6.weight"], ["2.bias", "4.bias", "6.bias"]],
        "overlaps": [["a", "b\x1b"]],
    }


def test_none_is_fine(run: Run, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "x.pt")
    assert run("ties", tmp_path / "x.pt") == (0, "", "no ties; --equal looks at values\n")
    assert json.loads(run("ties", tmp_path / "x.pt", "--json")[1]) == {
        "schema": 1,
        "groups": [],
        "overlaps": [],
    }


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def equal(*names: str) -> dict[str, torch.Tensor]:
    return {name: torch.arange(4.0) for name in names}


def test_whole_layers_come_as_one(run: Run, here: Path) -> None:
    torch.save({**equal("2.weight", "4.weight"), "2.bias": torch.ones(2), "4.bias": torch.ones(2)}, "x.pt")
    lines = "2 == 4  (saves 24 B)\n    paramctl tie x.pt 2 4 -o OUT\n"
    assert run("ties", "x.pt", "--equal") == (0, lines, "")
    found = {"paths": ["2", "4"], "saved": 24, "constant": False, "command": ["paramctl", "tie", "x.pt", "2", "4", "-o", "OUT"]}
    assert json.loads(run("ties", "x.pt", "--equal", "--json")[1])["equal"] == [found]


@pytest.mark.parametrize(
    "file, names, command",
    [
        ("x.pt", ("a", "b"), "paramctl tie x.pt a b -o OUT"),
        ("x.pt", ("a", "-b"), "paramctl tie -o OUT -- x.pt a -b"),
        ("-x.pt", ("a", "b"), "paramctl tie -o OUT -- -x.pt a b"),
        ("--help", ("--force", "--"), "paramctl tie -o OUT -- --help --force --"),
        ("a b.pt", ("a b", "'$x"), "paramctl tie 'a b.pt' 'a b' ''\"'\"'$x' -o OUT"),
        ("\x1b'\\\udcffé.pt", ("a\x1b", "b\u202e"), "paramctl tie $'\\x1b\\x27\\x5c\\xff\\xc3\\xa9.pt' '[0]' '[1]' -o OUT"),
        ("x.pt", ("re:b", "!a", "@a", "[0]", "*"), "paramctl tie x.pt re:b '!a' @a '[0]' '*' -o OUT"),
    ],
)
def test_the_command_that_is_shown_ties_them(run: Run, here: Path, file: str, names: tuple[str, ...], command: str) -> None:
    torch.save(equal(*names), here / "made.pt")
    (here / "made.pt").rename(here / file)
    code, out, _ = run("ties", "--equal", "--", file)
    assert (code, out.splitlines()[1]) == (0, f"    {command}")
    script = f"paramctl() {{ python -m paramctl \"$@\"; }}; {command.replace('OUT', 'OUT.pt')} --quiet"
    if " -- " in command:
        script = script.replace("tie -o", "tie --quiet -o").removesuffix(" --quiet")
    subprocess.run(["bash", "-c", script], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert len(json.loads(run("ties", "OUT.pt", "--json")[1])["groups"][0]) == len(names)


def test_constants_and_moving_averages_are_not_proposed(run: Run, tmp_path: Path) -> None:
    drawn = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    model = {"a.weight": drawn, "norm1.weight": torch.ones(4), "norm2.weight": torch.ones(4)}
    torch.save({"model": model, "ema": {name: value.clone() for name, value in model.items()}}, tmp_path / "x.pt")
    code, out, err = run("ties", tmp_path / "x.pt", "--equal")
    assert (code, out) == (0, "")
    assert "left out: 1 group of constants, all of one value" in err
    assert "of moving averages (EMA) of params" in err
    torch.save({"a.weight": drawn, "b.weight": drawn.clone(), "schema.weight": torch.ones(4)}, tmp_path / "x.pt")
    code, out, err = run("ties", tmp_path / "x.pt", "--equal")
    assert out.startswith("a.weight == b.weight")
    assert err == ""
