"""Find the help topics, which are Markdown pages in this package, and lay them out for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from paramctl.cli.output import Line
from paramctl.cli.tables import wrapped
from paramctl.cli.text import cell_width

FOLDER = Path(__file__).with_name("help")
CODE_INDENT = 4
_BLOCK = re.compile(r"```[^\n]*\n(?P<code>.*?)^```$|(?P<text>(?:^(?!```)[^\n]*\S[^\n]*\n?)+)", re.M | re.S)
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
            for row in block["code"].splitlines():
                yield Line((" " * CODE_INDENT + row,), ("cyan",))
        elif block["text"].startswith("#"):
            yield Line((block["text"].lstrip("#").strip(),), ("bold",))
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
    """Yield the rows of a table: the last column is wrapped, the others are as wide as they need to be."""
    rows = [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in text.splitlines()]
    del rows[1]  # the dashes
    widths = [max(map(cell_width, column)) + 2 for column in zip(*(row[:-1] for row in rows), strict=True)]
    for number, (*cells, last) in enumerate(rows):
        first = "".join(cell + " " * (n - cell_width(cell)) for cell, n in zip(cells, widths, strict=True))
        for i, part in enumerate(wrapped(last, sum(widths)) or [""]):
            yield Line((" " * sum(widths) if i else first, part), ("", "") if number else ("bold", "bold"))
