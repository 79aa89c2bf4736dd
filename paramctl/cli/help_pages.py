"""Find the help topics, which are Markdown pages in this package, and lay them out for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

from paramctl.cli.output import Line, terminal_width
from paramctl.cli.tables import wrapped
from paramctl.cli.text import cell_width

FOLDER = Path(__file__).with_name("help")
CODE_INDENT = 4
GAP = 2  # columns of the terminal between two of a table
NARROWEST = 10  # columns that a column of a table keeps
_BLOCK = re.compile(
    r"```\w* ?(?P<file>[^\n]*)\n(?P<code>.*?)^```$|(?P<text>(?:^(?!```)[^\n]*\S[^\n]*\n?)+)", re.M | re.S
)
_ITEM = re.compile(r"(- |\d+\. )(.*)", re.S)


def topics() -> dict[str, str]:
    """Return the name of each topic with its title, in the order of the names."""
    return {path.stem: _title(path) for path in sorted(FOLDER.glob("*.md"))}


def page(topic: str) -> str:
    """Return the Markdown of a topic."""
    return (FOLDER / f"{topic}.md").read_text(encoding="utf-8")


def _title(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()


def laid_out(markdown: str) -> Iterator[Line]:
    """Yield the lines of a page, wrapped to the terminal: headings, paragraphs, lists, tables and blocks of code."""
    for number, block in enumerate(_BLOCK.finditer(markdown)):
        if number:
            yield Line(("",), ("",))
        if block["code"] is not None:
            if block["file"]:
                yield Line((f"In {block['file']}:",), ("bold",))
            for row in block["code"].splitlines():
                yield Line((" " * CODE_INDENT + row,), ("cyan",))
        elif block["text"].startswith("#"):
            yield from (Line((part,), ("bold",)) for part in wrapped(block["text"].lstrip("#").strip(), 0))
        elif block["text"].startswith("|"):
            yield from _table(block["text"])
        else:
            for part in re.split(r"\n(?=- |\d+\. )", block["text"].strip()):
                yield from _paragraph(part)


def _paragraph(text: str) -> Iterator[Line]:
    """Yield a paragraph, or an item of a list, whose further lines hang below its text."""
    mark, words = item.groups() if (item := _ITEM.fullmatch(text)) else ("", text)
    for i, row in enumerate(wrapped(" ".join(words.split()), len(mark))):
        yield Line((" " * len(mark) if i else mark, row), ("", ""))


def _table(text: str) -> Iterator[Line]:
    """Yield the rows of a table, whose widest columns are wrapped until it fits the terminal."""
    from textwrap import wrap

    rows = [[cell.strip() for cell in row.strip()[1:-1].split("|")] for row in text.splitlines()]
    del rows[1]  # the dashes
    widths = _fitted([max(map(cell_width, column)) for column in zip(*rows, strict=True)])
    for number, row in enumerate(rows):
        parts = (wrap(cell, width) for cell, width in zip(row, widths, strict=True))
        for cells in zip_longest(*parts, fillvalue=""):
            padded = (cell + " " * (n + GAP - cell_width(cell)) for cell, n in zip(cells, widths, strict=True))
            yield Line(("".join(padded),), ("" if number else "bold",))


def _fitted(widths: list[int]) -> list[int]:
    """Return the widths of columns, the widest of them made narrower until all fit the terminal."""
    room = (terminal_width() or sum(widths) + GAP * len(widths)) - GAP * (len(widths) - 1)
    while sum(widths) > room and max(widths) > NARROWEST:
        widths[widths.index(max(widths))] -= 1
    return widths
