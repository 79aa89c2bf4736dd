"""The arguments and options that commands share, so that a signature reads like a sentence."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from paramctl.cli import output, progress, text
from paramctl.errors import ParamctlError, UsageError

if TYPE_CHECKING:
    from paramctl.model.checkpoint import Checkpoint

STDIN = "-"


@contextmanager
def opened(file: str | None, quiet: bool = False) -> Iterator[Checkpoint]:
    """The checkpoint that FILE names, or the one on standard input; an error inside says which it was.

    Raises UsageError where neither was given.
    """
    if file is None:
        if output.stdin_is_terminal():
            raise UsageError("no checkpoint was named", hint="name a FILE, or pipe one in and name '-' or nothing")
        file = STDIN
    from paramctl.formats import opening

    try:
        recovered(file, quiet)
        with progress.bar(quiet) as on_progress:
            checkpoint = opening.open(file, on_progress)
        yield checkpoint
    except ParamctlError as error:
        error.file = error.file or called(file)
        raise


def recovered(file: str, quiet: bool = False) -> bool:
    """Whether a change of FILE that was interrupted had to be undone, which is said."""
    from paramctl.formats import opening

    with progress.bar(quiet) as on_progress:
        nbytes = opening.recover(file, on_progress)
    if nbytes:
        what = f"a change in place was interrupted; undid it ({text.human_bytes(nbytes)})"
        output.note(f"{text.escape(file)}: {what}")
    return nbytes > 0


def chosen(checkpoint: Checkpoint, selections: list[str] | None) -> frozenset[int] | None:
    """Positions of the params that `--layer` names, or None where it was not given."""
    if not selections:
        return None
    from paramctl.model.selection import select

    selection = select(checkpoint, selections, alike=True)
    if selection.under:
        output.note(f"selected inside '{text.escape(selection.under)}'")
    return frozenset(selection.indices)


def single_threaded() -> None:
    """Keep numpy's BLAS from starting threads, which cost more than they gain on blocks; numpy is not imported yet."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def one_of(flags: Mapping[str, bool]) -> None:
    """Raise UsageError if several of the options were given that exclude one another."""
    given = [name for name, value in flags.items() if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude one another", hint="give one of them")


def called(file: str) -> str:
    """What people call the file."""
    return "standard input" if file == STDIN else file


# --- shell completion --------------------------------------------------------------------------

# Typer's scripts put candidates on the command line as they are (the one for zsh even evaluates
# them), so a name is offered only if no shell reads anything into it.
_HARMLESS = re.compile(r"[\w./:@%+=,-][\w ./:@%+=,-]*")


def complete_path(ctx: typer.Context, incomplete: str) -> list[str]:
    """The layers and params inside the file named on the line; none where anything is amiss."""
    # An option that still lacks its value keeps Typer from reading the arguments: FILE is left over.
    file = ctx.params.get("file") or next(iter(ctx.args), None)
    if not isinstance(file, str) or file == STDIN:
        return []
    from paramctl.files.sources import open_source
    from paramctl.formats import opening, registry

    try:
        # To undo an interrupted change is not for a TAB key.
        checkpoint = registry.read(open_source(opening.locate(file)))
    except (ParamctlError, OSError, ValueError, RecursionError, MemoryError):
        return []
    names = {name: None for param in checkpoint.params for name in _next_names(param.path, incomplete)}
    return [_unsplit(name) for name in names if _HARMLESS.fullmatch(name)]


def _next_names(path: str, incomplete: str) -> Iterator[str]:
    """The layer that `incomplete` leads to next on its way to `path`, and the path itself."""
    if path.startswith(incomplete):
        dot = path.find(".", len(incomplete))
        if dot >= 0:
            yield path[:dot]
        yield path


def _unsplit(name: str) -> str:
    """`name` such that bash takes it for one word; the other shells see to that themselves."""
    words = os.environ.get("COMP_WORDS", "").rsplit("\n", 1)
    quoted = words[-1][:1] in ("'", '"')
    return name if not words[0] or quoted else name.replace(" ", "\\ ")


def complete_scheme(incomplete: str) -> list[str]:
    """The names of all schemes."""
    from paramctl.schemes.scheme import SCHEMES

    return [name for name in SCHEMES if name.startswith(incomplete)]


# --- arguments and options ---------------------------------------------------------------------

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
        help="Only these: a path, a layer, a glob ('**.bias'), positions ('[0][1]'), 're:PATTERN', '!' and"
        " any of them to take away, '@FILE' for a list. Repeatable.",
    ),
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
    bool, typer.Option("--dry-run", "-n", help="Print the report and the planned writes; write nothing.")
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
