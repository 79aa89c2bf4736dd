"""Align columns of text, and fit them to a width."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:

    pass
from paramctl.cli.output import Line, terminal_width
from paramctl.cli.text import cell_width, elide

NARROW = 24  # columns that text keeps, however small the terminal


def aligned(
    rows: Sequence[Sequence[str]], align: str, styles: Sequence[str], width: int | None = None
) -> Iterator[Line]:
    """Rows of a table as lines, columns two spaces apart; `align` has `<` or `>` for each.

    With a terminal of `width` columns the first cell of a row loses its middle where the row would not
    fit, or its start where rows would then look the same. The last column is never padded.
    """
    widths = [max(map(cell_width, column), default=0) for column in zip(*rows, strict=True)]
    if width is not None and widths:
        widths[0] = min(widths[0], max(width - sum(widths[1:-1]) - 2 * (len(widths) - 1), 16))
    style = tuple(styles)
    shown = _told_apart([row[0] for row in rows], widths[0]) if width is not None and widths else {}
    for first, *others in rows:
        cells = [shown.get(first, first), *others]
        yield Line(tuple(map(_padded, cells, widths, align, [*["  "] * len(others), ""])), style)


def _told_apart(texts: Iterable[str], width: int) -> dict[str, str]:
    """Each text as it fits: without its middle, or where that is another's too, without its start."""
    shown = {text: elide(text, width) for text in texts}
    times = Counter(shown.values())
    return {text: short if times[short] == 1 else f"…{text[1 - width :]}" for text, short in shown.items()}


def wrapped(text: str, indent: int) -> list[str]:
    """`text` over as many lines as a terminal needs beside `indent` columns; one line off a terminal."""
    width = terminal_width()
    if width is None:
        return [text] if text else []
    from textwrap import wrap

    return wrap(text, max(width - indent, NARROW), break_long_words=False, break_on_hyphens=False)


def _padded(text: str, width: int, align: str, gap: str) -> str:
    space = " " * (width - cell_width(text))
    return f"{space}{text}{gap}" if align == ">" else f"{text}{space}{gap}"
