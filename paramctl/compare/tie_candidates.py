"""What `paramctl tie` could make one: equal params, or whole layers that are equal param by param."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from paramctl.compare.duplicates import Equals
from paramctl.errors import NoMatch, UsageError
from paramctl.model.checkpoint import Checkpoint
from paramctl.model.positions import positions
from paramctl.model.selection import layer_members
from paramctl.model.sharing import group_of

Layer = tuple[str, Mapping[str, int]]  # its path, and its params by their names in it


class Candidate(NamedTuple):
    """Layers or params that are equal, by `paths`, and the names that `paramctl tie` is to be given.

    `names` are those of whatever is tied to them too. `saved` counts bytes; `constant` says that each param
    holds one value only.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    saved: int
    constant: bool


def candidates(checkpoint: Checkpoint, found: Sequence[Equals]) -> list[Candidate]:
    """What could be tied of groups of equal params: whole layers first, then the params that those leave apart.

    A layer counts from two params on, and with no layers in it.
    """
    kinds = _kinds(checkpoint, found)
    varied = {one.members[0] for one in found if not one.constant}
    becomes: dict[int, int] = {}  # position of the first of each group of ties → of what it is tied to by a layer
    out: list[Candidate] = []
    for layers in _equal_layers(checkpoint, kinds):
        if not _tears(checkpoint, layers):
            saved = _tie(checkpoint, layers, becomes)
            paths = tuple(path for path, _ in layers)
            constant = varied.isdisjoint(kinds[i] for i in layers[0][1].values())
            out += [Candidate(paths, paths, saved, constant)] if saved else []
    for one in found:
        apart: dict[int, list[int]] = {}
        for member in one.members:
            apart.setdefault(_final(checkpoint, member, becomes), []).extend(group_of(checkpoint, member))
        if len(apart) > 1:
            first, *others = apart
            names = _names(checkpoint, [first, *(i for other in others for i in apart[other])])
            saved = (len(apart) - 1) * checkpoint.params[first].nbytes
            out.append(Candidate(tuple(checkpoint.params[i].path for i in apart), names, saved, one.constant))
    return out


def command(file: str, found: Candidate, out: str) -> list[str]:
    """The words of the `paramctl tie` that makes one of them."""
    words = (file, *found.names)
    if any(word.startswith("-") and word != "-" for word in words):
        return ["paramctl", "tie", "-o", out, "--", *words]
    return ["paramctl", "tie", *words, "-o", out]


def _kinds(checkpoint: Checkpoint, found: Iterable[Equals]) -> dict[int, int]:
    """Position of each param that is equal or tied to another → of the first of those."""
    groups = checkpoint.groups_by_first
    kinds = {i: first for first, group in groups.items() if checkpoint.params[first].is_plain for i in group}
    kinds |= {i: one.members[0] for one in found for member in one.members for i in group_of(checkpoint, member)}
    return kinds


def _equal_layers(checkpoint: Checkpoint, kinds: Mapping[int, int]) -> Iterable[list[Layer]]:
    """Groups of layers whose params have the same names and are of the same kinds."""
    alike: dict[frozenset[tuple[str, int]], list[Layer]] = {}
    for path, own in checkpoint.own_params.items():
        if len(own) > 1 and path.isprintable() and all(i in kinds for i in own):
            members = _members(checkpoint, path)
            if sorted(members.values()) == sorted(own):
                alike.setdefault(frozenset((name, kinds[i]) for name, i in members.items()), []).append((path, members))
    return [layers for layers in alike.values() if len(layers) > 1]


def _members(checkpoint: Checkpoint, name: str) -> Mapping[str, int]:
    """What `paramctl tie` finds under a name; nothing where that is not clear."""
    try:
        return dict(layer_members(checkpoint, name))
    except (UsageError, NoMatch):
        return {}


def _tears(checkpoint: Checkpoint, layers: Sequence[Layer]) -> bool:
    """Whether tying the layers would part one of their params from another that it is tied to."""
    (_, leaders), *others = layers
    inside = {i for _, members in layers for i in members.values()}
    pairs = [(group_of(checkpoint, i), leaders[name]) for _, members in others for name, i in members.items()]
    return any(leader not in group and not inside.issuperset(group) for group, leader in pairs)


def _tie(checkpoint: Checkpoint, layers: Sequence[Layer], becomes: dict[int, int]) -> int:
    """Note what the params of all layers become, and return how many bytes that saves."""
    saved = 0
    (_, leaders), *others = layers
    for _, members in others:
        for name, i in members.items():
            first, other = (_final(checkpoint, at, becomes) for at in (leaders[name], i))
            if first != other:
                becomes[other] = first
                saved += checkpoint.params[i].nbytes
    return saved


def _final(checkpoint: Checkpoint, at: int, becomes: Mapping[int, int]) -> int:
    first = checkpoint.tied_to.get(at, at)
    while first in becomes:
        first = becomes[first]
    return first


def _names(checkpoint: Checkpoint, indices: Sequence[int]) -> tuple[str, ...]:
    """What `paramctl tie` is to call params: their paths, or positions where a path cannot be typed or names others."""
    paths = {i: checkpoint.params[i].path for i in indices}
    unclear = {i for i, path in paths.items() if not path.isprintable() or _members(checkpoint, path) != {"": i}}
    named = {**paths, **positions(checkpoint, unclear)} if unclear else paths
    return tuple(named[i] for i in indices)
