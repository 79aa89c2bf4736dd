"""Make charts as plain data: histograms of params, and curves of the figures that `track` computes.

Names in charts come from files; the caller must have escaped them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple

from paramctl.errors import UsageError
from paramctl.model.checkpoint import Checkpoint
from paramctl.progress import ProgressCallback, ignore
from paramctl.stats.histogram import Histogram
from paramctl.stats.runs import Run
from paramctl.stats.stats import Summaries, Summary
from paramctl.stats.track import Step, Tracked

MAX_PARAMS = 24  # params in one chart: more are too small to read, and no two lines may look alike
MAX_BINS = 64  # of a histogram of many values; of n values about 2 · ∛n (Rice's rule)
MIN_BINS = 8
LARGEST = 1e300  # beyond it, positions between values are more than float64 holds
CLOSE = 1e-12  # of their size: values that lie closer together than that are drawn as one


class Bars(NamedTuple):
    """A histogram: `counts[i]` values lie from `edges[i]` to `edges[i + 1]`; `note` names the values left out."""

    name: str
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    note: str = ""


class Curve(NamedTuple):
    """A value at each of several places; None if there is no value."""

    name: str
    places: tuple[float, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Histograms or curves under one title; `x` and `y` label the axes, `together` puts histograms in one panel."""

    title: str
    x: str
    y: str
    parts: tuple[Bars, ...] | tuple[Curve, ...]
    log: bool = False
    together: bool = False


def histograms(
    checkpoint: Checkpoint,
    indices: Sequence[int],
    names: Sequence[str],
    *,
    together: bool = False,
    on_progress: ProgressCallback = ignore,
) -> tuple[Bars, ...]:
    """Return the histogram of each param, under its name; with `together` all have the same bins.

    The width of a bin is a power of two, so that every count is exact. Raises FormatError if a checksum is wrong.
    """
    reader = Summaries(checkpoint, indices, histograms=True, on_progress=on_progress)
    summaries = [reader.of(i) for i in indices]
    drawn = [_drawable(summary) for summary in summaries]
    if together and any(one.counts for one in drawn):
        pairs = zip(drawn, summaries, strict=True)
        drawn = _in_same_bins([one if one.counts else _fallback_histogram(summary) for one, summary in pairs])
    return tuple(_bars(*one) for one in zip(names, summaries, drawn, strict=True))


def _drawable(summary: Summary) -> Histogram:
    """Return the histogram in a suitable number of bins; an empty one if values are too large or too close."""
    moments = summary.moments
    size = max(abs(moments.low), abs(moments.high)) if moments.finite else 0.0
    if not moments.finite or size > LARGEST or moments.high - moments.low <= max(CLOSE * size, 1 / LARGEST):
        return Histogram()
    return summary.histogram.within(min(max(ceil(2 * moments.finite ** (1 / 3)), MIN_BINS), MAX_BINS))


def _fallback_histogram(summary: Summary) -> Histogram:
    """Return the histogram of values too close together to be drawn alone; an empty one if they are too large."""
    large = max(abs(summary.moments.low), abs(summary.moments.high)) > LARGEST
    return Histogram() if large else summary.histogram


def _in_same_bins(found: Sequence[Histogram]) -> list[Histogram]:
    """Return the histograms in common bins."""
    held = [one for one in found if one.counts]
    exponent = max((one.exponent for one in held), default=0)
    coarse = [one.coarser(exponent) for one in found]
    first = min((one.first for one in coarse if one.counts), default=0)
    last = max((one.first + len(one.counts) for one in coarse if one.counts), default=0)
    while last - first > 2 * MAX_BINS:
        exponent += 1
        first, last = first >> 1, -(-last >> 1)
    return [_padded(one.coarser(exponent), first, last) if one.counts else one for one in coarse]


def _padded(found: Histogram, first: int, last: int) -> Histogram:
    """Return the histogram with empty bins added from `first` up to `last`."""
    before, behind = found.first - first, last - found.first - len(found.counts)
    return replace(found, first=first, counts=(*[0] * before, *found.counts, *[0] * behind))


def _bars(name: str, summary: Summary, drawn: Histogram) -> Bars:
    """Return the bars of one histogram, with a note on the values it leaves out."""
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


FIGURES = {
    "norm": "‖w‖",
    "update": "‖w − w before‖",
    "ratio": "‖w − w before‖ / ‖w before‖",
    "grad": "‖gradient‖",
    "mean": "mean",
    "std": "std",
}


def curves(run: Run, tracked: Sequence[Tracked], of: str, called: Callable[[str | None], str]) -> tuple[Curve, ...]:
    """Return a curve of one figure of `track` for each path, under the name that `called` gives it.

    Its places are the steps stored in the checkpoints if the run is ordered by those, else 1, 2, 3, …. Raises
    UsageError if no checkpoint has the figure.
    """
    rows = [{step.path: _figure(step, of) for step in one.steps} for one in tracked]
    paths = dict.fromkeys(path for row in rows for path in row)
    if len(paths) > 1:
        paths.pop(None, None)  # stands for a checkpoint in which nothing matched
    if all(value is None for row in rows for value in row.values()):
        raise UsageError(f"no checkpoint holds a {of} of the selected params", hint="draw another figure with --of")
    by_step = run.order not in ("name", "given")
    places = tuple(float((run_file.step or 0) if by_step else i) for i, run_file in enumerate(run.run_files, 1))
    return tuple(Curve(called(path), places, tuple(row.get(path) for row in rows)) for path in paths)


def check_figure(run: Run, of: str) -> None:
    """Raise UsageError unless `of` is a figure of `track` or the name of an optimizer's moment."""
    if of not in FIGURES and of not in run.moments:
        raise UsageError(f"there is no '{of}' to draw", hint=f"name one of {', '.join([*FIGURES, *run.moments])}")


def _figure(step: Step, of: str) -> float | None:
    """Return one figure of a step, or None."""
    value: float | None = getattr(step, of) if of in FIGURES else step.moments.get(of)
    return value
