"""Define the arguments and options that commands share, and open the checkpoint that a command names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paramctl.cli import output, progress, text
from paramctl.cli.completion import complete_path
from paramctl.errors import NoMatch, ParamctlError, UsageError

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint

STDIN = "-"


@contextmanager
def open_checkpoint(file: str | None, quiet: bool = False) -> Iterator[Checkpoint]:
    """Open the checkpoint that FILE names, or the one on standard input; errors inside name the file.

    Raises UsageError if neither is given.
    """
    if file is None:
        if output.stdin_is_terminal():
            raise UsageError("no checkpoint was named", hint="name a FILE, or pipe one in and name '-' or nothing")
        file = STDIN
    from paramctl.formats import opening

    try:
        undone: list[int] = []
        try:
            with progress.bar(quiet) as on_progress:
                checkpoint = opening.open(file, on_progress, undone.append)
        finally:
            note_undone(file, sum(undone))
        yield checkpoint
    except ParamctlError as error:
        error.file = error.file or display_name(file)
        raise


def note_undone(file: str, nbytes: int) -> None:
    """Say that an interrupted change of FILE was undone, if any byte was."""
    if nbytes:
        what = f"a change in place was interrupted; undid it ({text.human_bytes(nbytes)})"
        output.note(f"{text.escape(file)}: {what}")


def selected_positions(checkpoint: Checkpoint, selections: list[str] | None) -> frozenset[int] | None:
    """Return the positions of the params that `--layer` names, or None if it was not given."""
    if not selections:
        return None
    from paramctl.model.selections.selection import select

    try:
        selection = select(checkpoint, selections, alike=True)
    except NoMatch as error:
        files = [name for name in selections if _is_file(name)]
        if files and "nothing is left" not in error.what:
            error.hint = f"{files[0]} is a file: 'paramctl diff' compares two, and others take one"
        raise
    if selection.under:
        output.note(f"selected inside '{text.escape(selection.under)}'")
    for note in selection.notes:
        output.note(f"note: {text.sentence(note)}")
    return frozenset(selection.indices)


def _is_file(name: str) -> bool:
    """Return whether a selection that names nothing is the name of a file."""
    try:
        return os.path.isfile(name)  # noqa: PTH113 - Path's raises OSError for a name that is too long
    except ValueError:
        return False


def with_positional(layer: list[str] | None, selections: list[str] | None) -> list[str] | None:
    """Return the selections of `--layer` with those given as arguments behind FILE."""
    return [*(layer or ()), *(selections or ())] or None


def ordered(checkpoint: Checkpoint, positions: Iterable[int], sort: SortOrder, top: int | None) -> list[int]:
    """Return positions of params in an order, at most `top`; of the file's order the largest are kept."""
    params, listed = checkpoint.params, list(positions)
    if sort == "name":
        from paramctl.model.checkpoint import natural_key

        return sorted(listed, key=lambda at: natural_key(params[at].path))[:top]
    if sort == "size":
        return sorted(listed, key=lambda at: -params[at].nbytes)[:top]
    largest = set(sorted(listed, key=lambda at: -params[at].nbytes)[:top])
    return [at for at in listed if at in largest]


def single_threaded() -> None:
    """Keep numpy's BLAS from starting threads, which cost more than they gain on blocks; call before numpy loads."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def check_exclusive(flags: Mapping[str, bool]) -> None:
    """Raise UsageError if several options were given that exclude one another."""
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude one another", hint="give one of them")


def display_name(file: str) -> str:
    """Return the name of the file for people."""
    return "standard input" if file == STDIN else file


# No callback for FILE: where there is no candidate, every shell completes the names of files, and
# quotes them as it should.
FileArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[FILE]",
        show_default=False,
        help="The checkpoint; '-' (or nothing, in a pipe) is standard input.",
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        "-l",
        metavar="SELECTION",
        show_default=False,
        autocompletion=complete_path,
        help="Only these: a path, a layer, a glob ('**.bias'), '{0,4,8}', '{0..31..4}', positions ('[0][1]', 'h[::4]'),"
        " 're:PATTERN', '!' and any of them to take away, '@FILE' for a list. Repeatable.",
    ),
]
Selections = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SELECTION]...", show_default=False, autocompletion=complete_path, help="The same as --layer."
    ),
]
SortOrder = Literal["file", "name", "size"]
SortBy = Annotated[
    SortOrder, typer.Option("--sort", help="Order: as in the file, by name (2 before 10), or by size, largest first.")
]
Top = Annotated[
    int | None,
    typer.Option("--top", min=1, metavar="N", show_default=False, help="Only the N largest, or the first N by --sort."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
JsonLines = Annotated[bool, typer.Option("--jsonl", help="Print one JSON object a line.")]
Tsv = Annotated[bool, typer.Option("--tsv", help="Print tab-separated lines.")]
Color = Annotated[
    Literal["auto", "always", "never"],
    typer.Option("--color", help="Colour the output; NO_COLOR and FORCE_COLOR are respected."),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        show_default=False,
        help="Write here; '-' is standard output, and the default in a pipe.",
    ),
]
InPlaceFlag = Annotated[bool, typer.Option("--in-place", "-i", help="Replace FILE, whole or not at all.")]
Patch = Annotated[
    bool,
    typer.Option(
        "--patch",
        help="With -i: write only the bytes that change into FILE, under an undo journal; it needs no room for a copy.",
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Let -o replace a file that exists.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Write nothing; print the report and the planned writes.")
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        show_default=False,
        help="Repeat the draw of this seed; without it, a seed is drawn and printed.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no report and show no bar; errors still show.")]
# Where other positional arguments follow, FILE cannot be left out: nothing would tell it from them.
RequiredFile = Annotated[
    str, typer.Argument(metavar="FILE", show_default=False, help="The checkpoint; '-' is standard input.")
]
