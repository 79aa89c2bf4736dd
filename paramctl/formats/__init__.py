"""Every format paramctl reads and writes, and how a file finds its own.

A format is a module that meets `Format`, or `SetFormat`. A new one is one file and one line below.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from paramctl.errors import FormatError, ParamctlError, UsageError
from paramctl.files import set_names, temporary
from paramctl.files.segments import Segment
from paramctl.files.sources import STDIN, Source, open_source
from paramctl.formats import lazy
from paramctl.formats.lazy import Later
from paramctl.formats.opening import open
from paramctl.formats.protocol import Format, SetFormat
from paramctl.formats.registry import FORMATS, SETS, by_suffix, named, read
from paramctl.formats.unknown import of_a_set, why_not
from paramctl.model.checkpoint import Checkpoint, Loss, Param
from paramctl.model.dtypes import PAIRS
from paramctl.progress import Watch, nobody

if TYPE_CHECKING:
    from paramctl.files.set_names import Part
    from paramctl.findings import Finding








if TYPE_CHECKING:  # here the type checker holds every module to its protocol
    from paramctl.formats import safetensors
    from paramctl.formats.programs import torch_export, torchscript, torchscript_json
    from paramctl.formats.pytorch import legacy_file, tar_file, zip_file
    from paramctl.formats.sets import dcp, dcp_safetensors, sharded

    _MEET: tuple[Format, ...] = (
        zip_file, torchscript, torchscript_json, torch_export, legacy_file, tar_file, safetensors
    )  # fmt: skip
    _MEET_AS_SETS: tuple[SetFormat, ...] = (sharded, dcp, dcp_safetensors)








































__all__ = [
    "FORMATS",
    "SETS",
    "Format",
    "SetFormat",
    "by_suffix",
    "named",
    "open",
    "read",
]
