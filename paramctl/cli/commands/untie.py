"""`paramctl untie`: give tied params copies of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.completion import complete_path
from paramctl.cli.editing import WriteOptions, edit, writes
from paramctl.cli.options import RequiredFile


@writes()
def untie(
    file: RequiredFile,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SELECTION...", autocompletion=complete_path, help="Params or layers to untie."),
    ],
    *,
    options: WriteOptions,
) -> None:
    """Give tied params copies of their own.

    \b
    Examples:
      paramctl untie tied.pt 4 -o net.pt
      paramctl untie tied.pt '**' -i
    """
    from paramctl.edit.tie import untie as verb

    edit(file, options, lambda checkpoint: verb(checkpoint, *paths))
