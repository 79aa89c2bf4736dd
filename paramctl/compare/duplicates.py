"""Find params that hold the same values without being tied, by a digest of their bytes."""

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


class EqualParams(NamedTuple):
    """Params with equal values, by position in `params`, the first of each group of ties.

    `saved` counts the bytes that tying would save; `constant` tells that all values are one number, as in biases
    and scales that were never trained.
    """

    members: tuple[int, ...]
    saved: int
    constant: bool


def equal_params(
    checkpoint: Checkpoint, indices: Iterable[int], on_progress: ProgressCallback = ignore
) -> tuple[EqualParams, ...]:
    """Return groups among the params at `indices` with the same dtype, shape and values, bit for bit.

    Params of fewer than two values are left out, and tied ones count as one. Raises FormatError if the checksum
    of a param that is read to its end is wrong.
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
        EqualParams(tuple(group), (len(group) - 1) * params[group[0]].nbytes, digests[group[0]].constant)
        for group in found
    )


def _split(groups: Iterable[Sequence[int]], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return the groups split by the key of each member, without groups of one."""
    out: list[list[int]] = []
    for group in groups:
        parts: dict[Hashable, list[int]] = {}
        for i in group:
            parts.setdefault(key(i), []).append(i)
        out += [part for part in parts.values() if len(part) > 1]
    return out


def _first_values(checkpoint: Checkpoint, param: Param) -> bytes:
    """Return the bits of some values at the front, in which most params differ."""
    from paramctl.values.arrays import storage_of, stored

    if not param.shape or param.dtype.bits % 8:
        return b""
    front = tuple(slice(0, 1) for _ in param.shape[:-1])
    return stored(storage_of(checkpoint, param), narrow(param, (*front, slice(0, PEEK)))).tobytes()
