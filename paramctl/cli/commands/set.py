"""`paramctl set`: set values directly."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.editing import ResetOptimizer, WriteOptions, edit, writes
from paramctl.cli.options import RequiredFile


@writes()
def set(
    file: RequiredFile,
    statements: Annotated[
        list[str],
        typer.Argument(metavar="STATEMENT...", help="PATH[INDEX] (= | += | -= | *= | /=) VALUE, done in order."),
    ],
    reset_optimizer: ResetOptimizer = False,
    *,
    options: WriteOptions,
) -> None:
    """Set or change values by path.

    VALUE is a number, '@file.npy' or another PATH; its shape broadcasts as in numpy. Params tied to a
    changed one change with it. FILE may be '-'.

    \b
    Examples:
      paramctl set net.pt '0.weight += 1' '0.weight[0,0] = 42' -o new.pt
      paramctl set net.pt '2.bias = @bias.npy' -i
      paramctl set - '0.weight[:,0] = 0' < net.pt > new.pt
    """
    from paramctl.edit.set import set as verb

    edit(file, options, lambda checkpoint: verb(checkpoint, *statements, reset_optimizer=reset_optimizer))
