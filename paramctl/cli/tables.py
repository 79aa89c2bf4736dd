"""Align the cells of tables, and fit tables and texts to the width of a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from paramctl.cli.output import Line, note, terminal_width
from paramctl.cli.text import cell_width, elide

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


def table(columns: Sequence[Column], width: int | None = None) -> Iterator[Line]:
    """Yield the header of a table and its rows; see `aligned` for `width`."""
    rows = list(zip(*(column.cells for column in columns), strict=True))
    align = "".join(column.align for column in columns)
    return with_header([column.title for column in columns], rows, align, [column.style for column in columns], width)


def with_header(
    header: Sequence[str], rows: Iterable[Sequence[str]], align: str, styles: Sequence[str], width: int | None
) -> Iterator[Line]:
    """Yield a dim header and the rows under it; see `aligned`."""
    lines = aligned([header, *rows], align, styles, width)
    yield next(lines)._replace(styles=("dim",) * len(header))
    yield from lines


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
    """Return a column of texts without the middle of those that are too long."""
    return column._replace(cells=[elide(cell, width) for cell in column.cells])


def note_dropped(titles: Sequence[str]) -> None:
    """Print which columns were dropped; those without a title need no mention."""
    named = [title for title in titles if title]
    if named:
        note(f"the terminal is too narrow for {', '.join(named)}; --tsv has them")


def aligned(
    rows: Sequence[Sequence[str]], align: str, styles: Sequence[str], width: int | None = None
) -> Iterator[Line]:
    """Yield the rows of a table as lines; `align` has `<` or `>` for each column.

    With a terminal of `width` columns, the first cell of a row that would not fit loses its middle, or its start if
    rows would then look the same. The last column is never padded.
    """
    widths = [max(map(cell_width, column), default=0) for column in zip(*rows, strict=True)]
    if width is not None and widths:
        widths[0] = min(widths[0], max(width - sum(widths[1:-1]) - GAP * (len(widths) - 1), 16))
    style = tuple(styles)
    shown = _told_apart([row[0] for row in rows], widths[0]) if width is not None and widths else {}
    for first, *others in rows:
        cells = [shown.get(first, first), *others]
        yield Line(tuple(map(_padded, cells, widths, align, [*[" " * GAP] * len(others), ""])), style)


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


def _told_apart(texts: Iterable[str], width: int) -> dict[str, str]:
    """Return each text cut to `width`: without its middle, or without its start if texts would look the same."""
    shown = {text: elide(text, width) for text in texts}
    times = Counter(shown.values())
    return {text: short if times[short] == 1 else f"…{text[1 - width :]}" for text, short in shown.items()}


def _padded(text: str, width: int, align: str, gap: str) -> str:
    """Return a cell padded to the width of its column, and the gap behind it."""
    space = " " * (width - cell_width(text))
    return f"{space}{text}{gap}" if align == ">" else f"{text}{space}{gap}"
