"""Print the differences between two checkpoints: tables on a terminal, tab-separated lines in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from paramctl.cli import json_text, output, tables
from paramctl.cli.output import Line
from paramctl.cli.tables import Column
from paramctl.cli.text import counted, elide, escape
from paramctl.model.checkpoint import dims

if TYPE_CHECKING:
    from paramctl.compare.diff import ChangedEntry, Difference, TieChange
    from paramctl.compare.distance import Distance
    from paramctl.compare.param_pairs import Changed
    from paramctl.model.checkpoint import Param

SHORT = 60  # characters of a scalar on a terminal
TEXT = 16  # columns that paths and texts keep before other columns make room for them
SPARE = ("relative", "mean", "differ")  # dropped in this order on a narrow terminal


def lines(found: Difference) -> Iterator[str]:
    """Yield the tab-separated lines."""
    for row in _cells(found):
        yield "\t".join(escape(cell, None) for cell in row)


def _cells(found: Difference) -> Iterator[tuple[str, ...]]:
    """Yield the cells of each line, the biggest change first."""
    for row in _by_size(found.changed):
        sides = () if row.what == "values" else (_side(row.before, "x"), _side(row.after, "x"))
        figures = _in_full(row.figures) if row.figures else ()
        yield (row.what, row.path, *sides, *figures, *([row.rounds_to] if row.what == "dtype" and figures else []))
    for word, params in (("removed", found.removed), ("added", found.added)):
        for param in params:
            yield word, param.path, param.dtype.name, _side(param.shape, "x")
    for word, ties in (("tied", found.tied), ("untied", found.untied)):
        for tie in ties:
            yield word, tie.path, tie.first
    for word, entries in (("scalar", found.scalars), ("metadata", found.metadata)):
        for entry in entries:
            yield word, entry.path, _value(entry.before), _value(entry.after)


def _in_full(figures: Distance) -> tuple[str, ...]:
    """Return all figures with all digits."""
    from dataclasses import astuple

    return tuple(map(repr, astuple(figures)))


def _side(side: tuple[int, ...] | str, times: str) -> str:
    """Return a shape or dtype as text."""
    return side if isinstance(side, str) else times.join(map(str, side))


def _value(side: tuple[object, ...]) -> str:
    """Return a value as JSON; "" if there is none."""
    return json_text.json_text(side[0]) if side else ""


class Page:
    """The tables for a terminal; `dropped` are the titles of the columns that it had no room for."""

    def __init__(self, found: Difference) -> None:
        self.found = found
        self.dropped: list[str] = []

    def lines(self) -> Iterator[Line]:
        """Yield the summary and a table for each kind of difference."""
        yield from (Line((part,), ("bold",)) for part in tables.wrapped(summary(self.found), 0))
        for columns in _tables(self.found):
            if columns[0].cells:
                yield Line(("",), ("",))
                shown = tables.fitted(columns, SPARE, output.terminal_width())
                self.dropped += shown.dropped
                yield from tables.table(shown.columns)


def _tables(found: Difference) -> Iterator[list[Column]]:
    """Yield the columns of the table of each kind of difference; a table may have no rows."""
    changed = _by_size(found.changed)
    values = [row for row in changed if row.what == "values"]
    dtypes = [row for row in changed if row.what == "dtype"]
    shapes = [row for row in changed if row.what == "shape"]
    yield [_paths("values", values), *_distances(values), _remarks(map(_nonfinite, values), "red")]
    largest, _, _, differ = _distances(dtypes)
    yield [
        _paths("dtype", dtypes),
        _texts(map(_arrow, dtypes), "cyan"),
        largest,
        differ,
        _remarks(map(_rounding, dtypes)),
    ]
    yield [_paths("shape", shapes), _texts(map(_arrow, shapes), "cyan")]
    for word, params, style in (("removed", found.removed, "red"), ("added", found.added, "green")):
        sizes = Column("shape", "", [dims(param.shape) for param in params], "<", least=TEXT)
        yield [_paths(word, params, style), Column("dtype", "", [p.dtype.name for p in params], "<", "cyan"), sizes]
    for word, ties, was in (("tied", found.tied, "= "), ("untied", found.untied, "was = ")):
        yield [_paths(word, ties), _texts((f"{was}{_shown(tie.first)}" for tie in ties), "magenta")]
    for word, entries in (("scalars", found.scalars), ("metadata", found.metadata)):
        yield [_paths(word, entries), _texts(f"{_brief(row.before)} → {_brief(row.after)}" for row in entries)]


def _paths(title: str, rows: Sequence[Changed | Param | TieChange | ChangedEntry], style: str = "") -> Column:
    """Return the column of paths."""
    return Column("path", title, [_shown(row.path) for row in rows], "<", style, least=TEXT)


def _texts(cells: Iterable[str], style: str = "") -> Column:
    """Return a column of texts that may be cut."""
    return Column("text", "", [*cells], "<", style, least=TEXT)


def _remarks(cells: Iterable[str], style: str = "dim") -> Column:
    """Return the column of remarks."""
    return Column("remark", "", [*cells], "<", style)


def _distances(rows: Sequence[Changed]) -> list[Column]:
    """Return the columns of the largest, mean and relative distance, and of how many values differ."""
    figures = [_figures(row) for row in rows]
    titles = (
        ("max", "max |Δ|", "yellow"),
        ("mean", "mean |Δ|", ""),
        ("relative", "relative", ""),
        ("differ", "differ", ""),
    )
    return [
        Column(key, title, [row[i] for row in figures], style=style) for i, (key, title, style) in enumerate(titles)
    ]


def summary(found: Difference) -> str:
    """Return the differences in one sentence."""
    if not found.compared:
        return f"no tensor is in both files: {len(found.added):,} added, {len(found.removed):,} removed"
    parts = [f"{found.compared - found.equal:,} of {counted(found.compared, 'tensor')} changed"]
    parts += [f"{len(found.added):,} added", f"{len(found.removed):,} removed"]
    others = ((found.tied, "tie", " gained"), (found.untied, "tie", " lost"), (found.scalars, "scalar", ""))
    parts += [f"{counted(len(rows), noun)}{word}" for rows, noun, word in others if rows]
    parts += ["metadata"] if found.metadata else []
    return f"the files differ: {', '.join(parts)}{_biggest(found.changed)}"


def _biggest(changed: Sequence[Changed]) -> str:
    """Return where values are furthest apart, in words, or ""."""
    for row in _by_size(changed):
        if row.figures and row.figures.count:
            size = "is not finite," if row.figures.nonfinite else _short(row.figures.max_abs)
            return f"; biggest change {size} in {_shown(row.path)}"
    return ""


def _by_size(changed: Sequence[Changed]) -> list[Changed]:
    """Return the changes, the biggest first: without figures, then not finite, then by the largest distance.

    Integers come after other values, and optimizer state after everything, or else counts of steps would come first.
    """

    def size(row: Changed) -> tuple[bool, bool, bool, bool, float]:
        """Return the sort key of a change."""
        figures = row.figures
        spoiled = figures is not None and figures.nonfinite > 0
        return row.kind != "optimizer", not row.counts, figures is None, spoiled, figures.max_abs if figures else 0

    return sorted(changed, key=size, reverse=True)


def _figures(row: Changed) -> tuple[str, ...]:
    """Return the largest distance, the mean, the relative one, and how many values differ."""
    if row.figures is None:
        return ("",) * 4
    sizes = (row.figures.max_abs, row.figures.mean_abs, row.figures.max_rel)
    return (*map(_short, sizes), f"{row.figures.count:,} of {row.figures.of:,}")


def _short(size: float) -> str:
    """Return a number with few digits."""
    return f"{size:.4g}"


def _nonfinite(row: Changed) -> str:
    """Return how many values are not finite, in words, or ""."""
    return f"{row.figures.nonfinite:,} not finite" if row.figures and row.figures.nonfinite else ""


def _rounding(row: Changed) -> str:
    """Return the remark on values of two dtypes."""
    if row.figures is None:
        return "not compared"
    if not row.figures.count:
        return "same values"
    return f"same in {row.rounds_to}" if row.rounds_to else _nonfinite(row)


def _arrow(row: Changed) -> str:
    """Return `before → after`."""
    before, after = (side if isinstance(side, str) else dims(side) for side in (row.before, row.after))
    return f"{before} → {after}"


def _brief(side: tuple[object, ...]) -> str:
    """Return a value as short JSON, or `none`."""
    return elide(_value(side), SHORT) if side else "none"


def _shown(path: str) -> str:
    """Return a path as it is printed."""
    return escape(path) or "."
