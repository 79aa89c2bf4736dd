"""What a verb did: the checkpoint it made, and a report of every param it touched or left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import UsageError
from paramctl.ties import overlapping


class Change(NamedTuple):
    """One param that has new values or a new storage. `also` are the paths tied to it."""

    path: str
    how: str
    role: str = ""
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
    tied = checkpoint.tied_to
    leader = tied.get(index, index)
    return (leader, *(i for i, first in tied.items() if first == leader))


def also_tied(checkpoint: Checkpoint, index: int) -> tuple[str, ...]:
    """Paths of the others of a group of ties, but for its first."""
    labels = checkpoint.labels
    return tuple(labels[i] for i in group_of(checkpoint, index)[1:])


def check_editable(checkpoint: Checkpoint, index: int, named: Iterable[int]) -> None:
    """Raise UsageError if the values of one param cannot be changed without changing others unnamed."""
    param = checkpoint.params[index]
    name = param.path or "."
    if not param.is_plain:
        what = "has no values in the file" if param.storage is None and not param.components else param.layout
        raise UsageError(f"{name} cannot be changed: it is a {what} tensor")
    if param.repeats_itself:
        raise UsageError(
            f"{name} ({_dims(param)}) repeats fewer values over its shape (stride 0), so its elements cannot differ",
            hint="save it from your program after .clone()",
        )
    chosen = {i for one in named for i in group_of(checkpoint, one)}
    others = [i for i in overlapping(checkpoint, index) if i not in chosen]
    if others:
        paths = ", ".join(checkpoint.labels[i] or "." for i in others[:5])
        raise UsageError(
            f"{name} shares some of its bytes with {paths}", hint="name them all, or 'paramctl untie' first"
        )


def stale_moments(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note, where the checkpoint also holds what an optimizer remembers of the old values."""
    if any(param.kind == "optimizer" for param in checkpoint.params):
        return ("the optimizer state in this file still belongs to the old values",)
    return ()


def _dims(param: Param) -> str:
    return " × ".join(str(n) for n in param.shape)
