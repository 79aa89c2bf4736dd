"""Run a command that writes a checkpoint: open it, edit it, write the result, and report."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_type_hints

import typer

from paramctl.cli import json_text, output, progress, text
from paramctl.cli.options import STDIN, DryRun, Force, InPlaceFlag, Json, Output, Patch, Quiet, open_checkpoint
from paramctl.errors import UsageError, some

if TYPE_CHECKING:
    from paramctl.edit.report import Change, Edit
    from paramctl.files.file_writer import Plan, Target
    from paramctl.formats.protocol import AnyFormat
    from paramctl.model.checkpoint import Checkpoint

REPORT_LINES = 200  # changed params a person is shown; --json lists all
SOME = 5  # paths that a change's own line names
KEPT = 20  # paths that a line of what was kept names
ResetOptimizer = Annotated[
    bool,
    typer.Option(
        "--reset-optimizer", help="Also reset the optimizer state of the changed params, its count of steps too."
    ),
]
WIDEST = 48  # columns of a terminal that a path is padded to


class WriteOptions(NamedTuple):
    """The options that all commands that write a checkpoint share."""

    output: Output = None
    in_place: InPlaceFlag = False
    patch: Patch = False
    force: Force = False
    dry_run: DryRun = False
    json: Json = False
    quiet: Quiet = False


def writes(without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that adds the options of `WriteOptions` to a command; it gets them as `options`.

    The options named in `without` are not offered.
    """
    hints = get_type_hints(WriteOptions, include_extras=True)
    defaults = {name: value for name, value in WriteOptions()._asdict().items() if name not in without}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shared = [inspect.Parameter(name, kind, default=value, annotation=hints[name]) for name, value in defaults.items()]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        """Return the command with the shared options behind its own."""

        def run(**given: Any) -> None:
            """Collect the shared options and run the command."""
            options = WriteOptions(**{name: given.pop(name) for name in defaults})
            command(**given, options=options)

        own = inspect.signature(command, eval_str=True).parameters.values()
        signature = inspect.Signature([*(each for each in own if each.name != "options"), *shared])
        run.__name__, run.__doc__, run.__annotations__ = command.__name__, command.__doc__, {}
        run.__signature__ = signature  # type: ignore[attr-defined]
        return run

    return decorate


def edit(
    file: str | None, options: WriteOptions, verb: Callable[[Checkpoint], Edit], form: AnyFormat | None = None
) -> None:
    """Open FILE, apply `verb`, write the result to the target of `options`, and report.

    The target is checked first, so that no work is done for a result that cannot be written.
    """
    if options.patch and not options.in_place:
        raise UsageError("--patch changes a file in place", hint="add -i, or leave it out")
    with open_checkpoint(file, options.quiet) as checkpoint:
        from paramctl.formats import saving

        nowhere = options.dry_run and _streams(options)
        target = None if nowhere else target_of(checkpoint, options, form)
        made = verb(checkpoint)
        if options.dry_run:
            report(made, options, plan=saving.plan(made.checkpoint, target, form))
        elif target is not None:
            with progress.bar(options.quiet) as on_progress:
                written = saving.save(made.checkpoint, target, form, on_progress)
            report(made, options, written, _streams(options))


def target_of(checkpoint: Checkpoint, options: WriteOptions, form: AnyFormat | None) -> Target:
    """Return where to write. Raises UsageError if no target was given and standard output is a terminal."""
    from paramctl.files import file_writer, targets
    from paramctl.formats import registry, saving

    own = form or registry.BY_NAME[checkpoint.format]
    if options.output == "":
        raise UsageError("-o names no file", hint="give -o FILE, or -o - for standard output")
    if options.output is not None and options.in_place:
        raise UsageError("-o and -i contradict each other", hint="give one of them")
    if options.in_place:
        if checkpoint.sources[0].path is None:
            raise UsageError("has no place to write back to", hint="give -o FILE in place of -i")
        return _checked(targets.InPlace(checkpoint.sources[0], options.patch), checkpoint, own)
    if _streams(options):
        if registry.as_set(own):
            saving.check_target(targets.Stream(1), checkpoint, own)
        if output.stdout_is_terminal():
            raise UsageError(
                "a checkpoint is not written to a terminal", hint="give -o FILE, or -i to replace FILE, or use a pipe"
            )
        stream = targets.Stream(output.take_over())
        file_writer.check_stream(stream, checkpoint.sources)
        return stream
    path = Path(options.output or "")
    usual = registry.by_suffix(path, own.NAME)
    if usual is not None and usual is not own:
        convertible = form is None and usual.WRITES == "any"
        hint = f"run 'paramctl convert' to make {path.name}" if convertible else f"name it {path.stem}{own.SUFFIXES[0]}"
        raise UsageError(f"'{path.suffix}' is a suffix of {usual.NAME} files, and this would be {own.NAME}", hint=hint)
    if names_folder(options.output) and not registry.as_set(own):
        hint = "name a file for -o, or run 'paramctl convert' to make a set of shards"
        raise UsageError("is a directory, and this would be one file", hint=hint, file=options.output or "")
    return _checked(targets.NewFile(path, options.force), checkpoint, own)


