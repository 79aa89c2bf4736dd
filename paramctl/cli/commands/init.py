"""`paramctl init`: draw layers anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli.completion import complete_scheme
from paramctl.cli.editing import ResetOptimizer, WriteOptions, edit, writes
from paramctl.cli.options import FileArgument, Layers, Seed

if TYPE_CHECKING:
    from paramctl.edit.report import Edit
    from paramctl.model.checkpoint import Checkpoint

WHOLE = "the whole model was drawn anew, since no --layer was given"


@writes()
def init(
    file: FileArgument = None,
    layer: Layers = None,
    scheme: Annotated[
        list[str] | None,
        typer.Option(
            "--scheme",
            "-s",
            metavar="SCHEME",
            show_default=False,
            autocompletion=complete_scheme,
            help="A name ('xavier'), a name with arguments ('normal:std=0.01', 'constant:42') or FILE.py:FUNCTION; one"
            " for all layers, or one for each --layer in order. Default: what the framework does.",
        ),
    ] = None,
    bias: Annotated[
        str | None,
        typer.Option(
            "--bias",
            metavar="zeros|keep|default|SCHEME",
            show_default=False,
            help="What the biases of a layer become.  [default: zeros]",
        ),
    ] = None,
    seed: Seed = None,
    reset_optimizer: ResetOptimizer = False,
    *,
    options: WriteOptions,
) -> None:
    """Re-initialise layers with named schemes.

    On a layer, weights (2 or more dimensions) are drawn with the scheme, biases become zeros, the scale
    of a normalisation ones; running statistics and integers are kept. A param named by its full path
    gets the scheme itself. Without --layer the whole model is drawn anew. 'paramctl schemes' explains
    every scheme.

    \b
    Examples:
      paramctl init net.pt --scheme normal:std=0.01 -o new.pt
      paramctl init net.pt -l 0 -s xavier -l 2 -s constant:42 -i
      paramctl init --layer 0 --scheme xavier < net.pt > new.pt
    """
    def drawn(checkpoint: Checkpoint) -> Edit:
        """Return the checkpoint drawn anew, with a note if that is the whole model."""
        from paramctl.edit.init import init as verb

        schemes = scheme or ("default",)
        made = verb(checkpoint, layer or (), schemes, seed=seed, bias=bias, reset_optimizer=reset_optimizer)
        return made if layer else made._replace(notes=(WHOLE, *made.notes))

    edit(file, options, drawn)
