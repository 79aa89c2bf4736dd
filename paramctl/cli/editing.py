"""What every command that changes a checkpoint has in common: where it writes, and its report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.cli import output
from paramctl.cli.options import STDIN, opened
from paramctl.errors import UsageError

if TYPE_CHECKING:
    from paramctl.changes import Change, Edit
    from paramctl.checkpoint import Checkpoint
    from paramctl.files import Target
    from paramctl.formats import Format

REPORT_LINES = 200  # changed params a person is shown; --json lists all


class Asked(NamedTuple):
    """The options all of them share."""

    output: str | None
    in_place: bool
    force: bool
    dry_run: bool
    json: bool
    quiet: bool


def edit(file: str | None, asked: Asked, verb: Callable[[Checkpoint], Edit], form: Format | None = None) -> None:
    """Open FILE, apply `verb`, write the result where it was asked for, and report.

    The place to write to is checked first, so that nobody waits for a draw that has nowhere to go.
    """
    with opened(file) as checkpoint:
        target = None if asked.dry_run else target_of(checkpoint, asked, form)
        made = verb(checkpoint)
        written = 0
        if target is not None:
            from paramctl import formats

            written = formats.save(made.checkpoint, target, form)
    report(made, asked, written, target is not None and _streams(asked))


def target_of(checkpoint: Checkpoint, asked: Asked, form: Format | None) -> Target:
    """Where to write. Raises UsageError where nothing was said and a terminal would get it."""
    from paramctl import formats

    if asked.output is not None and asked.in_place:
        raise UsageError("-o and -i contradict each other", hint="give one of them")
    if asked.in_place:
        return _checked(formats.InPlace(checkpoint.sources[0]))
    if _streams(asked):
        if output.stdout_is_terminal():
            raise UsageError(
                "a checkpoint is not written to a terminal", hint="give -o FILE, or -i to replace FILE, or use a pipe"
            )
        return formats.Stream(1)
    path = Path(asked.output or "")
    own = form or formats.BY_NAME[checkpoint.format]
    usual = formats.by_suffix(path)
    if usual is not None and usual is not own:
        raise UsageError(
            f"'{path.suffix}' is a suffix of {usual.NAME} files, and this would be {own.NAME}",
            hint=f"change the format with 'paramctl convert -o {path.name}'",
        )
    return _checked(formats.NewFile(path, asked.force))


def _checked(target: Target) -> Target:
    from paramctl import files

    if isinstance(target, files.NewFile | files.InPlace):
        files.destination(target)
    return target


def _streams(asked: Asked) -> bool:
    return not asked.in_place and asked.output in (None, STDIN)


def report(made: Edit, asked: Asked, written: int, streamed: bool) -> None:
    """Say what changed: on standard error for people; `--json` on standard output, unless it is taken."""
    if asked.json:
        document = {
            "schema": 1,
            "seed": made.seed,
            "changed": [change._asdict() for change in made.changed],
            "kept": [kept.path for kept in made.kept],
            "bytes_written": written,
        }
        if streamed:
            output.note(output.json_text(document))
        else:
            output.json(document)
        return
    if asked.quiet:
        return
    for line in _lines(made):
        output.note(line)
    if not asked.dry_run:
        where = "standard output" if streamed else asked.output or "in place"
        output.note(f"wrote {output.human_bytes(written)} {'' if where == 'in place' else 'to '}{output.escape(where)}")
    else:
        output.note("nothing was written (dry run)")


def _lines(made: Edit) -> list[str]:
    lines = [_change_line(change) for change in made.changed[:REPORT_LINES]]
    if len(made.changed) > REPORT_LINES:
        lines.append(f"… and {len(made.changed) - REPORT_LINES:,} more; --json lists all")
    lines += [f"kept {output.escape(kept.path)}: {kept.why}" for kept in made.kept[:REPORT_LINES]]
    if len(made.kept) > REPORT_LINES:
        lines.append(f"kept {len(made.kept) - REPORT_LINES:,} more; --json lists all")
    lines += [f"note: {output.escape(note)}" for note in made.notes]
    return [*lines, f"seed {made.seed}"] if made.seed is not None else lines


def _change_line(change: Change) -> str:
    text = f"{output.escape(change.path or '.')}: {output.escape(change.how)}"
    if change.role and change.fan_in is not None and change.role == "weight":
        text += f" (fan_in {change.fan_in:,}, fan_out {change.fan_out:,})"
    if change.also:
        text += f", and with it {', '.join(output.escape(path) for path in change.also)}"
    return text
