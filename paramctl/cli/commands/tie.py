"""`paramctl tie`: make layers share their params."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.completion import complete_path
from paramctl.cli.editing import ResetOptimizer, WriteOptions, edit, writes
from paramctl.cli.options import RequiredFile


@writes()
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
    *,
    options: WriteOptions,
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

    edit(file, options, lambda checkpoint: verb(checkpoint, *layers, reset_optimizer=reset_optimizer))
