"""JSON in which no object names a key twice, as readers disagree which one counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from paramctl.errors import FormatError


def parse(text: str | bytes, what: str, **hooks: Callable[[str], Any] | None) -> Any:
    """Return the value of a JSON text, which errors call `what`; `hooks` are those of `json.loads`.

    Raises FormatError where it is not JSON, nested too deep, or names a key twice.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text), "surrogatepass")
        parsed = json.loads(text, **hooks)  # type: ignore[arg-type]
        if not _surely_unique(text, parsed):
            parsed = json.loads(text, object_pairs_hook=lambda pairs: _unique(pairs, what))
        return parsed
    except RecursionError:
        raise FormatError(f"{what} is nested too deep") from None
    except ValueError as error:
        raise FormatError(f"{what} is not JSON: {error}") from None


def _surely_unique(text: str, parsed: object) -> bool:
    """Return whether surely no object in the JSON has a key twice, from counts alone, without parsing it.

    Where no white space comes before a colon, every key is followed by `":` at once, so that there are at
    least as many of those as keys. Just as many as were parsed means that no key was lost to another.
    """
    if not isinstance(parsed, dict):
        return False
    text, closed = text.rstrip(), text.count('":')
    if any(space in text for space in " \t\n\r") and closed < text.count(":"):
        return False
    return closed == len(parsed) + sum([len(value) for value in parsed.values() if isinstance(value, dict)])


def _unique(pairs: list[tuple[str, Any]], what: str) -> dict[str, Any]:
    """Return an object's pairs as a dict. Raises FormatError if two have one key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FormatError(f"{what} names {twice!r} twice")
    return found
