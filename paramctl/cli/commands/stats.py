"""`paramctl stats`: summarise the values of each tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from paramctl.cli import json_text, output, progress, tables, text
from paramctl.cli.options import (
    Color,
    FileArgument,
    Json,
    JsonLines,
    Layers,
    Selections,
    Top,
    Tsv,
    check_exclusive,
    open_checkpoint,
    selected_positions,
    single_threaded,
    with_positional,
)
from paramctl.cli.output import Line
from paramctl.cli.tables import Column

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint
    from paramctl.stats.spectral import Spectrum
    from paramctl.stats.stats import Row

Key = Literal["path", "count", "mean", "std", "min", "max", "l2", "zeros", "nan", "inf"]
Order = Literal["file", "name", "size", "path", "count", "mean", "std", "min", "max", "l2", "zeros", "nan", "inf"]
FIGURES: tuple[Key, ...] = ("count", "mean", "std", "min", "max", "l2", "zeros", "nan", "inf")
BARS = 12  # characters of a histogram
BINS = 64  # of a histogram for programs
REASONS = 5  # of tensors without figures that are said one by one
PATH = 16  # columns that a path keeps before other columns make room for it
SPARE = (
    "tied to",
    "count",
    "zeros",
    "l2",
    "histogram",
    "stable rank",
    "max",
    "min",
)  # dropped in this order on a narrow terminal


class StatsRow(NamedTuple):
    """The figures of one tensor or layer; a figure is None if there is none."""

    row: Row
    figures: dict[str, int | float | None]
    spectrum: Spectrum | None
    why_spectral: str = ""


class Reasons(NamedTuple):
    """Why some tensors have no figures, and for each reason how many have no spectrum."""

    figures: list[str]
    spectra: Counter[str]


By = Annotated[
    Literal["tensor", "layer"],
    typer.Option("--by", help="A line for each; a layer is its own tensors, without those of layers in it."),
]
Sort = Annotated[
    Order | None,
    typer.Option("--sort", show_default=False, help="Order by this, the largest first; 'name' sorts 2 before 10."),
]
Reverse = Annotated[bool, typer.Option("--reverse", help="Reverse the order.")]
Histogram = Annotated[bool, typer.Option("--histogram", help="Histograms for --json and --jsonl too.")]
Spectral = Annotated[
    bool,
    typer.Option("--spectral", help="Also the largest singular value and stable rank of matrices (slow: torch)."),
]


def stats(
    file: FileArgument = None,
    selections: Selections = None,
    layer: Layers = None,
    by: By = "tensor",
    sort: Sort = None,
    reverse: Reverse = False,
    top: Top = None,
    histogram: Histogram = False,
    spectral: Spectral = False,
    as_tsv: Tsv = False,
    as_json: Json = False,
    as_json_lines: JsonLines = False,
    color: Color = "auto",
) -> None:
    """Summarise the values of each tensor, or of each layer.

    Mean, std (sample), min, max and l2 are of the finite values; count is of all of them. Complex values
    count by their magnitude, quantized ones by their dequantized value. In a pipe the lines are
    tab-separated: path, dtype, shape, count, mean, std, min, max, l2, zeros, nan, inf (with --by layer the
    number of tensors for dtype and shape; with --spectral two more: sigma, stable rank).

    \b
    Examples:
      paramctl stats model.pt
      paramctl stats model.pt '**.weight' --sort std
      paramctl stats model.pt --by layer --jsonl | jq 'select(.nan > 0).path'
      paramctl stats model.pt --spectral --layer 0.weight
    """
    check_exclusive({"--tsv": as_tsv, "--json": as_json, "--jsonl": as_json_lines})
    check_exclusive({"--by layer": by == "layer", "--spectral": spectral})
    single_threaded()
    for_people = output.stdout_is_terminal() and not (as_tsv or as_json or as_json_lines)
    with open_checkpoint(file) as checkpoint:
        from paramctl.stats.stats import stats

        positions = selected_positions(checkpoint, with_positional(layer, selections))
        with progress.bar() as on_progress:
            drawn = histogram or for_people
            rows = stats(checkpoint, positions, by_layer=by == "layer", histograms=drawn, on_progress=on_progress)
            reasons = Reasons([], Counter())
            found: Iterable[StatsRow] = (_stats_row(checkpoint, row, spectral, reasons) for row in rows)
            if sort is not None or reverse or top is not None:
                found = _sorted(checkpoint, found, sort or ("file" if reverse else "size"), reverse)[:top]
            if as_json_lines:
                output.json_lines(_object(checkpoint, one, histogram, spectral) for one in found)
                return
            if not (as_json or for_people):
                output.lines(_line(checkpoint, one, spectral) for one in found)
                _note_reasons(reasons)
                return
            kept = list(found)
        if as_json:
            _print_document(checkpoint, kept, by, histogram, spectral)
            return
        if kept:
            _show(checkpoint, kept, spectral, color)
        _note_reasons(reasons)


def _print_document(
    checkpoint: Checkpoint, found: Sequence[StatsRow], by: str, histogram: bool, spectral: bool
) -> None:
    """Print the JSON document."""
    objects = [_object(checkpoint, one, histogram, spectral) for one in found]
    output.json({"schema": 1, "file": checkpoint.file, "layers" if by == "layer" else "tensors": objects})


def _show(checkpoint: Checkpoint, found: Sequence[StatsRow], spectral: bool, color: output.When) -> None:
    """Print the table."""
    shown = tables.fitted(_columns(checkpoint, found, spectral), SPARE, output.terminal_width())
    output.listing(_table(shown.columns), color)
    tables.note_dropped(shown.dropped)


def _note_reasons(reasons: Reasons) -> None:
    """Print why some tensors have no figures."""
    for why in reasons.figures[:REASONS]:
        output.note(f"no figures: {text.sentence(why)}")
    if len(reasons.figures) > REASONS:
        output.note(f"no figures of {len(reasons.figures) - REASONS:,} more; --json gives the reasons")
    if reasons.spectra:
        why_none = [f"{why} ({text.counted(n, 'tensor')})" for why, n in reasons.spectra.items()]
        output.note(f"no singular values: {', '.join(why_none)}")


def _stats_row(checkpoint: Checkpoint, row: Row, spectral: bool, reasons: Reasons) -> StatsRow:
    """Return the figures of a row; record in `reasons` why some are missing."""
    if row.summary.why:
        reasons.figures.append(row.summary.why)
    figures = row.summary.figures._asdict()
    if not spectral or row.at is None:
        return StatsRow(row, figures, None)
    from paramctl.stats.spectral import spectrum as spectrum_of

    spectrum = spectrum_of(checkpoint, checkpoint.params[row.at])
    if isinstance(spectrum, str):
        reasons.spectra[spectrum] += 1
        return StatsRow(row, figures, None, spectrum)
    return StatsRow(row, figures, spectrum)


def _sorted(checkpoint: Checkpoint, found: Iterable[StatsRow], key: Order, reverse: bool) -> list[StatsRow]:
    """Return the rows in the order of a figure or of sizes, the largest first, of names, or as in the file."""
    kept = list(found)
    if key == "file":
        return kept[::-1] if reverse else kept
    if key in ("path", "name"):
        from paramctl.model.checkpoint import natural_key

        return sorted(kept, key=lambda one: natural_key(one.row.path), reverse=reverse)
    if key == "size":
        return sorted(kept, key=lambda one: _nbytes(checkpoint, one.row), reverse=not reverse)
    having = [one for one in kept if one.figures[key] is not None]
    having.sort(key=lambda one: one.figures[key] or 0, reverse=not reverse)
    return [*having, *(one for one in kept if one.figures[key] is None)]


def _nbytes(checkpoint: Checkpoint, row: Row) -> int:
    """Return the bytes of a tensor, or of a layer's own tensors."""
    if row.at is not None:
        return checkpoint.params[row.at].nbytes
    return sum(checkpoint.params[at].nbytes for at in checkpoint.own_params.get(row.path, ()))


