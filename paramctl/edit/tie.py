"""Make params one, and part them again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, islice

from paramctl.edit.optimizer_reset import settle
from paramctl.edit.report import Change, Edit, Kept
from paramctl.errors import NoMatch, UsageError, some
from paramctl.formats.registry import BY_NAME
from paramctl.model.checkpoint import Checkpoint, Param, Storage, dims
from paramctl.model.selection import layer_members, select
from paramctl.model.sharing import overlaps
from paramctl.values.arrays import contiguous_copy

NAMED = 5  # params that one line of the report names


def tie(checkpoint: Checkpoint, first: str, *others: str, reset_optimizer: bool = False) -> Edit:
    """Each of `others`, a layer or a param, becomes `first`, param by param; empty ones have nothing to share.

    With `reset_optimizer` what an optimizer remembers of the others starts anew. Raises UsageError, with
    every mismatch at once, where names, shapes or dtypes differ; NoMatch where a path names nothing.
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
            changed[index] = _retied(param, leader)
            changes.append(Change(checkpoint.labels[index], f"tied to {checkpoint.labels[leaders[name]] or '.'}"))
    if problems:
        raise UsageError("cannot tie: " + "; ".join(problems))
    edited, moments, stale = settle(checkpoint, checkpoint.with_params(changed), changed, reset_optimizer)
    notes = stale or (() if changes else ("they are tied already",))
    return Edit(edited, (*changes, *moments), notes=(*notes, *_left(edited)))


def untie(checkpoint: Checkpoint, *paths: str) -> Edit:
    """Give every selected param that shares its bytes with others a copy of its own.

    The first of a group keeps the storage, so that naming all of them parts all. Raises NoMatch where a
    path names nothing.
    """
    chosen = frozenset(select(checkpoint, paths).indices)
    groups = _sharing(checkpoint)
    staying = {members[0] for members in groups if chosen.issuperset(members)}  # where all others leave
    keys = _fresh_keys(checkpoint)
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
        changes.append(Change(checkpoint.labels[index], f"untied from {_others(checkpoint, index, group)}"))
    notes = () if changes or kept else ("nothing there shares its bytes with anything else",)
    edited = checkpoint.with_params(params).with_storages(storages)
    return Edit(edited, tuple(changes), tuple(kept), notes=(*notes, *_left(edited)))


def _members(checkpoint: Checkpoint, text: str) -> list[tuple[str, int]]:
    found = layer_members(checkpoint, text)
    if not found:
        raise NoMatch(f"no parameter or layer matches '{text}'")
    return found


def _mismatches(
    checkpoint: Checkpoint, first: str, leaders: dict[str, int], other: str, members: dict[str, int]
) -> list[str]:
    """Everything that keeps one layer from becoming another."""
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
    return f"{param.dtype.name} {dims(param.shape)}"


def _retied(param: Param, leader: Param) -> Param:
    return param._replace(
        storage=leader.storage, offset=leader.offset, strides=leader.strides, flags=leader.flags, device=leader.device
    )


def _left(checkpoint: Checkpoint) -> tuple[str, ...]:
    """A note, where the file goes on to hold tensors that are no params any more."""
    places = BY_NAME[checkpoint.format].unlisted_tensors(checkpoint)
    return (f"tensors that no path names any more are still held at {some(places)}",) if places else ()


def _sharing(checkpoint: Checkpoint) -> list[tuple[int, ...]]:
    """Positions of params that share bytes, in groups: tied, or overlapping with all that are tied to them."""
    overlapping = overlaps(checkpoint)
    inside = {i for group in overlapping for i in group}
    return [*(group for group in checkpoint.groups() if group[0] not in inside), *overlapping]


def _fresh_keys(checkpoint: Checkpoint) -> Callable[[Param], str]:
    """Makes keys for new storages: a param's own path, or the next number where storages are numbered."""
    taken = set(checkpoint.storages)
    numbers = [int(key) for key in taken if key.isdecimal() and len(key) < 18]
    following = count(max(numbers, default=-1) + 1)

    def key_for(param: Param) -> str:
        key = str(next(following)) if numbers or not taken else param.path
        while key in taken:
            key += "'"
        taken.add(key)
        return key

    return key_for


def _others(checkpoint: Checkpoint, index: int, group: Sequence[int]) -> str:
    some = islice((i for i in group if i != index), NAMED)
    more = len(group) - 1 - NAMED
    names = ", ".join(checkpoint.labels[i] or "." for i in some)
    return names + (f" and {more:,} more" if more > 0 else "")
