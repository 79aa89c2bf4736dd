"""The callback through which long work reports what it does, and how many bytes of how many are done."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, int, int | None], None]  # the total is None where it is not known


def ignore(what: str, done: int, total: int | None) -> None:
    """Discard progress reports."""
