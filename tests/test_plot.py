"""What is drawn, compared with numpy, and the pictures of it: they decode, repeat byte for byte, and take any name."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused
from PIL import Image

from paramctl import formats, plot
from paramctl.errors import UsageError
from paramctl.plot import Bars, Chart, Curve, curves, histograms, picture, save
from paramctl.targets import NewFile
from paramctl.track import Run, Step, Stop, Tracked

HISTOGRAM = Chart("a file", "value", "number of values", (Bars("w", (1, 0, 2), (-1.0, 0.0, 1.0, 2.0)),))
CURVES = Chart("norm", "step", "‖w‖", (Curve("x", (0.0, 10.0), (1.0, 2.0)), Curve("y", (0.0, 10.0), (None, 3.0))))
NAMES = ["$x_1^{2}$", "\\frac{a", "a_b", "层.权重", "\U0001d518", "a" * 500, "%s {0} <b>&amp;", "\\x1b[2J"]


def bars(tmp_path: Path, together: bool = False, **tensors: torch.Tensor) -> tuple[Bars, ...]:
    torch.save(tensors, tmp_path / "x.pt")
    checkpoint = formats.open(str(tmp_path / "x.pt"))
    return histograms(checkpoint, range(len(tensors)), list(tensors), together=together)


# --- histograms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 30, 10_000])
def test_counts_are_exact(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    torch.manual_seed(0)
    values = torch.randn(count).to(dtype)
    (one,) = bars(tmp_path, w=values)
    expected, _ = np.histogram(values.double().numpy(), np.append(one.edges[:-1], np.nextafter(one.edges[-1], -np.inf)))
    assert list(one.counts) == expected.tolist()
    assert sum(one.counts) == count
    assert 2 <= len(one.counts) <= 64


def test_integers_and_flags_have_histograms_too(tmp_path: Path) -> None:
    numbers, flags = bars(tmp_path, numbers=torch.arange(10), flags=torch.tensor([True, False, True]))
    assert numbers == Bars("numbers", (2, 2, 2, 2, 2), (0.0, 2.0, 4.0, 6.0, 8.0, 10.0))
    assert (flags.counts[0], flags.counts[-1], sum(flags.counts)) == (1, 2, 3)


def test_what_cannot_be_drawn_says_why(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    assert bars(
        tmp_path,
        nothing=torch.zeros(0),
        odd=torch.tensor([nan, inf, inf]),
        some=torch.tensor([1.0, nan]),
        same=torch.full((3,), -2.0),
        close=torch.tensor([1 - 1e-15, 1 + 1e-15], dtype=torch.float64),
        huge=torch.tensor([1e301, 1.0], dtype=torch.float64),
        tiny=torch.tensor([1e-310, 2e-310], dtype=torch.float64),
        meta=torch.empty(2, device="meta"),
    ) == (
        Bars("nothing", (), (), "no values"),
        Bars("odd", (), (), "only 1 NaN and 2 infinite"),
        Bars("some", (0, 1, 0), (0.953125, 0.984375, 1.015625, 1.046875), "all are 1, without 1 NaN"),
        Bars("same", (0, 3, 0), (-2.09375, -2.03125, -1.96875, -1.90625), "all are -2"),
        Bars("close", (0, 2, 0), (0.953125, 0.984375, 1.015625, 1.046875), "all are about 1"),
        Bars("huge", (), (), "values up to 1e+301, too large to draw"),
        Bars("tiny", (0, 2, 0), (-1.5, -0.5, 0.5, 1.5), "all are about 1.5e-310"),
        Bars("meta", (), (), "meta is a meta tensor: no values are saved for it"),
    )


def test_together_all_have_the_same_bins(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide, narrow, same = bars(
        tmp_path, together=True, wide=torch.randn(1000), narrow=torch.rand(50) / 10, same=torch.ones(2)
    )
    assert wide.edges == narrow.edges == same.edges
    assert (sum(wide.counts), sum(narrow.counts), sum(same.counts)) == (1000, 50, 2)
    assert same.counts[same.edges.index(1.0)] == 2


def test_together_without_anything_to_compare_is_as_alone(tmp_path: Path) -> None:
    same, nothing = torch.ones(2), torch.zeros(0)
    alone = bars(tmp_path, same=same, nothing=nothing)
    assert bars(tmp_path, together=True, same=same, nothing=nothing) == alone


def test_together_bins_stay_few_however_far_apart_params_lie(tmp_path: Path) -> None:
    one, other = bars(tmp_path, together=True, a=torch.linspace(0, 1, 99), b=torch.linspace(1e6, 1e6 + 1, 99))
    assert one.edges == other.edges
    assert len(one.counts) <= 2 * plot.BINS
    assert sum(one.counts) == sum(other.counts) == 99


# --- curves --------------------------------------------------------------------------------------


def run_of(*steps: tuple[Step, ...], order: str = "step") -> tuple[Run, list[Tracked]]:
    stops = tuple(Stop(row[0].file, row[0].step) for row in steps)
    return Run(stops, order, ("exp_avg",), 2), [Tracked(row) for row in steps]


def called(path: str | None) -> str:
    return path or "all"


def test_a_curve_for_each_path_has_a_gap_where_nothing_is_known() -> None:
    run, tracked = run_of(
        (Step("a", 0, "x", norm=1.0), Step("a", 0, "y", norm=2.0)),
        (Step("b", 10),),
        (Step("c", 20, "y", norm=3.0, moments={"exp_avg": 4.0}),),
    )
    assert curves(run, tracked, "norm", called) == (
        Curve("x", (0.0, 10.0, 20.0), (1.0, None, None)), Curve("y", (0.0, 10.0, 20.0), (2.0, None, 3.0))
    )  # fmt: skip
    assert curves(run, tracked, "exp_avg", called)[1].values == (None, None, 4.0)


def test_without_steps_places_are_counted() -> None:
    run, tracked = run_of((Step("a", None, norm=1.0),), (Step("b", None, norm=2.0),), order="name")
    assert curves(run, tracked, "norm", called) == (Curve("all", (1, 2), (1.0, 2.0)),)


def test_a_figure_that_is_nowhere_known() -> None:
    run, tracked = run_of((Step("a", 0, norm=1.0),))
    assert refused(UsageError, curves, run, tracked, "grad", called) == (
        "no checkpoint holds a grad of what was selected; draw another figure with --of"
    )
    assert refused(UsageError, plot.check_figure, run, "momentum") == (
        "there is no 'momentum' to draw; name one of norm, update, ratio, grad, mean, std, exp_avg"
    )


# --- pictures ------------------------------------------------------------------------------------


def size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size


def panels(n: int) -> Chart:
    return Chart("many", "value", "number of values", HISTOGRAM.parts * n)


def test_a_picture_has_the_size_that_its_panels_need() -> None:
    sizes = {n: size(picture(panels(n), "png")) for n in (1, 2, 4, 5)}
    assert sizes == {1: (768, 504), 2: (864, 360), 4: (864, 672), 5: (1296, 672)}
    assert size(picture(CURVES, "png")) == (1056, 504)


@pytest.mark.parametrize("chart", [HISTOGRAM, CURVES], ids=["histogram", "curves"])
@pytest.mark.parametrize(("form", "head"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_chart_is_the_same_bytes(chart: Chart, form: str, head: bytes) -> None:
    data = picture(chart, form)
    assert data.startswith(head)
    assert picture(chart, form) == data
    assert b"Matplotlib v" not in data and b"CreationDate" not in data and b"<dc:date>" not in data


def test_another_process_with_settings_of_its_own_makes_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("font.size: 20\naxes.facecolor: red\ntext.usetex: True\n")
    code = (
        "import sys, hashlib; from paramctl.plot import *\n"
        "chart = Chart('a file', 'value', 'number of values', (Bars('w', (1, 0, 2), (-1.0, 0.0, 1.0, 2.0)),))\n"
        "sys.stdout.buffer.write(picture(chart, 'svg'))"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[1]), "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (picture(HISTOGRAM, "svg"), b"")


@pytest.mark.parametrize("together", [False, True])
def test_any_name_is_drawn_as_it_is(together: bool, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tuple(Bars(name, (1, 2), (0.0, 1.0, 2.0), name) for name in NAMES)
    lines = tuple(Curve(name, (0.0, 1.0), (1.0, 2.0)) for name in NAMES)
    title = " ".join(NAMES)
    picture(Chart(title, title, title, parts, together=together), "svg")
    picture(Chart("x", "y", "z", lines), "svg")
    assert capsys.readouterr() == ("", "")


def test_what_has_no_glyph_is_spelled_out_and_what_has_no_room_loses_its_middle() -> None:
    import matplotlib

    with matplotlib.rc_context():
        assert plot._fitted("层 \U0001d518 $é_1$", 10, 9) == "\\u5c42 \\U0001d518 $é_1$"
        cut = plot._fitted("layers.0.attention.weight" * 9, 2, 9)
    assert (cut[:10], cut[-10:]) == ("layers.0.a", "ion.weight")
    assert "…" in cut and 20 < len(cut) < 40


@pytest.mark.parametrize("log", [False, True])
def test_odd_values_and_empty_panels_draw_without_a_word(log: bool, capsys: pytest.CaptureFixture[str]) -> None:
    parts = (
        Bars("none", (), (), "no values"),
        Bars("one", (1,), (0.0, 1.0)),
        Bars("large", (10**12, 1), (-1e299, 0.0, 1e299)),
        Bars("near", (3, 4), (1.0, 1.0 + 2**-40, 1.0 + 2**-39)),
        Bars("small", (3, 4), (0.0, 1e-290, 2e-290)),
    )
    curve = (Curve("all", (0.0, 1.0, 2.0), (None, -1.0, 1e-300)), Curve("point", (5.0,), (0.0,)))
    for together in (False, True):
        picture(Chart("t", "x", "y", parts, log, together), "png")
    picture(Chart("t", "x", "y", curve, log), "png")
    picture(Chart("t", "x", "y", (Curve("none", (1.0,), (None,)),), log), "png")
    assert capsys.readouterr() == ("", "")


def test_no_two_lines_look_alike() -> None:
    assert len({(s["color"], s["linestyle"]) for s in map(plot._style, range(plot.MOST))}) == plot.MOST


# --- files ---------------------------------------------------------------------------------------


def test_a_picture_is_written_whole_and_replaces_nothing_unasked(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    nbytes = save(HISTOGRAM, NewFile(out))
    assert out.read_bytes() == picture(HISTOGRAM, "png")
    assert out.stat().st_size == nbytes
    assert refused(UsageError, save, HISTOGRAM, NewFile(out)) == f"{out}: exists already; add -f to replace it"
    save(CURVES, NewFile(out, force=True))
    assert out.read_bytes() == picture(CURVES, "png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_the_suffix_says_what_a_picture_is(tmp_path: Path) -> None:
    save(HISTOGRAM, NewFile(tmp_path / "x.SVG"))
    assert (tmp_path / "x.SVG").read_bytes().startswith(b"<?xml")
    assert refused(UsageError, save, HISTOGRAM, NewFile(tmp_path / "x.gif")) == (
        f"{tmp_path}/x.gif: is no name for a picture; end it in .png, .svg or .pdf"
    )


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(UsageError, picture, HISTOGRAM, "png") == (
        "matplotlib, which draws pictures, is not installed; pip install 'paramctl[plot]', or leave out -o to draw in"
        " the terminal"
    )
