"""Draw charts with matplotlib: PNG, SVG or PDF. The same chart gives the same bytes."""

from __future__ import annotations

import io
import logging
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paramctl.errors import FormatError, UsageError
from paramctl.files import file_writer
from paramctl.files.content import Literal
from paramctl.files.file_writer import NewFile
from paramctl.files.sources import open_source
from paramctl.progress import ProgressCallback, ignore
from paramctl.stats.charts import Bars, Chart, Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}

# Colours of Okabe & Ito (2008), Color Universal Design, without the yellow, which paper hardly shows. Seven
# of them and four kinds of lines make 28 that differ, in grey by their kind and their marks.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
KINDS = ("-", "--", ":", "-.")
MARKS = "os^Dv"
MARKED = 40  # steps up to which each has a mark
SETTINGS = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "paramctl",  # identifiers in the file are random otherwise
    "text.parse_math": False,  # a name with $ in it is a name
}
METADATA = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}
FAMILY = "DejaVu Sans"  # comes with matplotlib
POINTS = 72  # to an inch
INCHES = (3.6, 2.6)  # of one panel among several
ALONE = (6.4, 4.2)
LEGEND = 2.4  # inches that a name in a legend gets


def form_of(path: Path) -> str:
    """Return the kind of picture for a file name. Raises UsageError if its suffix is not one of a picture."""
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UsageError("is not the name of a picture", hint="end it in .png, .svg or .pdf", file=str(path))
    return form


def check_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed."""
    try:
        with _quiet():
            import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install matplotlib, or leave out -o to draw in the terminal"
        raise UsageError("matplotlib, which draws pictures, is not installed", hint=hint) from None


def save(chart: Chart, target: NewFile, on_progress: ProgressCallback = ignore) -> int:
    """Draw a chart into a file, whole or not at all, and return the bytes written.

    Raises UsageError if the suffix is not one of a picture, the file exists, or matplotlib is missing.
    """
    data = picture(chart, form_of(target.path))

    def verify(path: Path) -> None:
        written = open_source(str(path))
        if written.read(0, written.size) != data:
            raise FormatError("the file that was written is not whole", file=str(path))

    return file_writer.write((Literal(data),), target, (), verify, on_progress)


def picture(chart: Chart, form: str) -> bytes:
    """Return the chart as `png`, `svg` or `pdf`. Raises UsageError if matplotlib is missing."""
    check_matplotlib()
    with _quiet():
        import matplotlib
        from matplotlib.figure import Figure

        # A file of a person's own settings would change the picture, and may ask for TeX.
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(SETTINGS)  # type: ignore[arg-type]
            figure = Figure()
            _draw(figure, chart)
            out = io.BytesIO()
            figure.savefig(out, format=form, metadata=METADATA[form])
    return out.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence matplotlib's messages about fonts and its cache, which the user cannot act on."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _draw(figure: Figure, chart: Chart) -> None:
    """Draw a chart into a figure."""
    histograms = [part for part in chart.parts if isinstance(part, Bars)]
    lines = [part for part in chart.parts if isinstance(part, Curve)]
    if histograms and not chart.together:
        _draw_panels(figure, chart, histograms)
    else:
        axes = _one_panel(figure, chart, len(chart.parts))
        for i, one in enumerate(histograms):
            _outline(axes, one, i)
        for i, line in enumerate(lines):
            _line(axes, line, i)
        _draw_scales(figure, axes, chart)


def _draw_panels(figure: Figure, chart: Chart, histograms: Sequence[Bars]) -> None:
    """Draw each histogram in a panel of its own, at most three side by side."""
    across = {1: 1, 2: 2, 4: 2}.get(len(histograms), 3)
    down = ceil(len(histograms) / across)
    width, height = ALONE if len(histograms) == 1 else (across * INCHES[0], down * INCHES[1] + 0.4)
    figure.set_size_inches(width, height)
    figure.suptitle(_fit_text(chart.title, width - 0.4, 11), fontsize=11)
    figure.supxlabel(_fit_text(chart.x, width - 0.4, 9), fontsize=9)
    figure.supylabel(_fit_text(chart.y, height - 0.4, 9), fontsize=9)
    for i, one in enumerate(histograms, 1):
        axes = figure.add_subplot(down, across, i)
        axes.set_title(_fit_text(one.name, width / across - 0.5, 9))
        if one.note:
            axes.set_xlabel(_fit_text(one.note, width / across - 0.6, 8), fontsize=8, color="#555555")
        if not one.counts:
            axes.set_axis_off()
            axes.text(0.5, 0.5, _fit_text(one.note, width / across - 0.6, 9), ha="center", transform=axes.transAxes)
            continue
        axes.stairs(one.counts, one.edges, fill=True, color=COLOURS[0])
        _scaled(axes, chart.log, max(one.counts))


def _one_panel(figure: Figure, chart: Chart, parts: int) -> Axes:
    """Add one panel with the title and the labels of the chart, and return it."""
    figure.set_size_inches(ALONE[0] + (LEGEND if parts > 1 else 0), max(ALONE[1], 0.2 * parts + 1))
    axes = figure.add_subplot()
    axes.set_title(_fit_text(chart.title, ALONE[0] - 1, 11), fontsize=11)
    axes.set_xlabel(_fit_text(chart.x, ALONE[0] - 1, 9))
    axes.set_ylabel(_fit_text(chart.y, ALONE[1] - 1, 9))
    return axes


def _outline(axes: Axes, one: Bars, i: int) -> None:
    """Draw the outline of a histogram."""
    name = f"{one.name} ({one.note})" if one.note else one.name
    label = _fit_text(name, LEGEND, 8)
    if one.counts:
        axes.stairs(one.counts, one.edges, label=label, **_style(i))
    else:
        axes.plot([], [], label=label, **_style(i))


def _line(axes: Axes, line: Curve, i: int) -> None:
    """Draw a curve."""
    values = [float("nan") if value is None else value for value in line.values]
    mark = MARKS[i % len(MARKS)] if len(values) <= MARKED else ""
    axes.plot(line.places, values, marker=mark, markersize=4, label=_fit_text(line.name, LEGEND, 8), **_style(i))


def _style(i: int) -> dict[str, Any]:
    """Return the colour and the kind of line number `i`."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": KINDS[i % len(KINDS)], "linewidth": 1.5}


