"""`paramctl recover`: undo a change in place that was interrupted."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli import output
from paramctl.cli.options import recovered


def recover(
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="The checkpoint that was changed.")],
) -> None:
    """Undo a change in place (-i --patch) that was interrupted.

    Any command does so before it uses a file. This one does nothing else.

    \b
    Examples:
      paramctl recover net.pt
    """
    if not recovered(file):
        output.note(f"{output.escape(file)}: there is nothing to undo")
