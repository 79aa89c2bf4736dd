"""Find the differences between two checkpoints: tensors, their values, ties, and everything else they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from paramctl.compare.equal_prefix import EqualPrefix
from paramctl.compare.param_pairs import Changed, ParamComparison
from paramctl.model.checkpoint import Checkpoint, Leaf, Param, blamed
from paramctl.model.path_renames import Rename, Suggestion, renamed, suggestion
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.compare.distance import Tolerance


class TieChange(NamedTuple):
    """A tensor that is tied to another in one checkpoint and not in the other."""

    path: str
    first: str


class ChangedEntry(NamedTuple):
    """A scalar, an object or a line of metadata that differs; an empty side means that it is missing there."""

    path: str
    before: tuple[object, ...]
    after: tuple[object, ...]


@dataclass(frozen=True)
class Difference:
    """The differences from A to B, in the order of the files.

    `equal` counts the tensors that are equal in both, `compared` the tensors that are in both. `uncompared` are
    objects of which only the class could be compared; `hint` is a renaming that would explain a difference.
    """

    equal: int
    compared: int
    added: tuple[Param, ...] = ()
    removed: tuple[Param, ...] = ()
    changed: tuple[Changed, ...] = ()
    tied: tuple[TieChange, ...] = ()
    untied: tuple[TieChange, ...] = ()
    scalars: tuple[ChangedEntry, ...] = ()
    metadata: tuple[ChangedEntry, ...] = ()
    uncompared: tuple[str, ...] = ()
    hint: Suggestion | None = None

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        found = (self.added, self.removed, self.changed, self.tied, self.untied, self.scalars, self.metadata)
        return any(found)


class Chosen(NamedTuple):
    """Positions in `params` of A and of B that are compared; None stands for all."""

    a: Collection[int] | None = None
    b: Collection[int] | None = None


def diff(
    a: Checkpoint,
    b: Checkpoint,
    *,
    renames: Sequence[Rename] = (),
    chosen: Chosen | None = None,
    tolerance: Tolerance | None = None,
    only_params: bool = False,
    on_progress: ProgressCallback = ignore,
) -> Difference:
    """Return the differences from `a` to `b`: of everything, of the `chosen` tensors, or of the params only.

    `renames` are applied to the paths of `a` first. Raises FormatError if a file is corrupt, UsageError if
    two paths become one.
    """
    pairs = _paired(a, b, renames, chosen)
    equal = EqualPrefix(a, b, on_progress, sum(a.params[pairs.a[path]].nbytes for path in pairs.common))
    if not chosen and not renames and equal.same_files():
        return Difference(len(pairs.common), len(pairs.common))
    found = _tensor_differences(pairs, ParamComparison(a, b, equal, tolerance), a, b)
    if not renames:
        found = replace(found, hint=suggestion(_shapes(found.removed), _shapes(found.added), pairs.common))
    return found if chosen or only_params else _with_other_entries(found, a, b, renames)


class _Pairs(NamedTuple):
    """Positions in `params` of A and of B by the path under which they are compared, and the paths that both have."""

    a: Mapping[str, int]
    b: Mapping[str, int]
    common: Sequence[str]


def _paired(a: Checkpoint, b: Checkpoint, renames: Sequence[Rename], chosen: Chosen | None) -> _Pairs:
    """Pair the params of both checkpoints by path."""
    if chosen and renames:
        chosen = _with_namesakes(a, b, chosen, renames)
    one = _by_compared_path(a, chosen and chosen.a, renames)
    other = _by_compared_path(b, chosen and chosen.b)
    return _Pairs(one, other, [path for path in one if path in other])


def _tensor_differences(pairs: _Pairs, comparison: ParamComparison, a: Checkpoint, b: Checkpoint) -> Difference:
    """Return the differences of tensors and their ties."""
    one, other, common = pairs
    rows = {path: comparison.rows(path, a.params[one[path]], b.params[other[path]]) for path in common}
    return Difference(
        equal=sum(not found for found in rows.values()),
        compared=len(common),
        added=_missing_in(one, b, other),
        removed=_missing_in(other, a, one),
        changed=tuple(row for found in rows.values() for row in found),
        tied=tuple(_new_ties(common, _group_of_path(b, other), _group_of_path(a, one))),
        untied=tuple(_new_ties(common, _group_of_path(a, one), _group_of_path(b, other))),
    )


def _missing_in(others: Mapping[str, int], checkpoint: Checkpoint, named: Mapping[str, int]) -> tuple[Param, ...]:
    """Return the params of a checkpoint, under the compared path, that the other one does not have."""
    return tuple(checkpoint.params[i]._replace(path=path) for path, i in named.items() if path not in others)


def _with_other_entries(found: Difference, a: Checkpoint, b: Checkpoint, renames: Sequence[Rename]) -> Difference:
    """Return the differences, plus those of scalars, objects and metadata."""
    return replace(
        found,
        scalars=tuple(_changed_entries(_leaves(a, renames), _leaves(b))),
        metadata=tuple(_changed_entries(a.metadata, b.metadata)) if a.format == b.format else (),
        uncompared=_uncompared_objects(a, b, renames),
    )


def _by_compared_path(
    checkpoint: Checkpoint, chosen: Collection[int] | None, renames: Sequence[Rename] = ()
) -> dict[str, int]:
    """Return positions in `params` by the path under which each param is compared."""
    paths: Sequence[str] = checkpoint.labels
    if renames:
        with blamed(checkpoint):
            paths = renamed(paths, renames)
    return {path: i for i, path in enumerate(paths) if chosen is None or i in chosen}


def _with_namesakes(a: Checkpoint, b: Checkpoint, chosen: Chosen, renames: Sequence[Rename]) -> Chosen:
    """Return `chosen`, plus each param's namesake in the other file.

    A selection names a param in either file; after renaming, its namesake has the same path.
    """
    one, other = _by_compared_path(a, None, renames), _by_compared_path(b, None)
    both = [(one[path], other[path]) for path in one if path in other]
    of_a, of_b = (frozenset(range(n)) if found is None else frozenset(found) for found, n in (
        (chosen.a, len(a.params)), (chosen.b, len(b.params))
    ))  # fmt: skip
    return Chosen(of_a | {i for i, j in both if j in of_b}, of_b | {j for i, j in both if i in of_a})


def _shapes(params: Iterable[Param]) -> dict[str, object]:
    """Return the shape of each param, by its path."""
    return {param.path: param.shape for param in params}


def _group_of_path(checkpoint: Checkpoint, named: Mapping[str, int]) -> dict[str, int]:
    """Return the first position of each path's group of ties; its own position if it is tied to none."""
    return {path: checkpoint.tied_to.get(i, i) for path, i in named.items()}


