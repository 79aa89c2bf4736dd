"""Tie params together, and untie them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice

from paramctl.edit.optimizer_reset import update_optimizers
from paramctl.edit.report import Change, Edit, Kept
from paramctl.errors import NoMatch, UsageError, some
from paramctl.formats.registry import BY_NAME
from paramctl.model import shapes
from paramctl.model.checkpoint import Checkpoint, Param, Storage, dims
from paramctl.model.selections.selection import layer_members, select
from paramctl.model.sharing import overlaps
from paramctl.values.arrays import contiguous_copy

NAMED = 5  # params that one line of the report names


def tie(checkpoint: Checkpoint, first: str, *others: str, reset_optimizer: bool = False) -> Edit:
    """Tie each of `others`, a layer or a param, to `first`, param by param; empty params share nothing.

    With `reset_optimizer` the optimizer state of the others is reset. Raises UsageError with every mismatch of names,
    shapes and dtypes; NoMatch if a path names nothing.
    """
    if not others:
        raise UsageError("tie needs at least two layers or params", hint="name the one to keep first")
    leaders = dict(_members(checkpoint, first))
    changed: dict[int, Param] = {}
    changes: list[Change] = []
    problems: list[str] = []
    for other in others:
        members = dict(_members(checkpoint, other))
        problems += _mismatches(checkpoint, first, leaders, other, members)
        if problems:
            continue
        for name, index in members.items():
            leader, param = checkpoint.params[leaders[name]], checkpoint.params[index]
            if leader.view == param.view or not param.numel:
                continue
            changed[index] = _pointing_to(param, leader)
            changes.append(Change(checkpoint.labels[index], f"tied to {checkpoint.labels[leaders[name]] or '.'}"))
    if problems:
        raise UsageError("cannot tie: " + "; ".join(problems))
    edited, moments, stale = update_optimizers(checkpoint, checkpoint.with_params(changed), changed, reset_optimizer)
    notes = stale or (() if changes else ("they are tied already",))
    return Edit(edited, (*changes, *moments), notes=(*notes, *_unlisted_note(edited)))


def untie(checkpoint: Checkpoint, *paths: str) -> Edit:
    """Give every selected param that shares its bytes with others a copy of its own.

    The first of a group keeps the storage, so that selecting a whole group unties all of it. Raises NoMatch if a path
    names nothing.
    """
    chosen = frozenset(select(checkpoint, paths).indices)
    groups = _sharing_groups(checkpoint)
    staying = {members[0] for members in groups if chosen.issuperset(members)}  # where all others leave
    keys = _new_storage_keys(checkpoint)
    params: dict[int, Param] = {}
    storages: dict[str, Storage] = {}
    changes: list[Change] = []
    kept: list[Kept] = []
    leaving = ((i, members) for members in groups for i in chosen.intersection(members) - staying)
    for index, group in sorted(leaving):
        param = checkpoint.params[index]
        if not param.is_plain:
            kept.append(Kept(checkpoint.labels[index], f"it is a {param.layout} tensor"))
            continue
        key = keys(param)
        byteorder = checkpoint.storages[str(param.storage)].byteorder
        params[index], storages[key] = contiguous_copy(checkpoint, param, key, byteorder)
        changes.append(Change(checkpoint.labels[index], f"untied from {_other_labels(checkpoint, index, group)}"))
    notes = () if changes or kept else ("nothing selected shares its bytes with other params",)
    edited = checkpoint.with_params(params).with_storages(storages)
    return Edit(edited, tuple(changes), tuple(kept), notes=(*notes, *_unlisted_note(edited)))


def _members(checkpoint: Checkpoint, text: str) -> list[tuple[str, int]]:
    """Return the params of a layer by their names in it. Raises NoMatch if there are none."""
    found = layer_members(checkpoint, text)
    if not found:
        raise NoMatch(f"no parameter or layer matches '{text}'")
    return found


def _mismatches(
    checkpoint: Checkpoint, first: str, leaders: dict[str, int], other: str, members: dict[str, int]
) -> list[str]:
    """Return every reason why one layer cannot be tied to another."""
    if ("" in leaders) != ("" in members):
        layer, param = (other, first) if "" in leaders else (first, other)
        return [f"{layer} is a layer and {param} a single parameter"]
    problems = [f"{first} has {name} and {other} has not" for name in leaders if name not in members]
    problems += [f"{other} has {name} and {first} has not" for name in members if name not in leaders]
    for name in (name for name in leaders if name in members):
        a, b = checkpoint.params[leaders[name]], checkpoint.params[members[name]]
        problems += [f"{param.path or '.'} is a {param.layout} tensor" for param in (a, b) if not param.is_plain]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            problems.append(f"{a.path or '.'} is {_kind(a)} and {b.path or '.'} is {_kind(b)}")
    return list(dict.fromkeys(problems))


def _kind(param: Param) -> str:
    """Return dtype and shape, in words."""
    return f"{param.dtype.name} {dims(param.shape)}"


def _pointing_to(param: Param, leader: Param) -> Param:
    """Return the param as a view of the leader's storage."""
    return param._replace(
        storage=leader.storage, offset=leader.offset, strides=leader.strides, flags=leader.flags, device=leader.device
    )


def _unlisted_note(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return a note if the file still holds tensors that no path names."""
    places = BY_NAME[checkpoint.format].unlisted_tensors(checkpoint)
    return (f"the file still holds tensors that no path names, at {some(places)}",) if places else ()


def _sharing_groups(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    """Return positions of params that share bytes, in groups: tied, or overlapping and tied to those."""
    overlapping = overlaps(checkpoint)
    inside = {i for group in overlapping for i in group}
    return [*(group for group in checkpoint.groups() if group[0] not in inside), *overlapping]


def _new_storage_keys(checkpoint: Checkpoint) -> Callable[[Param], str]:
    """Return a function that makes keys for new storages: the param's path, or the next number."""
    taken = set(checkpoint.storages)
    numbers = [n for key in taken if (n := shapes.number(key)) is not None]
    following = count(max(numbers, default=-1) + 1)

    def key_for(param: Param) -> str:
        """Return an unused key."""
        key = str(next(following)) if numbers or not taken else param.path
        while key in taken:
            key += "'"
        taken.add(key)
        return key

    return key_for


def _other_labels(checkpoint: Checkpoint, index: int, group: Sequence[int]) -> str:
    """Return the labels of the other params of a group, in words."""
    some = islice((i for i in group if i != index), NAMED)
    more = len(group) - 1 - NAMED
    names = ", ".join(checkpoint.labels[i] or "." for i in some)
    return names + (f" and {more:,} more" if more > 0 else "")
