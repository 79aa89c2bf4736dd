"""Check that a file that was just written reads back as the checkpoint that was meant."""

from __future__ import annotations

from collections.abc import Iterator

from paramctl.errors import FormatError
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.dtypes import PAIRS


def verify_listing(written: Checkpoint, meant: Checkpoint) -> None:
    """Raise FormatError unless `written` lists the tensors, shapes, dtypes and ties of `meant`."""
    if sorted(_summary(written)) != sorted(_summary(meant)):
        raise FormatError("was written, but does not read back as what was meant", hint="nothing was replaced")


def _summary(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int, str]]:
    """Yield each param with the least of the paths it is tied to, whichever of them is the first."""
    labels = checkpoint.labels
    least: dict[int, str] = {}
    for group in checkpoint.groups():
        least.update(dict.fromkeys(group, min(labels[i] for i in group)))
    for i, (label, param) in enumerate(zip(labels, checkpoint.params, strict=True)):
        yield label, param.numel * _values_in(param), param.nbytes, least.get(i, "")


def _values_in(param: Param) -> int:
    """Return the values in one element: torch counts pairs of 4-bit floats, safetensors each of them."""
    return 2 if param.dtype.name == PAIRS else 1