def _object(checkpoint: Checkpoint, found: StatsRow, histogram: bool, spectral: bool) -> dict[str, object]:
    """Return the JSON object of a row."""
    row = found.row
    if row.at is None:
        about: dict[str, object] = {"path": row.path, "tensors": row.tensors}
    else:
        leader = checkpoint.tied_to.get(row.at)
        tied_to = None if leader is None else checkpoint.params[leader].path
        about = json_text.tensor_object(checkpoint.params[row.at], tied_to)
    about.update(found.figures)
    if histogram:
        bins = row.summary.histogram.within(BINS)
        about["histogram"] = {"edges": list(bins.edges), "counts": list(bins.counts)}
    if spectral:
        about["sigma"] = found.spectrum.sigma if found.spectrum else None
        about["stable_rank"] = found.spectrum.stable_rank if found.spectrum else None
        if found.why_spectral:
            about["why_spectral"] = found.why_spectral
    return {**about, "why": row.summary.why} if row.summary.why else about


def _line(checkpoint: Checkpoint, found: StatsRow, spectral: bool) -> str:
    """Return the tab-separated line of a row."""
    row = found.row
    about = [str(row.tensors), ""]
    if row.at is not None:
        param = checkpoint.params[row.at]
        about = [param.dtype.name, "x".join(map(str, param.shape))]
    figures: list[int | float | None] = [found.figures[key] for key in FIGURES]
    if spectral:
        figures += found.spectrum or (None, None)
    numbers = ["" if number is None else repr(number) for number in figures]
    return "\t".join([text.escape(row.path, None), *about, *numbers])


