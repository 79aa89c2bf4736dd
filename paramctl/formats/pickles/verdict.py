"""What a pickle would do if it were loaded: every name beyond plain tensors, and what torch's safe loader says.

Nothing is looked up, imported or called to find out.
"""

from __future__ import annotations

from typing import NamedTuple

from paramctl.errors import FormatError
from paramctl.formats.pickles import weights_only
from paramctl.formats.pickles.known_names import Danger, is_plain, judge
from paramctl.formats.pickles.trace import Name, Trace, is_class, run

_OBJECT = "would be imported, and its own code would make an object of it"
_FUNCTION = "would be imported and called"
_NAMED = "would be imported, and not called"


class Use(NamedTuple):
    """A class, function or module that a pickle names and plain tensors do not need.

    `name` is as the file writes it, with the attributes that getattr() would walk; `does` is what would
    happen if the file were loaded; `called` whether the pickle calls it or makes an object of it.
    """

    name: str
    does: str
    danger: Danger
    called: bool


class Safety(NamedTuple):
    """The names that a pickle uses, each once and in order, and why torch.load(weights_only=True) refuses it, or ""."""

    uses: tuple[Use, ...]
    refusal: str


def inspect(data: bytes, offset: int = 0) -> Safety:
    """Judge the pickle that begins at `offset`. Raises FormatError where it is malformed.

    What stands before the damage would still be carried out: the error says so where that is dangerous.
    """
    trace = Trace(data, offset)
    try:
        run(trace)
    except FormatError as error:
        error.hint = error.hint or _warning(_uses(trace))
        raise
    uses = _uses(trace)
    del trace  # its notes are large, and what comes next takes as many
    return Safety(uses, weights_only.refusal(data, offset))


def _uses(trace: Trace) -> tuple[Use, ...]:
    return tuple(use for name in trace.names.values() if (use := _use(name)) is not None)


def _use(name: Name) -> Use | None:
    """Return what is to be said of a name, or None."""
    if name.harm:
        return Use(name.path, name.harm, "dangerous", name.called)
    if name.excused or is_plain(name.canonical):
        return None
    danger, does = judge(name.module, name.walk)
    if not does:
        does = (_OBJECT if is_class(name) else _FUNCTION) if name.called else _NAMED
    if name.note:  # this very use of it was looked into, and found harmless
        return Use(name.path, name.note, "known", name.called)
    return Use(name.path, does, danger, name.called)


def _warning(uses: tuple[Use, ...]) -> str:
    first = next((use for use in uses if use.danger == "dangerous"), None)
    return f"do not load it: before that it names {first.name[:80]}, which {first.does}" if first else ""
