"""`paramctl recover`: undo an interrupted change in place."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli import output, progress, text
from paramctl.cli.options import STDIN, note_undone
from paramctl.errors import ParamctlError, UsageError
from paramctl.files.sources import open_source


def recover(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="The checkpoint that was changed.")],
) -> None:
    """Undo a change in place (-i --patch) that was interrupted.

    Any command does so before it uses a file. This one does nothing else.

    \b
    Examples:
      paramctl recover net.pt
    """
    if file == STDIN:
        raise UsageError("standard input is never changed in place", hint="name a FILE")
    from paramctl.formats import opening

    try:
        located = opening.locate(file)
        with progress.bar() as on_progress:
            undone = opening.recover(located, on_progress)
        note_undone(file, undone)
        open_source(located)
    except ParamctlError as error:
        error.file = error.file or file
        raise
    if not undone:
        output.note(f"{text.escape(file)}: there is nothing to undo")
