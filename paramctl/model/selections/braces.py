"""Expand the braces of a selection as a shell does: `{0,4,8}`, `{0..31..4}`."""

from __future__ import annotations

import re
from itertools import islice

from paramctl.errors import UsageError

MOST = 10_000  # texts that one may stand for
DEEPEST = 50  # opening braces in a text that is expanded
_RANGE = re.compile(r"(-?[0-9]{1,9})\.\.(-?[0-9]{1,9})(?:\.\.(-?[0-9]{1,9}))?").fullmatch


def expanded(text: str) -> list[str]:
    """Return the texts that braces stand for, in their order; a text without such braces stands for itself.

    Raises UsageError for more than MOST of them.
    """
    return _expanded(text, text) if 0 < text.count("{") <= DEEPEST else [text]


def _expanded(text: str, whole: str) -> list[str]:
    """Return the texts that a part of `whole` stands for: its first group with each of what follows."""
    start = text.find("{")
    while start >= 0:
        parts, end = _parts(text, start + 1)
        options = [each for part in parts for each in _expanded(part, whole)] if len(parts) > 1 else _numbers(parts)
        if options:
            tails = _expanded(text[end:], whole)
            if len(options) * len(tails) > MOST:
                hint = "write a glob or 're:PATTERN'"
                raise UsageError(f"'{whole}' stands for more than {MOST:,} names", hint=hint)
            return [f"{text[:start]}{option}{tail}" for option in options for tail in tails]
        start = text.find("{", start + 1)
    return [text]


def _parts(text: str, start: int) -> tuple[list[str], int]:
    """Return the parts between commas of the group that begins at `start`, and its end; none if it has no end."""
    parts: list[str] = []
    depth, begin = 0, start
    for at in range(start, len(text)):
        letter = text[at]
        if letter == "}" and depth == 0:
            return [*parts, text[begin:at]], at + 1
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(text[begin:at])
            begin = at + 1
    return [], start


def _numbers(parts: list[str]) -> list[str]:
    """Return the numbers of a range, `0..31..4`; nothing if the only part is no range."""
    found = _RANGE(parts[0]) if parts else None
    if not found:
        return []
    first, last, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    padded = any(re.match(r"-?0[0-9]", end) for end in (found[1], found[2]))
    width = max(len(found[1]), len(found[2])) if padded else 0
    return [f"{number:0{width}d}" for number in islice(numbers, MOST + 1)]
