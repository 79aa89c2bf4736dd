"""Report what loading a file would run: every name its pickles use beyond plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from paramctl.errors import FileError, FormatError, Unsupported
from paramctl.files.sources import Source
from paramctl.findings import Finding, Level
from paramctl.formats.pickles import unread_files, weights_only
from paramctl.formats.pickles.verdict import Safety, Use, inspect
from paramctl.formats.protocol import AnyFormat


class PickleVerdicts(NamedTuple):
    """The verdict on each pickle of a file, by the part it is in, and the findings about them.

    `damaged` are findings about pickles that are not whole, `unread` about those whose bytes could not be read.
    """

    pickles: list[tuple[str, Safety]]
    findings: list[Finding]
    damaged: list[Finding]
    unread: list[Finding]


def no_pickles() -> PickleVerdicts:
    """Return an empty result."""
    return PickleVerdicts([], [], [], [])


def judge_pickles(source: Source, form: AnyFormat | None) -> PickleVerdicts:
    """Judge every pickle in a file; in a file of unknown format, those at its beginning.

    A text may look like an old pickle: without the mark of one, it counts only if it does harm.
    """
    found = no_pickles()
    try:
        for part, read in form.code(source) if form else unread_files.code(source):
            _judge_one(found, part, read)
    except (FormatError, Unsupported) as error:
        found.unread.append(_unreadable(error))
    harmless = all(finding.rule != "dangerous" for finding in found.findings)
    if form is None and harmless and not unread_files.are_surely_in(source):
        return no_pickles()
    found = found._replace(findings=[*dict.fromkeys(found.findings)])  # several may say the same
    why = weights_only.FORMATS_REFUSED.get(form.NAME) if form else None
    return _refused_whole(found, why) if why else found


def _refused_whole(found: PickleVerdicts, why: str) -> PickleVerdicts:
    """Return the same verdicts, for a file that torch refuses before it reads any pickle."""
    pickles = [(part, safety._replace(refusal=why)) for part, safety in found.pickles]
    others = [finding for finding in found.findings if finding.rule != "weights-only"]
    return found._replace(pickles=pickles, findings=[*others, _refusal(why)])


def _judge_one(found: PickleVerdicts, part: str, read: Callable[[], bytes]) -> None:
    """Add the verdict on one pickle."""
    try:
        data = read()
    except (FormatError, Unsupported) as error:
        found.unread.append(_unreadable(error))
        return
    try:
        safety = inspect(data)
    except FormatError as error:
        if error.hint:
            found.findings.append(Finding("error", "safety", "dangerous", None, f"{error.what}; {error.hint}"))
        else:
            found.damaged.append(_unreadable(error))
        return
    found.pickles.append((part, safety))
    found.findings.extend(findings(safety))


def _unreadable(error: FileError) -> Finding:
    """Return the finding that a pickle cannot be read."""
    return Finding("error", "integrity", "unreadable", None, error.what)


def findings(safety: Safety) -> Iterator[Finding]:
    """Yield the findings about a pickle; names with the same effect share one finding."""
    alike: dict[tuple[Level, str, str], list[str]] = {}
    for use in safety.uses:
        alike.setdefault((*_severity(use), use.does), []).append(use.name)
    for (level, rule, does), names in alike.items():
        link = "; each " if len(names) > 1 else ", which " if level == "error" else "; "
        yield Finding(level, "safety", rule, None, f"the pickle names {', '.join(names)}{link}{does}")
    if safety.refusal:
        yield _refusal(safety.refusal)


def _refusal(why: str) -> Finding:
    """Return the finding that torch refuses a pickle."""
    return Finding("note", "safety", "weights-only", None, f"torch.load(weights_only=True) refuses it: {why}")


def _severity(use: Use) -> tuple[Level, str]:
    """Return the level and the rule of a name that a pickle uses."""
    if use.danger == "dangerous":
        return "error", "dangerous"
    is_class = use.name.rpartition(".")[2][:1].isupper()
    if use.danger == "known" or is_class:
        return "note", "foreign-class"
    return "warning" if use.called else "note", "foreign-code"
