"""Complete the names of schemes, and of layers and params inside a file, in a shell."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import typer

from paramctl.errors import ParamctlError

# Typer's scripts put candidates on the command line as they are (the one for zsh even evaluates
# them), so a name is offered only if no shell reads anything into it.
_HARMLESS = re.compile(r"[\w./:@%+=,-][\w ./:@%+=,-]*")


def complete_path(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the layers and params inside the file named on the line; none if there is any error."""
    # An option that still lacks its value keeps Typer from reading the arguments: FILE is left over.
    file = ctx.params.get("file") or next(iter(ctx.args), None)
    from paramctl.files.sources import STDIN, open_source
    from paramctl.formats import opening, registry

    if not isinstance(file, str) or file == STDIN:
        return []

    try:
        # To undo an interrupted change is not for a TAB key.
        checkpoint = registry.read(open_source(opening.locate(file)))
    except (ParamctlError, OSError, ValueError, RecursionError, MemoryError):
        return []
    names = {name: None for param in checkpoint.params for name in _next_names(param.path, incomplete)}
    return [_unsplit(name) for name in names if _HARMLESS.fullmatch(name)]


def _next_names(path: str, incomplete: str) -> Iterator[str]:
    """Yield the next layer from `incomplete` on the way to `path`, and the path itself."""
    if path.startswith(incomplete):
        dot = path.find(".", len(incomplete))
        if dot >= 0:
            yield path[:dot]
        yield path


def _unsplit(name: str) -> str:
    """Return `name` so that bash takes it for one word; other shells do so themselves."""
    words = os.environ.get("COMP_WORDS", "").rsplit("\n", 1)
    quoted = words[-1][:1] in ("'", '"')
    return name if not words[0] or quoted else name.replace(" ", "\\ ")


def complete_scheme(incomplete: str) -> list[str]:
    """Return the names of all schemes that begin so."""
    from paramctl.schemes.scheme import SCHEMES

    return [name for name in SCHEMES if name.startswith(incomplete)]
