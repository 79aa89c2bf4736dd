"""The pictures of charts: they decode, repeat byte for byte, and take any name."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import refused
from PIL import Image

from paramctl.errors import UsageError
from paramctl.files.targets import NewFile
from paramctl.stats import plot
from paramctl.stats.charts import MAX_PARAMS, Bars, Chart, Curve
from paramctl.stats.plot import picture, save

HISTOGRAM = Chart("a file", "value", "number of values", (Bars("w", (1, 0, 2), (-1.0, 0.0, 1.0, 2.0)),))
CURVES = Chart("norm", "step", "‖w‖", (Curve("x", (0.0, 10.0), (1.0, 2.0)), Curve("y", (0.0, 10.0), (None, 3.0))))
NAMES = ["$x_1^{2}$", "\\frac{a", "a_b", "层.权重", "\U0001d518", "a" * 500, "%s {0} <b>&amp;", "\\x1b[2J"]


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
        "import sys, hashlib; from paramctl.stats.charts import *; from paramctl.stats.plot import *\n"
        "chart = Chart('a file', 'value', 'number of values', (Bars('w', (1, 0, 2), (-1.0, 0.0, 1.0, 2.0)),))\n"
        "sys.stdout.buffer.write(picture(chart, 'svg'))"
    )
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "HOME": str(tmp_path), "PYTHONHASHSEED": "7"}
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
        assert plot._fit_text("层 \U0001d518 $é_1$", 10, 9) == "\\u5c42 \\U0001d518 $é_1$"
        cut = plot._fit_text("layers.0.attention.weight" * 9, 2, 9)
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
    assert len({(s["color"], s["linestyle"]) for s in map(plot._style, range(MAX_PARAMS))}) == MAX_PARAMS


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
        f"{tmp_path}/x.gif: is not the name of a picture; end it in .png, .svg or .pdf"
    )


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert refused(UsageError, picture, HISTOGRAM, "png") == (
        "matplotlib, which draws pictures, is not installed; pip install matplotlib, or leave out -o to draw in"
        " the terminal"
    )
