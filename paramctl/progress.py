"""What long work tells whoever waits for it: what is being done, and how many bytes of how many are done."""

from __future__ import annotations

from collections.abc import Callable

Watch = Callable[[str, int, int | None], None]  # the total is None where nobody knows it


def nobody(what: str, done: int, total: int | None) -> None:
    """Is told, and says nothing."""
