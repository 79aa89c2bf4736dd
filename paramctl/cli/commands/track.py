"""`paramctl track`: follow params over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paramctl.cli import output, progress, tables, text
from paramctl.cli.options import (
    STDIN,
    Color,
    Json,
    JsonLines,
    Layers,
    Tsv,
    check_exclusive,
    display_name,
    open_checkpoint,
    single_threaded,
)
from paramctl.cli.output import Line
from paramctl.cli.tables import Column
from paramctl.cli.text_charts import sparkline, thinned
from paramctl.errors import some

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint
    from paramctl.stats.runs import Run
    from paramctl.stats.track import Step, Tracked

FIGURES = ("norm", "update", "ratio", "grad", "mean", "std", "nan", "inf")
SPARE = ("std", "mean", "update")  # dropped on a narrow terminal, after the moments
UNDRAWN = ("step", "NaN", "infinite")
NAME = 12  # columns that files and paths keep before other columns make room for them
NAMED = 3  # of the parameters that are left out
POINTS = 12  # of a curve in a column that is narrower

Files = Annotated[
    list[str],
    typer.Argument(metavar="FILE...", show_default=False, help="The checkpoints of one run, in any order."),
]
OrderOption = Annotated[
    Literal["auto", "step", "name", "given"],
    typer.Option("--order", help="What the steps are ordered by; 'auto' is 'step' if all hold one, else 'name'."),
]


def track(
    files: Files,
    layer: Layers = None,
    each: Annotated[bool, typer.Option("--each", help="A line a step and parameter.")] = False,
    order: OrderOption = "auto",
    as_tsv: Tsv = False,
    as_json: Json = False,
    as_json_lines: JsonLines = False,
    color: Color = "auto",
) -> None:
    """Follow parameters over the checkpoints of a run, a line a step.

    All that is selected counts together, tied parameters once; without --layer that is the model.
    Integers, flags and running statistics are left out beside weights, unless --layer names them in full.

    norm is ‖w‖, update ‖w − w before‖, ratio update / ‖w before‖, grad ‖gradient‖; the moments of an
    optimizer are norms too. mean, std (sample) and norms are of finite values. What a checkpoint does not
    hold is empty.

    The steps are in the order of 'step', 'global_step', 'iteration', 'iter_num' or 'epoch', if the
    checkpoints hold one, else of the files' names, 2 before 10.

    In a pipe the lines are tab-separated: step, file, path (with --each), norm, update, ratio, grad, mean,
    std, NaN, infinite, then each moment by its name in alphabetical order.

    \b
    Examples:
      paramctl track run/step*.pt
      paramctl track run/*.pt --layer 2 --each
      paramctl track run/*.pt --layer '**.weight' --jsonl | jq .ratio
    """
    check_exclusive({"--tsv": as_tsv, "--json": as_json, "--jsonl": as_json_lines})
    single_threaded()
    from paramctl.stats.runs import survey
    from paramctl.stats.track import track as verb

    selections, opening = layer or [], CheckpointOpener()
    run = survey(files, selections, opening, order)
    note_order(run)
    with progress.bar() as on_progress:
        tracked = note_remarks(verb(run, selections, opening, each=each, on_progress=on_progress))
        steps = (step for one in tracked for step in one.steps)
        if as_json_lines:
            output.json_lines(map(_object, steps))
            return
        if not as_json and (as_tsv or not output.stdout_is_terminal()):
            output.lines(map(_line, steps))
            return
        kept = list(steps)
    if as_json:
        output.json({"schema": 1, "steps": [_object(step) for step in kept]})
        return
    spare = [*map(text.escape, reversed(run.moments)), *SPARE]
    shown = tables.fitted(_columns(kept, run.moments, each), spare, output.terminal_width())
    output.listing(_table(shown.columns, kept), color)
    tables.note_dropped(shown.dropped)


class CheckpointOpener:
    """Open a checkpoint each time it is needed; the one on standard input is read once and kept."""

    def __init__(self) -> None:
        self._piped: Checkpoint | None = None

    def __call__(self, file: str) -> Checkpoint:
        """Return the checkpoint that FILE names."""
        if file == STDIN and self._piped is not None:
            return self._piped
        with open_checkpoint(file) as checkpoint:
            self._piped = checkpoint if file == STDIN else self._piped
            return checkpoint


def note_order(run: Run) -> None:
    """Print how a run is ordered, where selections matched, and which params are left out."""
    if run.under:
        output.note(f"selected inside '{text.escape(run.under)}'")
    if len(run.run_files) > 1 and run.order != "given":
        output.note("in the order of the files' names" if run.order == "name" else f"in the order of '{run.order}'")
    if run.skipped:
        what, names = text.counted(len(run.skipped), "tensor"), text.sentence(some(run.skipped, NAMED))
        why = "integers, flags and running statistics are followed beside weights only if named by their full paths"
        output.note(f"left out: {what} ({names}); {why}")


def note_remarks(tracked: Iterator[Tracked]) -> Iterator[Tracked]:
    """Yield each checkpoint of a run, and print the remarks on it."""
    for one in tracked:
        for remark in one.remarks:
            output.note(f"{text.escape(display_name(one.steps[0].file))}: {text.sentence(remark)}")
        yield one


def _object(step: Step) -> dict[str, object]:
    """Return the JSON object of a step."""
    return {
        "file": step.file,
        "step": step.step,
        "path": step.path,
        "norm": step.norm,
        "update": step.update,
        "ratio": step.ratio,
        "grad": step.grad,
        "moments": dict(step.moments),
        "mean": step.mean,
        "std": step.std,
        "nan": step.nan,
        "inf": step.inf,
    }


def _line(step: Step) -> str:
    """Return the tab-separated line of a step."""
    figures = [getattr(step, name) for name in FIGURES]
    numbers = ["" if number is None else repr(number) for number in (step.step, *figures, *step.moments.values())]
    names = [text.escape(name, None) for name in (step.file, step.path or "")]
    return "\t".join([numbers[0], *names, *numbers[1:]])


def _columns(steps: Sequence[Step], moments: Sequence[str], each: bool) -> list[Column]:
    """Return the columns that are not empty."""
    files = [text.escape(display_name(step.file)) for step in steps]
    columns = [_figures("step", [step.step for step in steps]), _names("file", files)]
    if each:
        columns.append(_names("path", ["" if step.path is None else text.escape(step.path) or "." for step in steps]))
    columns += [_figures(name, [getattr(step, name) for step in steps]) for name in FIGURES[:4]]
    columns += [_figures(text.escape(name), [step.moments.get(name) for step in steps]) for name in moments]
    columns += [_figures(name, [getattr(step, name) for step in steps]) for name in FIGURES[4:6]]
    odd = {"NaN": [step.nan for step in steps], "infinite": [step.inf for step in steps]}
    columns += [_figures(title, counts) for title, counts in odd.items() if any(counts)]
    return [column for column in columns if any(column.cells)]


def _names(title: str, cells: list[str]) -> Column:
    """Return a column of names, which may be cut."""
    return Column(title, title, cells, "<", _STYLES[title], least=NAME)


def _figures(title: str, numbers: Sequence[float | None]) -> Column:
    """Return a column of numbers."""
    style = _STYLES.get(title, "")
    return Column(title, title, [text.number(number) for number in numbers], style=style, numbers=numbers)


def _table(columns: Sequence[Column], steps: Sequence[Step]) -> Iterator[Line]:
    """Yield a header, a line for each step, and below them the curve of each figure, for each param."""
    of_path: dict[str | None, list[int]] = {}
    for i, step in enumerate(steps):
        of_path.setdefault(step.path, []).append(i)
    curves = [at for at in of_path.values() if len(at) > 1]
    drawn = [column._replace(cells=[*column.cells, *(_curve(column, at) for at in curves)]) for column in columns]
    header, *lines = tables.table(drawn)
    yield header
    yield from lines[: len(steps)]
    yield from (Line(line.cells, ("cyan",) * len(columns)) for line in lines[len(steps) :])


_STYLES = {"file": "bold", "path": "magenta", "step": "dim", "NaN": "red", "infinite": "red"}


def _curve(column: Column, at: Sequence[int]) -> str:
    """Return the curve of a figure over the steps, drawn with characters; for names, the path or ""."""
    if not column.numbers or column.title in UNDRAWN:
        return column.cells[at[0]] if column.title == "path" else ""
    return sparkline(thinned([column.numbers[i] for i in at], max(column.width, POINTS)))
