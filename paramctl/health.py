"""Whether values are what a trained model may hold: NaN, infinities, weights that are all zero or all alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

from paramctl.census import Census, census
from paramctl.checkpoint import Checkpoint, Param
from paramctl.errors import FormatError, Unsupported, UsageError
from paramctl.findings import Finding, Level
from paramctl.observations import gradient_owners
from paramctl.scan import Scan, distinct
from paramctl.watch import Watch, nobody

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

DENORMAL = 0.1  # share of denormal values, of those that are not zero, that is hardly ever meant
ROWS = 3  # row numbers that a message names
FILTERS = 0.01  # share of filters that are zero in a kernel, from which on that is odd: a Fourier basis has two
WEIGHTS = ("weight", "kernel", "embed")  # names of what is trained and has two or more axes
FRESH = "lora_B"  # begins as zeros


def health(
    checkpoint: Checkpoint, watch: Watch = nobody, *, damaged: Collection[str] = (), trust: bool = False
) -> Iterator[Finding]:
    """What is odd about the values of a checkpoint's params, tied ones read once.

    Storages that are `damaged` are left out; with `trust` the others are known not to be.
    """
    leaders = [i for i in range(len(checkpoint.params)) if i not in checkpoint.tied_to]
    gradients = gradient_owners(checkpoint)
    scan = Scan(checkpoint, watch, sum(checkpoint.params[i].nbytes for i in leaders), trust=trust)
    for i in leaders:
        param = checkpoint.params[i]
        for part in (param, *param.components):
            if part.storage is None or part.storage in damaged or part.dtype.category not in ("float", "complex"):
                continue
            try:
                view, times = distinct(part)
                found = census(scan, view)
            except FormatError as error:
                yield Finding("error", "integrity", "checksum", part.path, error.what)
                continue
            except (UsageError, Unsupported) as error:
                yield Finding("note", "health", "unreadable", part.path, f"was not looked into: {error.what}")
                continue
            yield from _values(part, found, times)
            if part is param and _is_weight(param) and i not in gradients:
                yield from _weights(scan, param, found)


def _values(param: Param, found: Census, times: int) -> Iterator[Finding]:
    """What no tensor should hold."""

    def odd(level: Level, rule: str, count: int, what: str) -> Finding:
        return Finding(level, "health", rule, param.path, f"{count * times:,} of {param.numel:,} values {what}")

    if found.nan:
        yield odd("warning", "nan", found.nan, "are NaN" if found.nan * times > 1 else "is NaN")
    if found.inf:
        level: Level = "note" if found.is_mask else "warning"
        why = ", and all others are zero: a mask?" if found.is_mask else ""
        yield odd(level, "infinite", found.inf, f"{'are' if found.inf * times > 1 else 'is'} infinite{why}")
    others = found.count - found.zeros
    if others and found.denormal > DENORMAL * others:
        what = f"are denormal: too small for the precision of {param.dtype.name}"
        yield odd("warning", "denormal", found.denormal, what)


def _is_weight(param: Param) -> bool:
    """Whether a param is a matrix or kernel that somebody trains; where the file does not say, its name does."""
    learnt = param.kind == "parameter" or (param.kind == "tensor" and any(word in _name(param) for word in WEIGHTS))
    return learnt and param.is_plain and not param.repeats_itself and len(param.shape) > 1 and prod(param.shape) > 1


def _weights(scan: Scan, param: Param, found: Census) -> Iterator[Finding]:
    """What hardly any trained matrix is."""
    if found.nan or found.inf:
        return

    def odd(level: Level, rule: str, what: str) -> Finding:
        return Finding(level, "health", rule, param.path, what)

    if found.zeros == found.count:
        fresh = FRESH in param.path
        why = ", as those of a LoRA that was never trained" if fresh else ""
        yield odd("note" if fresh else "warning", "all-zero", f"all {found.count:,} weights are zero{why}")
    elif found.constant:
        is_matrix = sum(n > 1 for n in param.shape) > 1 or _name(param) == "weight"
        yield odd("warning" if is_matrix else "note", "constant", f"all {found.count:,} weights are the same")
    elif dead := _dead_rows(scan, param, found):
        rows = param.shape[0]
        some = ", ".join(map(str, dead[:ROWS])) + (", …" if len(dead) > ROWS else "")
        what = f"{len(dead):,} of {rows:,} rows {'are' if len(dead) > 1 else 'is'} all zero ({some})"
        if len(dead) == 1 and "emb" in param.path.lower():
            yield odd("note", "dead-rows", f"{what}: a padding row?")
        elif len(param.shape) > 2 and len(dead) < FILTERS * rows:
            yield odd("note", "dead-rows", f"{what}, as some are in fixed transforms")
        else:
            yield odd("warning", "dead-rows", what)


def _name(param: Param) -> str:
    return param.path.rpartition(".")[2].lower()


def _dead_rows(scan: Scan, param: Param, found: Census) -> list[int]:
    """The rows of a weight, along its first axis, that are all zero; its values are read again if there may be one."""
    import numpy as np

    rows, length = param.shape[0], prod(param.shape[1:])
    if found.zeros < length or rows < 2:
        return []
    alive = np.zeros(rows, np.bool_)
    at = 0
    for block in scan.stored(param):
        alive[(np.flatnonzero(_magnitudes(block, param)) + at) // length] = True
        at += block.size
    dead: list[int] = np.flatnonzero(~alive).tolist()
    return dead


def _magnitudes(block: Array, param: Param) -> Array:
    """Stored elements without their sign: 0 for both zeros, something else for all others."""
    if block.dtype.kind == "c":
        return block
    magnitudes: Array = block & block.dtype.type((1 << (param.dtype.bits - 1)) - 1)
    return magnitudes
