"""`paramctl diff`: show the differences between two checkpoints."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import diff_text, output, progress, tables
from paramctl.cli.options import (
    STDIN,
    Color,
    Json,
    Layers,
    Selections,
    check_exclusive,
    display_name,
    open_checkpoint,
    selected_positions,
    with_positional,
)
from paramctl.cli.text import counted, escape, sentence
from paramctl.errors import NoMatch, UsageError, some

if TYPE_CHECKING:
    from paramctl.compare.diff import ChangedEntry, Chosen, Difference
    from paramctl.compare.param_pairs import Changed
    from paramctl.model.checkpoint import Checkpoint
    from paramctl.model.path_renames import Rename


FileA = Annotated[str, typer.Argument(metavar="A", show_default=False, help="A checkpoint; '-' is standard input.")]
FileB = Annotated[str, typer.Argument(metavar="B", show_default=False, help="The one it is compared with.")]
Renames = Annotated[
    list[str] | None,
    typer.Option(
        "--rename",
        metavar="RE=>REPL",
        show_default=False,
        help="Compare A's tensors under other names, as re.sub makes them ('^module\\.=>'). Repeatable, in order.",
    ),
]
Atol = Annotated[float, typer.Option("--atol", min=0, metavar="X", help="Equal is |a − b| ≤ atol + rtol · |b|.")]
Rtol = Annotated[float, typer.Option("--rtol", min=0, metavar="X", help="Likewise, relative to B.")]
Exact = Annotated[bool, typer.Option("--exact", help="Compare bits: −0 is not 0, NaNs have a payload.")]
ParamsOnly = Annotated[bool, typer.Option("--params", help="Only tensors and their ties: no scalars, no metadata.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing: the exit code says it.")]


def diff(
    a: FileA,
    b: FileB,
    selections: Selections = None,
    layer: Layers = None,
    rename: Renames = None,
    atol: Atol = 0,
    rtol: Rtol = 0,
    exact: Exact = False,
    params: ParamsOnly = False,
    as_json: Json = False,
    quiet: QuietFlag = False,
    color: Color = "auto",
) -> None:
    """Compare two checkpoints, of any formats.

    Tensors are paired by path. Of values that differ: the largest |a − b|, its mean over all values of
    the tensor, the largest |a − b| / max(|a|, |b|), and how many differ. NaN equals NaN. Where one of the
    two is NaN or infinite they differ, and count as not finite and in no other figure. A distance that
    float64 cannot hold is infinite. How bytes lie in the file, devices, requires_grad and kinds are no
    difference.

    Nothing is printed if all is the same, but a remark. In a pipe the lines are tab-separated: 'values',
    path, max, mean, relative, how many differ, of how many, not finite; 'dtype' with both dtypes before
    the figures, and behind them the dtype both round to the same in; 'shape' with both; 'added' and
    'removed' with dtype and shape; 'tied' and 'untied' with the other path; 'scalar' and 'metadata' with
    both values as JSON. With --layer or --params only tensors and ties are compared.

    Exit code: 0 the same, 1 different, 2 usage, 3 unreadable.

    \b
    Examples:
      paramctl diff old.pt new.safetensors
      paramctl diff step0.pt step1.pt --layer model --rtol 1e-5
      paramctl diff ddp.pt net.pt --rename '^module\\.=>'
      paramctl diff -q a.pt b.pt && echo same
    """
    from paramctl.compare.diff import diff as verb
    from paramctl.compare.distance import Tolerance
    from paramctl.model.path_renames import parse

    layer = with_positional(layer, selections)
    check_exclusive({"--json": as_json, "--quiet": quiet})
    for name, value in (("--atol", atol), ("--rtol", rtol)):
        check_exclusive({"--exact": exact, name: bool(value)})
    _check_standard_input(a, b, layer or [])
    renames, tolerance = [parse(text) for text in rename or ()], Tolerance(atol, rtol, exact)
    with open_checkpoint(a, quiet) as one, open_checkpoint(b, quiet) as other:
        with progress.bar(quiet) as on_progress:
            found = verb(
                one,
                other,
                renames=renames,
                chosen=_chosen(one, other, layer, quiet),
                tolerance=tolerance,
                only_params=params,
                on_progress=on_progress,
            )
        if not quiet:
            _report(found, one, other, renames, as_json, color)
    if found:
        raise typer.Exit(1)


def _check_standard_input(a: str, b: str, layers: list[str]) -> None:
    """Raise UsageError if standard input, which can be read once, is needed twice."""
    if a == b == STDIN:
        raise UsageError("A and B are both standard input", hint="name a FILE for one of them")
    if any(each.lstrip("!") == "@-" for each in layers):
        raise UsageError("'@-' can be read once, and is needed for A and for B", hint="name a file: '@FILE'")


def _report(
    found: Difference, a: Checkpoint, b: Checkpoint, renames: list[Rename], as_json: bool, color: output.When
) -> None:
    """Print the differences and remarks on them."""
    if as_json:
        output.json(_document(found, a, b))
    elif found and output.stdout_is_terminal():
        page = diff_text.Page(found)
        output.listing(page.lines(), color)
        tables.note_dropped(page.dropped)
    elif found:
        output.lines(diff_text.lines(found))
    if not found:
        output.note(f"same: {counted(found.equal, 'tensor')}")
    elif not as_json and not output.stdout_is_terminal():
        output.note(diff_text.summary(found))
    if found.uncompared:
        what = f"{counted(len(found.uncompared), 'object')} compared by class only"
        output.note(f"note: {what}: {sentence(some([path or '.' for path in found.uncompared], 3))}")
    if far := [row.path or "." for row in found.changed if row.figures and row.figures.max_abs == inf]:
        output.note(f"note: distances that float64 cannot hold are infinite: {sentence(some(far, 3))}")
    for rename in renames:
        if not any(map(rename.pattern.search, a.labels)):
            output.note(f"note: --rename '{escape(rename.text)}' changes no path of A")
    if found.hint:
        from shlex import quote

        text, matches, of = found.hint
        output.note(f"hint: --rename {escape(quote(text))} would match {matches:,} of {of:,}")


def _chosen(a: Checkpoint, b: Checkpoint, layers: list[str] | None, quiet: bool) -> Chosen | None:
    """Return the params that `--layer` names in both; those missing in one file count as added or removed."""
    from paramctl.compare.diff import Chosen

    if not layers:
        return None
    missing = {layer: (_missing(a, layer), _missing(b, layer)) for layer in layers}
    for no_match in missing.values():
        if no_match[0] and no_match[1]:
            no_match[0].file = f"{display_name(a.file)} and {display_name(b.file)}"
            raise no_match[0]
    sides = [[layer for layer in layers if not missing[layer][side]] for side in (0, 1)]
    return Chosen(*(_named(*pair, layers, quiet) for pair in zip((a, b), sides, strict=True)))


def _missing(checkpoint: Checkpoint, layer: str) -> NoMatch | None:
    """Return the error if a selection names nothing in a checkpoint, else None."""
    from paramctl.model.selections.selection import select

    try:
        select(checkpoint, ["**", layer] if layer.startswith("!") else [layer], alike=True)
    except NoMatch as error:
        return error
    return None


def _named(checkpoint: Checkpoint, there: list[str], layers: list[str], quiet: bool) -> frozenset[int]:
    """Return the positions that the selections in `there` name together; `layers` are all that were given."""
    adding = [layer for layer in layers if not layer.startswith("!")]
    if adding and not any(layer in there for layer in adding):
        return frozenset()
    try:
        return selected_positions(checkpoint, there) or frozenset(range(len(checkpoint.params)))
    except NoMatch:
        return frozenset()


def _document(found: Difference, a: Checkpoint, b: Checkpoint) -> dict[str, object]:
    """Return the JSON document."""
    return {
        "schema": 1,
        "files": [a.file, b.file],
        "equal": found.equal,
        "added": [param.path for param in found.added],
        "removed": [param.path for param in found.removed],
        "changed": [_changed_object(row) for row in found.changed],
        "tied": [tie._asdict() for tie in found.tied],
        "untied": [tie._asdict() for tie in found.untied],
        "scalars": [_noted_object(row) for row in found.scalars],
        "metadata": [_noted_object(row) for row in found.metadata],
        "uncompared": list(found.uncompared),
        "hint": found.hint and {"rename": found.hint.text, "matches": found.hint.matches, "of": found.hint.of},
    }


def _changed_object(row: Changed) -> dict[str, object]:
    """Return the JSON object of a changed tensor."""
    from dataclasses import asdict

    figures = row.figures
    unknown = dict.fromkeys(("max_abs", "mean_abs", "count", "max_rel", "of", "nonfinite"))
    sides = {} if row.what == "values" else {"from": row.before, "to": row.after}
    rounds = {"rounds_to": row.rounds_to or None} if row.what == "dtype" else {}
    return {"path": row.path, "what": row.what, **unknown, **(asdict(figures) if figures else {}), **sides, **rounds}


def _noted_object(row: ChangedEntry) -> dict[str, object]:
    """Return the JSON object of a changed scalar or line of metadata."""
    sides = (("from", row.before), ("to", row.after))
    return {"path": row.path, **{name: side[0] for name, side in sides if side}}
