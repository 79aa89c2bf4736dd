"""`paramctl plot`: draw histograms of values, or curves of the figures of `track`, in a picture or the terminal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import output, progress, text
from paramctl.cli.commands.track import CheckpointOpener, OrderOption, note_order, note_remarks
from paramctl.cli.options import STDIN, Color, Force, Layers, display_name, open_checkpoint, single_threaded
from paramctl.errors import UsageError

if TYPE_CHECKING:
    from paramctl.files.file_writer import NewFile
    from paramctl.stats.charts import Chart
    from paramctl.stats.runs import Order

WIDTH = 80  # columns of a drawing off a terminal


FilesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[FILE]...",
        show_default=False,
        help="The checkpoint, or with --of those of a run; '-' (or nothing, in a pipe) is standard input.",
    ),
]
Of = Annotated[
    str | None,
    typer.Option(
        "--of",
        metavar="FIGURE",
        show_default=False,
        help="Draw a curve over checkpoints: norm, update, ratio, grad, mean, std, or a moment (exp_avg).",
    ),
]
Together = Annotated[
    bool, typer.Option("--together", help="Histograms over one another; one curve of all that is selected.")
]
Log = Annotated[bool, typer.Option("--log", help="A logarithmic scale upwards.")]
Out = Annotated[
    str | None,
    typer.Option(
        "--output", "-o", metavar="FILE", show_default=False, help="A picture: .png, .svg or .pdf (matplotlib)."
    ),
]


def plot(
    files: FilesArgument = None,
    layer: Layers = None,
    of: Of = None,
    together: Together = False,
    log: Log = False,
    out: Out = None,
    force: Force = False,
    order: OrderOption = "auto",
    color: Color = "auto",
) -> None:
    """Draw histograms of parameters, or a curve over a run.

    A histogram of each selected parameter of one checkpoint, or with --of a curve of one of the figures
    of 'paramctl track' over several: a line for each selected parameter, or one for the model. At most 24
    parameters are drawn, unless --together makes one curve of them.

    Without -o it is drawn with characters, as wide as the terminal, and 80 columns wide in a pipe. There,
    --together gives all histograms the same scale. A picture needs matplotlib: pip install matplotlib.

    \b
    Examples:
      paramctl plot model.pt --layer 0.weight
      paramctl plot model.pt --layer '**.weight' --log -o weights.png
      paramctl plot run/*.pt --of ratio --layer '**.weight' -o ratio.svg
    """
    single_threaded()
    named = files or [STDIN]
    if len(named) > 1 and of is None:
        what = f"a histogram is of one checkpoint, and {len(named)} were named"
        raise UsageError(what, hint="add --of norm, or another figure, to draw a curve over them")
    target = None if out is None else _target(out, force, named)
    if of is None:
        chart = _histograms(files[0] if files else None, layer or [], together, log)
    else:
        chart = _curves(named, layer or [], of, together, log, order)
    if target is None:
        from paramctl.cli.text_charts import drawing

        output.listing(drawing(chart, output.terminal_width() or WIDTH), color)
        return
    from paramctl.stats.plot import save

    with progress.bar() as on_progress:
        written = save(chart, target, on_progress)
    output.note(f"wrote {text.human_bytes(written)} to {text.escape(str(target.path))}")


def _target(out: str, force: bool, named: list[str]) -> NewFile:
    """Return the file for the picture. Raises an error, before any work, if it cannot be drawn or written."""
    from paramctl.files.file_writer import NewFile
    from paramctl.files.targets import destination
    from paramctl.stats.plot import check_matplotlib, form_of

    target = NewFile(Path(out), force)
    form_of(target.path)
    os.environ["MPLBACKEND"] = "agg"  # no display is asked for, and no name that matplotlib would refuse
    check_matplotlib()
    real, _ = destination(target)
    if any(file != STDIN and Path(file).resolve() == real for file in named):
        raise UsageError("is the checkpoint itself", hint="name another file for the picture", file=out)
    return target


def _histograms(file: str | None, selections: list[str], together: bool, log: bool) -> Chart:
    """Return the chart of histograms."""
    from paramctl.stats.charts import Chart, histograms
    from paramctl.stats.picked_params import pick

    with open_checkpoint(file) as checkpoint, progress.bar() as on_progress:
        picked = pick(checkpoint, selections)
        if picked.under:
            output.note(f"selected inside '{text.escape(picked.under)}'")
        _check_few(len(picked.unique))
        params = [checkpoint.params[i] for i in picked.unique.values()]
        names = [
            f"{text.escape(path) or '.'}  ({text.counted(param.numel, 'value')})"
            for path, param in zip(picked.unique, params, strict=True)
        ]
        parts = histograms(checkpoint, list(picked.unique.values()), names, together=together, on_progress=on_progress)
        title = text.escape(display_name(checkpoint.file))
    return Chart(title, "value", "number of values", parts, log, together)


def _curves(files: list[str], selections: list[str], of: str, together: bool, log: bool, order: Order) -> Chart:
    """Return the chart of curves over a run."""
    from paramctl.stats.charts import FIGURES, Chart, check_figure, curves
    from paramctl.stats.runs import survey
    from paramctl.stats.track import track

    opening = CheckpointOpener()
    run = survey(files, selections, opening, order)
    check_figure(run, of)
    each = bool(selections) and not together
    if each:
        _check_few(run.params)
    note_order(run)
    with progress.bar() as on_progress:
        tracked = list(note_remarks(track(run, selections, opening, each=each, on_progress=on_progress)))
    name = " ".join(map(text.escape, selections)) or "all parameters"
    parts = curves(run, tracked, of, lambda path: name if path is None else text.escape(path) or ".")
    ends = dict.fromkeys(text.escape(display_name(run_file.file)) for run_file in (run.run_files[0], run.run_files[-1]))
    what = f"{text.escape(of)} of {parts[0].name}" if len(parts) == 1 else text.escape(of)
    title = f"{what}: {' … '.join(ends)}"
    x = {"name": "checkpoint, in the order of names", "given": "checkpoint, as given"}.get(run.order, run.order)
    return Chart(title, x, FIGURES.get(of, f"‖{text.escape(of)}‖"), parts, log)


def _check_few(params: int) -> None:
    """Raise UsageError if there are too many params for one chart."""
    from paramctl.stats.charts import MAX_PARAMS

    if params > MAX_PARAMS:
        raise UsageError(
            f"{params:,} parameters are too many to look at; {MAX_PARAMS} are the most",
            hint="name fewer with --layer, such as --layer '**.0.weight' ('paramctl ls' lists them all)",
        )
