"""Turn names and numbers into text that is safe on a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from math import floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


LIMIT = 500  # characters of one name that a terminal or an error message shows
SENTENCE = 50_000  # characters of a whole message: our own words are all read, but no file makes it endless
BARS = "▁▂▃▄▅▆▇█"


def escape(text: str, limit: int | None = LIMIT) -> str:
    """`text` with everything that is not plainly visible spelled out, on one line.

    Control characters, bidirectional and zero-width marks, line separators and lone surrogates become
    `\\n`, `\\x1b`, `\\u202e`, … What is longer than `limit` characters loses its middle; None keeps all.
    """
    if limit is not None:
        text = elide(text, limit)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escape_char(c) for c in text)


def sentence(text: str) -> str:
    """`text` of our own on one line, with names from a file in it: those, not the text, lose their middle."""
    return escape(_LONG_WORD.sub(lambda word: elide(word[0], LIMIT), text), SENTENCE)


_LONG_WORD = re.compile(rf"\S{{{LIMIT + 1},}}")  # we write none


def elide(text: str, width: int) -> str:
    """`text` without its middle, so that no more than `width` characters remain."""
    if len(text) <= width:
        return text
    head = max(width - 1, 0) // 2
    return f"{text[:head]}…{text[len(text) - max(width - 1 - head, 0) :]}"


def cut(text: str, width: int) -> str:
    """`text` without its end, so that no more than `width` characters remain."""
    return text if len(text) <= width else f"{text[: max(width - 1, 0)]}…"


def escape_char(c: str) -> str:
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    n = ord(c)
    return named.get(c) or (f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}")


def cell_width(text: str) -> int:
    """Columns of a terminal that `text` takes: two for wide East Asian characters, none for accents."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


@lru_cache(maxsize=4096)
def _char_width(c: str) -> int:
    if unicodedata.combining(c) or unicodedata.category(c) == "Me":
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def human_bytes(n: int) -> str:
    """`128 B`, `4.8 KiB`, `1.2 GiB`."""
    if n < 1024:
        return f"{n} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} EiB"


def number(value: float | None, digits: int = 4) -> str:
    """`1,234`, `0.02786`, `1.8e+20`: whole numbers in full up to a billion, others by so many digits; None is empty."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) < 10**9 and value == int(value) else f"{value:.{digits}g}"


def digits_for(spread: float | None, mean: float | None) -> int:
    """How many digits it takes to tell apart values that lie `spread` from their mean: four of that, 17 at most."""
    if not spread or not mean or abs(mean) / spread == float("inf"):
        return 4
    return min(4 + max(floor(log10(abs(mean) / spread)), 0), 17)


def counted(n: int, noun: str) -> str:
    """`1 tensor`, `1,234 tensors`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def totals_text(tensors: int, unique: int, numel: int, nbytes: int) -> str:
    """`5 tensors (4 unique), 1,234 values, 4.8 KiB`."""
    ties = f" ({unique:,} unique)" if unique != tensors else ""
    return f"{counted(tensors, 'tensor')}{ties}, {counted(numel, 'value')}, {human_bytes(nbytes)}"


def sparkline(counts: Sequence[float]) -> str:
    """Counts as bars of eight heights next to one another; where nothing is, there is no bar."""
    most = max(counts, default=0.0)
    return "".join(" " if count <= 0 else BARS[min(int(8 * count / most), 7)] for count in counts) if most > 0 else ""
