"""`paramctl ties`: which names stand for one tensor, and which tensors lie over the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from paramctl.cli import output
from paramctl.cli.options import Color, FileArgument, Json, opened
from paramctl.cli.output import Line

if TYPE_CHECKING:
    from paramctl.checkpoint import Checkpoint


def ties(file: FileArgument = None, as_json: Json = False, color: Color = "auto") -> None:
    """List the tensors that are one and the same under several names.

    One line a group: '2.weight = 4.weight'. Tensors that merely share some of their bytes, as views of
    one storage do, follow as 'a ~ b overlaps'.

    \b
    Examples:
      paramctl ties model.pt
      paramctl ties model.pt --json | jq '.groups | length'
    """
    from paramctl.ties import overlaps

    with opened(file) as checkpoint:
        groups, overlapping = tuple(checkpoint.groups()), overlaps(checkpoint)
        if as_json:
            output.json(
                {
                    "schema": 1,
                    "groups": [_paths(checkpoint, group) for group in groups],
                    "overlaps": [_paths(checkpoint, group) for group in overlapping],
                }
            )
            return
        output.listing(_lines(checkpoint, groups, overlapping), color)
        if not groups and not overlapping:
            output.note("no ties")


def _paths(checkpoint: Checkpoint, group: Sequence[int]) -> list[str]:
    return [checkpoint.params[at].path for at in group]


def _lines(
    checkpoint: Checkpoint, groups: Sequence[Sequence[int]], overlapping: Sequence[Sequence[int]]
) -> Iterator[Line]:
    for group in groups:
        yield _line(_paths(checkpoint, group), " = ")
    for group in overlapping:
        yield _line(_paths(checkpoint, group), " ~ ", " overlaps" if len(group) == 2 else " overlap")


def _line(paths: Sequence[str], sign: str, word: str = "") -> Line:
    limit = output.LIMIT if output.stdout_is_terminal() else None
    cells = [cell for path in paths for cell in (sign, output.escape(path, limit) or ".")][1:]
    styles = ["" if i % 2 == 0 else "magenta" for i in range(len(cells))]
    return Line((*cells, word), (*styles, "dim"))
