"""Align the cells of tables, and fit tables and texts to the width of a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from paramctl.cli.output import Line, note, terminal_width
from paramctl.cli.text import cell_width, elide, without_start

NARROW = 24  # columns that text keeps, however small the terminal
GAP = 2  # spaces between columns


class Column(NamedTuple):
    """One column of a table. Cells of text may be cut to `least` columns; None keeps them whole.

    `key` names the column in code, `title` stands above it; `numbers` are the values that its cells show, if any.
    """

    key: str
    title: str
    cells: Sequence[str]
    align: str = ">"
    style: str = ""
    least: int | None = None
    numbers: Sequence[float | None] = ()

    @property
    def width(self) -> int:
        """Columns of the terminal that the longest cell takes."""
        return max(map(cell_width, [self.title, *self.cells]))


class Fitted(NamedTuple):
    """The columns that a terminal has room for, and the titles of those that were dropped."""

    columns: list[Column]
    dropped: list[str]


def fitted(columns: Sequence[Column], spare: Sequence[str], width: int | None) -> Fitted:
    """Return the columns that fit `width` columns of a terminal; None is no terminal, where nothing is cut.

    Columns are dropped in the order of `spare`, a list of keys, until the others fit with texts as short as they may
    be. Then texts are cut to what is left of the width.
    """
    kept, dropped = without_spare(columns, spare, width)
    return Fitted(with_short_texts(kept, width), dropped)


def table(columns: Sequence[Column]) -> Iterator[Line]:
    """Yield a dim header and the rows of a table."""
    titled = [column._replace(cells=[column.title, *column.cells]) for column in columns]
    lines = rows(titled)
    yield next(lines)._replace(styles=("dim",) * len(columns))
    yield from lines


def rows(columns: Sequence[Column]) -> Iterator[Line]:
    """Yield the rows of a table without a header. The last column is never padded."""
    widths = [column.width for column in columns]
    aligns = [column.align for column in columns]
    gaps = [*[" " * GAP] * (len(columns) - 1), ""]
    styles = tuple(column.style for column in columns)
    for cells in zip(*(column.cells for column in columns), strict=True):
        yield Line(tuple(map(_padded, cells, widths, aligns, gaps)), styles)


def without_spare(columns: Sequence[Column], spare: Sequence[str], width: int | None) -> tuple[list[Column], list[str]]:
    """Return the columns that fit, and the titles of those dropped: columns of `spare`, by key, in that order."""
    kept, dropped = list(columns), []
    for key in spare:
        if width is None or _needed(kept) <= width:
            break
        dropped += [column.title for column in kept if column.key == key]
        kept = [column for column in kept if column.key != key]
    return kept, dropped


def with_short_texts(columns: Sequence[Column], width: int | None) -> list[Column]:
    """Return the columns with their texts cut to what is left of the width."""
    texts = [column for column in columns if column.least is not None]
    longest = max((column.width for column in texts), default=0)
    least = min((column.least or 0 for column in texts), default=0)
    while width is not None and longest > least and _needed(columns, longest) > width:
        longest -= 1
    return [column if column.least is None else _cut(column, max(longest, column.least)) for column in columns]


def _cut(column: Column, width: int) -> Column:
    """Return a column of texts, of which those that are too long lose their middle.

    Texts that would then look the same lose their start instead.
    """
    if column.width <= width:
        return column
    shown = {cell: elide(cell, width) for cell in column.cells}
    times = Counter(shown.values())
    cells = [shown[cell] if times[shown[cell]] == 1 else without_start(cell, width) for cell in column.cells]
    return column._replace(cells=cells)


def note_dropped(titles: Sequence[str], elsewhere: str = "--tsv has them") -> None:
    """Print which columns were dropped; those without a title need no mention."""
    named = [*dict.fromkeys(title for title in titles if title)]
    if named:
        note(f"the terminal is too narrow for {', '.join(named)}; {elsewhere}")


def wrapped(text: str, indent: int) -> list[str]:
    """Return `text` in lines that fit the terminal beside `indent` columns; in one line off a terminal."""
    width = terminal_width()
    if width is None:
        return [text] if text else []
    from textwrap import wrap

    return wrap(text, max(width - indent, NARROW), break_long_words=False, break_on_hyphens=False)


def _needed(columns: Sequence[Column], longest: int = 0) -> int:
    """Return the width of a table whose texts are cut to `longest` columns, or to the least they keep."""
    widths = [
        column.width if column.least is None else min(column.width, max(longest, column.least)) for column in columns
    ]
    return sum(widths) + GAP * (len(columns) - 1)


def _padded(text: str, width: int, align: str, gap: str) -> str:
    """Return a cell padded to the width of its column, and the gap behind it."""
    space = " " * (width - cell_width(text))
    return f"{space}{text}{gap}" if align == ">" else f"{text}{space}{gap}"
