"""`paramctl tree`, compared with what it should print."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paramctl.cli.tree_text import Layout, Rows
from paramctl.model.tree import Folds, build

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change to an empty working directory, so that file names print as they are given."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expected(text: str) -> str:
    return dedent(text).lstrip("\n")


def test_a_state_dict(run: Run, here: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).state_dict(), "net.pt")
    assert run("tree", "net.pt") == (
        0,
        expected("""
            net.pt  torch-zip
            ├── 0                           40  160 B
            │   ├── weight  float32  8 × 4  32  128 B
            │   └── bias    float32  8       8   32 B
            └── 2                            9   36 B
                ├── weight  float32  1 × 8   8   32 B
                └── bias    float32  1       1    4 B

            4 tensors, 49 values, 196 B
        """),
        "",
    )


def test_a_whole_module_names_its_classes_and_its_ties(run: Run, here: Path) -> None:
    shared = nn.Linear(8, 8)
    torch.save(nn.Sequential(nn.Linear(4, 8), shared, nn.Tanh(), shared), "tied.pt")
    assert run("tree", "tied.pt")[1] == expected("""
        tied.pt  torch-zip  Sequential
        ├── 0  Linear(4 → 8)            40  160 B
        │   ├── weight  float32  8 × 4  32  128 B
        │   └── bias    float32  8       8   32 B
        ├── 1  Linear(8 → 8)            72  288 B
        │   ├── weight  float32  8 × 8  64  256 B
        │   └── bias    float32  8       8   32 B
        ├── 2  Tanh
        └── 3  Linear(8 → 8)            72  288 B
            ├── weight  float32  8 × 8  64  256 B  = 1.weight
            └── bias    float32  8       8   32 B  = 1.bias

        6 tensors (4 unique), 112 values, 448 B
    """)


def test_buffers_scalars_and_dimensionless_tensors(run: Run, here: Path) -> None:
    torch.save({"epoch": 12, "loss": float("nan"), "arch": "a\x1bb", "net": nn.BatchNorm1d(2)}, "train.pt")
    assert run("tree", "train.pt")[1] == expected("""
        train.pt  torch-zip
        ├── epoch                    12
        ├── loss                     nan
        ├── arch                     a\\x1bb
        └── net  BatchNorm1d(2)                       9  40 B
            ├── weight               float32  2       2   8 B
            ├── bias                 float32  2       2   8 B
            ├── running_mean         float32  2       2   8 B  buffer
            ├── running_var          float32  2       2   8 B  buffer
            └── num_batches_tracked  int64    scalar  1   8 B  buffer

        5 tensors, 9 values, 40 B
    """)


BLOCKS = {f"layers.{i}.{name}": torch.zeros(2) for i in (0, 1, 10, 2) for name in ("a", "b")}


def test_repeated_blocks_fold(run: Run, here: Path) -> None:
    save_file(BLOCKS, "blocks.safetensors")
    assert run("tree", "blocks.safetensors")[1] == expected("""
        blocks.safetensors  safetensors
        └── layers                 16  64 B
            ├── 0–2 ×3              4  16 B  each
            │   ├── a  float32  2   2   8 B
            │   └── b  float32  2   2   8 B
            └── 10                  4  16 B
                ├── a  float32  2   2   8 B
                └── b  float32  2   2   8 B

        8 tensors, 16 values, 64 B
    """)


def test_expand_opens_them_and_sort_puts_ten_last(run: Run, here: Path) -> None:
    save_file(BLOCKS, "blocks.safetensors")
    assert run("tree", "blocks.safetensors", "--expand", "--sort", "name", "-L", "2")[1] == expected("""
        blocks.safetensors  safetensors
        └── layers  16  64 B
            ├── 0    4  16 B
            ├── 1    4  16 B
            ├── 2    4  16 B
            └── 10   4  16 B

        8 tensors, 16 values, 64 B
    """)
    assert run("tree", "blocks.safetensors", "--expand")[1].count("float32") == 8


def test_depth_sums_up_what_is_deeper(run: Run, here: Path) -> None:
    save_file({**BLOCKS, "top": torch.zeros(3)}, "blocks.safetensors")
    assert run("tree", "blocks.safetensors", "-L", "1")[1] == expected("""
        blocks.safetensors  safetensors
        ├── layers           16  64 B
        └── top  float32  3   3  12 B

        9 tensors, 19 values, 76 B
    """)


def test_a_bare_tensor_and_a_composite_one(run: Run, here: Path) -> None:
    torch.save(torch.zeros(3), "bare.pt")
    assert run("tree", "bare.pt")[1] == expected("""
        bare.pt  torch-zip
        └── .  float32  3  3  12 B

        1 tensor, 3 values, 12 B
    """)
    torch.save({"s": torch.eye(3).to_sparse()}, "sparse.pt")
    assert run("tree", "sparse.pt", "--expand")[1] == expected("""
        sparse.pt  torch-zip
        └── s            float32  3 × 3  9  60 B  sparse_coo
            ├── indices  int64    2 × 3  6  48 B
            └── values   float32  3      3  12 B

        1 tensor, 9 values, 60 B
    """)


def test_nothing(run: Run, here: Path) -> None:
    save_file({}, "nothing.safetensors")
    assert run("tree", "nothing.safetensors")[1] == "nothing.safetensors  safetensors\n\n0 tensors, 0 values, 0 B\n"


def test_names_are_data(run: Run, here: Path) -> None:
    names = [
        "[bold]x[/bold]",
        "[/x]",
        "\x1b[31mred",
        "a\tb\nc",
        "\u202egnp",
        "\u2028",
        "zero\u200bwidth",
        "重み",
        "\ue000",
    ]
    save_file({name: torch.zeros(1) for name in names}, "names.safetensors")
    out = run("tree", "names.safetensors")[1]
    shown = [line[4:].split("  ")[0] for line in out.splitlines()[1:-2]]
    assert sorted(shown) == sorted(
        [
            "[bold]x[/bold]",
            "[/x]",
            "\\x1b[31mred",
            "a\\tb\\nc",
            "\\u202egnp",
            "\\u2028",
            "zero\\u200bwidth",
            "重み",
            "\\ue000",
        ]
    )


def test_off_a_terminal_no_name_is_cut(run: Run, here: Path) -> None:
    name = "x" * 3000
    save_file({name: torch.zeros(1), "w": torch.zeros(1)}, "long.safetensors")
    out = run("tree", "long.safetensors")[1]
    assert name in out
    assert max(len(line) for line in out.splitlines() if "w" in line) < 150


def test_layers_choose(run: Run, here: Path) -> None:
    save_file({"a.w": torch.zeros(1), "a.b": torch.zeros(2), "c.w": torch.zeros(3)}, "x.safetensors")
    out = run("tree", "x.safetensors", "--layer", "c", "-l", "a.b")[1]
    assert out == expected("""
        x.safetensors  safetensors
        ├── a                  2   8 B
        │   └── b  float32  2  2   8 B
        └── c                  3  12 B
            └── w  float32  3  3  12 B

        2 tensors, 5 values, 20 B
    """)


def test_json_nests_the_objects_of_ls(run: Run, here: Path) -> None:
    shared = nn.Linear(1, 1, bias=False)
    torch.save({"epoch": 3, "best": float("-inf"), "net": nn.Sequential(shared, shared)}, "x.pt")
    code, out, _ = run("tree", "x.pt", "--json")
    document = json.loads(out)

    def tensor(at: int, tied_to: str | None) -> dict[str, Any]:
        return {
            "name": "weight", "path": f"net.{at}.weight", "kind": "parameter", "dtype": "float32", "shape": [1, 1],
            "numel": 1, "nbytes": 4, "tied_to": tied_to, "global_shape": None,
        }  # fmt: skip

    assert code == 0
    assert document == {
        "schema": 1,
        "file": "x.pt",
        "format": "torch-zip",
        "root": {
            "name": "",
            "type": None,
            "children": [
                {"name": "epoch", "value": 3},
                {"name": "best", "value": "-Infinity"},
                {
                    "name": "net",
                    "type": "Sequential",
                    "children": [
                        {"name": "0", "type": "Linear", "children": [tensor(0, None)]},
                        {"name": "1", "type": "Linear", "children": [tensor(1, "net.0.weight")]},
                    ],
                },
            ],
        },
        "totals": {"tensors": 2, "unique": 1, "numel": 1, "nbytes": 4},
    }


def test_json_never_folds_and_is_ascii(run: Run, here: Path) -> None:
    save_file({**BLOCKS, "\u202e重\x9b": torch.zeros(1)}, "x.safetensors")
    out = run("tree", "x.safetensors", "--json")[1]
    assert out.isascii()
    assert out.count('"dtype"') == 9
    assert "\u202e重\x9b" in {child["name"] for child in json.loads(out)["root"]["children"]}


def test_json_of_three_thousand_dots(run: Run, here: Path) -> None:
    path = ".".join("x" * 3000)
    save_file({path: torch.zeros(1)}, "deep.safetensors")
    assert f'"path": "{path}"' in run("tree", "deep.safetensors", "--json")[1]
    assert run("tree", "deep.safetensors")[0] == 0


def test_sixty_thousand_lines_are_the_same_as_a_few(here: Path) -> None:
    """The fast way to a plain line and the slow way to a coloured one say the same."""
    from paramctl.formats import opening

    save_file({**BLOCKS, "重": torch.zeros(1), "a.b": torch.zeros(2, 3)}, "x.safetensors")
    checkpoint = opening.open("x.safetensors")
    root = build(checkpoint)
    rows = Rows(Folds(root), None).of(root, checkpoint)
    layout = Layout(rows, None)
    assert [layout.text(row) for row in rows] == ["".join(layout.line(row).cells).rstrip() for row in rows]


def on_terminal(columns: int, *args: str, **env: str) -> str:
    """Return what a command prints on a terminal of that width."""
    reader, terminal = pty.openpty()
    clean = {key: value for key, value in os.environ.items() if "COLOR" not in key}
    settings = {
        **clean,
        "TERM": "xterm",
        "COLUMNS": str(columns),
        "PYTHONPATH": str(Path(__file__).parents[3]),
        **env,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "paramctl", *args],
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        env=settings,
    ) as process:
        os.close(terminal)
        out = b""
        try:
            while data := os.read(reader, 65536):
                out += data
        except OSError:
            pass
        os.close(reader)
        assert process.wait() == 0
    return out.decode().replace("\r\n", "\n")


def test_on_a_terminal_names_give_way(here: Path) -> None:
    save_file({"encoder." + "very_long_name_" * 8: torch.zeros(1024, 2), "b": torch.zeros(1)}, "x.safetensors")
    assert on_terminal(60, "tree", "x.safetensors", NO_COLOR="1") == expected("""
        x.safetensors  safetensors
        ├ b                        float32  1             1      4 B
        └ encoder                                     2,048  8.0 KiB
          └ very_long_…long_name_  float32  1024 × 2  2,048  8.0 KiB

        2 tensors, 2,049 values, 8.0 KiB
    """)


def test_on_a_terminal_guides_give_way_first(here: Path) -> None:
    weight = torch.zeros(8, 4)
    inner = {"a.b.c.d.e.f.weight": weight, "a.b.c.d.e.f.bias": torch.zeros(8), "head.weight": weight}
    torch.save({"model": inner, "notes": "long " * 40}, "deep.pt")
    assert on_terminal(50, "tree", "deep.pt", NO_COLOR="1") == expected("""
        deep.pt  torch-zip
        ├ model                        160 B
        │ ├ a                          160 B
        │ │ └ b                        160 B
        …│   └ c                       160 B
        …    └ d                       160 B
        …    └ e                       160 B
        …    └ f                       160 B
        …    ├ weight  float32  8 × 4  128 B
        …    └ bias    float32  8       32 B
        │ └ head                       128 B
        │   └ weight   float32  8 × 4  128 B  = mod…weight
        └ notes        long long long long long long long…

        3 tensors (2 unique), 40 values, 160 B
    """)
    assert on_terminal(100, "tree", "deep.pt", NO_COLOR="1").splitlines()[2].startswith("│   ├── a  ")


def test_on_a_terminal_a_files_folders_give_way_to_its_format(here: Path) -> None:
    Path("folder" * 9).mkdir()
    save_file({"w": torch.zeros(1)}, f"{'folder' * 9}/x.safetensors")
    first = on_terminal(50, "tree", f"{'folder' * 9}/x.safetensors", NO_COLOR="1").splitlines()[0]
    assert first.endswith("x.safetensors  safetensors") and len(first) == 50


def test_on_a_terminal_there_is_colour(here: Path) -> None:
    save_file({"[b].w": torch.zeros(1)}, "x.safetensors")
    out = on_terminal(80, "tree", "x.safetensors")
    assert "\x1b[1m[b]\x1b[0m" in out
    assert "\x1b[36m  float32\x1b[0m" in out
    assert "\x1b" not in on_terminal(80, "tree", "x.safetensors", NO_COLOR="1")
    assert "\x1b" not in on_terminal(80, "tree", "x.safetensors", TERM="dumb")
    assert "\x1b" not in on_terminal(80, "tree", "x.safetensors", "--color", "never")


def test_every_component_shows_its_own_dtype_and_shape(run: Run, tmp_path: Path) -> None:
    made: dict[str, torch.Tensor] = {}
    for i in range(2, 22):
        place = torch.arange(i)
        made[f"t{i}"] = torch.sparse_coo_tensor(torch.stack([place, place]), torch.ones(i, dtype=torch.float64), check_invariants=True)
    torch.save(made, tmp_path / "x.pt")
    out = run("tree", tmp_path / "x.pt", "--expand")[1]
    found = [line.replace("│", " ").split() for line in out.splitlines()]
    shown = [words[1:] for words in found if len(words) > 2 and words[1] in ("indices", "values")]
    expected = []
    for i in range(2, 22):
        expected.append(["indices", "int64", "2", "×", str(i), str(2 * i), str(16 * i), "B"])
        expected.append(["values", "float64", str(i), str(i), str(8 * i), "B"])
    assert shown == expected


TRAINED: dict[str, object] = {
    "epoch": 3,
    "model": {"0.w": torch.zeros(2), "1.w": torch.zeros(2)},
    "args": {"lr": 0.1, "w": torch.zeros(2), "deep": {"x": "y"}},
}


@pytest.mark.parametrize(
    ("layers", "listed", "totals"),
    [
        (["epoch"], "└── epoch  3", "0 tensors, 0 values, 0 B"),
        (["[0]"], "└── epoch  3", "0 tensors, 0 values, 0 B"),
        (["args.deep.x"], "└── args\n    └── deep\n        └── x  y", "0 tensors, 0 values, 0 B"),
        (
            ["args", "epoch"],
            "├── epoch                  3\n"
            "└── args                   2  8 B\n"
            "    ├── lr                 0.1\n"
            "    ├── w      float32  2  2  8 B\n"
            "    └── deep\n"
            "        └── x              y",
            "1 tensor, 2 values, 8 B",
        ),
        (["args", "!args.deep", "!args.lr"], "└── args              2  8 B\n    └── w  float32  2  2  8 B",
         "1 tensor, 2 values, 8 B"),
        (["*.w"], "└── args              2  8 B\n    └── w  float32  2  2  8 B", "1 tensor, 2 values, 8 B"),
        (["0"], "└── model                 2  8 B\n    └── 0                 2  8 B\n"
         "        └── w  float32  2  2  8 B", "1 tensor, 2 values, 8 B"),
    ],
)  # fmt: skip
def test_a_selection_shows_the_scalars_in_it(run: Run, here: Path, layers: list[str], listed: str, totals: str) -> None:
    torch.save(TRAINED, "train.pt")
    code, out, err = run("tree", "train.pt", *(word for layer in layers for word in ("--layer", layer)))
    assert (code, err) == (0, {"0": "selected inside 'model'\n", "*.w": "note: '*.w' names 1; '**.w' would match 3\n"}.get(layers[0], ""))
    squeezed = [" ".join(line.split()) for line in out.splitlines()]
    expected_lines = ["train.pt torch-zip", *(" ".join(line.split()) for line in listed.splitlines()), "", totals]
    assert squeezed == expected_lines


def test_a_selection_shows_layers_that_hold_nothing(run: Run, here: Path) -> None:
    torch.save(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), nn.Tanh()), "net.pt")
    assert run("tree", "net.pt", "--layer", "0")[1] == expected("""
        net.pt  torch-zip  Sequential
        └── 0  Sequential                   9  36 B
            ├── 0  Linear(2 → 2)            6  24 B
            │   ├── weight  float32  2 × 2  4  16 B
            │   └── bias    float32  2      2   8 B
            ├── 1  ReLU
            └── 2  Linear(2 → 1)            3  12 B
                ├── weight  float32  1 × 2  2   8 B
                └── bias    float32  1      1   4 B

        4 tensors, 9 values, 36 B
    """)
    assert run("tree", "net.pt", "--layer", "1") == (
        0,
        "net.pt  torch-zip  Sequential\n└── 1  Tanh\n\n0 tensors, 0 values, 0 B\n",
        "",
    )


def test_a_scalar_is_among_the_nearest_names(run: Run, here: Path) -> None:
    torch.save(TRAINED, "train.pt")
    assert run("tree", "train.pt", "--layer", "epch") == (
        1,
        "",
        "paramctl: train.pt: no parameter or layer matches 'epch'; nearest: epoch\n",
    )


def test_moments_say_of_what_they_are(run: Run, here: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    moved = torch.optim.SGD(net.parameters(), momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    moved.step()
    state = {"state": moved.state_dict()["state"], "param_groups": [{"params": [0, 1, 2, 3]}]}
    torch.save({"model": net.state_dict(), "optimizer": state}, "run.pt")
    assert run("tree", "run.pt")[1] == expected("""
        run.pt  torch-zip
        ├── model                                        27  108 B
        │   ├── 0                                         9   36 B
        │   │   ├── weight               float32  3 × 2   6   24 B
        │   │   └── bias                 float32  3       3   12 B
        │   └── 1–2 ×2                                    9   36 B  each
        │       └── weight               float32  3 × 3   9   36 B
        └── optimizer                                    27  108 B
            ├── state                                    27  108 B
            │   ├── 0                                     6   24 B  moments of model.0.weight
            │   │   └── momentum_buffer  float32  3 × 2   6   24 B
            │   ├── 1                                     3   12 B  moments of model.0.bias
            │   │   └── momentum_buffer  float32  3       3   12 B
            │   └── 2–3 ×2                                9   36 B  moments of model.1.weight …, each
            │       └── momentum_buffer  float32  3 × 3   9   36 B
            └── param_groups
                └── 0
                    └── params           [0, 1, 2, 3]

        8 tensors, 54 values, 216 B
    """)
    document = json.loads(run("tree", "run.pt", "--json")[1])
    _, optimizer = document["root"]["children"]
    assert [child["moments_of"] for child in optimizer["children"][0]["children"]] == [
        "model.0.weight", "model.0.bias", "model.1.weight", "model.2.weight"
    ]  # fmt: skip
    assert set(optimizer) == {"name", "type", "children"}
