"""What a verb did: the checkpoint it made, and a report of every param it touched or left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from paramctl.checkpoint import Checkpoint, Leaf, Param
from paramctl.errors import UsageError
from paramctl.observations import gradient_owners
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
        hint = "save it from your program after .clone()" if param.is_plain else ""
        raise UsageError(f"{param.path or '.'} cannot be changed: it {why}", hint=hint)


def why_fixed(param: Param) -> str:
    """What keeps the values of a param from being changed; empty if nothing does."""
    if not param.is_plain:
        saved = param.storage is not None or param.components
        return f"is a {param.layout} tensor" + ("" if saved else ", and no values are saved for it")
    if param.repeats_itself:
        return "repeats fewer values over its shape (stride 0), so its elements cannot differ"
    return ""


def stale_moments(checkpoint: Checkpoint, changed: Iterable[int]) -> tuple[str, ...]:
    """A note, where a model's params changed and an optimizer's memory of the old values lies beside them."""
    objects = (entry for entry in checkpoint.entries if isinstance(entry, Leaf))
    if not any(param.kind == "optimizer" for param in checkpoint.params) and not any(leaf.moments for leaf in objects):
        return ()
    values = {i for i in changed if checkpoint.params[i].kind != "optimizer"}
    if not values.difference(gradient_owners(checkpoint)):
        return ()
    return ("the optimizer state in this file still belongs to the old values",)
