"""Params that hold the same values without being tied, found by a digest of their bytes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import narrow
from paramctl.values.digest import digest
from paramctl.values.scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

PEEK = 256  # values at the front that tell most params apart


class Equals(NamedTuple):
    """Params with equal values, by position in `params`, the first of each group of ties; `saved` counts bytes.

    `constant` says that all their values are one, as those of biases and scales that were never trained.
    """

    members: tuple[int, ...]
    saved: int
    constant: bool


def equals(
    checkpoint: Checkpoint, indices: Iterable[int], on_progress: ProgressCallback = ignore
) -> tuple[Equals, ...]:
    """Groups among the params at `indices` that hold the same values bit for bit, in dtype and shape alike.

    Those of fewer than two values are left out, and those already tied count as one. Raises FormatError
    where a checksum of one that is read to its end is wrong.
    """
    params = checkpoint.params
    leaders = dict.fromkeys(checkpoint.tied_to.get(i, i) for i in indices)
    fit = [i for i in leaders if params[i].is_plain and params[i].numel > 1 and not params[i].repeats_itself]
    alike = _split([fit], lambda i: (params[i].dtype.name, params[i].shape, params[i].flags))
    alike = _split(alike, lambda i: _first_values(checkpoint, params[i]))
    scan = Scan(checkpoint, on_progress, sum(params[i].nbytes for group in alike for i in group))
    digests = {i: digest(scan, params[i]) for group in alike for i in group}
    found = sorted(_split(alike, digests.__getitem__))
    return tuple(
        Equals(tuple(group), (len(group) - 1) * params[group[0]].nbytes, digests[group[0]].constant) for group in found
    )


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
    from paramctl.values.arrays import storage_of, stored

    if not param.shape or param.dtype.bits % 8:
        return b""
    front = tuple(slice(0, 1) for _ in param.shape[:-1])
    return stored(storage_of(checkpoint, param), narrow(param, (*front, slice(0, PEEK)))).tobytes()
