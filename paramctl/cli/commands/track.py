"""`paramctl track`: how params move over the checkpoints of a training run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from paramctl.cli import output, progress, tables, text
from paramctl.cli.options import STDIN, Color, Json, JsonLines, Layers, Tsv, called, one_of, opened, single_threaded
from paramctl.cli.output import Line
from paramctl.cli.text_charts import sparkline, thinned
from paramctl.errors import some

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint
    from paramctl.stats.runs import Run
    from paramctl.stats.track import Step, Tracked

FIGURES = ("norm", "update", "ratio", "grad", "mean", "std", "nan", "inf")
SPARED = ("std", "mean", "update")  # what goes where a terminal is narrow, after the moments
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
    one_of({"--tsv": as_tsv, "--json": as_json, "--jsonl": as_json_lines})
    single_threaded()
    from paramctl.stats.runs import survey
    from paramctl.stats.track import track as verb

    selections, opening = layer or [], Opening()
    run = survey(files, selections, opening, order)
    say(run)
    with progress.bar() as on_progress:
        tracked = told(verb(run, selections, opening, each=each, on_progress=on_progress))
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
    columns = _columns(kept, run.moments, each)
    fitted = _fitted(columns, run.moments, output.terminal_width())
    output.listing(_table(fitted, kept), color)
    shown = {column.title for column in fitted}
    left_out = [column.title for column in columns if column.title not in shown]
    if left_out:
        output.note(f"the terminal is too narrow for {', '.join(left_out)}; --tsv has them")


class Opening:
    """Opens a checkpoint each time it is asked for; the one on standard input, which comes once, is kept."""

    def __init__(self) -> None:
        self._piped: Checkpoint | None = None

    def __call__(self, file: str) -> Checkpoint:
        """The checkpoint that FILE names."""
        if file == STDIN and self._piped is not None:
            return self._piped
        with opened(file) as checkpoint:
            self._piped = checkpoint if file == STDIN else self._piped
            return checkpoint


def say(run: Run) -> None:
    """Say what decided the order of a run, where selections matched, and what of them is left out."""
    if run.under:
        output.note(f"selected inside '{text.escape(run.under)}'")
    if len(run.run_files) > 1 and run.order != "given":
        output.note("in the order of the files' names" if run.order == "name" else f"in the order of '{run.order}'")
    if run.skipped:
        what, names = text.counted(len(run.skipped), "tensor"), text.sentence(some(run.skipped, NAMED))
        why = "integers, flags and running statistics are followed beside weights only if named by their full paths"
        output.note(f"left out: {what} ({names}); {why}")


def told(tracked: Iterator[Tracked]) -> Iterator[Tracked]:
    """Each checkpoint of a run; what has to be said about it is said."""
    for one in tracked:
        for remark in one.remarks:
            output.note(f"{text.escape(called(one.steps[0].file))}: {text.sentence(remark)}")
        yield one


# --- for programs ------------------------------------------------------------------------------


def _object(step: Step) -> dict[str, object]:
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
    figures = [getattr(step, name) for name in FIGURES]
    numbers = ["" if number is None else repr(number) for number in (step.step, *figures, *step.moments.values())]
    names = [text.escape(name, None) for name in (step.file, step.path or "")]
    return "\t".join([numbers[0], *names, *numbers[1:]])


# --- for people --------------------------------------------------------------------------------


class Column(NamedTuple):
    """A column of the table; `numbers` are what its cells say, nothing where those are names."""

    title: str
    cells: list[str]
    numbers: Sequence[float | None] = ()


def _columns(steps: Sequence[Step], moments: Sequence[str], each: bool) -> list[Column]:
    """The columns that have something to say."""
    columns = [
        _figures("step", [step.step for step in steps]),
        Column("file", [text.escape(called(step.file)) for step in steps]),
    ]
    if each:
        columns.append(Column("path", ["" if step.path is None else text.escape(step.path) or "." for step in steps]))
    columns += [_figures(name, [getattr(step, name) for step in steps]) for name in FIGURES[:4]]
    columns += [_figures(text.escape(name), [step.moments.get(name) for step in steps]) for name in moments]
    columns += [_figures(name, [getattr(step, name) for step in steps]) for name in FIGURES[4:6]]
    odd = {"NaN": [step.nan for step in steps], "infinite": [step.inf for step in steps]}
    columns += [_figures(title, counts) for title, counts in odd.items() if any(counts)]
    return [column for column in columns if any(column.cells)]


def _figures(title: str, numbers: Sequence[float | None]) -> Column:
    return Column(title, [text.number(number) for number in numbers], numbers)


def _fitted(columns: list[Column], moments: Sequence[str], width: int | None) -> list[Column]:
    """The columns that a terminal has room for, names cut to what is left."""
    if width is None:
        return columns
    spared = [*map(text.escape, reversed(moments)), *SPARED]
    while spared and _needed(columns, NAME) > width:
        title = spared.pop(0)
        columns = [column for column in columns if column.title != title]
    longest = max((_wide(column) for column in columns if not column.numbers), default=NAME)
    while longest > NAME and _needed(columns, longest) > width:
        longest -= 1
    return [
        column if column.numbers else column._replace(cells=[text.elide(cell, longest) for cell in column.cells])
        for column in columns
    ]


def _needed(columns: Sequence[Column], name: int) -> int:
    """Columns of a terminal that the table takes where names get at most `name` of them."""
    widths = [_wide(column) if column.numbers else min(_wide(column), name) for column in columns]
    return sum(widths) + 2 * (len(columns) - 1)


def _wide(column: Column) -> int:
    return max(map(text.cell_width, [column.title, *column.cells]))


def _table(columns: Sequence[Column], steps: Sequence[Step]) -> Iterator[Line]:
    """A header, a line each, and below them how each figure went, for each param."""
    of_path: dict[str | None, list[int]] = {}
    for i, step in enumerate(steps):
        of_path.setdefault(step.path, []).append(i)
    curves = [[_curve(column, at) for column in columns] for at in of_path.values() if len(at) > 1]
    rows = [[column.title for column in columns], *zip(*(column.cells for column in columns), strict=True), *curves]
    align = "".join(">" if column.numbers else "<" for column in columns)
    styles = [_STYLES.get(column.title, "") for column in columns]
    header, *lines = tables.aligned(rows, align, styles)
    yield Line(header.cells, ("dim",) * len(columns))
    yield from lines[: len(steps)]
    yield from (Line(line.cells, ("cyan",) * len(columns)) for line in lines[len(steps) :])


_STYLES = {"file": "bold", "path": "magenta", "step": "dim", "NaN": "red", "infinite": "red"}


def _curve(column: Column, at: Sequence[int]) -> str:
    """How a figure went over the steps, from its lowest to its highest; of names only the path stays."""
    if not column.numbers or column.title in UNDRAWN:
        return column.cells[at[0]] if column.title == "path" else ""
    return sparkline(thinned([column.numbers[i] for i in at], max(_wide(column), POINTS)))
