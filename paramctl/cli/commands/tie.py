"""`paramctl tie`: make layers share their params."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.editing import Asked, ResetOptimizer, edit
from paramctl.cli.options import DryRun, Force, InPlaceFlag, Json, Output, Patch, Quiet, RequiredFile, complete_path


def tie(
    file: RequiredFile,
    layers: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            autocompletion=complete_path,
            help="Layers or params: each of the others becomes the first.",
        ),
    ],
    reset_optimizer: ResetOptimizer = False,
    output: Output = None,
    in_place: InPlaceFlag = False,
    patch: Patch = False,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Tie layers or params: each of the others becomes the first.

    In a torch file they share one storage afterwards; in safetensors the others become aliases. Bytes
    that are no longer used are not written.

    \b
    Examples:
      paramctl tie net.pt 2 4 -o tied.pt
      paramctl tie lm.safetensors model.embed.weight lm_head.weight -i
    """
    from paramctl.edit.tie import tie as verb

    asked = Asked(output, in_place, force, dry_run, json, quiet, patch)
    edit(file, asked, lambda checkpoint: verb(checkpoint, *layers, reset_optimizer=reset_optimizer))
