"""What differs between two checkpoints: tensors, their dtypes, shapes and values, ties, and what else they hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from paramctl.compare.equal_prefix import EqualBytes
from paramctl.compare.param_pairs import Changed, Comparison
from paramctl.model.checkpoint import Checkpoint, Leaf, Param, blamed
from paramctl.model.path_renames import Rename, Suggestion, renamed, suggestion
from paramctl.progress import ProgressCallback, ignore

if TYPE_CHECKING:
    from paramctl.compare.distance import Tolerance


class Tie(NamedTuple):
    """A tensor that is tied to another in one checkpoint and not in the other."""

    path: str
    first: str


class Noted(NamedTuple):
    """A scalar, an object or a line of metadata that is not the same in both; empty where there is none."""

    path: str
    before: tuple[object, ...]
    after: tuple[object, ...]


@dataclass(frozen=True)
class Difference:
    """What differs from A to B, in the order of the files.

    `equal` counts the tensors that are the same in both, `compared` those that are in both. `unseen` are
    objects of which only the class could be compared, `hint` is a renaming that would explain a difference.
    """

    equal: int
    compared: int
    added: tuple[Param, ...] = ()
    removed: tuple[Param, ...] = ()
    changed: tuple[Changed, ...] = ()
    tied: tuple[Tie, ...] = ()
    untied: tuple[Tie, ...] = ()
    scalars: tuple[Noted, ...] = ()
    metadata: tuple[Noted, ...] = ()
    unseen: tuple[str, ...] = ()
    hint: Suggestion | None = None

    def __bool__(self) -> bool:
        """Whether anything differs."""
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
    """What differs from `a` to `b`: of all they hold, of the tensors that are `chosen`, or of the params only.

    `renames` are done to the paths of `a` first. Raises FormatError where a file is corrupt, UsageError
    where two paths become one.
    """
    if chosen and renames:
        chosen = _with_namesakes(a, b, chosen, renames)
    one = _named(a, chosen and chosen.a, renames)
    other = _named(b, chosen and chosen.b)
    common = [path for path in one if path in other]
    whole = not chosen and not only_params
    total = sum(a.params[one[path]].nbytes for path in common)
    equal = EqualBytes(a, b, on_progress, total)
    if not chosen and not renames and equal.whole_files():
        return Difference(len(common), len(common))
    comparison = Comparison(a, b, equal, tolerance)
    rows = {path: comparison.rows(path, a.params[one[path]], b.params[other[path]]) for path in common}
    removed = {path: a.params[i] for path, i in one.items() if path not in other}
    added = {path: b.params[i] for path, i in other.items() if path not in one}
    return Difference(
        equal=sum(not found for found in rows.values()),
        compared=len(common),
        added=tuple(param._replace(path=path) for path, param in added.items()),
        removed=tuple(param._replace(path=path) for path, param in removed.items()),
        changed=tuple(row for found in rows.values() for row in found),
        tied=tuple(_ties(common, _groups(b, other), _groups(a, one))),
        untied=tuple(_ties(common, _groups(a, one), _groups(b, other))),
        scalars=tuple(_scalars(a, b, renames)) if whole else (),
        metadata=tuple(_noted(a.metadata, b.metadata)) if whole and a.format == b.format else (),
        unseen=_unseen(a, b, renames) if whole else (),
        hint=None if renames else suggestion(_shapes(removed), _shapes(added), common),
    )


def _named(checkpoint: Checkpoint, chosen: Collection[int] | None, renames: Sequence[Rename] = ()) -> dict[str, int]:
    """The path under which each param is compared → its position in `params`."""
    paths: Sequence[str] = checkpoint.labels
    if renames:
        with blamed(checkpoint):
            paths = renamed(paths, renames)
    return {path: i for i, path in enumerate(paths) if chosen is None or i in chosen}


def _with_namesakes(a: Checkpoint, b: Checkpoint, chosen: Chosen, renames: Sequence[Rename]) -> Chosen:
    """The same, and what the other file calls so once paths are renamed: a name was said of either."""
    one, other = _named(a, None, renames), _named(b, None)
    both = [(one[path], other[path]) for path in one if path in other]
    of_a, of_b = (frozenset(range(n)) if found is None else frozenset(found) for found, n in (
        (chosen.a, len(a.params)), (chosen.b, len(b.params))
    ))  # fmt: skip
    return Chosen(of_a | {i for i, j in both if j in of_b}, of_b | {j for i, j in both if i in of_a})


def _shapes(params: Mapping[str, Param]) -> dict[str, object]:
    return {path: param.shape for path, param in params.items()}


# --- ties ----------------------------------------------------------------------------------------


def _groups(checkpoint: Checkpoint, named: Mapping[str, int]) -> dict[str, int]:
    """Path → position of the first of its group of ties; those that are tied to nothing are groups of their own."""
    return {path: checkpoint.tied_to.get(i, i) for path, i in named.items()}


def _ties(common: Sequence[str], now: Mapping[str, int], then: Mapping[str, int]) -> Iterator[Tie]:
    """The ties of the one that the other does not have, each to the first of its group that both have."""
    first: dict[int, str] = {}
    for path in common:
        leader = first.setdefault(now[path], path)
        if leader != path and then[leader] != then[path]:
            yield Tie(path, leader)


# --- what else there is --------------------------------------------------------------------------


def _scalars(a: Checkpoint, b: Checkpoint, renames: Sequence[Rename]) -> Iterator[Noted]:
    return _noted(_leaves(a, renames), _leaves(b))


def _noted(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Noted]:
    """What two mappings do not have in common, in the order of the first."""
    for path in {**before, **after}:
        held = tuple((found[path],) if path in found else () for found in (before, after))
        if not _same(held[0], held[1]):
            yield Noted(path, *held)


def _same(a: object, b: object) -> bool:
    """Whether two values of a file are equal; NaN is equal to NaN."""
    match a, b:
        case float(), float():
            return a == b or (a != a and b != b)
        case (list() | tuple(), list() | tuple()):
            return len(a) == len(b) and all(map(_same, a, b))
        case dict(), dict():
            return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def _leaves(checkpoint: Checkpoint, renames: Sequence[Rename] = ()) -> dict[str, object]:
    """Every entry that is not a tensor, by its path; where several print alike, later ones with `#2`, …"""
    leaves = [entry for entry in checkpoint.entries if isinstance(entry, Leaf)]
    seen: dict[str, int] = {}
    labels = []
    for leaf in leaves:
        n = seen[leaf.path] = seen.get(leaf.path, 0) + 1
        labels.append(leaf.path if n == 1 else f"{leaf.path}#{n}")
    paths = renamed(labels, renames) if renames else labels
    return {path: leaf.value for path, leaf in zip(paths, leaves, strict=True)}


def _unseen(a: Checkpoint, b: Checkpoint, renames: Sequence[Rename]) -> tuple[str, ...]:
    """Objects of foreign classes that both have: what they hold beside tensors is not compared."""
    there = {entry.path for entry in b.entries if isinstance(entry, Leaf) and entry.is_object}
    held = [entry.path for entry in a.entries if isinstance(entry, Leaf) and entry.is_object]
    paths = renamed(held, renames) if renames else held
    return tuple(path for path in paths if path in there)
