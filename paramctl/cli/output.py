"""The one file that knows terminals, Rich, TSV and JSON.

Everything that came from a file or a path goes through `escape` before it is printed for people, and
through `json_text` before it is printed for programs.
"""

from __future__ import annotations

import codecs
import io
import os
import re
import shutil
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from math import floor, log10
from typing import TYPE_CHECKING, Literal, NamedTuple

from paramctl.errors import FileError

if TYPE_CHECKING:
    from json import JSONEncoder

    from paramctl.checkpoint import Param

When = Literal["auto", "always", "never"]

LIMIT = 500  # characters of one name that a terminal or an error message shows
SENTENCE = 50_000  # characters of a whole message: our own words are all read, but no file makes it endless
RICH_LINES = 2000  # Rich takes ten times as long as plain lines do, which shows from here on
NARROW = 24  # columns that text keeps, however small the terminal
BATCH = 2000  # lines written at a time
BARS = "▁▂▃▄▅▆▇█"


class ReaderGone(Exception):
    """Whoever read standard output has closed it, as `head` does: no error, but no use in going on."""


class Line(NamedTuple):
    """One line of a listing: its cells, padded already, and a Rich style for each."""

    cells: tuple[str, ...]
    styles: tuple[str, ...]


# --- text from files and paths -----------------------------------------------------------------


def escape(text: str, limit: int | None = LIMIT) -> str:
    """`text` with everything that is not plainly visible spelled out, on one line.

    Control characters, bidirectional and zero-width marks, line separators and lone surrogates become
    `\\n`, `\\x1b`, `\\u202e`, … What is longer than `limit` characters loses its middle; None keeps all.
    """
    if limit is not None:
        text = elide(text, limit)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _spelled(c) for c in text)


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


def _spelled(c: str) -> str:
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


# --- numbers -----------------------------------------------------------------------------------


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


# --- terminals ---------------------------------------------------------------------------------


def stdin_is_terminal() -> bool:
    """Whether somebody would have to type what is read from standard input."""
    return _is_terminal(0)


def stdout_is_terminal() -> bool:
    """Whether somebody looks at standard output; no program reads it then, and no bytes may go there."""
    return sys.stdout is not None and sys.stdout.isatty()


def stderr_is_terminal() -> bool:
    """Whether somebody looks at standard error, on a terminal that can redraw a line."""
    return _is_terminal(2) and os.environ.get("TERM") not in ("dumb", "unknown")


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def terminal_width() -> int | None:
    """Columns of the terminal on standard output; None where there is none, and nothing is cut."""
    return shutil.get_terminal_size().columns if stdout_is_terminal() else None


def use_color(when: When) -> bool:
    """Whether to colour standard output: `--color`, then NO_COLOR, then FORCE_COLOR, then the terminal."""
    if when != "auto":
        return when == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return True
    return stdout_is_terminal() and os.environ.get("TERM") not in ("dumb", "unknown")


# --- standard output ---------------------------------------------------------------------------


def prepare() -> None:
    """Make standard output and error take any text, whatever their encoding."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="paramctl")


_ASCII = {
    "├": "|", "└": "`", "│": "|", "─": "-", "×": "x", "–": "-", "−": "-", "→": "->", "…": "...", "·": "*",
    "≤": "<=", "≥": ">=", "Δ": "d", "‖": "|", **dict(zip(BARS, "__..::##", strict=True)),
}  # fmt: skip


def _to_ascii(error: UnicodeError) -> tuple[str, int]:
    """What a terminal without Unicode shows instead: the nearest ASCII, or the escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or _spelled(c) for c in lost), error.end


codecs.register_error("paramctl", _to_ascii)


def write(text: str) -> None:
    """Write `text` to standard output at once.

    Raises ReaderGone when nobody reads it any more, FileError when it cannot be written.
    """
    if sys.stdout is None:
        raise FileError("is closed", file="standard output")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence()
        raise ReaderGone from None
    except OSError as error:
        silence()
        raise FileError(f"cannot write: {error.strerror}", file="standard output") from None


def take_over() -> int:
    """A new descriptor of standard output, for bytes that nothing else may be mixed with.

    Whatever anybody prints from now on, a C library or a process of a person's own code too, goes to
    standard error: it cannot be undone, as C libraries write what they still hold at the very end.
    Raises FileError where standard output is closed.
    """
    if sys.stdout is None:
        raise FileError("is closed", hint="give -o FILE", file="standard output")
    fd = os.dup(1)
    os.dup2(2, 1)
    return fd


def silence() -> None:
    """Send what is still buffered for standard output nowhere; else Python complains at its end."""
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
    """Write lines for people: in colour if it is wanted and they are few, plain otherwise."""
    rows = iter(rows)
    first = list(islice(rows, RICH_LINES + 1))
    if in_color(len(first), color):
        colored(first)
    else:
        lines("".join(row.cells).rstrip() for row in chain(first, rows))


def in_color(count: int, color: When) -> bool:
    """Whether a listing of `count` lines goes through Rich."""
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


