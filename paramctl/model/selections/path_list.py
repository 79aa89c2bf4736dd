"""Read a list of paths from a file or from standard input."""

from __future__ import annotations

from pathlib import Path

from paramctl.errors import FileError, NoMatch, ParamctlError, UsageError
from paramctl.files.sources import STDIN, open_source
from paramctl.model.checkpoint import Checkpoint

MAX_LIST = 256 << 20  # bytes of a list of paths


def lines_of(checkpoint: Checkpoint, name: str) -> list[str]:
    """Return the lines of a list of paths that are not empty. Raises FileError, or NoMatch if there are none."""
    if not name:
        raise UsageError("'@' names no list of paths", hint="say @FILE, or @- for standard input")
    if name == STDIN and checkpoint.file == STDIN:
        raise UsageError("standard input cannot be both the checkpoint and '@-'", hint="name a FILE for one")
    lines = [line for line in _text_of(name).replace("\r\n", "\n").split("\n") if line]
    if not lines:
        raise NoMatch("lists no paths", file=called(name))
    return lines


def _text_of(name: str) -> str:
    try:
        if name == STDIN:
            source = open_source(STDIN)
            data = source.read(0, min(source.size, MAX_LIST + 1))
        else:
            with Path(name).open("rb") as file:  # a list may come through a named pipe: @<(grep …)
                data = file.read(MAX_LIST + 1)
    except ParamctlError as error:
        raise FileError(error.what, hint="pipe a list of paths in", file=called(name)) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"cannot read: {reason}", hint="'@' names a list of paths", file=name) from None
    if len(data) > MAX_LIST:
        raise FileError(f"is larger than {MAX_LIST >> 20} MiB, so it is no list of paths", file=called(name))
    return data.decode("utf-8", "surrogateescape")


def called(name: str) -> str:
    return "standard input" if name == STDIN else name