def names_folder(output: str | None) -> bool:
    """Return whether the given output names a directory, existing or not."""
    return output is not None and output.endswith("/")


def _checked(target: Target, checkpoint: Checkpoint, form: AnyFormat) -> Target:
    """Return the target. Raises an error if it cannot be written."""
    from paramctl.formats import saving

    saving.check_target(target, checkpoint, form)
    return target


def _streams(options: WriteOptions) -> bool:
    """Return whether the result goes to standard output."""
    return not options.in_place and options.output in (None, STDIN, "/dev/stdout")


def report(
    made: Edit, options: WriteOptions, written: int = 0, streamed: bool = False, plan: Plan | None = None
) -> None:
    """Print the changes: for people on standard error, with `--json` on standard output unless that is the result.

    `plan` is given if nothing was written: then standard output is free for the report.
    """
    if options.json:
        document = {
            "schema": 1,
            "seed": made.seed,
            "changed": [change._asdict() for change in made.changed],
            "kept": [kept.path for kept in made.kept],
            "bytes_written": written,
            **({"plan": _plan_object(plan)} if plan else {}),
        }
        if streamed:
            output.note(json_text.json_text(document))
        else:
            output.json(document)
            for line in () if options.quiet else _notes(made):
                output.note(line)
        return
    if options.quiet:
        return
    if plan:
        output.lines([*_lines(made), f"nothing was written (dry run); {_planned(plan)}"])
        return
    for line in _lines(made):
        output.note(line)
    where = "standard output" if streamed else options.output or "in place"
    output.note(f"wrote {text.human_bytes(written)} {'' if where == 'in place' else 'to '}{text.escape(where)}")


def _plan_object(plan: Plan) -> dict[str, object]:
    """Return the JSON object of a plan."""
    return {
        "method": plan.method,
        "bytes_read": plan.read,
        "bytes_copied": plan.copied,
        "bytes_made": plan.made,
    }


def _planned(plan: Plan) -> str:
    """Return the plan in words."""
    made, read = map(text.human_bytes, (plan.made, plan.read))
    if plan.method == "patch":
        return f"would change up to {made} in place and read {read}"
    total = text.human_bytes(plan.copied + plan.made)
    how = {"reflink": ", the rest shares blocks", "copy": "", "stream": ""}[plan.method]
    where = " to standard output" if plan.method == "stream" else ""
    return f"would write {total} ({made} new{how}){where} and read {read}"


def _lines(made: Edit) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from _change_lines(made.changed[:REPORT_LINES])
    if len(made.changed) > REPORT_LINES:
        yield f"… and {len(made.changed) - REPORT_LINES:,} more; --json lists all"
    reasons: dict[str, list[str]] = {}
    for path, why in made.kept:
        reasons.setdefault(why, []).append(path)
    for why, paths in reasons.items():
        more = " (--json lists all)" if len(paths) > KEPT else ""
        yield f"kept {_names(paths, KEPT)}{more}: {text.escape(why)}"
    yield from _notes(made)
    if made.seed is not None:
        yield f"seed {made.seed}"


def _notes(made: Edit) -> Iterator[str]:
    """Yield the notes of an edit."""
    return (f"note: {text.sentence(note)}" for note in made.notes)


def _change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """Yield a line for each change: path and change in columns, then fans and ties."""
    paths = [text.escape(change.path) or "." for change in changes]
    hows = [_LONG_NUMBER.sub(_shortened, text.escape(change.how)) for change in changes]
    columns = [min(max(map(text.cell_width, cells), default=0), WIDEST) for cells in (paths, hows)]
    for change, *cells in zip(changes, paths, hows, strict=True):
        padded = (cell + " " * (n - text.cell_width(cell)) for cell, n in zip(cells, columns, strict=True))
        fans = f"fan {change.fan_in:,} → {change.fan_out:,}" if change.role == "weight" and change.fan_in else ""
        also = f"also {_names(change.also, SOME)}" if change.also else ""
        yield "  ".join([*padded, *filter(None, (fans, also))]).rstrip()


def _names(paths: Sequence[str], most: int) -> str:
    """Return paths in words, at most `most` of them."""
    return some([text.escape(path) or "." for path in paths], most)


_LONG_NUMBER = re.compile(r"\d+\.\d{6,}(?:e-?\d+)?")  # a drawn bound; --json has all its digits


def _shortened(number: re.Match[str]) -> str:
    """Return a number with few digits."""
    return f"{float(number[0]):.5g}"
