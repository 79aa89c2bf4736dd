"""Digest the values of a param, so that equal tensors are found in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from paramctl.model.checkpoint import Param
from paramctl.values.scan import Scan

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Digest(NamedTuple):
    """The digest of a param's values: equal ones have an equal `sha256`, and no others can be made to."""

    sha256: bytes
    constant: bool


def digest(scan: Scan, param: Param) -> Digest:
    """Return the digest of a param's stored elements in C order. Raises as `Scan.stored` does."""
    import hashlib  # which loads a library of 4 MiB, and checking a file must not always pay for it

    found = hashlib.sha256()
    first: Array | None = None
    constant = True
    for block in scan.stored(param):
        first = block[:1].copy() if first is None else first
        constant = constant and is_repeated(block, first)
        found.update(block.tobytes())
    return Digest(found.digest(), constant and first is not None)


def is_repeated(block: Array, first: Array) -> bool:
    """Return whether every stored element of a block is the one in `first`, bit for bit."""
    if block.dtype.kind == "c":  # two zeros of different sign are equal, and NaN never is
        block, first = block.view("u8").reshape(-1, 2), first.view("u8")
    return bool((block == first).all())
