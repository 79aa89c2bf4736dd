"""What is drawn of params, as plain data, and the pictures that matplotlib makes of it: PNG, SVG or PDF.

Names are text from files: whoever makes a chart has escaped them. The same chart gives the same bytes.
"""

from __future__ import annotations

import io
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl import files
from paramctl.checkpoint import Checkpoint
from paramctl.errors import FormatError, UsageError
from paramctl.files import NewFile
from paramctl.histogram import Histogram
from paramctl.segments import Literal
from paramctl.stats import Summaries, Summary
from paramctl.track import Run, Step, Tracked
from paramctl.watch import Watch, nobody

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 24  # params in one picture: more are too small to read, and no two lines may look alike
BINS = 64  # of a histogram of many values; of n values about 2 · ∛n (Rice's rule)
FEW = 8
LARGEST = 1e300  # beyond it, positions between values are more than float64 holds
CLOSE = 1e-12  # of their size: values that lie closer together than that are drawn as one
SUFFIXES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}


class Bars(NamedTuple):
    """A histogram: `counts[i]` values lie from `edges[i]` to `edges[i + 1]`; `note` says what is not in it."""

    name: str
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    note: str = ""


class Curve(NamedTuple):
    """A value at each of some places; None where there is none."""

    name: str
    places: tuple[float, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Histograms or curves with one title and what the axes say; `together` draws histograms into one panel."""

    title: str
    x: str
    y: str
    parts: tuple[Bars, ...] | tuple[Curve, ...]
    log: bool = False
    together: bool = False


# --- histograms --------------------------------------------------------------------------------


def histograms(
    checkpoint: Checkpoint,
    indices: Sequence[int],
    names: Sequence[str],
    *,
    together: bool = False,
    watch: Watch = nobody,
) -> tuple[Bars, ...]:
    """The histogram of each param, called by its name; with `together` all have the same bins.

    Bins are powers of two wide, so that every count is exact. Raises FormatError where a checksum is wrong.
    """
    reader = Summaries(checkpoint, indices, histograms=True, watch=watch)
    summaries = [reader.of(i) for i in indices]
    drawn = [_drawable(summary) for summary in summaries]
    if together and any(one.counts for one in drawn):
        pairs = zip(drawn, summaries, strict=True)
        drawn = _alike([one if one.counts else _fine(summary) for one, summary in pairs])
    return tuple(_bars(*one) for one in zip(names, summaries, drawn, strict=True))


def _drawable(summary: Summary) -> Histogram:
    """The histogram in as many bins as suit it; none where its values are too large or too close together."""
    moments = summary.moments
    size = max(abs(moments.low), abs(moments.high)) if moments.finite else 0.0
    if not moments.finite or size > LARGEST or moments.high - moments.low <= max(CLOSE * size, 1 / LARGEST):
        return Histogram()
    return summary.histogram.within(min(max(ceil(2 * moments.finite ** (1 / 3)), FEW), BINS))


def _fine(summary: Summary) -> Histogram:
    """The histogram of values that lie too close together to be drawn alone; none of too large ones."""
    large = max(abs(summary.moments.low), abs(summary.moments.high)) > LARGEST
    return Histogram() if large else summary.histogram


def _alike(found: Sequence[Histogram]) -> list[Histogram]:
    """Histograms in the same bins."""
    held = [one for one in found if one.counts]
    exponent = max((one.exponent for one in held), default=0)
    coarse = [one.coarser(exponent) for one in found]
    first = min((one.first for one in coarse if one.counts), default=0)
    last = max((one.first + len(one.counts) for one in coarse if one.counts), default=0)
    while last - first > 2 * BINS:
        exponent += 1
        first, last = first >> 1, -(-last >> 1)
    return [_padded(one.coarser(exponent), first, last) if one.counts else one for one in coarse]


def _padded(found: Histogram, first: int, last: int) -> Histogram:
    before, behind = found.first - first, last - found.first - len(found.counts)
    return replace(found, first=first, counts=(*[0] * before, *found.counts, *[0] * behind))


def _bars(name: str, summary: Summary, drawn: Histogram) -> Bars:
    moments = summary.moments
    odd = [f"{n:,} {what}" for n, what in ((moments.nan, "NaN"), (moments.inf, "infinite")) if n]
    if not moments.finite:
        return Bars(name, (), (), summary.why or (f"only {' and '.join(odd)}" if odd else "no values"))
    note = f"without {' and '.join(odd)}" if odd else ""
    if drawn.counts:
        return Bars(name, drawn.counts, drawn.edges, note)
    size = max(abs(moments.low), abs(moments.high))
    if size > LARGEST:
        return Bars(name, (), (), f"values up to {size:.3g}, too large to draw")
    around, value = size / 64 if size > 1 / LARGEST else 0.5, float(moments.mean)
    about = "" if moments.low == moments.high else "about "
    note = ", ".join(filter(None, (f"all are {about}{value:.6g}", note)))
    edges = tuple(value + i * around for i in (-3, -1, 1, 3))  # with room on both sides, so that a bar is seen
    return Bars(name, (0, moments.finite, 0), edges, note)


# --- curves ------------------------------------------------------------------------------------

FIGURES = {
    "norm": "‖w‖",
    "update": "‖w − w before‖",
    "ratio": "‖w − w before‖ / ‖w before‖",
    "grad": "‖gradient‖",
    "mean": "mean",
    "std": "std",
}


def curves(
    run: Run, tracked: Sequence[Tracked], of: str, called: Callable[[str | None], str]
) -> tuple[Curve, ...]:
    """A curve of one figure of `track` for each path that was followed, which `called` puts into words.

    Its places are the steps that the checkpoints hold if those order the run, else 1, 2, 3, …. Raises
    UsageError where the figure is nowhere known.
    """
    rows = [{step.path: _figure(step, of) for step in one.steps} for one in tracked]
    paths = dict.fromkeys(path for row in rows for path in row)
    if len(paths) > 1:
        paths.pop(None, None)  # stands for a checkpoint in which nothing matched
    if all(value is None for row in rows for value in row.values()):
        raise UsageError(f"no checkpoint holds a {of} of what was selected", hint="draw another figure with --of")
    by_step = run.order not in ("name", "given")
    places = tuple(float(stop.step or 0) if by_step else i for i, stop in enumerate(run.stops, 1))
    return tuple(Curve(called(path), places, tuple(row.get(path) for row in rows)) for path in paths)


def check_figure(run: Run, of: str) -> None:
    """Raise UsageError unless `track` has a figure of that name, or an optimizer remembers it."""
    if of not in FIGURES and of not in run.moments:
        raise UsageError(f"there is no '{of}' to draw", hint=f"name one of {', '.join([*FIGURES, *run.moments])}")


def _figure(step: Step, of: str) -> float | None:
    value: float | None = getattr(step, of) if of in FIGURES else step.moments.get(of)
    return value


# --- pictures ----------------------------------------------------------------------------------

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
    """What kind of picture a file of this name holds. Raises UsageError where its suffix is another."""
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        raise UsageError("is no name for a picture", hint="end it in .png, .svg or .pdf", file=str(path))
    return form


def check_matplotlib() -> None:
    """Raise UsageError where matplotlib is not installed."""
    try:
        with _quiet():
            import matplotlib  # noqa: F401
    except ImportError:
        hint = "pip install 'paramctl[plot]', or leave out -o to draw in the terminal"
        raise UsageError("matplotlib, which draws pictures, is not installed", hint=hint) from None


def save(chart: Chart, target: NewFile, watch: Watch = nobody) -> int:
    """Draw a chart into a file, whole or not at all, and return its bytes.

    Raises UsageError where the name's suffix is no picture's, a file is in the way, or matplotlib is missing.
    """
    data = picture(chart, form_of(target.path))

    def verify(path: Path) -> None:
        if path.read_bytes() != data:
            raise FormatError("the file that was written is not whole", file=str(path))

    return files.write((Literal(data),), target, (), verify, watch)


def picture(chart: Chart, form: str) -> bytes:
    """The chart as `png`, `svg` or `pdf`. Raises UsageError where matplotlib is missing."""
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
    """Keep what matplotlib has to say about its fonts and its cache from people, who cannot do anything about it."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _draw(figure: Figure, chart: Chart) -> None:
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
        _finish(figure, axes, chart)


def _draw_panels(figure: Figure, chart: Chart, histograms: Sequence[Bars]) -> None:
    """A panel for each histogram, at most three side by side."""
    across = {1: 1, 2: 2, 4: 2}.get(len(histograms), 3)
    down = ceil(len(histograms) / across)
    width, height = ALONE if len(histograms) == 1 else (across * INCHES[0], down * INCHES[1] + 0.4)
    figure.set_size_inches(width, height)
    figure.suptitle(_fitted(chart.title, width - 0.4, 11), fontsize=11)
    figure.supxlabel(_fitted(chart.x, width - 0.4, 9), fontsize=9)
    figure.supylabel(_fitted(chart.y, height - 0.4, 9), fontsize=9)
    for i, one in enumerate(histograms, 1):
        axes = figure.add_subplot(down, across, i)
        axes.set_title(_fitted(one.name, width / across - 0.5, 9))
        if one.note:
            axes.set_xlabel(_fitted(one.note, width / across - 0.6, 8), fontsize=8, color="#555555")
        if not one.counts:
            axes.set_axis_off()
            axes.text(0.5, 0.5, _fitted(one.note, width / across - 0.6, 9), ha="center", transform=axes.transAxes)
            continue
        axes.stairs(one.counts, one.edges, fill=True, color=COLOURS[0])
        _scaled(axes, chart.log, max(one.counts))


def _one_panel(figure: Figure, chart: Chart, parts: int) -> Axes:
    figure.set_size_inches(ALONE[0] + (LEGEND if parts > 1 else 0), max(ALONE[1], 0.2 * parts + 1))
    axes = figure.add_subplot()
    axes.set_title(_fitted(chart.title, ALONE[0] - 1, 11), fontsize=11)
    axes.set_xlabel(_fitted(chart.x, ALONE[0] - 1, 9))
    axes.set_ylabel(_fitted(chart.y, ALONE[1] - 1, 9))
    return axes


def _outline(axes: Axes, one: Bars, i: int) -> None:
    name = f"{one.name} ({one.note})" if one.note else one.name
    label = _fitted(name, LEGEND, 8)
    if one.counts:
        axes.stairs(one.counts, one.edges, label=label, **_style(i))
    else:
        axes.plot([], [], label=label, **_style(i))


def _line(axes: Axes, line: Curve, i: int) -> None:
    values = [float("nan") if value is None else value for value in line.values]
    mark = MARKS[i % len(MARKS)] if len(values) <= MARKED else ""
    axes.plot(line.places, values, marker=mark, markersize=4, label=_fitted(line.name, LEGEND, 8), **_style(i))


def _style(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": KINDS[i % len(KINDS)], "linewidth": 1.5}


def _finish(figure: Figure, axes: Axes, chart: Chart) -> None:
    """The scale, whole steps, and a legend beside the panel where there are several lines."""
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
    """Counts from nothing on, in whole numbers; with `log` each height is ten times as much as that many below."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    if log:
        axes.set_yscale("log")
        axes.set_ylim(0.7, max(most, 1) * 1.5)
        _label_decades(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))


def _label_decades(axes: Axes) -> None:
    """Numbers on a logarithmic axis as people write them, where there is room 2 and 5 too."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 500 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, position: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


# --- names in pictures -------------------------------------------------------------------------


def _fitted(text: str, inches: float, size: float) -> str:
    """`text` without its middle, so that it takes no more room than there is; what has no glyph is spelled out."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=FAMILY)))
    font.set_size(size, POINTS)
    text = "".join(c if font.get_char_index(ord(c)) else _spelled(ord(c)) for c in text)
    room = inches * POINTS
    lengths = range(len(text))
    kept = bisect_left(lengths, True, key=lambda n: _points(font, _elided(text, n + 1)) > room)
    return _elided(text, max(kept, 1))


def _elided(text: str, kept: int) -> str:
    """`text` without its middle, so that so many characters remain."""
    head = kept // 2
    return text if kept >= len(text) else f"{text[:head]}…{text[len(text) - (kept - head - 1) :]}"


def _spelled(code: int) -> str:
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _points(font: Any, text: str) -> float:
    """How wide a text is, in points."""
    font.set_text(text)
    width: float = font.get_width_height()[0]
    return width / 64
