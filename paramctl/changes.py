"""What a verb did: the checkpoint it made, and a report of every param it touched or left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import UsageError
from paramctl.ties import Outside


class Change(NamedTuple):
    """One param that has new values or a new storage. `also` are the paths tied to it.

    A `role` and fans are said of what was drawn; they are None where there are none.
    """

    path: str
    how: str
    role: str | None = None
    fan_in: int | None = None
    fan_out: int | None = None
    also: tuple[str, ...] = ()


class Kept(NamedTuple):
    """A param that was named, but only as part of a layer, and was left as it is."""

    path: str
    why: str


class Edit(NamedTuple):
    """A new checkpoint and how it differs; `notes` are what a person should know about it."""

    checkpoint: Checkpoint
    changed: tuple[Change, ...]
    kept: tuple[Kept, ...] = ()
    seed: int | None = None
    notes: tuple[str, ...] = ()


def group_of(checkpoint: Checkpoint, index: int) -> tuple[int, ...]:
    """Positions of all params tied to the one at `index`, itself included, the first one first."""
    leader = checkpoint.tied_to.get(index, index)
    return checkpoint.groups_by_first.get(leader, (leader,))


def also_tied(checkpoint: Checkpoint, index: int) -> tuple[str, ...]:
    """Paths of the others that are tied to a param."""
    return tuple(checkpoint.labels[i] for i in group_of(checkpoint, index) if i != index)


def with_tied(checkpoint: Checkpoint, indices: Iterable[int]) -> set[int]:
    """Positions of params and of all that are tied to them."""
    tied, groups = checkpoint.tied_to, checkpoint.groups_by_first
    leaders = {tied.get(i, i) for i in indices}
    return {i for leader in leaders for i in groups.get(leader, (leader,))}


def check_editable(
    checkpoint: Checkpoint,
    indices: Iterable[int],
    named: Iterable[int],
    hint: str = "name them all, or 'paramctl untie' first",
) -> None:
    """Raise UsageError if the values of a param cannot be changed without changing others that are not `named`."""
    indices = tuple(indices)
    outside = Outside(checkpoint, indices, with_tied(checkpoint, named))
    for index in indices:
        param = checkpoint.params[index]
        check_plain(param)
        others = outside.overlapping(index)
        if others:
            paths = ", ".join(checkpoint.labels[i] or "." for i in others[:5])
            raise UsageError(
                f"{param.path or '.'} shares some of its bytes with {paths}",
                hint=hint,
            )


def check_plain(param: Param) -> None:
    """Raise UsageError unless a param is one view of saved bytes in which every element can differ."""
    if why := why_fixed(param):
        raise UsageError(f"{param.path or '.'} cannot be changed: it {why}", hint=_how_to_loosen(param))


def _how_to_loosen(param: Param) -> str:
    """What a person's own program can do about a param that cannot be changed here."""
    if param.is_plain:
        return "save it from your program after .clone()"
    if param.layout == "meta":
        return "save it from your program after .to_empty() or with values"
    if param.layout == "quantized":
        return "save it from your program after .dequantize()"
    if param.layout.startswith("sparse"):
        return "save it from your program after .to_dense()"
    return "save what it is made of from your program"


def why_fixed(param: Param) -> str:
    """What keeps the values of a param from being changed; empty if nothing does."""
    if not param.is_plain:
        saved = param.storage is not None or param.components
        return f"is a {param.layout} tensor" + ("" if saved else ", and no values are saved for it")
    if param.repeats_itself:
        return "repeats fewer values over its shape (stride 0), so its elements cannot differ"
    return ""
