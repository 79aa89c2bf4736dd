"""Check that values are plausible in a trained model: NaN, infinities, weights that are all zero or all equal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import isfinite, prod

from paramctl.check.odd_values import ValueCounts, count_values, is_zero
from paramctl.errors import FormatError, Unsupported
from paramctl.findings import Finding, Level
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.optimizer_state import gradient_owners
from paramctl.progress import ProgressCallback, ignore
from paramctl.values.arrays import read_index
from paramctl.values.scan import Scan, distinct

DENORMAL = 0.1  # share of denormal values, of those that are not zero, that is hardly ever meant
ROWS = 3  # row numbers that a message names
FILTERS = 0.01  # share of filters that are zero in a kernel, from which on that is odd: a Fourier basis has two
WEIGHTS = ("weight", "kernel", "embed")  # names of what is trained and has two or more axes
BIASES = ("bias", "beta")  # begin as zeros, whatever their shape
STATISTICS = ("running_mean", "running_var")  # fade by a factor each step where a channel is always zero
TOKENS = ("emb", "lm_head")  # parts of the names of what has a row for each token
FRESH = "lora_B"  # begins as zeros

Odd = tuple[Level, str, str]  # with the rule it falls under, and what is odd


def health(
    checkpoint: Checkpoint,
    on_progress: ProgressCallback = ignore,
    *,
    damaged: Collection[str] = (),
    trust: bool = False,
) -> Iterator[Finding]:
    """Yield findings about the values of a checkpoint's params; tied ones are read once.

    Storages in `damaged` are skipped; with `trust` the others are known to be sound.
    """
    leaders = [i for i in range(len(checkpoint.params)) if i not in checkpoint.tied_to]
    gradients = gradient_owners(checkpoint)
    scan = Scan(checkpoint, on_progress, sum(checkpoint.params[i].nbytes for i in leaders), trust=trust)
    for i in leaders:
        param = checkpoint.params[i]
        yield from _odd_scale(param)
        for part in (param, *param.components):
            if part.storage is None or part.storage in damaged or part.dtype.category not in ("float", "complex"):
                continue
            learnt = part is param and i not in gradients and param.kind != "optimizer"
            try:
                for level, rule, what in _findings_of(checkpoint, scan, part, learnt):
                    yield Finding(level, "health", rule, part.path, what)
            except FormatError as error:
                yield Finding("error", "integrity", "checksum", part.path, error.what)
            except Unsupported as error:
                yield Finding("warning", "health", "unread", part.path, f"was not checked: {error.what}")


def _odd_scale(param: Param) -> Iterator[Finding]:
    """Yield a finding for a quantised tensor whose scale is not a finite number."""
    scale = param.quantizer.scale if param.quantizer else None
    if scale is not None and not isfinite(scale):
        what = f"has the scale {scale}, so its values are not numbers"
        yield Finding("warning", "health", "nan", param.path, what)


def _findings_of(checkpoint: Checkpoint, scan: Scan, param: Param, learnt: bool) -> Iterator[Odd]:
    """Yield findings about a param; fewer rules apply if it is not `learnt`, such as moments."""
    view, times = distinct(param)
    found = count_values(scan, view)
    is_weight = learnt and _is_weight(param)
    yield from _odd_values(param, found, times, is_weight)
    if learnt and (is_weight or param.dtype.name != "float16"):  # in which biases are as small as that
        yield from _denormal(param, found, times)
    if is_weight and not found.nan and not found.inf:
        yield from _odd_weights(checkpoint, scan, param, found)


def _odd_values(param: Param, found: ValueCounts, times: int, is_weight: bool) -> Iterator[Odd]:
    """Report NaN and infinities, which no tensor should hold."""
    if found.nan:
        yield "warning", "nan", f"{_share(param, found.nan * times)} NaN"
    if found.inf and found.inf == found.count == 1:
        yield "note", "infinite", "is infinite, like a best score before training"
    elif found.inf and found.is_mask and not is_weight:
        yield "note", "infinite", f"{_share(param, found.inf * times)} infinite, and all others are zero: a mask?"
    elif found.inf:
        yield "warning", "infinite", f"{_share(param, found.inf * times)} infinite"


def _denormal(param: Param, found: ValueCounts, times: int) -> Iterator[Odd]:
    """Report many denormal values."""
    if found.denormal > DENORMAL * (found.count - found.zeros):
        precision = f"too small for the full precision of {param.dtype.name}"
        what = f"{_share(param, found.denormal * times)} denormal: {precision}"
        if _name(param) in STATISTICS:
            yield "note", "denormal", f"{what}, as is usual for statistics of channels that are always zero"
        else:
            yield "warning", "denormal", what


def _share(param: Param, count: int) -> str:
    """Return `3 of 100 values are`."""
    if param.numel == 1:
        return "is"
    return f"{count:,} of {param.numel:,} values {'is' if count == 1 else 'are'}"


def _is_weight(param: Param) -> bool:
    """Return whether a param is a trained matrix or kernel; if the file does not say, its name decides."""
    name = _name(param)
    learnt = param.kind == "parameter" or (param.kind == "tensor" and any(word in name for word in WEIGHTS))
    learnt = learnt and not any(word in name for word in BIASES)
    return learnt and param.is_plain and not param.repeats_itself and len(param.shape) > 1 and param.numel > 1


def _odd_weights(checkpoint: Checkpoint, scan: Scan, param: Param, found: ValueCounts) -> Iterator[Odd]:
    """Report weights that are zero, constant or have zero rows."""
    if found.zeros == found.count:
        fresh = FRESH in param.path
        why = ", like those of an untrained LoRA" if fresh else ""
        yield "note" if fresh else "warning", "all-zero", f"all {found.count:,} weights are zero{why}"
    elif found.constant:
        if _is_ones(checkpoint, param):
            yield "note", "constant", f"all {found.count:,} weights are 1, the initial value of a scale"
            return
        is_matrix = sum(n > 1 for n in param.shape) > 1 or _name(param) == "weight"
        yield "warning" if is_matrix else "note", "constant", f"all {found.count:,} weights are the same"
    elif dead := _dead_rows(scan, param, found):
        yield _dead_rows_finding(param, dead, _is_embedding(checkpoint, param))


def _is_ones(checkpoint: Checkpoint, param: Param) -> bool:
    """Return whether the first value is one, the initial scale of a normalisation."""
    return bool(read_index(checkpoint, param, (0,) * len(param.shape)) == 1)


def _dead_rows_finding(param: Param, dead: Sequence[int], is_embedding: bool) -> Odd:
    """Return the finding about rows of a weight that are all zero."""
    rows = param.shape[0]
    numbers = ", ".join(map(str, dead[:ROWS])) + (", …" if len(dead) > ROWS else "")
    what = f"{len(dead):,} of {rows:,} rows {'are' if len(dead) > 1 else 'is'} all zero ({numbers})"
    at_end = rows - dead[0] == len(dead) < rows / 2
    if is_embedding and (len(dead) == 1 or at_end):
        return "note", "dead-rows", f"{what}: padding?"
    if len(param.shape) > 2 and len(dead) < FILTERS * rows:
        return "note", "dead-rows", f"{what}, as is usual in fixed transforms"
    return "warning", "dead-rows", what


def _is_embedding(checkpoint: Checkpoint, param: Param) -> bool:
    """Return whether a weight may have rows for padding, like an embedding: its class or its name tells.

    If neither tells, as in a state_dict of a Sequential, a weight without a bias may be one.
    """
    layer = param.path.rpartition(".")[0]
    module = checkpoint.modules.get(layer)
    if any(word in param.path.lower() for word in TOKENS):
        return True
    if module is not None and "embedding" in module.type.lower():
        return True
    if module is None and (layer.rpartition(".")[2].isdigit() or not layer):
        own = checkpoint.own_params.get(layer, ())
        return len(param.shape) == 2 and not any(_name(checkpoint.params[i]) == "bias" for i in own)
    return False


def _name(param: Param) -> str:
    """Return the last name of a param's path, in lower case."""
    return param.path.rpartition(".")[2].lower()


def _dead_rows(scan: Scan, param: Param, found: ValueCounts) -> list[int]:
    """Return the rows of a weight that are all zero; its values are read again if there may be one."""
    import numpy as np

    rows, length = param.shape[0], prod(param.shape[1:])
    if found.zeros < length or rows < 2:
        return []
    alive = np.zeros(rows, np.bool_)
    at = 0
    for block in scan.stored(param):
        alive[(np.flatnonzero(~is_zero(block, param.dtype)) + at) // length] = True
        at += block.size
    dead: list[int] = np.flatnonzero(~alive).tolist()
    return dead