def _draw_scales(figure: Figure, axes: Axes, chart: Chart) -> None:
    """Draw the scales, and a legend beside the panel if there are several lines."""
    from matplotlib.ticker import MaxNLocator

    counts = [max(part.counts, default=0) for part in chart.parts if isinstance(part, Bars)]
    if counts:
        _scaled(axes, chart.log, max(counts))
    else:
        if chart.log:
            axes.set_yscale("log", nonpositive="mask")
            _label_decades(axes)
        places = [place for part in chart.parts if isinstance(part, Curve) for place in part.places]
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=all(place.is_integer() for place in places)))
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    if len(chart.parts) > 1:
        figure.legend(loc="outside right upper", fontsize=8, frameon=False, handlelength=3.5)


def _scaled(axes: Axes, log: bool, most: int) -> None:
    """Scale the axis of counts from zero in whole numbers; with `log`, logarithmically."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if log:
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(most, 1) * 1.5)
        _label_decades(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _label_decades(axes: Axes) -> None:
    """Label a logarithmic axis with plain numbers, with 2 and 5 of each decade if there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _fit_text(text: str, inches: float, size: float) -> str:
    """Return `text`, shortened in the middle to fit the width; characters without a glyph are spelled out."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=FAMILY)))
    font.set_size(size, POINTS)
    text = "".join(c if font.get_char_index(ord(c)) else _spelled(ord(c)) for c in text)
    room = inches * POINTS
    lengths = range(len(text))
    kept = bisect_left(lengths, True, key=lambda n: _width_in_points(font, _cut_middle(text, n + 1)) > room)
    return _cut_middle(text, max(kept, 1))


def _cut_middle(text: str, kept: int) -> str:
    """Return `text` without its middle, so that `kept` characters remain."""
    head = kept // 2
    return text if kept >= len(text) else f"{text[:head]}…{text[len(text) - (kept - head - 1) :]}"


def _spelled(code: int) -> str:
    """Return the escape sequence of a character."""
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _width_in_points(font: Any, text: str) -> float:
    """Return the width of a text, in points."""
    font.set_text(text)
    width: float = font.get_width_height()[0]
    return width / 64
