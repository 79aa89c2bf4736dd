"""`paramctl check`: check whether a checkpoint is sound, its values plausible, and loading it harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from paramctl import __version__
from paramctl.cli import output, progress, tables
from paramctl.cli.options import STDIN, Color, Json, check_exclusive, display_name, single_threaded
from paramctl.cli.output import Line
from paramctl.cli.text import counted, escape, sentence
from paramctl.errors import ParamctlError, ReaderLeft, UsageError

if TYPE_CHECKING:
    from paramctl.check.check import Report
    from paramctl.findings import Finding, Group, Level

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def check(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            show_default=False,
            help="The checkpoints; '-' (or nothing, in a pipe) is standard input.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="GROUP", show_default=False, help="integrity, health or safety alone. Repeatable."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Notes count too: exit 1 if there is one.")] = False,
    as_json: Json = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print a SARIF 2.1.0 document, for code scanners.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the last line of each checkpoint.")
    ] = False,
    color: Color = "auto",
) -> None:
    """Check checkpoints: integrity, health of values, safety of loading.

    Integrity: every byte is read; checksums, offsets, records, aliases, shards against their index. Health:
    NaN, infinities, weights that are all zero or constant, dead rows, denormals. Safety: every class and
    function that a pickle names beyond plain tensors, and what torch.load(weights_only=True) says to it.

    Exit 1 if an error or a warning is found, 3 if the only problem is a file that cannot be read or has an
    unsupported format. In a pipe the lines are tab-separated: level, group, rule, file (of a sharded set, or
    of several checkpoints), path, what. With several, --json prints a list of documents under "checkpoints".

    \b
    Examples:
      paramctl check model.pt
      paramctl check model.safetensors.index.json
      paramctl check -q *.pt
      paramctl check model.pt --only safety
      paramctl check model.pt --json | jq -r '.safety[].globals[].name'
    """
    check_exclusive({"--json": as_json, "--sarif": sarif})
    groups = _groups(only)
    if not files and output.stdin_is_terminal():
        raise UsageError("no checkpoint was named", hint="name a FILE, or pipe one in and name '-' or nothing")
    single_threaded()
    names = files or [STDIN]
    checked = _Checked([], [], len(names) > 1)
    for name in names:
        with _going_on(name, checked):
            report = _report(name, groups, quiet or len(names) > 1)
            checked.reports.append(report)
            checked.codes.append(_exit_code(report, strict))
            if not (as_json or sarif):
                _print_report(report, groups, checked.several, quiet, color)
    if as_json:
        documents = [_document(report) for report in checked.reports]
        output.json({"schema": 1, "checkpoints": documents} if checked.several else {"schema": 1, **documents[0]})
    elif sarif:
        output.json(_sarif(checked.reports))
    if (as_json or sarif) and not quiet:
        for report in checked.reports:
            output.note(_last_line(report, groups))
    raise typer.Exit(1 if 1 in checked.codes else max(checked.codes))


class _Checked(NamedTuple):
    """The reports on the checkpoints, and the exit code for each; one that cannot be read has no report."""

    reports: list[Report]
    codes: list[int]
    several: bool


@contextmanager
def _going_on(name: str, checked: _Checked) -> Iterator[None]:
    """Print the error of a checkpoint that cannot be read, and go on with the others, if there are several."""
    try:
        yield
    except ParamctlError as error:
        error.file = error.file or display_name(name)
        if not checked.several or isinstance(error, ReaderLeft):
            raise
        output.note(f"paramctl: {sentence(str(error))}")
        checked.codes.append(error.exit_code)


def _report(name: str, groups: tuple[Group, ...], quiet: bool) -> Report:
    """Return the report on a checkpoint."""
    from paramctl.check.check import check

    with progress.bar(quiet) as on_progress:
        return check(name, groups, on_progress)


def _print_report(
    report: Report, groups: tuple[Group, ...], several: bool, quiet: bool, color: output.When
) -> None:
    """Print the findings of a checkpoint, then its last line."""
    if quiet:
        output.lines([_last_line(report, groups)])
        return
    if output.stdout_is_terminal():
        output.listing(_listing(report), color)
    else:
        output.lines(_lines(report, several))
    output.note(_last_line(report, groups))


def _last_line(report: Report, groups: tuple[Group, ...]) -> str:
    """Return the line that sums up a report."""
    return f"{escape(display_name(report.file))}: {_summary(report, groups)}"


def _exit_code(report: Report, strict: bool) -> int:
    """Return 1 if something is wrong, 3 if that cannot be known, else 0."""
    from paramctl.findings import NOT_READ

    failed = {finding.rule for finding in report.findings if strict or finding.level != "note"}
    return 1 if failed - {NOT_READ} else 3 if failed else 0


def _groups(only: list[str] | None) -> tuple[Group, ...]:
    """Return the groups to check. Raises UsageError for a name that is not a group."""
    from paramctl.findings import GROUPS

    for name in only or ():
        if name not in GROUPS:
            raise UsageError(f"there is no group '{name}'", hint=f"name one of {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if not only or group in only)


def _summary(report: Report, groups: tuple[Group, ...]) -> str:
    """Return the number of findings of each level, in one line."""
    counts = Counter(finding.level for finding in report.findings)
    found = [counted(counts[level], level) for level in LEVELS if counts[level]]
    where = counted(report.tensors, "tensor") + (f" in {report.files:,} files" if report.files > 1 else "")
    what = ", ".join(found) if counts["error"] or counts["warning"] else ", ".join(["nothing wrong", *found])
    return f"{what} ({where}; {', '.join(groups)})"


def _sorted(report: Report) -> list[Finding]:
    """Return the findings: errors, warnings, then notes, each in the order in which they were found."""
    return sorted(report.findings, key=lambda finding: LEVELS.index(finding.level))


def _listing(report: Report) -> Iterator[Line]:
    """Yield the lines for a terminal."""
    styles = {"error": "bold red", "warning": "yellow", "note": "dim"}
    for finding in _sorted(report):
        where = [finding.file, finding.path if finding.path != "" else "."]
        subject = ": ".join(escape(part) for part in where if part)
        head = f"{finding.level:<9}{finding.group:<11}"
        text = sentence(finding.what)
        lines = tables.wrapped(f"{subject}: {text}" if subject else text, len(head))
        for number, line in enumerate(lines):
            lead = head if number == 0 else " " * len(head)
            yield Line((lead, line), (styles[finding.level], ""))


def _lines(report: Report, several: bool) -> Iterator[str]:
    """Yield the tab-separated lines; of several checkpoints each line names its own."""
    for finding in _sorted(report):
        file = _path_of(report.file, finding) if several else finding.file
        words = (finding.level, finding.group, finding.rule, file, finding.path or "", finding.what)
        yield "\t".join(escape(word, None) for word in words)


def _document(report: Report) -> dict[str, object]:
    """Return the JSON document."""
    return {
        "file": report.file,
        "findings": [finding._asdict() for finding in _sorted(report)],
        "safety": [
            {
                "part": part,
                "weights_only": not found.refusal,
                "refusal": found.refusal or None,
                "globals": [use._asdict() for use in found.uses],
            }
            for part, found in report.safety
        ],
        "tensors": report.tensors,
        "files": report.files,
    }


def _sarif(reports: Sequence[Report]) -> dict[str, Any]:
    """Return the SARIF document.

    Reference: https://docs.oasis-open.org/sarif/sarif/v2.1.0/.
    """
    from paramctl.findings import RULES

    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()]
    driver = {"name": "paramctl", "version": __version__, "rules": rules}
    results = [_result(report.file, finding) for report in reports for finding in _sorted(report)]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(file: str, finding: Finding) -> dict[str, Any]:
    """Return one finding as SARIF has it."""
    from urllib.parse import quote

    uri = quote(_path_of(file, finding).encode("utf-8", "surrogatepass"))  # a name need not be text
    place: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": uri}}}
    if finding.path is not None:
        place["logicalLocations"] = [{"fullyQualifiedName": finding.path, "kind": "member"}]
    return {
        "ruleId": finding.rule,
        "level": finding.level,
        "message": {"text": f"{finding.path}: {finding.what}" if finding.path else finding.what},
        "locations": [place],
        "properties": {"group": finding.group},
    }


def _path_of(file: str, finding: Finding) -> str:
    """Return the path of the file that a finding is about: the checkpoint, or a shard beside its index."""
    from pathlib import Path

    return (Path(file).parent / finding.file if finding.file else Path(file)).as_posix()