def _columns(checkpoint: Checkpoint, found: Sequence[StatsRow], spectral: bool) -> list[Column]:
    """Return the columns of the table."""
    columns = [Column("path", "", [text.escape(one.row.path) or "." for one in found], "<", "bold", least=PATH)]
    enough = [text.digits_for(one.figures["std"], one.figures["mean"]) for one in found]
    for key in ("count", "mean", "std", "min", "max", "l2", "zeros"):
        digits = enough if key in ("mean", "min", "max") else [4] * len(found)
        cells = [text.number(one.figures[key], n) for one, n in zip(found, digits, strict=True)]
        columns.append(Column(key, _TITLES.get(key, key), cells, style=_STYLES.get(key, "")))
    for key in ("nan", "inf"):
        if any(one.figures[key] for one in found):
            cells = [text.number(one.figures[key]) for one in found]
            columns.append(Column(key, _TITLES.get(key, key), cells, style=_STYLES.get(key, "")))
    if spectral:
        ranks = [text.number(one.spectrum and one.spectrum.stable_rank) for one in found]
        columns.append(Column("sigma", "sigma", [text.number(one.spectrum and one.spectrum.sigma) for one in found]))
        columns.append(Column("stable rank", "stable rank", ranks))
    columns.append(Column("histogram", "", [_bars(one) for one in found], "<", "cyan"))
    ties = [_tie(checkpoint, one.row) for one in found]
    return [*columns, Column("tied to", "", ties, "<", "magenta", least=PATH)] if any(ties) else columns


def _table(columns: Sequence[Column]) -> Iterator[Line]:
    """Yield a header and a line for each row; a zero is dim: no NaN is no alarm."""
    header, *lines = tables.table(columns)
    yield header
    for cells, own in lines:
        quiet = (cell.strip() == "0" for cell in cells)
        yield Line(cells, tuple("dim" if zero else style for zero, style in zip(quiet, own, strict=True)))


_STYLES = {"count": "dim", "zeros": "dim", "nan": "red"}
_TITLES = {"nan": "NaN", "l2": "L2"}


def _tie(checkpoint: Checkpoint, row: Row) -> str:
    """Return the path that a tensor is tied to, as it is printed, or ""."""
    leader = None if row.at is None else checkpoint.tied_to.get(row.at)
    return "" if leader is None else f"= {text.escape(checkpoint.params[leader].path) or '.'}"


def _bars(found: StatsRow) -> str:
    """Return the histogram of a row, drawn with characters."""
    moments = found.row.summary.moments
    if not moments.finite:
        return ""
    return text.sparkline(found.row.summary.histogram.resampled(float(moments.low), float(moments.high), BARS))
