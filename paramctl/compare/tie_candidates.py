"""Suggest what `paramctl tie` could tie: equal params, or whole layers whose params are all equal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from paramctl.compare.duplicates import EqualParams
from paramctl.errors import NoMatch, UsageError
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.selections.positions import positions
from paramctl.model.selections.selection import layer_members
from paramctl.model.sharing import group_of

Layer = tuple[str, Mapping[str, int]]  # its path, and its params by their names in it


class Candidate(NamedTuple):
    """Layers or params that are equal, by `paths`, and the names to give to `paramctl tie`.

    `names` include params that are tied to them already. `saved` counts bytes; `constant` tells that each param
    holds one value only.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    saved: int
    constant: bool


def candidates(checkpoint: Checkpoint, found: Sequence[EqualParams]) -> list[Candidate]:
    """Return candidates among groups of equal params: whole layers first, then the remaining params.

    A layer must have two params or more, and no layers inside.
    """
    kinds = _kinds(checkpoint, found)
    varied = {one.members[0] for one in found if not one.constant}
    becomes: dict[int, int] = {}  # position of the first of each group of ties → of what it is tied to by a layer
    out: list[Candidate] = []
    for layers in _equal_layers(checkpoint, kinds):
        if not _breaks_ties(checkpoint, layers):
            saved = _record_ties(checkpoint, layers, becomes)
            paths = tuple(path for path, _ in layers)
            constant = varied.isdisjoint(kinds[i] for i in layers[0][1].values())
            out += [Candidate(paths, paths, saved, constant)] if saved else []
    for one in found:
        apart: dict[int, list[int]] = {}
        for member in one.members:
            apart.setdefault(_final_position(checkpoint, member, becomes), []).extend(group_of(checkpoint, member))
        if len(apart) > 1:
            first, *others = apart
            names = _names(checkpoint, [first, *(i for other in others for i in apart[other])])
            saved = (len(apart) - 1) * checkpoint.params[first].nbytes
            out.append(Candidate(tuple(checkpoint.params[i].path for i in apart), names, saved, one.constant))
    return out


def command(file: str, found: Candidate, out: str) -> list[str]:
    """Return the words of the `paramctl tie` command for a candidate."""
    words = (file, *found.names)
    if any(word.startswith("-") and word != "-" for word in words):
        return ["paramctl", "tie", "-o", out, "--", *words]
    return ["paramctl", "tie", *words, "-o", out]


def _kinds(checkpoint: Checkpoint, found: Iterable[EqualParams]) -> dict[int, int]:
    """Return, for each param that is equal or tied to another, the first position of all of those."""
    groups = checkpoint.groups_by_first
    kinds = {i: first for first, group in groups.items() if checkpoint.params[first].is_plain for i in group}
    kinds |= {i: one.members[0] for one in found for member in one.members for i in group_of(checkpoint, member)}
    return kinds


def _equal_layers(checkpoint: Checkpoint, kinds: Mapping[int, int]) -> Iterable[list[Layer]]:
    """Return groups of layers whose params have the same names and equal values."""
    alike: dict[frozenset[tuple[str, int]], list[Layer]] = {}
    for path, own in checkpoint.own_params.items():
        if len(own) > 1 and path.isprintable() and all(i in kinds for i in own):
            members = _members(checkpoint, path)
            if sorted(members.values()) == sorted(own):
                alike.setdefault(frozenset((name, kinds[i]) for name, i in members.items()), []).append((path, members))
    return [layers for layers in alike.values() if len(layers) > 1]


def _members(checkpoint: Checkpoint, name: str) -> Mapping[str, int]:
    """Return the params that `paramctl tie` finds under a name; none if the name is ambiguous."""
    try:
        return dict(layer_members(checkpoint, name))
    except (UsageError, NoMatch):
        return {}


def _breaks_ties(checkpoint: Checkpoint, layers: Sequence[Layer]) -> bool:
    """Return whether tying the layers would untie one of their params from a param outside."""
    (_, leaders), *others = layers
    inside = {i for _, members in layers for i in members.values()}
    pairs = [(group_of(checkpoint, i), leaders[name]) for _, members in others for name, i in members.items()]
    return any(leader not in group and not inside.issuperset(group) for group, leader in pairs)


def _record_ties(checkpoint: Checkpoint, layers: Sequence[Layer], becomes: dict[int, int]) -> int:
    """Record what the params of all layers become, and return the bytes saved."""
    saved = 0
    (_, leaders), *others = layers
    for _, members in others:
        for name, i in members.items():
            first, other = (_final_position(checkpoint, at, becomes) for at in (leaders[name], i))
            if first != other:
                becomes[other] = first
                saved += checkpoint.params[i].nbytes
    return saved


def _final_position(checkpoint: Checkpoint, at: int, becomes: Mapping[int, int]) -> int:
    """Return the position of the param that `at` is tied to in the end."""
    first = checkpoint.tied_to.get(at, at)
    while first in becomes:
        first = becomes[first]
    return first


def _names(checkpoint: Checkpoint, indices: Sequence[int]) -> tuple[str, ...]:
    """Return the names to give to `paramctl tie`: paths, or positions if a path cannot be typed or is ambiguous."""
    paths = {i: checkpoint.params[i].path for i in indices}
    unclear = {i for i, path in paths.items() if not path.isprintable() or _members(checkpoint, path) != {"": i}}
    named = {**paths, **positions(checkpoint, unclear)} if unclear else paths
    return tuple(named[i] for i in indices)