def aligned(
    rows: Sequence[Sequence[str]], align: str, styles: Sequence[str], width: int | None = None
) -> Iterator[Line]:
    """Rows of a table as lines, columns two spaces apart; `align` has `<` or `>` for each.

    With a terminal of `width` columns the first cell of a row loses its middle where the row would not
    fit, or its start where rows would then look the same. The last column is never padded.
    """
    widths = [max(map(cell_width, column), default=0) for column in zip(*rows, strict=True)]
    if width is not None and widths:
        widths[0] = min(widths[0], max(width - sum(widths[1:-1]) - 2 * (len(widths) - 1), 16))
    style = tuple(styles)
    shown = _told_apart([row[0] for row in rows], widths[0]) if width is not None and widths else {}
    for first, *others in rows:
        cells = [shown.get(first, first), *others]
        yield Line(tuple(map(_padded, cells, widths, align, [*["  "] * len(others), ""])), style)


def _told_apart(texts: Iterable[str], width: int) -> dict[str, str]:
    """Each text as it fits: without its middle, or where that is another's too, without its start."""
    shown = {text: elide(text, width) for text in texts}
    times = Counter(shown.values())
    return {text: short if times[short] == 1 else f"…{text[1 - width :]}" for text, short in shown.items()}


def wrapped(text: str, indent: int) -> list[str]:
    """`text` over as many lines as a terminal needs beside `indent` columns; one line off a terminal."""
    width = terminal_width()
    if width is None:
        return [text] if text else []
    from textwrap import wrap

    return wrap(text, max(width - indent, NARROW), break_long_words=False, break_on_hyphens=False)


def _padded(text: str, width: int, align: str, gap: str) -> str:
    space = " " * (width - cell_width(text))
    return f"{space}{text}{gap}" if align == ">" else f"{text}{space}{gap}"


# --- JSON --------------------------------------------------------------------------------------


def json(document: object) -> None:
    """Write one JSON document. NaN and the infinities become strings."""
    lines(_json_lines(document))


def json_lines(documents: Iterable[object]) -> None:
    """Write one JSON document a line."""
    lines(map(json_text, documents))


def tensor_object(param: Param, tied_to: str | None) -> dict[str, object]:
    """What every JSON listing says of a tensor."""
    return {
        "path": param.path,
        "kind": param.kind,
        "dtype": param.dtype.name,
        "shape": list(param.shape),
        "numel": param.numel,
        "nbytes": param.nbytes,
        "tied_to": tied_to,
    }


def json_text(value: object) -> str:
    """`value` as JSON on one line, in ASCII only: no character of a file's names reaches a terminal raw."""
    try:
        return _encoder().encode(value)
    except ValueError:  # NaN, infinity, or an integer of thousands of digits
        return _encoder().encode(_json_value(value))


@lru_cache(maxsize=1)
def _encoder() -> JSONEncoder:
    from json import JSONEncoder

    return JSONEncoder(ensure_ascii=True, allow_nan=False)


def _json_value(value: object) -> object:
    """`value` with what JSON has no word for as strings."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"an integer of {value.bit_length():,} bits"
    return value


def json_number(value: float) -> float | str:
    """`value`, or "NaN", "Infinity", "-Infinity"."""
    if value != value:
        return "NaN"
    return value if abs(value) != float("inf") else "Infinity" if value > 0 else "-Infinity"


def _json_lines(document: object) -> Iterator[str]:
    """The document over lines that people can read: what holds nothing deep stays on one line."""
    stack: list[tuple[Iterator[tuple[str, object]], str]] = []
    indent, prefix, value = "", "", document
    while True:
        opened = _opened(value)
        if opened is None:
            line = f"{indent}{prefix}{json_text(value)}"
        else:
            yield f"{indent}{prefix}{'{' if isinstance(value, dict) else '['}"
            stack.append((opened, "}" if isinstance(value, dict) else "]"))
            indent += "  "
            line = ""
        while stack:
            following = next(stack[-1][0], None)
            if following is not None:
                if line:
                    yield f"{line},"
                prefix, value = following
                break
            if line:
                yield line
            indent = indent[:-2]
            line = f"{indent}{stack.pop()[1]}"
        else:
            yield line
            return


def _opened(value: object) -> Iterator[tuple[str, object]] | None:
    """The items of a container whose items hold containers; None for what fits on one line."""
    if isinstance(value, dict):
        if any(map(_holds, value.values())):
            return ((f"{json_text(key)}: ", item) for key, item in value.items())
    elif isinstance(value, list | tuple) and any(map(_holds, value)):
        return (("", item) for item in value)
    return None


def _holds(value: object) -> bool:
    """Whether a container is among the items of `value`."""
    if isinstance(value, dict):
        return any(isinstance(item, dict | list | tuple) for item in value.values())
    return isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value)


# --- standard error ----------------------------------------------------------------------------


def note(message: str) -> None:
    """Write one line for people to standard error; a closed one is nobody's problem."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()
    except OSError:
        pass
