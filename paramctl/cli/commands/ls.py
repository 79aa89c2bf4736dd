"""`paramctl ls`: list one tensor a line, for grep, awk and jq."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING

from paramctl.cli import json_text, output, tables, text
from paramctl.cli.options import (
    Color,
    FileArgument,
    Json,
    JsonLines,
    Layers,
    Selections,
    SortBy,
    Top,
    Tsv,
    check_exclusive,
    open_checkpoint,
    ordered,
    selected_positions,
    with_positional,
)
from paramctl.cli.tables import Column
from paramctl.model.checkpoint import dims

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint

PATH, SHAPE = 16, 10  # columns that paths and shapes keep before other columns make room for them
SPARE = ("kind", "values", "tied to", "bytes")  # dropped in this order on a narrow terminal


def ls(
    file: FileArgument = None,
    selections: Selections = None,
    layer: Layers = None,
    sort: SortBy = "file",
    top: Top = None,
    as_tsv: Tsv = False,
    as_json: Json = False,
    as_json_lines: JsonLines = False,
    color: Color = "auto",
) -> None:
    """List a checkpoint's tensors, one a line.

    In a pipe the lines are tab-separated: path, kind, dtype, shape (8x4), number of values, bytes, and
    the path it is tied to. On a terminal they are aligned.

    \b
    Examples:
      paramctl ls model.pt
      paramctl ls model.pt '**.bias'
      paramctl ls model.pt --top 10 --sort size
      paramctl ls model.pt | awk -F'\\t' '$3 == "float16"' | cut -f1
      paramctl ls model.pt --jsonl | jq -r 'select(.numel > 1e6).path'
    """
    check_exclusive({"--tsv": as_tsv, "--json": as_json, "--jsonl": as_json_lines})
    with open_checkpoint(file) as checkpoint:
        positions = selected_positions(checkpoint, with_positional(layer, selections))
        listed: Sequence[int] = range(len(checkpoint.params)) if positions is None else sorted(positions)
        if sort != "file" or top is not None:
            listed = ordered(checkpoint, listed, sort, top)
            positions = frozenset(listed)
        if as_json:
            output.json(_document(checkpoint, listed, positions))
        elif as_json_lines:
            output.json_lines(_objects(checkpoint, listed))
        elif as_tsv or not output.stdout_is_terminal():
            output.lines(_lines(checkpoint, listed))
        else:
            shown = tables.fitted(_columns(checkpoint, listed), SPARE, output.terminal_width())
            output.listing(tables.table(shown.columns), color)
            tables.note_dropped(shown.dropped)


def _document(checkpoint: Checkpoint, listed: Sequence[int], positions: Collection[int] | None) -> dict[str, object]:
    """Return the JSON document."""
    from paramctl.model.tree import totals

    return {
        "schema": 1,
        "file": checkpoint.file,
        "format": checkpoint.format,
        "tensors": list(_objects(checkpoint, listed)),
        "totals": totals(checkpoint, positions)._asdict(),
    }


def _objects(checkpoint: Checkpoint, listed: Sequence[int]) -> Iterator[dict[str, object]]:
    """Yield the JSON object of each tensor."""
    for at in listed:
        yield json_text.tensor_object(checkpoint.params[at], _tied_to(checkpoint, at))


def _lines(checkpoint: Checkpoint, listed: Sequence[int]) -> Iterator[str]:
    """Yield the tab-separated lines."""
    known: dict[tuple[str, str, tuple[int, ...]], str] = {}  # a few forms serve 60,000 tensors
    for at in listed:
        param = checkpoint.params[at]
        form = (param.kind, param.dtype.name, param.shape)
        facts = known.get(form)
        if facts is None or param.components:
            shape = "x".join(map(str, param.shape))
            facts = known[form] = f"{param.kind}\t{param.dtype.name}\t{shape}\t{param.numel}\t{param.nbytes}"
        yield f"{text.escape(param.path, None)}\t{facts}\t{text.escape(_tied_to(checkpoint, at) or '', None)}"


def _columns(checkpoint: Checkpoint, listed: Sequence[int]) -> list[Column]:
    """Return the columns of the table for a terminal."""
    params = [checkpoint.params[at] for at in listed]
    leaders = [_tied_to(checkpoint, at) for at in listed]
    ties = ["" if first is None else f"= {text.escape(first) or '.'}" for first in leaders]
    columns = [
        Column("path", "path", [text.escape(param.path) or "." for param in params], "<", "bold", least=PATH),
        Column("kind", "kind", [param.kind for param in params], "<", "dim"),
        Column("dtype", "dtype", [param.dtype.name for param in params], "<", "cyan"),
        Column("shape", "shape", [dims(param.shape) for param in params], "<", least=SHAPE),
        Column("values", "values", [f"{param.numel:,}" for param in params]),
        Column("bytes", "bytes", [text.human_bytes(param.nbytes) for param in params], style="dim"),
    ]
    return [*columns, Column("tied to", "", ties, "<", "magenta", least=PATH)] if any(leaders) else columns


def _tied_to(checkpoint: Checkpoint, at: int) -> str | None:
    """Return the path of the param that a param is tied to, or None."""
    leader = checkpoint.tied_to.get(at)
    return None if leader is None else checkpoint.params[leader].path
