"""Pickles that lie in a file with other things behind them: where one ends is known once it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from paramctl.errors import FormatError
from paramctl.files.sources import Source
from paramctl.formats.pickles import reader
from paramctl.formats.pickles.machine import Machine
from paramctl.formats.pickles.reader import Pickle

FIRST = 1 << 16  # bytes of a file that are read at first
GROWTH = 4  # times as many are read where those do not hold the whole pickle
MAX_PICKLE = 256 << 20  # bytes of one


def read(source: Source, start: int, end: int, ahead: int = FIRST) -> Pickle:
    """Read the pickle that begins at byte `start` and ends before `end`; its own `end` counts from `start`.

    Raises FormatError, with the byte of the file, where it is malformed.
    """
    limit = max(min(end - start, MAX_PICKLE), 0)
    nbytes = min(ahead, limit)
    while True:
        machine = Machine(source.read(start, nbytes), 0, start)
        try:
            return reader.carried_out(machine)
        except FormatError:
            if not machine.wants_more or nbytes == limit:
                raise
        nbytes = min(nbytes * GROWTH, limit)


def code(source: Source, start: int, end: int, name: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Yield the pickle that begins at `start`, under that name: all of it, or of a damaged one what it may have."""
    try:
        nbytes = read(source, start, end).end
    except FormatError:
        nbytes = min(end - start, MAX_PICKLE)
    yield name, partial(source.read, start, nbytes)
