"""The table of formats, one line each, and how a file finds its own by its bytes.

A file has the first format of `_TRIED` that recognises its bytes, which is torch.load's order of trial:

1. A name that ends in `.safetensors` goes to safetensors in torch.load, whatever the bytes are; it runs nothing, and
   fails for others. Here the bytes decide, whatever the name: whoever renames the file gets no other verdict.
2. `PK` and the bytes 3 and 4 in front: a zip archive. TorchScript is one whose list of records has constants.pkl in
   just that case of letters (`zip_file` refuses another case, which torch.jit.load would find).
3. What tarfile opens, from files on disk only (`tars`): a stream goes on to 4. What begins as both is refused.
4. The old format: the first pickle is carried out whatever it is, and must be the magic number (`legacy_file`).

torch.distributed unpickles whatever is called `.metadata`, and loads each object and chunk in the other files as 2 or
4 (`dcp`); torch.export does so with archives in an archive. Every loader that unpickles begins at byte 0: `check`
judges the pickle that a file of any format begins with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from paramctl.errors import FormatError, UsageError
from paramctl.files.sources import Source
from paramctl.formats import lazy
from paramctl.formats.containers import tar_header
from paramctl.formats.lazy import Later
from paramctl.formats.protocol import AnyFormat, Format, SetFormat
from paramctl.formats.unknown import of_a_set, why_not
from paramctl.model.checkpoint import Checkpoint


def _later(module: str, name: str, suffixes: tuple[str, ...], may_be: lazy.MayBe) -> Any:
    return Later(module, name, suffixes, may_be)


_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SCRIPT = (".jit", ".ptl", ".torchscript", ".pts", ".pt", ".pth")
_INDEX = (".safetensors.index.json", ".bin.index.json")
_ZIP = lazy.begins(b"PK\x03\x04")
FORMATS: tuple[Format, ...] = (
    _later("pytorch.zip_file", "torch-zip", _TORCH, _ZIP),
    _later("programs.torchscript", "torchscript", _SCRIPT, _ZIP),
    _later("programs.torchscript_json", "torchscript-json", _SCRIPT, _ZIP),
    _later("programs.torch_export", "torch-export", (".pt2",), _ZIP),
    _later("pytorch.tar_file", "torch-tar", _TORCH, lambda head, _: tar_header.recognises(head)),
    _later("pytorch.legacy_file", "torch-legacy", _TORCH, lazy.begins(b"\x80", b"L")),
    _later("safetensors", "safetensors", (".safetensors",), lazy.always),
)
SETS: tuple[SetFormat, ...] = (
    _later("sets.sharded", "sharded", _INDEX, lazy.called(*_INDEX, begins=b"{")),
    _later("sets.dcp", "dcp", (".metadata",), lazy.called(".metadata", begins=b"\x80")),
    _later("sets.dcp_safetensors", "dcp-safetensors", (), lazy.holds(b"DCP_SHARDING_INFO")),
)
# A file is of the first of these that recognises it: before the name counts, what torch.load would take it for.
_TRIED: tuple[AnyFormat, ...] = (*FORMATS[:-1], *SETS, FORMATS[-1])
BY_NAME: dict[str, AnyFormat] = {form.NAME: form for form in (*FORMATS, *SETS)}
HEAD = 512  # bytes that tell every format from every other


def read(source: Source) -> Checkpoint:
    """List the checkpoint that `source` holds."""
    return _read(source, of)


def read_single(source: Source) -> Checkpoint:
    """List one file of a set, which is no index of others."""
    return _read(source, single)


def _read(source: Source, which: Callable[[Source], AnyFormat | None]) -> Checkpoint:
    if source.size == 0:
        raise FormatError("is empty", hint="check the command or the download that made it")
    if form := which(source):
        try:
            return form.read(source)
        except FormatError as error:
            error.hint = error.hint or of_a_set(source.name)
            raise
    head = source.read(0, min(HEAD, source.size))
    raise why_not(head, ", ".join(form.NAME for form in FORMATS))


def of(source: Source) -> AnyFormat | None:
    """Return the format of a file, by its bytes; None if it is none that paramctl knows."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in _TRIED if form.recognises(head, source)), None)


def single(source: Source) -> Format | None:
    """Return the format of a file that is a whole checkpoint, or one of its shards."""
    head = source.read(0, min(HEAD, source.size))
    return next((form for form in FORMATS if form.recognises(head, source)), None)


def as_set(form: AnyFormat | None) -> SetFormat | None:
    """Return a format as one of several files, or None."""
    return next((found for found in SETS if form and found.NAME == form.NAME), None)


def by_suffix(path: Path, own: str = "") -> AnyFormat | None:
    """Return the format that files of this name usually have: the one called `own`, if several have such names."""
    if whole := next((form for form in SETS if path.name.endswith(form.SUFFIXES)), None):
        return whole
    found = [form for form in FORMATS if path.suffix.lower() in form.SUFFIXES]
    return next((form for form in found if own == form.NAME), found[0] if found else None)


def named(name: str) -> AnyFormat:
    """Return the format called `name`, or known by that suffix."""
    for form in BY_NAME.values():
        if name == form.NAME or f".{name.lstrip('.').lower()}" in form.SUFFIXES:
            return form
    known = ", ".join(form.NAME for form in (*FORMATS, *SETS) if form.SUFFIXES)
    raise UsageError(f"no format '{name}'", hint=f"name one of {known}")
