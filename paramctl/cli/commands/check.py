"""`paramctl check`: check whether a checkpoint is sound, its values plausible, and loading it harmless."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paramctl import __version__
from paramctl.cli import output, progress, tables
from paramctl.cli.options import STDIN, Color, FileArgument, Json, Quiet, check_exclusive, display_name, single_threaded
from paramctl.cli.output import Line
from paramctl.cli.text import counted, escape, sentence
from paramctl.errors import ParamctlError, UsageError

if TYPE_CHECKING:
    from paramctl.check.check import Report
    from paramctl.findings import Finding, Group, Level

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


def check(
    file: FileArgument = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="GROUP", show_default=False, help="integrity, health or safety alone. Repeatable."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Notes count too: exit 1 if there is one.")] = False,
    as_json: Json = False,
    sarif: Annotated[bool, typer.Option("--sarif", help="Print a SARIF 2.1.0 document, for code scanners.")] = False,
    quiet: Quiet = False,
    color: Color = "auto",
) -> None:
    """Check a checkpoint: integrity, health of its values, safety of loading it.

    Integrity: every byte is read; checksums, offsets, records, aliases, shards against their index. Health:
    NaN, infinities, weights that are all zero or constant, dead rows, denormals. Safety: every class and
    function that a pickle names beyond plain tensors, and what torch.load(weights_only=True) says to it.

    Exit 1 if an error or a warning is found, 3 if the only problem is an unsupported format. In
    a pipe the lines are tab-separated: level, group, rule, file (of a sharded set), path, what.

    \b
    Examples:
      paramctl check model.pt
      paramctl check model.safetensors.index.json
      paramctl check model.pt --only safety
      paramctl check model.pt --json | jq -r '.safety[].globals[].name'
    """
    check_exclusive({"--json": as_json, "--sarif": sarif})
    groups = _groups(only)
    if file is None and output.stdin_is_terminal():
        raise UsageError("no checkpoint was named", hint="name a FILE, or pipe one in and name '-' or nothing")
    file = STDIN if file is None else file
    single_threaded()
    from paramctl.check.check import check

    try:
        with progress.bar(quiet) as on_progress:
            report = check(file, groups, on_progress)
    except ParamctlError as error:
        error.file = error.file or display_name(file)
        raise
    if as_json:
        output.json(_document(report))
    elif sarif:
        output.json(_sarif(report))
    elif output.stdout_is_terminal():
        output.listing(_listing(report), color)
    else:
        output.lines(_lines(report))
    if not quiet:
        output.note(f"{escape(display_name(report.file))}: {_summary(report, groups)}")
    raise typer.Exit(_exit_code(report, strict))


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


def _lines(report: Report) -> Iterator[str]:
    """Yield the tab-separated lines."""
    for finding in _sorted(report):
        words = (finding.level, finding.group, finding.rule, finding.file, finding.path or "", finding.what)
        yield "\t".join(escape(word, None) for word in words)


def _document(report: Report) -> dict[str, object]:
    """Return the JSON document."""
    return {
        "schema": 1,
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


def _sarif(report: Report) -> dict[str, Any]:
    """Return the SARIF document.

    Reference: https://docs.oasis-open.org/sarif/sarif/v2.1.0/.
    """
    from paramctl.findings import RULES

    rules = [{"id": rule, "shortDescription": {"text": text}} for rule, text in RULES.items()]
    driver = {"name": "paramctl", "version": __version__, "rules": rules}
    results = [_result(report.file, finding) for finding in _sorted(report)]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(file: str, finding: Finding) -> dict[str, Any]:
    """Return one finding as SARIF has it."""
    from pathlib import Path
    from urllib.parse import quote

    path = Path(file).parent / finding.file if finding.file else Path(file)
    uri = quote(path.as_posix().encode("utf-8", "surrogatepass"))  # a name need not be text
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
