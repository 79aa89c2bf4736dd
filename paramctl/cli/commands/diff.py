"""`paramctl diff`: what differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import TYPE_CHECKING, Annotated

import typer

from paramctl.cli import json_text, output, progress, tables
from paramctl.cli.options import STDIN, Color, Json, Layers, called, chosen, one_of, opened
from paramctl.cli.output import Line
from paramctl.cli.text import counted, elide, escape, sentence
from paramctl.errors import NoMatch, UsageError, some
from paramctl.model.checkpoint import dims

if TYPE_CHECKING:
    from paramctl.compare.diff import ChangedEntry, Chosen, Difference
    from paramctl.compare.distance import Distance
    from paramctl.compare.param_pairs import Changed
    from paramctl.model.checkpoint import Checkpoint, Param
    from paramctl.model.path_renames import Rename

SHORT = 60  # characters of a scalar on a terminal


def diff(
    a: Annotated[str, typer.Argument(metavar="A", show_default=False, help="A checkpoint; '-' is standard input.")],
    b: Annotated[str, typer.Argument(metavar="B", show_default=False, help="The one it is compared with.")],
    layer: Layers = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="RE=>REPL",
            show_default=False,
            help="Compare A's tensors under other names, as re.sub makes them ('^module\\.=>'). Repeatable, in order.",
        ),
    ] = None,
    atol: Annotated[
        float, typer.Option("--atol", min=0, metavar="X", help="Equal is |a − b| ≤ atol + rtol · |b|.")
    ] = 0,
    rtol: Annotated[float, typer.Option("--rtol", min=0, metavar="X", help="Likewise, relative to B.")] = 0,
    exact: Annotated[bool, typer.Option("--exact", help="Compare bits: −0 is not 0, NaNs have a payload.")] = False,
    params: Annotated[
        bool, typer.Option("--params", help="Only tensors and their ties: no scalars, no metadata.")
    ] = False,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing: the exit code says it.")] = False,
    color: Color = "auto",
) -> None:
    """Say what differs between two checkpoints, of whatever formats.

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

    one_of({"--json": as_json, "--quiet": quiet})
    one_of({"--exact": exact, "--atol": bool(atol)})
    one_of({"--exact": exact, "--rtol": bool(rtol)})
    if a == b == STDIN:
        raise UsageError("A and B are both standard input", hint="name a FILE for one of them")
    if any(each.lstrip("!") == "@-" for each in layer or ()):
        raise UsageError("'@-' can be read once, and is needed for A and for B", hint="name a file: '@FILE'")
    renames, tolerance = [parse(text) for text in rename or ()], Tolerance(atol, rtol, exact)
    with opened(a, quiet) as one, opened(b, quiet) as other:
        selected = _chosen(one, other, layer, quiet)
        with progress.bar(quiet) as on_progress:
            found = verb(
                one,
                other,
                renames=renames,
                chosen=selected,
                tolerance=tolerance,
                only_params=params,
                on_progress=on_progress,
            )
        if not quiet:
            unused = [each for each in renames if not any(map(each.pattern.search, one.labels))]
            _report(found, one, other, unused, as_json, color)
    if found:
        raise typer.Exit(1)


def _report(
    found: Difference, a: Checkpoint, b: Checkpoint, unused: list[Rename], as_json: bool, color: output.When
) -> None:
    """Print what was found: the rows, and remarks on it."""
    if as_json:
        output.json(_document(found, a, b))
    elif found and output.stdout_is_terminal():
        output.listing(_page(found), color)
    elif found:
        output.lines(_lines(found))
    if not found:
        output.note(f"same: {counted(found.equal, 'tensor')}")
    elif not as_json and not output.stdout_is_terminal():
        output.note(_summary(found))
    if found.uncompared:
        what = f"{counted(len(found.uncompared), 'object')} compared by class only"
        output.note(f"note: {what}: {sentence(some([path or '.' for path in found.uncompared], 3))}")
    if far := [row.path or "." for row in found.changed if row.figures and row.figures.max_abs == inf]:
        output.note(f"note: distances that float64 cannot hold are infinite: {sentence(some(far, 3))}")
    for rename in unused:
        output.note(f"note: --rename '{escape(rename.text)}' changes no path of A")
    if found.hint:
        from shlex import quote

        text, matches, of = found.hint
        output.note(f"hint: --rename {escape(quote(text))} would match {matches:,} of {of:,}")


# --- what --layer names ------------------------------------------------------------------------


