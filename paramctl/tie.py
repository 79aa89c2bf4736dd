"""Make params one, and part them again."""

from __future__ import annotations

from collections.abc import Sequence

from paramctl.changes import Change, Edit, also_tied, stale_moments
from paramctl.checkpoint import Checkpoint, Param, Storage
from paramctl.errors import NoMatch, UsageError
from paramctl.paths import layer_members, select
from paramctl.values import contiguous_copy


def tie(checkpoint: Checkpoint, first: str, *others: str) -> Edit:
    """Each of `others`, a layer or a param, becomes `first`, param by param.

    Raises UsageError, with every mismatch at once, where names, shapes or dtypes differ; NoMatch where
    a path names nothing.
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
            if leader.view == param.view and param.numel:
                continue
            changed[index] = _retied(param, leader)
            changes.append(Change(checkpoint.labels[index], f"tied to {checkpoint.labels[leaders[name]]}"))
    if problems:
        raise UsageError("cannot tie: " + "; ".join(problems))
    notes = stale_moments(checkpoint) if changes else (f"{first} and {', '.join(others)} are tied already",)
    return Edit(checkpoint.with_params(changed), tuple(changes), notes=notes)


def untie(checkpoint: Checkpoint, *paths: str) -> Edit:
    """Give every selected param that shares its bytes with others a copy of its own.

    The first of a group keeps the storage, so that naming all of them parts all. Raises NoMatch where a
    path names nothing.
    """
    chosen = select(checkpoint, paths).indices
    saved = set(checkpoint.storages)
    sharing = _sharing(checkpoint)
    params: dict[int, Param] = {}
    storages: dict[str, Storage] = {}
    changes: list[Change] = []
    for index in chosen:
        param = checkpoint.params[index]
        others = [i for i in sharing.get(str(param.storage), ()) if i != index and i not in params]
        if not param.is_plain or param.repeats_itself or not param.numel or not others:
            continue
        if all(i in chosen for i in others) and index < min(others):
            continue  # the others leave, this one may stay
        key = _fresh_key(param, saved)
        saved.add(key)
        params[index], storages[key] = contiguous_copy(checkpoint, param, key)
        shared = also_tied(checkpoint, index) or tuple(checkpoint.labels[i] for i in others)
        changes.append(Change(checkpoint.labels[index], f"untied from {_others(checkpoint, index, shared)}"))
    notes = () if changes else ("nothing there shares its bytes with anything else",)
    return Edit(checkpoint.with_params(params).with_storages(storages), tuple(changes), notes=notes)


def _members(checkpoint: Checkpoint, text: str) -> list[tuple[str, int]]:
    found = layer_members(checkpoint, text)
    if not found:
        raise NoMatch(f"no parameter or layer matches '{text}'")
    return found


def _mismatches(
    checkpoint: Checkpoint, first: str, leaders: dict[str, int], other: str, members: dict[str, int]
) -> list[str]:
    """Everything that keeps one layer from becoming another."""
    problems = [f"{first} has {name} and {other} has not" for name in leaders if name not in members]
    problems += [f"{other} has {name} and {first} has not" for name in members if name not in leaders]
    for name in leaders.keys() & members.keys():
        a, b = checkpoint.params[leaders[name]], checkpoint.params[members[name]]
        for param in (a, b):
            if not param.is_plain:
                problems.append(f"{param.path} is a {param.layout} tensor")
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            problems.append(f"{a.path or '.'} is {_kind(a)} and {b.path or '.'} is {_kind(b)}")
    return sorted(problems)


def _kind(param: Param) -> str:
    return f"{param.dtype.name} {' × '.join(map(str, param.shape)) or 'scalar'}"


def _retied(param: Param, leader: Param) -> Param:
    return param._replace(
        storage=leader.storage, offset=leader.offset, strides=leader.strides, flags=leader.flags, device=leader.device
    )


def _sharing(checkpoint: Checkpoint) -> dict[str, list[int]]:
    """Positions of the params of each storage."""
    users: dict[str, list[int]] = {}
    for i, param in enumerate(checkpoint.params):
        if param.storage is not None:
            users.setdefault(param.storage, []).append(i)
    return users


def _fresh_key(param: Param, taken: set[str]) -> str:
    """A key for a new storage: the param's own path, or the next number where storages are numbered."""
    numbers = [int(key) for key in taken if key.isdecimal() and len(key) < 18]
    if numbers or not taken:
        return str(max(numbers, default=-1) + 1)
    key = param.path
    while key in taken:
        key += "'"
    return key


def _others(checkpoint: Checkpoint, index: int, shared: Sequence[str]) -> str:
    label = checkpoint.labels[index]
    tied = checkpoint.tied_to
    names = [checkpoint.labels[tied.get(index, index)], *shared]
    return ", ".join(dict.fromkeys(name or "." for name in names if name != label))
