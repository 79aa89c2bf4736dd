"""Write to standard output and standard error: the one module that knows terminals and Rich.

Text from a file or a path is escaped with `text.escape` before it is printed for people, and with
`json_text.json_text` before it is printed for programs.
"""

from __future__ import annotations

import codecs
import io
import os
import shutil
import sys
from collections.abc import Iterable
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from paramctl.cli.json_text import json_document, json_text
from paramctl.cli.text import BARS, escape_char
from paramctl.errors import FileError

if TYPE_CHECKING:
    pass

When = Literal["auto", "always", "never"]

RICH_LINES = 2000  # Rich takes ten times as long as plain lines do, which shows from here on
BATCH = 2000  # lines written at a time


class ReaderGone(Exception):
    """The reader of standard output has closed it, as `head` does: not an error, but a reason to stop."""


class Line(NamedTuple):
    """One line of a listing: its padded cells, and a Rich style for each."""

    cells: tuple[str, ...]
    styles: tuple[str, ...]


def stdin_is_terminal() -> bool:
    """Return whether a person would have to type standard input."""
    return _is_terminal(0)


def stdout_is_terminal() -> bool:
    """Return whether standard output is a terminal, which gets no bytes and no text for programs."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Return whether standard error is a terminal that can redraw a line."""
    return _is_terminal(2) and os.environ.get("TERM") not in ("dumb", "unknown")


def _is_terminal(fd: int) -> bool:
    """Return whether a descriptor is a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def terminal_width() -> int | None:
    """Return the columns of the terminal on standard output; None if it is not a terminal: nothing is cut."""
    return shutil.get_terminal_size().columns if stdout_is_terminal() else None


def use_color(when: When) -> bool:
    """Return whether to colour standard output: `--color`, then NO_COLOR, FORCE_COLOR, and the terminal decide."""
    if when != "auto":
        return when == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stdout_is_terminal() and os.environ.get("TERM") not in ("dumb", "unknown")


def prepare() -> None:
    """Make standard output and error accept any text, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="paramctl")


_ASCII = {
    "├": "|", "└": "`", "│": "|", "─": "-", "×": "x", "–": "-", "−": "-", "→": "->", "…": "...", "·": "*",
    "≤": "<=", "≥": ">=", "Δ": "d", "‖": "|", **dict(zip(BARS, "__..::##", strict=True)),
}  # fmt: skip


def _to_ascii(error: UnicodeError) -> tuple[str, int]:
    """Return the nearest ASCII, or the escape, of characters that a terminal without Unicode cannot show."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or escape_char(c) for c in lost), error.end


codecs.register_error("paramctl", _to_ascii)


def write(text: str) -> None:
    """Write `text` to standard output at once.

    Raises ReaderGone if its reader has closed it, FileError if it cannot be written.
    """
    if sys.stdout is None:
        raise FileError("is closed", file="standard output")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_output()
        raise ReaderGone from None
    except OSError as error:
        discard_output()
        raise FileError(f"cannot write: {error.strerror}", file="standard output") from None


def take_over() -> int:
    """Return a new descriptor of standard output for bytes that nothing else may be mixed with.

    From now on everything printed to standard output, also by C libraries or processes of a user's own code, goes
    to standard error. This cannot be undone, because C libraries write their buffers at the very end. Raises
    FileError if standard output is closed.
    """
    if sys.stdout is None:
        raise FileError("is closed", hint="give -o FILE", file="standard output")
    fd = os.dup(1)
    os.dup2(2, 1)
    return fd


def discard_output() -> None:
    """Discard what is buffered for standard output; else Python complains at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def lines(rows: Iterable[str]) -> None:
    """Write plain lines, many at a time."""
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        batch.append("")
        write("\n".join(batch))


def listing(rows: Iterable[Line], color: When = "auto") -> None:
    """Write lines for people: in colour if that is wanted and they are few, else plain."""
    rows = iter(rows)
    first = list(islice(rows, RICH_LINES + 1))
    if in_color(len(first), color):
        colored(first)
    else:
        lines("".join(row.cells).rstrip() for row in chain(first, rows))


def in_color(count: int, color: When) -> bool:
    """Return whether a listing of `count` lines is coloured."""
    return count <= RICH_LINES and use_color(color)


def colored(rows: Iterable[Line]) -> None:
    """Write lines in colour."""
    from rich.console import Console
    from rich.text import Text

    # The sixteen standard colours follow the theme of a light or a dark terminal. Rich renders into
    # memory, because its own answer to a closed pipe is to exit with 1.
    console = Console(
        file=io.StringIO(), force_terminal=True, color_system="standard", no_color=False, legacy_windows=False
    )
    with console.capture() as capture:
        for cells, styles in rows:
            text = Text.assemble(*zip(cells, styles, strict=True))
            text.rstrip()
            console.print(text, soft_wrap=True, highlight=False)
    write(capture.get())


def json(document: object) -> None:
    """Write one JSON document. NaN and the infinities become strings."""
    lines(json_document(document))


def json_lines(documents: Iterable[object]) -> None:
    """Write one JSON document a line."""
    lines(map(json_text, documents))


def note(message: str) -> None:
    """Write one line for people to standard error; ignore errors, as there is no place to report them."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    except OSError:
        pass
