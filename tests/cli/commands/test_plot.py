"""`paramctl plot`: drawings in characters, pictures in files, and what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from PIL import Image
from set_files import make
from terminals import shown

from paramctl.cli.text_charts import drawing
from paramctl.stats.charts import Bars, Chart, Curve

Run = Callable[..., tuple[int, str, str]]
Spawn = Callable[..., subprocess.CompletedProcess[bytes]]

FOLDER = Path(__file__).parents[3] / "sample_models"
SAMPLES = [f"tied_mlp_step{i}.pt" for i in range(3)]


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(chart: Chart, width: int = 80) -> str:
    return "".join(f"{''.join(line.cells).rstrip()}\n" for line in drawing(chart, width))


def on_terminal(columns: int, *args: str) -> str:
    """Return what a command shows on a terminal of so many columns, without colour."""
    return shown(columns, *args, NO_COLOR="1")


WEIGHTS = dedent("""\
    tied_mlp.pt
    number of values by value

    2.weight  (64 values)
    15 │                                ████████
       │        ▇▇▇▇▇▇▇▇                ████████
       │▃▃▃▃▃▃▃▃████████        ▃▃▃▃▃▃▃▃████████
       │████████████████        ████████████████▆▆▆▆▆▆▆▆
       │████████████████▆▆▆▆▆▆▆▆████████████████████████
       │████████████████████████████████████████████████
       │████████████████████████████████████████████████
       │████████████████████████████████████████████████
     0 └────────────────────────────────────────────────
        -0.375                  0                  0.375
    """)


def test_a_histogram_in_a_pipe(run: Run, samples: None) -> None:
    assert run("plot", "tied_mlp.pt", "--layer", "2.weight") == (0, WEIGHTS, "")


@pytest.mark.parametrize("columns", [80, 140])
def test_a_histogram_on_a_terminal(samples: None, columns: int) -> None:
    assert on_terminal(columns, "plot", "tied_mlp.pt", "--layer", "2.weight") == WEIGHTS


def test_a_curve(run: Run, samples: None) -> None:
    assert run("plot", *SAMPLES, "--layer", "2.bias", "--of", "grad") == (
        0,
        dedent("""\
            grad of 2.bias: tied_mlp_step0.pt … tied_mlp_step2.pt
            ‖gradient‖ by step

            2.bias
            0.2277 │████████
                   │████████
                   │████████
                   │████████▂▂▂▂▂▂▂▂
                   │████████████████
                   │████████████████
                   │████████████████
                   │████████████████▁▁▁▁▁▁▁▁
            0.1512 └────────────────────────
                    0                      2
            """),
        "selected inside 'model'\nin the order of 'step'\n",
    )


def test_a_curve_of_the_model_and_one_of_each_parameter(run: Run, samples: None) -> None:
    assert run("plot", *SAMPLES, "--of", "ratio")[1].splitlines()[:4] == [
        "ratio of all parameters: tied_mlp_step0.pt … tied_mlp_step2.pt",
        "‖w − w before‖ / ‖w before‖ by step", "", "all parameters",
    ]  # fmt: skip
    each = run("plot", *SAMPLES, "--of", "exp_avg", "-l", "2")[1].splitlines()
    assert [line for line in each if line.startswith("2.")] == ["2.weight", "2.bias"]
    together = run("plot", *SAMPLES, "--of", "exp_avg", "-l", "2.weight", "-l", "2.bias", "--together")[1].splitlines()
    assert together[:4] == [
        "exp_avg of 2.weight 2.bias: tied_mlp_step0.pt … tied_mlp_step2.pt", "‖exp_avg‖ by step", "", "2.weight 2.bias"
    ]  # fmt: skip


def test_the_order_that_was_asked_for(run: Run, samples: None) -> None:
    shown = run("plot", *reversed(SAMPLES), "--of", "norm", "--order", "given")
    assert shown[1].splitlines()[1] == "‖w‖ by checkpoint, as given"
    assert (shown[1].splitlines()[-1].split(), shown[2]) == (["1", "3"], "")


def test_more_bins_are_as_wide_as_there_is_room() -> None:
    chart = Chart("t", "x", "y", (Bars("w", tuple(range(64)), tuple(map(float, range(65)))),))
    widths = {width: [len(line) for line in text(chart, width).splitlines()] for width in (40, 80, 140)}
    assert {width: lines[-2] for width, lines in widths.items()} == {40: 5 + 32, 80: 4 + 64, 140: 4 + 128}
    assert all(max(lines) <= width for width, lines in widths.items())


def test_where_there_is_no_room_bins_join_and_titles_end() -> None:
    bars = Bars("w", (1, 2, 3, 4) * 5, tuple(map(float, range(21))))
    assert text(Chart("a title that is too long", "value", "n", (bars,)), 14) == dedent("""\
        a title that …
        n by value

        w
        7 │ █ █ █ █ █
          │ █ █ █ █ █
          │ █ █ █ █ █
          │ █ █ █ █ █
          │▃█▃█▃█▃█▃█
          │██████████
          │██████████
          │██████████
        0 └──────────
           0       20
        """)


def test_a_logarithmic_scale_begins_below_one() -> None:
    assert text(Chart("t", "x", "y", (Bars("w", (1, 0, 127), (0.0, 1.0, 2.0, 3.0)),), log=True)) == dedent("""\
        t
        y by x, logarithmic

        w
        127 │                ████████
            │                ████████
            │                ████████
            │                ████████
            │                ████████
            │                ████████
            │                ████████
            │████████        ████████
            └────────────────────────
             0                      3
        """)


def test_gaps_and_negative_values_of_a_curve() -> None:
    chart = Chart("t", "step", "mean", (Curve("w", (0.0, 1.0, 2.0, 3.0), (-1.0, None, 0.0, 1.0)),))
    assert text(chart) == dedent("""\
        t
        mean by step

        w
         1 │                        ████████
           │                        ████████
           │                        ████████
           │                        ████████
           │                ████████████████
           │                ████████████████
           │                ████████████████
           │▁▁▁▁▁▁▁▁        ████████████████
        -1 └────────────────────────────────
            0                              3
        """)
    assert text(Chart("t", "x", "y", (Curve("w", (0.0,), (-1.0,)),), log=True)) == (
        "t\ny by x, logarithmic\n\nw\nno values\n"
    )


def test_ends_of_a_scale_have_the_digits_that_tell_them_apart() -> None:
    lines = text(Chart("t", "x", "y", (Curve("w", (0.0, 1.0), (1.00001, 1.00002)),))).splitlines()
    assert (lines[4].split()[0], lines[-2].split()[0]) == ("1.00002", "1.00001")


def test_what_has_no_values_says_so(run: Run, here: Path) -> None:
    torch.save({"a\x1b[1m": torch.zeros(0), "b": torch.ones(3)}, "x.pt")
    assert run("plot", "x.pt", "--layer", "a*")[1] == dedent("""\
        x.pt
        number of values by value

        a\\x1b[1m  (0 values)
        no values
        """)


def test_every_selected_parameter_has_a_histogram_whatever_its_dtype(run: Run, here: Path) -> None:
    torch.save({"w": torch.rand(9), "n": torch.arange(9), "flags": torch.tensor([True, False])}, "x.pt")
    for names in ([], ["-l", "*"], ["-l", "w", "-l", "n", "-l", "flags"]):
        code, out, err = run("plot", "x.pt", *names)
        assert (code, err) == (0, "")
        assert [line for line in out.splitlines() if line.endswith(" values)")] == [
            "w  (9 values)", "n  (9 values)", "flags  (2 values)"
        ]  # fmt: skip


def test_curves_leave_out_what_is_whole_and_say_so(run: Run, here: Path) -> None:
    torch.save({"w": torch.rand(9), "n": torch.arange(9)}, "x.pt")
    code, out, err = run("plot", "x.pt", "--of", "norm", "-l", "*")
    assert (code, [line for line in out.splitlines() if line in ("w", "n")]) == (0, ["w"])
    assert err == (
        "left out: 1 tensor (n); integers, flags and running statistics are followed beside weights only if named by"
        " their full paths\n"
    )
    code, out, err = run("plot", "x.pt", "--of", "norm", "-l", "*", "-l", "n")
    assert (code, [line for line in out.splitlines() if line in ("w", "n")], err) == (0, ["w", "n"], "")


def test_the_help_names_the_limit(run: Run) -> None:
    from paramctl.stats.charts import MAX_PARAMS

    assert f"At most {MAX_PARAMS} parameters are drawn" in " ".join(run("plot", "--help")[1].replace("│", " ").split())


def test_folders_are_drawn_as_files_are(run: Run, here: Path) -> None:
    for n in (10, 9):
        make(here / f"step{n}", [{"a": torch.full((4,), float(n))}, {"b": torch.ones(1)}])
    code, out, err = run("plot", "step10/", "step9/", "--of", "norm", "-l", "a")
    assert (code, err) == (0, "in the order of the files' names\n")
    assert out.splitlines()[:2] == ["norm of a: step9/ … step10/", "‖w‖ by checkpoint, in the order of names"]
    code, out, err = run("plot", "step9/", "-l", "a")
    assert (code, err, out.splitlines()[0]) == (0, "", "step9/model.safetensors.index.json")


def test_ascii_terminals(spawn: Spawn, samples: None) -> None:
    done = spawn("plot", "tied_mlp.pt", "-l", "2.weight", env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.decode("ascii").splitlines()[4:7] == [
        "15 |                                ########",
        "   |        ########                ########",
        "   |........########        ........########",
    ]


def test_a_checkpoint_through_a_pipe(spawn: Spawn, samples: None) -> None:
    done = spawn("plot", "-l", "2.weight", input=Path("tied_mlp.pt").read_bytes(), stdin=None)
    assert done.stdout.decode() == WEIGHTS.replace("tied_mlp.pt", "standard input")


def test_a_drawing_needs_no_matplotlib(spawn: Spawn, samples: None, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = sys.modules['torch'] = None\n")
    env = {"PYTHONPATH": f"{tmp_path}:{FOLDER.parent}"}
    assert spawn("plot", "tied_mlp.pt", "-l", "2.weight", env=env).stdout.decode() == WEIGHTS
    done = spawn("plot", "tied_mlp.pt", "-o", tmp_path / "x.png", env=env)
    assert (done.returncode, done.stdout, done.stderr.decode()) == (
        2,
        b"",
        "paramctl: matplotlib, which draws pictures, is not installed; pip install matplotlib, or leave out -o"
        " to draw in the terminal\n",
    )
    assert not (tmp_path / "x.png").exists()


def test_a_picture_is_written_and_said(run: Run, samples: None, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    code, shown, err = run("plot", "mlp.pt", "--layer", "0.weight", "-o", out)
    assert (code, shown) == (0, "")
    assert err == f"wrote {out.stat().st_size / 1024:.1f} KiB to {out}\n"
    with Image.open(out) as image:
        assert (image.format, image.size) == ("PNG", (768, 504))
    assert run("plot", "mlp.pt", "-o", out) == (2, "", f"paramctl: {out}: exists already; add -f to replace it\n")
    assert run("plot", *SAMPLES, "-l", "2", "--of", "norm", "--log", "-o", out, "-f")[0] == 0
    with Image.open(out) as image:
        assert image.size == (1056, 504)


def test_a_picture_of_a_curve_in_the_order_of_names(run: Run, samples: None, tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    code, _, err = run("plot", *SAMPLES, "-l", "2", "--of", "norm", "--order", "name", "-o", out)
    assert (code, err.splitlines()[:2]) == (0, ["selected inside 'model'", "in the order of the files' names"])
    with Image.open(out) as image:
        assert image.size == (1056, 504)


def test_pictures_repeat_byte_for_byte_and_say_nothing_but_what_was_written(
    spawn: Spawn, here: Path, tmp_path: Path
) -> None:
    torch.save({"$x_1$ \\alpha": torch.randn(100), "层": torch.randn(10)}, "$odd_name$ 层.pt")
    for suffix in (".svg", ".png"):
        for name in ("a", "b"):
            done = spawn("plot", "$odd_name$ 层.pt", "-o", name + suffix, env={"MPLBACKEND": "no such backend"})
            assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (0, b"", 1)
            assert done.stderr.startswith(b"wrote ")
        assert (here / f"a{suffix}").read_bytes() == (here / f"b{suffix}").read_bytes()


def test_what_is_refused(run: Run, samples: None, tmp_path: Path) -> None:
    assert run("plot", *SAMPLES) == (
        2,
        "",
        "paramctl: a histogram is of one checkpoint, and 3 were named; add --of norm, or another figure, to draw a"
        " curve over them\n",
    )
    assert run("plot", *SAMPLES, "--of", "nrom") == (
        2, "", "paramctl: there is no 'nrom' to draw; name one of norm, update, ratio, grad, mean, std, exp_avg, exp_avg_sq\n"
    )  # fmt: skip
    assert run("plot", "mlp.pt", "--of", "grad") == (
        2, "", "paramctl: no checkpoint holds a grad of the selected params; draw another figure with --of\n"
    )  # fmt: skip
    assert run("plot", "mlp.pt", "-o", "x.gif") == (
        2, "", "paramctl: x.gif: is not the name of a picture; end it in .png, .svg or .pdf\n"
    )  # fmt: skip
    assert run("plot", "mlp.pt", "--layer", "nope") == (
        1, "", "paramctl: mlp.pt: no parameter or layer matches 'nope'; 'paramctl ls' lists them all\n"
    )  # fmt: skip


def test_too_many_to_look_at(run: Run, here: Path) -> None:
    torch.save({f"w{i}": torch.ones(1) for i in range(25)}, "many.pt")
    line = (
        "paramctl: {}25 parameters are too many to look at; 24 are the most; name fewer with --layer, such as --layer"
        " '**.0.weight' ('paramctl ls' lists them all)\n"
    )
    assert run("plot", "many.pt") == (2, "", line.format("many.pt: "))
    assert run("plot", "many.pt", "many.pt", "--of", "norm", "-l", "w*") == (2, "", line.format(""))
    assert run("plot", "many.pt", "many.pt", "--of", "norm")[0] == 0


def test_a_checkpoint_is_not_replaced_by_its_picture(run: Run, here: Path) -> None:
    torch.save({"w": torch.ones(1)}, "w.png")
    before = Path("w.png").read_bytes()
    assert run("plot", "w.png", "-o", "w.png", "-f") == (
        2, "", "paramctl: w.png: is the checkpoint itself; name another file for the picture\n"
    )  # fmt: skip
    assert Path("w.png").read_bytes() == before