def _chosen(a: Checkpoint, b: Checkpoint, layers: list[str] | None, quiet: bool) -> Chosen | None:
    """What `--layer` names in both; what one of them does not have counts as added or removed there."""
    from paramctl.compare.diff import Chosen

    if not layers:
        return None
    missing = {layer: (_missing(a, layer), _missing(b, layer)) for layer in layers}
    for no_match in missing.values():
        if no_match[0] and no_match[1]:
            no_match[0].file = f"{called(a.file)} and {called(b.file)}"
            raise no_match[0]
    sides = [[layer for layer in layers if not missing[layer][side]] for side in (0, 1)]
    return Chosen(*(_named(*pair, layers, quiet) for pair in zip((a, b), sides, strict=True)))


def _missing(checkpoint: Checkpoint, layer: str) -> NoMatch | None:
    """Why a selection names nothing in a checkpoint; None if it names something."""
    from paramctl.model.selection import select

    try:
        select(checkpoint, ["**", layer] if layer.startswith("!") else [layer], alike=True)
    except NoMatch as error:
        return error
    return None


def _named(checkpoint: Checkpoint, there: list[str], layers: list[str], quiet: bool) -> frozenset[int]:
    """Positions of what those of `layers` that are `there` name together."""
    adding = [layer for layer in layers if not layer.startswith("!")]
    if adding and not any(layer in there for layer in adding):
        return frozenset()
    try:
        return chosen(checkpoint, there) or frozenset(range(len(checkpoint.params)))
    except NoMatch:
        return frozenset()


# --- JSON --------------------------------------------------------------------------------------


def _document(found: Difference, a: Checkpoint, b: Checkpoint) -> dict[str, object]:
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
    from dataclasses import asdict

    figures = row.figures
    unknown = dict.fromkeys(("max_abs", "mean_abs", "count", "max_rel", "of", "nonfinite"))
    sides = {} if row.what == "values" else {"from": row.before, "to": row.after}
    rounds = {"rounds_to": row.rounds_to or None} if row.what == "dtype" else {}
    return {"path": row.path, "what": row.what, **unknown, **(asdict(figures) if figures else {}), **sides, **rounds}


def _noted_object(row: ChangedEntry) -> dict[str, object]:
    sides = (("from", row.before), ("to", row.after))
    return {"path": row.path, **{name: side[0] for name, side in sides if side}}


# --- text in a pipe ----------------------------------------------------------------------------


def _lines(found: Difference) -> Iterator[str]:
    for row in _cells(found):
        yield "\t".join(escape(cell, None) for cell in row)


def _cells(found: Difference) -> Iterator[tuple[str, ...]]:
    """What each line says, the biggest change first."""
    for row in _by_size(found.changed):
        sides = () if row.what == "values" else (_side(row.before, "x"), _side(row.after, "x"))
        figures = _in_full(row.figures) if row.figures else ()
        yield (row.what, row.path, *sides, *figures, *([row.rounds_to] if row.what == "dtype" and figures else []))
    for word, params in (("removed", found.removed), ("added", found.added)):
        for param in params:
            yield word, param.path, param.dtype.name, _side(param.shape, "x")
    for word, ties in (("tied", found.tied), ("untied", found.untied)):
        for tie in ties:
            yield word, tie.path, tie.first
    for word, entries in (("scalar", found.scalars), ("metadata", found.metadata)):
        for entry in entries:
            yield word, entry.path, _value(entry.before), _value(entry.after)


def _in_full(figures: Distance) -> tuple[str, ...]:
    from dataclasses import astuple

    return tuple(map(repr, astuple(figures)))


def _side(side: tuple[int, ...] | str, times: str) -> str:
    return side if isinstance(side, str) else times.join(map(str, side))


def _value(side: tuple[object, ...]) -> str:
    """A value as JSON; nothing where there is none."""
    return json_text.json_text(side[0]) if side else ""


# --- text on a terminal ------------------------------------------------------------------------