def _new_ties(common: Sequence[str], now: Mapping[str, int], then: Mapping[str, int]) -> Iterator[TieChange]:
    """Yield the ties of one checkpoint that the other lacks, each to the first of its group that both have."""
    first: dict[int, str] = {}
    for path in common:
        leader = first.setdefault(now[path], path)
        if leader != path and then[leader] != then[path]:
            yield TieChange(path, leader)


def _changed_entries(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[ChangedEntry]:
    """Yield the differences of two mappings, in the order of the first."""
    for path in {**before, **after}:
        held = tuple((found[path],) if path in found else () for found in (before, after))
        if not _same(held[0], held[1]):
            yield ChangedEntry(path, *held)


def _same(a: object, b: object) -> bool:
    """Return whether two values of a file are equal; NaN equals NaN."""
    match a, b:
        case float(), float():
            return a == b or (a != a and b != b)
        case (list() | tuple(), list() | tuple()):
            return len(a) == len(b) and all(map(_same, a, b))
        case dict(), dict():
            return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _leaves(checkpoint: Checkpoint, renames: Sequence[Rename] = ()) -> dict[str, object]:
    """Return every entry that is not a tensor, by its path; if several print alike, the later ones with `#2`, …."""
    leaves = [entry for entry in checkpoint.entries if isinstance(entry, Leaf)]
    seen: dict[str, int] = {}
    labels = []
    for leaf in leaves:
        n = seen[leaf.path] = seen.get(leaf.path, 0) + 1
        labels.append(leaf.path if n == 1 else f"{leaf.path}#{n}")
    paths = renamed(labels, renames) if renames else labels
    return {path: leaf.value for path, leaf in zip(paths, leaves, strict=True)}


def _uncompared_objects(a: Checkpoint, b: Checkpoint, renames: Sequence[Rename]) -> tuple[str, ...]:
    """Return the paths of objects of foreign classes that both have: only their class is compared."""
    there = {entry.path for entry in b.entries if isinstance(entry, Leaf) and entry.is_object}
    held = [entry.path for entry in a.entries if isinstance(entry, Leaf) and entry.is_object]
    paths = renamed(held, renames) if renames else held
    return tuple(path for path in paths if path in there)
