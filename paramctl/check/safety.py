"""Report what loading a file would run: every name its pickles use beyond plain tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from paramctl.errors import FormatError, ParamctlError, TwoReadings
from paramctl.files.sources import Source
from paramctl.findings import Finding, Level
from paramctl.formats.pickles import unread_files, weights_only
from paramctl.formats.pickles.verdict import Safety, Use, inspect
from paramctl.formats.protocol import AnyFormat

DANGEROUS = "dangerous"
BEGIN_AS_PICKLES = ("torch-legacy", "dcp")  # formats of which the first byte is that of a pickle that is judged


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

    A text may look like a pickle of old, so that what bears no mark of one counts only where it does harm. So do the
    bytes that a file of another format begins with: whoever unpickles it begins there.
    """
    found = no_pickles()
    if form:
        _judge_all(found, form.code(source))
    if form is None or form.NAME not in BEGIN_AS_PICKLES:
        begun = no_pickles()
        _judge_all(begun, unread_files.code(source))
        if form is None and (_is_dangerous(begun) or unread_files.are_surely_in(source)):
            found = begun
        elif form and _is_dangerous(begun):
            found.pickles.extend(begun.pickles)
            found.findings.extend(finding for finding in begun.findings if finding.rule == DANGEROUS)
    found = found._replace(findings=[*dict.fromkeys(found.findings)])  # several may say the same
    why = weights_only.FORMATS_REFUSED.get(form.NAME) if form else None
    return _refused_whole(found, why) if why else found


def _is_dangerous(found: PickleVerdicts) -> bool:
    return any(finding.rule == DANGEROUS for finding in found.findings)


def _refused_whole(found: PickleVerdicts, why: str) -> PickleVerdicts:
    """Return the same verdicts, for a file that torch refuses before it reads any pickle."""
    pickles = [(part, safety._replace(refusal=why)) for part, safety in found.pickles]
    others = [finding for finding in found.findings if finding.rule != "weights-only"]
    return found._replace(pickles=pickles, findings=[*others, _refusal(why)])


def _judge_all(found: PickleVerdicts, pickles: Iterator[tuple[str, Callable[[], bytes]]]) -> None:
    """Judge pickles one by one; what goes wrong with one, or with finding the next, leaves what is known."""
    try:
        for part, read in pickles:
            _judge_one(found, part, read)
    except Exception as error:  # noqa: BLE001 - a fault of ours must not hide what was found
        _note(found, error, found.unread)


def _judge_one(found: PickleVerdicts, part: str, read: Callable[[], bytes]) -> None:
    """Add the verdict on one pickle."""
    try:
        data = read()
    except Exception as error:  # noqa: BLE001 - the others are judged all the same
        _note(found, error, found.unread)
        return
    try:
        safety = inspect(data)
    except Exception as error:  # noqa: BLE001 - the others are judged all the same
        _note(found, error, found.damaged, is_danger=isinstance(error, FormatError) and bool(error.hint))
        return
    found.pickles.append((part, safety))
    found.findings.extend(findings(safety))


def _note(found: PickleVerdicts, error: Exception, unjudged: list[Finding], *, is_danger: bool = False) -> None:
    """Note why a pickle has no verdict: as a danger where there is one, as a fault of ours where it is that."""
    if is_danger or isinstance(error, TwoReadings):
        found.findings.append(Finding("error", "safety", DANGEROUS, None, told(error)))
    elif isinstance(error, ParamctlError):
        unjudged.append(Finding("error", "integrity", "unreadable", None, error.what))
    else:
        found.findings.append(Finding("error", "safety", "unjudged", None, f"a pickle has no verdict: {told(error)}"))


def told(error: Exception) -> str:
    """Say in one line what went wrong, of a fault of ours its kind too."""
    if isinstance(error, ParamctlError):
        return f"{error.what}; {error.hint}" if error.hint else error.what
    if isinstance(error, MemoryError):
        return "there is not enough memory"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError):
        return f"cannot read: {error.strerror or error}"
    return f"internal error: {type(error).__name__}: {error}; please report it"


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
