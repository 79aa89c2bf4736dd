"""`paramctl set`: set values directly."""

from __future__ import annotations

from typing import Annotated

import typer

from paramctl.cli.editing import Asked, ResetOptimizer, edit
from paramctl.cli.options import DryRun, Force, InPlaceFlag, Json, Output, Patch, Quiet, RequiredFile


def set(
    file: RequiredFile,
    statements: Annotated[
        list[str],
        typer.Argument(metavar="STATEMENT...", help="PATH[INDEX] (= | += | -= | *= | /=) VALUE, done in order."),
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

    asked = Asked(output, in_place, force, dry_run, json, quiet, patch)
    edit(file, asked, lambda checkpoint: verb(checkpoint, *statements, reset_optimizer=reset_optimizer))
