"""Draw charts with characters: histograms and curves as columns of blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log10
from typing import TYPE_CHECKING

from paramctl.cli.output import Line
from paramctl.cli.text import BARS, cut, number

if TYPE_CHECKING:
    from paramctl.stats.charts import Bars, Chart, Curve

HEIGHT = 8  # lines of a chart, of eight levels each
WIDEST = 8  # columns of one bar
LEAST = 10  # columns that a chart keeps, however narrow the terminal
BELOW = log10(0.5)  # where a logarithmic scale of counts begins, so that 1 can be seen


def drawing(chart: Chart, width: int) -> Iterator[Line]:
    """Yield the lines of a chart in `width` columns."""
    from paramctl.stats.charts import Bars

    log = ", logarithmic" if chart.log else ""
    yield Line((cut(chart.title, width),), ("bold",))
    yield _caption(f"{chart.y} by {chart.x}{log}", width)
    for part in chart.parts:
        yield Line(("",), ("",))
        yield from _histogram(part, width, chart.log) if isinstance(part, Bars) else _curve(part, width, chart.log)


def thinned(values: Sequence[float | None], most: int) -> list[float | None]:
    """Return at most `most` values, each the mean of those it stands for."""
    if len(values) <= most:
        return list(values)
    bounds = [i * len(values) // most for i in range(most + 1)]
    parts = ([v for v in values[start:end] if v is not None] for start, end in pairwise(bounds))
    return [sum(part) / len(part) if part else None for part in parts]


def relative_heights(values: Sequence[float | None]) -> list[float | None]:
    """Return each value's height between the lowest, 0, and the highest, 1; one half if all are equal."""
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high / 2 - low / 2  # half of it: the whole may be more than a float holds
    return [None if v is None else (v / 2 - low / 2) / span if span > 0 else 0.5 for v in values]


def sparkline(values: Sequence[float | None]) -> str:
    """Return values as bars of eight heights in one line, the lowest with the lowest bar; a gap for None."""
    return "".join(" " if share is None else BARS[int(share * 7 + 0.5)] for share in relative_heights(values))


def _histogram(bars: Bars, width: int, log: bool) -> Iterator[Line]:
    """Yield the lines of a histogram, with counts upwards from zero."""
    yield Line((cut(bars.name, width),), ("bold",))
    if bars.note:
        yield _caption(bars.note, width)
    if not bars.counts:
        return
    most = f"{max(bars.counts):,}"
    counts, edges = _merged_bins(bars, max(width - len(most) - 2, LEAST))
    most = f"{max(counts):,}"
    levels = [_height_of_count(count, max(counts), log) for count in counts]
    yield from _columns(levels, most, "0" if not log else "", edges[0], edges[-1], width)


def _merged_bins(bars: Bars, room: int) -> tuple[list[int], list[float]]:
    """Return counts and edges, with as many bins merged as it takes to fit."""
    join = -(-len(bars.counts) // room)
    counts = [sum(bars.counts[i : i + join]) for i in range(0, len(bars.counts), join)]
    return counts, [*bars.edges[:-1:join], bars.edges[-1]]


def _height_of_count(count: int, most: int, log: bool) -> float | None:
    """Return the height of a count between 0 and 1; None for zero."""
    if not count:
        return None
    return (log10(count) - BELOW) / (log10(most) - BELOW) if log else count / most


def _curve(curve: Curve, width: int, log: bool) -> Iterator[Line]:
    """Yield the lines of a curve, from its lowest value, drawn as a low bar, to its highest."""
    yield Line((cut(curve.name, width),), ("bold",))
    values = [None if v is None or (log and v <= 0) else log10(v) if log else v for v in curve.values]
    known = [value for value in values if value is not None]
    if not known:
        yield _caption("no values", width)
        return
    low, high = _distinct_texts(*(10**end if log else end for end in (min(known), max(known))))
    gutter = max(len(low), len(high))
    drawn = relative_heights(thinned(values, max(width - gutter - 2, LEAST)))
    levels = [None if share is None else (1 + share * (8 * HEIGHT - 1)) / (8 * HEIGHT) for share in drawn]
    bottom = low if high != low else ""
    yield from _columns(levels, high, bottom, curve.places[0], curve.places[-1], width)


def _distinct_texts(low: float, high: float) -> tuple[str, str]:
    """Return two numbers with enough digits to tell them apart."""
    texts = ((f"{low:.{digits}g}", f"{high:.{digits}g}") for digits in range(4, 17))
    return next((pair for pair in texts if pair[0] != pair[1]), (number(low), number(high)))


def _columns(
    levels: Sequence[float | None], top: str, bottom: str, first: float, last: float, width: int
) -> Iterator[Line]:
    """Yield the lines of columns of blocks as high as their levels, from 0 to 1, with the ends of both scales."""
    gutter = max(len(top), len(bottom))
    each = min(max((width - gutter - 2) // len(levels), 1), WIDEST)
    eighths = [0 if level is None else max(round(level * 8 * HEIGHT), 1) for level in levels]
    for row in reversed(range(HEIGHT)):
        label = top if row == HEIGHT - 1 else ""
        blocks = "".join(_block(n - 8 * row) * each for n in eighths)
        yield Line((f"{label:>{gutter}} │", blocks), ("dim", "cyan"))
    room = each * len(levels)
    yield Line((f"{bottom:>{gutter}} └{'─' * room}",), ("dim",))
    yield Line((" " * (gutter + 2) + _scale_ends(first, last, room),), ("dim",))


def _block(eighths: int) -> str:
    """Return the block of a column in one line."""
    return " " if eighths <= 0 else BARS[min(eighths, 8) - 1]


def _scale_ends(first: float, last: float, room: int) -> str:
    """Return the first and last number of a scale, and zero if it lies between them."""
    low, high = number(first), number(last)
    if first == last:
        return low
    line = f"{low}{high:>{max(room - len(low), len(high) + 1)}}"
    if first < 0 < last:
        at = round(room * (-first / (last - first)))
        if len(low) < at < room - len(high) - 1:
            line = f"{line[:at]}0{line[at + 1 :]}"
    return line


def _caption(text: str, width: int) -> Line:
    """Return a line of dim text."""
    return Line((cut(text, width),), ("dim",))
