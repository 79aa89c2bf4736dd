"""Show a progress bar for long work: on a terminal, on standard error, after half a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paramctl.cli import output
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 0.5  # seconds of work before anything is shown
INTERVAL = 0.1  # seconds between two looks
LONG = 1 << 30  # bytes left that surely take as long: a sync says nothing before it is done
SHORT = 4 << 20  # bytes left that no bar is begun for: it would be gone before anybody read it


@contextmanager
def bar(quiet: bool = False) -> Iterator[ProgressCallback]:
    """Yield the callback for the progress of the work inside; the bar disappears at the end."""
    if quiet or not output.stderr_is_terminal():
        yield ignore
        return
    shown = _Bar()
    try:
        yield shown.update
    finally:
        shown.stop()


class _Bar:
    """A progress bar that imports Rich only when there is something to show."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PATIENCE
        self._progress: Progress | None = None
        self._what = ""

    def update(self, what: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` bytes are done."""
        now = time.monotonic()
        if self._progress is None:
            left = SHORT if total is None else total - done
            if left < SHORT or (now < self._next and left < LONG):
                return
        elif now < self._next and what == self._what:
            return
        self._next = now + INTERVAL
        if self._progress is None:
            self._progress = _new()
        if what != self._what:
            self._what = what
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._progress.add_task(what, total=total)
        self._progress.update(self._progress.task_ids[0], completed=done, total=total, refresh=True)

    def stop(self) -> None:
        """Remove the bar."""
        if self._progress is not None:
            self._progress.stop()


def _new() -> Progress:
    """Return a new bar of Rich."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=True),
        auto_refresh=False,  # a thread of its own would be in the way of signals
        transient=True,
    )
    progress.start()
    return progress
