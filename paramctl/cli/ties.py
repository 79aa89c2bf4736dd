"""`paramctl ties`: which names stand for one tensor, which tensors lie over the same bytes, and which might as well."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import output, progress
from paramctl.cli.options import Color, FileArgument, Json, opened, single_threaded
from paramctl.cli.output import Line

if TYPE_CHECKING:
    from paramctl.checkpoint import Checkpoint
    from paramctl.equal import Equals

OUT = "OUT"  # stands for a file to write in the commands that are suggested


def ties(
    file: FileArgument = None,
    equal: Annotated[
        bool,
        typer.Option("--equal", help="Also list tensors with equal values that are not tied, and how to tie them."),
    ] = False,
    as_json: Json = False,
    color: Color = "auto",
) -> None:
    """List the tensors that are one and the same under several names.

    One line a group: '2.weight = 4.weight'. Tensors that merely share some of their bytes, as views of
    one storage do, follow as 'a ~ b overlaps'. With --equal, tensors of a model that hold the same values
    bit for bit without being tied follow as 'a == b', each with the command that ties them; every value
    is read.

    \b
    Examples:
      paramctl ties model.pt
      paramctl ties model.pt --json | jq '.groups | length'
      paramctl ties model.pt --equal
    """
    from paramctl.ties import overlaps

    if equal:
        single_threaded()
    with opened(file) as checkpoint:
        groups, overlapping = tuple(checkpoint.groups()), overlaps(checkpoint)
        alike = _equal(checkpoint) if equal else ()
        if as_json:
            document: dict[str, object] = {
                "schema": 1,
                "groups": [_paths(checkpoint, group) for group in groups],
                "overlaps": [_paths(checkpoint, group) for group in overlapping],
            }
            if equal:
                document["equal"] = [_object(checkpoint, found) for found in alike]
            output.json(document)
            return
        lines = [*_lines(checkpoint, groups, overlapping), *_candidates(checkpoint, alike)]
        output.listing(lines, color)
        if not lines:
            output.note("no ties, and no tensors with equal values" if equal else "no ties")


def _equal(checkpoint: Checkpoint) -> tuple[Equals, ...]:
    """Groups of the model's params with equal values, those that save most first and constants last."""
    from paramctl.equal import equals
    from paramctl.paths import model_params

    with progress.bar() as watch:
        found = equals(checkpoint, model_params(checkpoint), watch)
    return tuple(sorted(found, key=lambda one: (one.constant, -one.saved)))


def _paths(checkpoint: Checkpoint, group: Sequence[int]) -> list[str]:
    return [checkpoint.params[at].path for at in group]


def _object(checkpoint: Checkpoint, found: Equals) -> dict[str, object]:
    from paramctl.equal import command

    return {
        "paths": _paths(checkpoint, found.members),
        "saved": found.saved,
        "constant": found.constant,
        "command": command(checkpoint, found, OUT),
    }


def _lines(
    checkpoint: Checkpoint, groups: Sequence[Sequence[int]], overlapping: Sequence[Sequence[int]]
) -> Iterator[Line]:
    for group in groups:
        yield _line(_paths(checkpoint, group), " = ")
    for group in overlapping:
        yield _line(_paths(checkpoint, group), " ~ ", " overlaps" if len(group) == 2 else " overlap")


def _candidates(checkpoint: Checkpoint, alike: Sequence[Equals]) -> Iterator[Line]:
    """Each group of equal ones, and the command that ties them."""
    from paramctl.equal import command

    for found in alike:
        what = "all one value, " if found.constant else ""
        yield _line(_paths(checkpoint, found.members), " == ", f"  ({what}saves {output.human_bytes(found.saved)})")
        words = " ".join(map(shlex.quote, command(checkpoint, found, OUT)))
        yield Line(("    ", output.escape(words, None)), ("", "dim"))


def _line(paths: Sequence[str], sign: str, word: str = "") -> Line:
    limit = output.LIMIT if output.stdout_is_terminal() else None
    cells = [cell for path in paths for cell in (sign, output.escape(path, limit) or ".")][1:]
    styles = ["" if i % 2 == 0 else "magenta" for i in range(len(cells))]
    return Line((*cells, word), (*styles, "dim"))
