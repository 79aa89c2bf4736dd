"""`paramctl untie`: give tied params copies of their own."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.editing import Asked, edit
from paramctl.cli.options import DryRun, Force, InPlaceFlag, Json, Output, Patch, Quiet, RequiredFile, complete_path


def untie(
    file: RequiredFile,
    paths: Annotated[
        list[str],
        typer.Argument(metavar="SELECTION...", autocompletion=complete_path, help="Params or layers to untie."),
    ],
    output: Output = None,
    in_place: InPlaceFlag = False,
    patch: Patch = False,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Give params that share their bytes with others copies of their own.

    \b
    Examples:
      paramctl untie tied.pt 4 -o net.pt
      paramctl untie tied.pt '**' -i
    """
    from paramctl.edit.tie import untie as verb

    asked = Asked(output, in_place, force, dry_run, json, quiet, patch)
    edit(file, asked, lambda checkpoint: verb(checkpoint, *paths))
