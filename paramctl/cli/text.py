"""Turn names and numbers into text that is safe on a terminal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, islice
from math import floor, log10
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


LIMIT = 500  # characters of one name that a terminal or an error message shows
SENTENCE = 50_000  # characters of a whole message: our own words are all read, but no file makes it endless
COMBINED = 64  # accents and other marks without a column that a text cut to its width may keep
BARS = "▁▂▃▄▅▆▇█"


def escape(text: str, limit: int | None = LIMIT) -> str:
    r"""Return `text` on one line, with every character that is not visible as an escape.

    Control characters, bidirectional and zero-width marks, line separators and lone surrogates become
    `\n`, `\x1b`, `\u202e`, …. A text longer than `limit` characters loses its middle; None keeps all of it.
    """
    if limit is not None:
        text = elide(text, limit)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else escape_char(c) for c in text)


def sentence(text: str) -> str:
    """Return a message on one line; long names from a file, not the message, lose their middle."""
    return escape(_LONG_WORD.sub(lambda word: elide(word[0], LIMIT), text), SENTENCE)


_LONG_WORD = re.compile(rf"\S{{{LIMIT + 1},}}")  # we write none


def elide(text: str, width: int) -> str:
    """Return `text` without its middle, in at most `width` columns of a terminal."""
    if len(text) * 2 <= width or cell_width(text) <= width:
        return text
    head = max(width - 1, 0) // 2
    return f"{_start(text, head)}…{_end(text, max(width - 1 - head, 0))}"


def cut(text: str, width: int) -> str:
    """Return `text` without its end, in at most `width` columns of a terminal."""
    return text if cell_width(text) <= width else f"{_start(text, max(width - 1, 0))}…"


def without_start(text: str, width: int) -> str:
    """Return `text` without its start, in at most `width` columns of a terminal."""
    return text if cell_width(text) <= width else f"…{_end(text, max(width - 1, 0))}"


def _start(text: str, width: int) -> str:
    """Return the start of a text that takes at most `width` columns."""
    ends = accumulate(map(_char_width, islice(text, width * 2 + COMBINED)))
    return text[:width] if text.isascii() else text[: sum(end <= width for end in ends)]


def _end(text: str, width: int) -> str:
    """Return the end of a text that takes at most `width` columns."""
    if text.isascii():
        return text[len(text) - width :]
    ends = accumulate(map(_char_width, islice(reversed(text), width * 2 + COMBINED)))
    return text[len(text) - sum(end <= width for end in ends) :]


def escape_char(c: str) -> str:
    """Return the escape of a character."""
    named = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    n = ord(c)
    return named.get(c) or (f"\\x{n:02x}" if n < 0x100 else f"\\u{n:04x}" if n < 0x10000 else f"\\U{n:08x}")


def cell_width(text: str) -> int:
    """Return the columns of `text` on a terminal: two for wide East Asian characters, none for accents."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


@lru_cache(maxsize=4096)
def _char_width(c: str) -> int:
    """Return the columns of a character."""
    if unicodedata.combining(c) or unicodedata.category(c) == "Me":
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def human_bytes(n: int) -> str:
    """Return `128 B`, `4.8 KiB`, `1.2 GiB`."""
    if n < 1024:
        return f"{n} B"
    size = float(n)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} EiB"


def number(value: float | None, digits: int = 4) -> str:
    """Return `1,234`, `0.02786`, `1.8e+20`: integers up to a billion in full, others with few digits; "" for None."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) < 10**9 and value == int(value) else f"{value:.{digits}g}"


def digits_for(spread: float | None, mean: float | None) -> int:
    """Return the digits that tell values apart: four of their spread around the mean, 17 at most."""
    if not spread or not mean or abs(mean) / spread == float("inf"):
        return 4
    return min(4 + max(floor(log10(abs(mean) / spread)), 0), 17)


def counted(n: int, noun: str) -> str:
    """Return `1 tensor`, `1,234 tensors`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def totals_text(tensors: int, unique: int, numel: int, nbytes: int) -> str:
    """Return `5 tensors (4 unique), 1,234 values, 4.8 KiB`."""
    ties = f" ({unique:,} unique)" if unique != tensors else ""
    return f"{counted(tensors, 'tensor')}{ties}, {counted(numel, 'value')}, {human_bytes(nbytes)}"


def sparkline(counts: Sequence[float]) -> str:
    """Return counts as bars of eight heights in one line; no bar for zero."""
    most = max(counts, default=0.0)
    return "".join(" " if count <= 0 else BARS[min(int(8 * count / most), 7)] for count in counts) if most > 0 else ""
