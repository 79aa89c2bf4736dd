"""What loading a file would run, as findings: every name its pickles use beyond plain tensors, all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.findings import Finding, Level
from paramctl.formats import AnyFormat, pickles
from paramctl.formats.pickle_safety import Safety, Use, inspect
from paramctl.sources import Source

BARE = 5  # pickles that a torch file from before 1.6 begins with
MAX_BARE = 64 << 20  # bytes of them


class Loading(NamedTuple):
    """What is known of each pickle in a file, by the part it is in, and what there is to say of them."""

    pickles: list[tuple[str, Safety]]
    findings: list[Finding]

    @property
    def is_dangerous(self) -> bool:
        return any(finding.rule == "dangerous" for finding in self.findings)


def looked_into(source: Source, form: AnyFormat | None) -> Loading:
    """Judge every pickle in a file; where its format is unknown, those that it begins with."""
    found = Loading([], [])
    try:
        for part, judge in _code(source, form):
            found.findings.extend(_judged(found, part, judge))
    except FormatError as error:
        found.findings.append(Finding("error", "integrity", "unreadable", None, error.what))
    return found


def _judged(found: Loading, part: str, judge: Callable[[], Safety]) -> Iterator[Finding]:
    try:
        safety = judge()
    except FormatError as error:
        if error.hint:
            yield Finding("error", "safety", "dangerous", None, f"{error.what}; {error.hint}")
        else:
            yield Finding("error", "integrity", "unreadable", None, error.what)
        return
    found.pickles.append((part, safety))
    yield from findings(safety)


def findings(safety: Safety) -> Iterator[Finding]:
    """What to know before a pickle is loaded; what does the same is said once, with every name."""
    alike: dict[tuple[Level, str, str], list[str]] = {}
    for use in safety.uses:
        alike.setdefault((*_weighed(use), use.does), []).append(use.name)
    for (level, rule, does), names in alike.items():
        link = "; each " if len(names) > 1 else ", which " if level == "error" else "; "
        yield Finding(level, "safety", rule, None, f"the pickle names {', '.join(names)}{link}{does}")
    if safety.refusal:
        what = f"torch.load(weights_only=True) refuses it: {safety.refusal}"
        yield Finding("note", "safety", "weights-only", None, what)


def _weighed(use: Use) -> tuple[Level, str]:
    """How much it matters what a pickle names, and the rule it falls under."""
    if use.danger == "dangerous":
        return "error", "dangerous"
    is_class = use.name.rpartition(".")[2][:1].isupper()
    if use.danger == "known" or is_class:
        return "note", "foreign-class"
    return "warning" if use.called else "note", "foreign-code"


def _code(source: Source, form: AnyFormat | None) -> Iterator[tuple[str, Callable[[], Safety]]]:
    """The pickles in a file that would be carried out, each with what judges it."""
    if form is not None:
        for part, read in form.code(source):
            yield part, partial(_inspected, read)
    else:
        yield from _bare(source)


def _inspected(read: Callable[[], bytes]) -> Safety:
    return inspect(read())


def _bare(source: Source) -> Iterator[tuple[str, Callable[[], Safety]]]:
    """The pickles that a file begins with, one behind the other, as torch wrote them before it wrote archives."""
    if source.read(0, min(source.size, 1)) != b"\x80":
        return
    data = source.read(0, min(source.size, MAX_BARE))
    at = 0
    for number in range(BARE):
        if data[at : at + 1] != b"\x80":
            return
        yield f"pickle {number + 1}", partial(inspect, data, at)
        at = pickles.read(data, at).end
