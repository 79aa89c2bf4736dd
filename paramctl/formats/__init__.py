"""Every format paramctl reads and writes, and how a file finds its own.

A format is a module that meets `Format`, or `SetFormat`. A new one is one file and one line below.

Which format a file has says the first of `_TRIED` that recognises its bytes, in torch.load's order of trial:

1. A name that ends in `.safetensors` goes to safetensors in torch.load, whatever the bytes are; it runs nothing, and
   fails for others. Here the bytes decide, whatever the name: whoever renames the file gets no other verdict.
2. `PK` and the bytes 3 and 4 in front: a zip archive. TorchScript is one whose list of records has constants.pkl in
   just that case of letters (`torch_zip` refuses another case, which torch.jit.load would find).
3. What tarfile opens, from files on disk only (`tars`): a stream goes on to 4. What begins as both is refused.
4. The old format: the first pickle is carried out whatever it is, and must be the magic number (`torch_legacy`).

torch.distributed unpickles whatever is called `.metadata`, and loads each object and chunk in the other files as 2 or
4 (`distributed`); torch.export does so with archives in an archive. Every loader that unpickles begins at byte 0:
`check` judges the pickle that a file of any format begins with.
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
from paramctl.formats.containers import tar_header
from paramctl.formats.lazy import Later
from paramctl.formats.opening import open
from paramctl.formats.protocol import AnyFormat, Format, SetFormat
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




# A file is of the first of these that recognises it: before the name counts, what torch.load would take it for.
_TRIED: tuple[AnyFormat, ...] = (*FORMATS[:-1], *SETS, FORMATS[-1])




































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
