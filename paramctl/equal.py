"""Params that hold the same values without being tied: found by a checksum, and certain byte by byte."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import NamedTuple

from paramctl.changes import group_of
from paramctl.checkpoint import Checkpoint, Param
from paramctl.distance import aligned
from paramctl.scan import Scan
from paramctl.values import narrow
from paramctl.watch import Watch, nobody

PEEK = 256  # values at the front that tell most params apart


class Equals(NamedTuple):
    """Params with equal values, by position in `params`, the first of each group of ties; `saved` counts bytes.

    `constant` says that all their values are one, as those of biases and scales that were never trained.
    """

    members: tuple[int, ...]
    saved: int
    constant: bool


def equals(checkpoint: Checkpoint, indices: Iterable[int], watch: Watch = nobody) -> tuple[Equals, ...]:
    """Groups among the params at `indices` that hold the same values bit for bit, in dtype and shape alike.

    Those of fewer than two values are left out, and those already tied count as one. Raises FormatError
    where a checksum is wrong.
    """
    params = checkpoint.params
    leaders = dict.fromkeys(checkpoint.tied_to.get(i, i) for i in indices)
    fit = [i for i in leaders if params[i].is_plain and params[i].numel > 1 and not params[i].repeats_itself]
    alike = _split([fit], lambda i: (params[i].dtype.name, params[i].shape))
    alike = _split(alike, lambda i: _first_values(checkpoint, params[i]))
    total = sum(params[i].nbytes for group in alike for i in group)
    scan = Scan(checkpoint, watch, 2 * total)
    alike = _split(alike, lambda i: _checksum(scan, params[i]))
    found = [group for one in alike for group in _surely(checkpoint, scan, one)]
    return tuple(
        Equals(tuple(group), (len(group) - 1) * params[group[0]].nbytes, _is_constant(scan, params[group[0]]))
        for group in sorted(found)
    )


def same_values(checkpoint: Checkpoint, a: int, b: int) -> bool:
    """Whether two params of one dtype and shape hold the same values bit for bit."""
    one, two = Scan(checkpoint), Scan(checkpoint)
    return _same(one, two, checkpoint.params[a], checkpoint.params[b])


def command(checkpoint: Checkpoint, found: Equals, out: str) -> list[str]:
    """The words of the `paramctl tie` that makes one tensor of them, and of what is tied to each."""
    first, *others = found.members
    paths = [checkpoint.params[i].path for other in others for i in group_of(checkpoint, other)]
    return ["paramctl", "tie", checkpoint.file, checkpoint.params[first].path, *paths, "-o", out]


def _split(groups: Iterable[Sequence[int]], key: Callable[[int], Hashable]) -> list[list[int]]:
    """The groups parted by what `key` says of each member; those left alone are gone."""
    out: list[list[int]] = []
    for group in groups:
        parts: dict[Hashable, list[int]] = {}
        for i in group:
            parts.setdefault(key(i), []).append(i)
        out += [part for part in parts.values() if len(part) > 1]
    return out


def _first_values(checkpoint: Checkpoint, param: Param) -> bytes:
    """Some values at the front, as bits: most params differ there."""
    from paramctl.values import storage_of, stored

    if not param.shape or param.dtype.bits % 8:
        return b""
    front = tuple(slice(0, 1) for _ in param.shape[:-1])
    return stored(storage_of(checkpoint, param), narrow(param, (*front, slice(0, PEEK)))).tobytes()


def _checksum(scan: Scan, param: Param) -> int:
    value = 0
    for block in scan.stored(param):
        value = zlib.crc32(block.data, value)
    return value


def _surely(checkpoint: Checkpoint, scan: Scan, group: Sequence[int]) -> Iterator[list[int]]:
    """The members that are equal byte by byte: a checksum may be the same by chance, or by design."""
    left = list(group)
    other = Scan(checkpoint)
    while len(left) > 1:
        first, *rest = left
        same = [i for i in rest if _same(scan, other, checkpoint.params[first], checkpoint.params[i])]
        if same:
            yield [first, *same]
        left = [i for i in rest if i not in same]


def _same(one: Scan, two: Scan, a: Param, b: Param) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in aligned(one.stored(a), two.stored(b)))


def _is_constant(scan: Scan, param: Param) -> bool:
    """Whether all values are the first."""
    first = None
    for block in scan.stored(param):
        first = block[0] if first is None else first
        if not (block == first).all():
            return False
    return True
