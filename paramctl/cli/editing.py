"""What every command that changes a checkpoint has in common: where it writes, and its report."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from paramctl.cli import output
from paramctl.cli.options import STDIN, opened
from paramctl.errors import UsageError, some

if TYPE_CHECKING:
    from paramctl.changes import Change, Edit
    from paramctl.checkpoint import Checkpoint
    from paramctl.files import Target
    from paramctl.formats import Format

REPORT_LINES = 200  # changed params a person is shown; --json lists all
SOME = 5  # paths that a change's own line names
KEPT = 20  # paths that a line of what was kept names
WIDEST = 48  # columns of a terminal that a path is padded to


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
        nowhere = asked.dry_run and _streams(asked)
        target = None if nowhere else target_of(checkpoint, asked, form)
        made = verb(checkpoint)
        written = 0
        if target is not None and not asked.dry_run:
            from paramctl import formats

            written = formats.save(made.checkpoint, target, form)
    report(made, asked, written, not asked.dry_run and _streams(asked))


def target_of(checkpoint: Checkpoint, asked: Asked, form: Format | None) -> Target:
    """Where to write. Raises UsageError where nothing was said and a terminal would get it."""
    from paramctl import formats

    if asked.output is not None and asked.in_place:
        raise UsageError("-o and -i contradict each other", hint="give one of them")
    if asked.in_place:
        if checkpoint.sources[0].path is None:
            raise UsageError("has no place to write back to", hint="give -o FILE in place of -i")
        return _checked(formats.InPlace(checkpoint.sources[0]))
    if _streams(asked):
        if output.stdout_is_terminal():
            raise UsageError(
                "a checkpoint is not written to a terminal", hint="give -o FILE, or -i to replace FILE, or use a pipe"
            )
        return formats.Stream(output.take_over())
    path = Path(asked.output or "")
    own = form or formats.BY_NAME[checkpoint.format]
    usual = formats.by_suffix(path)
    if usual is not None and usual is not own:
        hint = f"name it {path.stem}{own.SUFFIXES[0]}" if form else f"run 'paramctl convert' to make {path.name}"
        raise UsageError(f"'{path.suffix}' is a suffix of {usual.NAME} files, and this would be {own.NAME}", hint=hint)
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
            for line in () if asked.quiet else _notes(made):
                output.note(line)
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


def _lines(made: Edit) -> Iterator[str]:
    yield from _change_lines(made.changed[:REPORT_LINES])
    if len(made.changed) > REPORT_LINES:
        yield f"… and {len(made.changed) - REPORT_LINES:,} more; --json lists all"
    reasons: dict[str, list[str]] = {}
    for path, why in made.kept:
        reasons.setdefault(why, []).append(path)
    for why, paths in reasons.items():
        more = " (--json lists all)" if len(paths) > KEPT else ""
        yield f"kept {_names(paths, KEPT)}{more}: {output.escape(why)}"
    yield from _notes(made)
    if made.seed is not None:
        yield f"seed {made.seed}"


def _notes(made: Edit) -> Iterator[str]:
    return (f"note: {output.sentence(note)}" for note in made.notes)


def _change_lines(changes: Sequence[Change]) -> Iterator[str]:
    """One line a change: path and what was done to it in columns, then its fans and what is tied to it."""
    paths = [output.escape(change.path) or "." for change in changes]
    hows = [_LONG_NUMBER.sub(_shortened, output.escape(change.how)) for change in changes]
    columns = [min(max(map(output.cell_width, cells), default=0), WIDEST) for cells in (paths, hows)]
    for change, *cells in zip(changes, paths, hows, strict=True):
        padded = (cell + " " * (n - output.cell_width(cell)) for cell, n in zip(cells, columns, strict=True))
        fans = f"fan {change.fan_in:,} → {change.fan_out:,}" if change.role == "weight" and change.fan_in else ""
        also = f"also {_names(change.also, SOME)}" if change.also else ""
        yield "  ".join([*padded, *filter(None, (fans, also))]).rstrip()


def _names(paths: Sequence[str], most: int) -> str:
    return some([output.escape(path) or "." for path in paths], most)


_LONG_NUMBER = re.compile(r"\d+\.\d{6,}(?:e-?\d+)?")  # a drawn bound; --json has all its digits


def _shortened(number: re.Match[str]) -> str:
    return f"{float(number[0]):.5g}"
