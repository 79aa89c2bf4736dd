"""`paramctl convert`: write a checkpoint in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli.completion import complete_path
from paramctl.cli.editing import WriteOptions, edit, writes
from paramctl.cli.options import STDIN, FileArgument
from paramctl.errors import UsageError

if TYPE_CHECKING:
    from paramctl.formats.protocol import AnyFormat


To = Annotated[
    str | None,
    typer.Option(
        "--to", metavar="FORMAT", show_default=False, help="The format to write: safetensors, torch-zip or dcp."
    ),
]
Layer = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="PATH",
        show_default=False,
        autocompletion=complete_path,
        help="Take this layer only, and count its names from there.",
    ),
]
MaxShardSize = Annotated[
    str | None,
    typer.Option(
        "--max-shard-size",
        metavar="SIZE",
        show_default=False,
        help="Write a set of shards of at most this size each: 5GB, 500MB, 1GiB.",
    ),
]
Lossy = Annotated[bool, typer.Option("--lossy", help="Leave out what the format cannot hold.")]


@writes(without=("in_place", "patch"))
def convert(
    file: FileArgument = None,
    to: To = None,
    layer: Layer = None,
    max_shard_size: MaxShardSize = None,
    lossy: Lossy = False,
    *,
    options: WriteOptions,
) -> None:
    """Write a checkpoint in another format, or one layer of it.

    The format, .pt or .safetensors, is told by the suffix or --to. Ties survive. What the other format has
    no place for (scalars, optimizer settings, objects) is listed and refused, unless --lossy accepts the
    loss.

    A set of several files goes into a directory. One that ends in /, an index or --max-shard-size makes
    shards as transformers does, of .bin files with --to torch-zip; --to dcp makes what
    torch.distributed.checkpoint loads. FILE may be such a directory, too.

    \b
    Examples:
      paramctl convert net.pt -o net.safetensors
      paramctl convert run.ckpt --layer model -o model.safetensors
      paramctl convert --to safetensors < net.pt > net.safetensors
      paramctl convert net.pt -o shards/ --max-shard-size 5GB
      paramctl convert net.pt -o run/step100 --to dcp
      paramctl convert shards/ -o net.safetensors
    """
    from paramctl.edit.convert import convert as verb
    from paramctl.formats.sets.shard_division import division_for

    if len(layer or ()) > 1:
        raise UsageError("one --layer becomes the whole file, and several were given", hint="name the layer above them")
    division = division_for(options.output or "", to, max_shard_size)
    form = division.set_format if division else _form(options.output, to)
    edit(
        file,
        options,
        lambda checkpoint: verb(checkpoint, form, layer=layer[0] if layer else None, lossy=lossy, division=division),
        form,
    )


def _form(output: str | None, to: str | None) -> AnyFormat:
    """Return the format to write. Raises UsageError if neither --to nor the suffix tells it."""
    from paramctl.formats import registry

    if to is not None:
        return registry.named(to)
    form = registry.by_suffix(Path(output)) if output not in (None, STDIN) else None
    if form is None:
        hint = "name it with --to safetensors, torch-zip or dcp, or a directory for shards with a / at its end"
        raise UsageError("cannot tell which format to write", hint=hint)
    return form
