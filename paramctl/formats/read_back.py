"""TODO-DOC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from paramctl.errors import FormatError
from paramctl.model.checkpoint import Checkpoint, Param
from paramctl.model.dtypes import PAIRS

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:  # here the type checker holds every module to its protocol
    from paramctl.formats import safetensors
    from paramctl.formats.programs import torch_export, torchscript, torchscript_json
    from paramctl.formats.pytorch import legacy_file, tar_file, zip_file
    from paramctl.formats.sets import dcp, dcp_safetensors, sharded

    _MEET: tuple[Format, ...] = (
        zip_file, torchscript, torchscript_json, torch_export, legacy_file, tar_file, safetensors
    )  # fmt: skip
    _MEET_AS_SETS: tuple[SetFormat, ...] = (sharded, dcp, dcp_safetensors)


def verify_listing(written: Checkpoint, meant: Checkpoint) -> None:
    """Raise FormatError unless `written` lists the tensors, shapes, dtypes and ties of `meant`."""
    if sorted(_summary(written)) != sorted(_summary(meant)):
        raise FormatError("was written, but does not read back as what was meant", hint="nothing was replaced")


def _summary(checkpoint: Checkpoint) -> Iterator[tuple[str, int, int, str]]:
    """Each param with the least of the paths it is tied to, whichever of them is the first."""
    labels = checkpoint.labels
    least: dict[int, str] = {}
    for group in checkpoint.groups():
        least.update(dict.fromkeys(group, min(labels[i] for i in group)))
    for i, (label, param) in enumerate(zip(labels, checkpoint.params, strict=True)):
        yield label, param.numel * _values_in(param), param.nbytes, least.get(i, "")


def _values_in(param: Param) -> int:
    """Values in one element: torch counts pairs of 4-bit floats, safetensors each of them."""
    return 2 if param.dtype.name == PAIRS else 1