def _page(found: Difference) -> Iterator[Line]:
    """The summary, and a table for each way in which things differ."""
    yield from (Line((part,), ("bold",)) for part in tables.wrapped(_summary(found), 0))
    changed = _by_size(found.changed)
    values = [row for row in changed if row.what == "values"]
    dtypes = [row for row in changed if row.what == "dtype"]
    shapes = [row for row in changed if row.what == "shape"]
    yield from _table(
        ("values", "max |Δ|", "mean |Δ|", "relative", "differ", ""),
        [(row.path, *_figures(row), _nonfinite(row)) for row in values],
        "<>>>><", ("", "yellow", "", "", "", "red"),
    )  # fmt: skip
    yield from _table(
        ("dtype", "", "max |Δ|", "differ", ""),
        [(row.path, _arrow(row), *_figures(row)[::3], _rounding(row)) for row in dtypes],
        "<<>><", ("", "cyan", "yellow", "", "dim"),
    )  # fmt: skip
    yield from _table(("shape", ""), [(row.path, _arrow(row)) for row in shapes], "<<", ("", "cyan"))
    yield from _table(("removed", "", ""), _listed(found.removed), "<<<", ("red", "cyan", ""))
    yield from _table(("added", "", ""), _listed(found.added), "<<<", ("green", "cyan", ""))
    ties = [(tie.path, f"= {_shown(tie.first)}") for tie in found.tied]
    yield from _table(("tied", ""), ties, "<<", ("", "magenta"))
    ties = [(tie.path, f"was = {_shown(tie.first)}") for tie in found.untied]
    yield from _table(("untied", ""), ties, "<<", ("", "magenta"))
    yield from _table(("scalars", ""), _before_after(found.scalars), "<<", ("", ""))
    yield from _table(("metadata", ""), _before_after(found.metadata), "<<", ("", ""))


def _table(header: Sequence[str], rows: Iterable[tuple[str, ...]], align: str, styles: Sequence[str]) -> Iterator[Line]:
    """An empty line, the header, and the rows, the first cell of each a path; nothing without rows."""
    shown = [(_shown(row[0]), *row[1:]) for row in rows]
    if not shown:
        return
    yield Line(("",), ("",))
    lines = tables.aligned([tuple(header), *shown], align, styles, output.terminal_width())
    yield next(lines)._replace(styles=("dim",) * len(header))
    yield from lines


def _summary(found: Difference) -> str:
    """What differs, in one sentence."""
    if not found.compared:
        return f"no tensor is in both files: {len(found.added):,} added, {len(found.removed):,} removed"
    parts = [f"{found.compared - found.equal:,} of {counted(found.compared, 'tensor')} changed"]
    parts += [f"{len(found.added):,} added", f"{len(found.removed):,} removed"]
    others = ((found.tied, "tie", " gained"), (found.untied, "tie", " lost"), (found.scalars, "scalar", ""))
    parts += [f"{counted(len(rows), noun)}{word}" for rows, noun, word in others if rows]
    parts += ["metadata"] if found.metadata else []
    return f"the files differ: {', '.join(parts)}{_biggest(found.changed)}"


def _biggest(changed: Sequence[Changed]) -> str:
    """Where values are furthest apart, if any are compared."""
    for row in _by_size(changed):
        if row.figures and row.figures.count:
            size = "is not finite," if row.figures.nonfinite else _short(row.figures.max_abs)
            return f"; biggest change {size} in {_shown(row.path)}"
    return ""


def _by_size(changed: Sequence[Changed]) -> list[Changed]:
    """The biggest change first: what has no figures, then what is not finite, then by the largest distance.

    Whole numbers come behind other values, what an optimizer remembers behind all: counts of steps would come first.
    """

    def size(row: Changed) -> tuple[bool, bool, bool, bool, float]:
        figures = row.figures
        spoiled = figures is not None and figures.nonfinite > 0
        return row.kind != "optimizer", not row.counts, figures is None, spoiled, figures.max_abs if figures else 0

    return sorted(changed, key=size, reverse=True)


def _figures(row: Changed) -> tuple[str, ...]:
    """The largest distance, the mean, the relative one, and how many values differ."""
    if row.figures is None:
        return ("",) * 4
    sizes = (row.figures.max_abs, row.figures.mean_abs, row.figures.max_rel)
    return (*map(_short, sizes), f"{row.figures.count:,} of {row.figures.of:,}")


def _short(size: float) -> str:
    return f"{size:.4g}"


def _nonfinite(row: Changed) -> str:
    return f"{row.figures.nonfinite:,} not finite" if row.figures and row.figures.nonfinite else ""


def _rounding(row: Changed) -> str:
    """What to know of values of two dtypes."""
    if row.figures is None:
        return "not compared"
    if not row.figures.count:
        return "same values"
    return f"same in {row.rounds_to}" if row.rounds_to else _nonfinite(row)


def _arrow(row: Changed) -> str:
    before, after = (side if isinstance(side, str) else dims(side) for side in (row.before, row.after))
    return f"{before} → {after}"


def _listed(params: Sequence[Param]) -> list[tuple[str, ...]]:
    return [(param.path, param.dtype.name, dims(param.shape)) for param in params]


def _before_after(entries: Sequence[ChangedEntry]) -> list[tuple[str, ...]]:
    return [(row.path, f"{_brief(row.before)} → {_brief(row.after)}") for row in entries]


def _brief(side: tuple[object, ...]) -> str:
    return elide(_value(side), SHORT) if side else "none"


def _shown(path: str) -> str:
    return escape(path) or "."
