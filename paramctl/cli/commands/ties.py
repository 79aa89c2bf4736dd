"""`paramctl ties`: list tensors with several names, tensors over the same bytes, and tensors that could be tied."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import output, progress, text
from paramctl.cli.options import (
    Color,
    FileArgument,
    Json,
    Layers,
    Selections,
    open_checkpoint,
    selected_positions,
    single_threaded,
    with_positional,
)
from paramctl.cli.output import Line
from paramctl.compare.tie_candidates import command
from paramctl.formats.registry import BY_NAME
from paramctl.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    from paramctl.compare.tie_candidates import Candidate
    from paramctl.model.checkpoint import Checkpoint

OUT = "OUT"  # stands for a file to write in the commands that are suggested


def ties(
    file: FileArgument = None,
    selections: Selections = None,
    layer: Layers = None,
    equal: Annotated[
        bool,
        typer.Option("--equal", help="Also list tensors with equal values that are not tied, and how to tie them."),
    ] = False,
    as_json: Json = False,
    color: Color = "auto",
) -> None:
    """List tied tensors: one tensor under several names.

    One line a group: '2.weight = 4.weight'. Tensors that merely share some of their bytes, as views of
    one storage do, follow as 'a ~ b overlaps'. With --equal, tensors of a model that hold the same values
    bit for bit without being tied follow as 'a == b', each with the command that ties them, whole layers
    before single tensors; every value is read. Constants and copies of a moving average are left out.

    \b
    Examples:
      paramctl ties model.pt
      paramctl ties model.pt --json | jq '.groups | length'
      paramctl ties model.pt --equal
    """
    from paramctl.model.sharing import overlaps

    if equal:
        single_threaded()
    with open_checkpoint(file) as checkpoint:
        positions = selected_positions(checkpoint, with_positional(layer, selections))
        groups, overlapping = (_among(found, positions) for found in (checkpoint.groups(), overlaps(checkpoint)))
        alike = _equal(checkpoint, positions) if equal else ()
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
            output.note("no ties, and no tensors with equal values" if equal else "no ties; --equal looks at values")


def _among(groups: Iterable[Sequence[int]], positions: Collection[int] | None) -> tuple[Sequence[int], ...]:
    """Return the groups with a selected member."""
    return tuple(group for group in groups if positions is None or not set(positions).isdisjoint(group))


def _equal(checkpoint: Checkpoint, positions: Collection[int] | None) -> tuple[Candidate, ...]:
    """Return layers and params of the model with equal values, those that save most first; print what is left out.

    Constants, such as new norms, and copies that a moving average keeps of a model are equal by chance or on purpose.
    """
    from paramctl.compare.duplicates import equal_params
    from paramctl.compare.tie_candidates import candidates
    from paramctl.model.selections.selection import model_params

    with progress.bar() as on_progress:
        among = [at for at in model_params(checkpoint) if positions is None or at in positions]
        found = candidates(checkpoint, equal_params(checkpoint, among, on_progress))
    constants = [one for one in found if one.constant]
    averages = [one for one in found if not one.constant and _is_average(one)]
    for what, groups in (("constants, all of one value", constants), ("moving averages (EMA) of params", averages)):
        if groups:
            output.note(f"left out: {text.counted(len(groups), 'group')} of {what}")
    kept = [one for one in found if not one.constant and not _is_average(one)]
    return tuple(sorted(kept, key=lambda one: -one.saved))


def _is_average(candidate: Candidate) -> bool:
    """Return whether all members of a candidate but one lie in a copy that a moving average keeps."""
    return sum(_EMA.search(path) is not None for path in candidate.paths) == len(candidate.paths) - 1


_EMA = re.compile(r"(?:^|[._])(?:ema|shadow|averaged?)(?:[._]|$)", re.IGNORECASE)


def _paths(checkpoint: Checkpoint, group: Sequence[int]) -> list[str]:
    """Return the paths of a group."""
    return [checkpoint.params[at].path for at in group]


def _object(checkpoint: Checkpoint, found: Candidate) -> dict[str, object]:
    """Return the JSON object of a candidate."""
    return {
        "paths": list(found.paths),
        "saved": found.saved,
        "constant": found.constant,
        "command": command(checkpoint.file, found, OUT) if can_tie(checkpoint) else None,
    }


def _lines(
    checkpoint: Checkpoint, groups: Sequence[Sequence[int]], overlapping: Sequence[Sequence[int]]
) -> Iterator[Line]:
    """Yield a line for each group."""
    for group in groups:
        yield _line(_paths(checkpoint, group), " = ")
    for group in overlapping:
        yield _line(_paths(checkpoint, group), " ~ ", " overlaps" if len(group) == 2 else " overlap")


def _candidates(checkpoint: Checkpoint, alike: Sequence[Candidate]) -> Iterator[Line]:
    """Yield the lines of each candidate and the command that ties it."""

    for found in alike:
        yield _line(found.paths, " == ", f"  (saves {text.human_bytes(found.saved)})")
        if can_tie(checkpoint):
            yield Line(("    ", " ".join(map(_quoted, command(checkpoint.file, found, OUT)))), ("", "dim"))


def _quoted(word: str) -> str:
    """Return a word quoted for a shell, with everything visible."""
    if word.isprintable():
        return shlex.quote(word)
    spelled = (chr(b) if 0x20 <= b < 0x7F and b not in b"\\'" else f"\\x{b:02x}" for b in os.fsencode(word))
    return f"$'{''.join(spelled)}'"


def _line(paths: Sequence[str], sign: str, word: str = "") -> Line:
    """Return the line of a group."""
    limit = text.LIMIT if output.stdout_is_terminal() else None
    cells = [cell for path in paths for cell in (sign, text.escape(path, limit) or ".")][1:]
    styles = ["" if i % 2 == 0 else "magenta" for i in range(len(cells))]
    return Line((*cells, word), (*styles, "dim"))


def can_tie(checkpoint: Checkpoint) -> bool:
    """Return whether the format of a checkpoint has ties."""
    return BY_NAME[checkpoint.format].KEEPS_TIES
